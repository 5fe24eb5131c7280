"""What is in a dataset, and whether it is good enough to train on: `describe`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .correlation import mean_and_error, statistical_inefficiency
from .dataset import CGDataset
from .force_noise import ForceNoise, estimate_force_noise, rough_residuals
from .reweight import kish_size
from .topology import bond_separations, bonded_angles, bonded_torsions
from .units import thermal_energy

# A torsion is covered where frames fall into this many bins of the circle.
_BINS = 36
# Narrower bonds are constrained: nothing in the data says how stiff they are.
_STIFF = 1e-3  # nm
# Deviations from the median, in units of the spread, at which one frame stands out.
_FAR = 12.0
# Of many beads and frames, the closest contact is looked for in fewer frames.
_MOST_DISTANCES = 3e7
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Coordinate:
    """Where one bond, angle or torsion lies; by weight, but for the extremes.

    Attributes:
        kind: ``"bond"``, ``"angle"`` or ``"torsion"``.
        beads: labels of its beads.
        mean, deviation: nm or radians; of a torsion the circular ones.
        smallest, largest: nm or radians, over all frames whatever their weight.
        coverage: fraction of the bins between the extremes (of a torsion: of all 36 of the
            circle) that frames fall into.
        counts: frames in each bin.
        outlier: number of a frame that stands far from the rest; None if none does.
    """

    kind: str
    beads: tuple[str, ...]
    mean: float
    deviation: float
    smallest: float
    largest: float
    coverage: float
    counts: tuple[int, ...]
    outlier: int | None = None

    @property
    def label(self) -> str:
        """Its beads, joined."""
        return " ".join(self.beads)


@dataclass(frozen=True)
class ForceInfo:
    """What the forces are like.

    Attributes:
        rms: root mean square per component, kJ/mol/nm.
        largest: largest force on a bead, kJ/mol/nm; in `largest_frame` on `largest_bead`.
        noise: how much of it is noise, at most; None in a periodic box or with too few frames.
        net_rms: root mean square of a component of the sum over beads, kJ/mol/nm. The mean force
            of a molecule has none, so this is noise (and zero for an isolated molecule).
        net_z: largest component of the mean sum, in units of its standard error.
        virial, virial_error: see `virial_ratio`; None in a periodic box.
        map_name, map_mean_square: the force map, and the mean square per component,
            (kJ/mol/nm)^2, that it left.
    """

    rms: float
    largest: float
    largest_frame: int
    largest_bead: str
    noise: ForceNoise | None
    net_rms: float
    net_z: float
    virial: float | None
    virial_error: float | None
    map_name: str | None
    map_mean_square: float | None


@dataclass(frozen=True)
class DatasetInfo:
    """Statistics of a dataset, with what is doubtful about it; `text` and `record` show them.

    Attributes:
        frames, beads, bonds: how many.
        trajectories: frames of each continuous run.
        temperature: K.
        box: (3, 3) box vectors of the first frame, nm; None if not periodic.
        bead_types: type -> number of beads.
        effective_weights: Kish's number of frames of equal weight that are worth as much.
        largest_weight: share of the frame that has most.
        correlation: statistical inefficiency of the slowest coordinate, in frames; nan if nothing
            moves.
        slowest: that coordinate.
        correlation_frames: frames of the equally long parts of trajectories that it is from.
        coordinates: bonds, angles and torsions.
        stride: every so many frames went into the coordinates.
        gyration: mean, smallest and largest radius of gyration, nm; None in a periodic box.
        contact: shortest distance of two beads more than two bonds apart, nm, with their labels;
            None if there are none.
        forces: None if there are none.
        bias: what the run was biased by.
        bias_energy: smallest and largest, kJ/mol; None if unbiased.
        variables: collective variable -> smallest and largest.
        mapping_name: name of the position map; "" if unknown.
        noise_kernel: noise that was added to positions and forces; None if none was.
        sources: number of files that it was made from.
        warnings: what is doubtful and what to do about it.
    """

    frames: int
    beads: int
    bonds: int
    trajectories: tuple[int, ...]
    temperature: float
    box: list[list[float]] | None
    bead_types: dict[str, int]
    effective_weights: float
    largest_weight: float
    correlation: float
    slowest: str
    correlation_frames: int
    coordinates: tuple[Coordinate, ...]
    stride: int
    gyration: tuple[float, float, float] | None
    contact: tuple[float, str, str] | None
    forces: ForceInfo | None
    bias: str
    bias_energy: tuple[float, float] | None
    variables: dict[str, tuple[float, float]]
    mapping_name: str
    noise_kernel: Any
    sources: int
    warnings: tuple[str, ...] = field(default=())

    @property
    def effective_frames(self) -> float:
        """Independent frames of equal weight that the dataset is worth, about."""
        return self.effective_weights / self.correlation

    @property
    def weighted(self) -> bool:
        """Whether frames differ in weight."""
        return self.effective_weights < self.frames * (1 - 1e-9)

    def record(self) -> dict[str, Any]:
        """Return everything as JSON."""
        record = asdict(self)
        record["effective_frames"] = self.effective_frames
        return _jsonable(record)

    def text(self, rows: int = 12) -> str:
        """Return it as aligned lines to read.

        Args:
            rows: of each kind of coordinate at most so many are shown.
        """
        lines = [*self._head(), *self._force_lines()]
        for kind in ("bond", "angle", "torsion"):
            lines += self._table(kind, rows)
        lines += [""] + [f"! {warning}" for warning in self.warnings] if self.warnings else []
        return "\n".join(line.rstrip() for line in lines)

    def _head(self) -> list[str]:
        types = ", ".join(f"{t} {n}" if n > 1 else t for t, n in self.bead_types.items())
        runs = len(self.trajectories)
        shape = (
            f" in {runs} trajectories of {min(self.trajectories):,} to "
            f"{max(self.trajectories):,}" if runs > 1 else " in one trajectory"
        )  # fmt: skip
        entries = [
            ("frames", f"{self.frames:,}{shape}, {self.temperature:g} K"),
            ("beads", f"{self.beads}, {self.bonds} bonds; types {_shortened(types)}"),
            ("map", self.mapping_name or "unknown"),
            ("box", _box_text(self.box) if self.box else "none: an isolated molecule"),
        ]
        if self.noise_kernel is not None:
            entries.append(("noise added", _shortened(str(self.noise_kernel))))
        if self.weighted:
            entries.append(
                ("weights", f"worth {self.effective_weights:,.0f} frames of equal weight; the "
                 f"largest has {self.largest_weight:.2%}")
            )  # fmt: skip
        else:
            entries.append(("weights", "equal"))
        if self.bias or self.bias_energy:
            span = "{:.1f} to {:.1f} kJ/mol".format(*self.bias_energy) if self.bias_energy else ""
            entries.append(("bias", "; ".join(filter(None, [self.bias, span]))))
        entries += [
            (f"{name}", f"{low:.3f} to {high:.3f} (collective variable)")
            for name, (low, high) in self.variables.items()
        ]
        if np.isfinite(self.correlation):
            entries.append(
                ("correlation", f"{self.correlation:.1f} frames, slowest in {self.slowest}")
            )
            entries.append(
                ("independent", f"about {self.effective_frames:,.0f} frames, weights included")
            )
        if self.gyration is not None:
            mean, low, high = self.gyration
            entries.append(
                ("extent", f"radius of gyration {mean:.3f} nm ({low:.3f} to {high:.3f})")
            )
        if self.contact is not None:
            distance, one, other = self.contact
            entries.append(
                ("closest", f"{distance:.3f} nm, {one} and {other} (three bonds apart or more)")
            )
        return [f"{name:<12} {value}" for name, value in entries]

    def _force_lines(self) -> list[str]:
        found = self.forces
        if found is None:
            return [f"{'forces':<12} none: they are needed for force matching"]
        entries = [("forces", f"RMS {found.rms:.1f} kJ/mol/nm per component")]
        if found.map_name is not None:
            left = (
                f", fitted to RMS {found.map_mean_square**0.5:.1f}"
                if found.map_mean_square
                else ""
            )
            entries[0] = ("forces", f"{entries[0][1]}; {found.map_name} force map{left}")
        if found.noise is not None:
            floor = found.noise.floor
            rest = max(0.0, found.rms**2 - floor**2) ** 0.5
            entries.append(("", f"noise at most {floor:.1f}, so mean force at least {rest:.1f}"))
        if found.virial is not None:
            entries.append(
                ("", f"virial {found.virial:.3f} +- {found.virial_error:.3f} of (3N-3) kT "
                 "(1 if forces, positions and temperature fit)")
            )  # fmt: skip
        net = "zero, as in an isolated molecule" if found.net_rms < 1e-3 * found.rms else (
            f"RMS {found.net_rms:.1f}, mean {found.net_z:.1f} errors from zero"
        )  # fmt: skip
        entries += [
            ("", f"sum over beads {net}"),
            ("", f"largest {found.largest:,.0f} on {found.largest_bead} in frame "
             f"{found.largest_frame}"),
        ]  # fmt: skip
        return [f"{name:<12} {value}" for name, value in entries]

    def _table(self, kind: str, rows: int) -> list[str]:
        chosen = [c for c in self.coordinates if c.kind == kind]
        if not chosen:
            return []
        # What is least covered matters most; shown in the order of the beads.
        kept = sorted(np.argsort([c.coverage for c in chosen], kind="stable")[:rows])
        width = max(12, *(len(c.label) for c in self.coordinates))
        unit = "nm" if kind == "bond" else "rad"
        bins = _BINS if kind == "torsion" else len(chosen[0].counts)
        title = "-pi to pi" if kind == "torsion" else "smallest to largest"
        lines = [
            "",
            f"{f'{kind}s, {unit}':<{width}} {'mean':>8} {'sd':>8} {'min':>8} {'max':>8} "
            f"{'covered':>8}  {title:<{bins}}",
        ]
        for k in kept:
            c = chosen[k]
            digits = 4 if kind == "bond" else 3
            values = (c.mean, c.deviation, c.smallest, c.largest)
            lines.append(
                f"{c.label:<{width}} "
                + " ".join(f"{v:>8.{digits}f}" for v in values)
                + f" {c.coverage:>8.0%}  {_bars(c.counts)}"
            )
        if len(kept) < len(chosen):
            lines.append(f"... and {len(chosen) - len(kept)} more, covered as well or better")
        if self.stride > 1:
            lines[1] += f"  (every {self.stride}th frame)"
        return lines


def describe(dataset: CGDataset, max_frames: int = 20_000, noise: bool = True) -> DatasetInfo:
    """Return statistics of a dataset, and what is doubtful about it.

    Args:
        dataset: any dataset.
        max_frames: of a longer one, coordinates are taken from evenly spaced frames, at most so
            many. Weights, forces and energies are always taken from all.
        noise: estimate the force noise too, which takes some seconds.
    """
    top = dataset.topology
    stride = -(-len(dataset) // max(1, max_frames))
    frames = np.sort(np.concatenate([t[::stride] for t in dataset.trajectories()]))
    part = dataset if stride == 1 else dataset.select(frames)
    values = _Values.of(part)
    coordinates = _coordinates(part, values, frames)
    correlation, slowest, used = _correlation(part, values)
    with np.errstate(divide="ignore"):
        kish = kish_size(np.log(dataset.probabilities))
    box = None if dataset.box is None else np.asarray(dataset.box[0], dtype=float).tolist()
    types = {t: top.bead_types.count(t) for t in dict.fromkeys(top.bead_types)}
    info = DatasetInfo(
        frames=len(dataset),
        beads=len(top),
        bonds=len(top.bonds),
        trajectories=tuple(len(t) for t in dataset.trajectories()),
        temperature=dataset.temperature,
        box=box,
        bead_types=types,
        effective_weights=kish,
        largest_weight=float(dataset.probabilities.max()),
        correlation=correlation * stride,
        slowest=slowest,
        correlation_frames=used * stride,
        coordinates=coordinates,
        stride=stride,
        gyration=_gyration(part),
        contact=_contact(part),
        forces=_force_info(dataset, noise),
        bias=dataset.bias,
        bias_energy=_span(dataset.bias_energy),
        variables={
            name: _span(dataset.variables[:, k])  # type: ignore[index, misc]
            for k, name in enumerate(dataset.variable_names)
        },
        mapping_name=str(dataset.mapping.get("name", "")),
        noise_kernel=dataset.mapping.get("noise"),
        sources=len(dataset.sources),
    )
    return DatasetInfo(**(vars(info) | {"warnings": tuple(_doubts(info))}))


def virial_ratio(dataset: CGDataset) -> tuple[float, float]:
    """Return how the forces' virial compares with what the temperature demands.

        -< sum_i (R_i - R_mean) . F_i > / ((3N - 3) kT)

    is 1 for the exact forces of an isolated molecule in equilibrium, and for any unbiased
    estimate of them: noise has no mean. So it tells wrong units (4.2, 10, 42), forces that were
    not mapped, forces that a prior was taken off, and a wrong temperature. Weighted.

    Args:
        dataset: not periodic, with forces, of at least two beads.

    Returns:
        The ratio, and its standard error (nan where there are too few frames).

    Reference: integration by parts, as for the generalised equipartition theorem; Tolman 1918,
    doi:10.1103/PhysRev.11.261.
    """
    kt = thermal_energy(dataset.temperature)
    products = np.empty(len(dataset))
    for start in range(0, len(dataset), 10_000):
        xyz = np.asarray(dataset.positions[start : start + 10_000], dtype=np.float64)
        force = np.asarray(dataset.forces[start : start + 10_000], dtype=np.float64)  # type: ignore[index]
        centred = xyz - xyz.mean(axis=1, keepdims=True)
        products[start : start + 10_000] = -(centred * force).sum(axis=(1, 2))
    products /= (3 * len(dataset.topology) - 3) * kt
    probabilities = dataset.probabilities
    ratio = float(probabilities @ products)
    # The error of a ratio of means: that of w (v - ratio), correlated as the frames are.
    deviations = len(dataset) * probabilities * (products - ratio)
    runs = dataset.trajectories()
    errors = [mean_and_error(deviations[run])[1] * len(run) for run in runs]
    return ratio, float(np.sqrt(np.square(errors).sum()) / len(dataset))


# ---------------------------------------------------------------- coordinates


@dataclass(frozen=True, eq=False)
class _Values:
    """Bonds, angles and torsions of all frames, (frames, terms)."""

    terms: dict[str, list[tuple[int, ...]]]
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, dataset: CGDataset) -> "_Values":
        import torch

        from . import geometry

        bonds = dataset.topology.bonds
        terms: dict[str, list[tuple[int, ...]]] = {
            "bond": [tuple(b) for b in bonds],
            "angle": [tuple(a) for a in bonded_angles(bonds)],
            "torsion": [tuple(t) for t in bonded_torsions(bonds)],
        }
        bond, angle, torsion = (
            torch.tensor(t, dtype=torch.int64).reshape(-1, k)
            for k, t in zip((2, 3, 4), terms.values(), strict=True)
        )
        parts = []
        for positions, box in _in_boxes(dataset):
            xyz = torch.as_tensor(positions, dtype=torch.float64)
            vectors = None if box is None else torch.as_tensor(box, dtype=torch.float64)
            cosines = geometry.cosine_angles(
                geometry.displacements(xyz, angle[:, 0:2], vectors),
                geometry.displacements(xyz, angle[:, 1:3], vectors),
            )
            parts.append(
                (
                    geometry.distances(xyz, bond, vectors).numpy(),
                    cosines.clamp(-1, 1).acos().numpy(),
                    geometry.dihedrals(xyz, torsion, vectors).numpy(),
                )
            )
        arrays = [np.concatenate(p) for p in zip(*parts, strict=True)]
        return cls(terms, dict(zip(terms, arrays, strict=True)))


def _in_boxes(dataset: CGDataset) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return positions in chunks of frames that have one box."""
    positions, box = dataset.positions, dataset.box
    if box is None or np.ptp(box, axis=0).max() <= 1e-4:
        shared = None if box is None else box[0]
        return [(positions[s : s + 5000], shared) for s in range(0, len(positions), 5000)]
    return [(positions[k : k + 1], box[k]) for k in range(len(positions))]


