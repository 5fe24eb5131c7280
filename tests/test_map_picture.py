"""Pictures of mappings, and ``cgml map`` without a trajectory."""

import sys
from pathlib import Path

import matplotlib.colors
import mdtraj
import numpy as np
import pytest
from matplotlib.patches import Circle

import openmm_cgml as cgml
from openmm_cgml.cli import main

STRUCTURES = Path(__file__).resolve().parent / "data" / "structures"


@pytest.fixture(scope="module")
def loaded(data) -> dict[str, mdtraj.Trajectory]:
    paths = {path.stem: path for path in STRUCTURES.glob("*.pdb")}
    paths["capped"] = data / "topology.pdb"
    return {name: mdtraj.load_pdb(str(path)) for name, path in paths.items()}


def circles(axis) -> list[Circle]:
    return [p for p in axis.patches if isinstance(p, Circle) and p.get_fill()]


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("flat", [False, True], ids=["positions", "flat"])
def test_a_capped_residue(loaded, flat, tmp_path) -> None:
    run = loaded["capped"]
    mapping = cgml.MAPPINGS["core_beta"](run.topology)
    path = tmp_path / "map.png"
    figure = cgml.draw_mapping(mapping, run.topology, None if flat else run.xyz, path)
    (axis,) = figure.axes
    assert len(circles(axis)) == 6
    assert texts(axis) == ["C", "N", "CA", "CB", "C", "N"]
    assert axis.get_title() == "ACE-ALA-NME: 6 beads"
    assert figure.get_suptitle() == "core_beta: 22 atoms, 6 beads"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["C", "N", "ALA-CA", "ALA-CB"]
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [path]


def test_circles_are_where_the_beads_are(loaded) -> None:
    """Distances between circles are those of the beads, seen along the short axis."""
    run = loaded["capped"]
    mapping = cgml.MAPPINGS["heavy_atom"](run.topology)
    figure = cgml.draw_mapping(mapping, run.topology, run.xyz[0])
    place = np.array([c.center for c in circles(figure.axes[0])])
    beads = mapping.map_positions(run.xyz.astype(float))[0]
    flat = np.linalg.norm(place[:, None] - place, axis=-1)
    deep = np.linalg.norm(beads[:, None] - beads, axis=-1)
    assert (flat <= deep + 1e-6).all()
    assert np.corrcoef(flat.ravel(), deep.ravel())[0, 1] > 0.95


def test_a_flat_drawing_keeps_atoms_apart(loaded) -> None:
    """No two circles on top of each other, although no positions were given."""
    top = loaded["chignolin"].topology
    figure = cgml.draw_mapping(cgml.MAPPINGS["heavy_atom"](top), top)
    place = np.array([c.center for c in circles(figure.axes[0])])
    gaps = np.linalg.norm(place[:, None] - place, axis=-1) + np.eye(len(place))
    assert len(place) == 93 and gaps.min() > 0.03


def test_identical_molecules_are_drawn_once(loaded) -> None:
    run = loaded["bilayer"]
    mapping = cgml.MAPPINGS["martini"](run.topology)
    figure = cgml.draw_mapping(mapping, run.topology, run.xyz)
    (axis,) = figure.axes
    assert axis.get_title() == "DMP × 6: 10 beads each" and len(circles(axis)) == 10
    assert texts(axis)[:4] == ["NC3", "PO4", "GL1", "GL2"]
    water = loaded["water4"]
    mapping = cgml.MAPPINGS["molecule_com"](water.topology)
    (axis,) = cgml.draw_mapping(mapping, water.topology, water.xyz).axes
    assert axis.get_title() == "HOH × 103: 1 bead each"
    assert np.ptp(axis.get_xlim()) >= 0.6  # no circle as large as the picture


def test_each_kind_of_molecule_has_a_panel(loaded) -> None:
    run = loaded["norleucine"]
    mapping = cgml.MAPPINGS["molecule_com"](run.topology)
    figure = cgml.draw_mapping(mapping, run.topology, run.xyz)
    assert [a.get_title() for a in figure.axes] == [
        "LEU42 to PHE76: 1 bead", "HOH × 52: 1 bead each"
    ]  # fmt: skip
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["LEU-SER-ASP … GLY-LEU-PHE", "HOH"]
    mapping = cgml.MAPPINGS["calpha"](run.topology)
    figure = cgml.draw_mapping(mapping, run.topology, run.xyz)
    assert figure.get_suptitle() == "calpha: 614 atoms, 35 beads; no beads: 52 HOH"
    # Where every bead is called CA, its residue says more.
    assert texts(figure.axes[0])[:2] == ["LEU42", "SER43"]


