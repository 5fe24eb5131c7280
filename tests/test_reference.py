"""All-atom runs into datasets: from a user's files to the last frame, through kills and stops."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import openmm
import openmm.app as app
import pytest

import openmm_cgml as cgml
from openmm_cgml import InputError, cli
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.command_reference import _METHODS, parse_centres
from openmm_cgml.correlation import mean_and_error
from openmm_cgml.files import segments_folder
from openmm_cgml.mapping.core import slice_mapping
from openmm_cgml.mapping.force_map import basic_force_map
from openmm_cgml.reference.bias import Metadynamics
from openmm_cgml.reference.methods import METHODS
from openmm_cgml.reference.recorder import BeadMapper, read_checkpoint, read_segments
from openmm_cgml.reference.reporter import DatasetReporter
from openmm_cgml.reference.run import run_reference
from openmm_cgml.reference.setup import ReferenceSystem, build_system, solute_atoms
from openmm_cgml.reference.variables import parse_variable
from openmm_cgml.units import GAS_CONSTANT, thermal_energy

ROOT = Path(__file__).resolve().parent.parent
KT = thermal_energy(300.0)
SHORT = {"equilibrate": 0.2, "calibrate": 20, "interval": 0.1, "platform": "Reference"}
METAD = {"method": "metadynamics", "variables": ("phi", "psi"), "deposit": 0.2}
KINDS = {
    "unbiased": {},
    "metadynamics": METAD,
    "final weights": {**METAD, "weights": "final", "discard": 0.1},
    "umbrella": {
        "method": "umbrella",
        "variables": ("phi",),
        "centres": np.array([-1.8, -1.4]),
        "springs": (20.0,),
    },
    "remd": {"method": "remd", "temperatures": (300, 340, 380), "exchange": 0.2},
    "remd, all rungs": {
        "method": "remd",
        "temperatures": (300, 340, 380),
        "exchange": 0.2,
        "all_rungs": True,
    },
}
FIELDS = ("positions", "forces", "weights", "bias_energy", "trajectory", "variables")


@pytest.fixture
def pdb(data):
    return data / "topology.pdb"


def require_equal(one, other):
    assert len(one) == len(other)
    for name in FIELDS:
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(first, second, err_msg=name)


# ---------------------------------------------------------------- Systems


def forces_of(system, positions):
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    context.setPositions(positions)
    return context.getState(getForces=True).getForces(asNumpy=True)._value


def test_pdb_and_xml_are_one_system(pdb, data):
    """The default force field is that of the package's System."""
    made = build_system(pdb)
    read = build_system(data / "system.xml", coordinates=pdb)
    np.testing.assert_allclose(
        forces_of(made.system, made.positions), forces_of(read.system, made.positions), atol=1e-6
    )
    assert made.timestep == read.timestep == 0.002 and len(made.constraints) == 12
    assert made.description["forcefield"] == ["amber99sb.xml", "amber99_obc.xml"]
    assert set(read.sources) == {"system.xml", "topology.pdb"}
    np.testing.assert_array_equal(made.solute, np.arange(22))


def test_constraints_and_masses(pdb):
    free = build_system(pdb, constraints="none")
    assert free.timestep == 0.001 and not free.constraints
    heavy = build_system(pdb, hydrogen_mass=3 * openmm.unit.dalton)
    assert heavy.system.getParticleMass(0)._value == pytest.approx(3.0)
    assert len(build_system(pdb, constraints="allbonds").constraints) == 21


def test_prmtop(pdb, tmp_path):
    parmed = pytest.importorskip("parmed")
    made = build_system(pdb, constraints="none")
    topology = app.PDBFile(str(pdb)).topology
    plain = app.ForceField("amber99sb.xml").createSystem(topology)
    structure = parmed.openmm.load_topology(topology, plain, made.positions * 10)
    structure.save(str(tmp_path / "a.prmtop"))
    structure.save(str(tmp_path / "a.rst7"))
    files = {"source": tmp_path / "a.prmtop", "coordinates": tmp_path / "a.rst7"}
    read = build_system(**files, implicit="vacuum", constraints="none")
    expected = forces_of(plain, made.positions)
    np.testing.assert_allclose(
        forces_of(read.system, made.positions), expected, atol=2e-3 * expected.std()
    )
    read = build_system(**files, implicit="vacuum")
    assert read.timestep == 0.002 and len(read.constraints) == 12
    run = run_reference(read, tmp_path / "a.h5", ns=0.0002, **SHORT)
    assert run.frames == 2
    with pytest.raises(InputError, match="has no box, so say what stands for the solvent"):
        build_system(tmp_path / "a.prmtop", coordinates=tmp_path / "a.rst7")
    with pytest.raises(InputError, match="a.prmtop has no coordinates"):
        build_system(tmp_path / "a.prmtop", implicit="vacuum")


def test_periodic_prmtop(pdb, tmp_path):
    """Water and box come from the files; the solute is found among them."""
    parmed = pytest.importorskip("parmed")
    wet = build_system(pdb, solvent="tip3p", padding=0.64, ionic_strength=0.2)
    again = build_system(pdb, solvent="tip3p", padding=0.64, ionic_strength=0.2)
    serialize = openmm.XmlSerializer.serialize
    assert serialize(wet.system) == serialize(again.system)  # or no run could go on
    plain = app.ForceField("amber99sb.xml", "tip3p.xml").createSystem(
        wet.topology, nonbondedMethod=app.PME, rigidWater=False
    )
    structure = parmed.openmm.load_topology(wet.topology, plain, wet.positions * 10)
    structure.save(str(tmp_path / "a.prmtop"))
    structure.save(str(tmp_path / "a.rst7"))
    read = build_system(tmp_path / "a.prmtop", coordinates=tmp_path / "a.rst7")
    assert read.periodic and len(read.solute) == 22 and not read.solvated
    np.testing.assert_allclose(read.box, wet.box, atol=1e-5)
    # ParmEd writes no bond between the hydrogens of water, which Amber's own files have.
    waters = wet.description["water_molecules"]
    assert len(wet.constraints) == 12 + 3 * waters and len(read.constraints) == 12 + 2 * waters
    with pytest.raises(InputError, match="has a periodic box; leave implicit='obc2' out"):
        build_system(tmp_path / "a.prmtop", coordinates=tmp_path / "a.rst7", implicit="obc2")


