"""Runs that are killed, stopped or run out of disk go on as if nothing had happened."""

import errno
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch  # before openmm

import numpy as np
import openmm
import pytest
from handmade import Springs

import openmm_cgml as cgml
from openmm_cgml import files, run_file
from openmm_cgml.files import segments_folder
from openmm_cgml.force import backend_problem, torchforce_problem
from openmm_cgml.pmf.ensemble import EnsemblePMF
from openmm_cgml.run_file import FRAME_ARRAYS, Checkpoint, RunWriter

INTERVAL = 0.02  # ps, ten steps
FRAMES = 120

CASES = {
    "Langevin": {"copies": 4},
    "temperatures": {"copies": 4, "temperature": [300.0, 340.0, 300.0, 380.0], "tether": True},
    "exchange": {"copies": 2, "temperatures": [300.0, 330.0, 360.0], "exchange_interval": 0.03},
    "CPU": {"copies": 3, "platform": "CPU", "properties": {"Threads": "1"}},
    "native": {"copies": 3, "backend": "native"},
}
KILLS = {"Langevin": 7, "temperatures": 7, "exchange": 7, "CPU": 3, "native": 2}


@pytest.fixture(scope="module")
def inputs(dataset, tmp_path_factory) -> Path:
    """Folder of a model file and a start dataset, for other processes."""
    folder = tmp_path_factory.mktemp("inputs")
    cgml.save_model(folder / "springs.pt", Springs(), dataset)
    dataset.save(folder / "start.h5")
    return folder


def simulation(inputs: Path, case: str, **changed) -> "cgml.Langevin":
    """What a user's script makes, every time that it is started."""
    torch.set_num_threads(1)
    settings = {**CASES[case], **changed}
    if settings.pop("tether", False):
        settings["forces"] = [tether()]
    kind = cgml.ReplicaExchange if "temperatures" in settings else cgml.Langevin
    start = cgml.read_dataset(inputs / "start.h5")
    return kind(inputs / "springs.pt", start, **settings)


def tether() -> "openmm.Force":
    force = openmm.CustomExternalForce("20*(x^2+y^2+z^2)")
    force.addParticle(0)
    return force


def simulate(inputs: Path, case: str, output: Path, frames: int = FRAMES) -> None:
    """Run with a segment for every frame and every exchange."""
    simulation(inputs, case).run(
        output, steps=10 * frames, interval=INTERVAL, checkpoint_seconds=0
    )


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A function that returns a case's run, never interrupted and written in one segment."""
    runs = {}

    def get(case: str, frames: int = FRAMES) -> "cgml.run_file.Run":
        if (case, frames) not in runs:
            path = tmp_path_factory.mktemp("whole") / "run.h5"
            run = simulation(inputs, case).run(path, steps=10 * frames, interval=INTERVAL)
            assert len(run) == frames and run.finished
            runs[case, frames] = run
        return runs[case, frames]

    return get


