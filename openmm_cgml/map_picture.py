"""A picture of a mapping: atoms and bonds, with the beads over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .mapping.core import Mapping, bonded_neighbours
from .mapping.molecule import molecules
from .mapping.residue import left_out
from .topology import atom_masses

FORMATS = ("png", "svg", "pdf")

# Okabe and Ito's colours, then Tol's muted ones: told apart with any colour vision.
_PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#332288",
    "#117733", "#882255", "#999933", "#AA4499", "#44AA99", "#661100", "#6699CC", "#7F7F7F",
    "#DDCC77", "#CC6677", "#88CCEE", "#000000",
)  # fmt: skip
_ELEMENTS = {"N": "#8FA9D6", "O": "#E08F92", "S": "#D8C95A", "P": "#EBB48F", "H": "#E4E4E4"}
_CARBON = "#BDBDBD"
# A molecule of more atoms is drawn without its hydrogens, and more kinds than panels are counted.
_MANY_ATOMS, _MANY_KINDS = 60, 6
_BOND = 0.15  # nm, a bond's length in a drawing without positions
_SMALLEST_TEXT = 5.0  # points
_SMALLEST_SPAN = 0.6  # nm, of a panel


def draw_mapping(
    mapping: Mapping,
    top: Any,
    positions: Any = None,
    output: str | Path | None = None,
    *,
    box: Any = None,
) -> Any:
    """Draw the atoms, and the beads as circles over them; one molecule of each kind.

    Args:
        mapping: a map made for `top`.
        top: mdtraj.Topology with bonds.
        positions: (atoms, 3) or (frames, atoms, 3), nm, of which the first frame is drawn along
            its two long axes; the bonds are laid out flat if None.
        output: .png, .svg or .pdf file to write; nothing is written if None.
        box: (3, 3) box vectors or (3,) lengths, nm, by which molecules cut at the border are made
            whole; none are if None.

    Returns:
        matplotlib.figure.Figure.

    Raises:
        InputError: if the map or the positions are of another topology, or the file cannot be
            written or has another ending.
    """
    if output is not None:
        output = Path(output)
        if output.suffix.lower().lstrip(".") not in FORMATS:
            raise InputError(
                f"cannot draw {output}: format {output.suffix!r} is unknown; give .png, .svg or "
                ".pdf"
            )
    missing = left_out(mapping, top)  # checks the number of atoms
    if positions is not None:
        positions = _one_frame(positions, top, box)
    kinds = _kinds(mapping, top)
    shown = kinds[:_MANY_KINDS]
    colours, meaning = _colours(mapping, shown)
    drawings = [_drawing(kind, mapping, top, positions) for kind in shown]
    figure, axes = _panels([drawing.high - drawing.low for drawing in drawings])
    for axis, drawing in zip(axes, drawings, strict=True):
        _draw(axis, drawing, mapping, top, colours)
    _legend(figure, colours, meaning)
    title = _title(mapping, len(kinds) - len(shown), missing)
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / figure.get_size_inches()[1], va="top")
    if output is not None:
        from .files import atomic_path

        with atomic_path(output) as partial:
            figure.savefig(partial, format=output.suffix.lower().lstrip("."), dpi=160)
    return figure


@dataclass(frozen=True, eq=False)
class _Kind:
    """A molecule, or several that beads join, and how many there are of it.

    Attributes:
        atoms: those of the first one.
        beads: likewise.
        count: how many are alike.
        title: its residues.
    """

    atoms: np.ndarray
    beads: np.ndarray
    count: int
    title: str


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Where everything of a molecule goes, nm.

    Attributes:
        kind: the molecule.
        place: (atoms, 2).
        shown: (atoms,), whether to draw each.
        centres: (beads, 2).
        radii: (beads,).
        low: (2,), lower left corner.
        high: (2,), upper right corner.
    """

    kind: _Kind
    place: np.ndarray
    shown: np.ndarray
    centres: np.ndarray
    radii: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _kinds(mapping: Mapping, top: Any) -> list[_Kind]:
    """Return the kinds of molecules with beads, in order."""
    molecule = molecules(top)
    matrix = mapping.matrix
    atoms_of = [
        matrix.indices[i:j] for i, j in zip(matrix.indptr, matrix.indptr[1:], strict=False)
    ]
    for atoms in atoms_of:  # a bead of several molecules makes them one
        several = np.unique(molecule[atoms])
        molecule[np.isin(molecule, several[1:])] = several[0]
    order = np.argsort(molecule, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(molecule[order])) + 1)
    beads: dict[int, list[int]] = {}
    for bead, atoms in enumerate(atoms_of):
        beads.setdefault(int(molecule[atoms[0]]), []).append(bead)
    found: dict[Any, _Kind] = {}
    for atoms in sorted(members, key=lambda atoms: int(atoms[0])):
        own = beads.get(int(molecule[atoms[0]]), [])
        if not own:
            continue
        residues = list(dict.fromkeys(top.atom(int(a)).residue for a in atoms))
        key = (
            tuple((top.atom(int(a)).residue.name, top.atom(int(a)).name) for a in atoms),
            tuple((mapping.topology.bead_names[b], len(atoms_of[b])) for b in own),
        )
        if key in found:
            old = found[key]
            found[key] = _Kind(old.atoms, old.beads, old.count + 1, old.title)
        else:
            found[key] = _Kind(atoms, np.array(own), 1, _residues_title(residues))
    return list(found.values())


