"""tools/test_results.py: the page that `make test-all` writes says what its reports say."""

import runpy
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
tool = types.SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "test_results.py")))

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="one" time="1.5"/>
<testcase classname="tests.test_a" name="two" time="60"><failure message="no | good"/></testcase>
<testcase classname="tests.test_b.TestX" name="three" time="0.1">
<skipped message="no CUDA device, see /home/someone/place/file.py"/></testcase>
</testsuite></testsuites>"""


def test_page(tmp_path):
    (tmp_path / "one.xml").write_text(REPORT, encoding="utf-8")
    (tmp_path / "two.xml").write_text(
        '<testsuite><testcase classname="tests.test_a" name="two" time="2"/></testsuite>',
        encoding="utf-8",
    )
    first = tool.read(tmp_path / "one.xml")
    assert [(r.file, r.outcome) for r in first] == [
        ("test_a", "passed"), ("test_a", "failed"), ("test_b", "skipped"),
    ]  # fmt: skip
    text = tool.page(first, {"date": "today"})
    assert "| tests | 1 passed, 1 failed, 1 skipped |" in text
    assert "| `test_a` | 1 | 1 |  | 62 |" in text and "- `test_a`: `two`" in text
    assert "| 1 | no CUDA device, see file.py |" in text and "/home" not in text
    # Run again in a part: the later outcome counts.
    text = tool.page(first + tool.read(tmp_path / "two.xml"), {})
    assert "| tests | 2 passed, 1 skipped |" in text and "Failed" not in text


def test_machine_names_versions():
    about = tool.machine()
    assert "torch 2." in about["versions"] and "cores" in about["machine"]
