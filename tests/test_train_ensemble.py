"""Ensembles: mean and variance of members, in TorchScript too; where the data end."""

import torch  # before openmm

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import ensemble as ensemble_module
from openmm_cgml.ensemble import fit_ensemble, force_uncertainty
from openmm_cgml.extrapolation import ForceSpread
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.ensemble import EnsemblePMF


@pytest.fixture(scope="module")
def members(dataset) -> list[cgml.PMF]:
    prior = cgml.fit_prior(dataset)
    nets = [cgml.PMFS["cgnet"](dataset, width=8, depth=2, seed=s) for s in range(3)]
    return [cgml.SumPMF(prior, net).eval() for net in nets]


@pytest.fixture(scope="module")
def ensemble(members) -> EnsemblePMF:
    return EnsemblePMF(*members).eval()


@pytest.fixture(scope="module")
def positions(dataset) -> torch.Tensor:
    return torch.tensor(dataset.positions[::200])


def test_it_is_the_mean_of_its_members(ensemble, members, positions) -> None:
    each = [energy_and_forces(m, positions) for m in members]
    mean = [torch.stack(values).mean(0) for values in zip(*each, strict=True)]
    for energies, forces in (
        ensemble.energies_and_forces(positions),
        energy_and_forces(ensemble, positions),
    ):
        assert torch.allclose(energies, mean[0], rtol=1e-5)
        assert torch.allclose(forces, mean[1], rtol=1e-4, atol=0.05)
    forces = torch.stack([f for _, f in each]).double().numpy()
    variance = forces.var(axis=0, ddof=1).sum(-1).max(1)
    found = ensemble.force_variance(positions)
    assert found.shape == (len(positions),)
    np.testing.assert_allclose(found, variance, rtol=1e-3)
    same = EnsemblePMF(members[0], members[0])
    assert float(same.force_variance(positions).max()) == 0


def test_a_model_file_keeps_the_spread(ensemble, dataset, positions, tmp_path) -> None:
    cgml.save_model(tmp_path / "ensemble.pt", ensemble, dataset)
    model = cgml.load_model(tmp_path / "ensemble.pt")  # through the list of allowed operators
    energies, forces = model.energy_and_forces(positions.numpy())
    exact = ensemble.energies_and_forces(positions)
    np.testing.assert_allclose(energies, exact[0], rtol=1e-5)
    np.testing.assert_allclose(forces, exact[1], rtol=1e-4, atol=0.05)
    expected = ensemble.force_variance(positions).sqrt()
    for some in (model, ensemble):
        np.testing.assert_allclose(force_uncertainty(some, positions), expected, rtol=1e-3)
    # The first call, and in any size of batch: a run that goes on stores the same.
    first = force_uncertainty(model, positions)
    assert np.array_equal(first, force_uncertainty(model, positions))
    rebuilt = build(model.card["architecture"])
    rebuilt.load_state_dict(ensemble.state_dict())
    assert torch.equal(rebuilt(positions), ensemble(positions))


def test_an_ensemble_within_a_sum_is_found(members, dataset, positions, tmp_path) -> None:
    prior, nets = members[0].terms[0], [member.terms[1] for member in members]
    whole = cgml.SumPMF(prior, EnsemblePMF(*nets)).eval()
    alone = force_uncertainty(EnsemblePMF(*nets).eval(), positions)
    assert np.array_equal(force_uncertainty(whole, positions), alone)
    cgml.save_model(tmp_path / "sum.pt", whole, dataset)
    loaded = cgml.load_model(tmp_path / "sum.pt")
    np.testing.assert_allclose(force_uncertainty(loaded, positions), alone, rtol=1e-3)
    # Of two in one sum the variances add: an upper bound, for each takes its own worst bead.
    both = cgml.SumPMF(EnsemblePMF(*nets), EnsemblePMF(*nets)).eval()
    np.testing.assert_allclose(force_uncertainty(both, positions), np.sqrt(2) * alone, rtol=1e-6)


