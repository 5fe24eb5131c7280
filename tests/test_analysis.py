"""Divergences, free energies and their errors, against exact expectations."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import analysis, plot, report
from openmm_cgml.analysis import DihedralDistribution, dihedral_distribution, js_divergence
from openmm_cgml.units import thermal_energy

KT = thermal_energy(300)


def sample(frames: int, seed: int, fraction: float = 0.1) -> np.ndarray:
    """Angles of two wells along the first dihedral; `fraction` of them in (0, 2.2)."""
    rng = np.random.default_rng(seed)
    right = rng.random(frames) < fraction
    phi = np.where(right, 1.0, -1.5) + 0.25 * rng.standard_normal(frames)
    psi = 0.5 * rng.standard_normal(frames)
    return np.stack([phi, psi], axis=1)


def test_js_divergence_of_known_distributions() -> None:
    p, q = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert js_divergence(p, p) == 0
    assert js_divergence(p, q) == pytest.approx(math.log(2))
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    m = 0.5 * (p + q)
    exact = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
    assert js_divergence(p, q) == pytest.approx(exact)
    assert js_divergence(p, 7 * q) == pytest.approx(exact)
    with pytest.raises(cgml.InputError, match="bins"):
        js_divergence(p, q.T)


def test_excess_is_zero_for_samples_of_one_distribution_where_plain_js_is_not() -> None:
    plain, excess = [], []
    for seed in range(20):
        p = dihedral_distribution(sample(20_000, 2 * seed))
        q = dihedral_distribution(sample(5_000, 2 * seed + 1))
        plain.append(js_divergence(p.probability, q.probability))
        excess.append(analysis.js_excess(q, p))
    populated = np.count_nonzero(p.probability)
    predicted = populated / 8 * (1 / 20_000 + 1 / 5_000)
    assert np.mean(plain) == pytest.approx(predicted, rel=0.35)
    # Bins with a count or two leave a rest, far below the noise that was taken off.
    assert abs(np.mean(excess)) < 0.2 * np.mean(plain)


def test_excess_finds_a_real_difference() -> None:
    p = dihedral_distribution(sample(50_000, 0, fraction=0.1))
    q = dihedral_distribution(sample(50_000, 1, fraction=0.2))
    a, b = np.array([[0.9, 0.1]]), np.array([[0.8, 0.2]])
    assert analysis.js_excess(q, p) == pytest.approx(js_divergence(a, b), rel=0.25)


def test_state_free_energy_and_its_error() -> None:
    """z-scores of 40 independent samples have the spread that the errors promise."""
    exact = -KT * math.log(0.1 / 0.9)
    z = []
    for seed in range(40):
        found = analysis.state_free_energy(
            dihedral_distribution(sample(4_000, seed)), 0.0, 2.2, KT
        )
        z.append((found.value - exact) / found.error)
        assert found.population == pytest.approx(0.1, abs=0.03)
    assert abs(np.mean(z)) < 4 / math.sqrt(40)
    assert 0.7 < np.std(z) < 1.4


def test_state_never_seen_is_infinite_not_a_crash() -> None:
    angles = sample(1000, 0, fraction=0.0)
    found = analysis.state_free_energy(dihedral_distribution(angles), 0.0, 2.2, KT)
    assert found.value == math.inf and found.population == 0


def test_record_is_json_also_where_a_state_was_never_seen(data) -> None:
    reference = data / "reference.npz"
    unseen = dihedral_distribution(sample(1000, 0, fraction=0.0))
    seen = analysis.distribution_of(reference, [])
    comparison = analysis.Comparison(
        unseen, seen, 0.02, 0.001, 0.0005, 0.0002, 0.5, 0.99, KT, (0.0, 2.2),
        analysis.state_free_energy(unseen, 0, 2.2, KT),
        analysis.state_free_energy(seen, 0, 2.2, KT),
    )  # fmt: skip
    text = json.dumps(comparison.record(), allow_nan=False)
    assert json.loads(text)["delta_f_kj_mol"] == {"value": None, "error": None}
    assert json.loads(text)["js"] == 0.02


def test_weights_undo_a_bias() -> None:
    biased = sample(40_000, 3, fraction=0.5)
    weights = np.where(biased[:, 0] > 0, 0.1 / 0.5, 0.9 / 0.5)
    found = analysis.state_free_energy(dihedral_distribution(biased, weights), 0.0, 2.2, KT)
    assert abs(found.value + KT * math.log(0.1 / 0.9)) < 4 * found.error


def test_profile_is_the_marginal_free_energy() -> None:
    distribution = dihedral_distribution(sample(100_000, 5))
    values, errors = analysis.free_energy_profile(distribution, 0, KT)
    centres = distribution.centres()
    density = 0.9 * np.exp(-0.5 * ((centres + 1.5) / 0.25) ** 2) + 0.1 * np.exp(
        -0.5 * ((centres - 1.0) / 0.25) ** 2
    )
    exact = -KT * np.log(density)
    seen = np.isfinite(values) & (errors < 0.2)
    shift = (values - exact)[seen].mean()
    z = ((values - exact - shift) / np.hypot(errors, 0.03))[seen]  # 0.03: bin curvature
    assert seen.sum() > 15 and np.abs(z).max() < 4.5


def test_reference_file_against_itself(data) -> None:
    reference = analysis.distribution_of(data / "reference.npz", [])
    assert reference.probability.sum() == pytest.approx(1)
    assert len(reference.blocks) == 2
    assert js_divergence(reference.probability, reference.probability) == 0
    assert reference.sampling_divergence == pytest.approx(0.0015, abs=0.0003)


def test_weighted_training_data_agree_with_the_independent_reference(data, dataset, setup) -> None:
    """Bead dihedrals, weights and the reference's convention all fit together."""
    comparison = analysis.compare(
        dataset, data / "reference.npz", setup["dihedrals"], temperature=300
    )
    difference, error = comparison.delta_f
    assert abs(difference) < 4 * error
    assert comparison.js < 0.2  # 1500 weighted frames on 3600 bins
    mirrored = replace(dataset, positions=dataset.positions * np.float32([1, 1, -1]))
    wrong = analysis.compare(mirrored, data / "reference.npz", setup["dihedrals"], temperature=300)
    assert wrong.js > 0.5


