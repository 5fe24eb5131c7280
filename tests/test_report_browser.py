"""Every page in a real browser: on a phone, on a screen, in print."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from every_page import every_page
from test_page import KINDS

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome")
                 if (p := shutil.which(n))), None)  # fmt: skip
PHONE, SCREEN = 375, 1100

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

# Run in the page when it is loaded; the frame around it writes its answer down.
PROBE = r"""
addEventListener('error', e => errors.push(String(e.message || e.target.src || 'error')), true);
const errors = [], say = console.error;
console.error = (...a) => { errors.push(a.join(' ')); say(...a); };
addEventListener('load', () => {
  const shown = document.documentElement;
  const lum = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const rgb = t => t.match(/[\d.]+/g).map(Number);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.99) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let contrast = 99, smallest = 99;
  const outside = [];
  for (const e of document.querySelectorAll('main *')) {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    const box = e.getBoundingClientRect();
    if (text && box.width) {
      const style = getComputedStyle(e);
      const [a, b] = [lum(rgb(style.color).slice(0, 3)), lum(ground(e))].sort((x, y) => x - y);
      contrast = Math.min(contrast, (b + 0.05) / (a + 0.05));
      smallest = Math.min(smallest, parseFloat(style.fontSize));
    }
    if (box.right > innerWidth + 1 && !e.closest('.wide') && !e.closest('figure.panels'))
      outside.push(e.tagName);
  }
  const images = [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth]);
  parent.postMessage(JSON.stringify({
    width: innerWidth, scroll: shown.scrollWidth, outside, images, contrast, smallest, errors,
    asked: performance.getEntriesByType('resource').map(r => r.name)
      .filter(n => !n.startsWith('data:')),
  }), '*');
});
"""
# A frame as wide as a phone: chromium's windows are 500 pixels wide at least.
FRAME = """<!doctype html><html><body style="margin:0"><pre id="probe"></pre><script>
addEventListener('message', e => document.getElementById('probe').textContent = e.data);
</script><iframe src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>
</body></html>"""


def browse(profile: Path, width: int, *arguments: str) -> str:
    """Run chromium without a screen; return what it prints."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
        f"--window-size={width},900", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout


def probe(page: Path, width: int, folder: Path) -> dict:
    """What the page measures when it is shown so many pixels wide."""
    probed = folder / f"{page.stem}-{width}.html"
    text = page.read_text(encoding="utf-8")
    probed.write_text(text.replace("</head>", f"<script>{PROBE}</script></head>", 1))
    frame = folder / f"frame-{page.stem}-{width}.html"
    frame.write_text(FRAME.format(page=probed.as_uri(), width=width, height=900))
    shown = browse(
        folder / f"profile-{page.stem}-{width}", SCREEN, "--virtual-time-budget=4000",
        "--dump-dom", frame.as_uri(),
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', shown, re.S)
    assert found, f"{page.name} was not loaded"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory, data, dataset, model, setup) -> dict[str, Path]:
    return every_page(tmp_path_factory.mktemp("pages"), data, dataset, model, setup)


@pytest.mark.parametrize("width", [PHONE, SCREEN])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_phone_and_on_a_screen(pages, kind, width, tmp_path) -> None:
    found = probe(pages[kind], width, tmp_path)
    assert found["width"] == width
    assert found["scroll"] <= width and found["outside"] == []
    assert found["errors"] == [] and found["asked"] == []
    assert found["contrast"] >= 4.5 and found["smallest"] >= 11
    for natural, height, shown in found["images"]:
        assert natural > 300 and height > 100 and shown >= 0.8 * min(width, 400)


def test_the_probe_sees_what_is_wrong(tmp_path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><html><head></head><body><main><p style='width:900px;color:#bbb'>x</p>"
        "<img src='https://example.invalid/x.png'></main><script>nothing()</script></body></html>"
    )
    found = probe(page, PHONE, tmp_path)
    assert found["scroll"] > PHONE and found["outside"] == ["P"] and found["contrast"] < 2
    assert any("nothing is not defined" in error for error in found["errors"])
    assert found["images"][0][0] == 0 and found["asked"] == ["https://example.invalid/x.png"]


@pytest.mark.parametrize("kind", ["run", "comparison", "dataset", "reweighting"])
def test_in_print(pages, kind, tmp_path) -> None:
    """A4, folded tables open, and text and figures on it."""
    printed = tmp_path / "page.pdf"
    browse(tmp_path / "profile", SCREEN, "--no-pdf-header-footer", f"--print-to-pdf={printed}",
           pages[kind].as_uri())  # fmt: skip
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    sizes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", content)
    assert sizes and all(abs(float(w) - 595) < 2 and abs(float(h) - 842) < 2 for w, h in sizes)
    images = pages[kind].read_text(encoding="utf-8").count("<img")
    assert len(re.findall(rb"/Subtype\s*/Image", content)) >= min(images, 1)
    if pdftotext := shutil.which("pdftotext"):
        text = subprocess.run([pdftotext, printed, "-"], capture_output=True, text=True).stdout
        assert kind != "run" or "ab" * 32 in text.replace("\n", "")


def test_a_picture_of_a_page(pages, tmp_path) -> None:
    picture = tmp_path / "page.png"
    browse(tmp_path / "profile", SCREEN, f"--screenshot={picture}", pages["run"].as_uri())
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert int.from_bytes(content[16:20], "big") == SCREEN