@pytest.fixture(scope="module")
def forks() -> Iterator:
    """Makes processes that have imported everything: forks of one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openmm_cgml.remd", "pytest"])
    started = []

    def start(target, *arguments) -> "multiprocessing.Process":
        started.append(context.Process(target=target, args=arguments))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def segments(output: Path) -> int:
    return len(list(segments_folder(output).glob("??????.h5")))


def wait_for_segments(process, output: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while segments(output) < number and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.is_alive(), "the run was over too early; make it longer"


def assert_begins(run, whole) -> None:
    """All that was written is the beginning of the uninterrupted run: nothing lost or doubled."""
    for name in FRAME_ARRAYS:
        assert np.array_equal(getattr(run, name), getattr(whole, name)[: len(run)]), name
    done = len(run.exchange_time)
    assert np.array_equal(run.exchange_time, whole.exchange_time[:done])
    assert np.array_equal(run.exchange_rung, whole.exchange_rung[:done])
    assert run.events == whole.events[: len(run.events)]
    assert run.topology == whole.topology


def assert_same(run, whole) -> None:
    assert run.finished and len(run) == len(whole)
    assert len(run.exchange_time) == len(whole.exchange_time)
    assert_begins(run, whole)
    assert run.events == whole.events
    assert run.info.get("statistics") == whole.info.get("statistics")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- kill -9


@pytest.mark.parametrize("case", CASES)
def test_kill_9_at_random_times(inputs, whole, forks, case, tmp_path) -> None:
    """Kills in set-up, between writes and in them."""
    if reason := backend_problem(CASES[case].get("backend", "python")):
        pytest.skip(reason)
    output, rng = tmp_path / "run.h5", np.random.default_rng(list(case.encode()))
    frames = 0
    for kill in range(KILLS[case]):
        process = forks(simulate, inputs, case, output)
        if kill % 4 == 3:
            time.sleep(rng.uniform(0, 0.5))
        else:
            wait_for_segments(process, output, segments(output) + int(rng.integers(1, 8)))
            time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over too early; make it longer"
        run = cgml.read_run(output)
        assert not run.finished and len(run) >= max(frames, 1)
        assert_begins(run, whole(case))
        frames = len(run)
    run = simulation(inputs, case).run(output, steps=10 * FRAMES, interval=INTERVAL)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    assert_same(run, whole(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["Langevin", "temperatures", "exchange"])
def test_kill_9_of_a_new_python_each_time(inputs, whole, case, tmp_path) -> None:
    output, rng = tmp_path / "run.h5", np.random.default_rng(7)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; "
        "from test_restart import simulate; simulate(Path(sys.argv[2]), sys.argv[3], "
        "Path(sys.argv[4]))"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here, str(inputs), case, str(output)]
    for _ in range(5):
        process = subprocess.Popen(command)
        process.is_alive = lambda process=process: process.poll() is None
        wait_for_segments(process, output, segments(output) + int(rng.integers(1, 10)))
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert_begins(cgml.read_run(output), whole(case))
    subprocess.run(command, check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    assert_same(cgml.read_run(output), whole(case))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_segment(output: Path) -> None:
    write_bytes = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        if "000007" in path.name:
            write_bytes(path, data[: len(data) // 2])
            die()
        return write_bytes(path, data)

    Path.write_bytes = half


def before_renaming(name: str, output: Path) -> None:
    replace = os.replace

    def dies(source, target) -> None:
        if Path(target).name == name:
            die()
        replace(source, target)

    files.os.replace = dies


def a_segment_not_renamed(output: Path) -> None:
    before_renaming("000007.h5", output)


def joined_not_renamed(output: Path) -> None:
    before_renaming(output.name, output)


def segments_not_removed(output: Path) -> None:
    run_file.shutil.rmtree = lambda *_, **__: die()


def half_the_segments_removed(output: Path) -> None:
    def half(folder: Path, **_) -> None:
        for segment in sorted(folder.iterdir())[::2]:
            segment.unlink()
        die()

    run_file.shutil.rmtree = half


def simulate_and_die(where, inputs: Path, output: Path) -> None:
    where(output)
    simulate(inputs, "exchange", output, 20)


@pytest.mark.parametrize(
    ("where", "joined"),
    [
        (half_a_segment, False),
        (a_segment_not_renamed, False),
        (joined_not_renamed, False),
        (segments_not_removed, True),
        (half_the_segments_removed, True),
    ],
)
def test_kill_9_at_the_worst_moments(inputs, whole, forks, where, joined, tmp_path) -> None:
    """Every frame is read once, whatever stands on disk, and the run goes on or is longer."""
    output = tmp_path / "run.h5"
    process = forks(simulate_and_die, where, inputs, output)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert output.exists() is joined and segments_folder(output).exists()
    run = cgml.read_run(output)
    assert len(run) == (20 if where not in (half_a_segment, a_segment_not_renamed) else 5)
    assert_begins(run, whole("exchange", 20))
    if joined:
        assert_same(run, whole("exchange", 20))
        copy = shutil.copytree(tmp_path, tmp_path / "copy") / "run.h5"
        longer = simulation(inputs, "exchange").run(copy, steps=400, interval=INTERVAL)
        assert_same(longer, whole("exchange", 40))
        assert [p.name for p in copy.parent.iterdir()] == ["run.h5"]
        shutil.rmtree(copy.parent)
    simulate(inputs, "exchange", output, 20)
    assert_same(cgml.read_run(output), whole("exchange", 20))
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_is_read_while_it_is_written_and_finished(inputs, whole, forks, tmp_path) -> None:
    output = tmp_path / "run.h5"
    process = forks(simulate, inputs, "Langevin", output, 60)
    wait_for_segments(process, output, 1)
    readings = 0
    while process.is_alive() or not readings:
        assert_begins(cgml.read_run(output), whole("Langevin", 60))
        readings += 1
    assert_same(cgml.read_run(output), whole("Langevin", 60))


def test_a_run_is_read_while_its_segments_are_removed(inputs, whole, tmp_path) -> None:
    """Whenever they vanish: before they are listed, while they are, or before they are opened."""
    output = tmp_path / "run.h5"
    first = simulation(inputs, "Langevin")
    folder, old = segments_folder(output), tmp_path / "old"
    first.reporters.append(Copies(at=115, source=folder, target=old))
    first.run(output, steps=120, interval=INTERVAL, checkpoint_seconds=0)
    stop = threading.Event()

    def remove_and_bring_back() -> None:
        while not stop.is_set():
            shutil.copytree(old, tmp_path / "again").rename(folder)  # whole at once
            shutil.rmtree(folder)

    remover = threading.Thread(target=remove_and_bring_back)
    remover.start()
    try:
        for _ in range(100):
            assert_same(cgml.read_run(output), whole("Langevin", 12))
    finally:
        stop.set()
        remover.join()


def test_a_longer_run_beside_segments_that_were_not_removed(inputs, whole, tmp_path) -> None:
    """Old segments lie there while new ones are written, some over them."""
    output, old = tmp_path / "run.h5", tmp_path / "old"
    first = simulation(inputs, "Langevin")
    first.reporters.append(Copies(at=115, source=segments_folder(output), target=old))
    first.run(output, steps=120, interval=INTERVAL, checkpoint_seconds=0)
    old.rename(segments_folder(output))
    assert segments(output) == 11
    assert_same(cgml.read_run(output), whole("Langevin", 12))
    # Stopped at once: its first segment lies where old ones lay.
    simulation(inputs, "Langevin").run(output, steps=400, interval=INTERVAL, seconds=0)
    assert segments(output) == 1
    assert len(run := cgml.read_run(output)) == 13 and not run.finished
    assert_begins(run, whole("Langevin", 40))
    run = simulation(inputs, "Langevin").run(output, steps=400, interval=INTERVAL)
    assert_same(run, whole("Langevin", 40))


class At:
    """A reporter that does something once, at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def describeNextReport(self, simulation):
        wait = self.at - simulation.currentStep
        return (wait if wait > 0 else 10**9, False, False, False, False)


