"""The page of the quickstart: one road after another, each with its figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plot
from .analysis import Comparison, dihedral_angles
from .canvas import DASHES, MODEL, REFERENCE, SERIES, png, subplots
from .entropy import MappingEntropy
from .page import figure, grid, heading, paragraph, table, write_page
from .quality import Quality
from .ranking import CANNOT_SEE, PMFScore, energy_histograms
from .report import comparison_sections, training_section

if TYPE_CHECKING:
    from .backmapping import BeadFrames

_DEGREES = 180 / np.pi


def write_quickstart(
    path: str | Path,
    *,
    title: str,
    lead: str,
    labels: tuple[str, str],
    roads: Mapping[str, Comparison],
    run: dict[str, Any],
    training: dict[str, Any],
    scores: Sequence[PMFScore],
    quality: Quality,
    entropy: MappingEntropy,
    beads: "BeadFrames",
    dihedrals: Sequence[Sequence[int]],
    texts: Mapping[str, str],
    backends: Mapping[str, float],
    provenance: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: the .html file.
        title, lead: heading, and a sentence below it.
        labels: names of the two dihedrals.
        roads: name -> comparison with the reference; the first is the run's.
        run: the run's settings.
        training: of the card of the model that ran.
        scores: of the samples of the flow weighted by each PMF.
        quality: of backmapped held-out frames.
        entropy: mapping entropy of `beads`.
        beads: frames of the run.
        dihedrals: the two, of beads.
        texts: paragraphs by the section they begin: roads, run, weights, atoms, entropy.
        backends: replica-steps/s by backend.
        provenance: versions, seed, hashes.
        notes: caveats, shown above everything else.
    """
    first, comparison = next(iter(roads.items()))
    mean, error = entropy.mean
    cards = [
        *((f"{c.js_excess:.4f} ± {c.js_excess_error:.4f}", f"JS* of {name}, nats (0 is perfect)")
          for name, c in roads.items()),
        (f"{quality.bead_error:.1g} nm", "largest distance of a bead from its place, backmapped"),
        (f"{mean:.2f} ± {error:.2f}", f"mapping entropy, nats, of {entropy.removed} DOFs"),
    ]  # fmt: skip
    sections = [
        heading("Roads to the same free energy"),
        paragraph(texts["roads"]),
        figure(
            road_profiles(roads, labels),
            f"Free energy along {labels[0]} and {labels[1]} by each road, and of an independent "
            "all-atom run; bands are two standard errors over blocks.",
        ),
        grid(("road", "JS*, nats", "ΔF error, kJ/mol", "RMSE, kJ/mol", "visited"),
             [_road_row(name, c) for name, c in roads.items()]),
        heading(f"Replica exchange of the model: {first}"),
        paragraph(texts["run"]),
        *comparison_sections(comparison, labels),
        heading("Samples of the flow, weighted"),
        paragraph(texts["weights"]),
        *_weights(scores),
        paragraph(CANNOT_SEE),
        heading("Back to atoms"),
        paragraph(texts["atoms"]),
        *_atoms(quality),
        heading("What the beads leave open"),
        paragraph(texts["entropy"]),
        figure(
            entropy_along(entropy, beads, dihedrals[1], labels[1]),
            f"Mapping entropy a removed degree of freedom along {labels[1]} of the beads, less "
            f"its mean, each frame and means with two standard errors; {entropy.unit}.",
            small=True,
        ),
        *training_section(training),
        heading(f"Replica-steps/s of {run['copies']} copies"),
        table({name: f"{speed:,.0f}" for name, speed in backends.items()}),
    ]  # fmt: skip
    write_page(path, title, lead, notes, cards, sections, provenance)


def road_profiles(roads: Mapping[str, Comparison], labels: tuple[str, str]) -> bytes:
    """Draw the free energy along each dihedral by several roads, with two standard errors."""
    reference = next(iter(roads.values()))
    named = {"all atoms": reference.reference} | {n: c.model for n, c in roads.items()}
    # The reference's colour is its own; those of the roads follow.
    colours = [REFERENCE, *(colour for colour in SERIES if colour != REFERENCE)]
    styles = dict(zip(named, zip(colours, DASHES, strict=True), strict=False))
    return plot.several_profiles(named, styles, reference.kt, labels)


def entropy_along(
    entropy: MappingEntropy, beads: "BeadFrames", quadruple: Sequence[int], label: str
) -> bytes:
    """Draw the entropy of each frame, and its mean, along a dihedral of the beads."""
    figure, axis = subplots(1, 1)
    angles = dihedral_angles(beads.positions, [quadruple])[:, 0] * _DEGREES
    values = entropy.per_degree - entropy.per_degree.mean()
    axis.plot(angles, values, ".", ms=3, color="#8a8a8a", label="a frame")
    edges = np.linspace(-180, 180, 13)
    bins = np.digitize(angles, edges) - 1
    seen = [k for k in range(len(edges) - 1) if (bins == k).sum() >= 4]
    means = [values[bins == k].mean() for k in seen]
    errors = [2 * values[bins == k].std(ddof=1) / (bins == k).sum() ** 0.5 for k in seen]
    axis.errorbar(
        (edges[1:] + edges[:-1])[seen] / 2, means, errors, fmt="o-", color=MODEL, capsize=2,
        label="mean",
    )  # fmt: skip
    axis.set(xlabel=f"{label}, degrees", ylabel="S/k a removed DOF, nats", xlim=(-180, 180))
    axis.set_xticks([-180, -90, 0, 90, 180])
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


def _road_row(name: str, comparison: Comparison) -> tuple[str, ...]:
    difference, error = comparison.delta_f
    return (
        name,
        f"{comparison.js_excess:.4f} ± {comparison.js_excess_error:.4f}",
        f"{difference:+.2f} ± {error:.2f}",
        f"{comparison.free_energy_rmse:.2f}",
        f"{comparison.coverage:.1%}",
    )


def _weights(scores: Sequence[PMFScore]) -> list[str]:
    best = scores[0]
    edges, densities = energy_histograms(best, None)
    rows = [
        (
            score.name,
            f"{score.samples.report.fraction:.1%}",
            # No tail to speak of where weights are nearly even.
            f"{score.samples.report.pareto_k:.2f}"
            if np.isfinite(score.samples.report.pareto_k)
            else "-",
            f"{score.samples.free_energy.value:.2f} ± {score.samples.free_energy.error:.2f}",
            "; ".join(score.warnings) or "none",
        )
        for score in scores
    ]
    return [
        figure(
            plot.energy_distributions(edges, densities),
            f"Energy of {best.name} in the flow's samples as they were drawn, and by their "
            "weights.",
            small=True,
        ),
        grid(("PMF", "effective", "k-hat", "-kT ln Z, kJ/mol", "doubts"), rows),
    ]


def _atoms(quality: Quality) -> list[str]:
    sections = []
    if quality.plane is not None and np.isfinite(quality.plane.difference):
        sections.append(
            figure(
                plot.torsion_planes(quality.plane),
                "Torsions that the beads do not give, on their first two principal components: "
                "held-out all-atom frames, and atoms generated for the beads of these frames. "
                f"The difference is {quality.plane.difference:.2f} kT rms, that of the frames' "
                f"halves {quality.plane.floor:.2f}.",
            )
        )
    return [*sections, table(quality.rows())]
