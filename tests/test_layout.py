"""DESIGN.md's layout, enforced on the source without importing it.

The checks are functions of {module name: source}, so that the tests below can also show what each
of them catches. Module names are relative to the package: "pmf.core", a folder is its __init__,
and "" is the package's own __init__.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "openmm_cgml"
ROOT = Path(__file__).resolve().parent.parent

# Data flows down: a module imports from the lines above its own and from files left of it.
LEVELS = [
    (
        "version errors units registry geometry neighbours files provenance archives pickles "
        "script_archives texts hdf5_files progress long_runs"
    ),
    "topology periodic dcd whole_files formats trajectory",
    "mapping/",
    (
        "correlation reweight mbar exchange dataset_file dataset merging collection molecules "
        "force_noise "
        "dataset_info convert mapped reference/"
    ),
    "pmf/ flow/",
    (
        "training_compile losses relative_entropy extrapolation training_data training_settings "
        "training_weights training_step training_state train ensemble training_plan flow_training "
        "boltzmann fine_tuning distillation"
    ),
    "tensor_budget trusted_program model_file flow_file",
    "native/ native_prior torchforce force system plugin",
    (
        "parallel replicate replicas engine run_file sampling reporters copy_status simulate remd "
        "rescue"
    ),
    (
        "observables analysis run_convergence rdf landscape backbone_torsions timescales "
        "benchmark export backmapping quality relaxation atomistic entropy ranking canvas plot "
        "plot_run map_picture page report native_structure plane_sections run_view run_structure "
        "run_slow run_page dataset_page card_page file_report"
    ),
    (
        "doctor quickstart_page quickstart command_options command_step command_map command_data "
        "command_reference command_prior command_train command_flow command_reweight "
        "command_backmap command_analyze cli __main__"
    ),
]
# Inside a folder: from files left of it. Folders on one line do not import each other.
FAMILIES = {
    "mapping": (
        "core fiber residue molecule custom table_file table martini constraints kinds force_map "
        "rotation noise"
    ),
    "reference": "repair setup variables bias machine recorder methods run reporter",
    "pmf": (
        "core tracing prior_terms prior_indices prior_rows radial message short_range prior_table "
        "prior_fit prior_contacts prior layers cgnet schnet painn foreign external ensemble"
    ),
    "flow": (
        "internal transforms samples core coupling velocity matching fiber_velocity fiber_fit "
        "fiber"
    ),
    "native": "cache library package force",
}
# The package's __init__ is below everything: it may name any module, and none may import it.
BOTTOM = len(LEVELS)

# ALA2-CA is no molecule: it is how errors name a bead.
MOLECULES = re.compile(
    r"alanine|ala_?2(?!-(CA|CB|C|N|O)\b)|chignolin|cln_?025|trp[-_ ]?cage|villin", re.IGNORECASE
)
HEAVY = ["torch", "openmm", "mdtraj", "h5py", "matplotlib", "lightning"]


class Place(NamedTuple):
    level: int
    column: int
    family: str = ""
    row: int = 0


def places() -> dict[str, Place]:
    """Where each module of the table stands."""
    table = {"": Place(BOTTOM, 0)}
    for level, line in enumerate(LEVELS):
        for column, entry in enumerate(line.split()):
            name = entry.rstrip("/")
            files = FAMILIES[name].split() if entry.endswith("/") else []
            for row, file in enumerate(files):
                table[f"{name}.{file}"] = Place(level, column, name, row)
            # A folder's __init__ is the rightmost of its files.
            family = name if entry.endswith("/") else ""
            table[name] = Place(level, column, family, len(files))
    return table


PLACES = places()


def may_use_torch(name: str) -> bool:
    return name in ("geometry", "neighbours") or 4 <= PLACES[name].level <= 8


def may_use_openmm(name: str) -> bool:
    return PLACES[name].family == "reference" or 7 <= PLACES[name].level <= 8


class Import(NamedTuple):
    target: str  # absolute: "torch.nn", "openmm_cgml.pmf.core"
    line: int
    lazy: bool  # not executed when the module is imported

    @property
    def module(self) -> str | None:
        """The target relative to the package, None if it lies outside."""
        head, _, tail = self.target.partition(".")
        return tail if head == PACKAGE else None


def imports(name: str, source: str) -> list[Import]:
    """All imports of a module, in order, also those in functions and under TYPE_CHECKING."""
    package = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    if name and name not in FAMILIES:
        package.pop()

    def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = package[: len(package) + 1 - node.level] if node.level else []
        base = ".".join([*base, *([node.module] if node.module else [])])
        head, _, tail = base.partition(".")
        if head != PACKAGE:
            return [base]
        # `from .pmf import core` is about the file, `from .pmf import PMFS` about the folder.
        inner = [".".join(filter(None, [tail, alias.name])) for alias in node.names]
        return [f"{PACKAGE}.{one}" if one in PLACES else base for one in inner]

    def walk(nodes: list[ast.AST], lazy: bool) -> Iterator[Import]:
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from (Import(target, node.lineno, lazy) for target in targets(node))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.body, True)
                yield from walk(node.orelse, lazy)
            else:
                function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(list(ast.iter_child_nodes(node)), lazy or function)

    return list(walk([ast.parse(source)], False))


def file_of(name: str) -> str:
    if not name or name in FAMILIES:
        return "/".join(filter(None, [PACKAGE, name, "__init__.py"]))
    return f"{PACKAGE}/{name.replace('.', '/')}.py"


def unknown_modules(sources: dict[str, str]) -> list[str]:
    return [
        f"{file_of(name)} is in no line of tests/test_layout.py: add it to LEVELS or FAMILIES"
        for name in sources
        if name not in PLACES
    ]


def order_problem(importer: str, found: Import) -> str | None:
    """Why an import of the package's own runs against the order, None if it does not."""
    if found.module not in PLACES:
        return f"imports {found.target}, which is in no line of tests/test_layout.py"
    here, there = PLACES[importer], PLACES[found.module]
    if there.level != here.level:
        problem = "which is below it" if there.level > here.level else None
    elif here.family and here.family == there.family:
        is_table = importer == here.family and found.module != here.family
        if is_table:
            problem = None if found.lazy else "which a folder's __init__ may only do in a function"
        else:
            problem = None if there.row < here.row else "which is not left of it"
    elif here.family and there.family:
        problem = "another family of its level"
    else:
        problem = None if there.column < here.column else "which is not left of it"
    return problem and f"imports {found.target}, {problem}"


