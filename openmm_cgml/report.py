"""Self-contained HTML pages: a model with its training, run and comparison; weighted samples."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plot
from .analysis import Comparison, dihedral_angles, dihedral_distribution
from .entropy import MapEntropy, MappingEntropy
from .page import figure, grid, table, write_page
from .quality import Quality, clashing
from .ranking import CANNOT_SEE, PMFScore, energy_histograms
from .reweight import Estimate

if TYPE_CHECKING:
    from .backmapping import Structures

#: Structures in which clashes are looked for, where there is no reference.
_CLASHES = 200


def write_report(
    path: str | Path,
    comparison: Comparison,
    *,
    title: str,
    lead: str,
    labels: tuple[str, str],
    training: dict[str, Any],
    run: dict[str, Any],
    notes: list[str],
    backends: dict[str, float] | None = None,
) -> None:
    """Write the page.

    Args:
        path: the .html file.
        comparison: from `analysis.compare`.
        title: heading.
        lead: one sentence below it.
        labels: names of the two dihedrals.
        training: the card's training record; empty: no training section.
        run: the run's settings (`Run.info`).
        notes: caveats, shown above everything else.
        backends: replica-steps/s of each backend at the run's number of copies.
    """
    difference, error = comparison.delta_f
    low, high = comparison.state
    cards = [
        (
            f"{comparison.js_excess:.4f} ± {comparison.js_excess_error:.4f}",
            "JS* to the reference, nats (0 is perfect)",
        ),
        (
            f"{difference:+.2f} ± {error:.2f}",
            f"ΔF error of {labels[0]} in ({low:g}, {high:g}), kJ/mol",
        ),
        (f"{comparison.free_energy_rmse:.2f}", "free-energy RMSE, kJ/mol"),
        (f"{comparison.coverage:.1%}", "of the reference's probability visited"),
    ]
    if "replica_steps_per_second" in run:
        speed = float(run["replica_steps_per_second"])
        cards.append((f"{speed:,.0f}", f"replica-steps/s, {run['backend']} on {run['platform']}"))
    sections = [
        "<h2>Free energy</h2>",
        *comparison_sections(comparison, labels),
        *training_section(training),
    ]
    js_rows = {
        "JS(model, reference), sampling noise included": f"{comparison.js:.5f}",
        "of which reference noise, JS(halves)/4": f"{comparison.js_reference_error:.5f}",
        "of which model noise, JS(halves)/4": f"{comparison.model.sampling_divergence:.5f}",
        "excess JS*": f"{comparison.js_excess:.5f} ± {comparison.js_excess_error:.5f}",
        "state population, model": f"{comparison.state_model.population:.4f}",
        "state population, reference": f"{comparison.state_reference.population:.4f}",
        "state ΔF, model, kJ/mol": _value(comparison.state_model),
        "state ΔF, reference, kJ/mol": _value(comparison.state_reference),
    }
    sections += ["<h2>Numbers</h2>", table(js_rows)]
    versions = run.get("versions", {})
    settings = {
        k.replace("_", " "): v
        for k, v in run.items()
        if v is not None and not isinstance(v, (dict, list)) and not k.endswith("_sha256")
    }
    sections += [
        "<h2>Run</h2>",
        table({**_outside(run), **settings, **{f"{k} version": v for k, v in versions.items()}}),
    ]
    if backends:
        rows = {name: f"{speed:,.0f}" for name, speed in backends.items()}
        sections += [f"<h2>Replica-steps/s of {run['copies']} copies</h2>", table(rows)]
    if training:
        kept = {
            k.replace("_", " "): v
            for k, v in training.items()
            if v is not None and not isinstance(v, (dict, list))
        }
        sections += ["<h2>Training settings</h2>", table(kept)]
    write_page(path, title, lead, notes, cards, sections, run)


def comparison_sections(comparison: Comparison, labels: tuple[str, str]) -> list[str]:
    """Return the figures of a model's and a reference's free energies.

    Args:
        comparison: from `analysis.compare`.
        labels: names of the two dihedrals.
    """
    name = "coarse-grained model"
    return [
        figure(
            plot.free_energy_maps(comparison, labels, name),
            "Free energy over two dihedrals; 60 × 60 bins; the difference's mean over the "
            f"reference is removed, bins above {plot.DIFFERENCE_BELOW:g} kJ/mol are left out. "
            f"Grey: never visited; dotted: the model is lower by more than {plot.MARKED:g}.",
        ),
        figure(
            plot.profiles(comparison, labels, name),
            "Profiles along each dihedral; bands are two standard errors over contiguous blocks "
            "(reference: two halves; model: groups of independent copies). Shaded: the state "
            "whose free energy is compared.",
        ),
    ]


def training_section(training: Mapping[str, Any]) -> list[str]:
    """Return the training curve of a model's card, if it has one."""
    history = training.get("history") or [{}]
    if "force_noise_floor" not in training or "valid_rmse" not in history[-1]:
        return []
    floor = float(training["force_noise_floor"])
    return [
        "<h2>Training</h2>",
        figure(
            plot.training_curve(training["history"], floor),
            f"Validation force RMSE {training['force_rmse']:.1f} kJ/mol/nm, of which about "
            f"{floor:.1f} is noise of the averaged-out atoms that no model can remove; the "
            f"model's own error is about {training['force_model_error']:.1f}.",
            small=True,
        ),
    ]


