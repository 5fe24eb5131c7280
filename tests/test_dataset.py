"""Datasets: what goes into a file comes out of it, streamed or whole, and only ever complete."""

import hashlib
import json
import os

import h5py
import numpy as np
import pytest
from openmm import unit

import openmm_cgml as cgml
from openmm_cgml.dataset_file import SCHEMA_VERSION, DatasetWriter
from openmm_cgml.files import segments_folder

NAMES = ("positions", "forces", "weights", "bias_energy", "box")


def make(frames: int = 30, seed: int = 0, **changes) -> cgml.CGDataset:
    """Frames of three beads with everything that a dataset can hold."""
    rng = np.random.default_rng(seed)
    top = cgml.CGTopology(
        ("A", "B", "C"), ("X", "Y", "X"), ("MOL",) * 3, (1,) * 3, ("A",) * 3,
        ((0, 1), (1, 2)), (12.0, 14.0, 16.0),
    )  # fmt: skip
    positions = np.arange(3)[:, None] * [0.3, 0.0, 0.1] + 0.01 * rng.normal(size=(frames, 3, 3))
    values = {
        "positions": positions.astype(np.float32),
        "topology": top,
        "temperature": 310.0,
        "forces": rng.normal(size=(frames, 3, 3)).astype(np.float32),
        "weights": rng.random(frames),
        "bias_energy": rng.normal(size=frames),
        "box": np.repeat(3 * np.eye(3, dtype=np.float32)[None], frames, axis=0),
        "mapping": {"name": "custom", "numbers": [1, 2.5]},
        "sources": {"run.dcd": "ab12"},
        "bias": "umbrella on x",
    }
    return cgml.CGDataset(**(values | changes))


def assert_equal(one: cgml.CGDataset, other: cgml.CGDataset) -> None:
    for name in NAMES:
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            assert first.dtype == second.dtype, name
            np.testing.assert_array_equal(first, second)
    assert one.topology == other.topology
    assert one.temperature == other.temperature
    assert one.mapping == other.mapping
    assert one.sources == other.sources
    assert one.bias == other.bias