class Copies(At):
    def __init__(self, at: int, source: Path, target: Path) -> None:
        super().__init__(at)
        self.source, self.target = source, target

    def report(self, simulation, state) -> None:
        shutil.copytree(self.source, self.target)


# ---------------------------------------------------------------- stopped in order


def test_sigterm_stops_cleanly(inputs, whole, forks, tmp_path) -> None:
    output = tmp_path / "run.h5"
    process = forks(simulate, inputs, "exchange", output)
    wait_for_segments(process, output, 5)
    process.terminate()
    process.join(timeout=30)
    assert process.exitcode == 0
    run = cgml.read_run(output)
    assert 3 <= len(run) < FRAMES and not run.finished
    assert_begins(run, whole("exchange"))
    run = simulation(inputs, "exchange").run(output, steps=10 * FRAMES, interval=INTERVAL)
    assert_same(run, whole("exchange"))
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


class Stops(At):
    """Presses Ctrl-C."""

    def report(self, simulation, state) -> None:
        signal.raise_signal(signal.SIGINT)


class Sums:
    """A reporter with a state: how often it was called and the sum of the energies that it saw."""

    def __init__(self) -> None:
        self.calls, self.total = 0, 0.0

    def describeNextReport(self, simulation):
        return {"steps": 7 - simulation.currentStep % 7, "include": ["energy"]}

    def report(self, simulation, state) -> None:
        self.calls += 1
        self.total += state.getPotentialEnergy()._value

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"calls": np.array(self.calls), "total": np.array(self.total)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.calls, self.total = int(state["calls"]), float(state["total"])


def test_reporters_with_a_state_are_restored(inputs, tmp_path) -> None:
    """Stopped between frames, at a report and not at one; also by the same object."""

    def started(stop: int) -> tuple["cgml.Langevin", Sums]:
        one, sums = simulation(inputs, "Langevin"), Sums()
        one.reporters += [sums, Stops(stop)]
        return one, sums

    def go_on(one, output: Path) -> "cgml.run_file.Run":
        return one.run(output, steps=200, interval=INTERVAL)

    one, expected = started(10**9)
    whole = go_on(one, tmp_path / "whole.h5")
    assert expected.calls == 200 // 7
    for stop in (49, 88):
        one, _ = started(stop)
        assert not go_on(one, tmp_path / "run.h5").finished
    same = go_on(one, tmp_path / "run.h5")
    assert_same(same, whole)
    assert (one.reporters[0].calls, one.reporters[0].total) == (expected.calls, expected.total)
    (tmp_path / "run.h5").unlink()
    for stop in (49, 88):
        assert not go_on(started(stop)[0], tmp_path / "run.h5").finished
    one, sums = started(10**9)
    assert_same(go_on(one, tmp_path / "run.h5"), whole)
    assert (sums.calls, sums.total) == (expected.calls, expected.total)


