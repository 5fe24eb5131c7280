"""Langevin dynamics: exact statistics, files that survive, copies that are independent."""

import signal
from pathlib import Path

import torch  # before openmm

import h5py
import mdtraj
import numpy as np
import openmm
import pytest
from handmade import Springs
from openmm import app, unit

import openmm_cgml as cgml
from openmm_cgml.engine import find_platform
from openmm_cgml.force import BACKENDS
from openmm_cgml.pmf.ensemble import EnsemblePMF
from openmm_cgml.replicas import replicate_topology
from openmm_cgml.run_file import outside_training
from openmm_cgml.simulate import SimulationError
from openmm_cgml.train import FitResult
from openmm_cgml.units import thermal_energy

SPRING = 800.0  # kJ/mol/nm^2


@pytest.fixture(scope="module")
def springs(dataset, tmp_path_factory) -> "cgml.system.Model":
    path = tmp_path_factory.mktemp("springs") / "springs.pt"
    cgml.save_model(path, Springs(), dataset)
    return cgml.load_model(path)


def start(copies: int, seed: int = 0) -> np.ndarray:
    """Exact samples of the springs' ensemble."""
    rng = np.random.default_rng(seed)
    bonds = np.sqrt(thermal_energy(300) / SPRING) * rng.standard_normal((copies, 4, 3))
    return np.concatenate([np.zeros((copies, 1, 3)), np.cumsum(bonds, axis=1)], axis=1)


def test_harmonic_ensemble_is_exact(springs, tmp_path) -> None:
    """Variance of every bond vector is kT/k; LFMiddle is exact for harmonic positions."""
    copies = 300
    # Started far too narrow: only dynamics can bring the right variance about.
    simulation = cgml.Langevin(springs, 0.1 * start(copies), copies, timestep=0.004, seed=2)
    run = simulation.run(tmp_path / "run.h5", ns=0.04, interval=1.0)
    bonds = np.diff(run.positions[15:].astype(np.float64), axis=2)
    per_copy = (bonds**2).mean(axis=(0, 3))  # copies are independent: their spread is the error
    expected = thermal_energy(300) / SPRING
    z = (per_copy.mean(0) - expected) / (per_copy.std(0, ddof=1) / np.sqrt(copies))
    assert np.abs(z).max() < 4, z  # 4 comparisons
    # Different bonds are uncorrelated: springs of one copy only.
    cross = (bonds[:, :, 0] * bonds[:, :, 2]).mean(axis=(0, 2))
    assert abs(cross.mean() / (cross.std(ddof=1) / np.sqrt(copies))) < 4
    neighbours = (bonds[:, :-1] * bonds[:, 1:]).mean(axis=(0, 2, 3))
    assert abs(neighbours.mean() / (neighbours.std(ddof=1) / np.sqrt(copies - 1))) < 4


def test_temperature_is_that_asked_for(springs, tmp_path, caplog) -> None:
    """Kinetic energy of all degrees of freedom: no centre-of-mass motion is removed."""
    simulation = cgml.Langevin(springs, start(200), 200, temperature=450 * unit.kelvin, seed=1)
    assert "not the physical one" in caplog.text
    kinetic = []
    for _ in range(60):
        simulation.integrator.step(200)
        velocities = simulation.context.getState(getVelocities=True).getVelocities(asNumpy=True)
        masses = np.tile(springs.topology.masses, 200)[:, None]
        kinetic.append(0.5 * (masses * velocities._value**2).reshape(200, -1).sum(1))
    per_copy = np.mean(kinetic[10:], axis=0)
    expected = 15 / 2 * thermal_energy(450)
    z = (per_copy.mean() - expected) / (per_copy.std(ddof=1) / np.sqrt(200))
    assert abs(z) < 4


def test_same_seed_same_trajectory(springs, tmp_path) -> None:
    first, same, other = (
        cgml.Langevin(springs, start(5), 5, seed=s).run(tmp_path / f"{k}.h5", steps=500).positions
        for k, s in enumerate((1, 1, 2))
    )
    assert np.array_equal(first, same)
    assert not np.allclose(first, other)


