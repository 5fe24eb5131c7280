"""What `describe` says of a dataset, against systems whose statistics are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import lfilter
from test_dataset import make

import openmm_cgml as cgml
from openmm_cgml.dataset_info import describe, virial_ratio
from openmm_cgml.force_noise import estimate_force_noise, rough_residuals
from openmm_cgml.units import thermal_energy

KT = thermal_energy(300.0)
STIFFNESS, LENGTH = 4000.0, 0.3  # kJ/mol/nm^2, nm


def chain_topology(beads: int = 3) -> cgml.CGTopology:
    return cgml.CGTopology(
        tuple(f"B{k}" for k in range(beads)), ("X",) * beads, ("MOL",) * beads, (1,) * beads,
        ("A",) * beads, tuple((k, k + 1) for k in range(beads - 1)), (12.0,) * beads,
    )  # fmt: skip


def springs(frames: int = 4000, beads: int = 3, noise: float = 100.0, seed: int = 0, **changes):
    """Independent frames of a chain of springs, drawn exactly, and forces with known noise.

    Bond lengths have the density r^2 exp(-k (r - r0)^2 / 2 kT), directions none.
    """
    rng = np.random.default_rng(seed)
    grid = np.linspace(LENGTH - 0.15, LENGTH + 0.15, 4001)
    density = grid**2 * np.exp(-STIFFNESS * (grid - LENGTH) ** 2 / (2 * KT))
    lengths = np.interp(rng.random((frames, beads - 1)), np.cumsum(density) / density.sum(), grid)
    ways = rng.normal(size=(frames, beads - 1, 3))
    ways /= np.linalg.norm(ways, axis=-1, keepdims=True)
    positions = np.zeros((frames, beads, 3))
    positions[:, 1:] = np.cumsum(ways * lengths[..., None], axis=1)
    pull = STIFFNESS * (lengths - LENGTH)[..., None] * ways
    forces = noise * rng.normal(size=positions.shape)
    forces[:, :-1] += pull
    forces[:, 1:] -= pull
    values = {"positions": positions, "topology": chain_topology(beads), "temperature": 300.0,
              "forces": forces}  # fmt: skip
    return cgml.CGDataset(**(values | changes))


# ---------------------------------------------------------------- statistics


def test_correlation_time_of_a_known_series() -> None:
    """AR(1) with coefficient a has g = (1 + a) / (1 - a). 24 datasets of 4 runs, 2 comparisons."""
    for a in (0.8, 0.95):
        found = []
        for seed in range(24):
            rng = np.random.default_rng(seed)
            runs, frames = 4, 3000
            kicks = np.sqrt(1 - a * a) * rng.normal(size=(frames, runs))
            kicks[0] /= np.sqrt(1 - a * a)
            series = lfilter([1.0], [1.0, -a], kicks, axis=0)
            positions = np.zeros((runs * frames, 3, 3))
            positions[:, 1, 0] = 0.3 + 0.01 * series.T.ravel()
            positions[:, 2, :2] = positions[:, 1, :2] + [0.0, 0.4]
            positions[:, 2, 1] += 0.01 * rng.normal(size=runs * frames)
            dataset = cgml.CGDataset(
                positions, chain_topology(), 300.0, trajectory=np.repeat(np.arange(runs), frames)
            )
            info = describe(dataset)
            assert info.correlation_frames == runs * frames
            # The end-to-end distance follows the same series, in part.
            assert info.slowest in ("bond MOL1-B0 MOL1-B1", "distance MOL1-B0 MOL1-B2")
            found.append(info.correlation)
            assert info.effective_frames == pytest.approx(runs * frames / info.correlation)
        exact = (1 + a) / (1 - a)
        z = (np.mean(found) - exact) / (np.std(found, ddof=1) / len(found) ** 0.5)
        assert abs(z) < 4, (a, z, np.mean(found))


def test_trajectories_of_unequal_length() -> None:
    """The equally long parts that keep most frames: two of 400, or three of 300."""
    lengths = (400, 300, 400, 20)
    dataset = make(sum(lengths), trajectory=np.repeat(np.arange(4), lengths))
    info = describe(dataset)
    assert info.trajectories == lengths and info.correlation_frames == 900
    assert "1,120 in 4 trajectories of 20 to 400" in info.text()


def test_weights() -> None:
    weights = np.ones(200)
    weights[7] = 50.0
    info = describe(make(200, weights=weights))
    assert info.effective_weights == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert info.largest_weight == pytest.approx(50 / 249)
    assert any("one frame has 20% of the weight" in w for w in info.warnings)
    assert describe(make(200, weights=np.ones(200), bias="")).effective_weights == (
        pytest.approx(200)
    )
    told = describe(make(200, weights=None)).warnings
    assert any("the run was biased but all weights are equal" in w for w in told)


def test_ranges_and_coverage() -> None:
    """A four-bead chain whose torsion takes a third of the circle, in known steps."""
    frames = 360
    phi = np.deg2rad(np.linspace(-59.9, 59.9, frames))
    positions = np.zeros((frames, 4, 3))
    positions[:, 0] = [0.3, 0.0, 0.0]
    positions[:, 2] = [0.0, 0.0, 0.4]
    positions[:, 3, 0], positions[:, 3, 1] = 0.3 * np.cos(phi), 0.3 * np.sin(phi)
    positions[:, 3, 2] = 0.4
    positions[:, 3] *= np.linspace(1.0, 1.0 + 1e-5, frames)[:, None]
    dataset = cgml.CGDataset(positions, chain_topology(4), 300.0)
    info = describe(dataset)
    kinds = [c.kind for c in info.coordinates]
    assert kinds == ["bond"] * 3 + ["angle"] * 2 + ["torsion"]
    bond, torsion = info.coordinates[1], info.coordinates[-1]
    assert bond.mean == pytest.approx(0.4) and bond.label == "MOL1-B1 MOL1-B2"
    assert torsion.coverage == pytest.approx(12 / 36)
    assert torsion.mean == pytest.approx(0, abs=1e-3)
    assert torsion.smallest == pytest.approx(np.deg2rad(-59.9), abs=1e-4)
    assert sum(torsion.counts) == frames and torsion.counts[18] in (29, 30, 31)
    assert info.contact[1:] == ("MOL1-B0", "MOL1-B3")
    assert any("bond MOL1-B1 MOL1-B2 hardly moves" in w for w in info.warnings)
    # A uniform arc of width w: resultant sin(w/2) / (w/2), sd sqrt(-2 ln R).
    arc = np.sin(np.deg2rad(60)) / np.deg2rad(60)
    assert torsion.deviation == pytest.approx(np.sqrt(-2 * np.log(arc)), rel=0.01)


def test_outliers_and_large_forces_are_named() -> None:
    dataset = springs(noise=10.0)
    positions, forces = dataset.positions.copy(), dataset.forces.copy()
    positions[1234, 2] += [5.0, 0.0, 0.0]
    forces[77, 1, 2] = 1e6
    info = describe(replace(dataset, positions=positions, forces=forces), noise=False)
    assert any("bond MOL1-B1 MOL1-B2 is far from all others in frame 1234" in w
               for w in info.warnings)  # fmt: skip
    assert any("the largest force, on MOL1-B1 in frame 77, is" in w for w in info.warnings)
    assert (info.forces.largest_frame, info.forces.largest_bead) == (77, "MOL1-B1")


# ---------------------------------------------------------------- forces


def test_noise_and_virial_of_a_known_system() -> None:
    """The fit can take all of the mean force off: what remains is the noise that was put in."""
    info = describe(springs(6000))
    assert not info.warnings, info.warnings
    assert info.forces.noise.floor == pytest.approx(100, rel=0.03)
    ratios = [virial_ratio(springs(2000, seed=s)) for s in range(101, 141)]
    z = [(ratio - 1) / error for ratio, error in ratios]
    assert abs(np.mean(z)) * 40**0.5 < 4 and 0.6 < np.std(z) < 1.5
    assert info.forces.net_z < 4
    assert info.forces.net_rms == pytest.approx(100 * 3**0.5, rel=0.03)


def test_virial_with_weights() -> None:
    """Frames drawn at one temperature, weighted to another: 20 datasets."""
    target = 270.0
    z = []
    for seed in range(20):
        dataset = springs(3000, seed=seed)
        lengths = np.linalg.norm(np.diff(dataset.positions, axis=1), axis=-1)
        energy = STIFFNESS / 2 * ((lengths - LENGTH) ** 2).sum(1)
        weights = np.exp(-energy * (1 / thermal_energy(target) - 1 / KT))
        ratio, error = virial_ratio(replace(dataset, weights=weights, temperature=target))
        z.append((ratio - 1) / error)
    assert abs(np.mean(z)) * 20**0.5 < 4 and 0.6 < np.std(z) < 1.5


@pytest.mark.parametrize("factor", [41.84, 1 / 41.84, 4.184])
def test_wrong_units_show_in_the_virial(factor) -> None:
    dataset = springs(noise=0.0)
    info = describe(replace(dataset, forces=factor * dataset.forces), noise=False)
    assert info.forces.virial == pytest.approx(factor, rel=0.1)
    assert any("the virial of the forces is" in w for w in info.warnings)


def test_a_push_from_outside_is_found() -> None:
    dataset = springs()
    pushed = dataset.forces.copy()
    pushed[:, 0, 1] += 60.0
    info = describe(replace(dataset, forces=pushed), noise=False)
    assert info.forces.net_z > 5
    assert any("something outside pushes the molecule" in w for w in info.warnings)


def test_an_isolated_molecule_has_no_net_force() -> None:
    assert "sum over beads zero, as in an isolated" in describe(springs(noise=0)).text()


def test_forces_that_are_noise_are_doubted() -> None:
    info = describe(springs(noise=5000.0))
    assert any("nearly all of the forces is noise" in w for w in info.warnings)


@pytest.mark.parametrize("beads", [2, 5, 20])
def test_the_rough_fit_leaves_the_noise(beads) -> None:
    """Also where a fit of all couplings would be too large."""
    dataset = springs(1500, beads=beads, noise=50.0)
    residuals, kept = rough_residuals(dataset.positions, dataset.forces, dataset.topology)
    assert residuals.shape == (len(kept), beads, 3)
    floor = estimate_force_noise(np.asarray(dataset.positions)[kept], residuals).floor
    assert 48 < floor < 62, (floor, len(kept))


def test_too_few_frames_for_a_fit() -> None:
    dataset = springs(10)
    with pytest.raises(cgml.InputError, match="10 frames of 3 beads are too few for a fit"):
        rough_residuals(dataset.positions, dataset.forces, dataset.topology)
    assert describe(dataset).forces.noise is None
    assert "about" in describe(dataset).warnings[0]


# ---------------------------------------------------------------- any dataset, shown


CASES = {
    "whole": {},
    "no forces": {"forces": None},
    "no box": {"box": None},
    "alone": {"box": None, "weights": None, "bias_energy": None, "forces": None, "bias": ""},
    "boxes": {"box": np.linspace(3, 4, 30)[:, None, None] * np.eye(3)},
    "variables": {"variables": np.arange(60.0).reshape(30, 2), "variable_names": ("phi", "d")},
    "noise": {"mapping": {"name": "x", "noise": {"kind": "gaussian", "sd_nm": 0.02}}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_dataset_has_a_text_and_a_record(case) -> None:
    info = describe(make(30, **CASES[case]))
    text = info.text()
    assert "30 in one trajectory, 310 K" in text and "nan" not in text
    assert all(len(line) < 130 for line in text.splitlines() if not line.startswith("!"))
    record = json.loads(json.dumps(info.record(), allow_nan=False))
    assert record["frames"] == 30 and record["coordinates"][0]["kind"] == "bond"
    said = {
        "no forces": "forces       none: they are needed for force matching",
        "no box": "none: an isolated molecule",
        "boxes": "3.000 x 3.000 x 3.000 nm (first frame)",
        "variables": "phi          0.000 to 58.000 (collective variable)",
        "noise": "noise added  {'kind': 'gaussian', 'sd_nm': 0.02}",
        "alone": "weights      equal",
        "whole": "bias         umbrella on x; ",
    }
    assert said[case] in text


@pytest.mark.parametrize("beads", [1, 2])
def test_very_small_molecules(beads) -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(50, beads, 3)) + 10 * np.arange(beads)[:, None]
    info = describe(cgml.CGDataset(positions, chain_topology(beads), 300.0, forces=positions))
    assert "50 in one" in info.text() and json.dumps(info.record(), allow_nan=False)


def test_minimum_images() -> None:
    """Bonds across the boundary are short."""
    dataset = make(box=np.repeat(np.eye(3)[None], 30, axis=0))
    shifted = dataset.positions.copy()
    shifted[:, 2, 0] += 1.0
    one, other = describe(dataset), describe(replace(dataset, positions=shifted))
    assert other.coordinates[1].largest == pytest.approx(one.coordinates[1].largest, abs=1e-6)


def test_long_datasets_are_strided_and_say_so() -> None:
    info = describe(make(1000), max_frames=300)
    assert info.stride == 4 and sum(info.coordinates[0].counts) == 250
    assert "(every 4th frame)" in info.text() and info.frames == 1000
    assert 4 <= info.correlation


def test_only_the_least_covered_are_shown() -> None:
    info = describe(springs(500, beads=30), noise=False)
    text = info.text(rows=5)
    assert "... and 24 more, covered as well or better" in text
    assert len([line for line in text.splitlines() if line.startswith("MOL1-B")]) == 15


def test_the_package_data(dataset) -> None:
    """The real run: a mean force is there, and nothing is doubtful but what is few."""
    info = describe(dataset)
    assert 100 < info.forces.noise.floor < 250 < info.forces.rms
    assert abs(info.forces.virial - 1) < 5 * info.forces.virial_error
    assert info.forces.map_name == "rotation" and info.mapping_name == "backbone"
    assert not [w for w in info.warnings if "independent frames" not in w]