# ---------------------------------------------------------------- other settings


@pytest.fixture(scope="module")
def begun(inputs, tmp_path_factory) -> Path:
    """A run that has begun."""
    output = tmp_path_factory.mktemp("begun") / "run.h5"
    simulation(inputs, "Langevin").run(output, steps=400, interval=INTERVAL, seconds=0)
    return output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"platform": "CPU"}, "platform was Reference, now CPU"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"temperature": 310.0}, r"temperatures_K was \[300.0\], now \[310.0\]"),
        ({"timestep": 0.001}, "timestep_ps was 0.002, now 0.001"),
        ({"friction": 2.0}, "friction_per_ps was 1.0, now 2.0"),
        ({"copies": 5}, "copies was 4, now 5"),
        ({"tether": True}, r"forces was \[\], now \['CustomExternalForce'\]"),
        ({"on_sick": "drop"}, "on_sick was reset, now drop"),
        ({"backend": "python"}, "backend was torchforce, now python"),
    ],
)
def test_another_setting_is_refused(inputs, begun, changed, message) -> None:
    if "backend" in changed and (reason := torchforce_problem()):
        pytest.skip(reason)
    before = contents(begun.parent)
    with pytest.raises(cgml.InputError, match=message):
        simulation(inputs, "Langevin", **changed).run(begun, steps=400, interval=INTERVAL)
    assert contents(begun.parent) == before


def test_another_interval_or_model_is_refused(inputs, begun, dataset, tmp_path) -> None:
    before = contents(begun.parent)
    with pytest.raises(cgml.InputError, match="steps_per_frame was 10, now 20"):
        simulation(inputs, "Langevin").run(begun, steps=400, interval=2 * INTERVAL)
    shutil.copytree(inputs, tmp_path / "inputs")
    other = cgml.SumPMF(Springs(), Springs())
    cgml.save_model(tmp_path / "inputs" / "springs.pt", other, dataset)
    with pytest.raises(cgml.InputError, match="model_sha256 was [0-9a-f]{50}.*, now [0-9a-f]{50}"):
        simulation(tmp_path / "inputs", "Langevin").run(begun, steps=400, interval=INTERVAL)
    assert contents(begun.parent) == before


