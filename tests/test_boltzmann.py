"""Weights of flow samples to the ensembles of PMFs, against exact partition functions."""

import torch

import numpy as np
import pytest
from handmade import Springs, gaussian_flow, springs_log_z
from test_flow import flow_of, frames, topology

import openmm_cgml as cgml
from openmm_cgml.boltzmann import energies_of, mirror_images, propose, systematic
from openmm_cgml.fine_tuning import LogVariance, fine_tune
from openmm_cgml.flow.matching import matching
from openmm_cgml.flow_training import FlowPMF, fit_flow


def test_a_perfect_flow_has_equal_weights_and_the_exact_partition_function() -> None:
    top = topology(5)
    flow = gaussian_flow(top)
    found = propose(flow, 500, seed=1).weigh(Springs())
    assert found.report.fraction == pytest.approx(1.0, abs=1e-6)
    exact = -flow.kt * springs_log_z(flow)
    assert found.free_energy.value == pytest.approx(exact, abs=1e-4)
    assert found.free_energy.converged and found.report.pareto_k < 0.5


def test_weights_of_another_gaussian_are_the_exact_ones() -> None:
    """<w>^2 / <w^2> of a width s is (s sqrt(2 - 1/s^2))^-d for d directions, s > 1."""
    top, width = topology(3), 1.3
    flow = gaussian_flow(top, width)
    proposal = propose(flow, 100_000, seed=2)
    found = proposal.weigh(Springs())
    # d = 6: the integral of p^2 / q over a dimension is s / sqrt(2 - 1 / s^2).
    exact = (width / (2 - 1 / width**2) ** 0.5) ** -6
    assert found.report.fraction == pytest.approx(exact, rel=0.03)
    reference = -flow.kt * springs_log_z(gaussian_flow(top))
    assert abs(found.free_energy.value - reference) < 4 * found.free_energy.error
    energy = found.expectation(found.energies, "kJ/mol")
    assert energy.unit == "kJ/mol"
    assert abs(energy.value - 3 * flow.kt) < 4 * energy.error  # equipartition: 6 directions
    both = found.expectation(np.stack([found.energies, found.energies**2], axis=1))
    assert both[0].value == pytest.approx(energy.value)
    assert abs(both[1].value - 12 * flow.kt**2) < 4 * both[1].error


def test_errors_fall_with_the_root_of_the_number_of_samples() -> None:
    """T3: consistent for any proposal, and the error is B^-1/2."""
    top = topology(4)
    exact = -gaussian_flow(top).kt * springs_log_z(gaussian_flow(top))
    for width in (1.15, 1.4):
        spread = {}
        for count in (200, 3200):
            found = [
                propose(gaussian_flow(top, width), count, seed=s).weigh(Springs()).free_energy
                for s in range(40)
            ]
            scores = np.array([(f.value - exact) / f.error for f in found])
            spread[count] = np.std([f.value for f in found])
            assert np.abs(scores.mean()) < 4 / 40**0.5 + 0.3  # a logarithm is a little biased
        assert 2.5 < spread[200] / spread[3200] < 6.4  # 4, of 40 each


def test_coupling_and_continuous_flows_are_densities_on_one_measure() -> None:
    """Equal log Z of the same PMF from both."""
    dataset = frames(3, 2000)
    pmf = FlowPMF(flow_of(dataset, strength=0.15))
    other = flow_of(dataset, strength=0.1)
    train, valid = other.sample_dataset(2000, explore=0, seed=5).split(0.9)
    continuous = matching(train, width=16, layers=1, heads=4, tolerance=1e-4)
    fit_flow(continuous, train, valid, epochs=10, batch_size=128, progress=False)
    for flow in (other, continuous):
        found = propose(flow, 8000 if flow is other else 300, seed=3).weigh(pmf)
        assert found.report.effective > 30
        # The flow's own PMF has Z = 1.
        assert abs(found.free_energy.value) < 4 * found.free_energy.error
        assert found.free_energy.error < 0.6


