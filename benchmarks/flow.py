"""How fast does a flow learn and sample, and what do smooth transforms cost against splines?

Capped alanine on five beads; 20 000 distinct equilibrium frames: those of CGML_DATA or
``../shared/data``, the rest of CGML_MORE (see data_efficiency.py), fewer without it. Each
transform is trained as by default and then for six times as long, with the same frames and seed:
seconds, and how far the shorter training is from the better of the two on the same validation
frames. Then samples with forces, a minute; and forces along a line through a frame, where splines
jump. With CGML_FIGURES the folder of a picture of them.
"""

import json
import os
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.data_efficiency import MORE, PACKAGE, SIZES, frames
from openmm_cgml.flow.transforms import TRANSFORMS

SOURCE = "flow-matching issue"
EPOCHS, LONG, BATCH = 20, 120, 256
SEED = 0


def run(quick: bool) -> Outcome:
    """Train, sample, and walk along a line."""
    torch.set_num_threads(1)
    size = 400 if quick else MORE if os.environ.get("CGML_MORE") else SIZES[-1]
    with resources.as_file(PACKAGE) as files:
        setup = json.loads((files / "quickstart.json").read_text())
        dataset = frames(size, SEED, "basic", False, files, setup)
    train, valid = cgml.CGDataset(
        dataset.positions, dataset.topology, dataset.temperature
    ).split(0.9)  # fmt: skip
    targets: list[Target] = []
    details: dict[str, Any] = {"frames": size}
    flows = {}
    trained("spline", *train.subsample(count=256).split(0.5), True)  # load what training needs
    for transform in TRANSFORMS:
        found, flows[transform] = trained(transform, train, valid, quick)
        found |= sampled(flows[transform], 1000 if quick else 50_000)
        details[transform] = found
        goals = transform == "smooth"  # the default
        targets += [
            Target(f"{transform}: training on {size} frames", "s", 180.0 if goals else None,
                   found["seconds"], source=SOURCE),
            Target(f"{transform}: short of the converged log-likelihood", "nats",
                   0.01 if goals else None, found["gap"], found["gap_error"], source=SOURCE),
            Target(f"{transform}: samples with forces a minute", "1/min",
                   50_000.0 if goals else None, found["samples_a_minute"], at_most=False,
                   source=SOURCE),
        ]  # fmt: skip
    targets += [
        Target("log-likelihood, smooth over spline", "nats", None,
               details["smooth"]["log_likelihood"] - details["spline"]["log_likelihood"]),
        Target("training time, smooth over spline", "", None,
               details["smooth"]["seconds"] / details["spline"]["seconds"]),
    ]  # fmt: skip
    lines = {name: scanned(flow, valid) for name, flow in flows.items()}
    for name, (_, forces) in lines.items():
        # A kink's change over one step stays when steps become finer; a smooth change shrinks.
        jump = float(np.abs(np.diff(forces)).max() / np.ptp(forces))
        targets.append(Target(f"{name}: largest change of the force in one step of 0.05 degrees, "
                              "over its range", "", None, jump))  # fmt: skip
    if os.environ.get("CGML_FIGURES"):
        draw(Path(os.environ["CGML_FIGURES"]) / "flow_forces.png", lines)
    return Outcome(targets, SEED, details)


def trained(
    transform: str, train: cgml.CGDataset, valid: cgml.CGDataset, quick: bool
) -> tuple[dict[str, float], cgml.Flow]:
    """Train for the default time and for much longer; compare on the same frames."""
    logs, seconds, flows = [], [], []
    for epochs in (1, 2) if quick else (EPOCHS, LONG):
        flow = cgml.FLOWS["coupling"](train, transform=transform, seed=SEED)
        begin = time.perf_counter()
        cgml.fit_flow(
            flow, train, valid, epochs=epochs, batch_size=BATCH, seed=SEED, progress=False
        )
        seconds.append(time.perf_counter() - begin)
        with torch.no_grad():
            logs.append(flow.log_prob(torch.as_tensor(valid.positions).double()).numpy())
        flows.append(flow)
    gap = logs[1] - logs[0]
    best = max(logs, key=np.mean)
    found = {
        "seconds": seconds[0],
        "long_seconds": seconds[1],
        "log_likelihood": float(logs[0].mean()),
        "long_log_likelihood": float(logs[1].mean()),
        "gap": float((best - logs[0]).mean()),
        "gap_error": float(gap.std(ddof=1) / len(gap) ** 0.5),
    }
    return found, flows[0]


def sampled(flow: cgml.Flow, count: int) -> dict[str, float]:
    """Time samples with their forces."""
    flow.sample_dataset(500)
    begin = time.perf_counter()
    made = flow.sample_dataset(count, seed=SEED)
    seconds = time.perf_counter() - begin
    return {"samples_a_minute": 60 * len(made) / seconds}


def scanned(flow: cgml.Flow, valid: cgml.CGDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return angles, degrees, and the force along the first torsion, kJ/mol/rad."""
    bonds, angles, torsions = flow.coordinates(  # type: ignore[operator]
        torch.as_tensor(valid.positions[:1]).double()
    )
    turned = torch.linspace(-180, 180, 7201, dtype=torch.float64)
    grid = torsions.repeat(len(turned), 1)
    grid[:, 0] = torch.deg2rad(turned)
    grid.requires_grad_()
    positions = flow.coordinates.inverse(  # type: ignore[union-attr]
        bonds.repeat(len(turned), 1), angles.repeat(len(turned), 1), grid
    )
    (slope,) = torch.autograd.grad(flow.log_prob(positions).sum(), grid)
    return turned.numpy(), flow.kt * slope[:, 0].numpy()


def draw(path: Path, lines: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw the forces, and a part of them enlarged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"smooth": "#0072b2", "spline": "#d55e00"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, (turned, forces) in lines.items():
        left.plot(turned, forces, color=colours[name], lw=1.2, label=name)
        jump = np.abs(np.diff(lines["spline"][1])).argmax()
        near = np.abs(turned - lines["spline"][0][jump]) < 8
        right.plot(turned[near], forces[near], ".-", ms=2.5, lw=0.8, color=colours[name])
    left.set(xlabel="first torsion (degrees)", ylabel="force (kJ/mol/rad)")
    left.legend(frameon=False)
    right.set(xlabel="first torsion (degrees)", title="around the spline's largest jump")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main("flow", __doc__, run)