def _coordinates(
    dataset: CGDataset, values: _Values, frames: np.ndarray
) -> tuple[Coordinate, ...]:
    label, weights = dataset.topology.label, dataset.probabilities
    found = []
    for kind, terms in values.terms.items():
        for term, series in zip(terms, values.arrays[kind].T, strict=True):
            low, high = float(series.min()), float(series.max())
            if kind == "torsion":
                edges = np.linspace(-np.pi, np.pi, _BINS + 1)
                resultant = complex(weights @ np.exp(1j * series))
                length = min(abs(resultant), 1.0)
                mean = float(np.angle(resultant))
                deviation = float(np.sqrt(max(0.0, -2 * np.log(max(length, 1e-300)))))
            else:
                edges = np.linspace(low, max(high, low + 1e-9), _BINS // 3 + 1)
                mean = float(weights @ series)
                deviation = float(np.sqrt(weights @ (series - mean) ** 2))
            counts = np.histogram(series, edges)[0]
            outlier = None if kind == "torsion" else _outlier(series)
            found.append(
                Coordinate(
                    kind=kind,
                    beads=tuple(label(b) for b in term),
                    mean=mean,
                    deviation=deviation,
                    smallest=low,
                    largest=high,
                    coverage=float((counts > 0).mean()),
                    counts=tuple(counts.tolist()),
                    outlier=None if outlier is None else int(frames[outlier]),
                )
            )
    return tuple(found)


def _outlier(series: np.ndarray) -> int | None:
    """Return the frame furthest from the median if it is far from where almost all are."""
    centre = np.median(series)
    # From the median to where 98 % are: of a normal distribution 2.3 standard deviations, and
    # a second, rare state of more than 2 % is no outlier.
    spread = np.abs(np.percentile(series, [1, 99]) - centre).max() / 2.33
    far = int(np.abs(series - centre).argmax())
    return far if np.abs(series[far] - centre) > _FAR * max(spread, 1e-6) else None


def _correlation(dataset: CGDataset, values: _Values) -> tuple[float, str, int]:
    """Return the largest statistical inefficiency of the slow coordinates, and whose it is."""
    chains = _equal_parts(dataset.trajectories())
    label = dataset.topology.label
    worst, name = float("nan"), ""
    for what, series in _slow_series(dataset, values, label):
        if np.ptp(series) < 1e-5:  # constrained: what it does is rounding
            continue
        found = statistical_inefficiency(series[chains])
        if not found <= worst:
            worst, name = found, what
    return worst, name, chains.size


def _equal_parts(runs: Sequence[np.ndarray]) -> np.ndarray:
    """Return frame numbers (frames, chains) of the equally long parts that keep most frames."""
    lengths = np.array(sorted({len(run) for run in runs}))
    kept = [length * sum(len(run) >= length for run in runs) for length in lengths]
    length = int(lengths[int(np.argmax(kept))])
    return np.stack([run[:length] for run in runs if len(run) >= length], axis=1)


def _slow_series(dataset: CGDataset, values: _Values, label: Any) -> Any:
    """Yield name and series (frames,) of every coordinate that may be slow."""
    for kind, terms in values.terms.items():
        for term, series in zip(terms, values.arrays[kind].T, strict=True):
            name = f"{kind} {' '.join(label(b) for b in term)}"
            if kind == "torsion":  # the angle itself jumps where it leaves the circle
                yield name, np.cos(series)
                yield name, np.sin(series)
            else:
                yield name, series
    beads = len(dataset.topology)
    if dataset.box is None and beads > 2:
        separations = bond_separations(beads, dataset.topology.bonds)
        separations[separations == beads] = 0  # not connected
        i, j = np.unravel_index(int(separations.argmax()), separations.shape)
        if separations[i, j] > 1:
            ends = dataset.positions[:, i].astype(float) - dataset.positions[:, j]
            yield f"distance {label(i)} {label(j)}", np.linalg.norm(ends, axis=1)


def _gyration(dataset: CGDataset) -> tuple[float, float, float] | None:
    if dataset.box is not None:
        return None
    centred = dataset.positions - dataset.positions.mean(axis=1, keepdims=True, dtype=np.float64)
    radius = np.sqrt(np.square(centred).sum(-1).mean(-1))
    return float(dataset.probabilities @ radius), float(radius.min()), float(radius.max())


def _contact(dataset: CGDataset) -> tuple[float, str, str] | None:
    import torch

    from . import geometry

    beads = len(dataset.topology)
    separations = bond_separations(beads, dataset.topology.bonds)
    pairs = np.argwhere(np.triu(separations > 2, 1))
    if not len(pairs):
        return None
    shortest = np.full(len(pairs), np.inf)
    step = max(1, int(2e6 / len(pairs)))
    if (stride := int(len(dataset) * len(pairs) / _MOST_DISTANCES) + 1) > 1:
        dataset = dataset.subsample(stride=stride)
    for positions, box in _in_boxes(dataset):
        vectors = None if box is None else torch.as_tensor(box, dtype=torch.float64)
        for start in range(0, len(positions), step):
            xyz = torch.as_tensor(positions[start : start + step], dtype=torch.float64)
            lengths = geometry.distances(xyz, torch.as_tensor(pairs), vectors)
            shortest = np.minimum(shortest, lengths.numpy().min(axis=0))
    i, j = pairs[shortest.argmin()]
    label = dataset.topology.label
    return float(shortest.min()), label(int(i)), label(int(j))


# ---------------------------------------------------------------- forces


def _force_info(dataset: CGDataset, noise: bool) -> ForceInfo | None:
    if dataset.forces is None:
        return None
    forces = dataset.forces
    sizes = np.square(forces, dtype=np.float64).sum(axis=-1)
    frame, bead = np.unravel_index(int(sizes.argmax()), sizes.shape)
    net = forces.sum(axis=1, dtype=np.float64)
    z = 0.0
    for axis in range(3):
        mean, error = mean_and_error(net[:, axis])
        z = max(z, abs(mean) / error if error > 0 else 0.0)
    whole = dataset.box is None and len(dataset.topology) > 1
    virial = virial_ratio(dataset) if whole else (None, None)
    floor = None
    if noise and whole and len(dataset) >= 100:
        residuals, kept = rough_residuals(dataset.positions, forces, dataset.topology)
        floor = estimate_force_noise(np.asarray(dataset.positions[kept], np.float64), residuals)
    force_map = dataset.mapping.get("force_map") or {}
    return ForceInfo(
        rms=float(np.sqrt(sizes.mean() / 3)),
        largest=float(np.sqrt(sizes.max())),
        largest_frame=int(frame),
        largest_bead=dataset.topology.label(int(bead)),
        noise=floor,
        net_rms=float(np.sqrt(np.square(net).mean())),
        net_z=float(z),
        virial=virial[0],
        virial_error=virial[1],
        map_name=force_map.get("name"),
        map_mean_square=force_map.get("mean_square"),
    )


# ---------------------------------------------------------------- doubts


def _doubts(info: DatasetInfo) -> list[str]:
    """Return what is doubtful, each with a remedy."""
    doubts = []
    if np.isfinite(info.correlation) and info.effective_frames < 100:
        doubts.append(
            f"only about {info.effective_frames:.0f} independent frames: statistics and models "
            "will be poor; run longer, or bias the run along the slow coordinate"
        )
    if info.largest_weight > 0.05 and info.frames > 100:
        doubts.append(
            f"one frame has {info.largest_weight:.0%} of the weight: averages hang on it; bias "
            "less, or along another coordinate"
        )
    elif info.effective_weights < 0.05 * info.frames:
        doubts.append(
            f"weights leave {info.effective_weights / info.frames:.1%} of the frames: averages "
            "are as noisy as from so few (force matching does not use them)"
        )
    if info.bias and not info.weighted:
        doubts.append(
            "the run was biased but all weights are equal: averages are those of the biased "
            "ensemble; map it with --weights"
        )
    for c in info.coordinates:
        if c.kind == "bond" and c.deviation < _STIFF:
            doubts.append(
                f"bond {c.label} hardly moves (sd {c.deviation:.1e} nm): its beads are "
                "constrained, so the data do not say how stiff it is; choose other beads, or "
                "keep the constraint in the simulation"
            )
        if c.outlier is not None:
            doubts.append(
                f"{c.kind} {c.label} is far from all others in frame {c.outlier}; look at that "
                "frame (a molecule across the boundary, a broken file?)"
            )
    if info.bonds == 0 and info.beads > 1:
        doubts.append("the beads have no bonds: priors cannot hold them together; give some")
    return doubts + _force_doubts(info)


def _force_doubts(info: DatasetInfo) -> list[str]:
    found, doubts = info.forces, []
    if found is None:
        return []
    if found.virial is not None and found.virial_error is not None:
        off = abs(found.virial - 1)
        if off > max(0.2, 5 * found.virial_error):
            doubts.append(
                f"the virial of the forces is {found.virial:.3g} of what {info.temperature:g} K "
                "demands: units, temperature, or weights are wrong, or these are not the forces "
                "of the unbiased potential (4.2, 10 and 42 are typical of units)"
            )
    if found.net_z > 5:
        doubts.append(
            f"the mean sum of the forces is {found.net_z:.0f} errors from zero: something outside "
            "pushes the molecule (restraint, bias in the forces?); take it out of the forces"
        )
    # Without an error of its own the estimate had no like frames to compare, and says little.
    noise = found.noise
    if noise and np.isfinite(noise.floor_error) and noise.floor > 0.95 * found.rms > 0:
        doubts.append(
            "nearly all of the forces is noise: training needs very many frames; use the optimal "
            "force map"
        )
    if found.largest > 50 * found.rms:
        doubts.append(
            f"the largest force, on {found.largest_bead} in frame {found.largest_frame}, is "
            f"{found.largest / found.rms:.0f} times the RMS: it rules every mean square; look at "
            "that frame"
        )
    return doubts


# ---------------------------------------------------------------- showing


def _span(values: np.ndarray | None) -> tuple[float, float] | None:
    return None if values is None else (float(np.min(values)), float(np.max(values)))


def _bars(counts: Sequence[int]) -> str:
    """Return a histogram in one line; a bin that any frame fell into shows at least a low bar."""
    most = max(max(counts), 1)
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-c * steps // most)] for c in counts)


def _shortened(text: str, width: int = 70) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _box_text(box: list[list[float]]) -> str:
    vectors = np.array(box)
    lengths = " x ".join(f"{length:.3f}" for length in np.linalg.norm(vectors, axis=1))
    skewed = np.abs(vectors - np.diag(np.diag(vectors))).max() > 1e-6
    return f"{lengths} nm{', triclinic' if skewed else ''} (first frame)"


def _jsonable(value: Any) -> Any:
    """Return a record with None in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
