"""Frames in memory, in files larger than memory, of several molecules: same batches, same fit."""

from dataclasses import replace

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.extrapolation import CoordinateRanges
from openmm_cgml.losses import Terms
from openmm_cgml.training_data import BatchStream, FileSource, MemorySource, open_sources


class Types(cgml.PMF):
    """One stiffness for each pair of bead types, bonds of zero length: knows any molecule."""

    def __init__(self, topology: cgml.CGTopology, shared: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.shared = torch.nn.Embedding(9, 1) if shared is None else shared
        kinds = {"A": 0, "B": 1, "C": 2}
        numbers = torch.tensor([kinds[t] for t in topology.bead_types])
        self.register_buffer("rows", 3 * numbers[:-1] + numbers[1:])

    def for_topology(self, topology):
        return Types(topology, self.shared)

    def forward(self, positions, box_vectors=None):
        square = (positions[:, 1:] - positions[:, :-1]).square().sum(-1)
        return (50 * self.shared(self.rows).squeeze(-1) * square).sum(-1)

    def arguments(self) -> dict:
        return {}


TRUE = {"AA": 1.0, "AB": 2.0, "BA": 2.5, "BC": 4.0, "CC": 3.0}


def molecule(types: str, frames: int, seed: int, **more) -> cgml.CGDataset:
    """A chain of springs 50 TRUE[pair] d^2, in equilibrium."""
    n = len(types)
    names = tuple(f"{t}{k}" for k, t in enumerate(types))
    topology = cgml.CGTopology(
        names, tuple(types), ("M",) * n, (1,) * n, ("A",) * n,
        tuple((k, k + 1) for k in range(n - 1)), (12.0,) * n,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    stiffness = np.array([TRUE[types[k : k + 2]] for k in range(n - 1)]) * 100
    steps = rng.standard_normal((frames, n - 1, 3)) * np.sqrt(2.494 / stiffness)[:, None]
    positions = np.concatenate([np.zeros((frames, 1, 3)), steps.cumsum(1)], axis=1)
    forces = np.zeros_like(positions)
    forces[:, 1:] -= stiffness[:, None] * steps
    forces[:, :-1] += stiffness[:, None] * steps
    return cgml.CGDataset(
        positions.astype(np.float32), topology, 300.0, forces=forces.astype(np.float32), **more
    )


@pytest.fixture(scope="module")
def chain() -> cgml.CGDataset:
    weights = np.random.default_rng(0).random(1003)
    return molecule("AABC", 1003, 1, weights=weights)


@pytest.fixture
def path(chain, tmp_path):
    chain.save(tmp_path / "chain.h5")
    return tmp_path / "chain.h5"


def file_source(path, **more) -> FileSource:
    """Blocks of 64 frames, three of which are shuffled together."""
    return FileSource(path, block=64, buffer=3 * 64 * 4 * 3 * 4 * 3, **more)


def drawn(stream: BatchStream, epoch: int, start: int = 0) -> list[torch.Tensor]:
    stream.set_epoch(epoch)
    stream.load_state_dict({"epoch": epoch, "position": start})
    return [batch.positions for batch in stream]


@pytest.mark.parametrize("make", ["memory", "file"])
def test_every_frame_once_an_epoch_in_another_order(chain, path, make) -> None:
    source = MemorySource(chain) if make == "memory" else file_source(path)
    stream = BatchStream([source], 17, seed=3)
    assert len(stream) == 59 == len(drawn(stream, 0))
    known = {x.tobytes() for x in chain.positions}
    epochs = [torch.cat(drawn(stream, e)).numpy() for e in (0, 1)]
    for frames in epochs:
        assert len({x.tobytes() for x in frames} & known) == 59 * 17 == len(frames)
    assert not np.array_equal(*epochs)
    assert all(torch.equal(a, b) for a, b in zip(drawn(stream, 1), drawn(stream, 1), strict=True))
    other = BatchStream([source], 17, seed=4)
    assert not torch.equal(drawn(stream, 0)[0], drawn(other, 0)[0])
    # Not only within neighbours: the first batch has frames from all over the data, or buffer.
    order = {x.tobytes(): k for k, x in enumerate(chain.positions)}
    first = [order[x.numpy().tobytes()] for x in drawn(stream, 0)[0]]
    assert len({k // 64 for k in first}) >= 3


@pytest.mark.parametrize("make", ["memory", "file"])
def test_the_stream_goes_on_from_anywhere(chain, path, make) -> None:
    source = MemorySource(chain) if make == "memory" else file_source(path)
    stream = BatchStream([source], 17, seed=3)
    whole = drawn(stream, 2)
    for start in (0, 1, 10, 11, 12, 37, 58):
        rest = drawn(stream, 2, start)
        assert len(rest) == 59 - start
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))
    iterator = iter(stream)
    for _ in range(5):
        next(iterator)
    assert stream.state_dict() == {"epoch": 2, "position": 5}
    assert [b.seed for b in iterator][-1] == [b.seed for b in stream][-1]


def test_blocks_are_read_when_needed_only(path, monkeypatch) -> None:
    source = file_source(path)
    stream = BatchStream([source], 17, seed=3)
    read: list[int] = []
    original = source._blocks

    def counted(numbers):
        read.extend(numbers)
        return original(numbers)

    monkeypatch.setattr(source, "_blocks", counted)
    stream.set_epoch(0)
    iterator = iter(stream)
    next(iterator)
    assert len(read) == 3
    for _ in range(58):
        next(iterator)
    assert sorted(read) == list(range(16))
    read.clear()
    drawn(stream, 0, start=57)
    assert len(read) <= 6


def test_a_file_is_the_dataset(chain, path) -> None:
    memory, file = MemorySource(chain), file_source(path)
    stored = MemorySource(cgml.read_dataset(path))
    assert file.summary.digest == stored.summary.digest
    assert file.summary.ranges == CoordinateRanges.of(chain) == memory.summary.ranges
    assert file.summary.weight == pytest.approx(chain.weights.sum())
    for size, part, parts in ((100, 0, 1), (64, 1, 3)):
        pieces = [
            torch.cat([getattr(b, name) for b in s.chunks(size, part, parts)])
            for s in (stored, file)
            for name in ("positions", "forces", "weights")
        ]
        if parts == 1:
            for a, b in zip(pieces[:3], pieces[3:], strict=True):
                assert torch.equal(a, b)
            assert float(pieces[2].mean()) == pytest.approx(1, abs=1e-6)
    shares = [len(torch.cat([b.positions for b in file.chunks(64, k, 3)])) for k in range(3)]
    assert sum(shares) == len(chain)


def test_training_from_a_file_is_training_from_memory(chain, path, tmp_path) -> None:
    """Other order of frames, same minimum; validation, noise and ranges are the same."""
    valid = molecule("AABC", 300, 9)
    valid.save(tmp_path / "valid.h5")
    results = [
        cgml.fit(Types(chain.topology), *data, epochs=30, batch_size=50, learning_rate=0.1)
        for data in ((chain, valid), (path, tmp_path / "valid.h5"))
    ]
    for result in results:
        learned = result.pmf(torch.tensor(valid.positions)).detach()
        steps = torch.tensor(np.diff(valid.positions, axis=1)).square().sum(-1)
        exact = (steps * torch.tensor([50.0, 100.0, 200.0])).sum(-1)
        assert float((learned - exact).abs().max() / exact.mean()) < 1e-3
    assert results[0].metrics["ranges"] == results[1].metrics["ranges"]
    assert results[1].dataset.topology == chain.topology


def test_fixed_terms_of_a_file_are_subtracted(chain, path) -> None:
    pmf = cgml.SumPMF(cgml.fit_prior(chain, ("bonds",)), Types(chain.topology))
    terms = Terms(pmf)
    memory, file = MemorySource(chain), file_source(path)
    for source in (memory, file):
        source.attach(terms)
    fixed = [torch.cat([b.fixed for b in s.chunks(100)]) for s in (memory, file)]
    assert torch.allclose(*fixed, atol=1e-2, rtol=1e-4)
    assert torch.allclose(fixed[0], terms.fixed_forces(torch.tensor(chain.positions), None))


@pytest.mark.parametrize("form", ["memory", "file"])
def test_several_molecules_share_what_they_have_in_common(tmp_path, form) -> None:
    """AB is in one, CC in the other, BC in both: all are found, from either form of the data."""
    parts = [
        cgml.DatasetCollection(
            {"one": molecule("AABC", n, n), "two": molecule("BCC", n + 100, n + 1)}
        )
        for n in (600, 100)
    ]
    data = parts
    if form == "file":
        data = [tmp_path / "train.h5", tmp_path / "valid.h5"]
        for collection, place in zip(parts, data, strict=True):
            collection.save(place)
    pmf = Types(parts[0]["one"].topology)
    result = cgml.fit(pmf, *data, epochs=15, batch_size=50, learning_rate=0.1)
    learned = pmf.shared.weight.detach().squeeze()
    for row, pair in enumerate(("AA", "AB", "AC", "BA", "BB", "BC", "CA", "CB", "CC")):
        if pair in ("AA", "AB", "BC", "CC"):
            assert float(learned[row]) == pytest.approx(TRUE[pair], rel=1e-3), pair
    assert list(result.molecules) == ["one", "two"]
    assert result.pmf is result.molecules["one"].pmf
    assert result.molecules["two"].pmf.rows.tolist() == [5, 8]
    assert result.molecules["two"].dataset.topology == parts[0]["two"].topology
    assert len(result.molecules["two"].metrics["ranges"]["pairs"]) == 3
    assert result.metrics["train_frames"] == 1300


def test_batches_of_molecules_are_mixed_and_resumable() -> None:
    sources = [
        MemorySource(molecule("AABC", 95, 1), "one", 0),
        MemorySource(molecule("BCC", 31, 2), "two", 1),
        MemorySource(molecule("AA", 4, 2), "tiny", 2),
    ]
    stream = BatchStream(sources, 10, seed=1)
    stream.set_epoch(3)
    whole = list(stream)
    turns = [b.molecule for b in whole]
    assert sorted(turns) == [0] * 9 + [1] * 3 + [2]
    assert turns != sorted(turns)
    assert {b.positions.shape[1] for b in whole if b.molecule == 1} == {3}
    stream.load_state_dict({"epoch": 3, "position": 6})
    for a, b in zip(whole[6:], list(stream), strict=True):
        assert torch.equal(a.positions, b.positions) and a.seed == b.seed


def test_processes_share_a_batch() -> None:
    source = MemorySource(molecule("AABC", 100, 1))
    whole = list(BatchStream([source], 20, seed=1))
    shares = [list(BatchStream([source], 20, 1, rank, 2)) for rank in range(2)]
    for batch, one, two in zip(whole, *shares, strict=True):
        assert torch.equal(batch.positions, torch.cat([one.positions, two.positions]))
        # Noise that is drawn for the whole batch, whoever draws it.
        assert torch.equal(batch.normals(), torch.cat([one.normals(), two.normals()]))
    assert not torch.equal(whole[0].normals(), whole[1].normals())
    with pytest.raises(cgml.InputError, match="20 frames cannot be shared evenly by 3"):
        BatchStream([source], 20, 1, 0, 3)
    with pytest.raises(cgml.InputError, match="100 frames are too few for 200"):
        BatchStream([source], 200, 1, 0, 200)


def test_bad_data_are_refused_by_name(chain, path, tmp_path) -> None:
    import h5py

    pmf = Types(chain.topology)
    with pytest.raises(cgml.InputError, match="training data are of type int"):
        cgml.fit(pmf, 3, chain)
    with pytest.raises(cgml.InputError, match="does not exist"):
        cgml.fit(pmf, tmp_path / "gone.h5", chain)
    two = {"one": chain.select(slice(10)), "two": molecule("BCC", 10, 1)}
    collection = cgml.DatasetCollection(two)
    with pytest.raises(cgml.InputError, match="CGNet knows one molecule only"):
        cgml.fit(cgml.PMFS["cgnet"](chain, width=4, depth=1), collection, collection)
    with pytest.raises(cgml.InputError, match="different beads"):
        cgml.fit(pmf, collection, cgml.DatasetCollection({"one": two["one"]}))
    several = {"reference": {"remd_all_rungs": True}}
    hot = cgml.DatasetCollection({**two, "two": replace(two["two"], mapping=several)})
    with pytest.raises(cgml.InputError, match="dataset of molecule two holds frames of several"):
        cgml.fit(pmf, hot, collection)
    with h5py.File(path, "r+") as handle:
        handle["frames/forces"][700, 2] = np.nan
    with pytest.raises(cgml.InputError, match="chain.h5: forces: not finite in frame 700"):
        open_sources(path)
