"""Every page that the package writes: structure, text for figures, nothing from the network."""

import re
import struct
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from every_page import every_page

from openmm_cgml.page import figure, grid, row, table, write_page

VOID = {"meta", "link", "img", "br"}
KINDS = (
    "run", "unfinished", "exchange", "dataset", "liquid", "collection", "model", "flow",
    "split-flow", "comparison", "reweighting", "backmapping", "entropy", "mappings",
)  # fmt: skip


class Page(HTMLParser):
    """Elements with their attributes, text by element, and whether all are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, text) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, data, dataset, model, setup) -> dict[str, Path]:
    return every_page(tmp_path_factory.mktemp("pages"), data, dataset, model, setup)


def test_there_is_one_of_each_kind(pages) -> None:
    assert set(pages) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_structure(pages, kind) -> None:
    text = pages[kind].read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert text.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("title")) == len(page.all("main")) == 1
    assert page.text["h1"] == page.text["title"] and page.text["h1"][0].strip()
    assert any(m.get("name") == "viewport" for m in page.all("meta"))
    # Headings go down one step at a time.
    levels = [int(name[1]) for name, _, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)) and levels[0] == 1
    for scope in page.all("th"):
        assert scope.get("scope") in ("row", "col")
    for name, _, inside in page.elements:
        if name == "table":
            assert "div" in inside  # wide ones scroll in it
        if name == "h2":
            assert "p" not in inside and "figure" not in inside
    assert "nan" not in " ".join(page.text.get("dd", []))


@pytest.mark.parametrize("kind", KINDS)
def test_figures_say_what_they_show(pages, kind) -> None:
    page = Page(pages[kind].read_text(encoding="utf-8"))
    images = page.all("img")
    assert len(images) == len(page.all("figure")) == len(page.text.get("figcaption", []))
    for image in images:
        assert len(image["alt"] or "") > 30
        png = b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        assert png.startswith(b"\x89PNG")
        assert struct.unpack(">II", png[16:24]) == (int(image["width"]), int(image["height"]))
        # Text is as large as a phone needs it where one panel is as wide as the phone.
        assert (int(image["width"]) <= 800) == (image.get("class") == "small")
    for tag, _, inside in page.elements:
        assert tag != "img" or "figure" in inside
    if kind in ("run", "unfinished", "exchange", "dataset", "model", "comparison"):
        assert images


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_asked_of_the_network(pages, kind) -> None:
    text = pages[kind].read_text(encoding="utf-8")
    page = Page(text)
    for name, attributes, _ in page.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            if key in attributes:
                assert (attributes[key] or "").startswith("data:"), (name, attributes)
    style = "".join(page.text["style"])
    assert "url(" not in style and "@import" not in style
    assert "@media print" in style and "@page" in style and "max-width: 600px" in style
    assert "eval(" not in text and "fetch(" not in text


def test_provenance_is_folded_at_the_foot(pages) -> None:
    page = Page(pages["run"].read_text(encoding="utf-8"))
    ((attributes),) = page.all("details")
    assert "open" not in attributes and page.text["summary"][0].startswith("Provenance")
    cells = page.text["td"] + page.text["th"]
    assert "ab" * 32 in cells and "versions openmm" in cells and "8.5.2" in cells


def test_text_is_escaped(tmp_path) -> None:
    write_page(
        tmp_path / "p.html", "A <b> & 'c'", "lead <i>", ["note <script>"], [("1 <", "k & 'x'")],
        [table({"<k>": "<v>"}), grid(("<h>",), [("<r>",)])], {"<p>": {"<q>": "<r>"}},
    )  # fmt: skip
    page = Page((tmp_path / "p.html").read_text())
    assert page.text["h1"] == ["A <b> & 'c'"] and page.text["dt"] == ["k & 'x'"]
    names = {name for name, _, _ in page.elements}
    assert not names & {"b", "i", "k", "v", "h", "r", "q"} and len(page.all("script")) == 1
    assert "<p> <q>" in page.text["th"]


def test_pieces() -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + struct.pack(">II", 640, 480) + b"\0" * 9
    small = figure(png, "What 'it' <shows>.", small=True)
    assert (
        "width='640' height='480'" in small and "alt='What &#x27;it&#x27; &lt;shows&gt;.'" in small
    )
    assert "class='panels'" in figure(png, "x") and "class='panels'" not in small
    assert row([small, small]).count("<figure") == 2
    assert "<td>1.23457e-05</td>" in table({"x": 1.2345678e-5})


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    a, b = sorted((luminance(one), luminance(other)))
    return (b + 0.05) / (a + 0.05)


def test_colours_have_contrast(pages) -> None:
    """WCAG 2: 4.5 for text, on white and on the note's ground."""
    style = "".join(Page(pages["run"].read_text(encoding="utf-8")).text["style"])
    texts = set(re.findall(r"[{; ]color: (#[0-9a-f]{6})", style))
    assert len(texts) >= 3 and contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in texts:
        assert contrast(colour, "#ffffff") >= 4.5 and contrast(colour, "#fff7e0") >= 4.5


def test_files_of_one_name_are_all_told(tmp_path) -> None:
    """Pages name no folders, and lose no file by that."""
    from openmm_cgml.provenance import describe

    paths = [tmp_path / folder / "run.h5" for folder in ("a", "b")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_bytes(bytes(number))
    inputs = describe([*paths, None, paths[0]])["inputs"]
    assert list(inputs) == ["run.h5", "run.h5 (2)"] and len(set(inputs.values())) == 2
