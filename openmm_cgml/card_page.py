"""The pages of a model file and of a flow file, from the card that they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import plot, plot_run
from .page import figure, grid, heading, paragraph, row, table, write_page

# Of the training record: shown in a place of its own, or too long to be read.
_APART = ("history", "ranges", "objective")


def write_model_page(path: str | Path, card: Mapping[str, Any], *, title: str) -> dict[str, Any]:
    """Write the page of a model.

    Args:
        path: the .html file.
        card: of a `ModelFile`.
        title: heading.

    Returns:
        The model's numbers, JSON-able.
    """
    training = card.get("training") or {}
    terms = _terms(card.get("architecture") or {})
    beads = len(card["topology"]["bead_names"])
    temperature = card.get("temperature_K")
    cards = [(f"{beads}", "beads"), (f"{temperature:g} K", "temperature that it holds at")]
    notes = []
    if "force_rmse" in training:
        cards.append((f"{training['force_rmse']:.1f}", "validation force RMSE, kJ/mol/nm"))
        if "force_noise_floor" in training:
            cards += [
                (f"{training['force_noise_floor']:.1f}", "of it noise that no model removes"),
                (f"{training['force_model_error']:.1f}", "the model's own error, kJ/mol/nm"),
            ]
    if not training:
        notes.append("The card has no training record: the model was saved without training.")
    sections = []
    curve = _curve(training)
    if curve:
        sections += [heading("Training"), row([curve])]
    network = [t for t in terms if not t["prior"]]
    prior = [t for t in terms if t["prior"]]
    if network:
        sections += [heading("Network"), table({k: v for t in network for k, v in _shown(t)})]
    if prior:
        rows = [(t["name"], t["terms"], t["summary"]) for t in prior]
        sections += [heading("Prior terms"), grid(("term", "how many", "parameters"), rows)]
    sections += _settings(training)
    sections += _topology(card["topology"])
    write_page(path, title, f"A potential of mean force of {beads} beads at {temperature:g} K.",
               notes, cards, sections, _provenance(card))  # fmt: skip
    return {
        "kind": "model",
        "beads": beads,
        "temperature_K": temperature,
        "terms": [t["name"] for t in terms],
        **_numbers(training),
    }


def write_flow_page(path: str | Path, card: Mapping[str, Any], *, title: str) -> dict[str, Any]:
    """Write the page of a flow or a split-flow.

    Args:
        path: the .html file.
        card: from `read_flow_card`.
        title: heading.

    Returns:
        The flow's numbers, JSON-able.
    """
    architecture = card["architecture"]
    arguments = architecture.get("arguments") or {}
    name = str(architecture.get("class", "")).rpartition(":")[2]
    training = card.get("training") or {}
    atoms = len(arguments.get("topology", {}).get("bead_names", ()))
    split = "beads" in arguments
    beads = len(arguments["beads"]["bead_names"]) if split else atoms
    cards = [(f"{beads}", "beads")]
    if split:
        cards.insert(0, (f"{atoms}", "atoms"))
    if "log_likelihood" in training:
        cards.append((f"{training['log_likelihood']:.2f}", "validation log-likelihood, nats"))
    if "outside_training" in training:
        cards.append((f"{training['outside_training']:.1%}", "of samples outside the data"))
    if arguments.get("temperature") is not None:
        cards.append((f"{arguments['temperature']:g} K", "temperature that it holds at"))
    notes = [] if training else ["The file has no training record: the flow was saved bare."]
    sections = []
    if training.get("history"):
        losses = figure(
            plot_run.learning(training["history"], "loss, nats a frame"
                              if training.get("loss") == "likelihood" else "loss"),
            f"Loss ({training.get('loss', 'unknown')}) of training and validation by epoch.",
            small=True,
        )  # fmt: skip
        sections += [heading("Training"), row([losses])]
    sizes = {k: v for k, v in arguments.items() if isinstance(v, (str, int, float, bool))}
    sections += [heading("Architecture"), table({"class": name, **sizes})]
    sections += _settings(training)
    if "topology" in arguments and not split:
        sections += _topology(arguments["topology"])
    elif split:
        sections += _topology(arguments["beads"])
    what = "split-flow: atoms at given beads" if split else "flow: a density of beads"
    kind = "split-flow" if split else "flow"
    write_page(path, title, f"A {what}, {name}.", notes, cards, sections, _provenance(card))
    return {"kind": kind, "class": name, "beads": beads, "atoms": atoms if split else None,
            **_numbers(training)}  # fmt: skip


def _curve(training: Mapping[str, Any]) -> str:
    history = training.get("history") or []
    if not history:
        return ""
    if "valid_rmse" in history[-1] and "train_rmse" in history[-1]:
        floor = training.get("force_noise_floor")
        text = f"Force RMSE by epoch; validation ends at {training['force_rmse']:.1f} kJ/mol/nm"
        if floor is not None:
            text += (
                f", of which about {floor:.1f} is noise of the averaged-out atoms that no model "
                "removes (dashed)"
            )
        return figure(
            plot.training_curve(history, float("nan") if floor is None else float(floor)),
            f"{text}.", small=True,
        )  # fmt: skip
    return figure(
        plot_run.learning(history, "loss"),
        f"Loss ({training.get('loss', 'unknown')}) of training and validation by epoch.",
        small=True,
    )


def _terms(architecture: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a potential is the sum of."""
    arguments = architecture.get("arguments") or {}
    if "terms" in arguments:
        return [found for term in arguments["terms"] for found in _terms(term)]
    where, _, name = str(architecture.get("class", "unknown")).rpartition(":")
    indices = arguments.get("indices")
    return [{
        "name": name,
        "prior": ".prior" in where,
        "terms": f"{len(indices)}" if isinstance(indices, list) else "-",
        "summary": _summary(arguments),
        "arguments": arguments,
    }]  # fmt: skip


