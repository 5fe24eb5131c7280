"""The pages of a dataset (frames of an all-atom run, or weighted samples) and of a collection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import plot_run
from .analysis import dihedral_angles
from .backbone_torsions import backbone_dihedrals, ramachandran
from .collection import DatasetCollection
from .dataset import CGDataset
from .dataset_info import DatasetInfo, describe
from .errors import InputError
from .observables import contact_map, molecule_of, whole
from .page import figure, grid, heading, paragraph, row, table, write_page
from .plane_sections import rdf_sections, torsion_sections

# Frames that distributions are taken from, bead distances of a contact map, bead positions of
# g(r), and force components from which the noise is estimated: seconds at most.
_FRAMES, _DISTANCES, _RDF_BEADS, _NOISE = 20_000, 2e7, 300_000, 2_000_000
_KINDS, _ROWS = 6, 60
_CONTACT = 1.0  # nm


def write_dataset_page(path: str | Path, dataset: CGDataset, *, title: str) -> dict[str, Any]:
    """Write the page of a dataset, weighted samples among them.

    Args:
        path: the .html file.
        dataset: any dataset.
        title: heading.

    Returns:
        The dataset's statistics, as of `DatasetInfo.record`, JSON-able.
    """
    noise = dataset.forces is not None and dataset.forces.size <= _NOISE
    info = describe(dataset, max_frames=_FRAMES, noise=noise)
    part = dataset.subsample(stride=-(-len(dataset) // _FRAMES))
    notes = list(info.warnings)
    if len(part) < len(dataset):
        notes.append(
            f"To be quick, distributions are of every {-(-len(dataset) // _FRAMES)}th of the "
            f"{len(dataset):,} frames; weights and forces are of all."
        )
    if dataset.forces is not None and not noise:
        notes.append("The force noise was not estimated, to be quick: `cgml data info` does.")
    sections = [
        heading("Structure"),
        row([_beads(part), *_distributions(part)]),
        *_planes(part),
        *_contacts(part),
        *_rdf(part),
        *_forces(info),
        *_coordinates(info),
    ]
    sources = {f"SHA-256 of {name}": digest for name, digest in dataset.sources.items()}
    provenance = {
        **sources,
        "bias": dataset.bias,
        "map": info.mapping_name,
        "noise added": str(info.noise_kernel or ""),
        "force map": {
            name: value
            for name, value in (dataset.mapping.get("force_map") or {}).items()
            if isinstance(value, (str, int, float))
        },
        "bead types": ", ".join(f"{t} {n}" for t, n in info.bead_types.items()),
    }
    write_page(path, title, _lead(info), notes, _cards(info), sections, provenance)
    return {"kind": "dataset", **info.record()}


def write_collection_page(
    path: str | Path, collection: DatasetCollection, *, title: str
) -> dict[str, Any]:
    """Write the page of datasets of several molecules; see `write_dataset_page`."""
    rows, numbers, notes = [], {}, []
    for name in collection:
        info = describe(collection[name], max_frames=_FRAMES // len(collection), noise=False)
        numbers[name] = info.record()
        notes += [f"{name}: {warning}" for warning in info.warnings]
        rows.append((name, f"{info.frames:,}", f"{info.beads}", f"{info.bonds}",
                     _count(info.effective_frames),
                     "-" if info.forces is None else f"{info.forces.rms:.0f}"))  # fmt: skip
    types = collection.bead_types()
    cards = [
        (f"{len(collection)}", "molecules"), (f"{collection.frames:,}", "frames"),
        (f"{len(types)}", "bead types"), (f"{collection.temperature:g} K", "temperature"),
    ]  # fmt: skip
    alone = [kind for kind, where in types.items() if len(where) == 1]
    if alone and len(collection) > 1:
        notes.append(f"Bead types of one molecule only, which no other tests: {', '.join(alone)}.")
    head = ("molecule", "frames", "beads", "bonds", "independent", "force RMS, kJ/mol/nm")
    sections = [
        heading("Molecules"),
        grid(head, rows),
        heading("Bead types"),
        grid(("type", "beads in each molecule"),
             [(kind, ", ".join(f"{n} {c}" for n, c in where.items()))
              for kind, where in types.items()]),
    ]  # fmt: skip
    lead = f"Datasets of {len(collection)} molecules at {collection.temperature:g} K."
    provenance = {
        f"{name}: SHA-256 of {file}": digest
        for name in collection
        for file, digest in collection[name].sources.items()
    }
    write_page(path, title, lead, notes, cards, sections, provenance)
    return {"kind": "collection", "molecules": numbers}


def _lead(info: DatasetInfo) -> str:
    box = "in a periodic box" if info.box else "no box"
    bias = "biased, weights undo it" if info.bias and info.weighted else (
        "biased" if info.bias else "weighted" if info.weighted else "unbiased"
    )  # fmt: skip
    return (
        f"{info.frames:,} frames of {info.beads} beads at {info.temperature:g} K; {box}; {bias}."
    )


def _cards(info: DatasetInfo) -> list[tuple[str, str]]:
    cards = [
        (f"{info.frames:,}", "frames"),
        (_count(info.effective_frames), "independent, weights and correlation included"),
        (f"{info.beads}", f"beads, {info.bonds} bonds"),
    ]
    if info.weighted:
        cards.append(
            (f"{info.effective_weights / info.frames:.1%}", "of the frames' weight effective")
        )
    if info.forces is not None:
        cards.append((f"{info.forces.rms:.0f}", "force RMS, kJ/mol/nm per component"))
        if info.forces.noise is not None:
            cards.append((f"≤ {info.forces.noise.floor:.0f}", "of it noise, kJ/mol/nm"))
        if info.forces.virial is not None and info.forces.virial_error is not None:
            cards.append((f"{info.forces.virial:.3f} ± {info.forces.virial_error:.3f}",
                          "virial over (3N-3) kT (1 is right)"))  # fmt: skip
    else:
        cards.append(("no", "forces: for flows and energies only"))
    return cards


def _beads(part: CGDataset) -> str:
    molecule = molecule_of(part.topology)
    frame = int(part.probabilities.argmax())
    positions = part.positions[frame]
    if part.box is not None:
        positions = whole(positions[None], part.topology, part.box[frame])[0]
    from .molecules import part_of

    first = molecule == 0
    return figure(
        plot_run.beads(part_of(part.topology, np.flatnonzero(first)), positions[first]),
        f"The beads of {'the' if first.all() else 'one'} molecule in the frame of largest "
        "weight, along its long axes; one colour a bead type.", small=True,
    )  # fmt: skip


def _distributions(part: CGDataset) -> list[str]:
    """Return figures of bonds, angles and torsions by the types of their beads."""
    drawn = []
    for name, values, unit, count in _internal(part):
        named = {}
        for kind in values:
            numbers, weights = values[kind]
            bins = np.linspace(-180, 180, 73) if name == "torsions" else 60
            density, edges = np.histogram(numbers, bins, weights=weights, density=True)
            named[kind] = (edges, density)
        if not named:
            continue
        text = f"Weighted distributions of the {name} by the types of their beads"
        if count > len(values):
            text += f"; of {count} kinds {len(values)}, the commonest first"
        drawn.append(figure(
            plot_run.histograms(named, f"{name[:-1]}, {unit}", periodic=name == "torsions"),
            f"{text}.", small=True,
        ))  # fmt: skip
    return drawn


def _internal(
    part: CGDataset,
) -> list[tuple[str, dict[str, tuple[np.ndarray, np.ndarray]], str, int]]:
    """Return name, kind -> values and weights, unit, and how many kinds there are."""
    import torch

    from . import geometry
    from .topology import bonded_angles, bonded_torsions

    top = part.topology
    # Of many molecules a share of the frames says as much.
    step = max(1, int(len(part) * len(top.bonds) / 2_000_000))
    part = part.subsample(stride=step)
    box = part.box
    found = []
    for name, terms, unit in (
        ("bonds", [tuple(b) for b in top.bonds], "nm"),
        ("angles", bonded_angles(top.bonds), "degrees"),
        ("torsions", bonded_torsions(top.bonds), "degrees"),
    ):
        by_kind: dict[str, list[tuple[int, ...]]] = {}
        for term in terms:
            types = [top.bead_types[b] for b in term]
            kind = "-".join(min(types, types[::-1]))
            by_kind.setdefault(kind, []).append(tuple(term))
        values = {}
        commonest = sorted(by_kind, key=lambda kind: -len(by_kind[kind]))
        for kind in commonest[:_KINDS]:
            index = torch.tensor(by_kind[kind])
            if name == "torsions":
                numbers = np.degrees(dihedral_angles(part.positions, by_kind[kind], box))
            else:
                chunks = []
                for xyz, vectors in _in_boxes(part.positions, box):
                    xyz = torch.as_tensor(xyz, dtype=torch.float64)
                    if name == "bonds":
                        chunks.append(geometry.distances(xyz, index, vectors).numpy())
                    else:
                        chunks.append(np.degrees(geometry.angles(xyz, index, vectors).numpy()))
                numbers = np.concatenate(chunks)
            weights = np.repeat(part.probabilities, numbers.shape[1])
            values[kind] = (numbers.ravel(), weights)
        found.append((name, values, unit, len(by_kind)))
    return found


def _in_boxes(positions: np.ndarray, box: Any) -> Any:
    import torch

    if box is None:
        return [(positions, None)]
    return [
        (positions[k : k + 1], torch.as_tensor(np.asarray(box[k], dtype=np.float64)))
        for k in range(len(positions))
    ]


def _planes(part: CGDataset) -> list[str]:
    try:
        which = backbone_dihedrals(part.topology)
    except InputError:
        return []
    if len(part) < 20:
        return []
    stride = -(-len(part) * len(which.residues) // 4_000_000)
    part = part.subsample(stride=stride)
    found = ramachandran(
        part.positions, part.topology, temperature=part.temperature, weights=part.weights,
        box_vectors=part.box, dihedrals=which,
    )  # fmt: skip
    return torsion_sections(found, f"{len(part):,} frames, by their weights")


def _contacts(part: CGDataset) -> list[str]:
    beads = len(part.topology)
    if not 8 <= beads <= 500 or molecule_of(part.topology).max():
        return []
    most = int(max(100, _DISTANCES / beads**2))
    part = part.subsample(stride=-(-len(part) // most))
    found = contact_map(part.positions, part.probabilities, cutoff=_CONTACT, box_vectors=part.box)
    return [
        heading("Contacts"),
        figure(plot_run.contacts(found, None, ("", "")),
               f"Probability of two beads to be within {_CONTACT:g} nm, {len(part):,} frames by "
               "their weights; beads fewer than three apart are left out.", small=True),
    ]  # fmt: skip


def _rdf(part: CGDataset) -> list[str]:
    if part.box is None or not molecule_of(part.topology).max():
        return []
    most = max(10, _RDF_BEADS // len(part.topology))
    part = part.subsample(stride=-(-len(part) // most))
    return rdf_sections(part.positions, part.box, part.topology, part.weights)[0]


def _forces(info: DatasetInfo) -> list[str]:
    found = info.forces
    if found is None:
        return []
    rows: dict[str, Any] = {
        "root mean square per component": f"{found.rms:.1f} kJ/mol/nm",
        "largest": f"{found.largest:,.0f} kJ/mol/nm, on {found.largest_bead} in frame "
        f"{found.largest_frame}",
        "sum over beads, root mean square": f"{found.net_rms:.1f} kJ/mol/nm",
        "force map": found.map_name or "unknown",
    }
    if found.noise is not None:
        rows["noise that no model removes, at most"] = f"{found.noise.floor:.1f} kJ/mol/nm"
    return [heading("Forces"), table(rows)]


def _coordinates(info: DatasetInfo) -> list[str]:
    if not info.coordinates:
        return []
    chosen: Sequence[Any] = info.coordinates
    text = "Over all frames, whatever their weight, but mean and deviation by weight."
    if len(chosen) > _ROWS:
        least = np.argsort([c.coverage for c in chosen], kind="stable")[:_ROWS]
        chosen = [chosen[k] for k in sorted(least)]
        text += f" Of {len(info.coordinates):,} the {_ROWS} that are covered least."
    rows = [
        (c.label, c.kind, *(_in_unit(v, c.kind) for v in (c.mean, c.deviation, c.smallest,
         c.largest)), f"{c.coverage:.0%}")
        for c in chosen
    ]  # fmt: skip
    head = ("beads", "kind", "mean", "deviation", "smallest", "largest", "covered")
    return [
        heading("Bonds (nm), angles and torsions (degrees)"), paragraph(text), grid(head, rows),
    ]  # fmt: skip


def _in_unit(value: float, kind: str) -> str:
    return f"{value:.4f}" if kind == "bond" else f"{np.degrees(value):.1f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "unknown"
