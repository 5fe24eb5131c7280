"""Prior tables: a round trip through files, edited numbers, other molecules, bad tables."""

import json
import math
from dataclasses import replace

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.errors import InputError
from openmm_cgml.model_file import read_model_file
from openmm_cgml.pmf.core import build
from openmm_cgml.pmf.prior import (
    AngleRow,
    BondRow,
    Charges,
    ImproperRow,
    PriorTable,
    Repulsion,
    RepulsionRow,
    TorsionRow,
    TypedPrior,
    fit_prior_table,
    read_prior_table,
)
from openmm_cgml.pmf.short_range import ShortRangeRepulsion


def topology_of(types: str, bonds: list[tuple[int, int]]) -> cgml.CGTopology:
    """A molecule of beads whose types are letters."""
    n = len(types)
    return cgml.CGTopology(
        tuple(types), tuple(types), ("M",) * n, tuple(range(n)), ("A",) * n, tuple(bonds),
        (1.0,) * n,
    )  # fmt: skip


def chain(types: str) -> cgml.CGTopology:
    return topology_of(types, [(k, k + 1) for k in range(len(types) - 1)])


TABLE = PriorTable(
    bonds=(BondRow(("A", "B"), 0.31, 2000.0), BondRow(("B", "B"), 0.38, 1500.0)),
    angles=(
        AngleRow(("B", "B", "A"), -0.25, 30.0),
        AngleRow(("A", "B", "A"), 0.125, 7.5),
        AngleRow(("B", "B", "B"), 0.0, 9.0),
    ),
    torsions=(
        TorsionRow(("B", "B", "B", "A"), (1.5, -0.5, 0.25), (0.125, 0.0, 1e-7)),
        TorsionRow(("A", "B", "B", "A"), (0.75,), (-2.0,)),
        TorsionRow(("B", "B", "B", "B"), (0.5, 0.5), (0.0, 0.0)),
    ),
    impropers=(ImproperRow(("A", "B", "A", "B"), -0.4, 55.0),),
    repulsion=tuple(
        RepulsionRow(types, 0.3 + 0.1 * k, 2.5)
        for k, types in enumerate([("A", "A"), ("A", "B"), ("B", "B")])
    ),
    electrostatics=Charges({"A": 1.0, "B": -0.5}, permittivity=4.0, screening=0.7),
)

# A bead of each end, and a branch.
TOPOLOGY = topology_of("ABBBAA", [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5)])


@pytest.fixture
def positions() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.4 * torch.randn(3, 6, 3, dtype=torch.float64, generator=generator)


# ---------------------------------------------------------------- files


def test_a_file_gives_the_same_table_back(tmp_path) -> None:
    TABLE.save(tmp_path / "prior.toml")
    assert read_prior_table(tmp_path / "prior.toml") == TABLE
    assert PriorTable.from_dict(json.loads(json.dumps(TABLE.to_dict()))) == TABLE


def test_types_may_be_any_text(tmp_path) -> None:
    kinds = ('a "quoted" = #1', "b\\ä\N{GRINNING FACE}")
    table = PriorTable(bonds=(BondRow(kinds, 0.3, 1.0),), electrostatics=Charges({kinds[0]: 1.0}))
    table.save(tmp_path / "prior.toml")
    assert read_prior_table(tmp_path / "prior.toml") == table


def test_the_file_is_for_persons(tmp_path) -> None:
    text = TABLE.to_toml()
    assert '[[bonds]]\ntypes = ["A", "B"]\nlength = 0.31\nstiffness = 2000.0\n' in text
    assert "cosine = 0.125  # 82.8 degrees" in text
    assert '[electrostatics.charges]\n"A" = 1.0\n' in text
    assert "nm, kJ/mol" in text.splitlines()[1]


