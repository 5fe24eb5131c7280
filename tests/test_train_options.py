"""What can be chosen about a training, each by something that can be computed otherwise."""

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.losses import LOSSES, Mixture, Terms
from openmm_cgml.relative_entropy import RelativeEntropy
from openmm_cgml.training_data import MemorySource
from openmm_cgml.training_settings import SCHEDULES, Settings
from openmm_cgml.training_step import Training
from openmm_cgml.training_weights import AveragedWeights, SpectralLimit


@pytest.fixture(scope="module")
def parts(dataset) -> tuple[cgml.CGDataset, cgml.CGDataset]:
    return dataset.select(slice(400)).split(0.75, blocks=2)


def network(dataset: cgml.CGDataset, seed: int = 0) -> cgml.PMF:
    return cgml.PMFS["cgnet"](dataset, width=8, depth=2, seed=seed)


def weights_of(result) -> torch.Tensor:
    return torch.cat([p.detach().ravel() for p in result.pmf.parameters()])


def test_schedules_rise_and_fall_where_they_say() -> None:
    rates = {n: [Settings(schedule=n).factor(k, 100) for k in range(101)] for n in SCHEDULES}
    assert rates["constant"] == rates["plateau"] == [1.0] * 101
    assert rates["cosine"][0] == 1 and rates["cosine"][50] == pytest.approx(0.505)
    assert rates["cosine"][100] == pytest.approx(0.01)
    warm = rates["warmup_cosine"]
    assert warm[:5] == pytest.approx([0.01, 0.2, 0.4, 0.6, 0.8]) and warm[5] == 1
    assert warm[5:] == sorted(warm[5:], reverse=True) and warm[100] == pytest.approx(0.01)
    assert Settings(epochs=3, accumulate=4).steps(10) == 9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_follows_the_schedule(parts, schedule) -> None:
    result = cgml.fit(network(parts[0]), *parts, epochs=4, batch_size=60, schedule=schedule)
    rates = [h["learning_rate"] for h in result.history]
    expected = [1e-3 * Settings(schedule=schedule).factor(5 * e, 20) for e in (1, 2, 3, 4)]
    assert rates == pytest.approx(expected)


def test_a_plateau_halves_the_rate_and_patience_ends(parts, monkeypatch) -> None:
    losses = iter([3.0, 2.0, *[2.5] * 30])
    monkeypatch.setattr(Training, "validate", lambda self: next(losses))
    settings = {"epochs": 30, "batch_size": 150, "learning_rate": 0.1}
    result = cgml.fit(network(parts[0]), *parts, schedule="plateau", patience=9, **settings)
    rates = [h["learning_rate"] for h in result.history]
    assert len(rates) == 11  # the second was the best, nine more were waited for
    assert rates == pytest.approx([0.1] * 8 + [0.05] * 3)


def test_early_stopping_is_remembered(parts, tmp_path, monkeypatch) -> None:
    losses = iter([2.0, 3.0, 3.0])
    settings = {"epochs": 9, "batch_size": 150, "patience": 2, "directory": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(Training, "validate", lambda self: next(losses))
        first = cgml.fit(network(parts[0]), *parts, **settings)
    again = cgml.fit(network(parts[0]), *parts, **settings)
    assert len(first.history) == 3 and again.history == first.history
    assert torch.equal(weights_of(first), weights_of(again))


def test_averages_are_the_sum_they_should_be() -> None:
    line = torch.nn.Linear(1, 1, bias=False)
    values = [1.0, 3.0, -2.0, 5.0]
    line.weight.data.fill_(values[0])
    average = AveragedWeights(line, 0.9)
    expected = values[0]
    for step, value in enumerate(values[1:]):
        line.weight.data.fill_(value)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.used():
        assert line.weight.item() == pytest.approx(expected)
    assert line.weight.item() == values[-1]
    copy = AveragedWeights(line, 0.9)
    copy.load_state_dict(average.state_dict())
    with copy.used():
        assert line.weight.item() == pytest.approx(expected)


def test_averaged_weights_are_validated_and_kept(parts) -> None:
    results = [
        cgml.fit(network(parts[0]), *parts, epochs=2, batch_size=60, ema=ema)
        for ema in (None, 1e-9, 0.9)
    ]
    assert torch.equal(weights_of(results[0]), weights_of(results[1]))  # forgets at once
    assert not torch.equal(weights_of(results[0]), weights_of(results[2]))
    rmse = results[2].noise.residual
    assert rmse == pytest.approx(min(h["valid_rmse"] for h in results[2].history), rel=1e-4)


def test_spectral_norms_stay_below_the_limit(parts) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Embedding(5, 7))
    before = [p.detach().clone() for p in layers.parameters()]
    layers[0].weight.data[0] *= 50
    limit = SpectralLimit(layers, 1.2)
    limit.apply()
    assert float(torch.linalg.matrix_norm(layers[0].weight.detach(), 2)) == pytest.approx(
        1.2, rel=1e-4
    )
    assert torch.equal(layers[0].bias, before[1]) and torch.equal(layers[1].weight, before[2])
    small = layers[0].weight.detach().clone()
    SpectralLimit(layers, 5.0).apply()
    assert torch.equal(layers[0].weight, small)
    for norm, free in ((0.8, False), (None, True)):
        result = cgml.fit(
            network(parts[0]), *parts, epochs=3, batch_size=30, learning_rate=0.02,
            spectral_norm=norm,
        )  # fmt: skip
        norms = [
            float(torch.linalg.matrix_norm(p.detach(), 2))
            for p in result.pmf.parameters()
            if p.dim() == 2
        ]
        assert (max(norms) > 1.0) == free
        assert free or max(norms) < 0.8 * 1.005


