"""How many frames a second does training take in, and how long until a network is good?

`fit`, as it is and with compiled steps, against the loop that one would write first: the same
network and batches of 256, Adam, forces by autograd through every directed edge, sums by
index_add. CPU seconds, one thread; Lightning, clipping, schedule and checkpoints are in ours,
validation in neither. Then the time until the validation error is 4 % above the noise floor.
"""

import json
import resource
import time
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch  # before openmm
from torch import Tensor, nn

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.networks import NETWORKS, PACKAGE, peptide
from openmm_cgml.losses import ForceMatching
from openmm_cgml.pmf.painn import PaiNN
from openmm_cgml.pmf.schnet import SchNet

ISSUE = "networks issue: at least twice as fast as a straightforward loop"
BATCH, SEED = 256, 0
GOAL = 130.0  # kJ/mol/nm; the noise floor is 125


def run(quick: bool) -> Outcome:
    """Time each network."""
    torch.set_num_threads(1)
    with resources.as_file(PACKAGE) as files:
        setup = json.loads((files / "quickstart.json").read_text())
        dataset = peptide(files, setup, 2000 if quick else None)
    train, valid = dataset.split(0.9)
    few = train.subsample(count=512 if quick else 5120)
    rounds = 2 if quick else 4
    targets = []
    for name, (settings, epochs) in NETWORKS.items():

        def make(name: str = name, settings: dict[str, Any] = settings) -> cgml.PMF:
            return cgml.PMFS[name](train, seed=SEED, **settings)

        few_valid = valid.subsample(count=64)
        plain, eager, compiled, seconds = [], [], [], []
        for _ in range(rounds):  # in turn
            plain.append(plain_speed(make(), few))
            eager.append(fit_speed(make(), few, few_valid, False)[0])
            if quick and name != "cgnet":  # compiling takes a minute
                continue
            speed, once = fit_speed(make(), few, few_valid, True)
            compiled.append(speed)
            seconds.append(once)
        targets += [
            Target(f"{name}: frames, plain loop", "1/s", None, *_median(plain)),
            Target(f"{name}: frames", "1/s", None, *_median(eager)),
        ]
        if compiled:
            ratio = np.array(compiled) / np.array(plain)
            targets += [
                Target(f"{name}: frames, compiled", "1/s", None, *_median(compiled)),
                Target(f"{name}: compiled over the plain loop", "", 2.0, *_median(ratio),
                       at_most=False, source=ISSUE),
                Target(f"{name}: compiling, the first time", "s", None, seconds[0]),
            ]  # fmt: skip
        pmf = cgml.SumPMF(cgml.fit_prior(train), make())
        clock = spent()
        result = cgml.fit(pmf, train, valid, epochs=2 if quick else epochs, progress=False)
        total = spent() - clock
        errors = [record["valid_rmse"] for record in result.history]
        reached = next((k + 1 for k, e in enumerate(errors) if e <= GOAL), None)
        share = float("nan") if reached is None else reached / len(errors)
        targets += [
            Target(f"{name}: {len(errors)} epochs", "s", None, total),
            Target(f"{name}: validation RMSE then", "kJ/mol/nm", None, min(errors)),
            Target(f"{name}: time to RMSE {GOAL:g} kJ/mol/nm", "s", None, total * share),
        ]
    return Outcome(targets, SEED)


@dataclass(frozen=True)
class Timed(ForceMatching):
    """Force matching that notes when each batch comes."""

    times: list[float] = field(default_factory=list)

    def __call__(self, terms: Any, batch: Any, differentiable: bool = True) -> Tensor:
        """Return the loss."""
        if differentiable:
            self.times.append(spent())
        return super().__call__(terms, batch, differentiable)


def fit_speed(
    pmf: cgml.PMF, train: cgml.CGDataset, valid: cgml.CGDataset, compiled: bool
) -> tuple[float, float]:
    """Return frames a CPU second of `fit`, and how long the first batch took."""
    loss = Timed()
    cgml.fit(
        pmf, train, valid, loss=loss, epochs=4, batch_size=BATCH, compile=compiled, progress=False
    )
    times, first = np.array(loss.times), len(loss.times) // 4
    return BATCH * (len(times) - 1 - first) / (times[-1] - times[first]), times[1] - times[0]


def spent() -> float:
    """Return the CPU seconds of this process and of the compilers that it started."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(p.ru_utime + p.ru_stime for p in parts)


def plain_speed(pmf: cgml.PMF, train: cgml.CGDataset) -> float:
    """Return frames a CPU second of the plain loop."""
    network = PLAIN[type(pmf)](pmf) if type(pmf) in PLAIN else pmf
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    positions = torch.as_tensor(train.positions, dtype=torch.float32)
    target = torch.as_tensor(train.forces, dtype=torch.float32)
    scale = target.square().mean().sqrt()

    def step(batch: Tensor) -> None:
        x = positions[batch].requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        loss = ((gradient + target[batch]) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(SEED))
    step(order[:BATCH])
    clock = time.process_time()
    for batch in order.split(BATCH):
        step(batch)
    return len(positions) / (time.process_time() - clock)


class PlainSchNet(nn.Module):
    """The same SchNet, edge by edge."""

    def __init__(self, network: SchNet) -> None:
        super().__init__()
        self.network = network
        beads = torch.arange(network.beads)
        grid = torch.cartesian_prod(beads, beads)
        self.to, self.of = grid[grid[:, 0] != grid[:, 1]].unbind(1)

    def edges(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances and directions of all directed edges."""
        steps = positions[:, self.of] - positions[:, self.to]
        distances = steps.norm(dim=-1)
        return distances, steps / distances.unsqueeze(-1)

    def summed(self, messages: Tensor) -> Tensor:
        """Add messages up at their beads."""
        empty = messages.new_zeros(len(messages), self.network.beads, *messages.shape[2:])
        return empty.index_add(1, self.to, messages)

    def forward(self, positions: Tensor) -> Tensor:
        """Return energies."""
        net = self.network
        distances, _ = self.edges(positions)
        states = net.embedding(net.types).expand(len(positions), -1, -1)
        for radial, block in zip(net.radial, net.interactions, strict=True):
            sent = block.before(states)[:, self.of] * radial(distances)
            states = states + block.after(self.summed(sent))
        return net.energy_scale * net.output(states).sum((1, 2))


class PlainPaiNN(PlainSchNet):
    """The same PaiNN, edge by edge."""

    def forward(self, positions: Tensor) -> Tensor:
        """Return energies."""
        net = self.network
        distances, directions = self.edges(positions)
        scalars = net.embedding(net.types).expand(len(positions), -1, -1)
        vectors = scalars.new_zeros(*scalars.shape[:2], 3, scalars.shape[2])
        for radial, block in zip(net.radial, net.blocks, strict=True):
            sent = block.send(scalars)[:, self.of] * radial(distances)
            new, along, stay = sent.chunk(3, dim=-1)
            moved = directions.unsqueeze(-1) * along.unsqueeze(2)
            moved = moved + vectors[:, self.of] * stay.unsqueeze(2)
            scalars = scalars + self.summed(new)
            vectors = vectors + self.summed(moved)
            scalars, vectors = block(scalars, vectors)
        return net.energy_scale * net.output(scalars).sum((1, 2))


PLAIN: dict[type, Any] = {SchNet: PlainSchNet, PaiNN: PlainPaiNN}


def _median(values: Any) -> tuple[float, float]:
    return float(np.median(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main("training", __doc__, run)
