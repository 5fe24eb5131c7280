"""The doctor's single findings, also those of machines on which something is missing."""

import os

import pytest

from openmm_cgml import doctor
from openmm_cgml.doctor import Check
from openmm_cgml.force import BACKEND_VARIABLE, BACKENDS
from openmm_cgml.native import cache, library

NO_COMPILER = "there is no C++ compiler; install g++, or set CXX"


def test_native_force(monkeypatch) -> None:
    monkeypatch.setattr(library, "compiler", lambda: ["clang++", "-m64"])
    assert doctor._native() == Check("native force", "ok", "loads; compiler: clang++ -m64")
    # The force itself may be in the cache or shipped.
    monkeypatch.setattr(library, "compiler", lambda: None)
    check = doctor._native()
    assert check.status == "warning" and "install g++, or set CXX" in check.detail


@pytest.mark.parametrize(
    ("torchforce", "instead"),
    [
        (None, "backend 'torchforce' is used instead"),
        ("no such library", "backend 'python' is used instead, slower"),
    ],
)
def test_without_a_compiler(monkeypatch, torchforce, instead) -> None:
    monkeypatch.setattr("openmm_cgml.native.force.problem", lambda: NO_COMPILER)
    monkeypatch.setattr("openmm_cgml.force.torchforce_problem", lambda: torchforce)
    assert doctor._native() == Check("native force", "warning", f"{NO_COMPILER}; {instead}")


def test_without_torchforce(monkeypatch) -> None:
    monkeypatch.setattr("openmm_cgml.torchforce.torchforce_problem", lambda: "no such library")
    check = doctor._torchforce(False)
    assert check.status == "warning"
    assert check.detail.startswith("no such library; backend 'native' is used instead. pip")


def test_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "new"))
    assert doctor._cache() == Check("cache", "ok", f"{tmp_path / 'new'}: 0.0 MB, can be written")
    (tmp_path / "new" / "packages").mkdir()
    (tmp_path / "new" / "packages" / "code.so").write_bytes(bytes(2_000_000))
    assert doctor._cache().detail == f"{tmp_path / 'new'}: 2.0 MB, can be written"

    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    check = doctor._cache()
    assert (
        check.status == "warning" and "set OPENMM_CGML_CACHE to a folder that can" in check.detail
    )
    assert check.detail.startswith(f"{tmp_path / 'file' / 'cache'} cannot be written (")


def test_platform_list() -> None:
    assert doctor._platform_list(["Reference", "CPU"], ["Reference", "CPU"]).status == "ok"
    for after in (["Reference", "CPU", "CPU"], ["Reference", "CPU", "CUDA"]):
        check = doctor._platform_list(["Reference", "CPU"], after)
        assert check.status == "warning" and ", ".join(after) in check.detail


def test_any_backend_is_enough(monkeypatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    for name in BACKENDS:
        checks = [Check(f"{name} on CPU", "ok", "relative error"), Check("cache", "ok", "")]
        assert doctor._backends(checks) == Check(
            "backends", "ok", f"{name}; simulations take the fastest"
        )
    slow = Check("native on CPU", "warning", "relative error ...; runs as TorchScript, slower")
    assert doctor._backends([slow]).status == "ok"
    dead = Check("native on CPU", "warning", "does not run: no device")
    wrong = Check("python on CPU", "failure", "relative error 1")
    assert doctor._backends([dead, wrong, Check("TorchForce", "ok", "loads")]).status == "failure"
    monkeypatch.setitem(os.environ, BACKEND_VARIABLE, "python")
    assert doctor._backends(checks).detail.endswith(
        "simulations take python (OPENMM_CGML_BACKEND)"
    )