def leftovers(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("missing", [(), NAMES[1:], ("forces",), ("box", "weights")])
def test_round_trip(missing, tmp_path) -> None:
    dataset = make(**dict.fromkeys(missing))
    dataset.save(tmp_path / "data.h5")
    assert_equal(cgml.read_dataset(tmp_path / "data.h5"), dataset)
    assert_equal(cgml.read_dataset(str(tmp_path / "data.h5")), dataset)
    assert leftovers(tmp_path) == ["data.h5"]


def test_layout(tmp_path) -> None:
    """What DESIGN.md promises to other programs."""
    make().save(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5") as handle:
        assert set(handle) == {"frames", "topology", "mapping"}
        assert set(handle["frames"]) == set(NAMES)
        units = {n: d.attrs.get("unit") for n, d in handle["frames"].items()}
        assert units == {
            "positions": b"nm",
            "forces": b"kJ/mol/nm",
            "bias_energy": b"kJ/mol",
            "box": b"nm",
            "weights": None,
        }
        kinds = {n: d.dtype for n, d in handle["frames"].items()}
        assert kinds == {
            "positions": np.float32,
            "forces": np.float32,
            "box": np.float32,
            "weights": np.float64,
            "bias_energy": np.float64,
        }
        assert handle.attrs["schema_version"] == SCHEMA_VERSION == 1
        assert handle.attrs["kind"] == b"dataset"
        assert handle.attrs["temperature_K"] == 310.0
        assert handle.attrs["package_version"].decode() == cgml.__version__
        assert json.loads(handle.attrs["sources"]) == {"run.dcd": "ab12"}
        topology = cgml.CGTopology.from_json(handle["topology"][()].decode())
        assert topology == make().topology


def test_temperature_may_be_a_quantity() -> None:
    assert make(temperature=36.85 * unit.kelvin).temperature == 36.85


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_iterate(size, tmp_path) -> None:
    dataset = make()
    dataset.save(tmp_path / "data.h5")
    chunks = list(cgml.iterate_dataset(tmp_path / "data.h5", size))
    assert [len(c) for c in chunks[:-1]] == [size] * (len(chunks) - 1)
    for name in NAMES:
        joined = np.concatenate([getattr(c, name) for c in chunks])
        np.testing.assert_array_equal(joined, getattr(dataset, name))
    assert all(c.topology == dataset.topology and c.temperature == 310.0 for c in chunks)
    assert chunks[0].mapping == dataset.mapping and chunks[0].sources == dataset.sources


def test_iterate_needs_a_size(tmp_path) -> None:
    make().save(tmp_path / "data.h5")
    with pytest.raises(cgml.InputError, match="chunks of 0 frames .* give at least 1"):
        next(cgml.iterate_dataset(tmp_path / "data.h5", 0))


def test_chunks_written_one_by_one(tmp_path) -> None:
    dataset = make()
    with DatasetWriter(tmp_path / "data.h5", dataset.topology, dataset.temperature) as writer:
        for part in (slice(0, 4), slice(4, 5), slice(5, 30)):
            writer.add(dataset.select(part))
        writer.describe(dataset.mapping, dataset.sources, dataset.bias)
    assert_equal(cgml.read_dataset(tmp_path / "data.h5"), dataset)


def test_an_existing_file_is_replaced_whole(tmp_path) -> None:
    path = tmp_path / "data.h5"
    make().save(path)
    other = make(frames=5, seed=1, forces=None)
    other.save(path)
    assert_equal(cgml.read_dataset(path), other)


class Stop(Exception):
    pass


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("when", ["before", "between", "unlike", "json", "rename"])
def test_a_failed_write_changes_nothing(existing, when, tmp_path, monkeypatch) -> None:
    path = tmp_path / "data.h5"
    if existing:
        make().save(path)
        before = path.read_bytes()
    dataset = make(seed=1)
    if when == "rename":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises((Stop, cgml.InputError, TypeError)):
        with DatasetWriter(path, dataset.topology, dataset.temperature) as writer:
            if when == "before":
                raise Stop
            writer.add(dataset)
            if when == "between":
                raise Stop
            if when == "unlike":
                writer.add(make(forces=None))
            if when == "json":
                writer.describe({"not": {1, 2}}, {})
    assert leftovers(tmp_path) == (["data.h5"] if existing else [])
    if existing:
        assert path.read_bytes() == before


def test_a_reader_never_sees_a_part(tmp_path) -> None:
    path = tmp_path / "data.h5"
    with DatasetWriter(path, make().topology, 310.0) as writer:
        writer.add(make())
        assert not path.exists()
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith(".data.h5.") and partial.suffix == ".tmp"
    assert leftovers(tmp_path) == ["data.h5"]


# ---------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": np.zeros((0, 3, 3))}, "positions have shape (0, 3, 3); give (frames"),
        (
            {"positions": np.zeros((30, 9))},
            "positions have shape (30, 9); give (frames, beads, 3)",
        ),
        ({"positions": np.zeros((30, 4, 3))}, "positions have shape (30, 4, 3) but the dataset"),
        ({"forces": np.zeros((29, 3, 3))}, "forces have shape (29, 3, 3) but the dataset needs"),
        ({"weights": np.ones((30, 1))}, "weights have shape (30, 1) but the dataset needs (30,)"),
        ({"bias_energy": np.ones(31)}, "bias_energy have shape (31,) but the dataset needs (30,)"),
        ({"box": np.eye(3)}, "box have shape (3, 3) but the dataset needs (30, 3, 3)"),
        ({"weights": -np.eye(30)[4]}, "weight of frame 4 is -1; weights are probabilities up to"),
        ({"temperature": 0}, "temperature is 0; give a positive number in kelvin"),
        ({"temperature": -300.0}, "temperature is -300.0; give a positive number in kelvin"),
        ({"temperature": float("nan")}, "temperature is nan; give a positive number in kelvin"),
        ({"temperature": None}, "temperature is None; give a number in kelvin or a quantity"),
    ],
)
def test_validation(changes, said) -> None:
    with pytest.raises(cgml.InputError) as caught:
        make(**changes)
    assert str(caught.value).startswith(said)


