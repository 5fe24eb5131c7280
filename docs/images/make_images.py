"""Make the figures of the documents from what commands and benchmarks wrote.

Usage: python docs/images/make_images.py demo/report.html   # of cgml quickstart
       python docs/images/make_images.py benchmarks/results/networks.json
"""

import base64
import io
import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")


def free_energy_maps(report: Path) -> None:
    """Write the report's map of free energies, quantised so that the repository stays small."""
    page = report.read_text(encoding="utf-8")
    data = re.search(
        r"alt='Free energy over two dihedrals[^']*' src='data:image/png;base64,([A-Za-z0-9+/=]+)",
        page,
    )
    if data is None:
        sys.exit(f"{report} holds no map of free energies; give the report of cgml quickstart")
    image = Image.open(io.BytesIO(base64.b64decode(data.group(1)))).convert("RGB")
    _write(image, "free_energy_maps.png")


def protein(record: Path) -> None:
    """Draw distributions and contacts of the protein beside those of the data."""
    import matplotlib.pyplot as plt

    found = json.loads(record.read_text())["details"]["protein"]["distributions"]
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained")
    for axis, name in zip(axes[:2], ("RMSD", "radius of gyration"), strict=True):
        edges = np.array(found[name]["edges"])
        for label, colour in (("data", "black"), ("model", "tab:blue")):
            axis.stairs(found[name][label], edges, label=label, color=colour)
        axis.set_xlabel(f"{name} / nm")
        axis.set_ylabel("density / nm$^{-1}$")
        axis.legend(frameon=False)
    pairs = {label: np.array(found["contacts"][label]) for label in ("data", "model")}
    beads = round((5 + (1 + 8 * len(pairs["data"])) ** 0.5) / 2)
    image = np.full((beads, beads), np.nan)
    first, second = np.triu_indices(beads, 3)
    image[second, first], image[first, second] = pairs["data"], pairs["model"]
    shown = axes[2].imshow(image, vmin=0, vmax=1, cmap="viridis", origin="lower")
    axes[2].set_xlabel("residue (above the diagonal: data)")
    axes[2].set_ylabel("residue (below: model)")
    axes[2].set_xticks(range(0, beads, 3), range(1, beads + 1, 3))
    axes[2].set_yticks(range(0, beads, 3), range(1, beads + 1, 3))
    figure.colorbar(shown, ax=axes[2], label="contact probability")
    page = io.BytesIO()
    figure.savefig(page, dpi=110)
    _write(Image.open(page).convert("RGB"), "networks_protein.png")


def _write(image: Image.Image, name: str) -> None:
    # Maximum coverage keeps the rare dark colours of the difference map; median cut drops them.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    small = image.quantize(256, method=method, kmeans=5, dither=dither)
    small.save(Path(__file__).with_name(name), optimize=True)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    (protein if source.suffix == ".json" else free_energy_maps)(source)
