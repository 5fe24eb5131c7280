"""Objectives on systems whose minimum is known, and the noise floor where the noise is."""

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.losses import (
    Batch,
    CustomLoss,
    Denoising,
    ForceMatching,
    Mixture,
    Terms,
    estimate_force_noise,
    force_matching,
    objective_of,
)
from openmm_cgml.relative_entropy import RelativeEntropy
from openmm_cgml.units import thermal_energy


def test_force_matching_is_the_weighted_mean_square_per_component() -> None:
    predicted, target = torch.zeros(2, 3, 3), torch.ones(2, 3, 3)
    target[1] = 3.0
    assert force_matching(predicted, target).item() == pytest.approx(5.0)
    assert force_matching(predicted, target, torch.tensor([3.0, 1.0])).item() == pytest.approx(3.0)
    with pytest.raises(cgml.InputError, match="shapes"):
        force_matching(predicted, target[:, :2])


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, float]:
    """Positions of four beads in random poses; noise of known size in the body frame."""
    rng = np.random.default_rng(11)
    frames, noise = 4000, 50.0
    shape = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.3, 0.15, 0.12]])
    body = shape + 0.01 * rng.standard_normal((frames, 4, 3))
    rotations = np.linalg.qr(rng.standard_normal((frames, 3, 3)))[0]
    rotations *= np.linalg.det(rotations)[:, None, None]
    positions = np.einsum("fij,fbj->fbi", rotations, body)
    return positions, rotations, noise * rng.standard_normal((frames, 4, 3))


def test_noise_floor_of_a_perfect_model_is_its_residual(noisy) -> None:
    positions, _, noise = noisy
    found = estimate_force_noise(positions, noise)
    assert found.residual == pytest.approx(50, rel=0.02)
    assert abs(found.floor - found.residual) < 4 * found.floor_error + 0.1


def test_smooth_model_error_is_told_from_noise_in_any_pose(noisy) -> None:
    """A constant error in the body frame, turned with the molecule, is found in full."""
    positions, rotations, noise = noisy
    error = 30.0 * np.array([[1, 0, 0], [-1, 1, 0], [0, -1, 1], [0, 0, -1.0]])
    rms = float(np.sqrt((error**2).mean()))
    found = estimate_force_noise(positions, noise + np.einsum("fij,bj->fbi", rotations, error))
    assert found.model_error == pytest.approx(rms, rel=0.15)
    assert found.floor == pytest.approx(50, rel=0.03)
    assert found.floor < found.residual - 4 * found.floor_error


def test_floor_is_never_above_the_residual_and_few_frames_do_not_fail(noisy) -> None:
    positions, _, noise = noisy
    for frames in (1, 5, 30):
        found = estimate_force_noise(positions[:frames], noise[:frames])
        assert found.floor <= found.residual + 1e-9


# ---------------------------------------------------------------- objectives

KT = float(thermal_energy(300.0))


class Spring(cgml.PMF):
    """k/2 |R1 - R2|^2 of two beads: every linear answer of a Gaussian is exact."""

    def __init__(self, stiffness: float = 100.0) -> None:
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.tensor(float(stiffness)))

    def forward(self, positions, box_vectors=None):
        return 0.5 * self.stiffness * (positions[:, 1] - positions[:, 0]).square().sum(-1)

    def arguments(self) -> dict:
        return {}


class Push(cgml.PMF):
    """A fixed spring of 30 kJ/mol/nm^2."""

    def forward(self, positions, box_vectors=None):
        return 15.0 * (positions[:, 1] - positions[:, 0]).square().sum(-1)

    def arguments(self) -> dict:
        return {}