def test_a_temperature_in_nanometres_is_none(boxed, mapped) -> None:
    arrays, top = boxed
    wrong = {"temperature": 300 * unit.nanometer}
    trajectory = cgml.read_trajectory(arrays["positions"], top=top)
    for attempt in (
        lambda: make(**wrong),
        lambda: cgml.map_trajectory(trajectory, **(mapped | wrong)),
    ):
        with pytest.raises(cgml.InputError) as caught:
            attempt()
        said = str(caught.value)
        assert said.startswith("temperature is ") and "300" in said
        assert said.endswith("; give a number in kelvin or a quantity that converts to it")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_not_finite_are_named(name, value) -> None:
    values = getattr(make(), name).copy()
    values[(6, 1, 2)[: values.ndim]] = value
    bead = ", bead MOL1-B" if name in ("positions", "forces") else ""
    with pytest.raises(cgml.InputError) as caught:
        make(**{name: values})
    assert str(caught.value) == (
        f"{name}: not finite in frame 6{bead}; remove the frame, or repeat the run from before it"
    )


def test_overlapping_beads_are_named() -> None:
    positions = make().positions.copy()
    positions[8, 2] = positions[8, 0] + 5e-4
    with pytest.raises(cgml.InputError) as caught:
        make(positions=positions)
    assert str(caught.value) == (
        "beads MOL1-A and MOL1-C overlap in frame 8 (less than 0.001 nm apart); "
        "check the mapping and the units"
    )
    positions[8, 2] = positions[8, 0] + [0, 0, 2e-3]
    make(positions=positions)


@pytest.mark.parametrize("weights", [np.zeros(30), None])
def test_probabilities(weights) -> None:
    dataset = make(weights=weights)
    if weights is None:
        np.testing.assert_array_equal(dataset.probabilities, np.full(30, 1 / 30))
        return
    with pytest.raises(cgml.InputError) as caught:
        dataset.probabilities  # noqa: B018
    assert str(caught.value) == "all frames have weight zero; take frames that have some"
    with pytest.raises(cgml.InputError, match="weight zero"):
        dataset.draw(3)


def test_probabilities_are_float64() -> None:
    dataset = make(weights=np.arange(30, dtype=np.float32))
    assert dataset.probabilities.dtype == np.float64
    np.testing.assert_allclose(dataset.probabilities, np.arange(30) / np.arange(30).sum())


# ---------------------------------------------------------------- parts of it


@pytest.mark.parametrize("frames", [np.array([5, 3, 3]), slice(4, 20, 5), np.arange(30) % 2 == 0])
def test_select(frames) -> None:
    dataset = make()
    part = dataset.select(frames)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(part, name), getattr(dataset, name)[frames])
    assert part.topology == dataset.topology and part.sources == dataset.sources
    assert dataset.select(slice(3)).select(slice(1, None)).positions.shape == (2, 3, 3)


@pytest.mark.parametrize("total", [1003, 100, 61])
@pytest.mark.parametrize(("fraction", "blocks"), [(0.9, 10), (0.5, 3), (0.8, 1)])
def test_split_is_in_contiguous_blocks(total, fraction, blocks) -> None:
    """Frames carry their number as bias energy."""
    dataset = make(frames=total, bias_energy=np.arange(total, dtype=float))
    train, valid = dataset.split(fraction, blocks)
    first, second = (part.bias_energy.astype(int) for part in (train, valid))
    # Disjoint, complete, in order.
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(total))
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    # Neighbours meet at most twice a block.
    part = np.zeros(total, dtype=int)
    part[second] = 1
    assert (np.diff(part) != 0).sum() == 2 * blocks - 1
    assert part[0] == 0 and part[-1] == 1
    assert len(first) == pytest.approx(fraction * total, abs=blocks / 2)
    np.testing.assert_array_equal(valid.forces, dataset.forces[second])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0,), "fraction is 0.0; give a number between 0 and 1"),
        ((1.0,), "fraction is 1.0; give a number between 0 and 1"),
        ((float("nan"),), "fraction is nan; give a number between 0 and 1"),
        ((0.9, 0), "blocks is 0; give at least 1"),
        ((0.9, 10), "12 frames in 10 blocks cannot be split at 0.9; use fewer blocks or more"),
    ],
)
def test_splits_that_cannot_be(arguments, said) -> None:
    with pytest.raises(cgml.InputError) as caught:
        make(frames=12).split(*arguments)
    assert str(caught.value).startswith(said)