def test_a_run_is_ordered_copy_after_copy(model, dataset, tmp_path, setup) -> None:
    run = cgml.Langevin(model, dataset, 24).run(tmp_path / "run.h5", ns=0.003, interval=0.1)
    distribution = analysis.distribution_of(run, setup["dihedrals"], discard_ps=0.5)
    flat = run.positions[run.time > 0.5].transpose(1, 0, 2, 3).reshape(-1, 5, 3)
    angles = analysis.dihedral_angles(flat, setup["dihedrals"])
    first = np.histogram2d(*angles[: len(angles) // 2].T, bins=[distribution.edges] * 2)[0]
    assert np.allclose(distribution.halves[0], first / first.sum(), atol=1e-3)
    with pytest.raises(cgml.InputError, match="nothing is left"):
        analysis.distribution_of(run, setup["dihedrals"], discard_ps=100)


def test_report_is_one_page_with_everything_inside(tmp_path, data) -> None:
    model = dihedral_distribution(sample(5000, 1))
    reference = dihedral_distribution(sample(9000, 2))
    comparison = analysis.Comparison(
        model, reference, 0.02, 0.001, 0.0005, 0.0002, 0.5, 0.99, KT, (0.0, 2.2),
        analysis.state_free_energy(model, 0, 2.2, KT),
        analysis.state_free_energy(reference, 0, 2.2, KT),
    )  # fmt: skip
    history = [
        {"epoch": k, "train_rmse": 400 - k, "valid_rmse": 402 - k, "learning_rate": 1e-3}
        for k in range(5)
    ]
    training = {"history": history, "force_rmse": 398.0, "force_noise_floor": 390.0,
                "force_model_error": 80.0}  # fmt: skip
    run = {"backend": "TorchForce", "platform": "CPU", "replica_steps_per_second": 1.0,
           "versions": {"torch": "9"}}  # fmt: skip
    report.write_report(
        tmp_path / "r.html", comparison, title="A <b> & c", lead="lead", labels=("φ", "ψ"),
        training=training, run=run, notes=["borrowed"],
    )  # fmt: skip
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http://" not in page and "https://" not in page and "src='/" not in page
    assert "A &lt;b&gt; &amp; c" in page and "borrowed" in page and "TorchForce" in page


def test_plots_are_pngs_also_where_nothing_was_seen() -> None:
    model = dihedral_distribution(sample(500, 1, fraction=0.0))
    reference = dihedral_distribution(sample(9000, 2))
    comparison = analysis.Comparison(
        model, reference, 0.02, 0.001, 0.0005, 0.0002, 0.5, 0.99, KT, (0.0, 2.2),
        analysis.state_free_energy(model, 0, 2.2, KT),
        analysis.state_free_energy(reference, 0, 2.2, KT),
    )  # fmt: skip
    for picture in (plot.free_energy_maps, plot.profiles):
        assert picture(comparison, ("a", "b"), "model").startswith(b"\x89PNG")
    assert isinstance(reference, DihedralDistribution)
