"""How good backmapped structures are, against frames of the all-atom ensemble.

Every metric is also told of the reference's own halves or frames, since no sample is perfect.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .analysis import js_divergence
from .backmapping import CLASH, Structures
from .errors import InputError
from .topology import (
    CGTopology,
    bonded_angles,
    bonded_beads,
    bonded_torsions,
    surroundings,
)

_BINS = 60
_PLANE_BINS = 25

# Atoms are bonded in a structure if nearer than so many times the sum of their radii, nm.
_BONDED = 1.3
_RADII = {1: 0.031, 12: 0.076, 14: 0.071, 16: 0.066, 31: 0.107, 32: 0.105}
_RADIUS = 0.1  # of any other

# A bond is right within this share of its mean length.
_RIGHT = 0.1

# Share of the reference's frames in which a stereocentre has its own sense.
_ONE_SENSE = 0.99

# Kinds of bonds and so on with fewer values in the reference are not compared.
_FEWEST = 100


@dataclass(frozen=True)
class Divergence:
    """Jensen-Shannon divergences of many kinds of coordinates, nats.

    Attributes:
        kinds: names, e.g. ``ALA-N ALA-CA``.
        raw: the divergence of the histograms of each.
        floors: of each, that of the reference's contiguous halves.
        noises: likewise of the structures' own.
    """

    kinds: tuple[str, ...]
    raw: np.ndarray
    floors: np.ndarray
    noises: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """JS* of each kind: less a quarter of the divergence of the halves of either sample."""
        return self.raw - (self.floors + self.noises) / 4

    @property
    def beyond(self) -> float:
        """Mean over kinds of the raw divergence less the reference's halves'."""
        return float(np.mean(self.raw - self.floors)) if len(self.raw) else float("nan")

    @property
    def mean(self) -> float:
        """JS*, mean over kinds."""
        return float(np.mean(self.values)) if len(self.values) else float("nan")

    @property
    def worst(self) -> tuple[str, float]:
        """The kind of the largest, and that."""
        if not len(self.values):
            return "", float("nan")
        k = int(np.argmax(self.values))
        return self.kinds[k], float(self.values[k])

    def share_below(self, limit: float) -> float:
        """Return the share of kinds whose JS* is at most a limit."""
        return float(np.mean(self.values <= limit)) if len(self.values) else float("nan")


@dataclass(frozen=True)
class Quality:
    """Metrics of structures; see `assess`.

    Attributes:
        structures: how many.
        bead_error: largest distance of a bead from the given one, nm.
        bonds_right: share of bonds within a tenth of their mean length, and that of the reference.
        bonds, angles, torsions: divergences by kind, of those with an atom that is no bead.
        graph_distance: mean of the bonds missing and too many, by distance, over the bonds.
        clashes: share of residues of which an atom is nearer than 0.12 nm to one of another
            residue, bonded ones aside; and that of the reference.
        mirrored: stereocentres of the wrong sense, and how many were looked at.
        renumbered: the same of centres of which two neighbours are equivalent, such as a methyl
            group's hydrogens or a phosphate's oxygens: these have changed places, which changes
            the numbering alone.
        cis: cis peptides where the reference has trans, and how many were looked at.
        diversity: (RMSD to the frame - RMSD to each other) / RMSD to the frame; 0: as different
            from each other as from the frame, nearly 1: all alike. nan with one a frame.
        rmsd: mean and least distance from the frame, nm.
        plane: of the torsions' principal components, or None.
    """

    structures: int
    bead_error: float
    bonds_right: tuple[float, float]
    bonds: Divergence
    angles: Divergence
    torsions: Divergence
    graph_distance: float
    clashes: tuple[float, float]
    mirrored: tuple[int, int]
    renumbered: tuple[int, int]
    cis: tuple[int, int]
    diversity: float
    rmsd: tuple[float, float]
    plane: "TorsionPlane | None"

    def rows(self) -> dict[str, str]:
        """Return the metrics by name, as text."""
        mirrored, renumbered, cis = (
            f"{n} of {m:,} (95 % bound {_bound(n, m):.2g})" if m else "-"
            for n, m in (self.mirrored, self.renumbered, self.cis)
        )

        def told(found: Divergence) -> str:
            kind, worst = found.worst
            if not found.kinds:
                return f"not compared: fewer than {_FEWEST} values of each kind"
            return (
                f"{found.mean:.4f} nats, worst {worst:.4f} ({kind}), {len(found.kinds)} kinds; "
                f"beyond the halves of the reference {found.beyond:.4f}"
            )

        return {
            "structures": f"{self.structures:,}",
            "bead error, largest": f"{self.bead_error:.1e} nm",
            "bonds within 10 %": "{:.3%} (reference {:.3%})".format(*self.bonds_right),
            "bonds, JS*": told(self.bonds),
            "angles, JS*": told(self.angles),
            "torsions, JS*": told(self.torsions),
            "graph edit distance": f"{self.graph_distance:.5f}",
            "residues that clash": f"{self.clashes[0]:.3%} (reference {self.clashes[1]:.3%})",
            "wrong stereocentres": mirrored,
            "equivalent atoms that changed places": renumbered,
            "wrong cis peptides": cis,
            "diversity score": f"{self.diversity:.3f}" if np.isfinite(self.diversity)
            else "-, of one structure a frame",
            "RMSD to the frame": f"{self.rmsd[0]:.4f} nm, least {self.rmsd[1]:.4f} nm",
            "torsion plane": "-" if self.plane is None or not np.isfinite(self.plane.difference)
            else f"{self.plane.difference:.3f} kT rms (halves {self.plane.floor:.3f})",
        }  # fmt: skip

    def text(self) -> str:
        """Return the metrics, a line each."""
        return "\n".join(f"{name}: {value}" for name, value in self.rows().items())

    def record(self) -> dict[str, Any]:
        """Return the numbers, JSON-able; null where one is not finite."""
        found: dict[str, Any] = {"structures": self.structures}
        for name in ("bead_error", "graph_distance", "diversity"):
            found[name] = getattr(self, name)
        for name in ("bonds_right", "clashes", "mirrored", "renumbered", "cis", "rmsd"):
            found[name] = list(getattr(self, name))
        for name in ("bonds", "angles", "torsions"):
            one: Divergence = getattr(self, name)
            kind, worst = one.worst
            found[name] = {"mean": one.mean, "beyond_halves": one.beyond, "worst": worst,
                           "worst_kind": kind, "kinds": len(one.kinds),
                           "below_0.02": one.share_below(0.02)}  # fmt: skip
        if self.plane is not None:
            found["plane"] = [self.plane.difference, self.plane.floor]
        return _finite(found)


def assess(
    structures: Structures,
    reference: np.ndarray,
    beads: np.ndarray,
    *,
    kept: np.ndarray | None = None,
) -> Quality:
    """Return metrics of structures that were generated for the beads of reference frames.

    Args:
        structures: one or several of each frame; `Structures.frame` numbers the reference.
        reference: (frames, atoms, 3), nm, whole molecules, in the order of time: contiguous
            halves are compared.
        beads: M (beads, atoms), the map.
        kept: (atoms,) which atoms are beads; None: as the map says.

    Raises:
        InputError: if shapes do not fit.
    """
    top, made = structures.topology, structures.positions
    reference = np.asarray(reference, dtype=np.float64)
    if reference.shape[1:] != made.shape[1:]:
        raise InputError(
            f"reference frames have shape {reference.shape} and structures {made.shape}; give "
            "frames of the same atoms"
        )
    if kept is None:
        rows = (beads != 0).sum(1) == 1
        kept = (beads[rows] != 0).any(0)
    names = kinds_of(top)
    bonds = [b for b in top.bonds if not kept[list(b)].all()]
    angles = [a for a in bonded_angles(top.bonds) if not kept[list(a)].all()]
    torsions = [t for t in bonded_torsions(top.bonds) if not kept[list(t)].all()]
    mirrored, renumbered = _mirrored(made, reference, top)
    mapped = np.einsum("ba,fak->fbk", beads, made)
    lengths = [_lengths(x, top.bonds) for x in (made, reference)]
    means = lengths[1].mean(0)
    right = [float((np.abs(x / means - 1) <= _RIGHT).mean()) for x in lengths]
    return Quality(
        structures=len(made),
        bead_error=float(np.linalg.norm(mapped - structures.beads, axis=-1).max()),
        bonds_right=(right[0], right[1]),
        bonds=_divergences(made, reference, bonds, names, _lengths),
        angles=_divergences(made, reference, angles, names, _angles),
        torsions=_divergences(made, reference, torsions, names, _torsions, circular=True),
        graph_distance=_graph_distance(made[:: max(1, len(made) // 500)], top),
        clashes=(clashing(made, top, structures.box), clashing(reference, top)),
        mirrored=mirrored,
        renumbered=renumbered,
        cis=_cis(made, reference, top),
        diversity=_diversity(made, structures.frame, reference),
        rmsd=_rmsd(made, structures.frame, reference),
        plane=torsion_plane(made, reference, top, kept),
    )


def kinds_of(topology: CGTopology) -> list[str]:
    """Return names of atoms by residue, without numbers."""
    return [f"{r}-{n}" for r, n in zip(topology.residue_names, topology.bead_names, strict=True)]


def _kind(atoms: Iterable[int], names: list[str]) -> str:
    found = [names[a] for a in atoms]
    return " ".join(min(found, found[::-1]))


def _divergences(
    made: np.ndarray, reference: np.ndarray, terms: list[Any], names: list[str],
    measure: Callable[..., np.ndarray], circular: bool = False,
) -> Divergence:  # fmt: skip
    """Return JS* of each kind of coordinate."""
    kinds: dict[str, list[Any]] = {}
    for term in terms:
        kinds.setdefault(_kind(term, names), []).append(term)
    found: list[tuple[str, float, float, float]] = []
    for kind, several in kinds.items():
        ours, theirs = measure(made, several), measure(reference, several)
        if theirs.size < _FEWEST:
            continue
        low, high = -np.pi, np.pi
        if not circular:
            low, high = float(theirs.min()), float(theirs.max())
            margin = 0.25 * (high - low) + 1e-9
            low, high = low - margin, high + margin

        def histogram(values: np.ndarray, low: float = low, high: float = high) -> np.ndarray:
            return np.histogram(values.clip(low, high), _BINS, (low, high))[0].astype(float)

        floor, noise = (
            js_divergence(histogram(x[: len(x) // 2]), histogram(x[len(x) // 2 :]))
            for x in (theirs, ours)
        )
        raw = js_divergence(histogram(ours), histogram(theirs))
        found.append((kind, raw, floor, noise))
    numbers = np.array([one[1:] for one in found]).reshape(-1, 3).T
    return Divergence(tuple(one[0] for one in found), *numbers)


def _lengths(positions: np.ndarray, pairs: Any) -> np.ndarray:
    """Return distances (frames, terms), nm."""
    from .geometry import distances

    return _measured(distances, positions, pairs)


def _angles(positions: np.ndarray, triples: Any) -> np.ndarray:
    """Return angles (frames, terms), radians."""
    from .geometry import angles

    return _measured(angles, positions, triples)


def _torsions(positions: np.ndarray, quadruples: Any) -> np.ndarray:
    """Return dihedral angles (frames, terms), radians."""
    from .geometry import dihedrals

    return _measured(dihedrals, positions, quadruples)


def _measured(function: Callable[..., Any], positions: np.ndarray, terms: Any) -> np.ndarray:
    """Return what a function of `geometry`, which loads torch, makes of arrays."""
    import torch

    index = torch.as_tensor(np.asarray(terms))
    return function(torch.as_tensor(np.asarray(positions, dtype=np.float64)), index).numpy()


def _one_a_bond(torsions: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return one torsion about each bond."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for torsion in torsions:
        found.setdefault((torsion[1], torsion[2]), torsion)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class TorsionPlane:
    """Two samples on the first two principal components of torsions of the reference.

    Attributes:
        edges: of the bins along either.
        made, reference: counts (bins, bins).
        difference: rms difference in free energy, kT, weighted by the reference, over bins where
            both have five frames.
        floor: that of the reference's contiguous halves.
    """

    edges: tuple[np.ndarray, np.ndarray]
    made: np.ndarray
    reference: np.ndarray
    difference: float
    floor: float


def torsion_plane(
    made: np.ndarray, reference: np.ndarray, topology: CGTopology, kept: np.ndarray
) -> TorsionPlane | None:
    """Return structures and reference on the plane of the torsions that beads do not give.

    One torsion about each bond that has an atom that is no bead; sines and cosines.

    Args:
        made, reference: (frames, atoms, 3), nm.
        topology: the atoms.
        kept: (atoms,) which are beads.

    Returns:
        None if there are no such torsions.
    """
    torsions = _one_a_bond([t for t in bonded_torsions(topology.bonds) if not kept[list(t)].all()])
    if not torsions:
        return None
    features = [
        np.concatenate([np.sin(a), np.cos(a)], 1)
        for a in (_torsions(made, torsions), _torsions(reference, torsions))
    ]
    bins = int(min(_PLANE_BINS, max(4, (len(reference) / 20) ** 0.5)))
    centre = features[1].mean(0)
    axes = np.linalg.svd(features[1] - centre, full_matrices=False)[2][:2]
    planes = [(f - centre) @ axes.T for f in features]
    first, second = (
        np.linspace(planes[1][:, k].min(), planes[1][:, k].max(), bins + 1) for k in (0, 1)
    )

    def histogram(points: np.ndarray) -> np.ndarray:
        return np.histogram2d(points[:, 0], points[:, 1], (first, second))[0]

    half = len(planes[1]) // 2
    ours, theirs = histogram(planes[0]), histogram(planes[1])
    return TorsionPlane(
        (first, second), ours, theirs, _free_energy_rms(ours, theirs),
        _free_energy_rms(histogram(planes[1][:half]), histogram(planes[1][half:])),
    )  # fmt: skip


def _free_energy_rms(one: np.ndarray, other: np.ndarray) -> float:
    counted = (one >= 5) & (other >= 5)
    if not counted.any():
        return float("nan")
    gap = np.log(one[counted] / one.sum()) - np.log(other[counted] / other.sum())
    weight = other[counted] / other[counted].sum()
    gap = gap - weight @ gap
    return float((weight @ gap**2) ** 0.5)


def _graph_distance(positions: np.ndarray, topology: CGTopology) -> float:
    """Return bonds missing and too many over the number of bonds, the mean over structures."""
    radii = np.array([_RADII.get(round(m), _RADIUS) for m in topology.masses])
    first, second = np.triu_indices(len(topology), 1)
    bonded = np.zeros((len(topology),) * 2, dtype=bool)
    i, j = np.array(topology.bonds).reshape(-1, 2).T
    bonded[i, j] = True
    wanted = bonded[first, second]
    limit = _BONDED * (radii[first] + radii[second])
    wrong = 0.0  # frame by frame: all pairs of many would not fit in memory
    for frame in positions:
        near = np.linalg.norm(frame[first] - frame[second], axis=-1) < limit
        wrong += float((near != wanted).sum())
    return wrong / max(1, len(positions)) / max(1, int(wanted.sum()))


def clashing(positions: np.ndarray, topology: CGTopology, box: Any = None) -> float:
    """Return the share of residues with a heavy atom nearer than 0.12 nm to another residue's.

    Atoms that are bonded do not clash.

    Args:
        positions: (structures, atoms, 3), nm.
        topology: the atoms.
        box: (structures, 3, 3), nm, rectangular, or None.
    """
    from scipy.spatial import cKDTree

    keys = [*zip(topology.chain_ids, topology.residue_ids, topology.residue_names, strict=True)]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    residue = np.array([number[key] for key in keys])
    heavy = np.flatnonzero(np.array(topology.masses) > 1.5)
    if len(number) < 2:
        return 0.0
    around = bonded_beads(topology.bonds)
    found = 0
    for k, frame in enumerate(positions):
        points, edges = frame[heavy], None
        if box is not None:
            edges = np.diag(box[k])
            points = points - np.floor(points / edges) * edges
            points = np.where(points >= edges, 0.0, points)
        pairs = heavy[cKDTree(points, boxsize=edges).query_pairs(CLASH, output_type="ndarray")]
        bad = {
            int(residue[a]) for i, j in pairs.reshape(-1, 2) if residue[i] != residue[j]
            and j not in around.get(int(i), ()) for a in (i, j)
        }  # fmt: skip
        found += len(bad)
    return found / (len(positions) * len(number))


def _mirrored(
    made: np.ndarray, reference: np.ndarray, topology: CGTopology
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return centres of the wrong sense and all; of different neighbours, and of equivalent."""
    from .boltzmann import handedness

    elements = [str(round(m)) for m in topology.masses]
    classes = surroundings(elements, topology.bonds)
    found = {True: [0, 0], False: [0, 0]}
    for centre, others in bonded_beads(topology.bonds).items():
        if len(others) < 3:
            continue
        different = len({classes[a] for a in others}) == len(others)
        ends = sorted(others)[:3]
        sense = handedness(reference, centre, ends)
        if abs(sense.mean()) >= 2 * _ONE_SENSE - 1:
            wrong = handedness(made, centre, ends) * sense.mean() < 0
            found[different][0] += int(wrong.sum())
            found[different][1] += len(made)
    return tuple(found[True]), tuple(found[False])  # type: ignore[return-value]


