"""A training that is killed anywhere goes on as if it had not been: weights equal bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.losses import Denoising
from openmm_cgml.train import FitResult
from openmm_cgml.training_state import random_state, seeded, set_random_state
from openmm_cgml.training_step import Training

ROOT = Path(__file__).resolve().parent.parent
BEADS = 4

# Everything that has a state: noise, averages, limited norms, dropout, a schedule by losses.
SETTINGS = {
    "epochs": 3, "batch_size": 20, "seed": 5, "ema": 0.9, "spectral_norm": 1.5, "accumulate": 2,
    "schedule": "plateau", "progress": False, "checkpoint_steps": 1,
}  # fmt: skip


class Dropping(cgml.PMF):
    """A network whose every step draws from torch's global random numbers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = torch.nn.Sequential(
                torch.nn.Linear(BEADS * (BEADS - 1) // 2, 16), torch.nn.Tanh(),
                torch.nn.Dropout(0.2), torch.nn.Linear(16, 1),
            )  # fmt: skip
        self.register_buffer("pairs", torch.triu_indices(BEADS, BEADS, offset=1))

    def forward(self, positions, box_vectors=None):
        steps = positions[:, self.pairs[0]] - positions[:, self.pairs[1]]
        return self.network(steps.norm(dim=-1)).squeeze(-1)

    def arguments(self) -> dict:
        return {}


def frames() -> cgml.CGDataset:
    rng = np.random.default_rng(2)
    names = tuple("ABCD")
    topology = cgml.CGTopology(
        names, names, ("M",) * BEADS, (1,) * BEADS, ("A",) * BEADS,
        ((0, 1), (1, 2), (2, 3)), (12.0,) * BEADS,
    )  # fmt: skip
    shape = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.33, 0.15, 0.1]])
    positions = shape + 0.02 * rng.standard_normal((205, BEADS, 3))
    return cgml.CGDataset(
        positions, topology, 300.0, forces=rng.standard_normal(positions.shape) * 20
    )


def train(directory: Path | None = None, **changes) -> FitResult:
    data = frames()
    loss = changes.pop("loss", None) or Denoising(sigma=0.01)
    return cgml.fit(
        Dropping(), data.select(slice(165)), data.select(slice(165, None)), loss=loss,
        directory=directory, **{**SETTINGS, **changes},
    )  # fmt: skip


def weights_of(result) -> torch.Tensor:
    return torch.cat([p.detach().ravel() for p in result.pmf.parameters()])


@pytest.fixture(scope="module")
def whole() -> FitResult:
    return train()


class Killed(BaseException):
    """Stands for a killed process."""


@pytest.mark.parametrize("step", [1, 2, 5, 7, 8, 13, 16, 23])
def test_any_batch_can_be_the_last(whole, tmp_path, monkeypatch, step) -> None:
    """Eight batches an epoch, two a step: in the middle of a step, of an epoch, at its ends."""
    original, count = Training.training_step, [0]

    def dies(self, batch, index):
        count[0] += 1
        if count[0] > step:
            raise Killed
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", dies)
        with pytest.raises(Killed):
            train(tmp_path)
    assert count[0] == step + 1
    redone: list[int] = []

    def counts(self, batch, index):
        redone.append(batch.seed)
        return original(self, batch, index)

    monkeypatch.setattr(Training, "training_step", counts)
    resumed = train(tmp_path)
    assert len(redone) == 24 - step // 2 * 2  # nothing but the unfinished step is done again
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert resumed.history == whole.history


def test_random_states_are_the_users_again(whole) -> None:
    before = random_state()
    train(epochs=1)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    with seeded(3):
        drawn = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    state = random_state()
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    set_random_state(state)
    assert torch.equal(torch.get_rng_state(), before["torch"])
    with seeded(3):
        again = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    assert torch.equal(drawn[0], again[0]) and (drawn[1] == again[1]).all()
    assert drawn[2] == again[2]


def slow_training(folder: str) -> None:
    """What the process does that is killed: after four batches, five batches a second."""
    place, count, step = Path(folder), [0], Training.training_step

    def slowly(self, batch, index):
        count[0] += 1
        if count[0] == 5:
            (place / "fifth").touch()
        time.sleep(0.2 if count[0] > 4 else 0)
        return step(self, batch, index)

    Training.training_step = slowly
    train(place)


def test_a_killed_process_is_continued_by_another(whole, tmp_path) -> None:
    code = f"import test_train_resume as t; t.slow_training({str(tmp_path)!r})"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        while not (tmp_path / "fifth").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not state["training"]["finished"] and not state["training"]["history"]
    resumed = train(tmp_path)
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("step", [3, 8])
def test_a_signal_writes_a_checkpoint_first(
    whole, tmp_path, monkeypatch, number, raised, step
) -> None:
    original, count = Training.training_step, [0]

    def interrupted(self, batch, index):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), number)
        return original(self, batch, index)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", interrupted)
        with pytest.raises(raised) as stopped:
            train(tmp_path, checkpoint_steps=None)
    assert raised is KeyboardInterrupt or stopped.value.code == 128 + number
    assert count[0] == step + step % 2  # the step of the optimiser was finished
    assert signal.getsignal(number) is before
    assert torch.equal(weights_of(whole), weights_of(train(tmp_path, checkpoint_steps=None)))


def test_a_finished_training_is_not_repeated(whole, tmp_path, monkeypatch) -> None:
    train(tmp_path)
    monkeypatch.setattr(Training, "training_step", None)
    again = train(tmp_path)
    assert torch.equal(weights_of(whole), weights_of(again)) and again.history == whole.history
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,train_rmse,valid_rmse,learning_rate" and len(rows) == 4
    assert float(rows[-1].split(",")[2]) == whole.history[-1]["valid_rmse"]
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["loss"]["sigma_nm"] == 0.01


def test_damaged_and_foreign_checkpoints(tmp_path) -> None:
    train(tmp_path, epochs=1)
    with pytest.raises(cgml.InputError, match="other loss, ema"):
        train(tmp_path, epochs=1, ema=0.5, loss="force_matching")
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(cgml.InputError, match=r"last.ckpt is damaged .*delete it"):
        train(tmp_path, epochs=1)