def test_hydrogens_are_added(pdb, tmp_path):
    heavy = [line for line in pdb.read_text().splitlines() if line[76:78].strip() != "H"]
    heavy = [line for line in heavy if not line.startswith("CONECT")]
    (tmp_path / "heavy.pdb").write_text("\n".join(heavy) + "\n")
    system = build_system(tmp_path / "heavy.pdb")
    assert system.topology.getNumAtoms() == 22 and system.description["hydrogens"] == "added"


def renamed(pdb, folder, water=True):
    """The molecule with its middle residue's name and one atom's changed, and a water."""
    lines = [line.replace("ALA", "XAL") for line in pdb.read_text().splitlines()]
    lines = [
        line.replace(" CB  XAL", " CX  XAL") for line in lines if line[:6] in ("ATOM  ", "HETATM")
    ]
    lines = [line[:76] + " C" + line[78:] if " CX  " in line else line for line in lines]
    oxygen = "HETATM   23  O   HOH B   9      20.000  20.000  20.000  1.00  0.00           O  "
    path = folder / "renamed.pdb"
    path.write_text("\n".join([*lines, *([oxygen] if water else []), "END"]) + "\n")
    return path


def test_a_residue_is_replaced_and_water_removed(pdb, tmp_path):
    """The heavy atoms stay, and with the hydrogens added anew it is the known molecule."""
    path = renamed(pdb, tmp_path)
    found = build_system(path, replace=["XAL=ALA:CX=CB"], remove_water=True)
    expected = build_system(pdb)
    assert found.description["changes"] == ["water removed", "1 XAL replaced by ALA"]

    def heavy(system):
        return {system.label(a.index): system.positions[a.index] for a in system.mdtraj.atoms
                if a.element.symbol != "H"}  # fmt: skip

    one, other = heavy(found), heavy(expected)
    assert one.keys() == other.keys() and len(found.bonds) == 21
    for name, position in one.items():
        np.testing.assert_allclose(position, other[name], atol=1e-3, err_msg=name)

    def parameters(system):
        nonbonded = next(
            f for f in system.system.getForces() if isinstance(f, openmm.NonbondedForce)
        )
        charge = [nonbonded.getParticleParameters(i)[0]._value for i in range(22)]
        return {system.label(i): charge[i] for i in range(22)}

    assert parameters(found) == parameters(expected)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ({}, r"No template found for residue.*replace="),
        ({"replace": ["XAL"]}, "replacement 'XAL' cannot be read; give OLD=NEW"),
        ({"replace": ["XAL=ALA:CX"]}, "NLE=MET:CD=SD"),
        ({"replace": ["ZZZ=ALA"]}, "there is no residue ZZZ to replace"),
        (
            {"replace": ["XAL=ALA:CZ=CB"]},
            "residue XAL 2 has no atom CZ; its heavy atoms are C, CA",
        ),
        ({"remove_water": True}, "no water to remove"),
    ],
)
def test_bad_replacements(pdb, tmp_path, case, problem):
    with pytest.raises(InputError, match=problem):
        build_system(renamed(pdb, tmp_path, water=False), **case)


def test_residues_of_a_finished_system_stay(pdb, data):
    with pytest.raises(InputError, match=r"in a PDB file, not in system.xml"):
        build_system(data / "system.xml", coordinates=pdb, remove_water=True)


class _Force:
    def __init__(self, kind):
        self.text = (
            f'<System type="System" version="1"><Forces><Force type="{kind}"/></Forces></System>'
        )


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ({"source": "missing.pdb"}, "molecule missing.pdb does not exist"),
        ({"constraints": "some"}, "constraints are 'some'; choose one of none, hbonds"),
        ({"solvent": "milk"}, "solvent is 'milk'"),
        ({"solvent": "tip3p", "padding": 0.2}, "too small for a cutoff"),
        ({"solvent": "tip3p", "shape": "ball"}, "shape is 'ball'"),
        ({"solvent": "tip3p", "ionic_strength": -1}, "ionic strength"),
        ({"forcefield": ("nothing.xml",)}, "force field nothing.xml cannot be loaded"),
        ({"forcefield": ("tip3p.xml",)}, "residue .*ACE.*forcefield="),
        ({"implicit": "obc2"}, "implicit= is for prmtop"),
        ({"coordinates": "a.pdb"}, "has its own coordinates"),
        ({"hydrogen_mass": -1}, "hydrogen mass"),
    ],
)
def test_bad_molecules(pdb, case, problem):
    case = dict(case)
    with pytest.raises(InputError, match=problem):
        build_system(case.pop("source", pdb), **case)


@pytest.mark.parametrize("kind", ["PythonForce", "TorchForce", "PlumedForce", ""])
def test_programs_in_xml_are_refused(pdb, tmp_path, kind):
    path = tmp_path / "system.xml"
    path.write_text(_Force(kind).text)
    with pytest.raises(InputError, match=kind or "force without a type"):
        build_system(path, coordinates=pdb)