def test_run_file_holds_what_was_asked_for(model, dataset, tmp_path) -> None:
    simulation = cgml.Langevin(
        model, dataset, 6, timestep=2 * unit.femtoseconds, friction=1 / unit.picosecond
    )
    run = simulation.run(tmp_path / "run.h5", ns=0.002, interval=0.25)
    assert run.positions.shape == (8, 6, 5, 3)
    assert np.allclose(run.time, 0.25 * np.arange(1, 9))
    assert run.topology == dataset.topology
    assert run.info["backend"] == simulation.engine.backend in BACKENDS
    compiled = run.info["backend"] == "native"
    assert run.info["program"] == ("compiled" if compiled else "TorchScript")
    assert run.info["copies"] == 6 and run.info["temperatures_K"] == [300]
    assert run.info["replica_steps_per_second"] > 0
    again = cgml.read_run(tmp_path / "run.h5")
    assert np.array_equal(again.positions, run.positions) and again.info == run.info
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    with h5py.File(tmp_path / "run.h5") as handle:
        assert handle["frames/positions"].attrs["unit"] == b"nm"


def test_starts_are_drawn_by_weight(model, dataset) -> None:
    drawn = cgml.Langevin(model, dataset, 50, seed=4).positions
    allowed = dataset.positions[dataset.weights > 0].astype(np.float64)
    for copy in drawn:
        assert np.abs(allowed - copy).max(axis=(1, 2)).min() < 1e-6


def test_ctrl_c_keeps_the_frames_and_the_run_goes_on(springs, tmp_path, caplog) -> None:
    """SIGINT stops the run at an event; started again, it is as if it had never stopped."""
    whole = cgml.Langevin(springs, start(3), 3).run(tmp_path / "whole.h5", ns=0.01)
    simulation = cgml.Langevin(springs, start(3), 3)
    simulation.reporters.append(Interrupts(at=2130))
    run = simulation.run(tmp_path / "run.h5", ns=0.01)
    assert not run.finished and 4 <= len(run) <= 9
    assert "stopped by SIGINT" in caplog.text
    assert not (tmp_path / "run.h5").exists()
    again = cgml.Langevin(springs, start(3), 3)
    again.reporters.append(Interrupts(at=10**9))
    rest = again.run(tmp_path / "run.h5", ns=0.01)
    assert rest.finished and np.array_equal(rest.positions, whole.positions)
    assert np.array_equal(rest.time, whole.time) and np.array_equal(rest.energy, whole.energy)