def runs(*lengths: int, **changes) -> cgml.CGDataset:
    """Trajectories of these lengths; frames carry their number as bias energy."""
    total = sum(lengths)
    numbers = np.repeat(np.arange(len(lengths)) * 3 + 5, lengths)
    return make(total, **({"bias_energy": np.arange(total, dtype=float),
                           "trajectory": numbers} | changes))  # fmt: skip


def frames_of(*parts: cgml.CGDataset) -> list[np.ndarray]:
    found = [part.bias_energy.astype(int) for part in parts]
    assert sorted(np.concatenate(found)) == list(range(sum(map(len, found))))  # disjoint, all
    assert all((np.diff(one) > 0).all() for one in found)
    return found


def test_no_block_spans_two_trajectories() -> None:
    """Every trajectory begins with training frames and ends with validation frames."""
    dataset = runs(100, 40, 60)
    first, second = frames_of(*dataset.split(0.8, blocks=5))
    for start, end in ((0, 100), (100, 140), (140, 200)):
        assert start in first and end - 1 in second
    assert len(first) == 160
    # Fewer blocks than trajectories: one each.
    first, second = frames_of(*dataset.split(0.5, blocks=1))
    np.testing.assert_array_equal(second, [*range(50, 100), *range(120, 140), *range(170, 200)])


def test_interleaved_trajectories_are_split_each_in_its_own_order() -> None:
    dataset = runs(50, 50, trajectory=np.arange(100) % 2)
    first, second = frames_of(*dataset.split(0.8, blocks=2))
    np.testing.assert_array_equal(second, range(80, 100))
    assert [t.tolist()[:2] for t in dataset.trajectories()] == [[0, 2], [1, 3]]


def test_split_by_trajectory() -> None:
    dataset = runs(*[20] * 10)
    first, second = dataset.split(0.8, by="trajectory", seed=3)
    frames_of(first, second)
    assert (len(first), len(second)) == (160, 40)
    assert not set(first.trajectory) & set(second.trajectory)
    again, other = (dataset.split(0.8, by="trajectory", seed=s)[1] for s in (3, 4))
    assert set(again.trajectory) == set(second.trajectory) != set(other.trajectory)
    with pytest.warns(UserWarning, match="of 2 whole trajectories the first part got 50% of"):
        assert len(runs(10, 10).split(0.9, by="trajectory")[1]) == 10


def test_shuffled_splits_are_doubted() -> None:
    dataset = runs(200)
    with pytest.warns(UserWarning, match="neighbours in time fall on both sides"):
        first, second = frames_of(*dataset.split(0.75, by="shuffle", seed=1))
    assert len(first) == 150 and (np.diff(first) > 1).sum() > 20


