"""Two processes that share the copies of one run."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch  # before openmm
import torch.distributed as dist

import numpy as np
import pytest
from handmade import Springs

import openmm_cgml as cgml
from openmm_cgml.files import segments_folder
from openmm_cgml.parallel import Ranks
from openmm_cgml.run_file import FRAME_ARRAYS
from openmm_cgml.units import thermal_energy

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="this torch cannot run in parallel"
)

LADDER = {"temperatures": [300.0, 330.0, 360.0], "copies": 3, "exchange_interval": 0.03}

#: Without friction nothing is random after the start, but for the exchanges.
CASES = {
    "free": ({"copies": 7, "friction": 0.0}, {"steps": 200, "interval": 0.1}),
    "friction": ({"copies": 60, "timestep": 0.004}, {"ns": 0.02, "interval": 0.4}),
    "exchange": ({**LADDER, "friction": 0.0}, {"steps": 600, "interval": 0.04}),
}


@pytest.fixture(scope="module")
def springs(dataset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("springs") / "springs.pt"
    cgml.save_model(path, Springs(), dataset)
    return path


def start(copies: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    bonds = np.sqrt(thermal_energy(300) / 800) * rng.standard_normal((copies, 4, 3))
    return np.concatenate([np.zeros((copies, 1, 3)), np.cumsum(bonds, axis=1)], axis=1)


def simulation(springs: Path, **settings) -> "cgml.Langevin":
    torch.set_num_threads(1)
    if "temperatures" in settings:
        copies = settings["copies"] * len(settings["temperatures"])
        return cgml.ReplicaExchange(springs, start(copies), **settings)
    return cgml.Langevin(springs, start(settings["copies"]), **settings)


class Counts:
    """A reporter at other steps than frames and exchanges."""

    def __init__(self) -> None:
        self.calls = 0

    def describeNextReport(self, simulation):
        return (7 - simulation.currentStep % 7, False, False, False, False)

    def report(self, simulation, state) -> None:
        self.calls += 1


def under_torchrun(springs: Path, folder: Path) -> None:
    """What every process does that torchrun starts."""
    for name, (settings, length) in CASES.items():
        one = simulation(springs, **settings)
        if one.ranks.rank == 0:
            one.reporters.append(Counts())  # as users do who want one file
        run = one.run(folder / f"{name}.h5", **length)
        said = {"frames": len(run), "share": [one.share.start, one.share.stop]}
        said["rungs"] = one.rungs.tolist()
        if name == "exchange":
            said["statistics"] = one.statistics.summary()
        (folder / f"{name}.{one.ranks.rank}.json").write_text(json.dumps(said))
    try:
        simulation(springs, copies=1)
    except cgml.InputError as error:
        (folder / f"few.{one.ranks.rank}.txt").write_text(str(error))
    try:
        simulation(springs, copies=2, backend="nativ")
    except cgml.InputError as error:  # found out by the first rank alone
        (folder / f"backend.{one.ranks.rank}.txt").write_text(str(error))


@pytest.fixture(scope="module")
def two(springs, tmp_path_factory) -> Path:
    """Folder of what two processes wrote that torchrun started."""
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join(filter(None, sys.path))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    subprocess.run(
        [sys.executable, *command, str(springs), str(folder)],
        check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def one(springs, tmp_path_factory) -> dict:
    """The same in one process."""
    folder = tmp_path_factory.mktemp("one")
    return {
        name: simulation(springs, **settings).run(folder / f"{name}.h5", **length)
        for name, (settings, length) in CASES.items()
    }


@pytest.mark.parametrize("name", ["free", "exchange"])
def test_two_ranks_are_one_where_nothing_is_random(one, two, name) -> None:
    """Seven copies as 3 + 4, and three ladders of three as 4 + 5: one ladder spans both."""
    run = cgml.read_run(two / f"{name}.h5")
    for array in FRAME_ARRAYS:
        assert np.array_equal(getattr(run, array), getattr(one[name], array)), array
    assert np.array_equal(run.exchange_rung, one[name].exchange_rung)
    assert np.array_equal(run.exchange_time, one[name].exchange_time)
    assert run.info["ranks"] == 2 and run.finished
    assert {p.name for p in two.iterdir() if p.suffix == ".segments"} == set()
    said = [json.loads((two / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    rungs = one[name].exchange_rung[-1] if name == "exchange" else one[name].rung[-1]
    assert said[0]["rungs"] == said[1]["rungs"] == rungs.tolist()
    assert said[0]["frames"] == said[1]["frames"] == len(one[name])
    assert [s["share"] for s in said] == ([[0, 3], [3, 7]] if name == "free" else [[0, 4], [4, 9]])


def test_all_ranks_reach_the_same_exchanges(one, two) -> None:
    run = cgml.read_run(two / "exchange.h5")
    said = [json.loads((two / f"exchange.{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0]["statistics"] == said[1]["statistics"]
    assert said[0]["statistics"]["sweeps"] == len(run.exchange_rung) == 40
    assert 0 < np.mean(said[0]["statistics"]["neighbour_acceptance"]) < 1
    assert (np.sort(run.exchange_rung.reshape(-1, 3, 3), axis=2) == [0, 1, 2]).all()
    for k, at in enumerate(run.time):
        last = run.exchange_rung[run.exchange_time < at - 1e-6]
        assert not len(last) or np.array_equal(run.rung[k], last[-1])


def test_two_ranks_sample_the_same_ensemble(one, two) -> None:
    run = cgml.read_run(two / "friction.h5").after(5.0)
    same = one["friction"].after(5.0)
    assert run.positions.shape == same.positions.shape
    assert not np.array_equal(run.positions, same.positions)
    for name, freedom in (("energy", 12), ("kinetic_energy", 15)):
        ours, theirs = (getattr(r, name).astype(float).mean(axis=0) for r in (run, same))
        error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 60)
        assert abs(ours.mean() - theirs.mean()) < 4 * error, name
        exact = freedom / 2 * thermal_energy(300)
        assert abs(ours.mean() - exact) < 4 * ours.std(ddof=1) / np.sqrt(60), name
    # Ranks have noise of their own: copy k of one is not copy k of the other.
    bonds = np.diff(run.positions.astype(float), axis=2)
    products = (bonds[:, :30] * bonds[:, 30:]).mean(axis=(0, 2, 3))
    assert abs(products.mean()) < 4 * products.std(ddof=1) / np.sqrt(30)


def test_an_error_of_the_first_rank_is_everybody_s(two) -> None:
    for rank in range(2):
        assert "'nativ'" in (two / f"backend.{rank}.txt").read_text()


def test_fewer_copies_than_ranks_are_refused(two) -> None:
    for rank in (0, 1):
        said = (two / f"few.{rank}.txt").read_text()
        assert said.startswith("1 copies cannot be shared by 2 ranks; use more copies")


# ---------------------------------------------------------------- kills and restarts

FRAMES = 60


def rank_of_two(springs: Path, output: Path, rank: int, meeting: Path, on_sick: str) -> None:
    """One of two processes, in a group that the user made."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    assert Ranks.discover() == Ranks(rank, 2)
    one = simulation(springs, **LADDER, on_sick=on_sick)
    if on_sick == "raise" and rank == 1:
        one.reporters.append(Spoils(one, 45))
    try:
        run = one.run(output, steps=10 * FRAMES, interval=0.02, checkpoint_seconds=0)
    except cgml.CGMLError as error:
        Path(f"{meeting}.{rank}").write_text(f"{type(error).__name__}: {error}")
        raise
    assert len(run) == FRAMES or not run.finished