def test_a_bead_of_two_molecules_joins_them(loaded) -> None:
    run = loaded["water3"]
    mapping = cgml.com_mapping(run.topology, [range(6), range(6, 9)], names=["W2", "W"])
    figure = cgml.draw_mapping(mapping, run.topology, run.xyz)
    assert [a.get_title() for a in figure.axes] == ["HOH-HOH: 1 bead", "HOH: 1 bead"]


def test_crowded_pictures_drop_names_and_legends(loaded) -> None:
    run = loaded["disulfides"]
    mapping = cgml.MAPPINGS["heavy_atom"](run.topology)
    figure = cgml.draw_mapping(mapping, run.topology, run.xyz)
    (axis,) = figure.axes
    assert len(circles(axis)) == 405 and texts(axis) == [] and figure.legends == []
    # Many types but few names: coloured by those.
    mapping = cgml.MAPPINGS["five_bead"](run.topology)
    (legend,) = cgml.draw_mapping(mapping, run.topology, run.xyz).legends
    assert legend.get_title().get_text() == "bead names (36 types)"
    assert [t.get_text() for t in legend.get_texts()] == ["N", "CA", "C", "O", "CB"]


def test_colours_are_one_a_type(loaded) -> None:
    run = loaded["chignolin"]
    mapping = cgml.MAPPINGS["calpha"](run.topology)
    (axis,) = cgml.draw_mapping(mapping, run.topology, run.xyz).axes
    colours = [matplotlib.colors.to_hex(c.get_facecolor()) for c in circles(axis)]
    pairs = set(zip(mapping.topology.bead_types, colours, strict=True))
    assert len(pairs) == len(set(colours)) == len(set(mapping.topology.bead_types)) == 7


def test_molecules_cut_by_the_border_are_made_whole(loaded) -> None:
    run = loaded["chignolin"]
    box = np.array([5.0, 5.0, 5.0])
    cut = np.mod(run.xyz[0] - run.xyz[0].mean(0), box)
    mapping = cgml.MAPPINGS["backbone"](run.topology)

    def width(positions, **more) -> float:
        (axis,) = cgml.draw_mapping(mapping, run.topology, positions, **more).axes
        return np.ptp([c.center for c in circles(axis)], axis=0).max()

    assert width(cut) > 3.5
    assert width(cut, box=box) == pytest.approx(width(run.xyz[0]), abs=1e-4)
    assert width(cut, box=np.diag(box)) == pytest.approx(width(cut, box=box))


@pytest.mark.parametrize("suffix", ["svg", "pdf", "PNG"])
def test_formats(loaded, suffix, tmp_path) -> None:
    run = loaded["capped"]
    path = tmp_path / f"map.{suffix}"
    cgml.draw_mapping(cgml.MAPPINGS["calpha"](run.topology), run.topology, run.xyz, path)
    start = {"svg": b"<?xml", "pdf": b"%PDF", "PNG": b"\x89PNG"}[suffix]
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("preset", list(cgml.MAPPINGS))
def test_every_preset_can_be_drawn(loaded, preset) -> None:
    run = loaded["glycines"]
    mapping = cgml.MAPPINGS[preset](run.topology)
    (axis,) = cgml.draw_mapping(mapping, run.topology).axes
    assert len(circles(axis)) == len(mapping.topology)


def test_what_cannot_be_drawn(loaded, tmp_path) -> None:
    run, other = loaded["capped"], loaded["chignolin"]
    mapping = cgml.MAPPINGS["calpha"](run.topology)
    for arguments, words in (
        ((other.topology,), "the map takes 22 atoms but the topology has 166; give the topology"),
        ((run.topology, other.xyz), "positions have shape (1, 166, 3), or are not finite, but"),
        ((run.topology, run.xyz * np.nan), "or are not finite, but the topology has 22 atoms"),
        ((run.topology, "gone.pdb"), "positions is 'gone.pdb'; give numbers"),
        ((run.topology, run.xyz, tmp_path / "map.jpeg"), "format '.jpeg' is unknown; give .png"),
        ((run.topology, run.xyz, tmp_path / "no" / "map.png"), "does not exist; create it first"),
    ):
        with pytest.raises(cgml.InputError) as caught:
            cgml.draw_mapping(mapping, *arguments)
        assert words in str(caught.value)
    with pytest.raises(cgml.InputError, match=r"box of shape \(2,\) is no box; give 3 lengths"):
        cgml.draw_mapping(mapping, run.topology, run.xyz, box=[1.0, 2.0])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command


