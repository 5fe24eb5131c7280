"""Training: recovers an exact PMF, is reproducible, resumes where it stopped."""

from dataclasses import replace

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.training_step import Training
from openmm_cgml.units import thermal_energy


def small(dataset: cgml.CGDataset, seed: int = 0) -> cgml.SumPMF:
    network = cgml.PMFS["cgnet"](dataset, width=16, depth=2, seed=seed)
    return cgml.SumPMF(cgml.fit_prior(dataset), network)


@pytest.fixture(scope="module")
def parts(dataset) -> tuple[cgml.CGDataset, cgml.CGDataset]:
    return dataset.select(slice(600)).split(0.8, blocks=3)


def weights_of(result) -> torch.Tensor:
    return torch.cat([p.detach().ravel() for p in result.pmf.parameters()])


def test_same_seed_same_result_other_seed_other_result(parts) -> None:
    first, same, other = (
        weights_of(cgml.fit(small(parts[0]), *parts, epochs=2, batch_size=64, seed=s))
        for s in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_loss_falls_and_the_best_epoch_is_kept(parts) -> None:
    result = cgml.fit(small(parts[0]), *parts, epochs=6, batch_size=32)
    errors = [h["valid_rmse"] for h in result.history]
    assert len(errors) == 6 and min(errors) < 0.99 * errors[0]
    positions = torch.tensor(parts[1].positions)
    forces = energy_and_forces(result.pmf, positions)[1].numpy()
    rmse = np.sqrt(((forces - parts[1].forces) ** 2).mean())
    assert rmse == pytest.approx(min(errors), rel=1e-4)
    assert result.noise.residual == pytest.approx(rmse, rel=1e-4)
    assert result.history[-1]["learning_rate"] < 0.02 * 1e-3 + 1e-9


class Stop(Exception):
    """Stands for a killed process."""


def test_a_stopped_training_resumes_to_the_same_weights(parts, tmp_path, monkeypatch) -> None:
    """Killed in its third epoch of four, then continued: bit-identical to uninterrupted."""
    settings = {"epochs": 4, "batch_size": 64, "seed": 3}
    whole = cgml.fit(small(parts[0]), *parts, **settings)
    original = Training.training_step

    def dies(self, batch, index):
        if self.current_epoch == 2 and index == 3:
            raise Stop
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", dies)
        with pytest.raises(Stop):
            cgml.fit(small(parts[0]), *parts, **settings, directory=tmp_path)
    assert (tmp_path / "last.ckpt").exists()
    resumed = cgml.fit(small(parts[0]), *parts, **settings, directory=tmp_path)
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert resumed.history == whole.history
    fresh = cgml.fit(small(parts[0]), *parts, **settings, directory=tmp_path, resume=False)
    assert torch.equal(weights_of(whole), weights_of(fresh))


def test_checkpoints_of_another_training_are_refused(parts, tmp_path) -> None:
    train, valid = parts
    cgml.fit(small(train), train, valid, epochs=1, directory=tmp_path)
    with pytest.raises(cgml.InputError, match="another training .other epochs, seed"):
        cgml.fit(small(train), train, valid, epochs=2, seed=1, directory=tmp_path)
    with pytest.raises(cgml.InputError, match="other training data, validation data"):
        cgml.fit(small(train), valid, train, epochs=1, directory=tmp_path)
    with pytest.raises(cgml.InputError, match="other PMF"):
        wide = cgml.PMFS["cgnet"](train, width=24, depth=2)
        cgml.fit(wide, train, valid, epochs=1, directory=tmp_path)
    again = cgml.fit(small(train), train, valid, epochs=2, directory=tmp_path, resume=False)
    assert len(again.history) == 2


def test_ctrl_c_is_a_keyboard_interrupt_and_the_handler_is_put_back(
    parts, tmp_path, monkeypatch
) -> None:
    import signal

    def interrupted(self, batch, index):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Training, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cgml.fit(small(parts[0]), *parts, epochs=2, directory=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_exact_pmf_is_learned_within_the_noise() -> None:
    """Forces of a known PMF plus noise: the network finds the PMF under the noise."""
    rng = np.random.default_rng(4)
    frames, noise = 6000, 60.0
    names = ("A", "B", "C", "D")
    topology = cgml.CGTopology(
        names, names, ("M",) * 4, (1,) * 4, ("A",) * 4, ((0, 1), (1, 2), (2, 3)), (12.0,) * 4
    )
    shape = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.33, 0.15, 0.1]])
    positions = shape + 0.02 * rng.standard_normal((frames, 4, 3))
    x = torch.tensor(positions, requires_grad=True)
    separation = (x[:, 0] - x[:, 3]).norm(dim=1)
    bonds = (x[:, 1:] - x[:, :-1]).norm(dim=2)
    energy = (4000 * (bonds - 0.15) ** 2).sum(1) + 15 * torch.cos(20 * separation)
    exact = -torch.autograd.grad(energy.sum(), x)[0].numpy()
    noisy = exact + noise * rng.standard_normal(exact.shape)
    dataset = cgml.CGDataset(positions, topology, 300.0, forces=noisy)
    train, valid = dataset.split(0.9)
    pmf = cgml.PMFS["cgnet"](train, width=32, depth=2)
    result = cgml.fit(pmf, train, valid, epochs=15, batch_size=64)
    learned = energy_and_forces(result.pmf, torch.tensor(valid.positions).float())[1].numpy()
    held_out = np.concatenate([np.arange(k * 600 + 540, (k + 1) * 600) for k in range(10)])
    error = np.sqrt(((learned - exact[held_out]) ** 2).mean())
    assert error < 0.15 * np.sqrt((exact**2).mean())
    # The report's numbers: residual = floor + error, floor = the noise that was put in.
    assert result.noise.floor == pytest.approx(noise, rel=0.05)
    assert result.noise.residual == pytest.approx(np.hypot(noise, error), rel=0.05)


def test_weights_and_kt_scale_are_right(dataset) -> None:
    network = cgml.PMFS["cgnet"](dataset)
    assert network.energy_scale == pytest.approx(thermal_energy(300))


def test_what_cannot_be_trained_is_refused(parts) -> None:
    train, valid = parts
    pmf = small(train)
    with pytest.raises(cgml.InputError, match="no forces"):
        cgml.fit(pmf, replace(train, forces=None), valid, epochs=1)
    with pytest.raises(cgml.InputError, match="no trainable parameters"):
        cgml.fit(cgml.fit_prior(train), train, valid, epochs=1)
    with pytest.raises(cgml.InputError, match="unknown loss 'force_machting'.*force_matching"):
        cgml.fit(pmf, train, valid, epochs=1, loss="force_machting")
    with pytest.raises(cgml.InputError, match="at least 1"):
        cgml.fit(pmf, train, valid, epochs=0)
    with pytest.raises(cgml.InputError, match="not finite"):
        cgml.fit(pmf, train, valid, epochs=2, learning_rate=1e12)


def test_frames_of_several_temperatures_are_refused(parts) -> None:
    train, valid = parts
    mixed = replace(train, mapping=train.mapping | {"reference": {"remd_all_rungs": True}})
    with pytest.raises(cgml.InputError, match="the training dataset holds frames of several temp"):
        cgml.fit(small(train), mixed, valid, epochs=1)
