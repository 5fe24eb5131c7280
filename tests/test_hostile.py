"""Files made to do harm: nothing of theirs is run, nothing beside them read, nothing swallowed."""

import ast
import io
import json
import os
import signal
import struct
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch  # before openmm

import h5py
import mdtraj
import numpy as np
import openmm
import pytest
from fuzzing import texts_in_heap

import openmm_cgml as cgml
from openmm_cgml import archives, pickles, script_archives
from openmm_cgml.cli import app
from openmm_cgml.convert import convert_files
from openmm_cgml.dataset import read_dataset
from openmm_cgml.file_report import recognise
from openmm_cgml.files import require_file
from openmm_cgml.flow_file import load_flow
from openmm_cgml.mapping.constraints import constraints_from_system
from openmm_cgml.mapping.table_file import parse_mapping_table, read_mapping_table
from openmm_cgml.pmf.prior_table import read_prior_table
from openmm_cgml.reference.setup import require_safe_xml
from openmm_cgml.topology import CGTopology
from openmm_cgml.train import _CheckedCheckpoints, _read
from openmm_cgml.training_state import LAST, RECORD, claim

SOURCE = Path(cgml.__file__).parent


@contextmanager
def at_most(seconds: int):
    """Fail where the block takes longer."""

    def late(*_) -> None:
        raise TimeoutError(f"it takes over {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- the source


#: Where a dangerous call may stand, and why.
ALLOWED = {
    ("torch.jit.load", "trusted_program.py"): "after load_program has looked at the archive",
    ("torch.jit.load", "model_file.py"): "of bytes that load_program has looked at",
    ("torch.jit.load", "pmf/foreign.py"): "only with trust=True",
    ("torch.jit.load", "torchforce.py"): "a program made in the same function",
    ("deserialize", "system.py"): "after _require_harmless",
    ("deserialize", "reference/setup.py"): "after require_safe_xml",
    ("deserialize", "native/library.py"): "a text of the package's own",
    ("h5py.File", "hdf5_files.py"): "looks at every object before it returns",
    ("numpy.load", "archives.py"): "compares sizes first",
}
#: Reading parts of a run that this process, or one before it, has begun.
OWN_FILES = ("reference/",)


def dangerous(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Calls that could run what a file says, or read more than the file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            for name in names:
                if name.split(".")[0] in ("pickle", "cPickle", "dill", "shelve", "marshal",
                                          "joblib", "yaml", "cloudpickle"):  # fmt: skip
                    found.append((name, node))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name in ("eval", "exec", "compile", "__import__") or last in (
            "load_from_checkpoint", "unsafe_load", "from_file",
        ):  # fmt: skip
            found.append((name, node))
        elif name == "torch.load":
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if given.get("weights_only") != "True":
                found.append((name, node))
        elif name in ("np.load", "numpy.load"):
            found.append(("numpy.load", node))
        elif name in ("torch.jit.load", "h5py.File"):
            found.append((name, node))
        elif last == "deserialize" and "Serializer" in name:
            found.append((last, node))
    return found


def test_nothing_in_the_source_unpickles_or_evaluates() -> None:
    unexpected, seen = [], set()
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        for name, node in dangerous(ast.parse(path.read_text())):
            if (name, place) in ALLOWED:
                seen.add((name, place))
                continue
            if name == "h5py.File" and place.startswith(OWN_FILES):
                continue
            unexpected.append(f"{place}:{node.lineno} {name}")
    assert unexpected == [] and seen == set(ALLOWED)


def test_the_scan_finds_what_it_looks_for() -> None:
    bad = [
        "import pickle", "from joblib import load", "torch.load(x)", "eval(text)",
        "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "h5py.File(x)",
        "openmm.XmlSerializer.deserialize(x)", "yaml.load", "import yaml",
    ]  # fmt: skip
    found = [line for line in bad if dangerous(ast.parse(line))]
    assert found == [line for line in bad if line != "yaml.load"]
    assert not dangerous(ast.parse("torch.load(x, weights_only=True)"))


def test_every_operator_that_may_run_exists_or_is_none() -> None:
    """Nothing on the list of operators reads, writes, prints or starts anything."""
    from openmm_cgml.trusted_program import _ALLOWED

    harmful = ("file", "save", "load", "print", "fork", "wait", "script", "python", "warn",
               "record", "distributed", "rpc", "open", "set_", "resize")  # fmt: skip
    named = {one.partition("::")[2] for one in _ALLOWED}
    fine = {"index_put", "masked_scatter"}
    assert not {n for n in named - fine if any(n == w or n == f"{w}_" for w in harmful)}
    assert not {n for n in named if any(w in n for w in ("file", "save", "print", "fork"))}


# ---------------------------------------------------------------- programs


class Part(torch.nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("w", torch.arange(float(n)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() + self.w.sum()


class OtherPart(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.name = "x" * 32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() * len(self.name)


class Harmless(torch.nn.Module):
    """Everything that a model file has."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.card_json, self.beads, self.copies, self.highest_particle = card, 5, 1, -1
        self.register_buffer("particles", torch.zeros(0, dtype=torch.int64))
        self.part, self.other = Part(4), OtherPart()

    @torch.jit.export
    def card(self) -> str:
        return self.card_json

    @torch.jit.export
    def copy_energies(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.part(positions).reshape(1) + self.other(positions)

    @torch.jit.export
    def energies_and_forces(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.copy_energies(positions, box_vectors), torch.zeros_like(positions)

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.copy_energies(positions, box_vectors).sum()


@pytest.fixture(scope="module")
def whole(model) -> bytes:
    """A harmless model file."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Harmless(json.dumps(model.card))), buffer)
    return buffer.getvalue()


def rewrite(raw: bytes, change, how: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with each entry's content changed; None leaves it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", how) as new:
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


def swap(entry: str, old: bytes, new: bytes):
    """Change one piece of one entry."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(entry):
            return content
        assert old in content
        return content.replace(old, new)

    return change


def source(old: str, new: str):
    """Change a piece of the program, in whichever file it stands."""

    def change(name: str, content: bytes) -> bytes:
        return content.replace(old.encode(), new.encode()) if name.endswith(".py") else content

    return change


BODY = "return torch.add(_0, (other).forward(positions, ))"
EXPLOIT = "__torch__.torch.classes.quantized.Conv2dPackedParamsBase"
PROGRAMS = {
    "from_file": (source("torch.reshape(", "torch.from_file("), "from_file"),
    "save under another name": (
        source("    part = self.part\n", "    part = self.part\n    _9 = torch.save\n"),
        "aten::save",
    ),
    "print in a branch": (
        source(
            "    part = self.part\n",
            '    part = self.part\n    if torch.gt(self.beads, 999):\n      print("sprung")\n'
            "    else:\n      pass\n",
        ),
        "print",
    ),
    "print in a loop": (
        source(
            "    part = self.part\n",
            "    part = self.part\n    for _8 in range(0):\n"
            "      while False:\n        print(_8)\n",
        ),
        "print",
    ),
    "fork": (source("(other).forward(positions, )", "fork(other, positions)"), "fork"),
    "operator of a package": (
        source("torch.reshape(", "ops.quantized.linear_unpack("),
        "quantized::linear_unpack",
    ),
    "python operator": (source("torch.reshape(", "^Evil()("), "cannot be read"),
    "with": (
        source("    part = self.part\n", "    with self.x:\n      pass\n    part = self.part\n"),
        "With",
    ),
    "import": (source("class Part(Module)", "import os\nclass Part(Module)"), "Import"),
    "interface": (source("class Part(Module)", "class Part(Interface)"), "unknown kind"),
    "setstate": (
        source("  def forward(self: __torch__", "  def __setstate__(self: __torch__"),
        "runs code while it is loaded",
    ),
    "another class's object": (
        source("    part = self.part\n", "    part = unchecked_cast(OTHER, self.other)\n"),
        "unchecked_cast",
    ),
    "deep": (
        source("    part = self.part\n", f"    _9 = {'-' * 150}1\n    part = self.part\n"),
        "deep",
    ),
    "a tensor beyond its numbers": (
        swap("data.pkl", b"(K\x04t(K\x01t", b"(K\xf0t(K\x01t"),
        "reaches beyond its",
    ),
    "a storage beyond its bytes": (
        swap("data.pkl", b"K\x04tQ", b"K\xf0tQ"),
        "fewer are stored",
    ),
    "an object for a number": (swap("data.pkl", b"K\x05", b")"), "another type"),
    "os.system": (swap("data.pkl", b"ctorch\nFloatStorage", b"cos\nsystem"), "os.system"),
    "a C++ class": (
        swap("data.pkl", b"ctorch\nFloatStorage", f"c{EXPLOIT.replace('.q', chr(10) + 'q', 1)}"
             .replace("\nq", "\nquantized_q").encode()),
        "torch.classes",
    ),  # fmt: skip
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_in_model_files(name, whole, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, words = PROGRAMS[name]
    kind = next(
        line.split(":")[1].strip()
        for line in _program_of(whole).splitlines()
        if line.strip().startswith("other :")
    )

    def edited(entry: str, content: bytes) -> bytes:
        return change(entry, content).replace(b"OTHER", kind.encode())

    raw = rewrite(whole, edited)
    assert raw != rewrite(whole, lambda _, content: content), "the damage does nothing"
    (tmp_path / "model.pt").write_bytes(raw)
    with at_most(20), pytest.raises(cgml.ModelFileError) as caught:
        cgml.load_model(tmp_path / "model.pt")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def _program_of(raw: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return "".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))


def test_the_program_that_is_changed_is_accepted_as_it_is(whole, tmp_path) -> None:
    (tmp_path / "model.pt").write_bytes(rewrite(whole, lambda _, content: content))
    assert cgml.load_model(tmp_path / "model.pt").topology.label(0) == "ACE1-C"


class Touch:
    """Its unpickling leaves a file."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def _torch_save(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _bomb(raw: bytes) -> bytes:
    """One more entry, of 400 MB of zeros."""
    out = io.BytesIO(raw)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        with archive.open(f"{folder}/data/999", "w") as entry:
            for _ in range(100):
                entry.write(bytes(1 << 22))
    return out.getvalue()


DISGUISES = {
    "bytes before": lambda raw: b"x" * 100 + raw,
    "bytes after": lambda raw: raw + b"x",
    "a second archive after it": lambda raw: raw + raw,
    "an archive in an archive": lambda raw: rewrite(
        raw, lambda n, c: raw if n == "version" else c
    ),
    "a comment": lambda raw: raw[:-2] + b"\x04\x00abcd",
    "no program": lambda raw: rewrite(raw, lambda n, c: None if n.startswith("code/") else c),
    "legacy format": lambda raw: rewrite(raw, lambda n, c: c).replace(b"byteorder", b"model.jso"),
    "torch.save": lambda raw: _torch_save(Touch()),
    "torch.save without zip": lambda raw: _torch_save(
        Touch(), _use_new_zipfile_serialization=False
    ),
    "flatbuffer": lambda raw: raw[:4] + b"PTMF" + raw[8:],
    "bomb": _bomb,
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("read", [cgml.load_model, load_flow], ids=["model", "flow"])
def test_disguises(read, name, whole, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(DISGUISES[name](whole))
    with at_most(20), pytest.raises(cgml.ModelFileError):
        read(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_model_cut_anywhere(whole, tmp_path) -> None:
    """At every boundary of an entry, and just before and after."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        offsets = [entry.header_offset for entry in archive.infolist()]
    for at in sorted(
        {o + d for o in [*offsets, archive.start_dir, len(whole)] for d in (-1, 0, 1)}
    ):
        if 0 < at < len(whole):
            (tmp_path / "model.pt").write_bytes(whole[:at])
            with pytest.raises(cgml.ModelFileError):
                cgml.load_model(tmp_path / "model.pt")


# ---------------------------------------------------------------- flows and checkpoints


def _flow(card: dict, weights) -> bytes:
    return _torch_save({"card": json.dumps(card), "weights": weights})


def test_flows_that_do_harm(dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = cgml.FLOWS["coupling"](dataset, width=4, components=2)
    cgml.save_flow(tmp_path / "a.flow", flow)
    card = json.loads(torch.load(tmp_path / "a.flow", weights_only=True)["card"])

    def grown(**arguments) -> dict:
        one = json.loads(json.dumps(card))
        one["architecture"]["arguments"].update(arguments)
        return one

    cases = [
        _flow(card, {"x": Touch()}),
        _flow(grown(width=10**6), flow.state_dict()),
        _flow(grown(blocks=10**9), flow.state_dict()),
        _flow(grown(surprise=1), flow.state_dict()),
        _flow({**card, "architecture": {"class": "os:system", "arguments": {}}}, {}),
        _flow({**card, "architecture": {"class": "openmm_cgml.flow.core:build"}}, {}),
        _flow(card, {}),
        _flow({**card, "schema_version": "x"}, {}),
        rewrite((tmp_path / "a.flow").read_bytes(), swap("data.pkl", b"K\x02", b"K\xf0")),
    ]
    for number, raw in enumerate(cases):
        (tmp_path / "a.flow").write_bytes(raw)
        with at_most(20), pytest.raises(cgml.InputError):
            load_flow(tmp_path / "a.flow")
            pytest.fail(f"case {number} was read")
    assert [p.name for p in tmp_path.iterdir()] == ["a.flow"]


def test_checkpoints_of_training_hold_numbers_only(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2)}}, path)
    assert _CheckedCheckpoints().load_checkpoint(path)["epoch"] == 3
    for raw in (_torch_save({"epoch": Touch()}), _bomb(path.read_bytes()), b"x"):
        path.write_bytes(raw)
        for read in (_read, _CheckedCheckpoints().load_checkpoint):
            with at_most(20), pytest.raises(cgml.InputError, match="last.ckpt is damaged"):
                read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff", b"[1]", b"null"])
def test_a_damaged_record_of_training_is_another_training(content, tmp_path) -> None:
    (tmp_path / LAST).write_bytes(b"x")
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(cgml.InputError, match="holds checkpoints of another training"):
        claim(tmp_path, {"seed": 1}, True)


# ---------------------------------------------------------------- XML


def _laughs() -> str:
    entities = "".join(f'<!ENTITY a{k + 1} "{f"&a{k};" * 10}">' for k in range(9))
    return f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><System type="System">&a9;</System>'


XML = {
    "entities": (_laughs(), "document type"),
    "external entity": (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><System>&a;</System>',
        "document type",
    ),
    "entities in UTF-16": (_laughs(), "document type"),
    "deep": ("<System>" + "<a>" * 10_000 + "</a>" * 10_000 + "</System>", "nested too deeply"),
}


@pytest.mark.parametrize("name", XML)
@pytest.mark.parametrize("read", [cgml.load_system, constraints_from_system, require_safe_xml])
def test_xml(read, name, tmp_path) -> None:
    text, words = XML[name]
    path = tmp_path / "system.xml"
    path.write_bytes(text.encode("utf-16" if "UTF" in name else "utf-8"))
    with at_most(10), pytest.raises(cgml.InputError, match=words):
        read(path)


def test_a_torch_force_may_not_name_another_file(whole, tmp_path) -> None:
    """Its first version read a file by its path, whatever else the XML holds."""
    plain = '<System openmmVersion="8.5" type="System" version="1"><Forces>{}</Forces></System>'
    path = tmp_path / "system.xml"
    for version in ("1", "0", "x", ""):
        force = f'<Force type="TorchForce" version="{version}" file="evil.pt" '
        path.write_text(plain.format(f'{force} encodedFileContents="{whole.hex()}"/>'))
        with pytest.raises(cgml.UntrustedModelError, match="reads another file"):
            cgml.load_system(path)
    path.write_text(plain.format('<Force type="PlumedForce" script="LOAD FILE=evil.cpp"/>'))
    with pytest.raises(cgml.UntrustedModelError, match="PlumedForce"):
        cgml.load_system(path)


@pytest.mark.parametrize("suffix", ["prmtop", "parm7", "psf", "top", "gro", "cif", "pdb"])
def test_a_topology_is_no_system(suffix, tmp_path, monkeypatch) -> None:
    """ParmEd, asked to find out the format, hands System XML to OpenMM, which unpickles."""
    monkeypatch.chdir(tmp_path)
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(openmm.PythonForce(Springing()))
    text = openmm.XmlSerializer.serialize(system)
    for left in tmp_path.iterdir():
        left.unlink()
    path = tmp_path / f"molecule.{suffix}"
    path.write_text(text)
    with pytest.raises(cgml.InputError):
        cgml.read_topology(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Springing(Touch):
    def __call__(self, state):
        return 0.0, np.zeros((1, 3))


# ---------------------------------------------------------------- HDF5


def _external_storage(handle) -> None:
    del handle["frames/positions"]
    handle.create_dataset(
        "frames/positions", (2, 5, 3), "f4", external=[("/etc/passwd", 0, 1 << 20)]
    )


def _virtual(handle) -> None:
    shape = handle["frames/positions"].shape
    del handle["frames/positions"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape)
    handle.create_virtual_dataset("frames/positions", layout)


def _plugin(handle) -> None:
    del handle["frames/positions"]
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((1, 5, 3))
    created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard
    space = h5py.h5s.create_simple((2, 5, 3))
    h5py.h5d.create(handle["frames"].id, b"positions", h5py.h5t.NATIVE_FLOAT, space, created)


def _replaced(name: str, *arguments, **options):
    def change(handle) -> None:
        del handle[name]
        if arguments and isinstance(arguments[0], (h5py.SoftLink, h5py.ExternalLink)):
            handle[name] = arguments[0]
        else:
            handle.create_dataset(name, *arguments, **options)

    return change


HDF5 = {
    "external link": (_replaced("frames/positions", h5py.ExternalLink("o.h5", "/x")), "link"),
    "soft link": (_replaced("frames/positions", h5py.SoftLink("/frames/forces")), "link"),
    "storage elsewhere": (_external_storage, "another file"),
    "virtual": (_virtual, "another file"),
    "plugin": (_plugin, "plugin"),
    "terabytes": (
        _replaced("frames/positions", (2**33, 5, 3), "f4", chunks=(1, 5, 3)),
        "of memory",
    ),
    "a large chunk": (
        _replaced(
            "frames/positions", (2, 5, 3), "f4", chunks=(1 << 25, 5, 3), maxshape=(None, 5, 3)
        ),
        "of memory",
    ),
    "references": (_replaced("frames/positions", (3,), dtype=h5py.ref_dtype), "reference"),
    "objects": (_replaced("frames/positions", (3,), dtype=h5py.vlen_dtype("f4")), "vlen"),
    "many texts": (_replaced("topology", (10**6,), dtype=h5py.string_dtype()), "texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", HDF5)
def test_hdf5(name, dataset, tmp_path) -> None:
    change, words = HDF5[name]
    path = tmp_path / "data.h5"
    dataset.select(slice(0, 8)).save(path)
    with h5py.File(path, "r+") as handle:
        change(handle)
    with at_most(10), pytest.raises(cgml.InputError, match=words):
        read_dataset(path)


HEAP = b"GCOL\x01"


@pytest.mark.parametrize(
    "place, value",
    [(8, 1 << 40), (24, 2**64 - 8), (24, 2**64 - 16), (24, 1 << 20)],
    ids=["longer than the file", "length wraps to 8", "length wraps to 0", "text beyond the end"],
)
def test_heaps_of_hdf5(place, value, dataset, tmp_path) -> None:
    """HDF5 itself follows the third without end."""
    path = tmp_path / "data.h5"
    dataset.select(slice(0, 8)).save(path)
    assert HEAP not in path.read_bytes()  # texts of the package's own files are of fixed length
    texts_in_heap(path)
    whole = read_dataset(path)  # written by an older version, or by another program
    assert whole.topology == dataset.topology and whole.temperature == dataset.temperature
    raw = bytearray(path.read_bytes())
    at = raw.index(HEAP) + place
    raw[at : at + 8] = value.to_bytes(8, "little")
    path.write_bytes(raw)
    with at_most(10), pytest.raises(cgml.InputError, match="damaged"):
        read_dataset(path)


def test_a_kind_that_is_no_text(dataset, tmp_path) -> None:
    """Refused by all that ask a file what it is, not a traceback."""
    path = tmp_path / "data.h5"
    dataset.select(slice(0, 8)).save(path)
    with h5py.File(path, "r+") as handle:
        handle.attrs["kind"] = np.bytes_(b"\xff\xfe")
    for read in (read_dataset, cgml.read_collection, cgml.read_run, recognise):
        with pytest.raises(cgml.InputError):
            read(path)
    with pytest.raises(cgml.InputError):
        app(["data", "info", str(path)], prog_name="cgml", standalone_mode=False)


def test_hdf5_of_mdtraj_and_mlcg_is_looked_at_too(tmp_path) -> None:
    path = tmp_path / "traj.h5"
    with h5py.File(path, "w") as handle:
        handle["coordinates"] = h5py.ExternalLink("/etc/passwd", "/x")
        handle["topology"] = "{}"
        handle["SET/m/cg_coords"] = h5py.SoftLink("/x")
    for read in (cgml.read_topology, cgml.read_trajectory):
        with pytest.raises(cgml.InputError, match="link"):
            read(path)
    with pytest.raises(cgml.InputError, match="link"):
        convert_files(path, "mlcg", temperature=300)


# ---------------------------------------------------------------- arrays and trajectories


def test_arrays(data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, top = tmp_path / "run.npz", data / "topology.pdb"
    good = np.zeros((2, 22, 3), np.float32)
    trap = np.array([Touch()], dtype=object)
    np.savez(path, positions=trap)
    cases = [path.read_bytes()]
    np.savez(path, positions=np.array(["text"]))
    cases.append(path.read_bytes())
    np.savez(path, positions=good)
    cases.append(_bomb(path.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x04")))
    # An array of terabytes, of which a few bytes are there.
    buffer = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 22, 3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("positions.npy", buffer.getvalue() + bytes(64))
    cases.append(path.read_bytes())
    for raw in cases:
        path.write_bytes(raw)
        with at_most(10), pytest.raises(cgml.InputError):
            list(cgml.read_trajectory(path, top=top).chunks())
        with at_most(10), pytest.raises(cgml.InputError):
            convert_files(path, "npz", temperature=300, length_unit="nm", top=top)
    for raw in (buffer.getvalue() + bytes(64), np_bytes(trap), np_bytes(np.array(["x"]))):
        (tmp_path / "run.npy").write_bytes(raw)
        with at_most(10), pytest.raises(cgml.InputError):
            list(cgml.read_trajectory(tmp_path / "run.npy", top=top).chunks())
    assert not (tmp_path / "sprung").exists()


def np_bytes(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def frames(data) -> mdtraj.Trajectory:
    with np.load(data / "trajectory.npz") as whole:
        positions = whole["positions"][:5]
    return mdtraj.Trajectory(positions, mdtraj.load_topology(str(data / "topology.pdb")))


#: Format, offset, what to write there: numbers of atoms and frames, sizes of blocks.
HEADERS = [
    ("dcd", 8, "<i", 2**31 - 1), ("dcd", 8, "<i", -1), ("dcd", 40, "<i", 2**31 - 1),
    ("dcd", 40, "<i", -5), ("dcd", 92, "<i", 2**31 - 1), ("dcd", 92, "<i", -90),
    ("dcd", 268, "<i", 2**31 - 1), ("dcd", 268, "<i", -1),
    ("xtc", 4, ">i", 2**31 - 1), ("xtc", 52, ">i", 2**31 - 1), ("xtc", 4, ">i", 10**6),
    ("xtc", 84, ">i", 10**6), ("xtc", 88, ">i", 2**31 - 1), ("xtc", 56, ">i", 0),
    ("xtc", 60, ">i", 2**31 - 1), ("xtc", 88, ">i", 0),
    ("trr", 64, ">i", 2**31 - 1), ("trr", 64, ">i", -1), ("trr", 56, ">i", 2**31 - 1),
    ("trr", 8, ">i", 2**31 - 1), ("trr", 28, ">i", 1000),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "at", "order", "number"), HEADERS)
def test_headers_that_promise_much(kind, at, order, number, frames, data, tmp_path) -> None:
    path = tmp_path / f"run.{kind}"
    frames.save(str(path))
    raw = bytearray(path.read_bytes())
    struct.pack_into(order, raw, at, number)
    path.write_bytes(raw)
    with at_most(10), pytest.raises(cgml.InputError):
        list(cgml.read_trajectory(path, top=data / "topology.pdb").chunks())


# ---------------------------------------------------------------- texts


def test_tables_and_json(tmp_path) -> None:
    deep = 100_000
    texts = {
        ".json": ["[" * deep, '{"a":' * deep, '{"residues": ' + "9" * 5000 + "}", "NaN", "\ud800"],
        ".toml": [
            "a = " + "[" * deep, ".".join("a" * deep) + " = 1", "a = " + "9" * 5000,
            "a" * (1 << 23), "[" * deep, "a = {" * deep, "name = nan", "\ud800",
        ],
    }  # fmt: skip
    for suffix, contents in texts.items():
        for text in contents:
            path = tmp_path / f"table{suffix}"
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            with at_most(10), pytest.raises(cgml.InputError):
                read_mapping_table(path)
            if suffix == ".toml":
                with at_most(10), pytest.raises(cgml.InputError):
                    read_prior_table(path)
    for text in ["[" * deep, '{"bead_names": ' + "[" * deep, "1", '{"bonds": [[1e999, 1]]}']:
        with pytest.raises(cgml.InputError):
            CGTopology.from_json(text)


# ---------------------------------------------------------------- what is no file


READERS = [
    cgml.load_model, load_flow, cgml.load_system, constraints_from_system, read_dataset,
    cgml.read_run, cgml.read_collection, cgml.read_topology, read_mapping_table, read_prior_table,
    lambda path: cgml.read_trajectory(path, top=path),
    lambda path: convert_files(path, "npz", temperature=300),
]  # fmt: skip


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [".h5", ".pdb", ".json", ".npz"])
def test_what_is_no_file(read, suffix, tmp_path) -> None:
    made = {name: tmp_path / f"{name}{suffix}" for name in ("pipe", "loop", "zero", "folder")}
    os.mkfifo(made["pipe"])
    made["loop"].symlink_to(made["loop"])
    made["zero"].symlink_to("/dev/zero")
    made["folder"].mkdir()
    for path in [*made.values(), tmp_path / ("x" * 5000), tmp_path / "a\0b"]:
        with at_most(10), pytest.raises(cgml.InputError):
            read(path)


def test_files_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(cgml.InputError, match="may not be read; change its permissions"):
        require_file(path)


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
        (b"\x80\x02K\x01q\xff.", "leaves places out"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02R.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02K\x01K\x02.", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
         b"X\x03\x00\x00\x00cpuK\xfftQ.", "fewer are stored"),
    ],
)  # fmt: skip
def test_pickles_are_read_without_being_obeyed(text, words) -> None:
    with pytest.raises(archives.Refused, match=words):
        pickles.Pickle(text, {"0": 16}).value()


def test_a_pickle_of_tensors_is_described() -> None:
    raw = _torch_save({"a": torch.ones(2, 3), "b": [1, 2.5, "x", None, True]})
    entries = archives.without_folder(archives.read_zip(raw))
    script_archives.require_tensors(entries)
    value = pickles.Pickle(entries["data.pkl"], {"0": 24}).value()
    assert isinstance(value["a"], pickles.TensorValue)
    assert value["b"] == [1, 2.5, "x", None, True]


def test_names_of_one_function_are_not_those_of_another() -> None:
    """The printer numbers the locals of every function from 0."""
    alias = "def f(x):\n  _0 = __torch__.geometry.distances\n  return _0(x)\n"
    value = "def g(x):\n  _0 = torch.mul(x, 2)\n  return _0\n"
    assert set(script_archives._calls(ast.parse(alias + value))) == {"aten::mul"}
    other = "def g(x):\n  _0 = torch.mul(x, 2)\n  return _0(x)\n"
    assert "_0" in set(script_archives._calls(ast.parse(alias + other)))
    again = "def f(x):\n  _0 = __torch__.a\n  _0 = torch.mul(x, 2)\n  return _0(x)\n"
    assert "_0" in set(script_archives._calls(ast.parse(again)))


def test_limits_are_of_the_size_that_the_page_says() -> None:
    text = (SOURCE.parent / "docs" / "safety.md").read_text()
    assert f"{archives.ALLOWANCE >> 20} MiB" in text and f"{archives.RATIO} times" in text


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e308, float("nan"), float("inf")])
def test_numbers_that_no_float_holds(number, dataset) -> None:
    bead = {"atoms": ["N", "C"], "weights": [number, 1]}
    with pytest.raises(cgml.InputError, match="are not numbers of at least 0"):
        parse_mapping_table({"residues": {"ALA": {"BB": bead}}})
    content = cgml.fit_prior_table(dataset).to_dict()
    places = [(row, k) for rows in content.values() if isinstance(rows, list) for row in rows
              for k in row if k != "types"]  # fmt: skip
    for row, key in places:
        kept, row[key] = row[key], number
        with suppress(cgml.InputError):
            cgml.PriorTable.from_dict(content)
        row[key] = kept
    stored = json.loads(dataset.topology.to_json())
    for key in ("masses", "residue_ids"):
        with suppress(cgml.InputError):
            CGTopology.from_json(json.dumps({**stored, key: [number] * len(dataset.topology)}))


def test_the_page_shows_the_run_that_is_kept() -> None:
    text = (SOURCE.parent / "docs" / "safety.md").read_text()
    kept = json.loads((Path(__file__).parent / "data" / "fuzz.json").read_text())
    whole = sum(r.get("read", 0) + r.get("refused", 0) for r in kept["readers"].values())
    others = [failure for r in kept["readers"].values() for failure in r["failures"]]
    assert kept["total"] == whole + len(others) >= 10_000
    assert f"| all | {kept['total']:,} |" in text and f"seed {kept['seed']}" in text
    assert others == []