def test_an_edited_number_changes_the_energy_as_it_must(tmp_path) -> None:
    """A bond of 0.35 nm, 2000 kJ/mol/nm^2, whose length a person changes from 0.31 to 0.33."""
    path = tmp_path / "prior.toml"
    PriorTable(bonds=TABLE.bonds).save(path)
    pair = torch.tensor([[[0.0, 0, 0], [0.35, 0, 0]]], dtype=torch.float64)
    before = read_prior_table(path).to_pmf(chain("AB")).double()(pair).item()
    path.write_text(path.read_text().replace("length = 0.31", "length = 0.33"))
    after = read_prior_table(path).to_pmf(chain("AB")).double()(pair).item()
    assert before == pytest.approx(1000 * 0.04**2, rel=1e-5)
    assert after == pytest.approx(1000 * 0.02**2, rel=1e-5)


# ---------------------------------------------------------------- the PMF of a table


def test_every_term_gets_the_row_of_its_types(positions) -> None:
    """The energy of each kind by hand, rows found in both directions."""
    x = positions[:1]
    d = torch.cdist(x[0], x[0])

    def energy(**sections) -> float:
        return PriorTable(**sections).to_pmf(TOPOLOGY).double()(x).item()

    bonds = [(0, 1, 0.31, 2000), (1, 2, 0.38, 1500), (2, 3, 0.38, 1500), (3, 4, 0.31, 2000),
             (3, 5, 0.31, 2000)]  # fmt: skip
    expected = sum(k / 2 * (d[i, j] - d0) ** 2 for i, j, d0, k in bonds).item()
    assert energy(bonds=TABLE.bonds) == pytest.approx(expected, rel=1e-5)
    pairs = {(0, 3): 0.4, (0, 4): 0.3, (0, 5): 0.3, (1, 4): 0.4, (1, 5): 0.4}
    expected = sum(2.5 * (radius / d[p].item()) ** 12 for p, radius in pairs.items())
    assert energy(repulsion=TABLE.repulsion) == pytest.approx(expected, rel=1e-5)
    # Charges four bonds apart and more: the ends alone.
    far = [d[0, 4].item(), d[0, 5].item()]
    expected = sum(138.935457644 / 4 * math.exp(-r / 0.7) / r for r in far)
    assert energy(electrostatics=TABLE.electrostatics) == pytest.approx(expected, rel=1e-5)


def test_torsions_about_one_bond_share_a_row(positions) -> None:
    """Two branches at one end: each has half of the row's energy."""
    prior = PriorTable(torsions=TABLE.torsions).to_pmf(TOPOLOGY)
    (term,) = prior.terms
    assert term.indices.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]]
    row = torch.tensor([1.5, -0.5, 0.25])
    assert torch.allclose(term.cosines, torch.stack([row, row / 2, row / 2]))


def test_shorter_series_end_in_zeros() -> None:
    (term,) = PriorTable(torsions=TABLE.torsions).to_pmf(chain("ABBABBBB"[:4])).terms
    assert term.cosines.tolist() == [[0.75]]
    (term,) = (
        PriorTable(torsions=(*TABLE.torsions, TorsionRow(("B", "B", "A", "B"), (1.0,), (2.0,))))
        .to_pmf(topology_of("ABBBBBAB", [(k, k + 1) for k in range(4)] + [(5, 6), (6, 7)]))
        .terms
    )
    assert term.cosines.shape == (2, 3)
    assert term.cosines[1].tolist() == [0.5, 0.5, 0.0]


def test_a_typed_prior_is_rebuilt_for_another_molecule(positions) -> None:
    prior = TABLE.to_pmf(TOPOLOGY).double()
    other = chain("ABBB")
    again = prior.for_topology(other)
    x = positions[:, :4]
    assert again.topology == other
    assert torch.equal(again(x), TABLE.to_pmf(other).double()(x))
    # Precision too, which the compiled sums of forces need.
    assert again.energies_and_forces(x)[1].dtype == torch.float64
    assert torch.equal(prior.for_topology(TOPOLOGY)(positions), prior(positions))


def test_a_sum_keeps_it_whole_and_passes_the_topology_on(positions) -> None:
    pmf = cgml.SumPMF(TABLE.to_pmf(TOPOLOGY), PriorTable(bonds=TABLE.bonds).to_pmf(TOPOLOGY))
    assert [type(term) for term in pmf.terms] == [TypedPrior, TypedPrior]
    x = positions[:, :4].float()
    moved = pmf.for_topology(chain("ABBB"))
    assert torch.allclose(moved(x), pmf.terms[0].for_topology(chain("ABBB"))(x)
                          + pmf.terms[1].for_topology(chain("ABBB"))(x))  # fmt: skip