class Spoils:
    """Moves a copy of this rank to where no number is, at a step."""

    def __init__(self, simulation, at: int) -> None:
        self.simulation, self.at = simulation, at

    def describeNextReport(self, host):
        wait = self.at - host.currentStep
        return (wait if wait > 0 else 10**9, False, False, False, False)

    def report(self, host, state) -> None:
        self.simulation.engine.positions = self.simulation.positions * 1e20


@pytest.fixture(scope="module")
def pairs(springs, tmp_path_factory) -> Iterator:
    """Start two processes that share a run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openmm_cgml.remd", "pytest"])
    started = []

    def begin(output: Path, on_sick: str = "reset", meeting: Path | None = None) -> list:
        meeting = meeting or tmp_path_factory.mktemp("meeting") / "file"
        pair = [
            context.Process(target=rank_of_two, args=(springs, output, rank, meeting, on_sick))
            for rank in (0, 1)
        ]
        for process in pair:
            process.start()
        started.extend(pair)
        return pair

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> "cgml.run_file.Run":
    """The run of two processes, never interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run.h5"
    assert ends(pairs(output)) == [0, 0]
    run = cgml.read_run(output)
    assert len(run) == FRAMES and run.finished
    return run


def ends(pair: list) -> list[int | None]:
    for process in pair:
        process.join(timeout=60)
    return [process.exitcode for process in pair]