def test_thermostats_are_refused(pdb, data, tmp_path):
    system = openmm.XmlSerializer.deserialize((data / "system.xml").read_text())
    system.addForce(openmm.AndersenThermostat(300, 1))
    (tmp_path / "a.xml").write_text(openmm.XmlSerializer.serialize(system))
    with pytest.raises(InputError, match="holds a AndersenThermostat; remove it"):
        build_system(tmp_path / "a.xml", coordinates=pdb)


def test_solvent_is_recognised_by_its_atoms():
    """Water under any name, ions; a lone molecule that is all there is stays."""
    top = app.Topology()
    chain = top.addChain()
    for name, symbols in (("XYZ", "OHH"), ("LIG", "CO"), ("ION", ("Na",))):
        residue = top.addResidue(name, chain)
        atoms = [top.addAtom(s, app.element.Element.getBySymbol(s), residue) for s in symbols]
        for atom in atoms[1:]:
            top.addBond(atoms[0], atom)
    np.testing.assert_array_equal(solute_atoms(top), [3, 4])


# ---------------------------------------------------------------- runs


def test_dataset_of_metadynamics(pdb, tmp_path):
    """All that training and reweighting need is there, and forces have no bias in them."""
    run = run_reference(
        pdb, tmp_path / "a.h5", ns=0.01, force_map="basic", **METAD, height=20.0, **SHORT
    )
    data = cgml.read_dataset(tmp_path / "a.h5")
    assert run.finished and run.frames == run.total == len(data) == 100
    assert not segments_folder(tmp_path / "a.h5").exists()
    assert data.variable_names == ("phi:2", "psi:2") and data.temperature == 300
    # The variables are those of the beads: the map keeps their atoms.
    phi = dihedral_angles(data.positions, [[0, 1, 2, 3]])
    np.testing.assert_allclose(np.ravel(phi), data.variables[:, 0], atol=1e-4)
    assert (data.weights > 0).all() and data.bias_energy[0] == 0 and data.bias_energy[-1] > 1
    assert (data.trajectory == 0).all() and data.box is None
    assert "well-tempered metadynamics along phi:2, psi:2" in data.bias
    about = data.mapping["reference"]
    assert about["timestep_ps"] == 0.002 and about["constraints"] == 12
    assert about["system"]["constraints"] == "hbonds" and about["platform"] == "Reference"
    assert json.loads(json.dumps(about)) == about
    assert data.mapping["force_map"]["name"] == "basic"
    assert data.mapping["force_map"]["mean_square"] == pytest.approx(
        (data.forces.astype(float) ** 2).mean(), rel=1e-6
    )
    assert set(data.sources) == {"topology.pdb"}
    # Isolated: centred, so that float32 keeps its digits.
    assert np.abs(data.positions.mean(axis=1)).max() < 1e-5
    assert run.effective_samples < 100


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_runs_are_the_same_to_the_bit(kind, pdb, tmp_path):
    """Stopped after every event and begun again: frames equal those of one run."""
    settings = {**SHORT, **KINDS[kind]}
    whole = run_reference(pdb, tmp_path / "whole.h5", ns=0.0006, **settings)
    parts = tmp_path / "parts.h5"
    calls = 0
    while True:
        run = run_reference(pdb, parts, ns=0.0006, seconds=0, checkpoint_seconds=0, **settings)
        calls += 1
        if run.finished:
            break
        assert calls < 50 and len(read_segments(parts)) == run.frames
    assert calls > 4
    assert run.frames == whole.frames == whole.total
    require_equal(cgml.read_dataset(parts), cgml.read_dataset(tmp_path / "whole.h5"))


@pytest.mark.parametrize("kind", ["metadynamics", "remd, all rungs"])
def test_finished_runs_can_be_made_longer(kind, pdb, tmp_path):
    settings = {**SHORT, **KINDS[kind]}
    longer, once = tmp_path / "longer.h5", tmp_path / "once.h5"
    run_reference(pdb, longer, ns=0.0004, **settings)
    again = run_reference(pdb, longer, ns=0.0004, **settings)
    assert again.finished and np.isnan(again.ns_per_day)
    run_reference(pdb, longer, ns=0.0008, **settings)
    run_reference(pdb, once, ns=0.0008, **settings)
    require_equal(cgml.read_dataset(longer), cgml.read_dataset(once))
    with pytest.raises(InputError, match="it can only grow"):
        run_reference(pdb, longer, ns=0.0004, **settings)