def test_subsample() -> None:
    dataset = runs(10, 7)
    strided = dataset.subsample(stride=4)
    np.testing.assert_array_equal(strided.bias_energy, [0, 4, 8, 10, 14])
    np.testing.assert_array_equal(strided.trajectory, [5, 5, 5, 8, 8])
    np.testing.assert_array_equal(dataset.subsample(count=4).bias_energy, [0, 4, 8, 12])
    assert len(dataset.subsample(count=17)) == len(dataset.subsample(stride=1)) == 17


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (
            lambda d: d.split(0.9, by="trajectory"),
            "the frames are of one trajectory and cannot be split by trajectory; split by",
        ),
        (lambda d: d.split(0.9, by="time"), "split by 'time' is unknown; choose blocks, traj"),
        (lambda d: d.subsample(), "subsample takes either count or stride; give one of them"),
        (lambda d: d.subsample(3, 3), "subsample takes either count or stride; give one of"),
        (lambda d: d.subsample(count=31), "31 of 30 frames were asked for; give 1 to all"),
        (lambda d: d.subsample(count=0), "0 of 30 frames were asked for; give 1 to all"),
        (lambda d: d.subsample(stride=0), "stride is 0; give at least 1"),
        (lambda d: make(trajectory=np.linspace(0, 1, 30)), "trajectory numbers are not whole"),
        (
            lambda d: make(trajectory=np.arange(29)),
            "trajectory have shape (29,) but the dataset needs (30,)",
        ),
        (
            lambda d: make(variables=np.ones((30, 2)), variable_names=("phi",)),
            "variables have shape (30, 2) but the dataset needs (30, 1)",
        ),
        (
            lambda d: runs(1, 1, 1).split(0.9),
            "3 frames in 10 blocks cannot be split at 0.9; use fewer blocks",
        ),
    ],
)
def test_parts_that_cannot_be(attempt, said) -> None:
    with pytest.raises(cgml.InputError) as caught:
        attempt(make())
    assert str(caught.value).startswith(said)


# ---------------------------------------------------------------- damaged files


