"""Compiled training steps: the same losses and gradients, or the same training without them."""

import logging

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.losses import Batch, Denoising, ForceMatching, Mixture, Terms
from openmm_cgml.pmf.core import PMF, SumPMF
from openmm_cgml.training_compile import CompiledResidual, pays

BOX = 3.0 * torch.eye(3)


class Springs(PMF):
    """Bonded pairs with trainable constants, one of which is never used."""

    def __init__(self, constants=(100.0, 200.0)) -> None:
        super().__init__()
        self.constants = torch.nn.Parameter(torch.tensor(constants))
        self.unused = torch.nn.Parameter(torch.zeros(2))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def arguments(self) -> dict:
        return {}

    def forward(self, positions, box_vectors=None):
        steps = positions[:, 1:] - positions[:, :-1]
        if box_vectors is not None:
            lengths = box_vectors.diagonal()
            steps = steps - lengths * torch.round(steps / lengths)
        return self.frozen * (self.constants * steps.square().sum(-1)).sum(1)


def batch(count: int = 8, box=None, weights: bool = False, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    positions, forces = torch.randn(2, count, 3, 3, generator=draw)
    return Batch(
        positions, 2.5, forces, weights=torch.rand(count, generator=draw) if weights else None,
        box=box, seed=5,
    )  # fmt: skip


def gradients(terms: Terms, objective, *batches: Batch) -> list[torch.Tensor]:
    terms.zero_grad()
    loss = sum(objective(terms, b) for b in batches)
    loss.backward()
    parameters = [p for p in terms.parameters() if p.requires_grad]
    return [loss.detach()] + [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters
    ]


def test_loss_and_gradients_are_those_of_the_eager_step() -> None:
    """In a box, weighted, of two objectives; then with other weights of the PMF, other frames."""
    terms = Terms(SumPMF(Springs(), Springs((50.0, 20.0))))
    objective = Mixture([(ForceMatching(True, scale=3.0), 1.0), (Denoising(0.1, scale=2.0), 0.5)])
    compiled = CompiledResidual(terms.trainable, required=True)
    for seed in (0, 1):
        data = [batch(box=BOX, weights=True, seed=seed)]
        terms.compiled = None
        expected = gradients(terms, objective, *data)
        terms.compiled = compiled
        for a, b in zip(gradients(terms, objective, *data), expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            for p in terms.parameters():
                p.mul_(1.3)
    program = compiled._program
    assert program is not None
    # Other shapes are not what it was compiled for.
    small = [batch(5)]
    given = gradients(terms, objective, *small)
    terms.compiled = None
    expected = gradients(terms, objective, *small)
    assert all(torch.allclose(a, b) for a, b in zip(given, expected, strict=True))
    assert compiled._program is program


def test_what_cannot_be_compiled_is_trained_without(dataset, caplog, monkeypatch) -> None:
    searching = cgml.PMFS["schnet"](dataset, width=4, dense=False, cutoff=0.5)
    parts = dataset.select(slice(60)).split(0.75, blocks=2)
    with pytest.raises(cgml.InputError, match=r"searches for neighbours.*train without compile"):
        cgml.fit(searching, *parts, epochs=1, compile=True)
    assert not pays(searching, 10**9)
    # A machine without a compiler finds out too late for an error.
    monkeypatch.setattr("openmm_cgml.train.pays", lambda pmf, steps: True)
    monkeypatch.setattr(torch._inductor, "compile", lambda *_, **__: 1 / 0)
    with caplog.at_level(logging.WARNING):
        results = [
            cgml.fit(Trained(), *_springs(), epochs=2, compile=compile)
            for compile in (None, False)
        ]
    assert "division by zero; training goes on without" in caplog.text
    losses = [[h["train_rmse"] for h in r.history] for r in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_pays_after_many_steps(dataset) -> None:
    cgnet, schnet = (cgml.PMFS[name](dataset, width=4) for name in ("cgnet", "schnet"))
    assert not pays(schnet, 100) and pays(schnet, 5000)
    assert not pays(SumPMF(cgnet), 5000) and pays(SumPMF(cgnet), 50_000)
    assert not pays(SumPMF(cgnet, schnet), 100) and pays(SumPMF(cgnet, schnet), 5000)


class Trained(Springs):
    """Of one constant, from afar."""

    def __init__(self) -> None:
        super().__init__((10.0, 10.0))


def _springs() -> tuple[cgml.CGDataset, cgml.CGDataset]:
    topology = cgml.CGTopology(
        bead_names=("A",) * 3, bead_types=("A",) * 3, residue_names=("X",) * 3,
        residue_ids=(1, 2, 3), chain_ids=("A",) * 3, bonds=((0, 1), (1, 2)), masses=(1.0,) * 3,
    )  # fmt: skip
    positions = np.random.default_rng(0).normal(size=(80, 3, 3))
    exact = Springs()
    forces = exact.energies_and_forces(torch.tensor(positions))[1].detach().numpy()
    return cgml.CGDataset(positions, topology, forces=forces, temperature=300.0).split(0.75)


def test_training_with_and_without_it_is_the_same() -> None:
    results = [
        cgml.fit(Trained(), *_springs(), epochs=60, batch_size=20, learning_rate=5.0, ema=0.9,
                 compile=compile)
        for compile in (True, False)
    ]  # fmt: skip
    learned = [next(r.pmf.parameters()).detach() for r in results]
    assert torch.allclose(*learned, rtol=1e-4)
    assert torch.allclose(learned[0], torch.tensor([100.0, 200.0]), rtol=0.02)
