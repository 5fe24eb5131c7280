"""Sections that pages of runs and of datasets share: torsion planes, radial distributions."""

from typing import Any

import numpy as np

from . import plot_run
from .backbone_torsions import residue_table
from .errors import InputError
from .page import figure, grid, heading, paragraph, row
from .rdf import radial_distribution


def torsion_sections(found: Any, frames: str) -> list[str]:
    """Return the sections of a `Ramachandran`: planes with errors, and the residues' minima."""
    which = found.dihedrals
    labels = which.names
    count = len(which.residues)
    about = "" if count == 1 else f" of {count} residues together"
    name = which.residues[0] if count == 1 else "all residues"
    drawn = [
        figure(plot_run.plane(found.pooled, labels),
               f"Free energy over {labels[0]} and {labels[1]}{about} ({name}), {frames}; 36 × 36 "
               "bins; lines every 4 kJ/mol. Grey: never visited.", small=True),
        figure(plot_run.plane(found.pooled, labels, errors=True),
               "Its standard error over ten contiguous blocks. Grey: visited in one block at "
               "most, so that nothing is known.", small=True),
    ]  # fmt: skip
    if 1 < count <= 4:
        drawn += [
            figure(plot_run.plane(surface, labels), f"The same of {residue}.", small=True)
            for residue, surface in zip(which.residues, found.by_residue, strict=True)
        ]
    title = "Pseudo-torsions of the backbone" if which.pseudo else "Ramachandran plane"
    sections = [heading(title), row(drawn)]
    if count > 1:
        rows = [(r, f"{a:.0f}", f"{b:.0f}") for r, a, b in residue_table(found)]
        sections += [
            paragraph("Deepest minimum of each residue, degrees, to the width of a bin:"),
            grid(("residue", *labels), rows[:80]),
        ]
    return sections


def rdf_sections(
    frames: np.ndarray, box: Any, topology: Any, weights: Any = None
) -> tuple[list[str], dict[str, Any]]:
    """Return the section of g(r) of the two commonest bead types, and its numbers."""
    kinds = list(dict.fromkeys(topology.bead_types))
    common = sorted(kinds, key=lambda kind: -topology.bead_types.count(kind))[:2]
    chosen = [(a, b) for k, a in enumerate(common) for b in common[k:]]
    named = {}
    for a, b in chosen:
        try:
            named[f"{a}-{b}"] = radial_distribution(
                frames, box, topology=topology, first=a, second=b, weights=weights, bins=60
            )
        except InputError:
            if len(chosen) == 1:
                raise
    if not named:
        return [], {}
    rest = f"; of {len(kinds)} bead types the two commonest" if len(kinds) > 2 else ""
    sections = [
        heading("Radial distribution"),
        figure(
            plot_run.radial_distributions(named),
            f"g(r) between beads of different molecules, {len(frames):,} frames{rest}; bands are "
            "two standard errors over blocks. It ends at half of the box.", small=True,
        ),
    ]  # fmt: skip
    return sections, {
        name: {
            "first_peak_nm": float(f.centres[f.values.argmax()]),
            "height": float(f.values.max()),
        }
        for name, f in named.items()
    }
