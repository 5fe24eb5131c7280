"""Split-flow: a density of the atoms of a molecule at given beads, on the fiber alone."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import numpy as np

from ..collection import DatasetCollection
from ..dataset import CGDataset
from ..errors import InputError
from ..mapping import MAPPINGS
from ..mapping.core import Mapping
from ..mapping.fiber import Fiber, fiber_of
from ..topology import CGTopology
from .core import Density, log_normal
from .fiber_fit import (
    FRAME_VECTORS,
    KINDS,
    Kinds,
    extra_sites,
    fit_gaussian,
    fit_kinds,
    frame_indices,
    frame_vectors,
)
from .fiber_velocity import FiberVelocity, Sites

#: Ways to solve the differential equation: their stages and weights, or adaptive.
SOLVERS = ("rk4", "euler", "dopri5")

# Frames that share the solver's steps: at most so many, and pairs of sites in all; more would not
# stay in the processor's cache.
_CHUNK, _PAIRS = 64, 140_000

# Frames times directions whose derivatives are taken together.
_TOGETHER = 512

# Times when fixed steps end: closer together towards the end, where bonds get their lengths.
_CROWDING = 1.5

# Times that training draws, likewise.
_LATE = 1.5

# Standard deviation of a bond's length below which it is taken for constrained, nm.
_FROZEN = 1e-4

# Spread, in units of the modes' rms, below which errors count no more for being along stiff modes.
_STIFF = 0.1


# Mean, modes, spread and noise of a `FiberFlow`.
_Start = tuple[list[list[float]], list[list[float]], list[float], list[float]]


@dataclass(frozen=True)
class Solver:
    """How the differential equation is solved.

    Attributes:
        method: ``"rk4"``, ``"euler"`` or ``"dopri5"`` (adaptive).
        steps: of the first two.
        tolerance: relative and absolute, of the third.
    """

    method: str = "rk4"
    steps: int = 20
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.method not in SOLVERS:
            raise InputError(f"solver {self.method!r} is unknown; choose of {', '.join(SOLVERS)}")
        if self.steps < 1 or not self.tolerance > 0:
            raise InputError(
                f"steps {self.steps} or tolerance {self.tolerance} make no sense; give 1 or more, "
                "and a positive one"
            )


@dataclass(frozen=True, eq=False)
class Given:
    """What the velocity needs of the beads, computed once.

    Attributes:
        lifted: L R (copies, atoms, 3), nm.
        mean: of the Gaussian, from there (copies, atoms, 3), nm.
        frames: (copies, sites, vectors, 3) of the beads around each site, of order one.
        home: (copies, sites, 3) the bead of each site, nm.
        extra: (copies, beads, 3) those that are sites beside the atoms, nm.
    """

    lifted: Tensor
    mean: Tensor
    frames: Tensor
    home: Tensor
    extra: Tensor


class FiberFlow(Density):
    """Density of the atoms of a molecule at given beads, by a velocity that keeps the beads.

        r(t) = L R + x(t),    dx/dt = P v(r, t, R),    M r(t) = R for all t

        ln q(c | R) = ln N(c(0)) - int_0^1 tr(P dv/dr P) dt

    P projects on the null space of the map M (`Fiber`), so that any Runge-Kutta method keeps the
    beads to round-off, for any linear map. c are the 3 (atoms - beads) coordinates in that space,
    nm. At t = 0 they are Gaussian, with a mean that is linear in vectors between the beads around,
    and their products, which turn with the molecule.

    The velocity is that of Gaussians, exact if the atoms are Gaussian about that mean, plus a
    network.

    Args:
        topology: the atoms, or what `arguments` has of them.
        temperature: of the frames it learns, K.
        beads: topology of the beads, or what `arguments` has of it.
        matrix: M (beads, atoms).
        mean: (atoms, vectors) coefficients of the mean; see `frame_vectors`.
        modes: (atoms, atoms - beads) orthonormal directions in the null space.
        spread: (atoms - beads,) standard deviations of the frames along them, nm.
        noise: (atoms - beads,) those at t = 0, nm.
        kinds: of sites and pairs; see `Kinds`.
        width, layers, heads: as of `FiberVelocity`.
        seed: of the initial weights.

    Reference: arXiv:2511.01464, in whose formulation all coordinates flow; Lipman et al. 2023,
    arXiv:2210.02747, for the training.
    """

    objective = "flow_matching"

    def __init__(
        self,
        topology: Any,
        temperature: float,
        beads: Any,
        matrix: Sequence[Sequence[float]],
        mean: Sequence[Sequence[float]],
        modes: Sequence[Sequence[float]],
        spread: Sequence[float],
        noise: Sequence[float],
        kinds: Any,
        width: int = 48,
        layers: int = 4,
        heads: int = 12,
        seed: int = 0,
    ) -> None:
        super().__init__(topology, temperature)
        if isinstance(beads, dict):
            beads = CGTopology.from_json(json.dumps(beads))
        if heads < 3 or width % heads:
            raise InputError(f"width {width} is no multiple of heads {heads}, or these are not 3")
        self.bead_topology = beads
        #: Molecules by their atoms, if several share the weights.
        self.molecules: dict[CGTopology, FiberFlow] = {}
        self.kinds = Kinds(**kinds) if isinstance(kinds, dict) else kinds
        labels = [beads.label(b) for b in range(len(beads))]
        self.fiber = fiber_of(np.asarray(matrix), self.topology.bonds, labels)
        self._network: dict[str, Any] = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "seed": seed,
        }
        # Plain tensors, not buffers, which would be rounded to the flow's precision.
        self.projector, self.lift = map(torch.tensor, (self.fiber.projector, self.fiber.lift))
        self.matrix = torch.tensor(self.fiber.matrix)
        self.mean = torch.tensor(np.asarray(mean, dtype=np.float64))
        self.modes = torch.tensor(np.asarray(modes, dtype=np.float64))
        self.spread = torch.tensor(np.asarray(spread, dtype=np.float64))
        self.noise = torch.tensor(np.asarray(noise, dtype=np.float64))
        self._bead_frames = frame_indices(beads)
        home = self.fiber.home
        # Sites beside the atoms: beads that are no single atom.
        self.extra = extra_sites(self.fiber)
        self._home = torch.as_tensor(np.concatenate([home, self.extra]))
        self.sites = self._sites()
        self._cast: dict[Any, Sites] = {}
        vectors = self.mean.shape[1] + 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.velocity = FiberVelocity(
                len(self.kinds.sites),
                len(self.kinds.pairs),
                vectors,
                self.kinds.typical,
                width,
                layers,
                heads,
            )

    def _sites(self) -> Sites:
        """Return what the network is told of the atoms, and of beads that are no single atom."""
        site, pair, usual, width = self.kinds.of(self.topology, self.bead_topology, self.fiber)
        more = (0, 0, 0, len(self.extra))
        moving = torch.nn.functional.pad(self.modes * self.noise, more)
        noise = (moving[:, None] - moving[None]).square().sum(-1).sqrt().clamp_min(1e-3)
        scale = (self.modes.square() @ self.spread.square()).sqrt().clamp_min(1e-4)
        projector = torch.nn.functional.pad(self.projector, (0, len(self.extra), *more[2:]))
        return Sites(
            torch.as_tensor(site), torch.as_tensor(pair), torch.as_tensor(usual),
            torch.as_tensor(width), noise,
            torch.nn.functional.pad(scale, (0, len(self.extra))), projector,
        )  # fmt: skip

    def _sites_like(self, like: Tensor) -> Sites:
        key = like.dtype, like.device
        if key not in self._cast:
            self._cast[key] = self.sites.to(*key)
        return self._cast[key]

    @property
    def _chunk(self) -> int:
        return max(4, min(_CHUNK, _PAIRS // len(self._home) ** 2))

    @property
    def removed(self) -> int:
        """Degrees of freedom that the map removes."""
        return self.fiber.removed

    def settings(self) -> dict[str, Any]:
        """Return the constructor's further arguments."""
        return {
            "beads": json.loads(self.bead_topology.to_json()),
            "matrix": self.matrix.tolist(),
            "mean": self.mean.tolist(),
            "modes": self.modes.tolist(),
            "spread": self.spread.tolist(),
            "noise": self.noise.tolist(),
            "kinds": self.kinds.to_dict(),
            **self._network,
        }

    # ------------------------------------------------------------ the field

    def given(self, beads: Tensor) -> "Given":
        """Return what depends on the beads alone (copies, beads, 3), nm."""
        vectors = frame_vectors(beads, self._bead_frames)
        mean = torch.einsum("af,bafk->bak", self.mean.to(beads), vectors[:, self.fiber.home])
        mean = torch.einsum("ac,bck->bak", self.projector.to(beads), mean)
        lifted = torch.einsum("ab,fbk->fak", self.lift.to(beads), beads)
        frames = vectors[:, self._home] / self.kinds.size
        return Given(lifted, mean, frames, beads[:, self._home], beads[:, self.extra])

    def field(self, offsets: Tensor, time: Tensor, given: "Given") -> Tensor:
        """Return the velocity on the fiber (copies, atoms, 3), nm.

        Args:
            offsets: x (copies, atoms, 3), nm.
            time: (copies,), from 0 to 1.
            given: the beads.
        """
        along = torch.einsum("am,bak->bmk", self.modes.to(offsets), offsets - given.mean)
        spread, noise = self.spread.to(offsets).square(), self.noise.to(offsets).square()
        t = time[:, None]
        slope = (t * spread - (1 - t) * noise) / ((1 - t) ** 2 * noise + t**2 * spread)
        straight = torch.einsum("am,bmk->bak", self.modes.to(offsets), slope[..., None] * along)
        atoms, places = given.lifted + offsets, given.lifted + given.mean
        sites = torch.cat([atoms, given.extra], 1)
        places = torch.cat([places, given.extra], 1)
        size = self.kinds.size
        frames = torch.cat(
            [given.frames, ((sites - places) / size)[:, :, None],
             ((sites - given.home) / size)[:, :, None]], 2,
        )  # fmt: skip
        learned = self.velocity(
            sites, torch.nn.functional.pad(straight, (0, 0, 0, len(self.extra))), frames, time,
            self._sites_like(offsets),
        )  # fmt: skip
        return straight + learned[:, : self.fiber.atoms]

    def squared_error(self, positions: Tensor, normals: Tensor, time: Tensor) -> Tensor:
        """Return how far the velocity is from that of straight lines from noise to frames.

        Args:
            positions: (frames, atoms, 3), nm, whole molecules.
            normals: (frames, atoms, 3) standard normal numbers.
            time: (frames,), uniform from 0 to 1.

        Returns:
            (frames,), a degree of freedom, in units of each mode's spread.

        Reference: Lipman et al. 2023, arXiv:2210.02747, eq. 9 and 14.
        """
        time = 1 - (1 - time) ** _LATE
        positions, beads = self._split(positions)
        given = self.given(beads)
        ends = positions - given.lifted
        starts = given.mean + self._noise(normals[:, 1 : 1 + len(self.noise)])
        between = torch.lerp(starts, ends, time[:, None, None])
        gap = self.field(between, time, given) - (ends - starts)
        along = torch.einsum("am,bak->bmk", self.modes.to(gap), gap)
        width = (self.spread.square() + self.kinds.stiff**2).sqrt().to(gap)
        return (along / width[:, None]).square().sum((1, 2)) / self.removed

    def _split(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions about the beads' centre, and the beads."""
        beads = torch.einsum("ba,fak->fbk", self.matrix.to(positions), positions)
        centre = beads.mean(1, keepdim=True)
        return positions - centre, beads - centre

    def _noise(self, normals: Tensor) -> Tensor:
        """Return noise (copies, atoms, 3), nm, of normal numbers (copies, modes, 3)."""
        return torch.einsum("am,bmk->bak", (self.modes * self.noise).to(normals), normals)

    # ------------------------------------------------------------ samples and densities

    def sample(
        self,
        beads: Any,
        seed: int = 0,
        *,
        solver: Solver | None = None,
        density: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return atoms at given beads, one structure a row.

        Args:
            beads: (copies, beads, 3), nm; whole molecules.
            seed: of the random numbers.
            solver: of the differential equation; None: Runge-Kutta of fourth order in 6 steps,
                or 40 with densities.
            density: ``"exact"``, ``"hutchinson"`` (right on average, so not for weights), or
                None: no densities.

        Returns:
            Positions (copies, atoms, 3), nm, double precision, whose beads are the given ones to
            round-off; and ln q(c | R) of each, nm^-(3 (atoms - beads)), or None.

        Raises:
            InputError: if the number of beads is another.
        """
        atoms, noise, total = self._sampled(beads, seed, solver, density)
        return atoms, None if total is None else noise - total

    def entropies(
        self, beads: Any, seed: int = 0, *, solver: Solver | None = None, density: str = "exact"
    ) -> Tensor:
        """Return estimates of h(c | R) (copies,), nats, nm, each from one sample.

        The entropy of the noise, which is known, and the integral of the divergence: less noisy
        than minus the log-density of the sample, with the same mean.

        Args:
            beads, seed, solver, density: as of `sample`.
        """
        total = self._sampled(beads, seed, solver, density)[2]
        assert total is not None
        width = self.noise.log().sum() + 0.5 * len(self.noise) * math.log(2 * math.pi * math.e)
        return 3 * width.to(total) + total

    def _sampled(
        self, beads: Any, seed: int, solver: Solver | None, density: str | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return atoms, the log-density of the noise, and the integral of the divergence."""
        solver = solver or Solver(steps=6 if density is None else 40)
        like = next(self.parameters())
        beads = self._as_beads(beads)
        generator = torch.Generator(device=like.device).manual_seed(seed)
        shape = (len(beads), len(self.noise), 3)
        normals = torch.randn(shape, generator=generator, dtype=torch.float64, device=like.device)
        found, totals = [], []
        for part, drawn in zip(beads.split(self._chunk), normals.split(self._chunk), strict=True):
            centre = part.mean(1, keepdim=True)
            with torch.no_grad():
                given = self.given((part - centre).to(like))
                start = given.mean + self._noise(drawn.to(like))
                end, total = self._carried(start, given, 0.0, 1.0, solver, density, generator)
            found.append(self._placed(part, end))
            if total is not None:
                totals.append(total.double())
        total = torch.cat(totals) if totals else None
        return torch.cat(found), self._log_noise(normals), total

    def log_prob(
        self,
        positions: Tensor,
        *,
        solver: Solver | None = None,
        density: str = "exact",
        seed: int = 0,
    ) -> Tensor:
        """Return ln q(c | R) of atoms (frames,), nm^-(3 (atoms - beads)).

        Args:
            positions: (frames, atoms, 3), nm, whole molecules.
            solver: of the differential equation; None: Runge-Kutta of fourth order in 40 steps.
            density: ``"exact"``, or ``"hutchinson"``: right on average.
            seed: of the latter.

        Raises:
            InputError: if the number of atoms is another.
        """
        like = next(self.parameters())
        positions = torch.as_tensor(positions, dtype=torch.float64)
        if positions.dim() != 3 or tuple(positions.shape[1:]) != (self.beads, 3):
            raise InputError(
                f"positions have shape {tuple(positions.shape)}; this split-flow is of "
                f"{self.beads} atoms: (frames, atoms, 3)"
            )
        generator = torch.Generator(device=like.device).manual_seed(seed)
        logs = []
        for part in positions.split(self._chunk):
            atoms, beads = self._split(part)
            given = self.given(beads.to(like))
            lifted = torch.einsum("ab,fbk->fak", self.lift, beads)
            with torch.no_grad():
                start, total = self._carried(
                    (atoms - lifted).to(like), given, 1.0, 0.0,
                    solver or Solver(steps=40), density, generator,
                )  # fmt: skip
            along = torch.einsum("am,bak->bmk", self.modes.to(start), start - given.mean).double()
            assert total is not None
            logs.append(self._log_noise(along / self.noise[:, None]) + total.double())
        return torch.cat(logs)

    def divergence(
        self, offsets: Tensor, time: Tensor, given: Given, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity (copies, atoms, 3), nm, and a sum of its slopes (copies,).

        Args:
            offsets: (copies, atoms, 3), nm.
            time: (copies,).
            given: the beads.
            directions: (directions, copies or 1, atoms, 3) in the null space; the slope along
                each is added up.
        """

        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            velocity, change = torch.func.jvp(
                lambda x: self.field(x, time, given), (offsets,), (direction.expand_as(offsets),)
            )
            return velocity, (change * direction).sum((1, 2))

        size = max(1, _TOGETHER // len(offsets))
        total = torch.zeros_like(time)
        for part in directions.split(size):
            velocities, slopes = torch.func.vmap(along)(part)
            total = total + slopes.sum(0)
        return velocities[0], total

    def _carried(
        self, offsets: Tensor, given: Given, start: float, end: float, solver: Solver,
        density: str | None, generator: torch.Generator,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return offsets at the end, and the integral of the divergence on the way."""
        if density not in (None, "exact", "hutchinson"):
            raise InputError(f"density {density!r} is unknown; choose exact or hutchinson")
        directions = self._directions(offsets, density, generator)
        self._sites_like(offsets)  # kept from now on; not to be made while derivatives are traced

        def slope(time: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            times = time.expand(len(offsets))
            if directions is None:
                return (self.field(state[0], times, given),)
            return self.divergence(state[0], times, given, directions)

        state = (offsets,) if directions is None else (offsets, torch.zeros_like(offsets[:, 0, 0]))
        found = integrate(slope, state, start, end, solver)
        return found[0], found[1] if directions is not None else None

    def _directions(
        self, like: Tensor, density: str | None, generator: torch.Generator
    ) -> Tensor | None:
        if density is None:
            return None
        if density == "hutchinson":
            shape = (1, len(like), len(self.noise), 3)
            signs = torch.randint(0, 2, shape, generator=generator, device=like.device) * 2.0 - 1
            return torch.einsum("am,dbmk->dbak", self.modes.to(like), signs.to(like))
        axes = torch.eye(3, dtype=like.dtype, device=like.device)
        found = torch.einsum("am,kl->mkal", self.modes.to(like), axes).flatten(0, 1)
        return found[:, None]

    def _as_beads(self, beads: Any) -> Tensor:
        like = next(self.parameters())
        found = torch.as_tensor(beads, dtype=torch.float64, device=like.device)
        count = self.fiber.beads
        if found.dim() != 3 or tuple(found.shape[1:]) != (count, 3):
            names = ", ".join(self.bead_topology.label(b) for b in range(min(count, 4)))
            raise InputError(
                f"beads have shape {tuple(found.shape)}; this split-flow takes {count} beads "
                f"({names}, ...): (copies, {count}, 3)"
            )
        return found

    def _placed(self, beads: Tensor, offsets: Tensor) -> Tensor:
        """Return atoms in double precision; the beads are the given ones whatever the offsets."""
        lifted = torch.einsum("ab,fbk->fak", self.lift.to(beads), beads)
        return lifted + torch.einsum("ac,fck->fak", self.projector.to(beads), offsets.to(beads))

    def _log_noise(self, normals: Tensor) -> Tensor:
        """Return the log-density at t = 0 (copies,) of standard normal numbers of the modes."""
        return log_normal(normals.flatten(1)) - 3 * float(self.noise.log().sum())

    # ------------------------------------------------------------ other molecules

    def for_molecule(self, topology: CGTopology, mapping: Mapping) -> "FiberFlow":
        """Return the split-flow of another molecule; both share their trainable parameters.

        Args:
            topology: its atoms.
            mapping: of these.

        Raises:
            InputError: if this one begins from the Gaussian of its own molecule, or an atom is of
                a kind that it has not learned.
        """
        if not (self.noise == self.noise[0]).all() or self.mean.abs().max() > 0:
            raise InputError(
                "this split-flow begins from the Gaussian of its own molecule's frames; for "
                "others train one with prior=0.1, nm"
            )
        start = _isotropic(_fiber(topology, mapping), float(self.noise[0]))
        other = FiberFlow(
            topology, self.temperature, mapping.topology, mapping.matrix.toarray().tolist(),
            *start, self.kinds, **self._network,
        )  # fmt: skip
        other.velocity = self.velocity
        return other


def integrate(
    slope: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    start: float,
    end: float,
    solver: Solver,
) -> tuple[Tensor, ...]:
    """Return the solution of d state / dt = slope(t, state) at the end.

    Fixed steps are shorter towards t = 1.

    Args:
        slope: of a time, a scalar, and a state.
        state: tensors at the start.
        start, end: times from 0 to 1, in either order.
        solver: see `Solver`.
    """
    if solver.method == "dopri5":
        from torchdiffeq import odeint

        times = torch.tensor([start, end], dtype=state[0].dtype, device=state[0].device)
        path = odeint(slope, state, times, rtol=solver.tolerance, atol=solver.tolerance)
        return tuple(one[-1] for one in path)
    shares = torch.linspace(0, 1, solver.steps + 1, dtype=torch.float64)
    shares = shares if end > start else shares.flip(0)
    low, high = min(start, end), max(start, end)
    times = (low + (high - low) * (1 - (1 - shares) ** _CROWDING)).to(state[0])
    for now, then in zip(times[:-1], times[1:], strict=True):
        step = then - now
        first = slope(now, state)
        if solver.method == "euler":
            state = _moved(state, first, step)
            continue
        second = slope(now + step / 2, _moved(state, first, step / 2))
        third = slope(now + step / 2, _moved(state, second, step / 2))
        fourth = slope(then, _moved(state, third, step))
        mean = [(a + 2 * b + 2 * c + d) / 6
                for a, b, c, d in zip(first, second, third, fourth, strict=True)]  # fmt: skip
        state = _moved(state, mean, step)
    return state


def _moved(state: Sequence[Tensor], slope: Sequence[Tensor], step: Tensor) -> tuple[Tensor, ...]:
    return tuple(x + step * v for x, v in zip(state, slope, strict=True))


def split_flow(
    dataset: CGDataset | DatasetCollection,
    mapping: Any,
    *,
    prior: str | float = "fitted",
    kinds: str = "names",
    width: int = 48,
    layers: int = 4,
    heads: int = 12,
    seed: int = 0,
) -> FiberFlow:
    """Return an untrained split-flow for the molecule of a dataset of atoms.

    Args:
        dataset: frames of all atoms that are to be generated, as of the maps ``heavy_atom`` and
            ``all_atom``; one molecule, whole (`single_molecules`). Or a collection of several
            molecules, which share the weights.
        mapping: of these atoms to beads: a `Mapping`, a name in `MAPPINGS`, or a function from an
            mdtraj.Topology; of a collection one of the latter two.
        prior: where noise comes from: ``"fitted"``, the frames' own Gaussian at given beads, or,
            for flows that serve several molecules, a standard deviation on every axis, nm.
        kinds: which atoms share weights: ``"names"``, those of the same name and residue, or
            ``"graph"``, those in the same chemical surroundings, for molecules of repeated units
            and little data, such as lipids. See `Kinds`.
        width, layers, heads, seed: as of `FiberFlow`.

    Raises:
        InputError: if the map does not fit, keeps everything, or its beads are not independent.
    """
    parts = [dataset] if isinstance(dataset, CGDataset) else list(dataset.datasets.values())
    if prior != "fitted" and (isinstance(prior, str) or not prior > 0):
        raise InputError(f"prior is {prior!r}; give 'fitted', or a standard deviation in nm")
    if kinds not in KINDS:
        raise InputError(f"kinds is {kinds!r}; choose of {', '.join(KINDS)}")
    if len(parts) > 1 and prior == "fitted":
        raise InputError("several molecules share no Gaussian; give a prior such as 0.1, nm")
    maps = [mapping_of(part.topology, mapping) for part in parts]
    fibers = [_fiber(part.topology, m) for part, m in zip(parts, maps, strict=True)]
    frames = [np.asarray(part.positions, dtype=np.float64) for part in parts]
    beads = maps[0].topology
    for part, fiber in zip(parts, fibers, strict=True):
        _require_free(part, fiber)
    if isinstance(prior, str):
        fitted = fit_gaussian(fibers[0], beads, frames[0], parts[0].probabilities)
        mean, modes, spread = (x.tolist() for x in fitted)
        start: _Start = (mean, modes, spread, spread)
    else:
        start = _isotropic(fibers[0], float(prior))
    stiff = _STIFF * float(np.sqrt(np.mean(np.square(start[2]))))
    found = fit_kinds(
        [(p.topology, m.topology, f, x)
         for p, m, f, x in zip(parts, maps, fibers, frames, strict=True)], stiff, kinds,
    )  # fmt: skip
    flow = FiberFlow(
        parts[0].topology, parts[0].temperature, beads, maps[0].matrix.toarray().tolist(), *start,
        found, width, layers, heads, seed,
    )  # fmt: skip
    others = zip(parts[1:], maps[1:], strict=True)
    flow.molecules = {p.topology: flow.for_molecule(p.topology, m) for p, m in others}
    flow.molecules[parts[0].topology] = flow
    return flow


def _require_free(dataset: CGDataset, fiber: Fiber) -> None:
    """Refuse frames in which bonds are frozen: they have no density, and an entropy of -inf."""
    chosen = np.asarray(dataset.positions[:: max(1, len(dataset) // 200)], dtype=np.float64)
    kept = np.abs(fiber.projector).sum(1) == 0
    frozen = []
    for i, j in dataset.topology.bonds:
        if len(chosen) < 10 or (kept[i] and kept[j]):
            continue
        length = np.linalg.norm(chosen[:, i] - chosen[:, j], axis=-1)
        if length.std() < _FROZEN:
            frozen.append((i, j))
    if frozen:
        first = "-".join(dataset.topology.label(a) for a in frozen[0])
        raise InputError(
            f"{len(frozen)} bonds never change their length ({first}, ...): constraints froze "
            "them, so that the density on the fiber is singular and its entropy minus infinity; "
            "leave hydrogens out (map heavy_atom) and add them by rule, or run without constraints"
        )


def mapping_of(topology: CGTopology, mapping: Any) -> Mapping:
    """Return a map of the atoms of a topology.

    Args:
        topology: of atoms.
        mapping: a `Mapping`, a name in `MAPPINGS`, or a function from an mdtraj.Topology.

    Raises:
        InputError: if the map is of other atoms.
    """
    if isinstance(mapping, str):
        mapping = MAPPINGS[mapping]
    if not isinstance(mapping, Mapping):
        mapping = mapping(topology.to_mdtraj(atoms=True))
    if mapping.n_atoms != len(topology):
        raise InputError(
            f"the map takes {mapping.n_atoms} atoms and the frames have {len(topology)}; make it "
            "for the frames' topology"
        )
    return mapping


def _fiber(topology: CGTopology, mapping: Mapping) -> Fiber:
    beads = mapping.topology
    labels = [beads.label(b) for b in range(len(beads))]
    return fiber_of(mapping.matrix.toarray(), topology.bonds, labels)


def _isotropic(fiber: Fiber, width: float) -> _Start:
    """Return mean, modes, spread and noise of a Gaussian about the lift."""
    spread = [width] * len(fiber.basis)
    return np.zeros((fiber.atoms, FRAME_VECTORS)).tolist(), fiber.basis.T.tolist(), spread, spread