def _residues_title(residues: Sequence[Any]) -> str:
    names = [r.name for r in residues]
    if len(names) <= 5:
        return "-".join(names)
    return f"{names[0]}{residues[0].resSeq} to {names[-1]}{residues[-1].resSeq}"


def _drawing(kind: _Kind, mapping: Mapping, top: Any, positions: np.ndarray | None) -> _Drawing:
    place, shown = _layout(kind, mapping, top, positions)
    centres, radii = _circles(kind, mapping, place)
    low = np.minimum(place[shown].min(0), (centres - radii[:, None]).min(0)) - 0.03
    high = np.maximum(place[shown].max(0), (centres + radii[:, None]).max(0)) + 0.03
    # One water in a frame of its own size would be all circle.
    margin = np.maximum(_SMALLEST_SPAN - (high - low), 0) / 2
    return _Drawing(kind, place, shown, centres, radii, low - margin, high + margin)


def _draw(
    axis: Any, drawing: _Drawing, mapping: Mapping, top: Any, colours: dict[str, str]
) -> None:
    """Draw one molecule."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    kind, place, shown, centres = drawing.kind, drawing.place, drawing.shown, drawing.centres
    span = drawing.high - drawing.low
    axis.set(xlim=(drawing.low[0], drawing.high[0]), ylim=(drawing.low[1], drawing.high[1]))
    axis.set(aspect="equal")
    axis.set_axis_off()
    points = _points_per_nm(axis, span)
    number = {int(a): k for k, a in enumerate(kind.atoms)}
    bonds = [
        (number[a.index], number[b.index])
        for a, b in top.bonds
        if a.index in number and shown[number[a.index]] and shown[number[b.index]]
    ]
    width = float(np.clip(0.015 * points, 0.8, 2.2))
    axis.add_collection(
        LineCollection([place[[i, j]] for i, j in bonds], colors="#CFCFCF", lw=width, zorder=1)
    )
    # An atom that is a bead itself would only lie under its name.
    rows = mapping.matrix[kind.beads]
    sliced = rows.indices[rows.indptr[:-1][np.diff(rows.indptr) == 1]]
    dots = shown & ~np.isin(kind.atoms, sliced)
    symbols = [_symbol(top, a) for a in kind.atoms[dots]]
    axis.scatter(
        *place[dots].T,
        s=[np.clip((0.03 if s == "H" else 0.045) * points, 2, 7) ** 2 for s in symbols],
        c=[_ELEMENTS.get(s, _CARBON) for s in symbols],
        lw=0,
        zorder=2,
    )
    bead_number = {int(b): k for k, b in enumerate(kind.beads)}
    links = [
        centres[[bead_number[i], bead_number[j]]]
        for i, j in mapping.topology.bonds
        if i in bead_number and j in bead_number
    ]
    axis.add_collection(LineCollection(links, colors="#303030", lw=2.2, alpha=0.35, zorder=3))
    for bead, centre, radius in zip(kind.beads, centres, drawing.radii, strict=True):
        colour = colours[_colour_key(mapping, int(bead), colours)]
        axis.add_patch(Circle(centre, radius, fc=colour, alpha=0.4, lw=0, zorder=4))
        axis.add_patch(Circle(centre, radius, fill=False, ec=colour, lw=1.3, zorder=5))
    times = f" × {kind.count}" if kind.count > 1 else ""
    beads = f"{len(kind.beads)} bead{'s' if len(kind.beads) > 1 else ''}"
    each = " each" if kind.count > 1 else ""
    axis.set_title(f"{kind.title}{times}: {beads}{each}", fontsize=9)
    _label(axis, drawing, mapping, points)


def _points_per_nm(axis: Any, span: np.ndarray) -> float:
    sides = np.array(axis.get_position().bounds[2:]) * axis.figure.get_size_inches()
    return float((sides * 72 / span).min())


def _label(axis: Any, drawing: _Drawing, mapping: Mapping, points: float) -> None:
    """Write names into the circles, if they can be read there; `points` is the scale, 1/nm."""
    beads = [int(b) for b in drawing.kind.beads]
    labels = [mapping.topology.bead_names[b] for b in beads]
    residues = [mapping.topology.label(b).rpartition("-")[0] for b in beads]
    # Where all are C-alphas, or residues, their numbers tell more.
    if len(labels) > 1 and (
        len(set(labels)) == 1
        or all(
            r.startswith(t) and len(set(residues)) == len(beads)
            for r, t in zip(residues, labels, strict=True)
        )
    ):
        labels = residues
    sizes = [
        min(9.0, 2.9 * radius * points / (len(text) + 0.8))
        for radius, text in zip(drawing.radii, labels, strict=True)
    ]
    if np.median(sizes) < _SMALLEST_TEXT:
        return
    from matplotlib.patheffects import withStroke

    for centre, text, size in zip(drawing.centres, labels, sizes, strict=True):
        axis.text(
            *centre,
            text,
            fontsize=max(size, _SMALLEST_TEXT),
            ha="center",
            va="center",
            zorder=6,
            path_effects=[withStroke(linewidth=2.0, foreground="white", alpha=0.85)],
        )


def _circles(kind: _Kind, mapping: Mapping, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres (beads, 2) and radii of the circles."""
    number = {int(a): k for k, a in enumerate(kind.atoms)}
    rows = [mapping.matrix[[int(b)]] for b in kind.beads]
    groups = [[number[int(a)] for a in row.indices] for row in rows]
    centres = np.array(
        [
            np.average(place[g], axis=0, weights=np.abs(row.data))
            for g, row in zip(groups, rows, strict=True)
        ]
    )
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    nearest = float(np.median(gaps.min(1))) if len(centres) > 1 else 0.3
    smallest = float(np.clip(0.45 * nearest, 0.05, 0.13))
    spread = [np.linalg.norm(place[g] - c, axis=1) for g, c in zip(groups, centres, strict=True)]
    radii = [
        smallest if len(d) == 1 else max(smallest, float(np.sqrt((d**2).mean())) + 0.03)
        for d in spread
    ]
    return centres, np.array(radii)


