"""Draw the benchmarks' figures from benchmarks/results: python docs/images/plot_benchmarks.py."""

import io
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
COLOURS = {
    "native": "#0b6e4f", "torchforce": "#d17b0f", "python": "#8a5fa8", "PyTorch loop": "#555555",
}  # fmt: skip


def read(name: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The numbers of a benchmark by name, and the hardware in words."""
    held = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    hardware = held["hardware"]
    where = f"{hardware['cpu']}, {hardware['torch_threads']} thread"
    return {one["name"]: one for one in held["targets"]}, where


def by_copies(numbers: dict[str, dict[str, Any]], pattern: str) -> tuple[list[int], list[float]]:
    """Numbers of copies and what was measured with them."""
    found = [(int(m.group(1)), one["measured"]) for name, one in numbers.items()
             if (m := re.fullmatch(pattern, name))]  # fmt: skip
    copies, values = zip(*sorted(found), strict=True)
    return list(copies), list(values)


def engine() -> None:
    """Replica-steps a second over the number of copies, by backend and by network."""
    numbers, where = read("engine")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for label, pattern in (
        ("native", r"native on Reference, copies=(\d+)"),
        ("torchforce", r"torchforce on Reference, copies=(\d+)"),
        ("python", r"python on Reference, copies=(\d+)"),
        ("PyTorch loop", r"PyTorch loop, copies=(\d+)"),
    ):
        dashed = "--" if label == "PyTorch loop" else "-"
        left.plot(*by_copies(numbers, pattern), dashed, marker="o", ms=4, color=COLOURS[label],
                  label=label)  # fmt: skip
    left.set_title("dense network, 8 layers of 160, 10 beads", fontsize=10)
    networks, other = read("engine_networks")
    for label, marker in (("schnet", "o"), ("painn", "s")):
        copies, speeds = by_copies(networks, rf"{label}, (\d+) copies")
        _, over = by_copies(networks, rf"{label}, (\d+) copies, over the PyTorch loop")
        beads = {"schnet": 10, "painn": 49}[label]
        line = right.plot(copies, speeds, marker=marker, ms=4, label=f"{label}, {beads} beads")[0]
        loop = [speed / ratio for speed, ratio in zip(speeds, over, strict=True)]
        right.plot(copies, loop, "--", marker=marker, ms=4, color=line.get_color(),
                   label=f"{label}, PyTorch loop")  # fmt: skip
    right.set_title("message passing, backend native", fontsize=10)
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="copies in one Context")
        axis.set_ylabel("replica-steps / s")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    assert where == other
    save(figure, "benchmark_engine.png", where)


def learning() -> None:
    """What force maps and networks are worth: divergence of their replica exchange."""
    maps, where = read("force_maps")
    networks, other = read("networks")
    training, third = read("training")
    assert where == other == third
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
    names = ["basic", "optimal", "rotation"]
    bars(axes[0], names, [maps[f"peptide: JS*, {n}"] for n in names])
    axes[0].set_title("force map (cgnet)", fontsize=10)
    kinds = ["cgnet", "schnet", "painn"]
    bars(axes[1], kinds, [networks[f"{n}: js"] for n in kinds])
    axes[1].set_title("network (rotation map)", fontsize=10)
    for axis in axes[:2]:
        axis.set(yscale="log", ylabel="JS* / nats (less is better)")
    width = 0.27
    for k, (label, name) in enumerate(
        (("plain loop", "frames, plain loop"), ("fit", "frames"),
         ("fit, compiled", "frames, compiled"))
    ):  # fmt: skip
        places = [x + (k - 1) * width for x in range(3)]
        values = [training[f"{n}: {name}"] for n in kinds]
        axes[2].bar(places, [v["measured"] for v in values], width, label=label,
                    yerr=[v["error"] or 0 for v in values], capsize=2)  # fmt: skip
    axes[2].set(yscale="log", ylabel="frames / s")
    axes[2].set_xticks(range(3), kinds)
    axes[2].legend(frameon=False, fontsize=8)
    axes[2].set_title("training, five beads", fontsize=10)
    save(figure, "benchmark_learning.png", where)


def bars(axis: Any, names: list[str], values: list[dict[str, Any]]) -> None:
    """Draw measured numbers with their errors."""
    axis.bar(names, [v["measured"] for v in values], yerr=[v["error"] or 0 for v in values],
             capsize=3, color="#0b6e4f", width=0.6)  # fmt: skip


def targets() -> None:
    """Every number with a target: how far beyond it or short of it, as a ratio."""
    rows, verdicts = [], []
    for path in sorted(RESULTS.glob("*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        for one in held["targets"]:
            if one["met"] is None:
                continue
            verdicts.append(one["met"])
            if not one["target"] or not one["measured"]:
                continue  # exactly zero: no ratio
            ratio = one["measured"] / one["target"]
            better = 1 / ratio if one["at_most"] else ratio
            if better > 0:
                rows.append((path.stem, one["name"], better, one["met"]))
    scripts = list(dict.fromkeys(row[0] for row in rows))
    figure, axis = plt.subplots(figsize=(9.5, 0.27 * len(scripts) + 1.2), layout="constrained")
    for script, _, better, met in rows:
        colour = "#0b6e4f" if met else "#c0392b"
        shown = min(max(better, 1e-1), 1e3)
        axis.plot(shown, scripts.index(script), "o" if met else "X", ms=6, color=colour, alpha=0.7)
    axis.axvline(1, color="black", lw=0.8)
    axis.set_yticks(range(len(scripts)), scripts, fontsize=8)
    axis.set_xscale("log")
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("measured against target: right of 1 is better (ends of the axis: or beyond)")
    met, missed = verdicts.count(True), verdicts.count(False)
    axis.set_title(f"{met} targets met (dots), {missed} missed (crosses); those of exactly zero "
                   "have no ratio and no sign here", fontsize=10)  # fmt: skip
    save(figure, "benchmark_targets.png", "")


def save(figure: Any, name: str, where: str) -> None:
    """Write a figure with the hardware under it, in few colours: the repository stays small."""
    if where:
        figure.supxlabel(textwrap.shorten(where, 90), fontsize=8, color="#555555")
    page = io.BytesIO()
    figure.savefig(page, dpi=120)
    plt.close(figure)
    image = Image.open(page).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


if __name__ == "__main__":
    engine()
    learning()
    targets()
