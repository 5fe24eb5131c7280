"""Units: nm, ps, Da, kJ/mol, K and radians in memory and on disk; quantities are stripped once."""

import math
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:  # the command line reads names of units here, and numpy takes longer to load
    import numpy as np

#: Molar gas constant, kJ/mol/K (CODATA 2018; the value OpenMM uses).
GAS_CONSTANT = 0.00831446261815324

#: Factors that turn a named unit into this package's unit.
LENGTH_UNITS = {"nm": 1.0, "nanometer": 1.0, "angstrom": 0.1, "A": 0.1}
FORCE_UNITS = {
    "kJ/mol/nm": 1.0,
    "kJ/mol/angstrom": 10.0,
    "kcal/mol/angstrom": 41.84,
    "kcal/mol/nm": 4.184,
}


def unit_factor(table: dict[str, float], name: str, what: str) -> float:
    """Return the factor of the named unit.

    Raises:
        InputError: if `name` is not in `table`.
    """
    if name not in table:
        raise InputError(f"{what} unit {name!r} is unknown; choose one of {', '.join(table)}")
    return table[name]


def thermal_energy(temperature: Any) -> float:
    """Return kT in kJ/mol at a temperature in K (a number or a quantity)."""
    return GAS_CONSTANT * strip(temperature, "kelvin", what="temperature", positive=True)


def strip(value: Any, unit: str, *, what: str, positive: bool = False) -> float:
    """Turn a number or a quantity (openmm.unit, pint) into a float in `unit`.

    Args:
        value: a plain number, already in `unit`, or a quantity of that dimension.
        unit: name of an openmm.unit unit, e.g. ``"picosecond"``, or ``"per_picosecond"``.
        what: what the value is, for the error message.
        positive: refuse values that are not above zero.

    Raises:
        InputError: if the quantity has another dimension, or the value is not finite.
    """
    try:
        number = float(_magnitude(value, unit))
    except Exception as error:  # pint and openmm raise their own dimension errors
        raise InputError(
            f"{what} is {_brief(value)}; give a number in {unit} or a quantity that converts to it"
        ) from error
    if not math.isfinite(number) or (positive and number <= 0):
        kind = "a positive" if positive else "a finite"
        raise InputError(f"{what} is {_brief(value)}; give {kind} number in {unit}")
    return number


def strip_array(value: Any, unit: str, *, what: str) -> "np.ndarray":
    """Turn an array, nested list or quantity of one into an array in `unit`; see `strip`.

    Args:
        value: plain numbers, already in `unit`, or a quantity of that dimension.
        unit: e.g. ``"nanometer"`` or ``"kilojoule/mole/nanometer"``.
        what: what the values are, for the error message.

    Raises:
        InputError: if the quantity has another dimension, or the values are no numbers.
    """
    import numpy as np

    try:
        array = np.asarray(_magnitude(value, unit))
        if array.dtype.kind not in "fiu":
            raise TypeError(f"values are {array.dtype}, not numbers")
    except Exception as error:
        raise InputError(
            f"{what} is {_brief(value)}; give numbers in {unit} or a quantity that converts to it"
        ) from error
    return array


def is_quantity(value: Any) -> bool:
    """Whether a value carries its own unit."""
    return hasattr(value, "value_in_unit") or (
        hasattr(value, "magnitude") and hasattr(value, "to")
    )


def _magnitude(value: Any, unit: str) -> Any:
    if not is_quantity(value):
        return value
    if unit.startswith("per_"):
        unit = "1/" + unit.removeprefix("per_")
    if not hasattr(value, "value_in_unit"):
        return value.to(unit).magnitude
    import openmm.unit

    first, *divisors = unit.split("/")
    target = openmm.unit.dimensionless if first == "1" else getattr(openmm.unit, first)
    for divisor in divisors:
        target = target / getattr(openmm.unit, divisor)
    return value.value_in_unit(target)


def _brief(value: Any) -> str:
    """Return a value for a message: one line, not the whole of a large array."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]}... (a {type(value).__name__})"