class Interrupts:
    """A reporter that presses Ctrl-C at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def describeNextReport(self, simulation):
        wait = self.at - simulation.currentStep
        return (wait if wait > 0 else 10**9, False, False, False, False)

    def report(self, simulation, state) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_finished_run_is_made_longer(springs, tmp_path) -> None:
    whole = cgml.Langevin(springs, start(3), 3).run(tmp_path / "whole.h5", ns=0.006)
    short = cgml.Langevin(springs, start(3), 3)
    assert len(short.run(tmp_path / "run.h5", ns=0.002)) == 4
    # The same object, then another one, as a script that is started again would make.
    assert len(short.run(tmp_path / "run.h5", ns=0.004)) == 8
    longer = cgml.Langevin(springs, start(3), 3).run(tmp_path / "run.h5", ns=0.006)
    assert np.array_equal(longer.positions, whole.positions)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["run.h5", "whole.h5"]
    # Nothing left to do: the file is not touched.
    before = (tmp_path / "run.h5").stat().st_mtime_ns
    cgml.Langevin(springs, start(3), 3).run(tmp_path / "run.h5", ns=0.006)
    assert (tmp_path / "run.h5").stat().st_mtime_ns == before


def test_another_run_is_not_gone_on_with(springs, tmp_path) -> None:
    cgml.Langevin(springs, start(3), 3).run(tmp_path / "run.h5", ns=0.002)
    with pytest.raises(cgml.InputError, match="seed was 0, now 1"):
        cgml.Langevin(springs, start(3), 3, seed=1).run(tmp_path / "run.h5", ns=0.004)
    with pytest.raises(cgml.InputError, match="timestep_ps was 0.002, now 0.004"):
        cgml.Langevin(springs, start(3), 3, timestep=0.004).run(tmp_path / "run.h5", ns=0.004)
    with pytest.raises(cgml.InputError, match="start_sha256"):
        cgml.Langevin(springs, start(3, seed=9), 3).run(tmp_path / "run.h5", ns=0.004)
    assert len(cgml.read_run(tmp_path / "run.h5")) == 4


def test_a_time_limit_stops_the_run_early(springs, tmp_path, caplog) -> None:
    run = cgml.Langevin(springs, start(2), 2).run(tmp_path / "run.h5", ns=1.0, seconds=0.3)
    assert not run.finished and 1 <= len(run) < 2000
    assert "stopped at its time limit" in caplog.text


def test_a_copy_that_blows_up_is_named_and_earlier_frames_kept(springs, tmp_path) -> None:
    wild = cgml.Langevin(springs, start(4), 4, timestep=2.0, on_sick="raise")
    with pytest.raises(SimulationError, match=r"copy \d \(\d of 4\) is no longer finite"):
        wild.run(tmp_path / "wild.h5", ns=2000, interval=2.0)
    kept = cgml.read_run(tmp_path / "wild.h5")
    assert len(kept) >= 1 and np.isfinite(kept.positions).all()


def test_negative_friction_is_refused(springs) -> None:
    with pytest.raises(cgml.InputError, match="friction is -1.0 per ps; give 0 or more"):
        cgml.Langevin(springs, start(2), 2, friction=-1)


def test_users_platform_and_properties_are_taken(springs) -> None:
    cpu = openmm.Platform.getPlatform("CPU")
    simulation = cgml.Langevin(springs, start(2), 2, platform=cpu, properties={"Threads": "1"})
    assert simulation.context.getPlatform().getName() == "CPU"
    assert find_platform("Reference").getName() == "Reference"


@pytest.mark.parametrize("reporter", ["dcd", "state", "checkpoint"])
def test_openmm_reporters_can_be_attached(model, dataset, tmp_path, reporter) -> None:
    simulation = cgml.Langevin(model, dataset, 3)
    output = tmp_path / "out"
    simulation.reporters.append(
        {
            "dcd": lambda: app.DCDReporter(str(output), 70),
            "state": lambda: app.StateDataReporter(str(output), 70, step=True, temperature=True),
            "checkpoint": lambda: app.CheckpointReporter(str(output), 70),
        }[reporter]()
    )
    run = simulation.run(tmp_path / "run.h5", steps=500)
    assert len(run) == 2
    if reporter == "dcd":
        frames = mdtraj.load_dcd(str(output), replicated(model, 3))
        assert frames.n_frames == 7 and frames.n_atoms == 15
    elif reporter == "state":
        assert output.read_text().count("\n") == 8
    else:
        assert output.stat().st_size > 0


def replicated(model, copies):
    topology = replicate_topology(model.topology, copies)
    assert topology.bonds[4:8] == ((5, 6), (6, 7), (7, 8), (8, 9))
    return topology.to_mdtraj()


# ---------------------------------------------------------------- ensembles

SOFT, STIFF, LIMIT = 100.0, 300.0, 120.0  # kJ/mol/nm^2 twice, kJ/mol/nm


class Chain(cgml.PMF):
    """Springs of zero length along the chain, of some stiffness."""

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        self.stiffness = stiffness

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        bonds = positions[:, 1:] - positions[:, :-1]
        return 0.5 * self.stiffness * bonds.square().sum(dim=(1, 2))

    def arguments(self) -> dict:
        return {"stiffness": self.stiffness}


def exact_uncertainty(positions: np.ndarray) -> np.ndarray:
    """Two members: |F_1 - F_2| / sqrt(2), of the bead where it is largest."""
    bonds = np.diff(positions.astype(float), axis=-2)
    ends = np.zeros_like(bonds[..., :1, :])
    pull = np.diff(np.concatenate([ends, bonds, ends], axis=-2), axis=-2)
    return (STIFF - SOFT) / np.sqrt(2) * np.linalg.norm(pull, axis=-1).max(-1)


def ensemble(path: Path, dataset, **metrics) -> "cgml.system.Model":
    """A prior and an ensemble of two."""
    pmf = cgml.SumPMF(Springs(), EnsemblePMF(Chain(SOFT), Chain(STIFF)))
    cgml.save_model(path, FitResult(pmf, dataset, [], None, metrics))
    return cgml.load_model(path)


def test_uncertainty_of_an_ensemble_is_stored_and_flagged(dataset, tmp_path) -> None:
    record = {"typical": 20.0, "limit": LIMIT}
    model = ensemble(tmp_path / "model.pt", dataset, force_uncertainty=record)
    begin = start(4)
    begin[2] *= 10
    run = cgml.Langevin(model, begin, 4).run(tmp_path / "run.h5", steps=60, interval=0.02)
    exact = exact_uncertainty(run.positions)
    assert run.force_uncertainty.shape == (6, 4)
    np.testing.assert_allclose(run.force_uncertainty, exact, rtol=1e-4)
    assert exact[0, 2] > LIMIT > 2 * np.delete(exact, 2, axis=1).max()
    assert np.array_equal(run.extrapolating, exact > LIMIT)
    (event,) = run.events  # once, though it stays there
    assert event["what"] == "extrapolating" and event["copy"] == 2
    assert event["time_ps"] == pytest.approx(0.02) and event["temperature_K"] == 300
    assert f"forces differ by {exact[0, 2]:.0f} kJ/mol/nm, more than 120" in event["why"]
    assert run.info["force_uncertainty"] == record
    flagged = (exact > LIMIT).mean()
    assert run.info["statistics"]["uncertain"] == pytest.approx(flagged)
    assert outside_training(run) == pytest.approx({"extrapolating": flagged, "uncertain": flagged})
    # As the other arrays of a frame are.
    every = cgml.read_run(tmp_path / "run.h5", stride=2)
    assert np.array_equal(every.force_uncertainty, run.force_uncertainty[::2])
    assert np.array_equal(run.after(0.05).force_uncertainty, run.force_uncertainty[2:])
    assert np.array_equal(run.of_copy(2).force_uncertainty, run.force_uncertainty[:, 2:3])
    text = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    with h5py.File(tmp_path / "run.h5") as handle:
        assert handle["frames/force_uncertainty"].attrs["unit"] == b"kJ/mol/nm"
        for name in (*(f"frames/{n}" for n in handle["frames"]), *run.info, *record, "uncertain"):
            assert f"`{name}`" in text, name


def test_each_rung_has_the_uncertainty_of_its_copies(dataset, tmp_path) -> None:
    model = ensemble(tmp_path / "model.pt", dataset)
    exchange = cgml.ReplicaExchange(
        model, start(6), [300, 320, 340], copies=2, exchange_interval=0.01
    )
    run = exchange.run(tmp_path / "run.h5", steps=200, interval=0.02)
    assert (run.rung != run.rung[0]).any()
    cold = run.at_temperature(300)
    assert cold.force_uncertainty.shape == (20, 2)
    np.testing.assert_allclose(
        cold.force_uncertainty, exact_uncertainty(cold.positions), rtol=1e-4
    )


def test_uncertainty_without_a_limit_flags_nothing(springs, dataset, tmp_path) -> None:
    model = ensemble(tmp_path / "model.pt", dataset)
    run = cgml.Langevin(model, 10 * start(2), 2).run(tmp_path / "run.h5", steps=20, interval=0.02)
    assert run.force_uncertainty.min() > LIMIT
    assert not run.extrapolating.any() and run.events == []
    assert run.info["force_uncertainty"] == {"typical": None, "limit": None}
    assert run.info["statistics"]["extrapolating"] == 0
    assert "uncertain" not in run.info["statistics"]
    plain = cgml.Langevin(springs, start(2), 2).run(tmp_path / "plain.h5", steps=20, interval=0.02)
    assert plain.force_uncertainty is None and "force_uncertainty" not in plain.info
    with h5py.File(tmp_path / "plain.h5") as handle:
        assert "force_uncertainty" not in handle["frames"]