def _layout(
    kind: _Kind, mapping: Mapping, top: Any, positions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return where to draw the atoms, (atoms, 2) nm, and whether to draw each."""
    symbols = np.array([_symbol(top, a) for a in kind.atoms])
    masses = atom_masses(top)[kind.atoms]
    shown = masses > 0
    in_beads = np.isin(kind.atoms, mapping.matrix[kind.beads].indices)
    if len(kind.atoms) > _MANY_ATOMS:
        kept = in_beads & (np.diff(mapping.matrix[kind.beads].indptr).max() == 1)
        shown &= (symbols != "H") | kept
    place = (
        _flat(kind.atoms, shown, top)
        if positions is None
        else positions[kind.atoms] - positions[kind.atoms[shown]].mean(0)
    )
    # The long axis across, the next one up.
    axes = np.linalg.svd(place[shown] - place[shown].mean(0), full_matrices=False)[2]
    return (place - place[shown].mean(0)) @ axes[:2].T if len(axes) > 1 else place[:, :2], shown


def _flat(atoms: np.ndarray, shown: np.ndarray, top: Any) -> np.ndarray:
    """Lay the atoms out flat by their bonds (Kamada and Kawai 1989), (atoms, 2) nm.

    Atoms that are not shown lie on the shown ones that they are nearest to.
    """
    import scipy.optimize
    import scipy.sparse
    import scipy.sparse.csgraph

    number = {int(a): k for k, a in enumerate(atoms)}
    pairs = np.array(
        [(number[a.index], number[b.index]) for a, b in top.bonds if a.index in number], int
    ).reshape(-1, 2)
    graph = scipy.sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(len(atoms),) * 2)
    steps = scipy.sparse.csgraph.shortest_path(graph.tocsr(), directed=False, unweighted=True)
    steps = np.where(np.isfinite(steps), steps, steps[np.isfinite(steps)].max() + 3)
    use = np.flatnonzero(shown)
    target = steps[np.ix_(use, use)] * _BOND
    if len(use) < 2:
        return np.zeros((len(atoms), 2))
    # Start from the distances' principal coordinates. Atoms that the graph cannot tell apart, as
    # those of a methyl, would stay on each other: nudge them, always in the same way.
    centred = target**2 - (target**2).mean(0) - (target**2).mean(1)[:, None] + (target**2).mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    start = vectors[:, [-1, -2]] * np.sqrt(np.maximum(values[[-1, -2]], 1e-4))
    start += np.random.default_rng(0).normal(scale=_BOND / 5, size=start.shape)
    i, j = np.triu_indices(len(use), 1)
    length = target[i, j]

    def stress(flat: np.ndarray) -> tuple[float, np.ndarray]:
        place = flat.reshape(-1, 2)
        vector = place[i] - place[j]
        distance = np.maximum(np.linalg.norm(vector, axis=1), 1e-9)
        off = (distance - length) / length
        pull = (2 * off / length / distance)[:, None] * vector
        gradient = np.zeros_like(place)
        for axis in (0, 1):
            gradient[:, axis] = np.bincount(i, pull[:, axis], len(use)) - np.bincount(
                j, pull[:, axis], len(use)
            )
        return float((off**2).sum()), gradient.ravel()

    found = scipy.optimize.minimize(
        stress, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    )
    place = np.zeros((len(atoms), 2))
    place[use] = found.x.reshape(-1, 2)
    nearest = use[np.argmin(steps[:, use], axis=1)]
    place[~shown] = place[nearest[~shown]]
    return place


def _one_frame(positions: Any, top: Any, box: Any) -> np.ndarray:
    """Return the first frame, whole along bonds if there is a box."""
    from .units import strip_array

    frame = np.asarray(strip_array(positions, "nm", what="positions"), dtype=np.float64)
    frame = frame[0] if frame.ndim == 3 and len(frame) else frame
    if frame.shape != (top.n_atoms, 3) or not np.isfinite(frame).all():
        raise InputError(
            f"positions have shape {np.shape(positions)}, or are not finite, but the topology has "
            f"{top.n_atoms} atoms; give one frame of it, (atoms, 3) in nm"
        )
    if box is None:
        return frame
    vectors = np.asarray(strip_array(box, "nm", what="box"), dtype=np.float64)
    vectors = np.diag(vectors) if vectors.shape == (3,) else vectors
    if vectors.shape != (3, 3) or not np.linalg.det(vectors) > 0:
        raise InputError(f"box of shape {np.shape(box)} is no box; give 3 lengths or 3 vectors")
    inverse, frame = np.linalg.inv(vectors), frame.copy()
    neighbours = bonded_neighbours(top)
    reached = np.zeros(top.n_atoms, dtype=bool)
    for begin in range(top.n_atoms):
        stack = [] if reached[begin] else [begin]
        reached[begin] = True
        while stack:
            atom = stack.pop()
            for other in neighbours[atom]:
                if not reached[other]:
                    reached[other] = True
                    apart = frame[other] - frame[atom]
                    frame[other] -= np.round(apart @ inverse) @ vectors
                    stack.append(other)
    return frame


def _symbol(top: Any, index: int) -> str:
    atom = top.atom(int(index))
    symbol = atom.element.symbol if atom.element is not None else "VS"
    return "H" if symbol == "D" else str(symbol)


def _colours(mapping: Mapping, kinds: Sequence[_Kind]) -> tuple[dict[str, str], str]:
    """Return {type or bead name: colour} and what the keys are."""
    beads = [int(b) for kind in kinds for b in kind.beads]
    types = list(dict.fromkeys(mapping.topology.bead_types[b] for b in beads))
    names = list(dict.fromkeys(mapping.topology.bead_names[b] for b in beads))
    keys, meaning = types, "bead types"
    if len(types) > len(_PALETTE) and 2 < len(names) <= len(_PALETTE):
        keys, meaning = names, f"bead names ({len(types)} types)"
    elif len(types) > len(_PALETTE):
        meaning = ""  # colours repeat, so a legend would mislead
    return {key: _PALETTE[k % len(_PALETTE)] for k, key in enumerate(keys)}, meaning


def _colour_key(mapping: Mapping, bead: int, colours: dict[str, str]) -> str:
    bead_type = mapping.topology.bead_types[bead]
    return bead_type if bead_type in colours else mapping.topology.bead_names[bead]


def _panels(spans: Sequence[np.ndarray]) -> tuple[Any, list[Any]]:
    """Return a figure, and axes whose shapes follow the molecules' (width, height), nm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure, not pyplot: no global state, no display.
    wide = sum(span[0] for span in spans)
    high = max(span[1] for span in spans)
    width = min(13.0, 7.5 + 1.5 * (len(spans) - 1))
    inner = float(np.clip(0.96 * width * high / wide, 2.0, 6.0))
    above, below = 0.75, 0.85  # inches, for titles and legend
    figure = Figure(figsize=(width, inner + above + below))
    FigureCanvasAgg(figure)
    total = inner + above + below
    grid = figure.add_gridspec(
        1,
        len(spans),
        width_ratios=[span[0] for span in spans],
        left=0.02,
        right=0.98,
        bottom=below / total,
        top=1 - above / total,
        wspace=0.08,
    )
    return figure, [figure.add_subplot(grid[0, k]) for k in range(len(spans))]


def _legend(figure: Any, colours: dict[str, str], meaning: str) -> None:
    from matplotlib.lines import Line2D

    if not meaning:
        return
    handles = [
        Line2D([], [], marker="o", ls="", ms=8, mfc=c + "77", mec=c, label=_short(name))
        for name, c in colours.items()
    ]
    figure.legend(
        handles=handles,
        title=meaning,
        loc="lower center",
        ncols=min(8, len(handles)),
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def _short(name: str) -> str:
    """Shorten the names of large molecules' types."""
    return name if len(name) <= 24 else f"{name[:11]} … {name[-11:]}"


def _title(mapping: Mapping, hidden: int, missing: dict[str, int]) -> str:
    lines = [f"{mapping.name}: {mapping.n_atoms} atoms, {len(mapping.topology)} beads"]
    if hidden:
        lines.append(f"and {hidden} more kinds of molecules")
    if missing:
        rest = ", ".join(f"{count} {name}" for name, count in list(missing.items())[:6])
        lines.append(f"no beads: {rest}{', ...' if len(missing) > 6 else ''}")
    return "; ".join(lines)
