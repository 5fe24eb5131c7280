"""Generated tables, topologies, cards and pickles: each is read, or refused in our own words."""

import io
import json
from contextlib import suppress

import torch

import pytest
from test_hostile import Harmless

import openmm_cgml as cgml
from openmm_cgml import archives, pickles
from openmm_cgml.dataset_file import describe_group
from openmm_cgml.mapping.table_file import parse_mapping_table, read_mapping_table
from openmm_cgml.model_file import parse_model
from openmm_cgml.pmf.prior_table import PriorTable, read_prior_table
from openmm_cgml.topology import CGTopology

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

QUICK = hypothesis.settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
FEW = hypothesis.settings(QUICK, max_examples=40)

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 10**400, 1e308])
NAMES = st.sampled_from(["N", "CA", "C", "O?", "A|B", "", "ALA", "mass", "equal", "\u2028"])
SCALARS = st.none() | st.booleans() | NUMBERS | NAMES | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner,
                                                               max_size=4),
    max_leaves=12,
)  # fmt: skip


def near(keys: list[str], plain: dict) -> st.SearchStrategy:
    """Dictionaries with known keys and values of any kind, some of them good."""
    return st.fixed_dictionaries(
        {}, optional={k: VALUES | st.just(plain[k]) if k in plain else VALUES for k in keys}
    )


TOPOLOGY = {
    "bead_names": ["A", "B"], "bead_types": ["A", "B"], "residue_names": ["R", "R"],
    "residue_ids": [1, 1], "chain_ids": ["A", "A"], "bonds": [[0, 1]], "masses": [1.0, 2.0],
}  # fmt: skip


@QUICK
@hypothesis.given(near(list(TOPOLOGY), TOPOLOGY) | VALUES)
def test_topologies(content) -> None:
    with suppress(cgml.InputError):
        top = CGTopology.from_json(json.dumps(content))
        assert CGTopology.from_json(top.to_json()) == top
        assert top.label(0) and top.to_mdtraj().n_atoms == len(top)


BEAD = near(
    ["atoms", "type", "weights", "hydrogens", "name", "select"],
    {"atoms": ["N", "CA"], "weights": [1, 2], "name": "X", "select": "name CA"},
)
RESIDUE = st.dictionaries(
    NAMES | st.just("bonds") | st.just("aliases"), BEAD | VALUES | st.just(["N"]), max_size=4
)


@QUICK
@hypothesis.given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": SCALARS, "weights": SCALARS, "hydrogens": SCALARS, "include": SCALARS,
            "bead": st.lists(BEAD, max_size=3) | VALUES, "leave_out": VALUES, "bonds": VALUES,
            "residues": st.dictionaries(NAMES, RESIDUE | VALUES, max_size=3) | VALUES,
            "shared_atoms": SCALARS, "surprise": VALUES,
        },
    ) | VALUES
)  # fmt: skip
def test_mapping_tables(content) -> None:
    with suppress(cgml.InputError):
        assert parse_mapping_table(content).beads is not None


@pytest.fixture(scope="module")
def prior(dataset) -> dict:
    return cgml.fit_prior_table(dataset).to_dict()


@QUICK
@hypothesis.given(data=st.data())
def test_prior_tables(data, prior) -> None:
    content = json.loads(json.dumps(prior))
    for _ in range(data.draw(st.integers(1, 3))):
        place = content
        while isinstance(place, (dict, list)) and len(place):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if data.draw(st.booleans()) or not isinstance(place[key], (dict, list)):
                place[key] = data.draw(VALUES)
                break
            place = place[key]
    with suppress(cgml.InputError):
        PriorTable.from_dict(content)


@QUICK
@hypothesis.given(st.text(max_size=200) | st.binary(max_size=200))
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_texts_that_are_no_tables(suffix, tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / f"generated{suffix}"
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path.write_bytes(raw)
    for read in (read_mapping_table, read_prior_table):
        with suppress(cgml.InputError):
            read(path)


@FEW
@hypothesis.given(data=st.data())
def test_cards(data, model) -> None:
    card = json.loads(json.dumps(model.card))
    for key in data.draw(st.lists(st.sampled_from(sorted(card)), min_size=1, max_size=3)):
        card[key] = data.draw(VALUES)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Harmless(json.dumps(card))), buffer)
    with suppress(cgml.InputError):
        file = parse_model(buffer.getvalue(), "model.pt")
        assert len(file.topology) == 5
        file.rebuild()


OPCODES = [
    b"\x80\x02", b"(", b")", b"]", b"}", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u",
    b"N", b"\x88", b"\x89", b"K\x01", b"M\x01\x00", b"J\xff\xff\xff\xff", b"R", b"b", b"Q",
    b"\x81", b".", b"q\x00", b"h\x00", b"r\x00\x00\x00\x10", b"X\x01\x00\x00\x000", b"0", b"2",
    b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n", b"c__torch__.A\nB\n", b"X\x07\x00\x00\x00storage",
    b"\x8a\x01\x05", b"I1\n", b"P1\n", b"\x93", b"\x8c\x01a", b"G" + bytes(8),
]  # fmt: skip


@hypothesis.settings(QUICK, max_examples=600)
@hypothesis.given(
    st.lists(st.sampled_from(OPCODES), max_size=25).map(b"".join) | st.binary(max_size=60)
)
def test_pickles(content) -> None:
    for classes in ((), ("__torch__.A.B",)):
        with suppress(archives.Refused):
            pickles.Pickle(content, {"0": 16}, classes).value()


@QUICK
@hypothesis.given(st.binary(max_size=300), st.booleans())
def test_archives(content, framed) -> None:
    raw = b"PK\x03\x04" + content + b"PK\x05\x06" + bytes(18) if framed else content
    with suppress(archives.Refused):
        archives.without_folder(archives.read_zip(raw))


class Group(dict):
    """What looks like an HDF5 group, with anything in it."""

    def __init__(self, attrs: dict, **content) -> None:
        super().__init__(content)
        self.attrs = attrs


@QUICK
@hypothesis.given(VALUES, VALUES, VALUES, st.text(max_size=20))
def test_attributes_of_datasets(temperature, sources, names, text) -> None:
    group = Group({"temperature_K": temperature, "sources": sources, "variable_names": names},
                  topology=text, mapping=text)  # fmt: skip
    with pytest.raises(cgml.InputError):
        describe_group(group, "dataset data.h5")
