"""Units: nm, ps, Da, kJ/mol, K and radians in memory and on disk; quantities are stripped once."""

from typing import Any

from .errors import InputError

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
        if hasattr(value, "value_in_unit"):
            import openmm.unit

            name, inverse = unit.removeprefix("per_"), unit.startswith("per_")
            target = getattr(openmm.unit, name)
            number = float(value.value_in_unit(target**-1 if inverse else target))
        elif hasattr(value, "magnitude") and hasattr(value, "to"):
            number = float(value.to(unit.replace("per_", "1/")).magnitude)
        else:
            number = float(value)
    except Exception as error:  # pint and openmm raise their own dimension errors
        raise InputError(
            f"{what} is {value!r}; give a number in {unit} or a quantity that converts to it"
        ) from error
    if number != number or number in (float("inf"), float("-inf")) or (positive and number <= 0):
        kind = "a positive" if positive else "a finite"
        raise InputError(f"{what} is {value!r}; give {kind} number in {unit}")
    return number