def test_a_model_card_can_hold_it(positions) -> None:
    prior = TABLE.to_pmf(TOPOLOGY)
    again = build(json.loads(json.dumps(prior.architecture())))
    assert isinstance(again, TypedPrior)
    assert (again.table, again.topology) == (TABLE, TOPOLOGY)
    assert torch.equal(again(positions.float()), prior(positions.float()))


def test_sections_without_rows_are_left_out() -> None:
    prior = PriorTable(bonds=TABLE.bonds).to_pmf(TOPOLOGY)
    assert [type(t).__name__ for t in prior.terms] == ["HarmonicBonds"]
    # Charges too near each other make no term.
    near = PriorTable(bonds=TABLE.bonds, electrostatics=TABLE.electrostatics).to_pmf(chain("ABB"))
    assert [type(t).__name__ for t in near.terms] == ["HarmonicBonds"]


# ---------------------------------------------------------------- tiny and large molecules


def test_a_molecule_without_any_of_the_terms_has_no_energy(positions) -> None:
    """Two beads, and a table of torsions alone: alone, in a sum, scripted, frozen, in a file."""
    empty = PriorTable(torsions=TABLE.torsions).to_pmf(chain("AB")).double()
    x = positions[:, :2]
    spring = PriorTable(bonds=TABLE.bonds).to_pmf(chain("AB")).double()
    expected = spring.energies_and_forces(x)
    for pmf, right in ((empty, (0 * expected[0], 0 * expected[1])),
                       (cgml.SumPMF(empty), (0 * expected[0], 0 * expected[1])),
                       (cgml.SumPMF(empty, spring), expected)):  # fmt: skip
        script = torch.jit.script(pmf.double().eval())
        frozen = torch.jit.freeze(script, preserved_attrs=["energies_and_forces"])
        for program in (pmf, script, script, frozen, frozen):
            assert torch.equal(program(x), right[0])
            for found, one in zip(program.energies_and_forces(x), right, strict=True):
                assert torch.equal(found, one)
        again = build(json.loads(json.dumps(pmf.architecture()))).double()
        assert torch.equal(again(x), right[0])
    # It comes to life again in another molecule.
    moved = empty.for_topology(chain("ABBA"))
    row = PriorTable(torsions=TABLE.torsions).to_pmf(chain("ABBA")).double()
    assert torch.equal(moved(positions[:, :4]), row(positions[:, :4])) and moved(positions).all()


def test_the_terms_of_one_molecule_make_a_table_of_all() -> None:
    """A fit, for which one molecule at least must have the terms."""
    rng = np.random.default_rng(0)

    def frames(types: str) -> cgml.CGDataset:
        x = 0.3 * np.arange(len(types))[:, None] + 0.05 * rng.standard_normal((40, len(types), 3))
        return cgml.CGDataset(x, chain(types), temperature=300.0)

    small, large = frames("AB"), frames("BABA")
    table = fit_prior_table([small, large], ["torsions"])
    x = torch.tensor(small.positions)
    assert not table.to_pmf(small.topology)(x).any()
    assert table.to_pmf(large.topology)(torch.tensor(large.positions)).all()
    with pytest.raises(InputError, match="has none of torsions; leave the prior out"):
        fit_prior_table(small, ["torsions"])


LARGE = chain("ABB" * 40)


def coil(copies: int, beads: int) -> torch.Tensor:
    """Random walks with steps of 0.35 nm, float64."""
    steps = np.random.default_rng(5).standard_normal((copies, beads, 3))
    steps *= 0.35 / np.linalg.norm(steps, axis=-1, keepdims=True)
    return torch.tensor(np.cumsum(steps, axis=1))


