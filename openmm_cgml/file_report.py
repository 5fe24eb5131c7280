"""A page about any file that the package writes: which kind it is, and the page of that kind."""

import zipfile
from pathlib import Path
from typing import Any

from .card_page import write_flow_page, write_model_page
from .dataset_page import write_collection_page, write_dataset_page
from .errors import InputError
from .files import require_file, segments_folder
from .hdf5_files import kind_of, open_hdf5_file
from .run_page import write_run_page
from .run_view import RunChoices

#: Kinds of files that have pages.
KINDS = ("run", "dataset", "collection", "model", "flow", "split-flow")

_HDF5 = b"\x89HDF\r\n\x1a\n"
# Bytes of a run's file that are read whole; of longer ones every so many frames.
_RUN_BYTES = 600_000_000


def recognise(file: str | Path) -> str:
    """Return which of the package's kinds a file is, by what is in it; flows are one kind.

    Raises:
        InputError: if it is missing, or none of them.
    """
    path = Path(file)
    if not path.exists() and segments_folder(path).is_dir():
        return "run"
    require_file(path)
    with open(path, "rb") as handle:
        head = handle.read(8)
    if head == _HDF5:
        try:
            with open_hdf5_file(path) as opened:
                kind = kind_of(opened)
        except InputError:
            raise
        except Exception as error:  # h5py has one for every kind of damage
            raise InputError(f"{path} is damaged or cut short; make it again") from error
        if kind in KINDS:
            return kind
        raise InputError(f"{path} is a {kind}, of which there is no page; give a {_named()}")
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise InputError(f"{path} is damaged or cut short; make it again") from error
        if any(name.endswith("/extra/card.json") for name in names):
            return "model"
        if any(name.endswith("/data.pkl") for name in names):
            return "flow"
    raise InputError(f"{path} is no file of this package, or damaged; give a {_named()}")


def write_file_report(
    file: str | Path, page: str | Path, choices: RunChoices | None = None
) -> dict[str, Any]:
    """Write a self-contained HTML page about a file that the package wrote.

    Args:
        file: a run (finished, going on or killed), a dataset (weighted samples among them), a
            collection, a model, a flow or a split-flow.
        page: the .html file.
        choices: what the page of a run shows.

    Returns:
        The page's numbers, JSON-able; ``kind`` says which it is.

    Raises:
        InputError: if it is none of them, or cannot be read.
    """
    path, kind = Path(file), recognise(file)
    title = path.name
    if choices is not None and kind != "run":
        raise InputError(f"{path} is a {kind}; these choices are for a run")
    if kind == "run":
        from .run_file import read_run

        stride = -(-_run_bytes(path) // _RUN_BYTES)
        run = read_run(path, stride=max(1, stride))
        return write_run_page(
            page, run, title=f"Run {title}", choices=choices, stride=max(1, stride)
        )
    if kind == "dataset":
        from .dataset import read_dataset

        return write_dataset_page(page, read_dataset(path), title=f"Dataset {title}")
    if kind == "collection":
        from .collection import read_collection

        return write_collection_page(page, read_collection(path), title=f"Collection {title}")
    if kind == "model":
        from .model_file import read_model_file

        return write_model_page(page, read_model_file(path).card, title=f"Model {title}")
    from .flow_file import read_flow_card

    return write_flow_page(page, read_flow_card(path), title=f"Flow {title}")


def _run_bytes(path: Path) -> int:
    folder = segments_folder(path)
    parts = [*folder.glob("*.h5")] if folder.is_dir() else []
    return sum(part.stat().st_size for part in ([path] if path.exists() else []) + parts)


def _named() -> str:
    return ", ".join(KINDS[:-1]) + f" or {KINDS[-1]}"
