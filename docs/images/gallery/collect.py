"""Copy pictures that examples wrote into the gallery, quantised: the repository stays small.

Usage: python docs/images/gallery/collect.py 15=roads/roads.png 17=umbrella/free_energy.png
"""

import sys
from pathlib import Path

from PIL import Image

#: Of a picture, bytes.
MOST = 120_000


def collect(name: str, source: Path) -> int:
    """Write one picture with as many colours, and as wide, as fit; return its size in bytes."""
    target = Path(__file__).with_name(f"{name}.png")
    image = Image.open(source).convert("RGB")
    for colours in (256, 128, 64):
        small = image.quantize(
            colours, method=Image.Quantize.MAXCOVERAGE, kmeans=5, dither=Image.Dither.NONE
        )
        small.save(target, optimize=True)
        if target.stat().st_size <= MOST:
            return target.stat().st_size
    sys.exit(f"{source} has {target.stat().st_size} bytes with 64 colours; draw it smaller")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, _, source = argument.partition("=")
        print(name, collect(name, Path(source)), "bytes")