LARGE_TABLE = PriorTable(
    bonds=TABLE.bonds,
    angles=(*TABLE.angles, AngleRow(("B", "A", "B"), 0.2, 10.0)),
    repulsion=TABLE.repulsion,
    electrostatics=TABLE.electrostatics,
)


def test_large_molecules_have_no_list_of_pairs() -> None:
    """The same energy up to the tail of the repulsion, which is switched off beyond 0.5 nm."""
    prior = LARGE_TABLE.to_pmf(LARGE).double()
    assert [type(term) for term in prior.terms] == [TypedPrior, ShortRangeRepulsion]
    assert not prior.terms[1].dense
    listed = TypedPrior(LARGE_TABLE, LARGE).double()
    pairs = listed.terms[2]
    assert type(pairs) is Repulsion and len(pairs.indices) == 118 * 117 / 2
    x = coil(4, len(LARGE))
    expected, found = listed(x), prior(x)
    distances = geometry.distances(x, pairs.indices)
    tails = pairs.strength * (pairs.radius / distances) ** 12
    beyond = torch.where(distances > 0.5, tails, 0).sum(-1)
    near = torch.where(distances > 0.5, 0, tails).sum(-1)
    assert (near > 1e6 * beyond).all()  # what is compared is there
    assert ((expected - found) > 0).all() and (expected - found < beyond + 1e-9 * near).all()
    # Without anything near, all of it is the rest of the prior.
    x = x * 20
    assert torch.allclose(prior(x), listed(x), rtol=1e-9)


def test_a_prior_changes_its_kind_with_the_size_of_the_molecule() -> None:
    small, x = chain("ABBABB"), coil(2, len(LARGE))
    grown = LARGE_TABLE.to_pmf(small).double().for_topology(LARGE)
    assert [type(term) for term in grown.terms] == [TypedPrior, ShortRangeRepulsion]
    assert torch.equal(grown(x), LARGE_TABLE.to_pmf(LARGE).double()(x))
    shrunk = grown.for_topology(small)
    assert shrunk.terms[1].dense and shrunk(x[:, :6]).dtype == torch.float64
    listed = LARGE_TABLE.to_pmf(small).double()(x[:, :6])
    assert ((listed - shrunk(x[:, :6])).abs() < 0.1).all()
    alone = PriorTable(repulsion=TABLE.repulsion).to_pmf(LARGE)
    assert isinstance(alone, ShortRangeRepulsion)


def test_a_model_file_of_a_large_molecule(tmp_path) -> None:
    x = coil(3, len(LARGE)).float()
    dataset = cgml.CGDataset(x.numpy(), LARGE, temperature=300.0)
    prior = LARGE_TABLE.to_pmf(LARGE)
    cgml.save_model(tmp_path / "model.pt", prior, dataset)
    again = read_model_file(tmp_path / "model.pt")
    assert torch.equal(again.rebuild()(x), prior(x))
    found = again.module(copies=3).energies_and_forces(x.reshape(-1, 3))
    for one, right in zip(found, prior.energies_and_forces(x), strict=True):
        assert torch.allclose(one, right, rtol=1e-5)
    other = again.for_molecule(chain("BBA")).rebuild()
    assert torch.equal(other(x[:, :3]), prior.for_topology(chain("BBA"))(x[:, :3]))


def test_a_large_molecule_needs_the_radii_of_its_pairs_alone() -> None:
    """The one C repels As and Bs; as there is no other, nothing is asked about C with C."""
    topology = chain("ABB" * 40 + "C")
    rows = (*TABLE.repulsion, RepulsionRow(("A", "C"), 0.4, 2.0))
    with pytest.raises(
        InputError, match=r"types B-C repel .*\[\[repulsion\]\] with types = \[\"B"
    ):
        PriorTable(repulsion=rows).to_pmf(topology)
    rows = (*rows, RepulsionRow(("B", "C"), 0.4, 2.0))
    prior = PriorTable(repulsion=rows).to_pmf(topology)
    with pytest.raises(InputError, match="types C-C repel each other"):
        prior.for_topology(chain("CABC"))
    assert prior.for_topology(chain("CAC")).beads == 3  # two bonds apart: no repulsion


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        (chain("ABC"), r"beads M1-B, M2-C are of types B-C, .*\[\[bonds\]\].*types = \[\"B\", \""),
        (chain("BAB"), r"beads M0-B, M1-A, M2-B are of types B-A-B, .*\[\[angles\]\]"),
        (topology_of("ABAA", [(0, 1), (1, 2), (1, 3)]), r"types A-B-A-A, .*\[\[impropers\]\]"),
    ],
)
def test_types_without_a_row_are_named(topology, message) -> None:
    with pytest.raises(InputError, match=message):
        TABLE.to_pmf(topology)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="the prior table has no rows; add some, or leave the"):
        PriorTable().to_pmf(chain("AB"))
    with pytest.raises(InputError, match="M2-C is of type 'C', which has no charge .*add \"C\" ="):
        PriorTable(electrostatics=TABLE.electrostatics).to_pmf(chain("ABC"))


