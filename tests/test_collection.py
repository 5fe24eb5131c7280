"""Joining datasets: what fits is joined whole and kept apart, what does not is named."""

import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_dataset import leftovers, make

import openmm_cgml as cgml
from openmm_cgml.collection import collect_files
from openmm_cgml.files import segments_folder

ROOT = Path(__file__).resolve().parent.parent
MAPPING = {
    "name": "custom",
    "atoms": ["A", "B", "C", "D"],
    "position_matrix": {"row": [0, 1, 2], "column": [0, 1, 3], "value": [1.0, 1.0, 1.0]},
    "force_map": {"name": "basic", "constraint_groups": [[0, 2]], "mean_square": None},
}


def other_map(**changes) -> dict:
    return MAPPING | changes


def plain(frames: int = 20, seed: int = 0, **changes) -> cgml.CGDataset:
    """Frames that can be merged with others: own sources, a map."""
    values = {"mapping": MAPPING, "sources": {f"{seed}.dcd": f"{seed}"}, "bias": ""}
    return make(frames, seed, **(values | changes))


# ---------------------------------------------------------------- merging


def joined(one: cgml.CGDataset, other: cgml.CGDataset, how: str, folder: Path) -> cgml.CGDataset:
    """The same two datasets, joined in memory or on disk."""
    if how == "memory":
        return cgml.merge([one, other])
    one.save(folder / "one.h5")
    other.save(folder / "other.h5")
    if how == "append":
        cgml.append(folder / "one.h5", other)
        return cgml.read_dataset(folder / "one.h5")
    assert cgml.merge_files([folder / "one.h5", folder / "other.h5"], folder / "all.h5")
    return cgml.read_dataset(folder / "all.h5")


@pytest.mark.parametrize("how", ["memory", "append", "files"])
def test_everything_is_joined(how, tmp_path) -> None:
    one = plain(20, 0, trajectory=np.repeat([7, 3], 10))
    other = plain(9, 1)
    whole = joined(one, other, how, tmp_path)
    for name in ("positions", "forces", "bias_energy", "box"):
        expected = np.concatenate([getattr(one, name), getattr(other, name)])
        np.testing.assert_array_equal(getattr(whole, name), expected)
    np.testing.assert_array_equal(whole.trajectory, [1] * 10 + [0] * 10 + [2] * 9)
    assert whole.trajectory.dtype == np.int32
    assert whole.sources == {"0.dcd": "0", "1.dcd": "1"}
    assert whole.mapping == MAPPING and whole.topology == one.topology
    # A dataset counts by its frames, and weights within one keep their proportions.
    np.testing.assert_allclose(whole.weights[:20], one.weights / one.weights.mean())
    np.testing.assert_allclose(whole.probabilities[20:].sum(), 9 / 29)


def test_weights_as_they_are() -> None:
    one, other = plain(20, 0, weights=np.full(20, 5.0)), plain(20, 1, weights=None)
    np.testing.assert_array_equal(cgml.merge([one, other]).weights, np.ones(40))
    kept = cgml.merge([one, other], weights="as_is").weights
    np.testing.assert_array_equal(kept, np.repeat([5.0, 1.0], 20))
    none = plain(20, 2, weights=None)
    assert cgml.merge([other, none]).weights is None


def test_merging_again_changes_no_weights() -> None:
    """In two steps or in one."""
    parts = [plain(10 + k, k) for k in range(3)]
    steps = cgml.merge([cgml.merge(parts[:2]), parts[2]])
    np.testing.assert_allclose(steps.weights, cgml.merge(parts).weights)
    np.testing.assert_array_equal(steps.trajectory, cgml.merge(parts).trajectory)


def test_an_unbiased_run_has_bias_energy_zero() -> None:
    whole = cgml.merge([plain(5), plain(6, 1, bias_energy=None)])
    assert (whole.bias_energy[5:] == 0).all() and (whole.bias_energy[:5] != 0).any()


def test_force_maps_may_differ_and_all_are_recorded() -> None:
    second = other_map(force_map={"name": "optimal", "constraint_groups": [[0, 2]]})
    whole = cgml.merge([plain(), plain(seed=1, mapping=second)])
    assert whole.mapping["force_map"]["name"] == "several"
    assert whole.mapping["force_map"]["maps"] == [MAPPING["force_map"], second["force_map"]]
    assert whole.mapping["force_map"]["constraint_groups"] == [[0, 2]]
    thrice = cgml.merge([whole, plain(seed=2)])
    assert thrice.mapping == whole.mapping


