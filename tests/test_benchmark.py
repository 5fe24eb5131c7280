"""The benchmark of a model: sane figures, the right choice of copies, limits that hold."""

import json
import time

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import benchmark as module
from openmm_cgml.benchmark import BenchmarkReport, Speed, backend_speeds, benchmark
from openmm_cgml.force import BACKENDS, backend_problem


@pytest.fixture(scope="module")
def report(model, dataset) -> BenchmarkReport:
    for seconds in (4, 16, 60):  # a busy machine takes seconds for the set-up alone
        one = benchmark(model, dataset, copies=(4, 1, 4), seconds=seconds, platform="Reference")
        if len(one.speeds) == 2 and not one.notes:
            break
    return one


def test_figures_are_sane(report, model) -> None:
    assert [s.copies for s in report.speeds] == [1, 4]
    for speed in report.speeds:
        assert speed.platform == "Reference"
        assert 0 < speed.step_seconds < 1 and speed.spread_seconds >= 0
        assert 0 < speed.force_seconds < 1 and speed.setup_seconds > 0
        assert speed.throughput == pytest.approx(speed.copies / speed.step_seconds)
        assert 0 <= speed.rest_seconds <= speed.step_seconds
    assert report.best in report.speeds
    # Four copies in one call cost far less than four calls.
    assert report.best.copies == 4
    assert report.frame_seconds is not None and report.exchange_seconds is not None
    assert 0 <= report.frame_seconds < 1 and 0 <= report.exchange_seconds < 1
    assert report.model == model.file.name and report.beads == len(model.topology)
    assert report.threads >= 1 and report.notes == ()


def test_record_and_text(report) -> None:
    record = json.loads(json.dumps(report.record()))
    assert record["best"] == record["speeds"][1]
    assert record["speeds"][0]["replica_steps_per_second"] > 0
    text = report.text()
    assert len([line for line in text.splitlines() if line.startswith("Reference")]) == 2
    assert "replica-steps/s" in text and "<- best" in text and "an exchange" in text
    assert max(len(line) for line in text.splitlines()) < 100


def speed(platform: str, copies: int, throughput: float) -> Speed:
    return Speed(
        platform, copies, "native", copies / throughput, 0.0, 0.5 * copies / throughput, 0.1
    )


def test_best_is_the_fewest_copies_near_the_highest_throughput() -> None:
    speeds = (
        speed("Reference", 10, 960.0),  # near, but of another platform
        speed("CPU", 10, 500.0),
        speed("CPU", 100, 951.0),
        speed("CPU", 200, 1000.0),
        speed("CPU", 500, 990.0),
    )
    report = BenchmarkReport("m.pt", 5, "torchforce", 1, speeds)
    assert report.best is speeds[2]
    assert "gain less than 5 %" in report.text()
    report = BenchmarkReport("m.pt", 5, "torchforce", 1, speeds[:3], notes=("CPU: out of time",))
    assert "more copies not measured" in report.text()
    assert report.text().endswith("CPU: out of time")


def test_every_platform_that_works(model, dataset) -> None:
    report = benchmark(model, dataset, copies=[2], seconds=1)
    assert {s.platform for s in report.speeds} >= {"Reference", "CPU"}


def test_one_positions_array_will_do(model, dataset) -> None:
    start = np.asarray(dataset.positions[0])
    report = benchmark(
        model, start, copies=[2], seconds=0.5, platform="Reference", backend="python"
    )
    assert report.backend == report.best.backend == "python" and report.best.copies == 2


def test_a_force_that_remembers_positions_is_timed_at_new_ones(model, dataset) -> None:
    report = benchmark(
        model, dataset, copies=[100], seconds=1, platform="Reference", backend="native"
    )
    assert report.backend == "native"
    # Remembered, it takes a few microseconds of the hundreds of a step.
    assert report.best.force_seconds > 0.4 * report.best.step_seconds


def test_speeds_of_backends(model, dataset, monkeypatch, caplog) -> None:
    speeds = backend_speeds(model, dataset, 3, platform="Reference", seconds=0.2)
    assert list(speeds) == [b for b in BACKENDS if backend_problem(b) is None]
    assert all(np.isfinite(s) and s > 0 for s in speeds.values())

    def broken(_):
        raise cgml.BackendError("no such thing here")

    # One that turns out not to run is left out, and said.
    monkeypatch.setattr("openmm_cgml.force.PythonForceBackend.create", broken)
    speeds = backend_speeds(model, dataset, 3, platform="Reference", seconds=0.1)
    assert "torchforce" in speeds and "python" not in speeds
    assert "backend 'python' does not run: no such thing here" in caplog.text
    with pytest.raises(cgml.InputError, match="platform 'Abacus'"):
        backend_speeds(model, dataset, 3, platform="Abacus")


def test_time_limit(model, dataset) -> None:
    began = time.monotonic()
    report = benchmark(model, dataset, seconds=0.01, platform="Reference")
    assert time.monotonic() - began < 10
    assert [s.copies for s in report.speeds] == [1]
    assert report.frame_seconds is None and report.exchange_seconds is None
    assert "2 copies and more were not measured: out of time" in report.notes[0]


def test_memory_limit(model, dataset, monkeypatch) -> None:
    def memory(file: str, name: str) -> float:
        return 5e9 if name == "MemAvailable" else next(gigabytes)

    monkeypatch.setattr(module, "_memory", memory)
    for seconds in (4, 16, 60):
        gigabytes = iter([1e9, 2e9])
        one = benchmark(model, dataset, copies=[1, 2, 20], seconds=seconds, platform="Reference")
        if "memory" in one.notes[0]:
            break
    assert [s.copies for s in one.speeds] == [1, 2]
    assert "20 copies and more were not measured: out of memory" in one.notes[0]


def test_bad_input(model, dataset) -> None:
    with pytest.raises(cgml.InputError, match="give start"):
        benchmark(model, None)
    with pytest.raises(cgml.InputError, match="numbers of at least 1"):
        benchmark(model, dataset, copies=(0, 3))
    with pytest.raises(cgml.InputError, match="seconds is 0"):
        benchmark(model, dataset, seconds=0)
    with pytest.raises(cgml.InputError, match="platform 'Abacus'"):
        benchmark(model, dataset, platform="Abacus")
