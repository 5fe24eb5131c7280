"""The flow file: weights and a card that describes the flow; plain tensors, no program."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .archives import most_expanded, read_zip, without_folder
from .errors import InputError, ModelFileError, first_line
from .files import atomic_path, require_file
from .flow.core import Density, Flow, build
from .flow.fiber import FiberFlow
from .script_archives import require_tensors
from .tensor_budget import limited_tensors
from .texts import parse_json

if TYPE_CHECKING:  # lightning takes seconds to import
    from .train import FitResult

#: Version of the card's layout; a reader refuses newer ones.
SCHEMA_VERSION = 1


def save_flow(path: str | Path, result: "FitResult | Density") -> None:
    """Write a flow file; an existing one is replaced only when the new one is complete.

    Args:
        path: usually ``*.flow``.
        result: what `fit_flow` returned, or a bare flow.

    Raises:
        InputError: if it is neither, or the path cannot be written.
    """
    from .version import __version__

    pmf = getattr(result, "pmf", None)
    flow = result if isinstance(result, Density) else getattr(pmf, "flow", None)
    if not isinstance(flow, Density):
        raise InputError("this is no flow; give what fit_flow returned, or save_model for a PMF")
    card: dict[str, Any] = {
        "kind": "flow",
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "architecture": flow.architecture(),
    }
    if not isinstance(result, Density):
        card |= {
            "training": {**result.metrics, "history": result.history},
            "mapping": result.dataset.mapping,
            "data_sources": result.dataset.sources,
            "data_bias": result.dataset.bias,
        }
    weights = {name: value.detach().cpu() for name, value in flow.state_dict().items()}
    with atomic_path(path) as partial:
        torch.save({"card": json.dumps(card), "weights": weights}, partial)


def load_flow(path: str | Path) -> Flow:
    """Read a flow file; the flow is in double precision and eval mode.

    Raises:
        ModelFileError: if it is no flow file, damaged or of a newer version.
    """
    flow = _load(path)
    if not isinstance(flow, Flow):
        raise ModelFileError(
            f"{path} holds a split-flow, a density of atoms at given beads; give a flow from "
            "`cgml flow train`"
        )
    return flow


def load_split_flow(path: str | Path) -> FiberFlow:
    """Read a split-flow, which is in double precision and eval mode.

    Raises:
        ModelFileError: if it is none, damaged or of a newer version.
    """
    flow = _load(path)
    if not isinstance(flow, FiberFlow):
        raise ModelFileError(
            f"{path} holds a flow of beads alone; give a split-flow from `cgml flow split`"
        )
    return flow


def _load(path: str | Path) -> Density:
    card, weights = _read(path)
    try:
        with limited_tensors(most_expanded(Path(path).stat().st_size)):
            flow = build(card["architecture"])
            flow.double()
            flow.load_state_dict(weights)
    except Exception as error:  # any, of a constructor that gets what it does not expect
        raise ModelFileError(f"{path}: weights do not fit: {first_line(error)}") from error
    return flow.eval()


def read_flow_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a flow file.

    Raises:
        ModelFileError: as `load_flow`.
    """
    return _read(path)[0]


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the card and the weights of a flow file, checked as data before torch reads it."""
    raw = require_file(path, "flow file").read_bytes()
    try:
        require_tensors(without_folder(read_zip(raw)))
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        card = parse_json(content["card"])
        found = card["kind"], int(card["schema_version"])
        weights = dict(content["weights"])
    except Exception as error:  # torch.load raises anything for files that are none of its own
        raise ModelFileError(
            f"{path} is no flow file, or damaged ({first_line(error)}); write one by "
            "`cgml flow train`"
        ) from error
    if found[0] != "flow" or found[1] > SCHEMA_VERSION:
        raise ModelFileError(
            f"{path} is of kind {found[0]!r}, version {found[1]}; this program reads flows up to "
            f"version {SCHEMA_VERSION}: update openmm_cgml"
        )
    return card, weights