def test_killed_run_loses_no_frame(pdb, tmp_path):
    """kill -9 in the middle; begun again it has every frame once, the same to the bit."""
    output = tmp_path / "killed.h5"
    settings = {**SHORT, **METAD, "checkpoint_seconds": 0.0}
    script = textwrap.dedent(f"""
        from openmm_cgml.reference.run import run_reference
        run_reference({str(pdb)!r}, {str(output)!r}, ns=1.0, **{settings!r})
    """)
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        folder, until = segments_folder(output), time.monotonic() + 100
        while not (folder / "000007.h5").exists():
            assert child.poll() is None and time.monotonic() < until
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    kept = len(read_segments(output))
    assert kept >= 8
    # As if killed between a segment and its checkpoint.
    (folder / "000900.h5").write_bytes((folder / "000000.h5").read_bytes())
    (folder / ".000901.h5.1.tmp").write_bytes(b"half")
    ns = (kept + 12) / 10_000
    settings["checkpoint_seconds"] = 30.0
    with pytest.raises(InputError, match="ns was 1, now .* can only grow"):
        run_reference(pdb, output, ns=ns, **settings)
    # The end is the only thing that differs, so that the test ends.
    path = folder / "checkpoint.npz"
    state = read_checkpoint(output)
    state.settings["ns"] = ns
    path.write_bytes(state.to_bytes())
    run = run_reference(pdb, output, ns=ns, **settings)
    assert run.finished and run.frames == kept + 12
    run_reference(pdb, tmp_path / "whole.h5", ns=ns, **settings)
    require_equal(cgml.read_dataset(output), cgml.read_dataset(tmp_path / "whole.h5"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on(pdb, tmp_path, monkeypatch, caplog, number):
    settings = {**SHORT, **METAD}
    deposit, calls = Metadynamics.deposit, []

    def interrupting(self, values):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        deposit(self, values)

    monkeypatch.setattr(Metadynamics, "deposit", interrupting)
    run = run_reference(pdb, tmp_path / "a.h5", ns=0.001, **settings)
    assert not run.finished and run.frames == 4 and len(run.dataset()) == 4
    assert f"stopped by {number.name} after 4 of 10 frames" in caplog.text
    assert not (tmp_path / "a.h5").exists()
    assert run_reference(pdb, tmp_path / "a.h5", ns=0.001, **settings).finished
    monkeypatch.undo()
    run_reference(pdb, tmp_path / "b.h5", ns=0.001, **settings)
    require_equal(cgml.read_dataset(tmp_path / "a.h5"), cgml.read_dataset(tmp_path / "b.h5"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"temperature": 310}, "temperature_K was 300.0, now 310.0"),
        ({"interval": 0.2}, "steps_per_frame was 50, now 100"),
        ({"height": 2.0}, "metadynamics_height_kJ_mol was 1.0, now 2.0"),
        ({"friction": 2.0}, "friction_per_ps was 1.0, now 2.0"),
        ({"mapping": "calpha"}, "mapping was backbone, now calpha"),
        ({"constraints": "none", "timestep": 0.002}, "system_sha256 was"),
    ],
)
def test_changed_settings_are_refused(pdb, tmp_path_factory, change, named):
    folder = tmp_path_factory.getbasetemp() / "changed"
    settings = {**SHORT, **METAD, "force_map": None}
    if not folder.exists():
        folder.mkdir()
        run_reference(pdb, folder / "a.h5", ns=0.0002, seconds=0, **settings)
    with pytest.warns(UserWarning) if "constraints" in change else _nothing():
        with pytest.raises(InputError, match=named):
            run_reference(pdb, folder / "a.h5", ns=0.0002, **{**settings, **change})


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_half_made_folders_are_no_runs(pdb, tmp_path):
    """Killed while a finished run was reopened: its file still counts."""
    output = tmp_path / "a.h5"
    run_reference(pdb, output, ns=0.0002, **SHORT)
    segments_folder(output).mkdir()
    (tmp_path / ".a.h5.1.tmp").write_bytes(b"half")
    assert np.isnan(run_reference(pdb, output, ns=0.0002, **SHORT).ns_per_day)
    assert run_reference(pdb, output, ns=0.0004, **SHORT).frames == 4
    run_reference(pdb, tmp_path / "b.h5", ns=0.0004, **SHORT)
    require_equal(cgml.read_dataset(output), cgml.read_dataset(tmp_path / "b.h5"))
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "b.h5"}


def test_two_processes_do_not_write_one_run(pdb, tmp_path):
    pytest.importorskip("fcntl")
    import fcntl

    folder = segments_folder(tmp_path / "a.h5")
    folder.mkdir()
    with open(folder / "lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing"):
            run_reference(pdb, tmp_path / "a.h5", ns=0.0002, **SHORT)


def test_bias_in_a_shared_group_is_caught(pdb, tmp_path, monkeypatch):
    """Negative control: were the bias among the bonds, its forces would be recorded."""
    monkeypatch.setattr("openmm_cgml.reference.machine.free_group", lambda system: 0)
    real = set(range(32))
    monkeypatch.setattr("openmm_cgml.reference.machine._others", lambda group: real)
    with pytest.raises(InputError, match="the recorded forces are not unbiased: that on"):
        run_reference(pdb, tmp_path / "a.h5", ns=0.0002, **SHORT, **METAD)


HIDDEN = "torsion:ALA2-H,ALA2-N,ALA2-CA,ALA2-C"