def test_other_numbers_of_threads_are_refused(inputs, begun, tmp_path) -> None:
    before = contents(begun.parent)
    again = simulation(inputs, "Langevin")
    torch.set_num_threads(2)
    try:
        with pytest.raises(cgml.InputError, match="torch_threads was 1, now 2"):
            again.run(begun, steps=400, interval=INTERVAL)
    finally:
        torch.set_num_threads(1)
    assert contents(begun.parent) == before
    output = tmp_path / "run.h5"
    simulation(inputs, "CPU").run(output, steps=400, interval=INTERVAL, seconds=0)
    before = contents(tmp_path)
    other = simulation(inputs, "CPU", properties={"Threads": "2"})
    threads = "platform_properties was .*'Threads': '1'.*, now .*'Threads': '2'"
    with pytest.raises(cgml.InputError, match=threads):
        other.run(output, steps=400, interval=INTERVAL)
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- full disks


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("good", [0, 3])
def test_a_full_disk_ends_the_run_and_space_lets_it_go_on(
    inputs, whole, good, number, tmp_path, monkeypatch
) -> None:
    output = tmp_path / "run.h5"
    one = simulation(inputs, "exchange")
    write_bytes = Path.write_bytes

    def fills(path: Path, data: bytes) -> int:
        if segments(output) == good:
            write_bytes(path, data[:1000])
            raise full(number)
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fills)
    settings = {"steps": 200, "interval": INTERVAL, "checkpoint_seconds": 0}
    with pytest.raises(cgml.InputError, match="the disk is full.*is safe: make room.*same run"):
        one.run(output, **settings)
    monkeypatch.undo()
    assert len(list(segments_folder(output).iterdir())) == good, "the half-written one takes room"
    if good:
        run = cgml.read_run(output)
        assert len(run) == 2 and not run.finished
        assert_begins(run, whole("exchange", 20))
        assert_same(one.run(output, **settings), whole("exchange", 20))  # the same object
    else:
        assert_same(simulation(inputs, "exchange").run(output, **settings), whole("exchange", 20))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True,
                       capture_output=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_really_full(inputs, whole, small_disk) -> None:
    output, settings = small_disk / "run.h5", {"steps": 200, "interval": INTERVAL}
    taken = small_disk / "taken"
    taken.write_bytes(bytes((1 << 20) - 200_000))
    with pytest.raises(cgml.InputError, match="the disk is full"):
        simulation(inputs, "Langevin").run(output, **settings, checkpoint_seconds=0)
    assert 1 <= len(cgml.read_run(output)) < 20
    assert_begins(cgml.read_run(output), whole("Langevin", 20))
    taken.unlink()
    # Now there is room for the segments, but not for both them and the joined file.
    run = simulation(inputs, "Langevin").run(output, **settings)
    assert not output.exists() and segments_folder(output).exists()
    assert run.finished
    assert_begins(run, whole("Langevin", 20))
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    assert_same(simulation(inputs, "Langevin").run(output, **settings), whole("Langevin", 20))
    assert [p.name for p in small_disk.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("how", ["disk", "quota"])
def test_without_room_to_join_segments_they_stay(
    inputs, whole, how, tmp_path, monkeypatch, caplog
) -> None:
    output, settings = tmp_path / "run.h5", {"steps": 200, "interval": INTERVAL}
    uncut = whole("exchange", 20)  # made before the disk is full

    def no_room(*_):
        raise full(errno.EDQUOT)

    if how == "disk":
        monkeypatch.setattr(run_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    else:
        monkeypatch.setattr(run_file.os, "posix_fallocate", no_room, raising=False)
    one = simulation(inputs, "exchange")
    run = one.run(output, **settings, checkpoint_seconds=0)
    assert "stays in segments" in caplog.text and "make room" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5.segments"]
    assert run.finished and len(run) == 20
    assert_begins(run, uncut)
    monkeypatch.undo()
    assert_same(one.run(output, **settings), uncut)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    assert np.isfinite(cgml.read_run(output).info.get("replica_steps_per_second", 0.0))


def simulate_with_small_files(inputs: Path, output: Path, said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    try:
        simulate(inputs, "Langevin", output, 20)
    except cgml.InputError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        said.write_text(str(error))


def test_a_limit_on_the_size_of_files_is_told_from_a_full_disk(inputs, forks, tmp_path) -> None:
    process = forks(simulate_with_small_files, inputs, tmp_path / "run.h5", tmp_path / "said")
    process.join()
    assert process.exitcode == 0
    said = (tmp_path / "said").read_text()
    assert "File too large" in said and "full" not in said and "000000.h5" in said


# ---------------------------------------------------------------- damaged segments


@pytest.fixture(scope="module")
def five_segments(inputs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("five") / "run.h5"
    one = simulation(inputs, "Langevin")
    one.reporters.append(Stops(45))
    one.run(output, steps=200, interval=INTERVAL, checkpoint_seconds=0)
    assert segments(output) == 5
    return output


@pytest.mark.parametrize(
    ("damage", "which"),
    [("missing", 1), *((d, n) for d in ("cut", "empty", "overwritten") for n in (1, 4))],
)
def test_a_damaged_segment_is_named(inputs, whole, five_segments, damage, which, tmp_path) -> None:
    output = tmp_path / "run.h5"
    folder = Path(shutil.copytree(segments_folder(five_segments), segments_folder(output)))
    segment = folder / f"{which:06d}.h5"
    data = segment.read_bytes()
    if damage == "missing":
        segment.unlink()
    else:
        segment.write_bytes(
            {"cut": data[: len(data) // 2], "empty": b"", "overwritten": b"x" * len(data)}[damage]
        )
    before = contents(tmp_path)
    for act in (
        lambda: cgml.read_run(output),
        lambda: simulation(inputs, "Langevin").run(output, steps=200, interval=INTERVAL),
    ):
        with pytest.raises(cgml.InputError, match=f"{segment}|{segment.name}"):
            act()
    assert contents(tmp_path) == before
    # As the message says: without it and those after it, the run goes on.
    for number in range(which, 5):
        (folder / f"{number:06d}.h5").unlink(missing_ok=True)
    assert_begins(cgml.read_run(output), whole("Langevin", 20))
    run = simulation(inputs, "Langevin").run(output, steps=200, interval=INTERVAL)
    assert_same(run, whole("Langevin", 20))


def test_files_of_a_rank_that_a_kill_left_alone_are_removed(dataset, tmp_path) -> None:
    """Rank 0 had written a segment that rank 1 had not; neither may pair it with a later one."""
    output = tmp_path / "run.h5"
    info = {"copies": 2, "ranks": 2, "temperatures_K": [300.0]}

    def write(rank: int, step: int, frames: int) -> None:
        writer = RunWriter(output, dataset.topology, info, rank)
        for frame in range(frames):
            writer.add(
                positions=np.full((1, len(dataset.topology), 3), rank), time=step + frame,
                energy=[rank], kinetic_energy=[0], rung=[0], sick=[False], extrapolating=[False],
            )  # fmt: skip
        writer.flush(Checkpoint(step, {}, {}, b""))

    write(0, 1, 2)
    with pytest.raises(cgml.InputError, match="does not exist"):
        cgml.read_run(output)
    # Started again, with segments at other times.
    one = RunWriter(output, dataset.topology, info, 0)
    assert not list(segments_folder(output).iterdir())
    write(1, 1, 3)
    with pytest.raises(cgml.InputError, match="does not exist"):
        cgml.read_run(output)
    del one
    write(0, 1, 3)
    run = cgml.read_run(output)
    assert run.positions.shape[:2] == (3, 2)
    assert run.energy.tolist() == [[0, 1]] * 3


# ---------------------------------------------------------------- what only some runs have


def test_the_uncertainty_of_an_ensemble_goes_on(dataset, tmp_path) -> None:
    """To the bit, though each start is a new program; what was reported is not again."""
    net = cgml.PMFS["cgnet"](dataset, width=8, depth=2)
    pmf = EnsemblePMF(Springs(), cgml.SumPMF(Springs(), net))
    metrics = {"force_uncertainty": {"typical": 1.0, "limit": 30.0}}
    # Not a FitResult: importing that takes seconds, in every process that the tests here start.
    trained = SimpleNamespace(pmf=pmf, dataset=dataset, history=[], metrics=metrics)
    cgml.save_model(tmp_path / "model.pt", trained)

    def run(name: str, **limits: float) -> "cgml.run_file.Run":
        return cgml.Langevin(tmp_path / "model.pt", dataset, 4).run(
            tmp_path / name, steps=80, interval=INTERVAL, checkpoint_seconds=0, **limits
        )

    once = run("whole.h5")
    assert once.force_uncertainty.shape == (8, 4) and once.extrapolating.any()
    assert len(once.events) == once.extrapolating.any(axis=0).sum()
    part = run("run.h5", seconds=0)
    assert not part.finished and 0 < len(part) < 8
    assert np.array_equal(part.force_uncertainty, once.force_uncertainty[: len(part)])
    again = run("run.h5")
    assert_same(again, once)
    assert np.array_equal(again.force_uncertainty, once.force_uncertainty)


def test_ranks_join_their_uncertainties(dataset, tmp_path) -> None:
    """Of segments with frames and without."""
    output = tmp_path / "run.h5"
    info = {"copies": 3, "ranks": 2, "temperatures_K": [300.0], "force_uncertainty": {}}
    writers = [RunWriter(output, dataset.topology, info, rank) for rank in range(2)]
    for step, frames in ((0, 0), (2, 2), (3, 1)):
        for rank, writer in enumerate(writers):
            none = np.zeros(rank + 1)
            for frame in range(frames):
                writer.add(
                    positions=np.zeros((rank + 1, len(dataset.topology), 3)), time=step + frame,
                    energy=none, kinetic_energy=none, rung=none, sick=none, extrapolating=none,
                    force_uncertainty=10 * np.arange(rank, 2 * rank + 1) + step + frame,
                )  # fmt: skip
            writer.flush(Checkpoint(step, {}, {}, b""))
    expected = np.array([[2, 12, 22], [3, 13, 23], [3, 13, 23]])
    assert np.array_equal(cgml.read_run(output).force_uncertainty, expected)
    writers[0].finish()
    assert np.array_equal(cgml.read_run(output).force_uncertainty, expected)
    assert np.array_equal(cgml.read_run(output, stride=2).force_uncertainty, expected[::2])