def test_held_out_frames_find_what_the_flow_misses() -> None:
    """The ensemble has a shell of long bonds too, where the flow has next to nothing."""
    flow = gaussian_flow(topology(2))
    variance = flow.kt / 800

    class Both(Springs):
        def forward(self, positions, box_vectors=None):
            length = (positions[:, 1] - positions[:, 0]).norm(dim=1)
            shell = -((length - 0.6) ** 2) / (2 * variance)
            return -flow.kt * torch.logaddexp(-super().forward(positions) / flow.kt, shell)

    near, far = flow.sample(500, seed=1)[0], flow.sample(500, seed=2)[0]
    far = far * (0.6 / (far[:, 1] - far[:, 0]).norm(dim=1))[:, None, None]
    frames_of_both = cgml.CGDataset(torch.cat([near, far]).numpy(), topology(2), 300.0)
    proposal = propose(flow, 2000, seed=3, held_out=frames_of_both)
    assert proposal.weigh(Springs()).report.forward == pytest.approx(1.0, abs=1e-6)
    report = proposal.weigh(Both()).report
    assert report.fraction > 0.99 and report.forward < 1e-6
    assert not report.converged and "misses what the frames have" in report.text()


def test_a_broader_proposal_has_exact_weights_too() -> None:
    dataset = frames(5)
    flow, other = flow_of(dataset, strength=0.2), flow_of(dataset, strength=0.15)
    pmf = FlowPMF(other)
    for broad in (0.0, 0.3):
        found = propose(flow, 20_000, seed=4, broad=broad, held_out=dataset).weigh(pmf)
        assert abs(found.free_energy.value) < 4 * found.free_energy.error
        assert found.free_energy.error < 0.2 and found.report.forward > 0.0


def test_clipping_is_told_and_smoothing_is_not_the_default_of_log_z() -> None:
    flow = gaussian_flow(topology(4), 1.3)
    proposal = propose(flow, 5000, seed=1)
    clipped = proposal.weigh(Springs(), clip=0.01)
    assert 0.01 < clipped.report.removed < 0.2
    assert np.isneginf(clipped.log_weights).sum() == 50
    assert clipped.free_energy == proposal.weigh(Springs()).free_energy


def test_free_energy_difference_between_states() -> None:
    flow = gaussian_flow(topology(2), 1.2)
    found = propose(flow, 50_000, seed=6).weigh(Springs())
    bond = np.linalg.norm(found.positions[:, 1] - found.positions[:, 0], axis=1)
    from scipy.stats import maxwell

    scale = (flow.kt / 800) ** 0.5
    below = maxwell.cdf(0.08, scale=scale)
    exact = -flow.kt * np.log((1 - below) / below)
    difference = found.free_energy_difference(bond < 0.08, bond >= 0.08)
    assert abs(difference.value - exact) < 4 * difference.error < 0.5
    with pytest.raises(cgml.InputError, match="states are of 3 samples"):
        found.free_energy_difference(np.ones(3, bool), np.ones(3, bool))
    never = found.free_energy_difference(bond < 0.08, bond > 1e3)
    assert not never.converged and "not converged" in str(never)


def test_the_ensemble_as_a_dataset_and_as_frames() -> None:
    flow = gaussian_flow(topology(3), 1.2)
    found = propose(flow, 4000, seed=7).weigh(Springs())
    dataset = found.dataset()
    assert dataset.weights.mean() == pytest.approx(1.0)
    assert dataset.mapping["boltzmann"]["converged"]
    drawn = energies_of(Springs(), found.resample(4000, seed=1))
    mean = found.expectation(found.energies)
    assert drawn.mean() == pytest.approx(mean.value, abs=4 * mean.error)


def test_systematic_resampling_is_fair() -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    counts = np.bincount(systematic(probabilities, 800, seed=1), minlength=4)
    assert (np.abs(counts - 800 * probabilities) <= 1).all()


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    flow = gaussian_flow(topology(3))
    with pytest.raises(cgml.InputError, match="at least 2"):
        propose(flow, 1)
    with pytest.raises(cgml.InputError, match="broad is 1"):
        propose(flow, 10, broad=1.0)
    with pytest.raises(cgml.InputError, match="no broader density"):
        propose(flow, 10, broad=0.5)
    proposal = propose(flow, 10)
    cgml.save_model(tmp_path / "a.pt", Springs(), frames(4))
    with pytest.raises(cgml.InputError, match="3 beads and the PMF 4"):
        proposal.weigh(cgml.load_model(tmp_path / "a.pt"))
    other = frames(3)
    hot = cgml.CGDataset(other.positions, other.topology, 350.0)
    cgml.save_model(tmp_path / "b.pt", Springs(), hot)
    with pytest.raises(cgml.InputError, match="300 K and the PMF of 350 K"):
        proposal.weigh(cgml.load_model(tmp_path / "b.pt"))

    class Broken(Springs):
        def forward(self, positions, box_vectors=None):
            return super().forward(positions) * float("nan")

    with pytest.raises(cgml.InputError, match="10 of 10 energies of the PMF are nan"):
        proposal.weigh(Broken())


