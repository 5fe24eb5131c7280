"""Make docs/images/free_energy_maps.png from the report of ``cgml quickstart``.

Usage: python docs/images/make_images.py demo/report.html
"""

import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image


def main(report: Path) -> None:
    """Write the report's first figure, quantised so that the repository stays small."""
    page = report.read_text(encoding="utf-8")
    data = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    if data is None:
        sys.exit(f"{report} holds no figure; give the report of cgml quickstart")
    image = Image.open(io.BytesIO(base64.b64decode(data.group(1)))).convert("RGB")
    target = Path(__file__).with_name("free_energy_maps.png")
    # Maximum coverage keeps the rare dark colours of the difference map; median cut drops them.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    image.quantize(256, method=method, kmeans=5, dither=dither).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
