"""A copy that is no longer finite: found, healed or dropped, and nothing to the others."""

import shutil
import signal
from pathlib import Path

import torch  # before openmm

import h5py
import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml.files import segments_folder
from openmm_cgml.force import backend_problem
from openmm_cgml.run_file import FRAME_ARRAYS
from openmm_cgml.simulate import SimulationError, _Loop
from openmm_cgml.units import thermal_energy

pytestmark = pytest.mark.backend

COPIES, SICK = 100, 37
INTERVAL = 0.1  # ps, 50 steps

PLATFORMS = [("Reference", None), ("CPU", {"Threads": "1"})]
platforms = pytest.mark.parametrize(("platform", "properties"), PLATFORMS, ids=lambda p: str(p))


class PoisonedSprings(cgml.PMF):
    """Springs along the chain; NaN where the first bead is in a slab at 5 nm, and from 5.5 nm."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        bonds = positions[:, 1:] - positions[:, :-1]
        energies = 400.0 * bonds.square().sum(dim=(1, 2))
        # A factor: a NaN that where() leaves out would still be in its gradient.
        one = torch.ones_like(energies)
        x = positions[:, 0, 0]
        poisoned = ((x > 5.0) & (x < 5.03)) | (x > 5.5)
        return energies * torch.where(poisoned, float("nan") * one, one)

    def arguments(self) -> dict:
        return {}


@pytest.fixture(scope="module")
def poisoned(dataset, tmp_path_factory) -> "cgml.system.Model":
    path = tmp_path_factory.mktemp("poisoned") / "poisoned.pt"
    cgml.save_model(path, PoisonedSprings(), dataset)
    return cgml.load_model(path)


def drift(energy: str = "-100*x") -> "openmm.Force":
    """Pull every copy along x: 1 nm takes half a picosecond."""
    force = openmm.CustomExternalForce(energy)
    for bead in range(5):
        force.addParticle(bead)
    return force


#: Stops being real at 4 nm, so positions become NaN.
ROOT = "-100*x + 1e-9*sqrt(4-x)"


def start(copies: int = COPIES, **first_x: float) -> np.ndarray:
    """Samples of the springs at x = 0, but some copies elsewhere: c37=4.0."""
    rng = np.random.default_rng(0)
    bonds = np.sqrt(thermal_energy(300) / 800) * rng.standard_normal((copies, 4, 3))
    x = np.concatenate([np.zeros((copies, 1, 3)), np.cumsum(bonds, axis=1)], axis=1)
    for copy, place in first_x.items():
        x[int(copy[1:]), :, 0] += place
    return x


def assert_others_identical(run, healthy, sick: list[int]) -> None:
    others = np.delete(np.arange(run.positions.shape[1]), sick)
    assert len(run) == len(healthy)
    for name in FRAME_ARRAYS:
        if name != "time":
            ours, theirs = getattr(run, name)[:, others], getattr(healthy, name)[:, others]
            assert np.array_equal(ours, theirs), name
    assert np.isfinite(run.positions).all() and np.isfinite(run.energy).all()
    assert np.isfinite(run.kinetic_energy).all()
    assert not run.sick[:, others].any()


# ---------------------------------------------------------------- the PMF is NaN


@pytest.mark.parametrize(
    ("platform", "properties", "backend"),
    [
        ("Reference", None, "torchforce"),
        ("CPU", {"Threads": "1"}, "torchforce"),
        ("Reference", None, "native"),
        ("CPU", {"Threads": "1"}, "native"),
        ("Reference", None, "python"),
    ],
)
def test_99_others_do_not_notice(poisoned, platform, properties, backend, tmp_path) -> None:
    """Copy 37 drifts to where its energy is NaN; it starts again and the others go on."""
    if reason := backend_problem(backend):
        pytest.skip(reason)

    def run(name: str, **first_x: float) -> "cgml.run_file.Run":
        one = cgml.Langevin(
            poisoned, start(**first_x), COPIES, forces=[drift()], platform=platform,
            properties=properties, backend=backend,
        )  # fmt: skip
        return one.run(tmp_path / name, ns=0.0008, interval=INTERVAL)

    healthy, ill = run("healthy.h5"), run("ill.h5", c37=4.0)
    assert not healthy.sick.any() and healthy.events == []
    assert_others_identical(ill, healthy, [SICK])
    (when,) = np.flatnonzero(ill.sick[:, SICK])
    assert 2 <= when <= 6  # not at the start
    (event,) = ill.events
    assert event["what"] == "reset" and event["copy"] == SICK
    assert event["time_ps"] == pytest.approx(ill.time[when])
    assert "energy or forces not finite" in event["why"] and event["temperature_K"] == 300
    # It is where some copy started, as the same float32.
    places = start(c37=4.0).astype(np.float32)
    again = ill.positions[when, SICK]
    assert (again == places).all(axis=(1, 2)).sum() == 1
    assert ill.positions[when - 1, SICK, 0, 0] > 4.5 and again[0, 0] < 0.1
    assert 0 < ill.kinetic_energy[when, SICK] < 100


def test_a_dropped_copy_is_flagged_for_good(poisoned, tmp_path) -> None:
    one = cgml.Langevin(poisoned, start(9, c4=4.0), 9, forces=[drift()], on_sick="drop")
    run = one.run(tmp_path / "run.h5", ns=0.0008, interval=INTERVAL)
    (event,) = run.events
    assert event["what"] == "dropped" and event["copy"] == 4
    first = int(np.flatnonzero(run.sick[:, 4])[0])
    assert run.time[first] == pytest.approx(event["time_ps"])
    assert run.sick[first:, 4].all() and not run.sick[:first].any()
    assert not np.delete(run.sick, 4, axis=1).any()
    assert np.isfinite(run.positions).all()
    # Also when it goes on later, by another process.
    again = cgml.Langevin(poisoned, start(9, c4=4.0), 9, forces=[drift()], on_sick="drop")
    longer = again.run(tmp_path / "run.h5", ns=0.001, interval=INTERVAL)
    assert longer.sick[first:, 4].all() and len(longer) == 10 and longer.events == run.events


@pytest.mark.parametrize("energy", ["-100*x", ROOT], ids=["PMF", "force"])
@platforms
def test_raise_names_copy_and_time(poisoned, platform, properties, energy, tmp_path) -> None:
    def run(on_sick: str) -> "cgml.run_file.Run":
        one = cgml.Langevin(
            poisoned, start(9, c4=3.5 if "sqrt" in energy else 4.0), 9, forces=[drift(energy)],
            on_sick=on_sick, platform=platform, properties=properties,
        )  # fmt: skip
        return one.run(tmp_path / f"{on_sick}.h5", ns=0.0008, interval=INTERVAL)

    whole = run("reset")
    with pytest.raises(
        SimulationError, match=r"copy 4 \(1 of 9\) is no longer finite at 0\.\d+ ps"
    ):
        run("raise")
    kept = cgml.read_run(tmp_path / "raise.h5")
    assert 2 <= len(kept) == int(np.flatnonzero(whole.sick[:, 4])[0])
    assert np.array_equal(kept.positions, whole.positions[: len(kept)])
    assert not kept.finished and not kept.sick.any()
    with pytest.raises(SimulationError, match=r"copy 4"):
        run("raise")
    assert len(cgml.read_run(tmp_path / "raise.h5")) == len(kept)


# ---------------------------------------------------------------- positions are NaN


@platforms
def test_a_users_force_that_is_nan_is_nothing_to_the_others(
    poisoned, platform, properties, tmp_path
) -> None:
    """Here CPU throws for the whole Context, and Reference goes on with NaN."""

    def run(name: str, **first_x: float) -> "cgml.run_file.Run":
        one = cgml.Langevin(
            poisoned, start(**first_x), COPIES, forces=[drift(ROOT)], platform=platform,
            properties=properties,
        )  # fmt: skip
        return one.run(tmp_path / name, ns=0.0008, interval=INTERVAL)

    healthy, ill = run("healthy.h5"), run("ill.h5", c37=3.5)
    assert_others_identical(ill, healthy, [SICK])
    (event,) = ill.events
    assert event["copy"] == SICK and event["why"] == "positions not finite"
    (when,) = np.flatnonzero(ill.sick[:, SICK])
    assert ill.time[when] - INTERVAL - 1e-6 < event["time_ps"] < ill.time[when] + 1e-6


@platforms
def test_two_copies_in_one_interval(poisoned, platform, properties, tmp_path) -> None:
    """Lost one after the other within one interval: each is healed once."""

    def run(name: str, **first_x: float) -> "cgml.run_file.Run":
        one = cgml.Langevin(
            poisoned, start(9, **first_x), 9, forces=[drift(ROOT)], platform=platform,
            properties=properties, seed=3,
        )  # fmt: skip
        return one.run(tmp_path / name, ns=0.0008, interval=0.4)

    healthy, ill = run("healthy.h5"), run("ill.h5", c2=3.9, c5=3.6)
    assert_others_identical(ill, healthy, [2, 5])
    assert sorted(event["copy"] for event in ill.events) == [2, 5]
    assert np.array_equal(ill.sick[:, [2, 5]], [[True, True], [False, False]])


def test_a_copy_that_cannot_be_healed_is_named(poisoned, tmp_path) -> None:
    one = cgml.Langevin(
        poisoned, start(2, c0=4.5, c1=4.5), 2, forces=[drift(ROOT)], platform="CPU"
    )
    with pytest.raises(SimulationError, match="copy 0 stops being finite again and again"):
        one.run(tmp_path / "run.h5", ns=0.0008, interval=INTERVAL)
    assert len(cgml.read_run(tmp_path / "run.h5")) == 0


@platforms
def test_copies_are_sick_from_the_start(poisoned, platform, properties, tmp_path) -> None:
    """Most of the starts are useless: they are drawn again until they are not."""
    places = {f"c{k}": 6.0 for k in range(1, 6)}
    one = cgml.Langevin(
        poisoned, start(8, **places), 8, platform=platform, properties=properties, seed=1
    )
    run = one.run(tmp_path / "run.h5", ns=0.003, interval=INTERVAL)
    assert not run.sick[-1].any() and not run.sick[:, [0, 6, 7]].any()
    assert len(run.events) == run.sick.sum() > 5
    assert np.isfinite(run.positions).all()


def test_the_next_start_is_minimised_as_the_first_was(poisoned, tmp_path) -> None:
    one = cgml.Langevin(poisoned, 8 * start(9), 9, minimize=True)
    relaxed = one.positions
    moved = relaxed + 6.0 * (np.arange(9) == 4)[:, None, None]
    one.context.setPositions(moved.reshape(-1, 3))
    run = one.run(tmp_path / "run.h5", steps=50, interval=INTERVAL)
    assert run.sick.tolist() == [[k == 4 for k in range(9)]]
    assert (run.positions[0, 4] == relaxed.astype(np.float32)).all(axis=(1, 2)).sum() == 1


# ---------------------------------------------------------------- outside the training data


def test_a_copy_outside_the_training_data_is_reported_once(model, dataset, tmp_path) -> None:
    begin = dataset.positions[:5].astype(np.float64)
    begin[2] += (begin[2] - begin[2, 0]) * 0.5  # bonds half as long again

    def run(name: str, **limit: float) -> "cgml.run_file.Run":
        return cgml.Langevin(model, begin, 5).run(
            tmp_path / name, steps=60, interval=0.02, checkpoint_seconds=0, **limit
        )

    whole = run("whole.h5")
    assert whole.extrapolating[0, 2] and not whole.extrapolating[0, 0]
    mine = [event for event in whole.events if event["copy"] == 2]
    assert [event["what"] for event in mine] == ["extrapolating"]
    assert mine[0]["time_ps"] == pytest.approx(0.02) and "training data" in mine[0]["why"]
    copies = [event["copy"] for event in whole.events]
    assert len(copies) == len(set(copies))
    assert not whole.sick.any()
    # Nor is it reported again when the run goes on.
    for _ in range(2):
        assert not run("again.h5", seconds=0).finished
    again = run("again.h5")
    assert again.events == whole.events
    assert np.array_equal(again.positions, whole.positions)
    assert np.array_equal(again.extrapolating, whole.extrapolating)


# ---------------------------------------------------------------- replica exchange


def exchange(poisoned, on_sick: str, **first_x: float) -> "cgml.ReplicaExchange":
    return cgml.ReplicaExchange(
        poisoned, start(6, **first_x), [300, 320, 340], copies=2, exchange_interval=0.02,
        forces=[drift()], on_sick=on_sick, seed=5,
    )  # fmt: skip


def test_a_dropped_copy_no_longer_exchanges(poisoned, tmp_path) -> None:
    healthy = exchange(poisoned, "drop").run(tmp_path / "a.h5", ns=0.0006, interval=INTERVAL)
    run = exchange(poisoned, "drop", c1=4.9).run(tmp_path / "b.h5", ns=0.0006, interval=INTERVAL)
    (event,) = run.events
    rungs = run.exchange_rung[run.exchange_time > event["time_ps"] - 1e-6, 1]
    assert len(rungs) > 10 and (rungs == rungs[0]).all()
    assert event["temperature_K"] == run.temperatures[rungs[0]]
    # The other ladder goes on as it would have, and this one's other copies exchange.
    for name in ("positions", "energy", "kinetic_energy", "rung"):
        ours, theirs = getattr(run, name)[:, 3:], getattr(healthy, name)[:, 3:]
        assert np.array_equal(ours, theirs), name
    assert np.array_equal(run.exchange_rung[:, 3:], healthy.exchange_rung[:, 3:])
    assert (np.sort(run.exchange_rung[:, :3], axis=1) == [0, 1, 2]).all()


# ---------------------------------------------------------------- and restarts


class Counts:
    """A reporter at other steps than frames and exchanges."""

    def describeNextReport(self, simulation):
        return (7 - simulation.currentStep % 7, False, False, False, False)

    def report(self, simulation, state) -> None:
        pass


class Copies(Counts):
    """Keeps the segments, which a finished run removes."""

    def __init__(self, output: Path, target: Path) -> None:
        self.output, self.target = output, target

    def describeNextReport(self, simulation):
        wait = 148 - simulation.currentStep
        return (wait if wait > 0 else 10**9, False, False, False, False)

    def report(self, simulation, state) -> None:
        shutil.copytree(segments_folder(self.output), self.target)


def assert_same(run, whole) -> None:
    for name in FRAME_ARRAYS:
        assert np.array_equal(getattr(run, name), getattr(whole, name)), name
    assert np.array_equal(run.exchange_rung, whole.exchange_rung)
    assert run.events == whole.events and run.finished


@pytest.mark.parametrize("on_sick", ["reset", "drop"])
def test_kills_around_a_reset_change_nothing(poisoned, on_sick, tmp_path) -> None:
    """A reset is found at an exchange, between frames; a kill comes before, at or after it.

    With the segments that were there at any moment, the run goes on to the same end.
    """

    def go_on(output: Path, *reporters) -> "cgml.run_file.Run":
        one = exchange(poisoned, on_sick, c1=4.96)
        one.reporters += [Counts(), *reporters]
        return one.run(output, steps=150, interval=INTERVAL, checkpoint_seconds=0)

    whole = go_on(tmp_path / "whole.h5", Copies(tmp_path / "whole.h5", tmp_path / "kept"))
    (event,) = whole.events
    step = round(event["time_ps"] / 0.002)
    assert 50 < step < 150 and step % 10 == 0 and step % 50, "the reset is to be between frames"
    for then in (step - 10, step, step + 1):
        assert_same(go_on(killed_at(then, tmp_path)), whole)


def test_kills_after_a_copy_was_sick_for_a_moment(poisoned, tmp_path) -> None:
    """It is well again when the frame comes, but was held still, so it starts again."""

    def go_on(output: Path, *reporters) -> "cgml.run_file.Run":
        one = cgml.Langevin(poisoned, start(6, c1=4.97), 6, forces=[drift()])
        one.reporters += [Counts(), *reporters]
        return one.run(output, steps=150, interval=INTERVAL, checkpoint_seconds=0)

    whole = go_on(tmp_path / "whole.h5", Copies(tmp_path / "whole.h5", tmp_path / "kept"))
    assert [event["copy"] for event in whole.events] == [1]
    assert whole.sick[:, 1].tolist() == [False, False, True]
    for then in (119, 133, 147):
        assert_same(go_on(killed_at(then, tmp_path)), whole)


def killed_at(step: int, folder: Path) -> Path:
    """Return a run of the segments that were there at a step."""
    output = folder / f"{step}.h5"
    segments_folder(output).mkdir()
    for segment in (folder / "kept").iterdir():
        with h5py.File(segment) as handle:
            before = handle.attrs["step"] <= step
        if before:
            shutil.copy(segment, segments_folder(output))
    return output


def test_ctrl_c_after_a_reset_in_the_same_interval(poisoned, tmp_path, monkeypatch) -> None:
    """CPU: the copy is healed and the interval done again; stopped there, it is done once more."""

    def go_on(output: Path) -> "cgml.run_file.Run":
        one = cgml.Langevin(
            poisoned, start(9, c4=3.5), 9, forces=[drift(ROOT)], platform="CPU",
            properties={"Threads": "1"},
        )  # fmt: skip
        return one.run(output, ns=0.0008, interval=INTERVAL)

    whole = go_on(tmp_path / "whole.h5")
    heal = _Loop._heal

    def heal_and_press(self, *arguments) -> None:
        heal(self, *arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Loop, "_heal", heal_and_press)
    stopped = go_on(tmp_path / "run.h5")
    assert not stopped.finished and not stopped.events and not stopped.sick.any()
    monkeypatch.undo()
    assert_same(go_on(tmp_path / "run.h5"), whole)
    assert len(whole.events) == 1
