"""The structure on the page of a run: size, RMSD, native contacts, torsions, contacts, g(r)."""

from typing import Any

import numpy as np

from . import plot_run
from .backbone_torsions import backbone_dihedrals, ramachandran, residue_table
from .errors import InputError
from .observables import NativeContacts, contact_map, radius_of_gyration, rmsd
from .page import figure, heading, row
from .plane_sections import rdf_sections, torsion_sections
from .run_view import Part, View, masked

# Frames for distributions, bead distances for contact maps, bead positions for g(r): seconds.
_STRUCTURES, _DISTANCES, _RDF_BEADS = 20_000, 2e7, 300_000
_CONTACT = 1.0  # nm


def structure(part: Part, view: View, observables: dict[str, tuple[np.ndarray, str]]) -> None:
    """Add the beads, and radius of gyration, RMSD and native contacts in time."""
    run, time, choices = view.run, view.run.time, view.choices
    positions, topology = view.positions, run.topology
    shape = positions.shape[:2]
    drawn = [figure(
        plot_run.beads(_first_molecule(topology, view.molecule), view.structures(1)[0][
            view.molecule == 0]),
        f"The beads of {'the' if view.single else 'one'} molecule in the first frame, along its "
        "long axes; one colour a bead type.", small=True,
    )]  # fmt: skip
    if np.bincount(view.molecule).max() > 2:
        radius = masked(_gyration(view), view.well)
        name = "radius of gyration" if view.single else "mean radius of gyration"
        observables[name] = (radius, f"{name}, nm")
        drawn.append(figure(
            plot_run.series(time, radius, f"{name}, nm"),
            f"Radius of gyration{'' if view.single else ', mean over molecules,'} in time; mean "
            f"{np.nanmean(radius):.3f} nm.", small=True,
        ))  # fmt: skip
        part.record["radius_of_gyration_nm"] = float(np.nanmean(radius))
    native = choices.native
    if native is not None and not view.single:
        raise InputError(
            "RMSD and native contacts are of one molecule, and the run has "
            f"{int(view.molecule.max()) + 1}; leave --native out"
        )
    if view.single and len(topology) > 2 and (native is not None or not view.exchanged):
        firsts = view.well.argmax(axis=0)
        deviation = np.stack(
            [rmsd(positions[:, c], positions[firsts[c], c] if native is None else native)
             for c in range(shape[1])], axis=1,
        )  # fmt: skip
        what = choices.native_name or "the copy's first frame"
        deviation = masked(deviation, view.well)
        if native is not None:  # to frames of their own, copies need not agree with each other
            observables["RMSD"] = (deviation, "RMSD, nm")
        drawn.append(figure(
            plot_run.series(time, deviation, "RMSD, nm"),
            f"RMSD to {what} after superposition, in time; mean {np.nanmean(deviation):.3f} nm.",
            small=True,
        ))  # fmt: skip
        part.record["rmsd_nm"] = float(np.nanmean(deviation))
        part.record["rmsd_to"] = what
    if native is not None and (contacts := _native_contacts(part, native)) is not None:
        flat = positions.reshape(-1, *positions.shape[2:])
        share = masked(contacts.fraction(flat).reshape(shape), view.well)
        observables["native contacts Q"] = (share, "native contacts Q")
        drawn.append(figure(
            plot_run.series(time, share, "native contacts Q"),
            f"Fraction of the {len(contacts.pairs)} native contacts in time; mean "
            f"{np.nanmean(share):.3f}.", small=True,
        ))  # fmt: skip
        part.record["native_contacts"] = float(np.nanmean(share))
    part.sections += [heading("Structure"), row(drawn)]


def _native_contacts(part: Part, native: np.ndarray) -> NativeContacts | None:
    try:
        return NativeContacts.of(native)
    except InputError as error:
        part.notes.append(f"Native contacts are not shown: {error}.")
        return None


def torsions(part: Part, view: View) -> None:
    """Add the planes of backbone torsions, where the beads have them."""
    topology = view.run.topology
    frames = view.structures(_STRUCTURES)
    if len(frames) < 20:
        return
    try:
        which = backbone_dihedrals(topology)
    except InputError:
        return
    if len(frames) * len(which.residues) > 4_000_000:
        frames = frames[:: -(-len(frames) * len(which.residues) // 4_000_000)]
    found = ramachandran(
        frames, topology, temperature=view.temperature, box_vectors=view.box, dihedrals=which
    )
    part.sections += torsion_sections(found, f"{len(frames):,} frames")
    part.record["torsions"] = {
        "names": list(which.names),
        "residues": list(which.residues),
        "deepest_minimum_degrees": [list(one) for one in residue_table(found)],
    }


def contacts(part: Part, view: View) -> None:
    """Add the contact map of a chain."""
    beads = len(view.run.topology)
    if not view.single or not 8 <= beads <= 500:
        return
    frames = view.structures(int(max(100, _DISTANCES / beads**2)))
    found = contact_map(frames, cutoff=_CONTACT)
    reference, names = None, ("run", "")
    if view.choices.native is not None:
        reference = contact_map(view.choices.native[None], cutoff=_CONTACT)
        names = ("run", view.choices.native_name or "native")
    text = (
        f"Probability of two beads to be within {_CONTACT:g} nm, {len(frames):,} frames; beads "
        "fewer than three apart are left out"
    )
    text += f"; below the diagonal: {names[1]}." if reference is not None else "."
    part.sections += [
        heading("Contacts"),
        figure(plot_run.contacts(found, reference, names), text, small=True),
    ]


def rdf(part: Part, view: View) -> None:
    """Add radial distributions, of several molecules in a box or if asked for."""
    topology = view.run.topology
    wanted = view.choices.rdf
    if wanted is None:
        wanted = view.box is not None and not view.single
    if not wanted:
        return
    if view.box is None:
        raise InputError("g(r) needs a periodic box, and the run has none; leave --rdf out")
    frames = view.structures(max(10, _RDF_BEADS // len(topology)))
    part_of = rdf_sections(frames, view.box, topology)
    part.sections += part_of[0]
    part.record["rdf"] = part_of[1]


def _gyration(view: View) -> np.ndarray:
    """Return radii of gyration (frames, copies), nm; of several molecules their mean."""
    flat = view.positions.reshape(-1, *view.positions.shape[2:])
    masses = np.asarray(view.run.topology.masses)
    sizes = np.bincount(view.molecule)
    chosen = np.flatnonzero(sizes > 2)
    total = np.zeros(len(flat))
    for molecule in chosen:
        members = view.molecule == molecule
        total += radius_of_gyration(flat[:, members], masses[members])
    return (total / len(chosen)).reshape(view.positions.shape[:2])


def _first_molecule(topology: Any, molecule: np.ndarray) -> Any:
    from .molecules import part_of

    return part_of(topology, np.flatnonzero(molecule == 0))
