"""Biases along collective variables: one OpenMM force each, and the weights that undo them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import openmm
import scipy.interpolate

from ..errors import InputError
from ..mbar import mbar_states
from ..units import strip, thermal_energy
from .variables import CollectiveVariable

#: Grid points for each width of a hill. The cubic spline between them is right to 5e-4 of a hill's
#: height (5/384 times the fourth derivative), and as it is the spline that acts and is recorded,
#: weights have no error from it. More cost time: OpenMM makes the spline again at every hill.
_POINTS_PER_WIDTH = 3
_MOST_POINTS = 1000

#: Force constants of the walls at the ends of a range, kJ/mol/nm^2 or kJ/mol/rad^2.
_WALL = {"distance": 50_000.0, "angle": 2_000.0}


class Bias(ABC):
    """A bias energy that depends on collective variables, as one OpenMM force.

    Attributes:
        variables: what it depends on.
        force: the OpenMM force, to be added to a System in a group of its own.
    """

    variables: tuple[CollectiveVariable, ...]
    force: Any

    @abstractmethod
    def energy(self, values: np.ndarray) -> np.ndarray:
        """Return the present bias (frames,), kJ/mol, at values (frames, variables)."""

    @abstractmethod
    def apply(self, context: Any) -> None:
        """Make the force in a Context that of the present state."""

    @abstractmethod
    def disturb(self, context: Any) -> None:
        """Put a bias into the Context that acts wherever the molecule is, for tests of it."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return its settings, JSON-able."""


def _compound(expression: str, variables: Sequence[CollectiveVariable]) -> Any:
    """Return the force with the given energy on the atoms of the variables.

    One compound bond, because its inner variables cost nothing: a CustomCVForce has a Context
    inside, which quadruples the time of a step of a small molecule on the CPU platform.
    """
    atoms = list(dict.fromkeys(a for v in variables for a in v.atoms))
    order = {a: k + 1 for k, a in enumerate(atoms)}
    named = "; ".join(f"s{k} = {v.expression(order)}" for k, v in enumerate(variables))
    force = openmm.CustomCompoundBondForce(len(atoms), f"{expression}; {named}")
    force.addBond(atoms, [])
    force.setName("Bias")
    # Molecules are whole here and OpenMM never takes them apart.
    force.setUsesPeriodicBoundaryConditions(False)
    return force


# ---------------------------------------------------------------- metadynamics


class Axis:
    """The grid along one variable, with the cubic spline that OpenMM uses between its points."""

    def __init__(self, variable: CollectiveVariable, width: float) -> None:
        if variable.low is None or variable.high is None:
            raise InputError(
                f"variable {variable.name} has no range; give one, e.g. "
                f"{variable.name}@0.2:1.8 ({variable.unit})"
            )
        self.low, self.high, self.periodic = variable.low, variable.high, variable.periodic
        self.width = strip(
            width, "radian" if variable.unit == "rad" else "nanometer",
            what=f"width of variable {variable.name}", positive=True,
        )  # fmt: skip
        span = self.high - self.low
        if self.width > span / 3:
            raise InputError(
                f"width of variable {variable.name} is {self.width:g} {variable.unit}, more than "
                f"a third of its range of {span:.3g}; give a smaller one"
            )
        intervals = max(16, math.ceil(_POINTS_PER_WIDTH * span / self.width))
        if intervals > _MOST_POINTS:
            raise InputError(
                f"width of variable {variable.name} is {self.width:g} {variable.unit}, too small "
                f"for its range of {span:.3g}; give at least "
                f"{_POINTS_PER_WIDTH * span / _MOST_POINTS:.2g}"
            )
        self.points = np.linspace(self.low, self.high, intervals + 1)

    def hill(self, value: float) -> np.ndarray:
        """Return a Gaussian of height one at `value`, on the points."""
        distance = self.points - value
        if self.periodic:
            span = self.high - self.low
            distance -= span * np.round(distance / span)
            # Both ends are one point: the same number, whatever the rounding.
            distance[-1] = distance[0]
        return np.exp(-0.5 * (distance / self.width) ** 2)

    def basis(self, values: np.ndarray) -> np.ndarray:
        """Return (frames, points): how much each point counts for the spline at each value."""
        if not self.periodic:
            return self._spline(np.clip(values, self.low, self.high))
        found = self._spline(self.low + np.mod(values - self.low, self.high - self.low))
        return np.concatenate([found, np.zeros((len(found), 1))], axis=1)

    @cached_property
    def _spline(self) -> Any:
        """Splines that are one at one point and zero at the others."""
        unit = np.eye(len(self.points))
        if self.periodic:  # the last point is the first
            unit[-1] = unit[0]
            unit = unit[:, :-1]
        kind = "periodic" if self.periodic else "natural"
        return scipy.interpolate.CubicSpline(self.points, unit, bc_type=kind)

    @property
    def log_steps(self) -> np.ndarray:
        """(points,) logarithms of the integration weights (trapezoid rule)."""
        steps = np.full(len(self.points), self.points[1] - self.points[0])
        steps[0] /= 2
        steps[-1] /= 2
        return np.log(steps)


