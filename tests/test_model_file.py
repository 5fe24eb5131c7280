"""Model files: what they hold, and what they refuse. Bad files are in test_bad_input."""

import json
import zipfile

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.model_file import SCHEMA_VERSION, read_model_file
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.trusted_program import require_trusted


def test_the_card_describes_the_model(model, dataset) -> None:
    card = model.card
    assert card["schema_version"] == SCHEMA_VERSION
    assert card["units"]["energy"] == "kJ/mol"
    assert card["temperature_K"] == model.temperature == 300.0
    assert model.topology == dataset.topology
    assert card["mapping"]["force_map"]["name"] == "rotation"
    training = card["training"]
    assert training["train_frames"] + training["valid_frames"] == len(dataset)
    assert len(training["history"]) == training["epochs"] == 8
    assert training["force_noise_floor"] <= training["force_rmse"]
    assert json.loads(json.dumps(card)) == card


def test_a_model_is_printed_in_a_line(model) -> None:
    assert repr(model) == "Model(file=ModelFile(name='small.pt'))"


def test_the_card_is_an_extra_file_too(model, tmp_path) -> None:
    path = tmp_path / "copy.pt"
    path.write_bytes(model.file.archive)
    extra = {"card.json": ""}
    torch.jit.load(str(path), _extra_files=extra)
    assert json.loads(extra["card.json"]) == model.card
    with zipfile.ZipFile(path) as entries:
        assert not any("__setstate__" in entries.read(e).decode(errors="replace")
                       for e in entries.namelist() if e.endswith(".py"))  # fmt: skip


def test_rebuilt_module_equals_the_file(model, dataset) -> None:
    positions = torch.tensor(dataset.positions[:6])
    energies, forces = energy_and_forces(model.rebuild(), positions)
    expected = model.energy_and_forces(dataset.positions[:6])
    assert np.allclose(energies.numpy(), expected[0], rtol=1e-5)
    assert np.allclose(forces.numpy(), expected[1], rtol=1e-4, atol=1e-2)


def test_copy_energies_are_one_a_copy(model, dataset) -> None:
    module = model.file.module(copies=3)
    x = torch.tensor(dataset.positions[:3].reshape(-1, 3), dtype=torch.float64)
    each = module.copy_energies(x)
    assert each.shape == (3,)
    assert module(x).item() == pytest.approx(each.double().sum().item(), rel=1e-6)
    assert module(x).dtype == torch.float64


def test_a_model_in_double_precision_input_keeps_the_gradient_dtype(model, dataset) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(dataset.positions[0], dtype=dtype, requires_grad=True)
        model.file.module()(x).backward()
        assert x.grad.dtype == dtype


def test_bare_pmf_is_saved_with_a_dataset(dataset, tmp_path) -> None:
    prior = cgml.fit_prior(dataset)
    cgml.save_model(tmp_path / "prior.pt", prior, dataset)
    loaded = cgml.load_model(tmp_path / "prior.pt")
    expected = energy_and_forces(prior, torch.tensor(dataset.positions[:2]))
    assert np.allclose(loaded.energy_and_forces(dataset.positions[:2])[0], expected[0])
    with pytest.raises(cgml.InputError, match="pass the dataset"):
        cgml.save_model(tmp_path / "other.pt", prior)


def test_an_untranslatable_module_is_refused_and_nothing_is_written(dataset, tmp_path) -> None:
    class Untranslatable(cgml.PMF):
        def forward(self, positions, box_vectors=None):
            return eval("positions.sum((1, 2))")

        def arguments(self):
            return {}

    with pytest.raises(cgml.InputError, match="TorchScript cannot compile Untranslatable"):
        cgml.save_model(tmp_path / "bad.pt", Untranslatable(), dataset)
    assert not list(tmp_path.iterdir())


class UserPMF(cgml.PMF):
    """A PMF of a user, from outside the package: pair springs."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        return 10.0 * (positions[:, 1:] - positions[:, :-1]).square().sum(dim=(1, 2))

    def arguments(self) -> dict:
        return {}


def test_a_users_own_pmf_travels_and_runs(dataset, tmp_path) -> None:
    cgml.save_model(tmp_path / "mine.pt", UserPMF(), dataset)
    loaded = cgml.load_model(tmp_path / "mine.pt")
    x = dataset.positions[:2].astype(float)
    expected = 10 * (np.diff(x, axis=1) ** 2).sum(axis=(1, 2))
    assert np.allclose(loaded.energy_and_forces(x)[0], expected, rtol=1e-5)
    with pytest.raises(cgml.InputError, match="not a PMF of this package"):
        loaded.rebuild()  # the architecture of foreign code is never imported


@pytest.mark.parametrize("name", list(cgml.PMFS))
def test_every_network_passes_the_operator_check(name, dataset, tmp_path) -> None:
    pmf = cgml.SumPMF(cgml.fit_prior(dataset), cgml.PMFS[name](dataset))
    cgml.save_model(tmp_path / "m.pt", pmf, dataset)
    script = read_model_file(tmp_path / "m.pt").module()
    require_trusted(script, "m.pt")
    require_trusted(torch.jit.freeze(script), "frozen")


class Foreign(cgml.PMF):
    """A PMF that calls an operator of another package."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        return torch.ops.elsewhere.twice(positions.square()).sum(dim=(1, 2))

    def arguments(self) -> dict:
        return {}


def test_operators_of_a_package_that_is_not_imported_are_named(dataset, tmp_path) -> None:
    x = dataset.positions[:2].astype(float)
    with torch.library._scoped_library("elsewhere", "DEF") as package:
        package.define("twice(Tensor x) -> Tensor")
        package.impl("twice", lambda x: 2 * x, "CompositeImplicitAutograd")
        cgml.save_model(tmp_path / "model.pt", Foreign(), dataset)
        with pytest.raises(cgml.UntrustedModelError, match="calls elsewhere::twice"):
            read_model_file(tmp_path / "model.pt")
        module = read_model_file(tmp_path / "model.pt", trust=True).module(copies=2)
        found = module.copy_energies(torch.tensor(x.reshape(-1, 3)))
        assert np.allclose(found, 2 * np.square(x).sum((1, 2)), rtol=1e-5)
    # The operator is gone, as in a process that has not imported the package.
    for trust in (False, True):
        with pytest.raises(
            cgml.ModelFileError,
            match="operator elsewhere::twice of another package; import that package before",
        ):
            read_model_file(tmp_path / "model.pt", trust=trust)