def upward_imports(sources: dict[str, str]) -> list[str]:
    """Imports against the order of the table."""
    problems = [
        f"{file_of(name)}:{found.line} {problem}"
        for name, source in sources.items()
        if name in PLACES
        for found in imports(name, source)
        if found.module is not None and (problem := order_problem(name, found))
    ]
    return list(dict.fromkeys(problems))  # `from .x import a, b` is one, not two


def eager_libraries(sources: dict[str, str], library: str) -> dict[str, str]:
    """Modules that load `library` when they are imported -> through which import of theirs."""
    eager = {
        name: [found for found in imports(name, source) if not found.lazy]
        for name, source in sources.items()
    }
    loading: dict[str, str] = {}
    while True:
        more = {
            name: found.target
            for name, several in eager.items()
            if name not in loading
            for found in several
            if found.target.split(".")[0] == library
            # Importing pmf.core runs pmf/__init__.py first.
            or (found.module and {found.module, found.module.split(".")[0]} & loading.keys())
        }
        if not more:
            return loading
        loading |= more


def early_imports(sources: dict[str, str]) -> list[str]:
    """Modules that load torch or openmm where DESIGN.md says lazily, or in the wrong order."""
    problems = []
    for library, allowed in [("torch", may_use_torch), ("openmm", may_use_openmm)]:
        for name, via in eager_libraries(sources, library).items():
            if name in PLACES and not allowed(name):
                via = "" if via.split(".")[0] == library else f" through {via}"
                problems.append(
                    f"{file_of(name)} loads {library} when imported{via}: import it in a function"
                )
    for name, source in sources.items():
        top = [found.target.split(".")[0] for found in imports(name, source) if not found.lazy]
        if {"torch", "openmm"} <= set(top) and top.index("openmm") < top.index("torch"):
            problems.append(f"{file_of(name)} imports openmm before torch")
    return problems


def molecule_names(sources: dict[str, str]) -> list[str]:
    """Names of particular molecules: the library knows none, they are data."""
    return [
        f"{file_of(name)}:{number} names {match.group()}"
        for name, source in sources.items()
        for number, line in enumerate(source.splitlines(), 1)
        for match in MOLECULES.finditer(line)
    ]


# ---------------------------------------------------------------- the package


def package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if parts[0] != "data":
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = path.read_text(encoding="utf-8")
    return sources


