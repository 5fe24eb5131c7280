"""Two processes that torchrun starts train like one with the same batches, up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch  # before openmm

import pytest

import openmm_cgml as cgml
from openmm_cgml.losses import Denoising

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "epochs": 3, "batch_size": 40, "seed": 1, "ema": 0.9, "spectral_norm": 2.0, "accumulate": 2,
    "accelerator": "cpu", "progress": False,
}  # fmt: skip


def train(data: cgml.CGDataset, folder: Path) -> cgml.PMF:
    train, valid = data.split(0.8, blocks=2)
    pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=8, depth=2))
    loss = Denoising(sigma=0.002, noise_share=0.5)
    return cgml.fit(pmf, train, valid, loss=loss, directory=folder, **SETTINGS)


def under_torchrun(data: str, folder: str) -> None:
    """What each process does: train, stop in the second epoch, go on."""
    from openmm_cgml.training_step import Training

    place, rank = Path(folder), int(os.environ["RANK"])
    step, count = Training.training_step, [0]

    def stopped(self, batch, index):
        count[0] += 1
        if count[0] == 15 and rank == 1:  # a signal that one process gets stops both
            os.kill(os.getpid(), 2)
        return step(self, batch, index)

    Training.training_step = stopped
    frames = cgml.read_dataset(data)
    try:
        train(frames, place / "stopped")
    except KeyboardInterrupt:
        torch.save(count[0], place / f"steps{rank}.pt")
    Training.training_step = step
    results = [train(frames, place / name) for name in ("stopped", "whole")]
    torch.save(
        [(r.pmf.state_dict(), r.history, r.noise.residual) for r in results],
        place / f"rank{rank}.pt",
    )


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    dataset.select(slice(1000, 1400)).save(folder / "data.h5")
    code = folder / "process.py"
    code.write_text(
        "import sys, test_train_ranks as t; t.under_torchrun(sys.argv[1], sys.argv[2])\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(code), str(folder / "data.h5"), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_are_one_up_to_rounding(folder, tmp_path) -> None:
    one = train(cgml.read_dataset(folder / "data.h5"), tmp_path)
    for rank in range(2):
        _, (state, history, residual) = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, values in one.pmf.state_dict().items():
            assert torch.allclose(values, state[name], atol=2e-5), name
        for mine, theirs in zip(one.history, history, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
        assert residual == pytest.approx(one.noise.residual, rel=1e-5)
    start = cgml.PMFS["cgnet"](cgml.read_dataset(folder / "data.h5"), width=8, depth=2)
    before, after = (
        torch.nn.utils.parameters_to_vector(p.parameters()).detach() for p in (start, one.pmf)
    )
    assert float((before - after).abs().max()) > 5e-3  # 250 times the tolerance above
    record = json.loads((folder / "whole" / "training.json").read_text())
    assert record["processes"] == 2


def test_both_stop_at_the_same_batch_and_go_on_exactly(folder) -> None:
    steps = [torch.load(folder / f"steps{rank}.pt") for rank in range(2)]
    assert steps[0] == steps[1] == 16
    for rank in range(2):
        resumed, whole = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, values in whole[0].items():
            assert torch.equal(values, resumed[0][name]), name
        assert resumed[1][-1]["valid_rmse"] == whole[1][-1]["valid_rmse"]


def test_processes_need_a_folder_in_common(dataset, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    pmf = cgml.PMFS["cgnet"](dataset, width=4, depth=1)
    with pytest.raises(cgml.InputError, match="2 processes share .* give a directory"):
        cgml.fit(pmf, dataset, dataset)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(cgml.InputError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"):
        cgml.fit(pmf, dataset, dataset, directory="somewhere")
