"""The engine beside reweighting: checks, annealing, pooling; exact partition functions."""

from dataclasses import replace

import torch

import numpy as np
import pytest
from handmade import Springs, gaussian_flow, springs_log_z
from test_flow import topology

import openmm_cgml as cgml
from openmm_cgml.boltzmann import propose
from openmm_cgml.rescue import anneal, check_by_dynamics, combine

BACKEND = "python"


class Wells(cgml.PMF):
    """Two beads: springs, and a deep shell of long bonds that no narrow flow draws."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        length = (positions[:, 1] - positions[:, 0]).square().sum(dim=1).add(1e-6).sqrt()
        return 400.0 * length.square() - 110.0 * torch.exp(-110.0 * (length - 0.41).square())

    def arguments(self) -> dict:
        return {}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    top = topology(4)
    flow = gaussian_flow(top, 1.5)
    dataset = cgml.CGDataset(flow.sample(50, seed=1)[0].numpy(), top, 300.0)
    path = tmp_path_factory.mktemp("model") / "springs.pt"
    cgml.save_model(path, Springs(), dataset)
    return cgml.load_model(path)


def exact(flow) -> float:
    return -flow.kt * springs_log_z(gaussian_flow(flow.topology))


def test_annealing_finds_the_partition_function_and_the_ensemble(model) -> None:
    """From a flow 1.8 times as wide, with 2 % of its samples effective."""
    scores, energies = [], []
    for seed in range(4):
        flow = gaussian_flow(model.topology, 1.8)
        samples = propose(flow, 600, seed=seed).weigh(Springs())
        assert samples.report.fraction < 0.1
        found = anneal(
            samples, flow, model, particles=400, steps=40, timestep=0.004, seed=seed,
            backend=BACKEND,
        )  # fmt: skip
        assert found.shares[0] == 0 and found.shares[-1] == 1 and (np.diff(found.shares) > 0).all()
        assert len(found.effective) == len(found.shares) - 1 and found.resampled >= 1
        assert found.samples.report.effective > 150
        scores.append((found.samples.free_energy.value - exact(flow)) / flow.kt)
        mean = found.samples.expectation(found.samples.energies)
        energies.append(mean.value / flow.kt)
    # 400 particles: the error of ln Z of one annealing is about 0.1.
    assert abs(np.mean(scores)) < 0.25
    assert np.mean(energies) == pytest.approx(4.5, abs=0.35)  # nine directions


def test_annealing_refuses_what_makes_no_sense(model) -> None:
    flow = gaussian_flow(model.topology, 1.2)
    samples = propose(flow, 20, seed=1).weigh(Springs())
    with pytest.raises(cgml.InputError, match="2 to 20"):
        anneal(samples, flow, model, particles=21)
    with pytest.raises(cgml.InputError, match="keep is 1"):
        anneal(samples, flow, model, particles=20, keep=1.0)
    with pytest.raises(cgml.CGMLError, match="1 stages lead to"):
        wide = gaussian_flow(model.topology, 3.0)
        anneal(
            propose(wide, 50).weigh(Springs()), wide, model, particles=50, most_stages=1,
            backend=BACKEND,
        )  # fmt: skip


def test_mirror_images_stay_out(model) -> None:
    """Half of the flow's samples: the PMF's Z is then that of the other half."""
    flow = gaussian_flow(model.topology, 1.3)
    proposal = propose(flow, 2000, seed=4)
    mirrored = np.arange(2000) % 2 == 0
    half = replace(proposal, mirrored=mirrored).weigh(Springs())
    whole = proposal.weigh(Springs())
    assert half.free_energy.value - whole.free_energy.value == pytest.approx(
        flow.kt * np.log(2), abs=4 * half.free_energy.error
    )
    found = anneal(half, flow, model, particles=300, steps=20, backend=BACKEND)
    assert abs(found.samples.free_energy.value - half.free_energy.value) < 1.2
    with pytest.raises(cgml.InputError, match="2 to 1000"):
        anneal(half, flow, model, particles=1001)


def test_a_run_and_the_flow_together_know_more(model, tmp_path) -> None:
    """MBAR over a poor flow and a replica exchange: the exact free energy, smaller errors."""
    flow = gaussian_flow(model.topology, 1.5)
    samples = propose(flow, 1500, seed=3).weigh(Springs())
    simulation = cgml.ReplicaExchange(
        model, gaussian_flow(model.topology).sample(1, seed=1)[0][0].numpy(), [300.0, 400.0],
        copies=20, timestep=0.005, friction=5.0, exchange_interval=0.05, seed=1, backend=BACKEND,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", ns=0.008, interval=0.2, progress=False)
    both = combine(samples, flow, run.after(1.0), Springs())
    assert len(both) > len(samples) + 200
    assert abs(both.free_energy.value - exact(flow)) < 4 * both.free_energy.error < 0.4
    assert 0 < both.free_energy.error < samples.free_energy.error
    assert both.report.effective > 2 * samples.report.effective
    mean = both.expectation(both.energies)
    assert abs(mean.value - 4.5 * flow.kt) < 5 * mean.error
    assert np.allclose(both.positions.mean(1), 0, atol=1e-6)


def test_dynamics_agree_with_good_weights(model) -> None:
    flow = gaussian_flow(model.topology, 1.2)
    samples = propose(flow, 4000, seed=5).weigh(Springs())
    check = check_by_dynamics(
        samples, flow, model, copies=300, ps=2.0, timestep=0.005, backend=BACKEND
    )
    assert not check.suspicious and "nothing speaks against" in check.text(), check


def test_dynamics_find_a_basin_that_the_weights_cannot_see(tmp_path) -> None:
    flow = gaussian_flow(topology(2))
    dataset = cgml.CGDataset(flow.sample(50, seed=1)[0].numpy(), flow.topology, 300.0)
    cgml.save_model(tmp_path / "wells.pt", Wells(), dataset)
    samples = propose(flow, 500, seed=2).weigh(cgml.load_model(tmp_path / "wells.pt"))
    assert samples.report.fraction > 0.5
    check = check_by_dynamics(
        samples, flow, tmp_path / "wells.pt", copies=100, ps=60.0, backend=BACKEND
    )
    assert check.suspicious and check.outside > 0.05
    assert "where the flow does not draw" in check.text()
