"""Damaging files at random, and reading them in a process that may crash, hang or swallow memory.

Every damaged file is a function of (seed, reader, number), so that one can be made again.
"""

import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import openmm_cgml as cgml

#: Beyond what the process has when it starts.
MEMORY = 4 << 30
SECONDS = 10.0

_NUMBERS = (0, 1, -1, 7, 127, 255, 32767, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)
_WORDS = (
    b"nan", b"inf", b"-1", b"1e999", b"99999999999999999999", b"0", b"null", b"true", b'"x"', b"",
    b"{}", b"[]", b"[[[[[[[[", b"\xff\xfe", b"\x00", "\u2028é".encode(), b"2147483648", b"../../x",
)  # fmt: skip


# ---------------------------------------------------------------- damage


def damage_bytes(raw: bytes, random: np.random.Generator) -> bytes:
    """Change bytes, knowing nothing of the format."""
    data = bytearray(raw)
    for _ in range(int(random.integers(1, 4))):
        if not data:
            break
        at = int(random.integers(len(data)))
        size = int(min(len(data) - at, 1 + random.geometric(0.02)))
        kind = int(random.integers(9))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = (0, 0x7F, 0x80, 0xFF)[int(random.integers(4))]
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at : at + size] = bytes(size)
        elif kind == 5:
            data[at:at] = data[at : at + size]
        elif kind == 6:
            other = int(random.integers(len(data)))
            data[at : at + size] = data[other : other + size]
        elif kind == 7:
            number = int(_NUMBERS[int(random.integers(len(_NUMBERS)))])
            width = int(random.choice([2, 4, 8]))
            order = "little" if random.random() < 0.6 else "big"
            data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)
        else:
            data[at : at + size] = random.bytes(size)
    return bytes(data)


def damage_head(raw: bytes, random: np.random.Generator) -> bytes:
    """Change the first kilobyte only, where binary formats keep what they promise."""
    return damage_bytes(raw[:1024], random) + raw[1024:]


def damage_text(raw: bytes, random: np.random.Generator) -> bytes:
    """Change lines, numbers and words of a text."""
    if random.random() < 0.2:
        return damage_bytes(raw, random)
    for _ in range(int(random.integers(1, 4))):
        kind = int(random.integers(6))
        tokens = [m.span() for m in re.finditer(rb"[-+]?\d+(?:\.\d+)?|\w+|[^\w\s]", raw)]
        lines = raw.splitlines(keepends=True)
        if not tokens:
            break
        begin, end = tokens[int(random.integers(len(tokens)))]
        word = _WORDS[int(random.integers(len(_WORDS)))]
        one, other = (int(n) for n in random.integers(len(lines), size=2))
        if kind <= 1:
            raw = raw[:begin] + word + raw[end:]
        elif kind == 2:
            raw = raw[:begin] + raw[end:]
        elif kind == 3:
            del lines[one]
            raw = b"".join(lines)
        elif kind == 4:
            lines[one:one] = [lines[other]] * int(random.choice([1, 1, 50]))
            raw = b"".join(lines)
        else:
            raw = raw[:begin] + raw[begin:end] * int(random.choice([2, 30])) + raw[end:]
    return raw


def damage_json(text: str, random: np.random.Generator) -> str:
    """Change one value in a JSON text: remove it, or put one of another kind in its place."""
    values = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in list(keys)[:50]:
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                walk(value[key])

    walk(values)
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    others = (
        None, True, -1, 0, 1e308, float("nan"), 10**40, "", "x", "é\u2028", [], {}, [[]], deep,
        {"class": "os:system"}, [None], "a" * 10_000,
    )  # fmt: skip
    for _ in range(int(random.integers(1, 3))):
        owner, key = places[int(random.integers(len(places)))]
        try:
            if random.random() < 0.2:
                del owner[key]
            else:
                owner[key] = others[int(random.integers(len(others)))]
        except (KeyError, IndexError):
            pass
    return json.dumps(values)


def damage_json_bytes(raw: bytes, random: np.random.Generator) -> bytes:
    """As `damage_json`, or as text."""
    if random.random() < 0.4:
        return damage_text(raw, random)
    return damage_json(raw.decode(), random).encode()


def damage_xtc(raw: bytes, random: np.random.Generator) -> bytes:
    """Change what is packed in frames of an XTC file of more than 9 atoms; headers stay whole."""
    data, at, frames = bytearray(raw), 0, []
    while at < len(raw):
        size = int.from_bytes(raw[at + 88 : at + 92], "big")
        frames.append((at + 92, size))
        at += 92 + (size + 3) // 4 * 4
    for _ in range(3):
        begin, size = frames[int(random.integers(len(frames)))]
        if random.random() < 0.3:
            data[begin : begin + size] = random.bytes(size)
        for _ in range(int(random.integers(1, 8))):
            data[begin + int(random.integers(size))] = int(random.integers(256))
    return bytes(data)