def test_accumulated_batches_are_one_large_batch(parts, monkeypatch) -> None:
    """Two of 50 frames make the step of their 100: equal to the mean's gradient."""
    stepped: dict[int, list] = {1: [], 2: []}
    for accumulate, size in ((1, 100), (2, 50)):
        monkeypatch.setattr(
            "openmm_cgml.training_data.MemorySource.shuffled",
            lambda self, size, seed, epoch, start: self.chunks(size),
        )
        result = cgml.fit(
            network(parts[0]), *parts, epochs=2, batch_size=size, accumulate=accumulate,
            gradient_clip=1e-3,
        )  # fmt: skip
        stepped[accumulate] = weights_of(result)
    assert torch.allclose(stepped[1], stepped[2], atol=2e-6)
    start = torch.cat([p.detach().ravel() for p in network(parts[0]).parameters()])
    assert float((stepped[1] - start).abs().max()) > 1e-3


def test_gradients_are_clipped(parts) -> None:
    """Adam's step does not depend on the gradient's size, but on its changes: clipping shows."""
    results = [
        cgml.fit(network(parts[0]), *parts, epochs=1, batch_size=30, gradient_clip=clip)
        for clip in (None, 1e9, 1e-2)
    ]
    assert torch.equal(weights_of(results[0]), weights_of(results[1]))
    assert not torch.equal(weights_of(results[0]), weights_of(results[2]))


def test_bfloat16_products_train_in_single_precision(parts) -> None:
    exact, mixed = (
        cgml.fit(network(parts[0]), *parts, epochs=3, batch_size=60, precision=p)
        for p in ("32", "bf16-mixed")
    )
    assert {p.dtype for p in mixed.pmf.parameters()} == {torch.float32}
    assert not torch.equal(weights_of(exact), weights_of(mixed))
    ratio = mixed.history[-1]["valid_rmse"] / exact.history[-1]["valid_rmse"]
    assert ratio == pytest.approx(1, abs=0.02)
    start = mixed.history[0]["valid_rmse"]
    assert mixed.history[-1]["valid_rmse"] < start


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"batch_size": 0}, "both must be at least 1"),
        ({"schedule": "linear"}, "'linear' is unknown; choose cosine, warmup_cosine"),
        ({"precision": "16-mixed"}, "'16-mixed' does not work for forces"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0; give a positive"),
        ({"spectral_norm": -1.0}, "spectral_norm is -1.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_settings_that_make_no_sense(parts, setting, said) -> None:
    with pytest.raises(cgml.InputError, match=said):
        cgml.fit(network(parts[0]), *parts, **setting)


def test_losses_that_cannot_be_compared(parts) -> None:
    loss = Mixture([("force_matching", 1), (RelativeEntropy(lambda pmf: None), 1)])
    for wrong in ({"patience": 3}, {"schedule": "plateau"}):
        with pytest.raises(cgml.InputError, match="values of mixture in different epochs"):
            cgml.fit(network(parts[0]), *parts, loss=loss, **wrong)


def test_tensorboard_gets_the_numbers_if_it_is_there(parts, tmp_path, monkeypatch) -> None:
    """A stand-in for the package: what is written is asked for, not the files."""
    import lightning.pytorch.loggers as loggers

    written: list[dict] = []

    class Logger(loggers.CSVLogger):
        def __init__(self, folder, name, version) -> None:
            super().__init__(folder, name, version=version)

        def log_metrics(self, metrics, step=None) -> None:
            written.append(metrics)

    monkeypatch.setattr(loggers, "TensorBoardLogger", Logger)
    result = cgml.fit(network(parts[0]), *parts, epochs=2, batch_size=60, directory=tmp_path)
    seen = [m["valid_rmse"] for m in written if "valid_rmse" in m]
    assert seen == pytest.approx([h["valid_rmse"] for h in result.history], rel=1e-6)

    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(loggers, "TensorBoardLogger", missing)
    bare = cgml.fit(network(parts[0]), *parts, epochs=2, batch_size=60)
    assert bare.history == result.history


def test_every_loss_in_the_table_says_what_it_needs(parts) -> None:
    source = MemorySource(parts[0])
    terms = Terms(network(parts[0]))
    for name in LOSSES:
        try:
            objective = LOSSES[name]()
        except cgml.InputError as error:
            assert name.split("_")[0] in str(error) and "=" in str(error)
            continue
        batch = next(source.chunks(10))
        loss = objective.prepared([(terms, batch)])(terms, batch)
        loss.backward()
        assert loss.dim() == 0 and np.isfinite(float(loss.detach()))
        assert objective.describe()["name"] == name
        terms.zero_grad()