@pytest.mark.parametrize(
    "check",
    [unknown_modules, upward_imports, early_imports, molecule_names],
    ids=lambda f: f.__name__,
)
def test_package(check):
    problems = check(package_sources())
    assert not problems, "\n" + "\n".join(problems)


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import openmm_cgml;"
        f"print(time.perf_counter() - start, *[m for m in {HEAVY} if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert runs[0][1:] == []
    assert min(float(run[0]) for run in runs) < 1.0  # the others may have waited for the disk


# ---------------------------------------------------------------- what the checks catch


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("trajectory", "from .topology import CGTopology"),  # left on its own level
        ("topology", "from . import units"),  # a file, not the package
        ("train", "from .pmf import PMFS"),  # a folder above
        ("pmf.cgnet", "from .layers import x\nfrom ..geometry import y"),
        ("pmf", "from ..registry import Registry\ndef table():\n    from .core import PMF"),
        ("", "from .units import strip\ndef f():\n    from . import cli"),
        ("cli", "import numpy\nimport openmm_cgml.doctor"),
    ],
)
def test_order_accepts(name, source):
    assert upward_imports({name: source}) == []


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        (
            "topology",
            "from .pmf.core import PMF",
            "imports openmm_cgml.pmf.core, which is below it",
        ),
        ("topology", "from .trajectory import read", "not left of it"),
        ("topology", "def f():\n    from .cli import main", "topology.py:2 imports"),
        ("topology", "def f():\n    import openmm_cgml.cli", "openmm_cgml.cli, which is below"),
        ("units", "if TYPE_CHECKING:\n    from openmm_cgml import dataset", "openmm_cgml.dataset"),
        ("cli", "import openmm_cgml as cgml", "imports openmm_cgml, which is below it"),
        ("cli", "from . import fit", "imports openmm_cgml, which is below it"),
        ("flow.fiber", "from ..pmf.core import PMF", "another family of its level"),
        ("flow.core", "from ..pmf import PMFS", "another family of its level"),
        ("pmf.core", "from .prior import fit_prior", "not left of it"),
        (
            "pmf.core",
            "def f():\n    from . import PMFS",
            "imports openmm_cgml.pmf, which is not left",
        ),
        ("pmf", "from .core import PMF", "only do in a function"),
        ("native", "from ..force import create", "not left of it"),
        ("cli", "from .missing import x", "openmm_cgml.missing, which is in no line"),
    ],
)
def test_order_catches(name, source, problem):
    (found,) = upward_imports({name: source})
    assert problem in found


def test_unknown_module_is_caught():
    (found,) = unknown_modules({"units": "", "pmf.new": ""})
    assert found.startswith("openmm_cgml/pmf/new.py is in no line") and "add it" in found


@pytest.mark.parametrize(
    "sources",
    [
        {"geometry": "import torch", "reference.run": "import openmm"},
        {"force": "import torch\nimport openmm"},
        {"topology": "def f():\n    import torch, openmm"},
        {"dataset": "if TYPE_CHECKING:\n    from torch import Tensor"},
        {"geometry": "import torch", "pmf.core": "from .. import geometry"},
    ],
)
def test_early_imports_accepts(sources):
    assert early_imports(sources) == []


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ({"dataset": "from torch import Tensor"}, "dataset.py loads torch when imported:"),
        ({"dataset": "try:\n    import torch\nexcept ImportError:\n    pass"}, "loads torch"),
        ({"pmf.core": "import openmm.unit"}, "pmf/core.py loads openmm"),
        ({"force": "import openmm\nimport torch"}, "force.py imports openmm before torch"),
        (
            {"geometry": "import torch", "dataset": "from .geometry import angles"},
            "dataset.py loads torch when imported through openmm_cgml.geometry",
        ),
        (
            {"pmf": "import torch", "pmf.core": "", "cli": "from .pmf.core import PMF"},
            "cli.py loads torch when imported through openmm_cgml.pmf.core",
        ),
    ],
)
def test_early_imports_catches(sources, problem):
    (found,) = early_imports(sources)
    assert problem in found


@pytest.mark.parametrize("line", ["# Alanine", "x = 'ala2.pt'", "TRP_CAGE = 1", "chignolin()"])
def test_molecule_names_are_caught(line):
    assert len(molecule_names({"units": line})) == 1


def test_ordinary_words_are_no_molecules():
    assert molecule_names({"units": "balance = scala  # ALA2-CA, ALA2-N"}) == []