def damage_zip(raw: bytes, random: np.random.Generator) -> bytes:
    """Change entries of a zip file and write it anew, whole: checksums do not give it away."""
    if random.random() < 0.3:
        return damage_bytes(raw, random)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = [[name, archive.read(name)] for name in archive.namelist()]
    # Those that say what the others are, more often.
    telling = [e for e in entries if e[0].endswith((".pkl", ".py", "version", ".npy"))]
    for _ in range(int(random.integers(1, 3))):
        chosen = telling if telling and random.random() < 0.7 else entries
        entry = chosen[int(random.integers(len(chosen)))]
        kind = int(random.integers(10))
        if kind == 0 and entry in entries:
            entries.remove(entry)
        elif kind == 1:
            entries.append([entry[0].upper() if random.random() < 0.5 else entry[0], entry[1]])
        elif kind == 2:
            entry[0] = entry[0] + "x" if random.random() < 0.5 else "/" + entry[0]
        elif kind == 3:
            entry[1] = entries[int(random.integers(len(entries)))][1]
        elif kind == 4:
            entry[1] = entry[1][: int(random.integers(len(entry[1]) + 1))]
        elif entry[0].endswith(".py"):
            entry[1] = damage_text(entry[1], random)
        elif entry[0].endswith(".pkl") and b'{"' in entry[1] and random.random() < 0.5:
            entry[1] = _damage_card(entry[1], random)
        elif entry[0].endswith(".npy"):
            entry[1] = damage_head(entry[1], random)
        else:
            entry[1] = damage_bytes(entry[1], random)
    out = io.BytesIO()
    how = int(random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", how) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def _damage_card(pickle: bytes, random: np.random.Generator) -> bytes:
    """Change the JSON that a pickle holds as a string, its length with it."""
    for found in re.finditer(rb"X(....)(?=\{\")", pickle, re.DOTALL):
        size = int.from_bytes(found[1], "little")
        text = pickle[found.end() : found.end() + size]
        try:
            new = damage_json(text.decode(), random).encode()
        except ValueError:
            continue
        rest = pickle[found.end() + size :]
        return pickle[: found.start()] + b"X" + len(new).to_bytes(4, "little") + new + rest
    return damage_bytes(pickle, random)


def damage_hdf5(raw: bytes, random: np.random.Generator) -> bytes:
    """Change bytes, or objects of an HDF5 file by its own library."""
    if random.random() < 0.45:
        return damage_bytes(raw, random)
    if random.random() < 0.2:
        return damage_head(raw, random)
    import h5py

    buffer = io.BytesIO(raw)
    with h5py.File(buffer, "r+") as handle:
        names: list[str] = []
        handle.visit(names.append)
        for _ in range(int(random.integers(1, 3))):
            _damage_object(handle, names, random)
    return buffer.getvalue()


def _damage_object(handle: Any, names: list[str], random: np.random.Generator) -> None:
    import h5py

    attributes = list(handle.attrs)
    if attributes and random.random() < 0.4:
        name = attributes[int(random.integers(len(attributes)))]
        old = handle.attrs[name]
        if random.random() < 0.2:
            del handle.attrs[name]
        elif isinstance(old, str) and old[:1] in ("{", "[") and len(json.loads(old)):
            handle.attrs[name] = damage_json(old, random)
        else:
            others = (0, -1, 2**40, 1e308, float("nan"), "x", "", [1, 2], b"\xff", True)
            handle.attrs[name] = others[int(random.integers(len(others)))]
        return
    name = names[int(random.integers(len(names)))]
    if name not in handle:
        return
    old = handle[name]
    kind = int(random.integers(7))
    if not isinstance(old, h5py.Dataset) or kind == 0:
        del handle[name]
        if random.random() < 0.5:
            handle[name] = h5py.SoftLink("/frames/positions")
        return
    values, shape = old[()], old.shape
    del handle[name]
    if kind == 1:
        handle.create_dataset(name, (2**40, *shape[1:]), "f4", chunks=(1, *map(int, shape[1:])))
    elif kind == 2:
        handle[name] = np.zeros((3, *shape), "f4")
    elif kind == 3:
        handle[name] = "text" if random.random() < 0.5 else np.array([b"a", b"b"])
    elif kind == 4 and isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = values.copy()
        values.flat[int(random.integers(max(1, values.size)))] = (np.nan, np.inf, 1e30)[kind % 3]
        handle[name] = values
    elif kind == 5 and isinstance(values, bytes) and values[:1] in (b"{", b"["):
        handle[name] = damage_json(values.decode(), random)
    elif kind == 6 and isinstance(values, np.ndarray) and values.ndim:
        handle[name] = values[: len(values) // 2]
    else:
        handle[name] = h5py.ExternalLink("other.h5", "/x")


def texts_in_heap(path: Path) -> None:
    """Write the texts of an HDF5 file anew as h5py does: of no fixed length, in a heap."""
    import h5py

    with h5py.File(path, "r+") as handle:
        for owner in (handle, *handle.values()):
            for name, value in owner.attrs.items():
                if isinstance(value, bytes):
                    owner.attrs[name] = value.decode()
        for name, data in handle.items():
            if isinstance(data, h5py.Dataset) and data.dtype.kind == "S":
                text = data[()].decode()
                del handle[name]
                handle[name] = text


# ---------------------------------------------------------------- readers


@dataclass(frozen=True)
class Reader:
    """One kind of file and what reads it.

    Attributes:
        name: for the report.
        file: a whole file.
        read: reads a file of that kind, all of it.
        damage: makes a damaged one.
        beside: further files, which stay whole, by name.
    """

    name: str
    file: Path
    read: Callable[[Path], Any]
    damage: Callable[[bytes, np.random.Generator], bytes]
    beside: dict[str, Path] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of the damaged files of one reader."""

    name: str
    counts: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


def damaged(reader: Reader, seed: int, number: int) -> bytes:
    """Return the damaged file of a number."""
    random = np.random.default_rng([seed, number, *reader.name.encode()])
    with np.errstate(all="ignore"):
        return reader.damage(reader.file.read_bytes(), random)


def run(reader: Reader, folder: Path, count: int, seed: int, first: int = 0) -> Outcome:
    """Read damaged files in processes of their own; a new one after each that dies or hangs."""
    outcome = Outcome(reader.name)
    started, number = time.perf_counter(), first
    while number < first + count:
        number = _batch(reader, folder, seed, number, first + count, outcome)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _batch(
    reader: Reader, folder: Path, seed: int, number: int, end: int, outcome: Outcome
) -> int:
    """Read from `number` on in one process; return the first number that it did not come to."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            _child(reader, folder, seed, number, end, send)
            os._exit(0)
        finally:
            os._exit(3)
    os.close(send)
    with os.fdopen(receive, "rb", buffering=0) as answers:
        lines = b""
        while number < end:
            if not select.select([answers], [], [], SECONDS)[0]:
                os.kill(child, signal.SIGKILL)
                outcome.failures.append((number, "hang"))
                outcome.counts["hang"] += 1
                number += 1
                break
            got = answers.read(65536)
            if not got:
                break
            *whole, lines = (lines + got).split(b"\n")
            for line in whole:
                kind = line.decode(errors="replace")
                outcome.counts[kind.partition(" ")[0]] += 1
                if not kind.startswith(("read", "refused")):
                    outcome.failures.append((number, kind))
                number += 1
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL and number < end:
        outcome.failures.append((number, f"crash by signal {os.WTERMSIG(status)}"))
        outcome.counts["crash"] += 1
        number += 1
    elif os.WIFEXITED(status) and os.WEXITSTATUS(status) and number < end:
        outcome.failures.append((number, f"exit {os.WEXITSTATUS(status)}"))
        outcome.counts["crash"] += 1
        number += 1
    return number


def _child(reader: Reader, folder: Path, seed: int, number: int, end: int, send: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    warnings.simplefilter("ignore")
    if place := os.environ.get("OPENMM_CGML_FUZZ_STACKS"):
        import faulthandler

        faulthandler.dump_traceback_later(0.8 * SECONDS, file=open(place, "a"))
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    place = folder / str(os.getpid())
    place.mkdir()
    os.chdir(place)
    for name, path in reader.beside.items():
        (place / name).write_bytes(path.read_bytes())
    file = place / f"damaged{reader.file.suffix}"
    for k in range(number, end):
        try:
            file.write_bytes(damaged(reader, seed, k))
        except Exception:  # nothing that could be damaged so: one byte less
            file.write_bytes(reader.file.read_bytes()[:-1])
        try:
            with np.errstate(all="ignore"):
                reader.read(file)
            answer = "read"
        except cgml.CGMLError:
            answer = "refused"
        except BaseException as error:
            where = error.__traceback__
            while where.tb_next is not None:
                where = where.tb_next
            name = Path(where.tb_frame.f_code.co_filename).name
            answer = f"{type(error).__name__} {name}:{where.tb_lineno} {str(error)[:100]!r}"
        os.write(send, answer.replace("\n", " ").encode() + b"\n")