BOND = '[[bonds]]\ntypes = ["A", "B"]\nlength = 0.3\nstiffness = 5.0\n'
TORSION = '[[torsions]]\ntypes = ["A", "B", "C", "D"]\ncosines = [1.0, 2.0]\nsines = [0.0, 1.0]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOND.replace("[[bonds]]", "[[bond]]"), "section 'bond' is unknown; did you mean 'bonds'"),
        (
            BOND.replace("[[bonds]]", "[bonds]"),
            r"bonds is no list of rows; begin .* \[\[bonds\]\]",
        ),
        ("bonds = [3]", r"\[\[bonds\]\] number 1 is 3, not a table"),
        (BOND.replace("stiffness", "stifness"), "key 'stifness' is unknown; did you mean 'stiff"),
        (BOND.replace("length = 0.3", ""), r"\[\[bonds\]\] number 1 has no length; add it"),
        (BOND + BOND.replace('"B"', '"B", "C"'), r"number 2: types are .*; give 2 bead types"),
        (BOND.replace('["A", "B"]', '"AB"'), "types are 'AB', not a list"),
        (BOND.replace('"B"', "7"), r"types are \['A', 7\]; give 2 bead types in quotes"),
        (BOND.replace("5.0", "-5.0"), r"A-B: stiffness is -5.0; give a number of at least 0"),
        (BOND.replace("0.3", "0"), "A-B: length is 0; give a number above 0"),
        (BOND.replace("0.3", "inf"), "A-B: length is inf; give a number above 0"),
        (BOND.replace("0.3", '"0.3"'), "A-B: length is '0.3'; give a number above 0"),
        (BOND.replace("0.3", "true"), "A-B: length is True; give a number above 0"),
        (BOND + BOND.replace('"A", "B"', '"B", "A"'), r"\[\[bonds\]\] has two rows of types A-B"),
        (TORSION.replace("0.0, 1.0", "0.0"), "A-B-C-D: 2 cosines and 1 sines; give as many"),
        (TORSION.replace("[0.0, 1.0]", "1.0"), r"sines are 1.0, not a list; write them in \[ \]"),
        (TORSION.replace("0.0, 1.0", "0.0, nan"), "A-B-C-D: sines is nan; give a finite number"),
        ("[electrostatics]\nscreening = 1.0", r"\[electrostatics\] has no charges; add it"),
        ("[electrostatics.charges]", r"charges are {}; give a table of bead type = charge"),
        (
            "[electrostatics]\npermittivity = 0.0\ncharges = {A = 1.0}",
            r"\[electrostatics\]: electrostatics: permittivity is 0.0; give a number above 0",
        ),
        ("[[bonds]", "is broken: .*; correct it there"),
    ],
)
def test_bad_tables_are_named(text, message, tmp_path) -> None:
    path = tmp_path / "prior.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"prior table .*prior.toml.*{message}"):
        read_prior_table(path)


def test_an_angle_outside_of_its_range_is_refused() -> None:
    with pytest.raises(InputError, match="cosine is 1.2; give a number from -1 to 1"):
        replace(TABLE.angles[0], cosine=1.2)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="prior table .*none.toml"):
        read_prior_table(tmp_path / "none.toml")