def _summary(arguments: Mapping[str, Any]) -> str:
    """Return the range of each parameter of a prior term."""
    found = []
    for name, value in arguments.items():
        if name == "indices":
            continue
        if isinstance(value, (str, int, float, bool)):
            found.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        elif isinstance(value, list) and value:
            try:
                numbers = np.asarray(value, dtype=float)
            except (TypeError, ValueError):
                continue
            found.append(f"{name} {numbers.min():.4g} to {numbers.max():.4g}")
    return "; ".join(found) or "-"


def _shown(term: Mapping[str, Any]) -> list[tuple[str, Any]]:
    values = [
        (name, value) for name, value in term["arguments"].items()
        if isinstance(value, (str, int, float, bool))
    ]  # fmt: skip
    return [("network", term["name"]), *values]


def _settings(training: Mapping[str, Any]) -> list[str]:
    rows = {
        name.replace("_", " "): value for name, value in training.items()
        if value is not None and not isinstance(value, (dict, list)) and name not in _APART
    }  # fmt: skip
    objective = training.get("objective") or {}
    rows |= {
        f"loss: {name}": value for name, value in objective.items()
        if isinstance(value, (str, int, float, bool))
    }  # fmt: skip
    return [heading("Training settings"), table(rows)] if rows else []


def _topology(topology: Mapping[str, Any]) -> list[str]:
    types = list(topology["bead_types"])
    counted = {kind: types.count(kind) for kind in dict.fromkeys(types)}
    shown = ", ".join(f"{kind} {count}" for kind, count in list(counted.items())[:40])
    more = len(counted) - 40
    text = f"{len(types)} beads, {len(topology['bonds'])} bonds. Types: {shown}"
    return [heading("Beads"), paragraph(text + (f", and {more} more." if more > 0 else "."))]


def _numbers(training: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in training.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)}  # fmt: skip


def _provenance(card: Mapping[str, Any]) -> dict[str, Any]:
    mapping = card.get("mapping") or {}
    found: dict[str, Any] = {
        name.replace("_", " "): card[name]
        for name in ("package_version", "torch_version", "schema_version", "data_bias")
        if card.get(name) not in (None, "")
    }
    found["seed"] = (card.get("training") or {}).get("seed")
    found["map"] = mapping.get("name")
    found["force map"] = (mapping.get("force_map") or {}).get("name")
    for name, digest in (card.get("data_sources") or {}).items():
        found[f"SHA-256 of {name}"] = digest
    return found
