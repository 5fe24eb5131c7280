"""The documentation builds without a warning, and everything in it can be reached.

Sphinx with `-W` and nitpicky references is most of the test: missing pages, anchors, images,
orphans and names in docstrings are warnings. The rest looks at the pages that came out.
"""

import importlib.util
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("sphinx", "myst_parser", "furo")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="needs the extra docs: sphinx, myst-parser, furo",
)


class Page(HTMLParser):
    """The links, anchors, images and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.loaded: set[str] = set()
        self.without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if identifier := found.get("id"):
            self.anchors.add(identifier)
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        if tag in ("script", "img") and found.get("src"):
            self.loaded.add(found["src"])
        if tag == "link" and found.get("rel") == "stylesheet":
            self.loaded.add(found["href"])
        if tag == "img" and not found.get("alt"):
            self.without_text.append(found.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    places = [folder / "doctrees", ROOT / "docs", folder / "html"]
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def inside(site: Path, page: str, target: str) -> tuple[str, str] | None:
    """The page and the anchor that a link leads to; None: out of the site."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    full = (site / page).parent / path if path else site / page
    return full.resolve().relative_to(site.resolve()).as_posix(), unquote(anchor)


def test_links_and_anchors_lead_somewhere(site, pages):
    for name, page in pages.items():
        for target in page.links:
            found = inside(site, name, target)
            if found is None:
                continue
            path, anchor = found
            path = "index.html" if path == "." else path
            assert (site / path).exists(), f"{name}: {target}"
            if anchor and path in pages:
                assert anchor in pages[path].anchors, f"{name}: {target}"


def test_every_page_is_reached_from_the_front(site, pages):
    seen, todo = set(), ["index.html"]
    while todo:
        name = todo.pop()
        if name in seen or name not in pages:
            continue
        seen.add(name)
        links = (inside(site, name, target) for target in pages[name].links)
        todo += [found[0] for found in links if found is not None]
    written = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert written <= seen, f"cannot be reached: {sorted(written - seen)}"


def test_nothing_comes_from_another_server(pages):
    """Pages, formulas included, are whole without a network (MathJax would be a server's)."""
    pytest.importorskip("latex2mathml")
    for name, page in pages.items():
        for source in page.loaded:
            assert not re.match(r"(https?:)?//", source), f"{name}: {source}"


def test_images_are_there_and_say_what_they_show(site, pages):
    for name, page in pages.items():
        assert not page.without_text, f"{name}: {page.without_text} without a text"
        for source in page.loaded:
            if not re.match(r"(https?:|data:|//)", source):
                path = source.partition("?")[0]
                assert ((site / name).parent / path).exists(), f"{name}: {source}"


def test_formulas_have_no_unknown_commands(site):
    """What the converter does not know, it writes as letters after a backslash."""
    pytest.importorskip("latex2mathml")
    count = 0
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        for formula in re.findall(r"<math .*?</math>", text, re.S):
            count += 1
            shown = re.sub(r"<[^>]*>", "", formula)
            assert "\\" not in shown, f"{path.name}: {shown}"
    assert count > 100


def test_every_export_and_module_is_in_the_api_reference(site):
    import openmm_cgml as cgml

    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]  # after four lines of head
    described = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    for name in [*cgml._EXPORTS, *cgml.__all__]:
        found = getattr(cgml, name)
        inside = getattr(found, "__qualname__", None)  # tables have none
        full = f"{found.__module__}.{inside}" if inside else f"openmm_cgml.{name}"
        assert full in described or name == "__version__", full
    text = (site / "api.html").read_text(encoding="utf-8")
    listed = re.findall(r"<tr.*?<td><p><code[^>]*>(.*?)</code>", text, re.S)
    listed = [re.sub(r"<[^>]*>", "", one) for one in listed]
    package = Path(cgml.__file__).parent
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        if path.stem != "__main__":
            assert listed.count(module) == 1, module


def test_every_command_is_in_the_reference(site):
    import typer

    from openmm_cgml.cli import app

    text = (site / "cli.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]*>", "", text)
    for name, command in typer.main.get_command(app).commands.items():
        for inner, one in getattr(command, "commands", {"": command}).items():
            assert f"cgml {name} {inner}".strip() in plain
            for parameter in one.params:
                if parameter.param_type_name == "option":
                    assert parameter.opts[0].replace("--", "") in plain, parameter.opts
