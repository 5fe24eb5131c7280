"""Datasets of many molecules, one molecule a frame."""

from dataclasses import replace
from typing import Any

import numpy as np

from .collection import DatasetCollection
from .dataset import CGDataset
from .errors import InputError
from .periodic import WholeMolecules
from .topology import CGTopology


def single_molecules(dataset: CGDataset) -> CGDataset | DatasetCollection:
    """Return the molecules of a dataset as frames of their own, whole and without a box.

    Molecules are what bonds join; two are of one kind if names, bonds and masses are the same.

    Args:
        dataset: of one or many molecules.

    Returns:
        A dataset whose `trajectory` numbers the molecules, or, of several kinds, a collection of
        such by the names of their residues. Forces and weights go with them.

    Raises:
        InputError: if a molecule is bonded to its own periodic image.
    """
    top = dataset.topology.to_mdtraj()
    whole = WholeMolecules(top)
    positions = np.asarray(dataset.positions)
    if dataset.box is not None:
        positions = whole.make_whole(positions, dataset.box)
    kinds: dict[CGTopology, list[np.ndarray]] = {}
    order = np.argsort(whole.molecule, kind="stable")
    starts = np.flatnonzero(np.diff(whole.molecule[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        kinds.setdefault(part_of(dataset.topology, members), []).append(members)
    found: dict[str, CGDataset] = {}
    for topology, several in kinds.items():
        name = "-".join(dict.fromkeys(topology.residue_names))
        if name in found:
            name = f"{name}-{len(found)}"
        found[name] = _gathered(dataset, positions, topology, np.array(several))
    return found[name] if len(found) == 1 else DatasetCollection(found)


def _gathered(
    dataset: CGDataset, positions: np.ndarray, topology: CGTopology, members: np.ndarray
) -> CGDataset:
    """Return the frames of molecules (molecules, beads), molecule after molecule."""
    frames, many = len(dataset), len(members)

    def gather(values: Any) -> np.ndarray:
        return np.asarray(values)[:, members].swapaxes(0, 1).reshape(-1, members.shape[1], 3)

    weights = None if dataset.weights is None else np.tile(dataset.weights, many)
    return CGDataset(
        gather(positions), topology, dataset.temperature,
        forces=None if dataset.forces is None else gather(dataset.forces),
        weights=weights, trajectory=np.repeat(np.arange(many), frames),
        sources=dataset.sources, bias=dataset.bias,
    )  # fmt: skip


def part_of(topology: CGTopology, members: np.ndarray) -> CGTopology:
    """Return the topology of some beads, residues numbered from one, in one chain.

    Args:
        topology: of all.
        members: (beads,) indices, in order.
    """
    index = {int(bead): k for k, bead in enumerate(members)}
    residues = [
        (topology.chain_ids[b], topology.residue_ids[b], topology.residue_names[b])
        for b in members
    ]
    number = {residue: k + 1 for k, residue in enumerate(dict.fromkeys(residues))}
    return replace(
        topology,
        bead_names=tuple(topology.bead_names[b] for b in members),
        bead_types=tuple(topology.bead_types[b] for b in members),
        residue_names=tuple(topology.residue_names[b] for b in members),
        residue_ids=tuple(number[r] for r in residues),
        chain_ids=("A",) * len(members),
        bonds=tuple((index[i], index[j]) for i, j in topology.bonds if i in index and j in index),
        masses=tuple(topology.masses[b] for b in members),
    )


def require_copies(whole: CGTopology, one: CGTopology, what: str) -> int:
    """Return how many molecules of one kind, one after the other, a topology is.

    Args:
        whole: of all beads.
        one: of a single molecule.
        what: for messages, e.g. ``the trajectory``.

    Raises:
        InputError: if it is not a whole number of them, or a bead's name differs.
    """
    many, rest = divmod(len(whole), len(one))
    if rest or not many:
        raise InputError(
            f"{what} has {len(whole)} beads, which is no multiple of the {len(one)} of a "
            f"molecule ({one.label(0)}, ...); give a trajectory of the same map"
        )
    for bead, name in enumerate(whole.bead_names):
        wanted = one.bead_names[bead % len(one)], one.residue_names[bead % len(one)]
        if (name, whole.residue_names[bead]) != wanted:
            raise InputError(
                f"bead {whole.label(bead)} of {what} is {one.label(bead % len(one))} in the "
                "split-flow; give a trajectory of the same map, beads in the same order"
            )
    return many
