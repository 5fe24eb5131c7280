"""How near beads of each two types come to each other, without a list of all pairs."""

from collections.abc import Iterator

import torch

import numpy as np

from .. import geometry
from ..dataset import CGDataset
from ..neighbours import neighbour_pairs
from .prior_indices import REPULSION_BONDS, type_key
from .short_range import close_pairs, pair_counts

#: Distances beyond are not looked at: beads this far apart show nothing of their size, nm.
REACH = 0.8

#: Beads of all frames searched at a time, and pairs kept before only the nearest are.
_BEADS, _PAIRS = 20_000, 2_000_000


def closest_distances(dataset: CGDataset, share: float) -> dict[tuple[str, str], float]:
    """Return for each two types the smallest quantile of the distance of any two such beads.

    Distances count as `REACH` where they are larger, or as half of the box's smallest width if
    that is smaller.

    Args:
        dataset: the frames, all counted alike.
        share: the share of the frames below the quantile, which is interpolated linearly.

    Returns:
        nm, by types in the order of `type_key`: those of which any two beads repel each other.
    """
    topology = dataset.topology
    beads, names = len(topology), sorted(set(topology.bead_types))
    types = torch.tensor([names.index(kind) for kind in topology.bead_types])
    excluded = torch.tensor(close_pairs(topology, REPULSION_BONDS)).reshape(-1, 2).long()
    rank = share * (len(dataset) - 1)
    reach = _reach(dataset)
    keys, lowest = _lowest(dataset, excluded, int(rank) + 2, reach)
    pairs, start, count = np.unique(keys, return_index=True, return_counts=True)

    def ordered(number: int) -> np.ndarray:
        place = np.minimum(start + number, len(lowest) - 1)
        return np.where(count > number, lowest[place] if len(lowest) else reach, reach)

    below, above = ordered(int(rank)), ordered(int(rank) + 1)
    quantiles = below + (rank - int(rank)) * (above - below)
    closest = np.full((len(names), len(names)), reach)
    one, other = types[torch.from_numpy(np.stack([pairs // beads, pairs % beads]))].numpy()
    np.minimum.at(closest, (one, other), quantiles)
    closest = np.minimum(closest, closest.T)
    found = torch.nonzero(pair_counts(types, len(names), excluded) > 0).tolist()
    keyed = {type_key([names[i], names[j]], "repulsion"): closest[i, j] for i, j in found}
    return {(first, second): float(value) for (first, second), value in keyed.items()}


def _reach(dataset: CGDataset) -> float:
    if dataset.box is None:
        return REACH
    widths = np.diagonal(dataset.box, axis1=1, axis2=2)
    return min(REACH, float(widths.min()) / 2)


def _lowest(
    dataset: CGDataset, excluded: torch.Tensor, most: int, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest distances of each pair of beads that come near, at most so many.

    Returns:
        Keys beads * i + j of pairs i < j, sorted, and distances, nm, sorted within each pair.
    """
    beads = len(dataset.topology)
    near = (excluded[:, 0] * beads + excluded[:, 1]).numpy()
    keys, distances = [np.zeros(0, np.int64)], [np.zeros(0)]
    held = 0
    for found, lengths in _contacts(dataset, reach):
        apart = ~np.isin(found, near)
        keys.append(found[apart])
        distances.append(lengths[apart])
        held += len(keys[-1])
        if held > _PAIRS:
            smallest = _first(np.concatenate(keys), np.concatenate(distances), most)
            keys, distances = [smallest[0]], [smallest[1]]
            held = 0
    return _first(np.concatenate(keys), np.concatenate(distances), most)


def _contacts(dataset: CGDataset, reach: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield keys and distances of all pairs of beads within reach, some frames at a time."""
    beads = len(dataset.topology)
    frames = np.arange(len(dataset))
    if dataset.box is None:
        alike = [frames]
    else:
        _, which = np.unique(dataset.box, axis=0, return_inverse=True)
        order = np.argsort(which.ravel(), kind="stable")  # frames of one box together
        alike = np.split(order, np.cumsum(np.bincount(which.ravel()))[:-1])
    size = max(1, _BEADS // beads)
    for group in alike:
        for begin in range(0, len(group), size):
            block = group[begin : begin + size]
            x = torch.as_tensor(dataset.positions[block], dtype=torch.float64)
            box = None if dataset.box is None else torch.as_tensor(dataset.box[block[0]]).to(x)
            one, other = neighbour_pairs(x, reach, box)
            flat = x.reshape(-1, 3)
            lengths = geometry.norm(geometry.minimum_image(flat[other] - flat[one], box))
            yield (one % beads * beads + other % beads).numpy(), lengths.numpy()


def _first(keys: np.ndarray, distances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both sorted, with at most so many distances of each key."""
    order = np.lexsort((distances, keys))
    keys, distances = keys[order], distances[order]
    new = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    places = np.arange(len(keys))
    begin = np.maximum.accumulate(np.where(new, places, 0))
    kept = places - begin < most
    return keys[kept], distances[kept]