@pytest.fixture
def cgml_map(monkeypatch, capfd):
    """Run ``cgml map`` and return what it said."""

    def run(*arguments, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["cgml", "map", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        assert (stopped.value.code or 0) == code, captured.err
        assert captured.out == ""
        return captured.err

    return run


def test_beads_are_shown_without_a_trajectory(cgml_map, data, tmp_path) -> None:
    path = tmp_path / "map.png"
    top = data / "topology.pdb"
    said = cgml_map("--top", top, "--mapping", "calpha", "--draw", path)
    assert said.splitlines() == [
        "calpha: 1 bead of 22 atoms: 1 ALA",
        "beads: ALA2-CA",
        "without beads: 1 ACE, 1 NME",
        f"{path}: picture of the beads",
    ]
    assert path.stat().st_size > 5000
    said = cgml_map("--top", STRUCTURES / "norleucine.pdb", "--mapping", "residue_com")
    assert said.splitlines()[0].startswith("residue_com: 35 beads of 614 atoms: 5 LEU, 2 SER, ")
    assert said.splitlines()[2] == "without beads: 52 HOH"


def test_a_table_and_a_trajectory(cgml_map, data, tmp_path) -> None:
    table = tmp_path / "table.toml"
    table.write_text('leave_out = ["ACE", "NME"]\n[residues.ALA]\nA = ["N"]\nB = ["CA", "CB"]\n')
    with np.load(data / "trajectory.npz") as run:
        np.savez(tmp_path / "run.npz", positions=run["positions"][:20], forces=run["forces"][:20])
    arguments = (tmp_path / "run.npz", "--top", data / "topology.pdb", "--table", table)
    said = cgml_map(
        *arguments,
        *("--temperature", 300, "-o", tmp_path / "out.h5", "--draw", tmp_path / "map.svg"),
        *("--system", data / "system.xml"),
    )
    assert said.splitlines()[:4] == [
        f"{tmp_path / 'map.svg'}: picture of the beads",
        f"{tmp_path / 'out.h5'}: 20 frames of 2 beads",
        "beads: ALA2-A ALA2-B",
        "without beads: 1 ACE, 1 NME",
    ]
    assert cgml.read_dataset(tmp_path / "out.h5").topology.bead_names == ("A", "B")
    assert (tmp_path / "map.svg").exists()
    # The picture alone needs neither a dataset nor a temperature.
    said = cgml_map(*arguments, "--draw", tmp_path / "only.png")
    assert said.splitlines()[0] == f"{tmp_path / 'only.png'}: picture of the beads"
    said = cgml_map(*arguments, "--select", "all", "--draw", tmp_path / "no.png", code=2)
    assert said == "error: --table and --select both say what the beads are; give one of them\n"


def test_a_topology_without_positions_is_drawn_flat(cgml_map, data, tmp_path) -> None:
    import parmed

    structure = parmed.load_file(str(data / "topology.pdb"))
    structure.save(str(tmp_path / "molecule.psf"))
    said = cgml_map(
        "--top", tmp_path / "molecule.psf", "--select", "name CA", "--draw", tmp_path / "map.png"
    )
    assert (
        "molecule.psf is drawn flat: only a .pdb, .gro or .h5 file, or a trajectory, has" in said
    )
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument 'TRAJECTORY...'"),
        (("--top", "TOP", "-o", "out.h5"), "Missing argument 'TRAJECTORY...'"),
        (("--top", "TOP", "--temperature", "300"), "Missing argument 'TRAJECTORY...'"),
        (("TOP",), "Missing option '--output'"),
        (("TOP", "-o", "out.h5"), "Missing option '--temperature'"),
        (("--top", "TOP", "--draw", "map.bmp"), "format '.bmp' is unknown; give .png"),
        (("--top", "TOP", "--mapping", "martinni"), "did you mean 'martini'?"),
    ],
)
def test_what_is_missing(cgml_map, data, tmp_path, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    top = str(data / "topology.pdb")
    said = cgml_map(*(top if a == "TOP" else a for a in arguments), code=2)
    assert words in " ".join(said.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