def pairs_of(stiffness: float, count: int, seed: int, noise: float = 0.0) -> Batch:
    """Two beads with a spring between them, in equilibrium, noise in the forces."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(count, 1, 3, generator=generator)
    step = torch.randn(count, 1, 3, generator=generator) * (KT / stiffness) ** 0.5
    forces = stiffness * torch.cat([step, -step], dim=1)
    random = torch.randn(count, 2, 3, generator=generator) * noise
    return Batch(
        torch.cat([middle - step / 2, middle + step / 2], 1), KT, forces + random, seed=seed
    )


def minimum(objective, batch: Batch, *others: cgml.PMF) -> float:
    """The stiffness at which a loss that is quadratic in it has no slope: two slopes tell it."""
    slopes = []
    for stiffness in (50.0, 150.0):
        spring = Spring(stiffness)
        objective(Terms(cgml.SumPMF(spring, *others)), batch).backward()
        slopes.append(float(spring.stiffness.grad))
    return 50.0 + 100.0 * slopes[0] / (slopes[0] - slopes[1])


def test_force_matching_takes_the_fixed_terms_off() -> None:
    batch = pairs_of(100, 2000, 1, noise=5.0)
    assert minimum(ForceMatching(), batch) == pytest.approx(100, rel=0.01)
    fixed = Terms(cgml.SumPMF(Spring(), Push())).fixed_forces(batch.positions, None)
    rest = Batch(batch.positions, KT, batch.forces, fixed)
    assert minimum(ForceMatching(), rest, Push()) == pytest.approx(70, rel=0.02)
    prepared = ForceMatching().prepared([(Terms(Spring()), rest)])
    rms = float((batch.forces - fixed).square().mean() ** 0.5)
    assert prepared.scale == pytest.approx(rms, rel=1e-5)
    assert prepared.residual(4.0) == pytest.approx(2 * rms, rel=1e-5)
    with pytest.raises(cgml.InputError, match="no forces"):
        ForceMatching()(Terms(Spring()), Batch(batch.positions, KT))


def test_weights_count_only_if_asked() -> None:
    """Half the frames are of another spring: with weight zero they are not there."""
    one, other = pairs_of(100, 500, 1), pairs_of(300, 500, 2)
    weights = torch.cat([torch.full((500,), 2.0), torch.zeros(500)])
    both = Batch(
        torch.cat([one.positions, other.positions]), KT, torch.cat([one.forces, other.forces]),
        weights=weights,
    )  # fmt: skip
    assert minimum(ForceMatching(weighted=True), both) == pytest.approx(100, rel=1e-4)
    assert minimum(ForceMatching(), both) > 120
    assert ForceMatching(weighted=True).uses_weights and not ForceMatching().uses_weights


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, None])
def test_denoising_finds_the_smeared_spring(share) -> None:
    """The step has variance kT/k + 2 s^2, so the smeared spring is k / (1 + 2 s^2 k / kT)."""
    stiffness, sigma, batches = 100.0, 0.05, 20
    smeared = stiffness / (1 + 2 * sigma**2 * stiffness / KT)
    assert smeared < 0.9 * stiffness
    found = []
    for seed in range(batches):
        batch = pairs_of(stiffness, 4000, seed)
        objective = Denoising(sigma=sigma, noise_share=share)
        objective = objective.prepared([(Terms(Spring()), batch)])
        found.append(minimum(objective, batch))
    error = np.std(found, ddof=1) / batches**0.5
    assert abs(np.mean(found) - smeared) < 4 * error  # z-score
    assert error < 0.02 * smeared
    fixed = minimum(objective, batch, Push())
    assert fixed == pytest.approx(found[-1] - 30, rel=1e-3)  # smeared forces of the prior off


def test_the_share_of_least_variance_is_chosen() -> None:
    """Forces of other frames' noise: the target's variance is least near the share taken."""
    batch = pairs_of(100, 20000, 3, noise=40.0)
    terms, sigma = Terms(Spring(100.0)), 0.05
    auto = Denoising(sigma=sigma).prepared([(terms, batch)])
    square, other = float(batch.forces.square().mean()), (KT / sigma) ** 2
    assert auto.noise_share == pytest.approx(square / (square + other), rel=1e-5)
    losses = {
        share: float(Denoising(sigma=sigma, noise_share=share)(terms, batch, False))
        for share in (0.0, auto.noise_share - 0.15, auto.noise_share, auto.noise_share + 0.15, 1.0)
    }
    assert min(losses, key=losses.get) == auto.noise_share
    bare = Denoising(sigma=sigma).prepared([(terms, Batch(batch.positions, KT))])
    assert bare.noise_share == 1.0 and not bare.needs_forces


def test_noise_is_of_the_batch_and_new_in_each() -> None:
    batch = pairs_of(100, 50, 3)
    objective, terms = Denoising(sigma=0.01, noise_share=1.0), Terms(Spring())
    positions, target = objective.target(terms, batch)
    assert torch.allclose(target, -(KT / 0.01**2) * (positions - batch.positions), rtol=1e-2)
    assert torch.equal(positions, objective.target(terms, batch)[0])
    assert not torch.equal(positions, objective.target(terms, pairs_of(100, 50, 4))[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Denoising(), "width of the noise"),
        (lambda: Denoising(sigma=-1.0), "noise"),
        (lambda: Denoising(sigma=0.1, noise_share=1.5), "noise_share is 1.5"),
        (lambda: Mixture([]), "no objectives"),
        (lambda: Mixture([("force_matching", 0.0)]), "force_matching has weight 0"),
        (lambda: RelativeEntropy(), "needs samples"),
        (lambda: RelativeEntropy(lambda p: None, refresh=0), "refresh is 0"),
        (lambda: objective_of(lambda p, b: 0), "goes into CustomLoss"),
        (lambda: objective_of("denoise"), "did you mean 'denoising'"),
    ],
)
def test_objectives_that_make_no_sense(make, said) -> None:
    with pytest.raises(cgml.InputError, match=said):
        make()


def exact_sampler(count: int):
    """Samples of a `Spring` with antithetic steps of exact variance: no statistical error."""

    def sample(pmf: cgml.PMF) -> torch.Tensor:
        stiffness = max(float(next(pmf.parameters()).detach()), 1.0)
        batch = pairs_of(stiffness, count, 5)
        step = batch.positions[:, 1] - batch.positions[:, 0]
        step = step * (3 * KT / stiffness / step.square().sum(-1).mean()) ** 0.5
        return torch.stack([torch.zeros_like(step), step], dim=1)

    return sample


def test_relative_entropy_has_the_gradient_of_its_definition() -> None:
    """Of Gaussians S is known: S = 3/2 (k / k0 - 1 - ln k / k0), dS/dk = 3/2 (1/k0 - 1/k)."""
    batch = pairs_of(100, 4000, 1)
    step = (batch.positions[:, 1] - batch.positions[:, 0]).square().sum(-1).mean()
    true = float(3 * KT / step)  # the stiffness that these frames show
    for stiffness in (40.0, 100.0, 250.0):
        spring = Spring(stiffness)
        RelativeEntropy(exact_sampler(500))(Terms(spring), batch).backward()
        exact = 1.5 * (1 / true - 1 / stiffness)
        assert float(spring.stiffness.grad) == pytest.approx(exact, rel=1e-3, abs=1e-6)


def test_relative_entropy_trains_without_forces_and_counts_weights(tmp_path) -> None:
    one, other = pairs_of(100, 600, 1), pairs_of(300, 600, 2)
    names = ("A", "B")
    topology = cgml.CGTopology(names, names, ("M",) * 2, (1,) * 2, ("A",) * 2, ((0, 1),), (12.0,) * 2)  # fmt: skip # noqa: E501
    positions = torch.cat([one.positions, other.positions]).numpy()
    data = cgml.CGDataset(positions, topology, 300.0, weights=np.repeat([1.0, 0.0], 600))
    spring, calls = Spring(200.0), []
    sampler = exact_sampler(300)

    def counted(pmf):
        calls.append(pmf)
        return sampler(pmf)

    result = cgml.fit(
        spring, data, data, loss=RelativeEntropy(counted, refresh=3), epochs=30, batch_size=400,
        learning_rate=10.0, directory=tmp_path, checkpoint_steps=1, gradient_clip=None,
    )  # fmt: skip
    step = (one.positions[:, 1] - one.positions[:, 0]).square().sum(-1).mean()
    assert float(spring.stiffness.detach()) == pytest.approx(float(3 * KT / step), rel=0.03)
    assert result.noise is None and "force_rmse" not in result.metrics
    assert set(result.history[0]) == {"epoch", "train_loss", "valid_loss", "learning_rate"}
    assert abs(result.history[-1]["valid_loss"]) < 0.1 < abs(result.history[0]["valid_loss"])
    assert len(calls) == 30 and calls[0] is spring  # every third of 90 steps
    with pytest.raises(cgml.InputError, match=r"shape \(300, 3\)"):
        RelativeEntropy(lambda pmf: sampler(pmf)[:, 0])(Terms(spring), one)
    with pytest.raises(cgml.InputError, match="not finite"):
        RelativeEntropy(lambda pmf: sampler(pmf) * np.nan)(Terms(spring), one)


def test_a_mixture_is_the_weighted_sum() -> None:
    batch, terms = pairs_of(100, 500, 1, noise=5.0), Terms(Spring(60.0))
    parts = [ForceMatching(), Denoising(sigma=0.05)]
    mixture = Mixture([(parts[0], 1.0), (parts[1], 0.25)]).prepared([(terms, batch)])
    alone = [p.prepared([(terms, batch)])(terms, batch) for p in parts]
    assert float(mixture(terms, batch).detach()) == pytest.approx(
        float((alone[0] + 0.25 * alone[1]).detach()), rel=1e-6
    )
    assert mixture.needs_forces and mixture.at_data and mixture.residual(1.0) is None
    entropy = RelativeEntropy(exact_sampler(10))
    both = Mixture([("force_matching", 1), (entropy, 2)])
    assert not both.comparable
    both(terms, Batch(batch.positions, KT, batch.forces))
    other = RelativeEntropy(exact_sampler(10))
    Mixture([("force_matching", 1), (other, 2)]).load_state_dict(both.state_dict())
    assert torch.equal(other._samples[0], entropy._samples[0]) and other._steps == {0: 1}


def test_a_likelihood_of_ones_own() -> None:
    """Minus the log-likelihood of a Gaussian step, normalised by hand: the exact maximum."""
    batch = pairs_of(100, 4000, 1)
    step = (batch.positions[:, 1] - batch.positions[:, 0]).square().sum(-1).mean()

    def likelihood(pmf: cgml.PMF, frames: Batch) -> torch.Tensor:
        return pmf(frames.positions).mean() / frames.kt - 1.5 * torch.log(pmf.stiffness)

    objective = CustomLoss(likelihood, name="likelihood")
    assert objective.describe() == {"name": "likelihood"} and not objective.needs_forces
    spring = Spring(float(3 * KT / step))
    objective(Terms(spring), batch).backward()
    assert abs(float(spring.stiffness.grad)) < 1e-6
    other = Spring(50.0)
    objective(Terms(other), batch).backward()
    assert float(other.stiffness.grad) == pytest.approx(1.5 * (float(step) / 3 / KT - 1 / 50), rel=1e-4)  # fmt: skip # noqa: E501