def write_reweighting(
    path: str | Path,
    scores: Sequence[PMFScore],
    *,
    title: str,
    lead: str,
    labels: tuple[str, str] | None = None,
    quadruples: Sequence[Sequence[int]] = (),
    reference_frames: Mapping[str, np.ndarray] | None = None,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a page about samples of a flow, weighted by one PMF or several.

    Args:
        path: the .html file.
        scores: of `rank_pmfs`, the best first.
        title, lead: heading, and a sentence below it.
        labels: names of the two dihedrals that were compared, if any were.
        quadruples: these dihedrals.
        reference_frames: name of PMF -> its energies at frames of the all-atom ensemble, kJ/mol.
        notes: caveats, shown above everything else.
        provenance: versions, seed, hashes; folded at the foot of the page.
    """
    best = scores[0]
    cards = [
        (f"{best.samples.report.fraction:.1%}", "of the samples effective"),
        (
            "-" if best.samples.report.forward is None else f"{best.samples.report.forward:.1%}",
            "the same as held-out frames see it",
        ),
        (f"{best.samples.report.pareto_k:.2f}", "k-hat of the weights (0.7 is too much)"),
        (_estimate(best.samples.free_energy), "free energy -kT ln Z of the PMF, kJ/mol"),
    ]
    if (divergence := best.divergence) is not None:
        cards.append((f"{divergence.value:.4f} ± {divergence.error:.4f}", "JS* to the reference"))
    if len(scores) > 1:
        cards = [(v, f"{best.name}: {k}") for v, k in cards]
    warnings = [f"{score.name}: {text}" for score in scores for text in score.warnings]
    sections = []
    if len(scores) > 1:
        sections.append("<h2>PMFs, the best first</h2>")
        compared = [(s.name, d) for s in scores if (d := s.divergence) is not None]
        if compared:
            names, distances = zip(*compared, strict=True)
            drawn_ranks = plot.ranking(
                list(names), [d.value for d in distances], [d.error for d in distances]
            )
            sections.append(
                figure(drawn_ranks, "Divergence from the reference; bars are two standard errors "
                        "over blocks of samples.", small=True)
            )  # fmt: skip
        sections.append(grid(_SCORE_HEAD, [_score_row(score) for score in scores]))
    for score in scores:
        sections.append(f"<h2>{html.escape(score.name)}</h2>")
        if score.comparison is not None and labels is not None:
            drawn = dihedral_distribution(
                dihedral_angles(score.samples.positions, quadruples),
                bins=len(score.comparison.reference.edges) - 1,
            )
            sections.append(
                figure(
                    plot.reweighted_profiles(drawn, score.comparison, labels),
                    "Free energy along each dihedral, of the flow's samples as they were drawn, "
                    "weighted by the PMF, and of the reference; bands are two standard errors.",
                )
            )
            sections.append(
                figure(
                    plot.free_energy_maps(score.comparison, labels, "reweighted"),
                    "Free energy over both dihedrals, reweighted; the difference's mean over the "
                    "reference is removed. Grey: never drawn.",
                )
            )
        edges, densities = energy_histograms(score, (reference_frames or {}).get(score.name))
        sections += [
            figure(
                plot.energy_distributions(edges, densities),
                "Energy of the PMF in the flow's samples as they were drawn, by their weights, "
                "and in frames of the all-atom ensemble, where there are some.",
                small=True,
            ),
            figure(
                plot.weight_tail(score.samples.raw_log_weights, score.samples.log_weights),
                "Weights from the heaviest down, over the mean weight, before and after Pareto "
                "smoothing.",
                small=True,
            ),
        ]
        sections.append(table(_score_numbers(score)))
    write_page(path, title, lead, [*notes, *warnings, CANNOT_SEE], cards, sections, provenance)


def write_backmapping(
    path: str | Path, quality: Quality, *, title: str, lead: str, notes: Sequence[str] = (),
    relaxed: dict[str, float] | None = None, provenance: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a page about backmapped structures.

    Args:
        path: the .html file.
        quality: from `assess`.
        title, lead: heading, and a sentence below it.
        relaxed: numbers by name of their relaxation, if they were relaxed.
        notes: caveats, shown above everything else.
        provenance: versions, seed, hashes; folded at the foot of the page.
    """
    cards = [
        (f"{quality.structures:,}", "structures"),
        (f"{quality.bead_error:.0e} nm", "largest distance of a bead from its place"),
        *(
            (f"{found.mean:.4f}", f"JS* of {name}, nats, mean over kinds")
            for name, found in (("bonds", quality.bonds), ("torsions", quality.torsions))
            if found.kinds
        ),
        (f"{quality.clashes[0]:.2%}", f"residues that clash (reference {quality.clashes[1]:.2%})"),
        (str(quality.mirrored[0]), f"wrong stereocentres of {quality.mirrored[1]:,}"),
    ]
    sections = ["<h2>Metrics</h2>", table(quality.rows())]
    if relaxed is not None:
        sections += ["<h2>Relaxed, beads held</h2>", table(relaxed)]
    if quality.plane is not None and np.isfinite(quality.plane.difference):
        sections += [
            "<h2>Torsions that the beads do not give</h2>",
            figure(
                plot.torsion_planes(quality.plane),
                "Free energy on the first two principal components of sines and cosines of one "
                "torsion about each bond with an atom that is no bead; the reference's axes. The "
                f"difference is {quality.plane.difference:.2f} kT rms, that of the reference's "
                f"halves {quality.plane.floor:.2f}.",
            ),
        ]
    for name, found in (("bonds", quality.bonds), ("angles", quality.angles),
                        ("torsions", quality.torsions)):  # fmt: skip
        if not found.kinds:
            continue
        worst = np.argsort(-found.values)[:10]
        sections += [
            f"<h2>The ten worst {name}</h2>",
            grid(
                ("kind", "JS*, nats", "reference's halves"),
                [(found.kinds[k], f"{found.values[k]:.4f}", f"{found.floors[k]:.4f}")
                 for k in worst],
            ),
        ]  # fmt: skip
    write_page(path, title, lead, notes, cards, sections, provenance)


def write_structures(
    path: str | Path, structures: "Structures", *, title: str, lead: str,
    relaxed: dict[str, float] | None = None, provenance: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a page about backmapped structures with no atoms to compare them with.

    Args:
        path: the .html file.
        structures: from `backmap`.
        title, lead: heading, and a sentence below it.
        relaxed: numbers by name of their relaxation, if they were relaxed.
        provenance: versions, seed, hashes; folded at the foot of the page.
    """
    shown = np.linspace(0, len(structures) - 1, min(len(structures), _CLASHES)).round().astype(int)
    box = structures.box
    clashes = [
        clashing(structures.positions[[k]], structures.topology, None if box is None else box[k])
        for k in shown
    ]
    frames = len(np.unique(structures.frame))
    cards = [
        (f"{len(structures):,}", "structures"),
        (f"{frames:,}", "frames"),
        (f"{len(structures.topology):,}", "atoms"),
        (f"{np.mean(clashes):.2%}", f"residues that clash, in {len(shown)} structures"),
    ]
    rows = {"atoms": len(structures.topology), "beads": structures.beads.shape[1]}
    sections = ["<h2>Numbers</h2>", table(rows)]
    if relaxed is not None:
        sections += ["<h2>Relaxed, beads held</h2>", table(relaxed)]
    if (density := structures.log_density) is not None and len(structures) > 1:
        counts, edges = np.histogram(density, bins=min(40, max(4, len(density) // 5)))
        sections += [
            "<h2>Log-density of the structures</h2>",
            figure(plot.log_densities(edges, counts), "Log-density of each structure at its "
                   "beads, nats, densities per nm.", small=True),
        ]  # fmt: skip
    notes = ["How good the structures are only atoms can tell: --reference compares with some."]
    write_page(path, title, lead, notes, cards, sections, provenance)


def write_entropy(
    path: str | Path, found: MappingEntropy, rows: dict[str, Any], *, title: str, lead: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a page about the mapping entropy along a trajectory.

    Args:
        path: the .html file.
        found: from `mapping_entropy`.
        rows: numbers by name.
        title, lead: heading, and a sentence below it.
        provenance: versions, seed, hashes; folded at the foot of the page.
    """
    mean, error = found.mean
    degrees = found.removed
    cards = [
        (f"{mean / degrees:.4f} ± {error / degrees:.4f}", "S/k a removed degree of freedom"),
        (f"{degrees}", "removed degrees of freedom"),
        (f"{len(found.values):,}", "frames"),
    ]
    sections = [
        "<h2>Along the trajectory</h2>",
        figure(
            plot.entropy_trace(
                found.per_degree, found.errors / degrees, "S/k a removed DOF, nats"
            ),
            f"Each frame a removed degree of freedom, two standard errors; {found.unit}.",
            small=True,
        ),
        "<h2>Numbers</h2>",
        table(rows),
    ]
    write_page(path, title, lead, [found.unit], cards, sections, provenance)


def write_mapping_comparison(
    path: str | Path, ranked: Sequence[MapEntropy], more: Sequence[tuple[float, float]], *,
    title: str, lead: str, provenance: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a page about several maps of one molecule.

    Args:
        path: the .html file.
        ranked: from `compare_mappings`.
        more: from `entropy.differences`.
        title, lead: heading, and a sentence below it.
        provenance: versions, seed, hashes; folded at the foot of the page.
    """
    gaps, errors = np.array(more).T
    best = ranked[0]
    least = best.data.mean[0] / best.data.removed
    cards = [(best.name, "loses least"), (f"{best.beads}", "beads"),
             (f"{least:.4f}", "nats a removed degree of freedom")]  # fmt: skip
    head = ("map", "beads", "more than the first", "data estimate", "model estimate", "gap")
    rows = [
        (one.name, str(one.beads), f"{gap:.2f} ± {error:.2f}",
         "{:.2f} ± {:.2f}".format(*one.data.mean), "{:.2f} ± {:.2f}".format(*one.model.mean),
         "{:.2f} ± {:.2f}".format(*one.gap))
        for one, (gap, error) in zip(ranked, more, strict=True)
    ]  # fmt: skip
    sections = [
        "<h2>Information lost</h2>",
        figure(
            plot.entropy_bars([one.name for one in ranked], gaps, errors),
            "By the data estimator, on the same frames, two standard errors of the differences.",
            small=True,
        ),
        grid(head, rows),
    ]
    write_page(path, title, lead, [best.data.unit], cards, sections, provenance)


_SCORE_HEAD = ("PMF", "effective", "forward", "k-hat", "JS*, nats", "ΔF error, kJ/mol",
               "RMSE, kJ/mol", "outside training", "trusted")  # fmt: skip


def _score_row(score: PMFScore) -> list[str]:
    report, comparison = score.samples.report, score.comparison
    compared = ["-"] * 3
    if comparison is not None:
        difference, error = comparison.delta_f
        compared = [
            f"{comparison.js_excess:.4f} ± {comparison.js_excess_error:.4f}",
            f"{difference:+.2f} ± {error:.2f}",
            f"{comparison.free_energy_rmse:.2f}",
        ]
    return [
        score.name,
        f"{report.fraction:.1%}",
        "-" if report.forward is None else f"{report.forward:.1%}",
        f"{report.pareto_k:.2f}",
        *compared,
        "-" if score.outside is None else f"{score.outside:.1%}",
        "no" if score.warnings else "yes",
    ]


def _score_numbers(score: PMFScore) -> dict[str, Any]:
    report = score.samples.report
    rows = {
        "samples": f"{report.samples:,}",
        "effective samples": f"{report.effective:,.0f}",
        "largest share of one sample": f"{report.largest:.2%}",
        "mirror images left out": f"{report.mirrored:.2%}",
        "weight removed by clipping": f"{report.removed:.2%}",
        "free energy -kT ln Z": str(score.samples.free_energy),
    }
    if score.outside is not None:
        rows["samples outside the PMF's training data"] = f"{score.outside:.2%}"
        rows["their weight"] = f"{score.weight_outside:.2%}"
    if score.check is not None:
        rows["dynamics from weighted samples"] = score.check.text()
    return rows


def _estimate(estimate: Estimate) -> str:
    number = f"{estimate.value:.2f} ± {estimate.error:.2f}"
    return number if estimate.converged else f"not converged: {number}"


def _outside(run: dict[str, Any]) -> dict[str, str]:
    """Return how many frames of a finished run are outside the training data, and why."""
    names = {
        "extrapolating": "frames outside the training data",
        "uncertain": "frames with forces less certain than the ensemble's limit",
    }
    statistics = run.get("statistics") or {}
    return {text: f"{statistics[key]:.2%}" for key, text in names.items() if key in statistics}


def _value(state: Any) -> str:
    return f"{state.value:.2f} ± {state.error:.2f}"