def test_trajectories_and_variables_round_trip(tmp_path) -> None:
    dataset = runs(12, 18, variables=np.ones((30, 2)), variable_names=("phi", "d"))
    dataset.save(tmp_path / "data.h5")
    read = cgml.read_dataset(tmp_path / "data.h5")
    np.testing.assert_array_equal(read.trajectory, dataset.trajectory)
    np.testing.assert_array_equal(read.variables, dataset.variables)
    assert read.variable_names == ("phi", "d") and read.trajectory.dtype == np.int32


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95, 0.999])
def test_a_file_cut_short_is_named(kept, tmp_path) -> None:
    make(3000).save(tmp_path / "data.h5")
    whole = (tmp_path / "data.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: int(kept * len(whole))])
    for read in (cgml.read_dataset, lambda path: list(cgml.iterate_dataset(path))):
        with pytest.raises(cgml.InputError, match="dataset .*cut.h5 is damaged or cut short"):
            read(tmp_path / "cut.h5")


def test_what_a_killed_writer_left_is_damaged(tmp_path) -> None:
    """The copy that a writer killed mid-write leaves, under a name that somebody gave it."""
    path = tmp_path / "data.h5"
    with pytest.raises(Stop):
        with DatasetWriter(path, make().topology, 310.0) as writer:
            writer.add(make(2000))
            writer._writer._group.file.flush()
            (partial,) = tmp_path.iterdir()
            left = partial.read_bytes()
            raise Stop
    path.write_bytes(left)
    with pytest.raises(cgml.InputError, match="data.h5 is "):
        cgml.read_dataset(path)


def test_an_unfinished_run_says_how_to_go_on(tmp_path) -> None:
    segments_folder(tmp_path / "data.h5").mkdir()
    with pytest.raises(cgml.InputError) as caught:
        cgml.read_dataset(tmp_path / "data.h5")
    said = str(caught.value)
    assert said.startswith(f"dataset {tmp_path / 'data.h5'} is not there yet: the run that writes")
    assert said.endswith("start the same command again, it goes on to the end")


@pytest.mark.parametrize(
    ("name", "length"), [("forces", 29), ("weights", 31), ("box", 1), ("trajectory", 0)]
)
def test_arrays_of_other_lengths_in_a_file_are_named(name, length, tmp_path) -> None:
    runs(15, 15).save(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as handle:
        handle[f"frames/{name}"].resize(length, axis=0)
    said = f"data.h5 holds 30 frames of positions but {length} of {name}; it was changed or"
    for read in (cgml.read_dataset, lambda path: next(cgml.iterate_dataset(path))):
        with pytest.raises(cgml.InputError, match=said):
            read(tmp_path / "data.h5")


def test_a_file_with_other_shapes_names_the_array(tmp_path) -> None:
    make().save(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as handle:
        del handle["frames/forces"]
        handle["frames/forces"] = np.zeros((30, 4, 3))
    with pytest.raises(cgml.InputError, match=r"data.h5: forces have shape \(30, 4, 3\) but the"):
        cgml.read_dataset(tmp_path / "data.h5")


def test_hdf5_of_other_programs_is_no_dataset(tmp_path) -> None:
    for name in ("coordinates", "data"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as handle:
            handle[name] = np.zeros(3)
    with pytest.raises(cgml.InputError, match="it is an MDTraj trajectory: .* `cgml data conv"):
        cgml.read_dataset(tmp_path / "coordinates.h5")
    with pytest.raises(cgml.InputError, match="data.h5 is not a dataset; make one with"):
        cgml.read_dataset(tmp_path / "data.h5")


def test_chunks_must_be_alike(tmp_path) -> None:
    other = cgml.CGTopology.from_json(make().topology.to_json().replace('"C"', '"D"'))
    changes = [
        ({"topology": other}, "bead 2 is MOL1-C of type X in the file but MOL1-D of type X in"),
        (
            {"variables": np.ones((30, 1)), "variable_names": ("psi",)},
            r"chunk has variables \('psi',\), earlier ones \('phi',\)",
        ),
    ]
    first = make(variables=np.ones((30, 1)), variable_names=("phi",))
    for change, said in changes:
        with pytest.raises(cgml.InputError, match=said):
            with DatasetWriter(tmp_path / "data.h5", first.topology, 310.0) as writer:
                writer.add(first)
                writer.add(make(**({"variables": first.variables, "variable_names": ("phi",)}
                                   | change)))  # fmt: skip
    with pytest.raises(cgml.InputError, match="no frames were written to the dataset; add some"):
        with DatasetWriter(tmp_path / "data.h5", first.topology, 310.0):
            pass
    assert leftovers(tmp_path) == []


def numbered(weights) -> cgml.CGDataset:
    """Frame k has its first bead at x = -k nm."""
    frames = len(weights)
    positions = make(frames).positions.copy()
    positions[:, 0, 0] = -np.arange(frames)
    return make(frames, positions=positions, weights=weights)


def test_draws_follow_the_weights() -> None:
    """Counts of independent seeds: their means against the expected ones, 8 comparisons."""
    weights = np.array([0.0, 1.0, 2.0, 0.0, 4.0, 0.5, 0.0, 0.7, 3.3, 0.0])
    dataset = numbered(weights)
    draws, count = 400, 7
    counts = np.zeros((draws, len(weights)))
    for seed in range(draws):
        frames = np.rint(-dataset.draw(count, seed)[:, 0, 0]).astype(int)
        np.add.at(counts[seed], frames, 1)
    expected = count * weights / weights.sum()
    assert (counts[:, weights == 0] == 0).all()
    some = weights > 0
    error = counts[:, some].std(0, ddof=1) / np.sqrt(draws)
    z = (counts[:, some].mean(0) - expected[some]) / error
    assert np.abs(z).max() < 3.5, z
    # Systematic resampling: no count is ever further from its mean than one.
    assert np.abs(counts - expected).max() < 1


def test_draws_are_shuffled_and_repeat_with_the_seed() -> None:
    dataset = numbered(np.ones(50))
    first, again, other = (dataset.draw(50, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    order = np.rint(-first[:, 0, 0]).astype(int)
    assert sorted(order) == list(range(50)) and not (np.diff(order) > 0).all()


@pytest.mark.parametrize("weights", [[0, 0, 1], [1, 0, 0], [0, 1e-300, 0], [0.1] * 3 + [0] * 9])
def test_frames_without_weight_are_never_drawn(weights) -> None:
    drawn = np.rint(-numbered(np.array(weights, dtype=float)).draw(1000)[:, 0, 0]).astype(int)
    assert set(drawn) == set(np.flatnonzero(weights))


@pytest.mark.parametrize(
    ("random", "weights", "frame"),
    [
        (0.0, [0.0, 1.0, 1.0], 1),  # the point is at the left end of the first frame with weight
        (1 - 2**-53, [0.1] * 10 + [0.0], 9),  # whose sum is less than one by rounding
    ],
)
def test_draws_at_the_very_ends(random, weights, frame, monkeypatch) -> None:
    class Generator:
        def random(self):
            return random

        def permutation(self, values):
            return values

    dataset = numbered(np.array(weights))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Generator())
    assert dataset.draw(1)[0, 0, 0] == -frame


# ---------------------------------------------------------------- map_trajectory


@pytest.fixture(scope="module")
def boxed(data):
    """An .npz of 60 frames with all that frames can carry, and its topology."""
    with np.load(data / "trajectory.npz") as run:
        arrays = {name: run[name][-60:] for name in run.files}
    arrays["box"] = np.repeat(3 * np.eye(3)[None], 60, axis=0)
    return arrays, cgml.read_topology(data / "topology.pdb")


@pytest.fixture(scope="module")
def mapped(boxed, data):
    """Arguments of map_trajectory."""
    arrays, top = boxed
    mapping = cgml.MAPPINGS["backbone"](top)
    return {"mapping": mapping, "temperature": 300, "constraints": data / "system.xml"}


@pytest.mark.parametrize("chunk", [7, 60, 2000])
@pytest.mark.parametrize("force_map", ["basic", "optimal"])
def test_streamed_equals_in_memory(boxed, mapped, chunk, force_map, tmp_path) -> None:
    arrays, top = boxed
    np.savez(tmp_path / "run.npz", **arrays)
    trajectory = cgml.read_trajectory(tmp_path / "run.npz", top=top)
    arguments = {**mapped, "chunk": chunk, "force_map": force_map}
    memory = cgml.map_trajectory(trajectory, **arguments)
    streamed = cgml.map_trajectory(trajectory, **arguments, output=tmp_path / "data.h5")
    assert_equal(streamed, memory)
    assert_equal(cgml.read_dataset(tmp_path / "data.h5"), memory)
    assert leftovers(tmp_path) == ["data.h5", "run.npz"]


def test_what_is_mapped(boxed, mapped, tmp_path) -> None:
    arrays, top = boxed
    np.savez(tmp_path / "run.npz", **arrays)
    trajectory = cgml.read_trajectory(tmp_path / "run.npz", top=top)
    dataset = cgml.map_trajectory(trajectory, **mapped, force_map="basic")
    assert dataset.positions.dtype == dataset.forces.dtype == np.float32
    atoms = [4, 6, 8, 14, 16]
    np.testing.assert_array_equal(dataset.positions, arrays["positions"][:, atoms])
    # Basic map, bonds to hydrogen constrained: an N takes its H along, a C-alpha its H.
    groups = [[4], [6, 7], [8, 9], [14], [16, 17]]
    expected = np.stack([arrays["forces"][:, g].sum(1) for g in groups], axis=1)
    np.testing.assert_allclose(dataset.forces, expected, rtol=1e-5, atol=1e-3)
    for name in ("weights", "bias_energy", "box"):
        np.testing.assert_array_equal(getattr(dataset, name), arrays[name])
    assert dataset.temperature == 300.0
    digest = hashlib.sha256((tmp_path / "run.npz").read_bytes()).hexdigest()
    assert dataset.sources == {"run.npz": digest}


def test_provenance(boxed, mapped) -> None:
    arrays, top = boxed
    trajectory = cgml.read_trajectory(arrays["positions"], top=top, forces=arrays["forces"])
    dataset = cgml.map_trajectory(trajectory, **mapped)
    described = json.loads(json.dumps(dataset.mapping))
    assert described == dataset.mapping
    assert described["name"] == "backbone"
    assert described["atoms"][8] == "ALA2-CA" and len(described["atoms"]) == 22
    assert described["position_matrix"] == {
        "row": [0, 1, 2, 3, 4],
        "column": [4, 6, 8, 14, 16],
        "value": [1.0] * 5,
    }
    force_map = described["force_map"]
    assert force_map["name"] == "rotation" and force_map["mean_square"] > 0
    assert [1, 0, 2, 3] not in force_map["constraint_groups"]
    assert [0, 1, 2, 3] in force_map["constraint_groups"]
    assert sum(len(g) - 1 for g in force_map["constraint_groups"]) == 12
    matrix = np.zeros((5, 22))
    stored = force_map["matrix"]
    matrix[stored["row"], stored["column"]] = stored["value"]
    expected = np.einsum("ba,fax->fbx", matrix, arrays["forces"].astype(float))
    np.testing.assert_allclose(dataset.forces, expected, rtol=1e-5, atol=1e-3)
    assert dataset.sources == {}


def test_positions_alone(boxed, mapped) -> None:
    arrays, top = boxed
    dataset = cgml.map_trajectory(cgml.read_trajectory(arrays["positions"], top=top), **mapped)
    assert [getattr(dataset, n) is None for n in NAMES] == [False, True, True, True, True]
    assert "force_map" not in dataset.mapping


def test_sources_of_one_name_are_kept_apart(boxed, mapped, tmp_path) -> None:
    arrays, top = boxed
    paths = []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        paths.append(tmp_path / str(k) / "run.npy")
        np.save(paths[-1], arrays["positions"] + k)
    dataset = cgml.map_trajectory(cgml.read_trajectory(paths, top=top), **mapped)
    assert dataset.sources == {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_a_file_that_is_used_twice_is_one_source(boxed, mapped, tmp_path) -> None:
    arrays, top = boxed
    np.savez(tmp_path / "run.npz", **arrays)
    path = tmp_path / "run.npz"
    trajectory = cgml.read_trajectory(path, top=top, forces=path, weights=path)
    assert set(cgml.map_trajectory(trajectory, **mapped).sources) == {"run.npz"}


def test_frames_are_numbered_through(boxed, mapped, tmp_path) -> None:
    """An error in the second chunk names the frame of the run, and no file is left."""
    arrays, top = boxed
    positions = arrays["positions"].copy()
    positions[41, 8] = positions[41, 6]
    trajectory = cgml.read_trajectory(positions, top=top)
    for output in (None, tmp_path / "data.h5"):
        with pytest.raises(cgml.InputError) as caught:
            cgml.map_trajectory(trajectory, **mapped, chunk=7, output=output)
        assert str(caught.value).startswith("beads ALA2-N and ALA2-CA overlap in frame 41 (less")
    assert leftovers(tmp_path) == []


def test_dataset_files_number_through_as_well(tmp_path) -> None:
    make().save(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as handle:
        handle["frames/forces"][23, 1, 1] = np.nan
    said = "forces: not finite in frame 23, bead MOL1-B; remove the frame"
    with pytest.raises(cgml.InputError, match=f"dataset .*data.h5: {said}"):
        cgml.read_dataset(tmp_path / "data.h5")
    chunks = cgml.iterate_dataset(tmp_path / "data.h5", 10)
    assert len(next(chunks)) == len(next(chunks)) == 10
    with pytest.raises(cgml.InputError, match=said):
        next(chunks)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": -1}, "temperature is -1; give a positive number in kelvin"),
        ({"force_map": "optimum"}, "unknown force map 'optimum'; did you mean 'optimal'? known: "),
        ({"output": "nowhere/data.h5"}, "cannot write nowhere/data.h5: folder nowhere does not"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_read(boxed, mapped, changes, said) -> None:
    class Unread:
        topology = boxed[1]

        def __getattr__(self, name):
            raise AssertionError(f"{name} was looked at first")

    with pytest.raises(cgml.InputError) as caught:
        cgml.map_trajectory(Unread(), **(mapped | changes))
    assert str(caught.value).startswith(said)


def test_mapping_of_another_molecule(boxed, mapped) -> None:
    arrays, top = boxed
    other = top.copy()
    other.residue(1).name = "GLY"
    trajectory = cgml.read_trajectory(arrays["positions"], top=other)
    with pytest.raises(cgml.InputError) as caught:
        cgml.map_trajectory(trajectory, **mapped)
    said = str(caught.value)
    assert said.startswith("the mapping was made for 22 atoms (ACE1-H1, ACE1-CH3, ACE1-H2, ...)")
    assert said.endswith("make the mapping from the trajectory's topology")