def test_hidden_variables_need_no_forces(pdb, tmp_path):
    settings = {**SHORT, "method": "metadynamics", "variables": (HIDDEN,), "deposit": 0.1}
    with pytest.raises(InputError, match="does not keep ALA2-H.*--no-forces"):
        run_reference(pdb, tmp_path / "a.h5", ns=0.0002, **settings)
    run_reference(pdb, tmp_path / "a.h5", ns=0.0002, force_map=None, **settings)
    data = cgml.read_dataset(tmp_path / "a.h5")
    assert data.forces is None and data.weights is not None
    # Recorded without a bias it does no harm.
    run_reference(pdb, tmp_path / "b.h5", ns=0.0002, variables=(HIDDEN,), **SHORT)
    assert cgml.read_dataset(tmp_path / "b.h5").variable_names == (HIDDEN,)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "annealing"}, "method is 'annealing'; choose one of"),
        ({"ns": -1}, "ns is -1"),
        ({"ns": 1e-6}, "shorter than one interval"),
        ({"interval": 0.1001}, "not a whole number of steps of 0.002 ps; give 0.1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"mapping": "everything"}, "unknown mapping 'everything'"),
        ({"force_map": "magic"}, "unknown force map 'magic'"),
        ({"platform": "Abacus"}, "platform 'Abacus' is not available"),
        ({"threads": 0}, "threads is 0"),
        ({"discard": 1}, "discard is for metadynamics"),
        ({"temperatures": (300, 320)}, "temperatures are for method 'remd'"),
        ({"centres": (1.0,)}, "centres are for method 'umbrella'"),
        ({"keep_box": True}, "keep_box needs a periodic box"),
        ({"npt": 1}, "npt needs a periodic box"),
        ({"calibrate": 0}, "calibrate is 0"),
        ({"method": "metadynamics"}, "metadynamics has 0 variables"),
        ({**METAD, "weights": "best"}, "weights are 'best'; choose one of ct, final"),
        ({"method": "umbrella", "variables": ("phi",)}, "umbrella windows need centres"),
        ({"method": "remd"}, "needs temperatures"),
        ({"method": "remd", "temperatures": (300,)}, "give two or more"),
        ({"method": "remd", "temperatures": (310, 330)}, "first temperature is 310 K"),
    ],
)
def test_bad_settings(pdb, tmp_path, settings, problem):
    with pytest.raises(InputError, match=problem):
        run_reference(pdb, tmp_path / "a.h5", **{"ns": 0.0002, **SHORT, **settings})
    assert not (tmp_path / "a.h5").exists()
    assert not segments_folder(tmp_path / "a.h5").exists()


def test_another_file_is_not_overwritten(pdb, tmp_path, dataset):
    dataset.save(tmp_path / "a.h5")
    with pytest.raises(InputError, match="is not the dataset of a reference run"):
        run_reference(pdb, tmp_path / "a.h5", ns=0.0002, **SHORT)


def test_run_that_explodes_is_told(pdb, tmp_path):
    with pytest.warns(UserWarning, match="bonds to hydrogen are not constrained"):
        with pytest.raises(cgml.CGMLError, match="no longer finite|OpenMM stopped"):
            run_reference(
                pdb, tmp_path / "a.h5", ns=0.1, constraints="none", **{**SHORT, "interval": 1.0},
                timestep=0.02,
            )  # fmt: skip


def test_no_constraints(pdb, tmp_path):
    run_reference(pdb, tmp_path / "a.h5", ns=0.0002, constraints="none", **SHORT)
    about = cgml.read_dataset(tmp_path / "a.h5").mapping
    assert about["reference"]["timestep_ps"] == 0.001
    assert about["force_map"]["constraint_groups"] == []


# ---------------------------------------------------------------- exact systems


def diatomic(constant: float, length: float) -> ReferenceSystem:
    """Two carbon atoms on a spring: U(r) = k (r - r0)^2 / 2, density r^2 exp(-U/kT)."""
    top = app.Topology()
    residue = top.addResidue("TWO", top.addChain())
    carbon = app.element.carbon
    one, two = (top.addAtom(name, carbon, residue) for name in ("C1", "C2"))
    top.addBond(one, two)
    system = openmm.System()
    for _ in range(2):
        system.addParticle(12.0)
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, length, constant)
    system.addForce(force)
    return ReferenceSystem(top, system, np.array([[0, 0, 0], [length, 0, 0.0]]))


def both_atoms(top):
    return slice_mapping(top, [0, 1])


def test_every_rung_has_its_temperature(tmp_path):
    """Mean energies of four rungs, and the MBAR mean at the first: 5 z-scores below 4."""
    constant, length = 1000.0, 0.3
    temperatures = np.array([300.0, 400.0, 550.0, 750.0])
    run = run_reference(
        diatomic(constant, length), tmp_path / "a.h5", ns=0.8, mapping=both_atoms,
        method="remd", temperatures=temperatures, all_rungs=True, exchange=1.0, interval=1.0,
        timestep=0.004, friction=10.0, equilibrate=4.0, calibrate=10, platform="Reference", seed=3,
    )  # fmt: skip
    data = cgml.read_dataset(tmp_path / "a.h5")
    assert len(data) == 3200 and "every use needs their MBAR weights" in data.bias
    import h5py

    with h5py.File(tmp_path / "a.h5") as handle:
        energy = np.asarray(handle["reference/energy"])
        rung = np.asarray(handle["reference/rung"])
    bond = np.linalg.norm(np.diff(data.positions.astype(float), axis=1)[:, 0], axis=-1)
    np.testing.assert_allclose(energy, constant * (bond - length) ** 2 / 2, atol=1e-3)
    r = np.linspace(0.05, 0.6, 20_001)
    potential = constant * (r - length) ** 2 / 2

    def exact(kelvin):
        density = r**2 * np.exp(-potential / (GAS_CONSTANT * kelvin))
        return (density * potential).sum() / density.sum()

    z = []
    for k, kelvin in enumerate(temperatures):
        assert (rung == k).sum() == 800
        mean, error = mean_and_error(energy[rung == k])
        z.append((mean - exact(kelvin)) / error)
    weights = data.weights / data.weights.sum()
    mean = weights @ energy
    error = np.sqrt((weights**2 * (energy - mean) ** 2).sum() * 1.5)
    z.append((mean - exact(300.0)) / error)
    assert np.abs(z).max() < 4, z
    # Negative control: without weights the mean is another one.
    assert abs(energy.mean() - exact(300.0)) > 10 * error
    rates = run.info["statistics"]["neighbour_acceptance"]
    assert all(0.3 < rate < 1 for rate in rates)


