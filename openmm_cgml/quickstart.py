"""The whole road on the data that ships with the package: what ``cgml quickstart`` runs."""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .analysis import Comparison, compare
from .errors import InputError
from .files import atomic_path
from .mapping import MAPPINGS
from .report import write_report
from .run_file import segments_folder

logger = logging.getLogger(__name__)

_BORROWED = (
    "Starts were drawn by frame weight from the reweighted training data and each copy ran for "
    "{ps:.0f} ps, so the populations of states that exchange more slowly are partly those of the "
    "training data, not the model's own. The shapes of the basins are the model's."
)


@dataclass(frozen=True)
class Effort:
    """How much work the quickstart does.

    Attributes:
        epochs: of training.
        copies: simulated in one Context.
        ps: length of each copy's trajectory.
        discard_ps: of it, left out of the comparison.
        stride: every how many frames of the data are used.
    """

    epochs: int = 50
    copies: int = 512
    ps: float = 40.0
    discard_ps: float = 1.0
    stride: int = 1


FULL = Effort()
QUICK = Effort(epochs=4, copies=100, ps=3.0, stride=4)


def quickstart(
    output: str | Path,
    *,
    effort: Effort = FULL,
    backend: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Map, train, export, simulate and compare; write everything into a folder.

    Args:
        output: folder; made if missing. Files of an earlier quickstart in it are replaced.
        effort: `FULL` (minutes) or `QUICK` (seconds, not converged).
        backend: as in `Model.create_force`.
        seed: of weights, batches, starts and noise.
        progress: show progress bars; None: if the output is a terminal.

    Returns:
        The summary, which is also ``summary.json``.

    Raises:
        InputError: if the folder cannot be made.
    """
    from .dataset import map_trajectory
    from .force import choose_backend
    from .model_file import save_model
    from .pmf import PMFS
    from .pmf.core import SumPMF
    from .pmf.prior import fit_prior
    from .simulate import Langevin
    from .system import load_model
    from .train import fit
    from .trajectory import read_trajectory

    backend = choose_backend(backend)  # before minutes are spent
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make folder {folder}: {error.strerror}; choose another"
        ) from None
    for old in ("run.h5", "report.html", "summary.json"):
        (folder / old).unlink(missing_ok=True)
    shutil.rmtree(segments_folder(folder / "run.h5"), ignore_errors=True)
    started = time.perf_counter()
    data = resources.files(__package__) / "data" / "quickstart"
    setup = json.loads((data / "quickstart.json").read_text(encoding="utf-8"))
    with resources.as_file(data) as files:
        trajectory = read_trajectory(files / setup["trajectory"], top=files / setup["topology"])
        logger.info("mapping %s", setup["title"])
        dataset = map_trajectory(
            trajectory,
            MAPPINGS[setup["mapping"]](trajectory.topology),
            temperature=setup["temperature_K"],
            force_map="optimal",
            constraints=files / setup["system"],
            bias=setup["bias"],
            output=folder / "dataset.h5",
        ).select(slice(None, None, effort.stride))
        train, valid = dataset.split(0.9)
        logger.info("training on %d frames, %d epochs", len(train), effort.epochs)
        clock = time.perf_counter()
        result = fit(
            SumPMF(fit_prior(train), PMFS["cgnet"](train, seed=seed)),
            train,
            valid,
            epochs=effort.epochs,
            seed=seed,
            progress=progress,
        )
        train_seconds = time.perf_counter() - clock
        save_model(folder / "model.pt", result)
        model = load_model(folder / "model.pt")
        simulation = Langevin(model, dataset, copies=effort.copies, seed=seed, backend=backend)
        logger.info("simulating %d copies, %.0f ps each", effort.copies, effort.ps)
        run = simulation.run(
            folder / "run.h5", ns=effort.ps / 1000, interval=0.2, progress=progress
        )
        comparison = compare(
            run,
            files / setup["reference"],
            setup["dihedrals"],
            temperature=setup["temperature_K"],
            state=tuple(setup["state"]),
            discard_ps=effort.discard_ps,
        )
    summary = _summary(comparison, dataset, result.metrics, train_seconds, run.info)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_report(
        folder / "report.html",
        comparison,
        title=setup["title"],
        lead=(
            f"A force field learned from {len(dataset):,} all-atom frames by force matching, run "
            f"as {effort.copies} copies in one OpenMM Context, against an independent all-atom "
            "reference."
        ),
        labels=tuple(setup["labels"]),
        training=model.card["training"],
        run=run.info,
        notes=[_BORROWED.format(ps=effort.ps)],
    )
    with atomic_path(folder / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _summary(
    comparison: Comparison,
    dataset: Any,
    metrics: dict[str, Any],
    train_seconds: float,
    info: dict[str, Any],
) -> dict[str, Any]:
    numbers = comparison.record()
    # The demo's two dihedrals are phi and psi; its readers look for these names.
    named = {k.replace("js", "js_phi_psi", 1): v for k, v in numbers.items()}
    return {
        "backend": info["backend"],
        "platform": info["platform"],
        "frames": len(dataset),
        "train_seconds": round(train_seconds, 1),
        "force_rmse": metrics["force_rmse"],
        "force_noise_floor": metrics["force_noise_floor"],
        "force_model_error": metrics["force_model_error"],
        "copies": info["copies"],
        "replica_steps_per_second": info["replica_steps_per_second"],
        **named,
        "versions": info["versions"],
    }