class Metadynamics(Bias):
    """Well-tempered metadynamics in one or two variables, on a grid.

    Every deposit at s adds a Gaussian of height h exp(-V(s) / (k dT)) with dT = T (gamma - 1), so
    V tends to -(1 - 1/gamma) F. The unbiased distribution follows at any time from

        exp(beta c(t)) = int exp(gamma beta V / (gamma - 1)) ds / int exp(beta V / (gamma - 1)) ds

    with frame weights exp(beta (V(s, t) - c(t))).

    Args:
        variables: one or two.
        temperature: K.
        height: of the first hills, kJ/mol.
        widths: of the hills, one a variable, nm or radians.
        bias_factor: gamma, above 1.

    Attributes:
        grid: (points of the first variable, of the second), kJ/mol.
        deposits: hills so far.

    Raises:
        InputError: if a number does not make sense or a variable has no range.

    Reference: Barducci, Bussi and Parrinello 2008, doi:10.1103/PhysRevLett.100.020603, eq. 2;
    Tiwary and Parrinello 2015, doi:10.1021/jp504920s, eq. 12.
    """

    def __init__(
        self,
        variables: Sequence[CollectiveVariable],
        temperature: float,
        *,
        height: Any = 1.0,
        widths: Sequence[float] = (0.35,),
        bias_factor: float = 6.0,
    ) -> None:
        self.variables = tuple(variables)
        if not 1 <= len(self.variables) <= 2:
            raise InputError(
                f"metadynamics has {len(self.variables)} variables; give one or two "
                "(--variable phi --variable psi)"
            )
        if len({v.atoms for v in self.variables}) < len(self.variables):
            raise InputError(f"variable {self.variables[0].name} is given twice; give another")
        widths = list(widths)
        if len(widths) == 1:
            widths *= len(self.variables)
        if len(widths) != len(self.variables):
            raise InputError(
                f"{len(widths)} widths for {len(self.variables)} variables; give one each"
            )
        self.height = strip(height, "kilojoule/mole", what="height of the hills", positive=True)
        self.bias_factor = float(bias_factor)
        if not (1 < self.bias_factor < math.inf):
            raise InputError(f"bias factor is {bias_factor}; give a finite number above 1")
        self.kt = thermal_energy(temperature)
        self.axes = [Axis(v, w) for v, w in zip(self.variables, widths, strict=True)]
        self.grid = np.zeros([len(a.points) for a in self.axes])
        self.deposits = 0
        names = [f"s{k}" for k in range(len(self.variables))]
        walls = []
        for k, (variable, axis) in enumerate(zip(self.variables, self.axes, strict=True)):
            if axis.periodic:
                continue
            low, high = repr(axis.low), repr(axis.high)
            wall = _WALL[variable.kind] / 2
            walls.append(f" + {wall}*(max(0, s{k}-({high}))^2 + max(0, ({low})-s{k})^2)")
            names[k] = f"max({low}, min({high}, s{k}))"
        self.force = _compound(f"bias({', '.join(names)})" + "".join(walls), self.variables)
        self._function = self._tabulated()
        self.force.addTabulatedFunction("bias", self._function)

    def energy(self, values: np.ndarray) -> np.ndarray:
        """Return the present bias (frames,), kJ/mol, at values (frames, variables); with walls."""
        values = np.asarray(values, dtype=np.float64).reshape(-1, len(self.variables))
        found = self.axes[0].basis(values[:, 0]) @ self.grid
        if len(self.axes) == 2:
            found = (found * self.axes[1].basis(values[:, 1])).sum(axis=1)
        for k, (variable, axis) in enumerate(zip(self.variables, self.axes, strict=True)):
            if not axis.periodic:
                out = np.maximum(0, values[:, k] - axis.high) ** 2
                out += np.maximum(0, axis.low - values[:, k]) ** 2
                found = found + _WALL[variable.kind] / 2 * out
        return found

    def deposit(self, values: np.ndarray) -> None:
        """Add a hill at values (variables,)."""
        values = np.asarray(values, dtype=np.float64)
        inside = [np.clip(x, a.low, a.high) for x, a in zip(values, self.axes, strict=True)]
        present = float(self.energy(np.array([inside]))[0])
        height = self.height * math.exp(-present / (self.kt * (self.bias_factor - 1)))
        hill = self.axes[0].hill(values[0])
        if len(self.axes) == 2:
            hill = np.multiply.outer(hill, self.axes[1].hill(values[1]))
        self.grid += height * hill
        self.deposits += 1

    def offset(self) -> float:
        """Return c(t) of the present bias, kJ/mol."""
        gamma = self.bias_factor
        steps = self.axes[0].log_steps
        if len(self.axes) == 2:
            steps = np.add.outer(steps, self.axes[1].log_steps)
        reduced = self.grid / self.kt
        above = log_sum(reduced * gamma / (gamma - 1) + steps)
        below = log_sum(reduced / (gamma - 1) + steps)
        return self.kt * (above - below)

    def log_weights(self, bias_energy: np.ndarray) -> np.ndarray:
        """Return beta (V - c) for frames with bias energies (frames,) of this moment, kJ/mol."""
        return (np.asarray(bias_energy) - self.offset()) / self.kt

    def apply(self, context: Any) -> None:
        """Make the force in a Context that of the present grid."""
        self._put(context, self.grid)

    def disturb(self, context: Any) -> None:
        """Put waves of some kJ/mol into the Context; `apply` puts the grid back."""
        waves = np.zeros_like(self.grid)
        for k, axis in enumerate(self.axes):
            angle = 2 * np.pi * (axis.points - axis.low) / (axis.high - axis.low)
            wave = 10 * (np.sin(angle + 0.7) + np.cos(3 * angle))
            wave[-1] = wave[0]
            waves += wave.reshape([-1 if i == k else 1 for i in range(len(self.axes))])
        self._put(context, waves)

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-able."""
        return {
            "variables": [_describe(v) for v in self.variables],
            "height_kJ_mol": self.height,
            "widths": [a.width for a in self.axes],
            "bias_factor": self.bias_factor,
            "grid_points": [len(a.points) for a in self.axes],
        }

    def _put(self, context: Any, grid: np.ndarray) -> None:
        # Through the force: the wrapped function is a copy of what was added.
        self.force.getTabulatedFunction(0).setFunctionParameters(*self._parameters(grid))
        self.force.updateParametersInContext(context)

    def _parameters(self, grid: np.ndarray) -> list[Any]:
        ends = [end for a in self.axes for end in (a.low, a.high)]
        values = grid.T.ravel().tolist()  # OpenMM: the first variable varies fastest
        return [*(grid.shape if len(self.axes) == 2 else ()), values, *ends]

    def _tabulated(self) -> Any:
        periodic = [a.periodic for a in self.axes]
        if len(self.axes) == 1:
            return openmm.Continuous1DFunction(*self._parameters(self.grid), periodic[0])
        if periodic[0] != periodic[1]:
            raise InputError(
                f"variables {self.variables[0].name} and {self.variables[1].name} are a torsion "
                "and none; bias two torsions, two others, or one variable"
            )
        return openmm.Continuous2DFunction(*self._parameters(self.grid), periodic[0])


# ---------------------------------------------------------------- umbrella windows


class Umbrella(Bias):
    """Restraints to one centre after another, of one or more variables.

        W(s) = k (1 - cos(s - s0)) for torsions, k (s - s0)^2 / 2 for others, summed

    Args:
        variables: what is restrained.
        centres: (windows, variables), nm or radians.
        springs: k, kJ/mol/rad^2 or kJ/mol/nm^2, one or one a variable.

    Attributes:
        window: the present one.
        scale: of the force constants, to switch them on gradually.

    Raises:
        InputError: if shapes do not fit or a number does not make sense.
    """

    def __init__(
        self,
        variables: Sequence[CollectiveVariable],
        centres: np.ndarray,
        springs: Sequence[float],
    ) -> None:
        self.variables = tuple(variables)
        if not self.variables:
            raise InputError("umbrella windows need a variable; give one (--variable phi)")
        self.centres = np.asarray(centres, dtype=np.float64)
        if self.centres.ndim == 1:
            self.centres = self.centres[:, None]
        count = len(self.variables)
        if self.centres.ndim != 2 or self.centres.shape[1] != count or not len(self.centres):
            raise InputError(
                f"centres have shape {self.centres.shape}; give (windows, {count}), one column a "
                "variable"
            )
        springs = list(springs) * (count if len(springs) == 1 else 1)
        if len(springs) != count:
            raise InputError(f"{len(springs)} springs for {count} variables; give one each")
        self.springs = [
            strip(
                k,
                f"kilojoule/mole/{'radian' if v.unit == 'rad' else 'nanometer'}/"
                f"{'radian' if v.unit == 'rad' else 'nanometer'}",
                what=f"spring of variable {v.name}",
                positive=True,
            )
            for k, v in zip(springs, self.variables, strict=True)
        ]
        for k, variable in enumerate(self.variables):
            found = self.centres[:, k]
            limit = 2 * math.pi + 1e-6 if variable.unit == "rad" else math.inf
            wrong = ~np.isfinite(found) | (np.abs(found) > limit)
            if wrong.any():
                raise InputError(
                    f"centre {found[wrong][0]:g} of variable {variable.name} is no angle in "
                    "radians; write degrees with deg, e.g. -180:180:24deg"
                    if variable.unit == "rad"
                    else f"centre {found[wrong][0]:g} of variable {variable.name} is not finite"
                )
        self.window, self.scale = 0, 1.0
        terms = []
        for k, variable in enumerate(self.variables):
            difference = f"(s{k}-centre{k})"
            terms.append(
                f"spring{k}*(1-cos{difference})"
                if variable.periodic
                else f"0.5*spring{k}*{difference}^2"
            )
        self.force = _compound(" + ".join(terms), self.variables)
        for k in range(count):
            self.force.addGlobalParameter(f"centre{k}", self.centres[0, k])
            self.force.addGlobalParameter(f"spring{k}", self.springs[k])

    def energies(self, values: np.ndarray) -> np.ndarray:
        """Return the restraint of every window, (frames, windows), kJ/mol, in full strength."""
        values = np.asarray(values, dtype=np.float64).reshape(-1, 1, len(self.variables))
        difference = values - self.centres
        total = np.zeros(difference.shape[:2])
        for k, variable in enumerate(self.variables):
            one = difference[..., k]
            term = 1 - np.cos(one) if variable.periodic else one**2 / 2
            total += self.springs[k] * term
        return total

    def energy(self, values: np.ndarray) -> np.ndarray:
        """Return the present restraint (frames,), kJ/mol, at values (frames, variables)."""
        return self.scale * self.energies(values)[:, self.window]

    def apply(self, context: Any) -> None:
        """Set the present window's centre and force constants."""
        for k in range(len(self.variables)):
            context.setParameter(f"centre{k}", float(self.centres[self.window, k]))
            context.setParameter(f"spring{k}", self.scale * self.springs[k])

    def disturb(self, context: Any) -> None:
        """Move the centres, so that a force acts wherever the molecule is."""
        for k in range(len(self.variables)):
            context.setParameter(f"centre{k}", float(self.centres[self.window, k]) + 0.7)
            context.setParameter(f"spring{k}", self.springs[k])

    def weights(self, values: np.ndarray, windows: np.ndarray, temperature: float) -> np.ndarray:
        """Return weights (frames,), mean one, that undo the restraints (MBAR).

        Args:
            values: (frames, variables) of all windows' frames.
            windows: (frames,) the window of each.
            temperature: K.

        Raises:
            CGMLError: if windows do not overlap.

        Reference: Shirts and Chodera 2008, doi:10.1063/1.2978177.
        """
        kt = thermal_energy(temperature)
        log_weights = mbar_states(
            lambda part: self.energies(values[part]) / kt, windows, len(self.centres)
        )
        weights = np.exp(log_weights - log_weights.max())
        return weights / weights.mean()

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-able."""
        return {
            "variables": [_describe(v) for v in self.variables],
            "centres": self.centres.tolist(),
            "springs": self.springs,
        }


def _describe(variable: CollectiveVariable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "kind": variable.kind,
        "atoms": list(variable.atoms),
        "unit": variable.unit,
        "range": [variable.low, variable.high],
    }


def log_sum(terms: np.ndarray) -> float:
    """Return ln sum exp of all terms."""
    largest = float(terms.max())
    return largest + math.log(float(np.exp(terms - largest).sum()))


# ---------------------------------------------------------------- forces without the bias


def free_group(system: Any) -> int:
    """Return a force group that no force of a System uses, the highest.

    Raises:
        InputError: if all 32 are taken.
    """
    taken = {force.getForceGroup() for force in system.getForces()}
    for group in reversed(range(32)):
        if group not in taken:
            return group
    raise InputError("the System's forces use all 32 force groups; leave one to the bias")


def verify_unbiased(
    context: Any,
    groups: set[int],
    free_system: Any,
    label: Any = str,
    *,
    biased: bool = True,
) -> float:
    """Check that the forces of some groups are those of a System without the bias.

    Args:
        context: of the biased System.
        groups: force groups without the bias.
        free_system: the System without the bias, of which a second Context is made on the same
            platform. On Reference this changes the noise of the first one: restore it afterwards.
        label: atom index -> its name, for the message.
        biased: whether a bias acts now; then the forces of all groups must differ from the
            unbiased ones, so that the comparison shows something.

    Returns:
        Largest difference of an atom's force, relative to the root mean square force.

    Raises:
        InputError: naming the atom where they differ most.
    """
    platform = context.getPlatform()
    properties = {
        name: platform.getPropertyValue(context, name) for name in platform.getPropertyNames()
        if name in ("Precision", "Threads", "DeviceIndex", "DeterministicForces")
    }  # fmt: skip
    state = context.getState(getPositions=True, getForces=True, groups=groups)
    unbiased = _forces(state)
    second = openmm.Context(free_system, openmm.VerletIntegrator(0.001), platform, properties)
    if free_system.usesPeriodicBoundaryConditions():
        second.setPeriodicBoxVectors(*state.getPeriodicBoxVectors())
    for name in second.getParameters():
        second.setParameter(name, context.getParameter(name))
    second.setPositions(state.getPositions())
    expected = _forces(second.getState(getForces=True))
    del second
    scale = float(np.sqrt((expected**2).mean())) or 1.0
    gap = np.abs(unbiased - expected).max(axis=1) / scale
    exact = platform.getName() == "Reference"
    worst = int(gap.argmax())
    if not gap[worst] < (1e-9 if exact else 1e-4):
        raise InputError(
            f"the recorded forces are not unbiased: that on {label(worst)} differs from a run "
            f"without the bias by {gap[worst]:.2g} of the root mean square force. Give the bias "
            "a force group of its own and name all forces of the bias"
        )
    if biased:
        everything = _forces(context.getState(getForces=True))
        if not np.abs(everything - expected).max() > 1e-6 * scale:
            raise InputError(
                "the bias exerts no force, so the check of unbiased forces shows nothing; "
                "check its variables"
            )
    return float(gap[worst])


def _forces(state: Any) -> np.ndarray:
    return np.asarray(state.getForces(asNumpy=True)._value, dtype=np.float64)