def wait_for_segments(pair: list, output: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while (
        len(list(segments_folder(output).glob("??????.h5"))) < number
        and all(process.is_alive() for process in pair)
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    assert all(process.is_alive() for process in pair)


def assert_begins(run, whole) -> None:
    for array in FRAME_ARRAYS:
        assert np.array_equal(getattr(run, array), getattr(whole, array)[: len(run)]), array
    assert np.array_equal(run.exchange_rung, whole.exchange_rung[: len(run.exchange_rung)])


def test_kill_9_of_both_and_going_on(springs, pairs, whole, tmp_path) -> None:
    output, rng = tmp_path / "run.h5", np.random.default_rng(3)
    for kill in range(4):
        pair = pairs(output)
        segments = len(list(segments_folder(output).glob("??????.h5")))
        wait_for_segments(pair, output, segments + int(rng.integers(1, 8)))
        time.sleep(rng.uniform(0, 0.005))
        for process in pair[:: 1 if kill % 2 else -1]:  # either dies first
            process.kill()
        assert -signal.SIGKILL in ends(pair)
        run = cgml.read_run(output)
        assert not run.finished
        assert_begins(run, whole)
    before = contents(tmp_path)
    with pytest.raises(cgml.InputError, match="ranks was 2, now 1"):
        simulation(springs, **LADDER).run(output, steps=10 * FRAMES, interval=0.02)
    assert contents(tmp_path) == before
    assert ends(pairs(output)) == [0, 0]
    run = cgml.read_run(output)
    assert run.finished and len(run) == FRAMES
    assert len(run.exchange_rung) == len(whole.exchange_rung)
    assert_begins(run, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_sigterm_to_one_stops_both(pairs, whole, tmp_path) -> None:
    output = tmp_path / "run.h5"
    pair = pairs(output)
    wait_for_segments(pair, output, 3)
    pair[1].terminate()
    assert ends(pair) == [0, 0]
    run = cgml.read_run(output)
    assert not run.finished and 0 < len(run) < FRAMES
    assert_begins(run, whole)
    assert ends(pairs(output)) == [0, 0]
    run = cgml.read_run(output)
    assert run.finished and len(run) == FRAMES
    assert_begins(run, whole)


def test_a_run_of_one_is_not_gone_on_with_by_two(springs, pairs, tmp_path) -> None:
    output = tmp_path / "run" / "run.h5"
    output.parent.mkdir()
    one = simulation(springs, **LADDER)
    one.run(output, steps=10 * FRAMES, interval=0.02, seconds=0)
    before = contents(output.parent)
    assert ends(pairs(output, meeting=tmp_path / "said")) == [1, 1]
    for rank in (0, 1):
        said = (tmp_path / f"said.{rank}").read_text()
        assert said.startswith("InputError") and "ranks was 1, now 2" in said
    assert contents(output.parent) == before


def test_an_error_of_one_ends_both(pairs, whole, tmp_path) -> None:
    """The other does not wait for ever, and what both had written is there."""
    output = tmp_path / "run.h5"
    assert ends(pairs(output, "raise", meeting=tmp_path / "said")) == [1, 1]
    said = (tmp_path / "said.1").read_text()
    assert said.startswith("SimulationError: copy 4 (5 of 9) is no longer finite at 0.100 ps")
    run = cgml.read_run(output)
    assert 3 <= len(run) <= 4 and not run.finished
    assert_begins(run, whole)


if __name__ == "__main__":
    under_torchrun(*map(Path, sys.argv[1:]))