def test_a_model_file_weighs_like_its_pmf(tmp_path) -> None:
    dataset = frames(4)
    pmf = cgml.SumPMF(cgml.fit_prior(dataset), cgml.PMFS["cgnet"](dataset, width=8))
    cgml.save_model(tmp_path / "a.pt", pmf, dataset)
    proposal = propose(flow_of(dataset, strength=0.1), 5000, seed=1)
    one = proposal.weigh(pmf.float()).energies
    other = proposal.weigh(cgml.load_model(tmp_path / "a.pt")).energies
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


# ---------------------------------------------------------------- fine-tuning


def test_log_variance_is_that_of_the_log_weights() -> None:
    dataset = frames(4)
    flow, pmf = flow_of(dataset, strength=0.2), FlowPMF(flow_of(dataset, strength=0.15))
    from openmm_cgml.losses import Batch, Terms

    batch = Batch(torch.tensor(dataset.positions[:4]), flow.kt, seed=3)
    found = LogVariance(pmf, samples=400, largest=1e3)(Terms(FlowPMF(flow)), batch).detach()
    logs = propose(flow, 400, seed=3).weigh(pmf).raw_log_weights
    assert float(found) == pytest.approx(logs.var(ddof=1) / 6, rel=1e-9)
    exact = LogVariance(FlowPMF(flow), samples=50)(Terms(FlowPMF(flow)), batch).detach()
    assert float(exact) < 1e-12


def test_fine_tuning_makes_more_samples_effective() -> None:
    dataset = frames(4)
    pmf = FlowPMF(flow_of(dataset, strength=0.3))
    flow = flow_of(dataset, strength=0.1)
    train, valid = pmf.flow.sample_dataset(1500, explore=0, seed=3).split(0.8)
    before = propose(flow, 4000, seed=1, held_out=valid).weigh(pmf).report
    fine_tune(
        flow, pmf, train, valid, samples=128, epochs=6, batch_size=64, learning_rate=3e-3,
        progress=False,
    )  # fmt: skip
    after = propose(flow, 4000, seed=1, held_out=valid).weigh(pmf).report
    assert after.fraction > 1.5 * before.fraction
    assert after.forward > 1.2 * before.forward
    with pytest.raises(cgml.InputError, match="likelihood_weight is -1"):
        fine_tune(flow, pmf, train, valid, likelihood_weight=-1)
    with pytest.raises(cgml.InputError, match="at least 2"):
        LogVariance(pmf, samples=1)


def test_mirror_images_get_no_weight() -> None:
    """A centre with three bonds, of one sense in the frames, and a planar one, of either."""
    rng = np.random.default_rng(1)
    bonds = ((0, 1), (0, 2), (0, 3), (3, 4), (3, 5))
    ends = np.array([[0, 0, 0], [0.3, 0, 0.1], [0, 0.3, 0.1], [-0.2, -0.2, 0], [-0.5, -0.2, 0],
                     [-0.2, -0.5, 0]])  # fmt: skip
    positions = ends + 0.005 * rng.normal(size=(200, 6, 3))
    top = topology(6, bonds)
    assert not mirror_images(positions, top, positions).any()
    mixed = positions.copy()
    mixed[:12, 0] += np.array([0, 0, 0.2])  # pushed through
    assert mirror_images(mixed, top, positions).tolist() == [True] * 12 + [False] * 188
    assert (mirror_images(mixed, top, mixed) == mirror_images(mixed, top, positions)).all()
    flow = gaussian_flow(top)  # knows no sense
    everything = propose(flow, 300, seed=1)
    assert not everything.mirrored.any()
    one_sense = cgml.CGDataset(positions, top, 300.0)
    half = propose(flow, 3000, seed=1, held_out=one_sense)
    assert 0.4 < half.mirrored.mean() < 0.6
    report = half.weigh(Springs()).report
    assert report.mirrored == half.mirrored.mean() and "mirror images left out" in report.text()
    assert report.effective <= 3000 * (1 - report.mirrored) + 1e-6