def test_sources_of_one_name_are_numbered_and_shared_ones_doubted() -> None:
    whole = cgml.merge([plain(sources={"run.dcd": k}, seed=n) for n, k in enumerate("abc")])
    assert whole.sources == {"run.dcd": "a", "run.dcd (2)": "b", "run.dcd (3)": "c"}
    with pytest.warns(UserWarning, match="dataset 2 comes from 0.dcd, like a dataset before it"):
        assert cgml.merge([plain(), plain()]).sources == {"0.dcd": "0"}


def test_unknown_maps_and_weights_are_doubted() -> None:
    with pytest.warns(UserWarning, match="dataset 2 does not say how its beads were made"):
        assert cgml.merge([plain(), plain(seed=1, mapping={})]).mapping == MAPPING
    with pytest.warns(UserWarning, match="dataset 2 was biased .umbrella. and has no weights"):
        cgml.merge([plain(), plain(seed=1, weights=None, bias="umbrella")])


def topology(**changes) -> cgml.CGTopology:
    return replace(make().topology, **changes)


PERIODIC = {"mapping": MAPPING, "sources": {}, "bias": ""}
MISFITS = {
    "beads": (
        {"topology": topology(bead_names=("A", "B", "D"))},
        "bead 2 is MOL1-C of type X in dataset 1 but MOL1-D of type X in dataset 2; map both",
    ),
    "types": ({"topology": topology(bead_types=("X", "Y", "Z"))}, "bead 2 is MOL1-C of type X in"),
    "masses": (
        {"topology": topology(masses=(12.0, 14.0, 15.0))},
        "bead MOL1-C has mass 16 Da in dataset 1 but 15 Da in dataset 2",
    ),
    "bonds": (
        {"topology": topology(bonds=((0, 1), (0, 2), (1, 2)))},
        "beads MOL1-A and MOL1-C are bonded in dataset 2 only; map both with the same mapping",
    ),
    "temperature": (
        {"temperature": 300.0},
        "dataset 1 is at 310 K, dataset 2 at 300 K; a PMF holds at one temperature",
    ),
    "forces": ({"forces": None}, "dataset 1 has forces, dataset 2 has none; map both with forces"),
    "box": ({"box": None}, "dataset 1 has box, dataset 2 has none; map both with the box"),
    "variables": (
        {"variables": np.ones((20, 1)), "variable_names": ("phi",)},
        "dataset 2 has variables, dataset 1 has none; leave them out of both",
    ),
    "atoms": (
        {"mapping": other_map(atoms=["A", "B", "X", "D"])},
        "dataset 1 was mapped from 4 atoms, dataset 2 from 4 (atom C stands where",
    ),
    "matrix": (
        {"mapping": other_map(position_matrix={"row": [0, 1, 2], "column": [0, 1, 2],
                                               "value": [1.0, 1.0, 1.0]})},
        "dataset 1 and dataset 2 have the same beads, made of other atoms or with other weights",
    ),
    "noise": (
        {"mapping": other_map(noise={"sd_nm": 0.01})},
        "the noise kernel of dataset 1 is None, that of dataset 2 {'sd_nm': 0.01}; map both",
    ),
    "bias energy": (
        {"bias_energy": None, "bias": "umbrella"},
        "dataset 2 was biased (umbrella) but has no bias energies, unlike others; map it with",
    ),
    "weight zero": ({"weights": np.zeros(20)}, "all frames of dataset 2 have weight zero; leave"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize("how", ["memory", "append", "files"])
def test_what_does_not_fit_is_named(case, how, tmp_path) -> None:
    changes, said = MISFITS[case]
    one, other = plain(), plain(seed=1, **changes)
    if how != "memory":
        one.save(tmp_path / "one.h5")
        before = (tmp_path / "one.h5").read_bytes()
    with pytest.raises(cgml.InputError) as caught:
        joined(one, other, how, tmp_path)
    if how == "memory":
        assert str(caught.value).startswith(said)
        return
    told = str(caught.value).replace(str(tmp_path / "one.h5"), "dataset 1")
    told = told.replace(str(tmp_path / "other.h5"), "dataset 2").replace("the new frames",
                                                                         "dataset 2")  # fmt: skip
    assert told.startswith(said)
    assert (tmp_path / "one.h5").read_bytes() == before
    assert set(leftovers(tmp_path)) == {"one.h5", "other.h5"}


def test_other_wrong_arguments(tmp_path) -> None:
    with pytest.raises(cgml.InputError, match="there is nothing to merge; give at least one"):
        cgml.merge([])
    with pytest.raises(cgml.InputError, match="weights 'equal' is unknown; choose per_frame or"):
        cgml.merge([plain()], weights="equal")
    names = {"variables": np.ones((20, 1))}
    with pytest.raises(cgml.InputError, match="has the variables phi, dataset 2 psi; merge runs"):
        cgml.merge([plain(variable_names=(n,), seed=k, **names) for k, n in enumerate(
            ("phi", "psi"))])  # fmt: skip
    with pytest.raises(cgml.InputError, match="gone.h5 does not exist; check the path"):
        cgml.append(tmp_path / "gone.h5", plain())
    with pytest.raises(cgml.InputError, match="folder .* does not exist"):
        plain().save(tmp_path / "one.h5")
        cgml.merge_files([tmp_path / "one.h5"], tmp_path / "nowhere" / "all.h5")


def test_the_output_may_be_an_input(tmp_path) -> None:
    plain().save(tmp_path / "a.h5")
    plain(7, 1).save(tmp_path / "b.h5")
    cgml.merge_files([tmp_path / "b.h5", tmp_path / "a.h5"], tmp_path / "a.h5")
    assert len(cgml.read_dataset(tmp_path / "a.h5")) == 27
    assert leftovers(tmp_path) == ["a.h5", "b.h5"]


def test_a_damaged_input_leaves_the_output_alone(tmp_path) -> None:
    """The bad frame is in the second file, after the first was copied."""
    plain().save(tmp_path / "a.h5")
    plain(seed=1).save(tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5", "r+") as handle:
        handle["frames/forces"][17, 1, 1] = np.nan
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(cgml.InputError, match="b.h5: forces: not finite in frame 17, bead MOL1-B"):
        cgml.append(tmp_path / "a.h5", tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == before
    assert leftovers(tmp_path) == ["a.h5", "b.h5"]


def test_a_kill_during_append_leaves_the_file_whole(tmp_path) -> None:
    """Killed with -9 after some frames were copied, and once more before the rename."""
    path = tmp_path / "data.h5"
    plain(2000).save(path)
    before = path.read_bytes()
    code = """
        import os, signal, sys
        import openmm_cgml as cgml
        from openmm_cgml.dataset_file import GroupWriter

        sys.path.insert(0, "tests")
        from test_collection import plain

        def kill(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        if sys.argv[2] == "finish":
            os.replace = kill
        else:
            add, calls = GroupWriter.add, []

            def counted(self, chunk):
                add(self, chunk)
                self._group.file.flush()
                calls.append(1)
                if len(calls) == 2:
                    kill()

            GroupWriter.add = counted
        cgml.append(sys.argv[1], plain(500, 1))
    """
    for when in ("between", "finish"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path), when],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == -signal.SIGKILL
        assert path.read_bytes() == before
    assert len(leftovers(tmp_path)) == 3  # the copies, under names of their own
    cgml.append(path, plain(500, 1))
    assert len(cgml.read_dataset(path)) == 2500


def test_memory_does_not_grow_with_the_files(tmp_path) -> None:
    """40 000 frames are 23 MB in memory; twice as many cost the same."""
    peaks = []
    for frames in (40_000, 80_000):
        path = tmp_path / f"{frames}.h5"
        plain(frames, seed=frames, weights=None, bias_energy=None, box=None).save(path)
        tracemalloc.start()
        cgml.merge_files([path, path.with_name("40000.h5")], tmp_path / "all.h5") if (
            frames > 40_000
        ) else cgml.merge_files([path], tmp_path / "all.h5")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(cgml.read_dataset(tmp_path / "all.h5")) == 120_000
    assert peaks[1] < 1.3 * peaks[0] < 20e6


# ---------------------------------------------------------------- several molecules


def small(**changes) -> cgml.CGDataset:
    """Two beads of another molecule."""
    top = cgml.CGTopology(("A", "B"), ("X", "Q"), ("OTH",) * 2, (1,) * 2, ("A",) * 2,
                          ((0, 1),), (12.0, 14.0))  # fmt: skip
    rng = np.random.default_rng(5)
    positions = np.arange(2)[:, None] * [0.3, 0.0, 0.1] + 0.01 * rng.normal(size=(50, 2, 3))
    values = {"positions": positions.astype(np.float32), "topology": top, "temperature": 310.0,
              "forces": rng.normal(size=(50, 2, 3)).astype(np.float32)}  # fmt: skip
    return cgml.CGDataset(**(values | changes))


@pytest.fixture
def collection() -> cgml.DatasetCollection:
    return cgml.DatasetCollection({"long": plain(), "short": small()})


def same(one: cgml.DatasetCollection, other: cgml.DatasetCollection) -> None:
    assert list(one) == list(other)
    for name in one:
        first, second = one[name], other[name]
        np.testing.assert_array_equal(first.positions, second.positions)
        np.testing.assert_array_equal(first.forces, second.forces)
        assert (first.weights is None) == (second.weights is None)
        assert first.topology == second.topology and first.mapping == second.mapping
        assert first.sources == second.sources


def test_collection_round_trip(collection, tmp_path) -> None:
    collection.save(tmp_path / "all.h5")
    same(cgml.read_collection(tmp_path / "all.h5"), collection)
    with h5py.File(tmp_path / "all.h5") as handle:
        assert handle.attrs["kind"] == b"collection" and handle.attrs["schema_version"] == 1
        group = handle["molecules/long"]
        # A molecule's group is laid out as a dataset's file is.
        assert set(group) == {"frames", "topology", "mapping"}
        assert group.attrs["kind"] == b"dataset" and group.attrs["temperature_K"] == 310.0
    for name, data in collection.datasets.items():
        data.save(tmp_path / f"{name}.h5")
    collect_files({n: tmp_path / f"{n}.h5" for n in collection}, tmp_path / "streamed.h5")
    same(cgml.read_collection(tmp_path / "streamed.h5"), collection)


def test_what_a_collection_says(collection) -> None:
    assert len(collection) == 2 and collection.frames == 70 and collection.temperature == 310
    assert collection.bead_types() == {
        "Q": {"short": 1},
        "X": {"long": 2, "short": 1},
        "Y": {"long": 1},
    }
    train, valid = collection.split(0.8, blocks=2)
    assert [len(train[n]) for n in train] == [16, 40] and len(valid["short"]) == 10
    assert [len(d) for d in collection.subsample(stride=5).datasets.values()] == [4, 10]


def test_collections_merge(collection) -> None:
    more = cgml.DatasetCollection({"short": small(sources={"new": "1"}), "third": small()})
    whole = collection.merge(more)
    assert {name: len(whole[name]) for name in whole} == {"long": 20, "short": 100, "third": 50}
    wrong = cgml.DatasetCollection({"short": plain()})
    with pytest.raises(cgml.InputError, match="molecule short: dataset 1 has 2 beads, dataset 2"):
        collection.merge(wrong)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda c: cgml.DatasetCollection({}), "a collection needs at least one molecule"),
        (
            lambda c: cgml.DatasetCollection([("a", plain()), ("a", small())]),
            "molecule name 'a' is given 2 times; names are unique",
        ),
        (lambda c: cgml.DatasetCollection({"a/b": plain()}), "molecule name 'a/b' cannot be sto"),
        (lambda c: cgml.DatasetCollection({"a": 3}), "a is of type int; give datasets"),
        (
            lambda c: cgml.DatasetCollection({"a": plain(), "b": small(temperature=300)}),
            "a is at 310 K, b at 300 K; one model holds at one temperature",
        ),
        (
            lambda c: cgml.DatasetCollection({"a": plain(), "b": small(forces=None)}),
            "a has forces, b has none; map all molecules with forces, or none",
        ),
        (lambda c: c["third"], "there is no molecule 'third'; the collection has long, short"),
        (lambda c: c.split(0.9, by="trajectory"), "molecule long: the frames are of one traject"),
        (lambda c: c.subsample(count=30), "molecule long: 30 of 20 frames were asked for"),
    ],
)
def test_collections_that_cannot_be(attempt, said, collection) -> None:
    with pytest.raises(cgml.InputError) as caught:
        attempt(collection)
    assert str(caught.value).startswith(said)


def test_files_of_another_kind_are_named(collection, tmp_path) -> None:
    collection.save(tmp_path / "all.h5")
    plain().save(tmp_path / "one.h5")
    with pytest.raises(cgml.InputError, match="all.h5 is not a dataset; it holds several molec"):
        cgml.read_dataset(tmp_path / "all.h5")
    with pytest.raises(cgml.InputError, match="all.h5 is not a dataset; .* read_collection"):
        cgml.append(tmp_path / "all.h5", plain())
    with pytest.raises(cgml.InputError, match="one.h5 is not a collection; .* read_dataset"):
        cgml.read_collection(tmp_path / "one.h5")
    with h5py.File(tmp_path / "all.h5", "r+") as handle:
        del handle["molecules/short/topology"]
    with pytest.raises(cgml.InputError, match="molecule short is damaged or cut short"):
        cgml.read_collection(tmp_path / "all.h5")
    segments_folder(tmp_path / "later.h5").mkdir()
    with pytest.raises(cgml.InputError, match="collection .*later.h5 is not there yet"):
        cgml.read_collection(tmp_path / "later.h5")