def test_it_runs_in_openmm(ensemble, dataset, tmp_path) -> None:
    cgml.save_model(tmp_path / "ensemble.pt", ensemble, dataset)
    simulation = cgml.Langevin(tmp_path / "ensemble.pt", dataset, copies=3, timestep=0.001)
    run = simulation.run(tmp_path / "run.h5", steps=20, interval=0.01)
    assert run.finished and np.isfinite(run.positions).all()


def test_members_agree_on_the_data_and_differ_beyond(dataset, tmp_path) -> None:
    """What a monitor needs: a spread that is larger where nothing was trained."""
    train, valid = dataset.select(slice(800)).split(0.8, blocks=2)
    prior = cgml.fit_prior(train)

    def make(seed: int) -> cgml.PMF:
        return cgml.SumPMF(prior, cgml.PMFS["cgnet"](train, width=16, depth=2, seed=seed))

    result = fit_ensemble(
        make, train, valid, members=3, seed=4, epochs=4, batch_size=32, directory=tmp_path / "all"
    )
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [
        "member0",
        "member1",
        "member2",
    ]
    assert isinstance(result.pmf, EnsemblePMF) and len(result.history) == 4
    # The mean of several is no worse than several are on average (Jensen).
    assert result.noise.residual <= np.sqrt(np.mean(np.square(result.metrics["members"]))) + 1e-3
    inside = force_uncertainty(result.pmf, valid.positions)
    centre = valid.positions.mean(1, keepdims=True)
    outside = force_uncertainty(result.pmf, centre + 1.6 * (valid.positions - centre))
    assert np.median(outside) > 2 * np.median(inside)
    # The limit of the monitor.
    seen = force_uncertainty(result.pmf, train.positions)
    record = result.metrics["force_uncertainty"]
    assert record["typical"] == pytest.approx(np.median(seen), rel=1e-6)
    assert record["limit"] == pytest.approx(1.2 * np.quantile(seen, 0.999), rel=1e-6)
    assert (inside > record["limit"]).mean() < 0.01
    cgml.save_model(tmp_path / "model.pt", result)
    model = cgml.load_model(tmp_path / "model.pt")
    assert model.card["training"]["members"]
    assert ForceSpread.of(model.file.module().pmf, model.card).to_dict() == record


def test_a_bootstrap_draws_whole_blocks(dataset, monkeypatch) -> None:
    """Each member sees other frames, in contiguous blocks, some twice; the seed tells which."""
    train, valid = dataset.select(slice(500)).split(0.8, blocks=2)
    seen: list[np.ndarray] = []
    original = ensemble_module.fit

    def noted(pmf, frames, *rest, **settings):
        seen.append(frames.positions)
        return original(pmf, frames, *rest, **settings)

    def make(seed: int) -> cgml.PMF:
        return cgml.PMFS["cgnet"](train, width=4, depth=1, seed=seed)

    monkeypatch.setattr(ensemble_module, "fit", noted)
    for _ in range(2):
        fit_ensemble(make, train, valid, members=2, bootstrap=True, epochs=1)
    numbers = {x.tobytes(): k for k, x in enumerate(train.positions)}
    drawn = [[numbers[x.tobytes()] for x in positions] for positions in seen]
    assert drawn[0] == drawn[2] and drawn[1] == drawn[3] and drawn[0] != drawn[1]
    assert all(len(d) == len(train) == 400 for d in drawn)
    for frames in drawn:
        blocks = np.reshape(frames, (50, 8))
        assert (blocks == blocks[:, :1] + np.arange(8)).all() and (blocks[:, 0] % 8 == 0).all()
        assert len(set(frames)) / 400 == pytest.approx(1 - np.exp(-1), abs=0.12)


def test_what_is_no_ensemble_is_refused(members, positions) -> None:
    with pytest.raises(cgml.InputError, match="at least two"):
        EnsemblePMF(members[0])
    with pytest.raises(cgml.InputError, match="Linear is not a PMF"):
        EnsemblePMF(members[0], torch.nn.Linear(1, 1))
    with pytest.raises(cgml.InputError, match="no ensemble.*fit_ensemble"):
        force_uncertainty(members[0], positions)
    with pytest.raises(cgml.InputError, match="members is 1"):
        fit_ensemble(lambda seed: members[0], None, None, members=1)
