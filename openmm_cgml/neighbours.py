"""Pairs of beads within a cutoff, at a cost that grows with the beads and not with their square.

Beads are sorted into columns as wide as the cutoff and, within a column, by height. The partners
of a bead then lie in five stretches of that order: one of its own column and one of each of four
neighbouring columns, the other four being the business of the beads there. No grid is allocated,
so a bead far away costs hardly anything. Everything is a few torch operations on all beads at
once, and works under TorchScript.
"""

import torch
from torch import Tensor

from . import geometry
from .errors import InputError


def neighbour_pairs(positions: Tensor, cutoff: float, box_vectors: Tensor | None = None) -> Tensor:
    """Return the pairs of beads closer to each other than a cutoff, each once, in any order.

    The pairs whose `geometry.displacements` are shorter than the cutoff, none left out. A bead
    without a finite position is in no pair.

    A box too small for the cutoff raises, but not under TorchScript: in OpenMM an error there may
    end the process. A scripted energy instead becomes NaN where `box_fits` is false.

    Args:
        positions: (copies, beads, 3), nm, inside the box or not; no gradient is recorded.
        cutoff: nm.
        box_vectors: (3, 3), nm, in OpenMM's reduced form (rows a, b, c; lower triangular), the
            same for all copies; None: not periodic.

    Returns:
        (2, pairs) int64: flat indices copy * beads + bead, the first smaller than the second,
        both of the same copy.

    Raises:
        InputError: if the box is too small; see `check_box`.
    """
    if not torch.jit.is_scripting():
        check_box(box_vectors, cutoff)
    recording = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    # Below about this number of beads, the operations that sort cost more than those they save.
    if positions.size(1) <= 160 or positions.size(0) == 0:
        pairs = _of_all_pairs(positions, cutoff, box_vectors)
    else:
        pairs = _of_columns(positions, cutoff, box_vectors)
    torch.set_grad_enabled(recording)
    return pairs


def box_fits(box_vectors: Tensor, cutoff: float) -> Tensor:
    """Return whether no bead can see two images of another, a bool scalar.

    So it is if the cutoff is at most half of the smallest of a_x, b_y and c_z, by which OpenMM
    judges too: no vector of the lattice is shorter than that one. TorchScript compiles it.

    Args:
        box_vectors: (3, 3), nm, as in `neighbour_pairs`.
        cutoff: nm.
    """
    return (box_vectors.diagonal() >= 2 * cutoff).all()


def check_box(box_vectors: Tensor | None, cutoff: float) -> None:
    """Refuse a cutoff beyond which a periodic box has two images of the same bead.

    Args:
        box_vectors: (3, 3), nm, as in `neighbour_pairs`; None: not periodic.
        cutoff: nm.

    Raises:
        InputError: if the cutoff is not above zero, or more than half of the smallest of a_x, b_y
            and c_z.
    """
    if not cutoff > 0:
        raise InputError(f"the cutoff is {cutoff:g} nm; give a length above zero")
    if box_vectors is not None and not bool(box_fits(box_vectors, cutoff)):
        edge = float(box_vectors.diagonal().min())
        raise InputError(
            f"the cutoff of {cutoff:g} nm is more than half of the box's smallest width, "
            f"{edge:g} nm: a bead would see two images of another; take a box at least "
            f"{2 * cutoff:g} nm wide, or a smaller cutoff"
        )


def _of_all_pairs(positions: Tensor, cutoff: float, box_vectors: Tensor | None) -> Tensor:
    """Compare all pairs: (2, pairs)."""
    beads = positions.size(1)
    pairs = torch.triu_indices(beads, beads, 1, device=positions.device)
    vectors = geometry.displacements(positions, pairs.t(), box_vectors)
    copy, pair = torch.where(vectors.square().sum(-1) < cutoff * cutoff)
    return pairs.index_select(1, pair) + copy * beads


