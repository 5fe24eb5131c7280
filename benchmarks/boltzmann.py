"""How many weighted samples a second, and how many effective ones, from which proposal?

Capped alanine, core with C-beta (6 beads): the coupling flow, the continuous flow, and replica
exchange of the same PMF in the engine, in one run on one thread. Samples come with exact
densities and weights. Replica exchange is worth its effective samples of the slowest torsion at
300 K, as the engine's own estimate has it, over all CPU time of the ladder after its first fifth.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch  # before openmm

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.reweighting import mapped
from openmm_cgml.boltzmann import propose
from openmm_cgml.sampling import effective_samples

ISSUE = "Boltzmann-generators issue"
SEED = 0


def run(quick: bool) -> Outcome:
    """Train once, then time."""
    torch.set_num_threads(1)
    frames = mapped("core_beta", "forces", forces=True, quick=quick)
    train, valid = frames.split(0.9)
    pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=128, depth=3))
    result = cgml.fit(
        pmf, train, valid, epochs=1 if quick else 60, learning_rate=2e-3, ema=0.999,
        progress=False,
    )  # fmt: skip
    parts = mapped("core_beta", "equilibrium", forces=False, quick=quick).split(0.9)
    details: dict[str, Any] = {}
    rates: dict[str, float] = {}
    targets: list[Target] = []
    settings = {
        "coupling": {"epochs": 1 if quick else 40, "batch_size": 128},
        "matching": {"epochs": 1 if quick else 150, "batch_size": 256, "ema": 0.999},
    }
    counts = {"coupling": 2000 if quick else 50_000, "matching": 16 if quick else 2048}
    for kind, chosen in settings.items():
        started = time.perf_counter()
        own = {"width": 16, "layers": 1} if quick and kind == "matching" else {}
        flow = cgml.fit_flow(
            cgml.FLOWS[kind](parts[0], **own), *parts, progress=False, **chosen
        ).pmf.flow
        trained = time.perf_counter() - started
        if kind == "matching":
            flow.float()  # as fast as it goes; densities stay right to some 1e-4 nats
            if quick:
                flow.tolerance = 1e-3
        started = time.perf_counter()
        weighted = propose(flow, counts[kind], seed=SEED).weigh(result.pmf)
        seconds = time.perf_counter() - started
        report = weighted.report
        rates[kind] = report.effective / seconds
        targets += [
            Target(f"{kind}: samples with weights a second", "1/s", None,
                   counts[kind] / seconds, at_most=False),
            Target(f"{kind}: effective samples a second", "1/s", None, rates[kind],
                   at_most=False),
            Target(f"{kind}: effective share", "", None, report.fraction, at_most=False),
            Target(f"{kind}: -kT ln Z", "kJ/mol", None, weighted.free_energy.value,
                   weighted.free_energy.error),
        ]  # fmt: skip
        details[kind] = {"training_seconds": trained, "parameters": sum(
            p.numel() for p in flow.parameters()), **report.record()}  # fmt: skip
    seconds, effective = replica_exchange(result, parts[0], quick)
    rates["replica exchange"] = effective / seconds
    details["replica exchange"] = {"seconds": seconds, "effective": effective}
    targets += [
        Target("replica exchange: effective samples a second", "1/s", None,
               rates["replica exchange"], at_most=False),
        Target("effective samples a second: coupling over continuous flow", "", None,
               rates["coupling"] / rates["matching"], at_most=False),
        Target("effective samples a second: coupling flow over replica exchange", "", None,
               rates["coupling"] / rates["replica exchange"], at_most=False),
    ]  # fmt: skip
    first, second = (t for t in targets if t.name.endswith("ln Z"))
    error = ((first.error or 0) ** 2 + (second.error or 0) ** 2) ** 0.5
    targets.append(
        Target("-kT ln Z: |z| between the flows", "", 4.0,
               abs(first.measured - second.measured) / error, source=ISSUE)
    )  # fmt: skip
    return Outcome(targets, SEED, details)


def replica_exchange(result: Any, start: cgml.CGDataset, quick: bool) -> tuple[float, float]:
    """Return CPU seconds and effective samples at 300 K, both after the first fifth."""
    ps = 1.0 if quick else 150.0
    with tempfile.TemporaryDirectory() as folder:
        cgml.save_model(Path(folder) / "model.pt", result)
        simulation = cgml.ReplicaExchange(
            Path(folder) / "model.pt", start.positions[0].astype(float),
            cgml.ladder(300, 1000, 4), copies=16 if quick else 64, exchange_interval=0.1,
            timestep=0.004, friction=5.0, seed=SEED, backend="python" if quick else None,
        )  # fmt: skip
        found = simulation.run(Path(folder) / "run.h5", ns=ps / 1000, interval=0.2, progress=False)
    steps = simulation.copies * ps / 0.004
    seconds = steps / float(found.info["replica_steps_per_second"])
    kept = found.after(ps / 5).at_temperature(300)
    return 0.8 * seconds, float(effective_samples(kept) or 0.0)


if __name__ == "__main__":
    main("boltzmann", __doc__, run)