def test_umbrella_windows_return_the_density(tmp_path):
    """Windows of a diatomic's distance, MBAR: 8 bins of r, z-scores below 4."""
    constant, length = 60.0, 0.35
    centres = np.linspace(0.15, 0.65, 6)
    run_reference(
        diatomic(constant, length), tmp_path / "a.h5", ns=0.3, mapping=both_atoms,
        method="umbrella", variables=("distance:0,1",), centres=centres, springs=(500.0,),
        interval=0.5, timestep=0.005, friction=20.0, equilibrate=5.0, calibrate=10,
        platform="Reference", seed=1,
    )  # fmt: skip
    data = cgml.read_dataset(tmp_path / "a.h5")
    assert (np.bincount(data.trajectory) == 600).all() and data.weights.mean() == pytest.approx(1)
    window = centres[data.trajectory]
    expected = 250 * (data.variables[:, 0] - window) ** 2
    np.testing.assert_allclose(data.bias_energy, expected, atol=1e-9)
    edges = np.linspace(0.15, 0.55, 9)
    r = np.linspace(0, 1.5, 60_001)[1:]
    density = r**2 * np.exp(-constant * (r - length) ** 2 / 2 / KT)
    exact = np.histogram(r, edges, weights=density)[0] / density.sum()
    # Errors from 10 blocks of time, each of all windows.
    block = np.concatenate([np.arange(600) // 60] * 6)
    found = []
    for k in range(10):
        part = block == k
        histogram = np.histogram(data.variables[part, 0], edges, weights=data.weights[part])[0]
        found.append(histogram / data.weights[part].sum())
    error = np.std(found, axis=0, ddof=1) / np.sqrt(10)
    z = (np.mean(found, axis=0) - exact) / error
    assert np.abs(z).max() < 4, z


# ---------------------------------------------------------------- explicit solvent


def test_explicit_solvent(pdb, tmp_path):
    """A box is filled, equilibrated and run; the solute alone is mapped, whole and isolated."""
    system = build_system(pdb, solvent="tip3p", padding=0.64)
    assert system.periodic and len(system.solute) == 22
    settings = {
        **{"platform": "CPU", "interval": 0.02, "force_map": "basic", "threads": 1},
        **{"npt": 0.1, "equilibrate": 0.02},
    }
    run = run_reference(system, tmp_path / "a.h5", ns=0.0001, **METAD | {"deposit": 0.04},
                        **settings)  # fmt: skip
    data = cgml.read_dataset(tmp_path / "a.h5")
    assert run.frames == 5 and data.box is None and data.positions.shape == (5, 5, 3)
    about = data.mapping["reference"]
    assert about["atoms"] > 800 and about["solute_atoms"] == 22
    box = np.array(about["box_nm"])
    assert 1.9 < box[0, 0] < 2.3 and about["system"]["nonbonded"] == "PME, 1.0 nm"
    bonds = np.linalg.norm(np.diff(data.positions, axis=1), axis=-1)
    assert (bonds < 0.2).all()  # whole
    assert (data.mapping["atoms"][4], len(data.mapping["atoms"])) == ("ACE1-C", 22)


def test_torn_molecules_are_made_whole(pdb):
    """Beads do not depend on the image in which each atom was written."""
    made = build_system(pdb)
    box = np.array([[2.0, 0, 0], [0.3, 2.1, 0], [0.2, -0.4, 1.9]])
    mapper = BeadMapper(made.mdtraj, "residue_com", made.solute, [])
    whole = mapper.map(made.positions[None], None, None, box[None])["positions"]
    shifts = np.random.default_rng(0).integers(-1, 2, (22, 3))
    torn = mapper.map((made.positions + shifts @ box)[None], None, None, box[None])["positions"]
    np.testing.assert_allclose(torn, whole, atol=1e-6)


def test_variables_across_molecules_are_refused(pdb, tmp_path):
    system = build_system(pdb, solvent="tip3p", padding=0.64)
    with pytest.raises(InputError, match="joins ACE1-C and HOH.* of two molecules"):
        run_reference(system, tmp_path / "a.h5", ns=0.1, variables=("distance:4,30",))


def test_mapping_of_the_whole_system_is_cut(pdb):
    """A map of a solvated topology is taken for the molecules that have beads."""
    top = build_system(pdb, solvent="tip3p", padding=0.64).mdtraj
    whole = slice_mapping(top, [4, 6, 8])
    mapper = BeadMapper(top, whole, np.arange(22), [])
    assert mapper.mapping.n_atoms == 22 and len(mapper.atoms) == 22
    with pytest.raises(InputError, match="the mapping was made for 5 atoms"):
        part = slice_mapping(top.subset(range(5)), [4])
        BeadMapper(top, part, np.arange(22), [])


# ---------------------------------------------------------------- a script of the user's own


def user_simulation(pdb, metadynamics=False, group=None, first=(4, 6, 8, 14)):
    structure = app.PDBFile(str(pdb))
    field = app.ForceField("amber99sb.xml", "amber99_obc.xml")
    system = field.createSystem(structure.topology, constraints=app.HBonds)
    meta = None
    if metadynamics:
        torsions = []
        for atoms in (first, (6, 8, 14, 16)):
            torsion = openmm.CustomTorsionForce("theta")
            torsion.addTorsion(*atoms, [])
            torsions.append(app.BiasVariable(torsion, -np.pi, np.pi, 0.35, True))
        meta = app.Metadynamics(system, torsions, 300, 6, 20.0, 50)
    if group is not None:
        meta._force.setForceGroup(group)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(
        structure.topology, system, integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(structure.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300, 2)
    return simulation, meta


class Positions:
    """What the frames were, by OpenMM's own way."""

    def __init__(self, interval):
        self.interval, self.frames = interval, []

    def describeNextReport(self, simulation):
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": False, "include": ["positions"]}

    def report(self, simulation, state):
        self.frames.append(state.getPositions(asNumpy=True)._value.copy())


def test_reporter_with_metadynamics(pdb, tmp_path):
    simulation, meta = user_simulation(pdb, metadynamics=True)
    seen = Positions(20)
    with DatasetReporter(tmp_path / "a.h5", 20, "backbone", 300, metadynamics=meta) as reporter:
        simulation.reporters += [seen, reporter]
        meta.step(simulation, 1000)
    data = cgml.read_dataset(tmp_path / "a.h5")
    assert len(data) == 50 and data.variables.shape == (50, 2)
    # Forces are those of the same frames without the bias, through the basic map.
    plain = build_system(pdb)
    expected = np.stack([forces_of(plain.system, x) for x in seen.frames])
    mapping = cgml.MAPPINGS["backbone"](plain.mdtraj)
    force_map = basic_force_map(mapping, plain.constraints)
    np.testing.assert_allclose(data.forces, force_map.map_forces(expected), atol=0.02, rtol=1e-5)
    beads = mapping.map_positions(np.stack(seen.frames))
    beads -= beads.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(data.positions, beads, atol=1e-6)
    # Hills come every 50 steps; the first frames have none.
    assert (data.bias_energy[:2] == 0).all() and data.bias_energy[2] > 10
    # c(t) as that of this package's own grid.
    own = Metadynamics(
        [*map(lambda t: parse_variable(t, plain.mdtraj), ("phi", "psi"))],
        300.0,
    )
    own.grid = np.asarray(meta._totalBias)
    own.axes = [type(own.axes[0])(v, 0.35) for v in own.variables]
    for axis, points in zip(own.axes, own.grid.shape, strict=True):
        axis.points = np.linspace(-np.pi, np.pi, points)
    assert reporter._offset() == pytest.approx(own.offset(), rel=1e-9)
    assert "openmm.app.Metadynamics" in data.bias
    assert data.mapping["reference"]["method"] == "reporter"


def test_reporter_leaves_no_trace_in_the_run(pdb, tmp_path):
    """Its check of forces makes a Context; the noise of the run stays what it was."""
    ends = []
    for used in (True, False):
        simulation, _ = user_simulation(pdb)
        if used:
            simulation.reporters.append(DatasetReporter(tmp_path / "a.h5", 50, "backbone", 300))
        simulation.step(200)
        ends.append(simulation.context.getState(getPositions=True).getPositions(asNumpy=True))
    np.testing.assert_array_equal(*(end._value for end in ends))


def test_reporter_catches_a_shared_group(pdb, tmp_path):
    """Negative control: the bias in the group of the bonds."""
    simulation, meta = user_simulation(pdb, metadynamics=True, group=0)
    reporter = DatasetReporter(tmp_path / "a.h5", 10, "backbone", 300, metadynamics=meta)
    simulation.reporters.append(reporter)
    with pytest.raises(InputError, match="not unbiased: that on"):
        simulation.step(10)


def test_reporter_refuses_hidden_variables(pdb, tmp_path):
    """Also of openmm.app.Metadynamics, whose forces tell their atoms."""
    simulation, meta = user_simulation(pdb, metadynamics=True, first=(7, 6, 8, 14))
    settings = {"metadynamics": meta}
    simulation.reporters.append(
        DatasetReporter(tmp_path / "a.h5", 10, "backbone", 300, **settings)
    )
    with pytest.raises(InputError, match="does not keep ALA2-H"):
        simulation.step(10)
    simulation.reporters[:] = [
        DatasetReporter(tmp_path / "a.h5", 10, "backbone", 300, force_map=None, **settings)
    ]
    simulation.step(20)
    simulation.reporters[0].close()
    assert cgml.read_dataset(tmp_path / "a.h5").forces is None


def test_reporter_says_what_it_cannot_tell(pdb, tmp_path):
    simulation, meta = user_simulation(pdb, metadynamics=True)
    groups = [meta._force.getForceGroup()]
    simulation.reporters.append(
        DatasetReporter(tmp_path / "a.h5", 10, "backbone", 300, bias_groups=groups)
    )
    with pytest.warns(UserWarning, match="cannot tell of the bias whether"):
        simulation.step(10)


def test_restarted_script_goes_on(pdb, tmp_path):
    """A script that stops after a checkpoint and comes back repeats no frame."""
    settings = {"force_map": "optimal", "calibrate": 4, "checkpoint_seconds": 0.0}
    simulation, _ = user_simulation(pdb)
    with pytest.raises(RuntimeError, match="power cut"):
        with DatasetReporter(tmp_path / "a.h5", 20, "backbone", 300, **settings) as reporter:
            simulation.reporters.append(reporter)
            simulation.step(130)
            simulation.saveCheckpoint(str(tmp_path / "state.chk"))
            simulation.step(100)
            raise RuntimeError("power cut")
    assert len(read_segments(tmp_path / "a.h5")) == 11
    fresh, _ = user_simulation(pdb)
    fresh.reporters.append(DatasetReporter(tmp_path / "a.h5", 20, "backbone", 300, **settings))
    with pytest.raises(InputError, match="frames up to step 220, the simulation is at step 0"):
        fresh.step(20)
    fresh.reporters[0]._recorder.close()
    fresh.reporters.clear()
    fresh.loadCheckpoint(str(tmp_path / "state.chk"))
    with DatasetReporter(tmp_path / "a.h5", 20, "backbone", 300, **settings) as reporter:
        fresh.reporters.append(reporter)
        fresh.step(270)
    data = cgml.read_dataset(tmp_path / "a.h5")
    import h5py

    with h5py.File(tmp_path / "a.h5") as handle:
        np.testing.assert_array_equal(handle["reference/step"], np.arange(20, 401, 20))
    assert len(data) == 20 and data.mapping["force_map"]["name"] == "optimal"
    with pytest.raises(InputError, match="a.h5 exists; choose another file"):
        DatasetReporter(tmp_path / "a.h5", 20, "backbone", 300)


def test_reporter_bad_input(pdb, tmp_path):
    def reporter(**settings):
        return DatasetReporter(
            tmp_path / "a.h5", **{"interval": 5, "mapping": "backbone", "temperature": 300}
            | settings,
        )  # fmt: skip

    for settings, problem in (
        ({"interval": 0}, "interval is 0"),
        ({"interval": 2.5}, "interval is 2.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"force_map": "magic"}, "unknown force map"),
        ({"calibrate": 0}, "calibrate is 0"),
    ):
        with pytest.raises(InputError, match=problem):
            reporter(**settings)
    with pytest.raises(InputError, match="the reporter was not used"):
        reporter().close()
    stray = openmm.HarmonicBondForce()
    stray.setName("Stray")
    for settings, problem in (
        ({"bias_forces": [stray]}, "the bias Stray is not in the System"),
        ({"bias_groups": [7]}, "no force of the System is in the bias groups 7"),
        ({"keep_box": True}, "keep_box needs a periodic box"),
    ):
        simulation, _ = user_simulation(pdb)
        simulation.reporters.append(reporter(**settings))
        with pytest.raises(InputError, match=problem):
            simulation.step(5)


# ---------------------------------------------------------------- the command


def command(monkeypatch, capsys, *arguments, code=0):
    monkeypatch.setattr(sys, "argv", ["cgml", "reference", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed, said = capsys.readouterr()
    assert (stopped.value.code or 0) == code, said
    return printed, said


def test_command(pdb, tmp_path, monkeypatch, capsys):
    arguments = (
        *(pdb, "-o", tmp_path / "a.h5", "--ns", 0.001, "--method", "metadynamics"),
        *("--variable", "phi", "--variable", "psi", "--mapping", "backbone", "--bias-factor", 6),
        *("--height", 1.0, "--width", 0.35, "--deposit", 0.2, "--interval", 0.1, "--seed", 0),
        *("--temperature", 300, "--constraints", "hbonds", "--timestep", 0.002, "--friction", 1),
        *("--equilibrate", 0.2, "--calibrate", 20, "--platform", "Reference", "--json"),
    )
    printed, _ = command(monkeypatch, capsys, *arguments, "--seconds", 0)
    assert json.loads(printed)["finished"] is False
    printed, said = command(monkeypatch, capsys, *arguments)
    record = json.loads(printed)
    assert record["finished"] and record["frames"] == record["total_frames"] == 10
    assert record["effective_samples"] <= 10 and record["statistics"]["hills"] == 5
    assert f"{tmp_path / 'a.h5'}: 10 frames" in said and "on Reference" in said
    _, said = command(monkeypatch, capsys, *arguments, "--spring", "much", code=2)
    assert "spring 'much' is no number" in said


TABLE = """
name = "two beads"
leave_out = ["ALA"]
hydrogens = true
[residues.ACE]
BB = ["CH3", "C", "O"]
[residues.NME]
BB = ["N", "C"]
"""


def test_command_with_a_table(pdb, tmp_path, monkeypatch, capsys):
    (tmp_path / "beads.toml").write_text(TABLE)
    arguments = (pdb, "-o", tmp_path / "a.h5", "--ns", 0.0002, "--interval", 0.1)
    short = ("--equilibrate", 0.2, "--calibrate", 20, "--platform", "Reference")
    command(monkeypatch, capsys, *arguments, *short, "--table", tmp_path / "beads.toml")
    assert len(cgml.read_dataset(tmp_path / "a.h5").topology) == 2


def test_centres():
    np.testing.assert_allclose(
        parse_centres(["-180:180:4deg"])[:, 0], [-np.pi, -np.pi / 2, 0, np.pi / 2]
    )
    np.testing.assert_allclose(parse_centres(["0.2:0.6:3"])[:, 0], [0.2, 0.4, 0.6])
    assert parse_centres(["1,2,3", "0:1:2"]).shape == (6, 2)
    for text in ("a:b:c", "1:2", "", "0:1:0"):
        with pytest.raises(InputError, match="cannot be read"):
            parse_centres([text])


def test_command_knows_the_methods():
    """The command lists them without loading OpenMM."""
    assert _METHODS == METHODS


# ---------------------------------------------------------------- longer statistics


@pytest.mark.slow
def test_metadynamics_returns_the_reference(data, pdb, tmp_path):
    """5 ns, weights of c(t): the free energy of phi > 0 is the reference's within 2 kJ/mol."""
    run_reference(pdb, tmp_path / "a.h5", ns=5, method="metadynamics", variables=("phi", "psi"))
    found = cgml.read_dataset(tmp_path / "a.h5")
    phi, weights = found.variables[:, 0], found.weights
    inside = (phi > 0) & (phi < 2.2)
    with np.load(data / "reference.npz") as reference:
        edges, probability = reference["edges"], reference["probability"].sum(axis=1)
    centre = (edges[1:] + edges[:-1]) / 2
    there = (centre > 0) & (centre < 2.2)
    exact = -KT * np.log(probability[there].sum() / probability[~there].sum())
    estimate = -KT * np.log(weights[inside].sum() / weights[~inside].sum())
    assert abs(estimate - exact) < 2.0