def _cis(made: np.ndarray, reference: np.ndarray, topology: CGTopology) -> tuple[int, int]:
    """Return peptides that are cis where the reference has trans alone, and all looked at."""
    around = bonded_beads(topology.bonds)
    element = [round(m) for m in topology.masses]
    peptides = []
    for i, j in topology.bonds:
        for c, n in ((i, j), (j, i)):
            if (element[c], element[n]) != (12, 14):
                continue
            if topology.residue_ids[c] == topology.residue_ids[n]:
                continue
            before = [a for a in sorted(around[c]) if element[a] == 12]
            after = [a for a in sorted(around[n]) if element[a] == 12 and a != c]
            if before and after:
                peptides.append((before[0], c, n, after[0]))
    if not peptides:
        return 0, 0
    trans = (np.abs(_torsions(reference, peptides)) > np.pi / 2).mean(0) >= _ONE_SENSE
    chosen = [p for p, yes in zip(peptides, trans, strict=True) if yes]
    if not chosen:
        return 0, 0
    wrong = np.abs(_torsions(made, chosen)) < np.pi / 2
    return int(wrong.sum()), wrong.size


def _rmsd(made: np.ndarray, frame: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    apart = np.sqrt(np.square(made - reference[frame]).sum(-1).mean(-1))
    return float(apart.mean()), float(apart.min())


def _diversity(made: np.ndarray, frame: np.ndarray, reference: np.ndarray) -> float:
    to_frame, to_others = [], []
    for number in np.unique(frame):
        own = made[frame == number]
        if len(own) < 2:
            continue
        to_frame.append(np.sqrt(np.square(own - reference[number]).sum(-1).mean(-1)).mean())
        apart = np.sqrt(np.square(own[:, None] - own[None]).sum(-1).mean(-1))
        to_others.append(apart[np.triu_indices(len(own), 1)].mean())
    if not to_frame:
        return float("nan")
    return float((np.mean(to_frame) - np.mean(to_others)) / np.mean(to_frame))


def _bound(found: int, total: int) -> float:
    """Return the 95 % upper bound (Clopper-Pearson) of a share."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, found + 1, max(total - found, 1))) if total else float("nan")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