def _of_columns(positions: Tensor, cutoff: float, box_vectors: Tensor | None) -> Tensor:
    """Compare each bead with those in its and four other columns, at its height: (2, pairs)."""
    # Levels of height that a cutoff spans. A power of two, so that products with it are exact.
    span = 32
    flat = positions.reshape(-1, 3)
    cells, sizes = _cells(flat, cutoff, box_vectors, span)
    bead = torch.arange(flat.size(0), device=flat.device)
    # Columns are numbered copy by copy, and levels leave room for images below and above.
    cells[:, 0] += bead.div(positions.size(1), rounding_mode="floor") * sizes[0]
    cells[:, 2] += span
    height = sizes[2] + 2 * span + 1
    key = (cells[:, 0] * sizes[1] + cells[:, 1]) * height + cells[:, 2]
    real = bead.size(0)
    if box_vectors is not None and sizes[2] > 1:
        low = torch.where(cells[:, 2] < 2 * span)[0]
        high = torch.where(cells[:, 2] >= sizes[2])[0]
        key = torch.cat([key, key[low] + sizes[2], key[high] - sizes[2]])
        bead = torch.cat([bead, low, high])
    key, order = torch.sort(key)
    bead = bead.index_select(0, order)
    # The beads in this order, so that what is read together is close together.
    places = torch.where(order < real)[0]
    beads = bead.index_select(0, places)
    start, count = _stretches(key, places, cells.index_select(0, beads), sizes, span)

    stretch = torch.repeat_interleave(count)
    skipped = start - count.cumsum(0) + count
    place = torch.arange(stretch.size(0), device=flat.device) + skipped.index_select(0, stretch)
    first = beads.repeat(count.size(0) // real).index_select(0, stretch)
    second = bead.index_select(0, place)
    close = torch.where(_squares(flat, first, second, box_vectors) < cutoff * cutoff)[0]
    first, second = first.index_select(0, close), second.index_select(0, close)
    return torch.stack([torch.minimum(first, second), torch.maximum(first, second)])


def _stretches(
    key: Tensor, places: Tensor, cells: Tensor, sizes: list[int], span: int
) -> tuple[Tensor, Tensor]:
    """Return where the partners of each bead start and how many they are.

    Args:
        key: (beads and images,) sorted: column, then level.
        places: (beads,) where each bead is there.
        cells: (beads, 3) each bead's column and level.
        sizes: how many of each there are in a copy.
        span: levels that a cutoff spans.

    Returns:
        Two tensors (stretches * beads,), one stretch of all beads after another.
    """
    row, line, level = cells.unbind(1)
    inside = row % sizes[0]
    height = sizes[2] + 2 * span + 1
    # In its own column a bead sees those after it, in half of the others those above and below.
    starts = [places + 1]
    lowest: list[Tensor] = []
    highest = [key.index_select(0, places) + span]
    for right in range(2 if sizes[0] > 1 else 1):
        for ahead in range(-1 if sizes[1] > 1 else 0, 2 if sizes[1] > 1 else 1):
            if right == 1 or ahead == 1:
                column = (row - inside + (inside + right) % sizes[0]) * sizes[1]
                middle = (column + (line + ahead) % sizes[1]) * height + level
                lowest.append(middle - span)
                highest.append(middle + span)
    if len(lowest) > 0:
        starts.append(torch.searchsorted(key, torch.cat(lowest)))
    start = torch.cat(starts)
    return start, torch.searchsorted(key, torch.cat(highest), right=True) - start


def _squares(
    positions: Tensor, first: Tensor, second: Tensor, box_vectors: Tensor | None
) -> Tensor:
    """Return the square distances of pairs of flat indices, nm^2.

    The arithmetic of `geometry.minimum_image`, each axis a vector of its own: three times as fast,
    and the better part of the whole search.
    """
    axes: list[Tensor] = []
    for axis in positions.t().contiguous().unbind(0):
        axes.append(axis.index_select(0, second) - axis.index_select(0, first))
    if box_vectors is not None:
        box = box_vectors.to(positions)
        for row in range(2, -1, -1):
            shift = torch.round(axes[row] / box[row, row])
            for column in range(row + 1):
                axes[column] = axes[column] - shift * box[row, column]
    return axes[0].square() + axes[1].square() + axes[2].square()


def _cells(
    positions: Tensor, cutoff: float, box_vectors: Tensor | None, span: int
) -> tuple[Tensor, list[int]]:
    """Return each bead's column and level, (beads, 3) int64, and how many of each there are.

    Beads closer than the cutoff differ by at most 1 in the columns and `span` in the level, in a
    box after going round. Where the box has no room for three cutoffs there is one column.
    """
    # A little more than the cutoff, in double precision: no rounding can part two neighbours.
    reach = cutoff * (1 + 1e-6)
    xyz = torch.nan_to_num(positions.to(torch.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if box_vectors is None:
        # Columns repeat, as if in a huge box; beads of two places in one column are compared in
        # vain. Heights cannot, for want of images; all beyond the highest level are on it.
        sizes = [8192, 8192, 8192 * span]
        columns = torch.remainder(torch.floor(xyz[:, :2] / reach), 8192.0)
        heights = (xyz[:, 2:] - xyz[:, 2].min()) * (span / reach)
        heights = torch.clamp_max(torch.floor(heights), sizes[2] - 1.0)
        return torch.cat([columns, heights], 1).to(torch.int64), sizes
    box = box_vectors.to(xyz)
    a, b, c = box.unbind(0)
    along_c = xyz[:, 2] / c[2]
    along_b = (xyz[:, 1] - along_c * c[1]) / b[1]
    along_a = (xyz[:, 0] - along_c * c[0] - along_b * b[0]) / a[0]
    fractions = torch.stack([along_a, along_b, along_c], 1)
    fractions = fractions - torch.floor(fractions)
    # Distances between opposite faces.
    crosses = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    widths = box.diagonal().prod() / geometry.norm(torch.stack(crosses)) / reach
    rooms: list[float] = widths.tolist()
    sizes = [int(min(room, 8192.0)) if room >= 3 else 1 for room in rooms]
    if sizes[2] > 1:
        sizes[2] = int(min(rooms[2], 8192.0) * span)
    counts = torch.tensor(sizes, dtype=torch.float64, device=xyz.device)
    # A fraction just below 0 becomes 1.
    cells = torch.minimum(torch.floor(fractions * counts), counts - 1)
    return cells.to(torch.int64), sizes
