"""One self-contained HTML page that shows a model, its training, its run and its comparison."""

import base64
import html
from pathlib import Path
from typing import Any

from . import plot
from .analysis import Comparison
from .files import atomic_path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1100px;
       margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: 0.2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.lead { color: #51606f; margin-top: 0; max-width: 46rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 1.4rem 0; padding: 0; }
.card { border: 1px solid #dde3e9; border-radius: 8px; padding: 0.7rem 1rem; min-width: 9.5rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.card span { color: #51606f; font-size: 0.85rem; }
img { width: 100%; height: auto; } img.small { max-width: 640px; }
table { border-collapse: collapse; font-size: 0.9rem; }
td, th { text-align: left; padding: 0.25rem 1.2rem 0.25rem 0; border-bottom: 1px solid #eef1f4; }
.note { background: #fff7e0; border-left: 4px solid #e0a800; padding: 0.6rem 1rem;
        max-width: 52rem; }
figcaption { color: #51606f; font-size: 0.85rem; max-width: 60rem; } figure { margin: 0 0 1.4rem; }
"""


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
    name = "coarse-grained model"
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
        _figure(
            plot.free_energy_maps(comparison, labels, name),
            "Free energy over two dihedrals; 60 × 60 bins; the difference's mean over the "
            f"reference is removed, bins above {plot.DIFFERENCE_BELOW:g} kJ/mol are left out. "
            "Grey: never visited.",
        ),
        _figure(
            plot.profiles(comparison, labels, name),
            "Profiles along each dihedral; bands are two standard errors over contiguous blocks "
            "(reference: two halves; model: groups of independent copies). Shaded: the state "
            "whose free energy is compared.",
        ),
    ]
    history = training.get("history") or [{}]
    if "force_noise_floor" in training and "valid_rmse" in history[-1]:
        floor = float(training["force_noise_floor"])
        sections += [
            "<h2>Training</h2>",
            _figure(
                plot.training_curve(training["history"], floor),
                f"Validation force RMSE {training['force_rmse']:.1f} kJ/mol/nm, of which about "
                f"{floor:.1f} is noise of the averaged-out atoms that no model can remove; the "
                f"model's own error is about {training['force_model_error']:.1f}.",
                small=True,
            ),
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
    sections += ["<h2>Numbers</h2>", _table(js_rows)]
    versions = run.get("versions", {})
    settings = {
        k: v
        for k, v in run.items()
        if v is not None and not isinstance(v, (dict, list)) and not k.endswith("_sha256")
    }
    sections += [
        "<h2>Run</h2>",
        _table({**_outside(run), **settings, **{f"{k} version": v for k, v in versions.items()}}),
    ]
    if backends:
        rows = {name: f"{speed:,.0f}" for name, speed in backends.items()}
        sections += [f"<h2>Replica-steps/s of {run['copies']} copies</h2>", _table(rows)]
    if training:
        kept = {k: v for k, v in training.items() if not isinstance(v, (dict, list))}
        sections += ["<h2>Training settings</h2>", _table(kept)]
    body = "".join(
        [
            f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>",
            *(f"<p class='note'>{html.escape(n)}</p>" for n in notes),
            "<div class='cards'>",
            *(
                f"<div class='card'><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>"
                for v, k in cards
            ),
            "</div>",
            *sections,
        ]
    )
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><body>{body}</body></html>\n"
    )
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _outside(run: dict[str, Any]) -> dict[str, str]:
    """Return how many frames of a finished run are outside the training data, and why."""
    names = {
        "extrapolating": "frames outside the training data",
        "uncertain": "frames with forces less certain than the ensemble's limit",
    }
    statistics = run.get("statistics") or {}
    return {text: f"{statistics[key]:.2%}" for key, text in names.items() if key in statistics}


def _figure(png: bytes, caption: str, small: bool = False) -> str:
    data = base64.b64encode(png).decode()
    kind = " class='small'" if small else ""
    return (
        f"<figure><img{kind} alt='{html.escape(caption[:80])}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _table(rows: dict[str, Any]) -> str:
    def cell(value: Any) -> str:
        return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))

    return (
        "<table>"
        + "".join(
            f"<tr><th>{html.escape(str(k))}</th><td>{cell(v)}</td></tr>" for k, v in rows.items()
        )
        + "</table>"
    )


def _value(state: Any) -> str:
    return f"{state.value:.2f} ± {state.error:.2f}"
