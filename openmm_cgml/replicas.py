"""Many copies of one molecule in one Context: their topology and their starting positions."""

from typing import Any

import numpy as np

from .dataset import CGDataset
from .errors import InputError
from .system import Model
from .topology import CGTopology


def replicate_topology(topology: CGTopology, copies: int) -> CGTopology:
    """Return the topology of several copies, each with chains of its own, copy after copy."""
    beads = len(topology)
    return CGTopology(
        bead_names=topology.bead_names * copies,
        bead_types=topology.bead_types * copies,
        residue_names=topology.residue_names * copies,
        residue_ids=topology.residue_ids * copies,
        chain_ids=tuple(f"{c}.{chain}" for c in range(copies) for chain in topology.chain_ids),
        bonds=tuple(
            (c * beads + i, c * beads + j) for c in range(copies) for i, j in topology.bonds
        ),
        masses=topology.masses * copies,
    )


def start_positions(model: Model, start: Any, copies: int, seed: int) -> np.ndarray:
    """Return starting positions (copies, beads, 3), nm, float64.

    Args:
        model: what will run.
        start: a `CGDataset`, of which frames are drawn by weight; or an array
            (copies, beads, 3), or (beads, 3) for the same start of every copy.
        copies: number of copies.
        seed: of the drawing.

    Raises:
        InputError: if the start has other beads than the model, or too few copies.
    """
    if isinstance(start, CGDataset):
        _require_same_beads(model.topology, start.topology)
        return np.asarray(start.draw(copies, seed), dtype=np.float64)
    positions = np.asarray(start, dtype=np.float64)
    beads = len(model.topology)
    if positions.shape == (beads, 3):
        positions = np.repeat(positions[None], copies, axis=0)
    if positions.shape != (copies, beads, 3):
        raise InputError(
            f"start has shape {positions.shape}; give ({copies}, {beads}, 3), ({beads}, 3) or a "
            "dataset"
        )
    if not np.isfinite(positions).all():
        copy = int(np.argwhere(~np.isfinite(positions))[0][0])
        raise InputError(f"start of copy {copy} is not finite; give other positions")
    return positions


def _require_same_beads(model: CGTopology, start: CGTopology) -> None:
    if len(model) != len(start):
        raise InputError(
            f"the model has {len(model)} beads, the start dataset {len(start)}; "
            "give the model of this molecule and mapping"
        )
    for bead in range(len(model)):
        if model.label(bead) != start.label(bead):
            raise InputError(
                f"bead {bead} is {model.label(bead)} in the model but {start.label(bead)} in the "
                "start dataset; give the model of this molecule and mapping"
            )
