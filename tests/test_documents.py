"""What the documents say is what happens: code runs and prints what they say, pictures are made, links lead somewhere.

How a page is run stands in `tools.pages`. Examples are run as scripts. The reference is made of docstrings, and must be fresh.
"""

from __future__ import annotations

import ast
import doctest
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import griffe
import numpy as np
import pytest
from PIL import Image

import streamwsi
from tests.helpers import BUNDLED
from tools import reference
from tools.pages import LANGUAGES, NEEDS_TORCH, ROOT, blocks, environment, expected_output, pictures, run_page, script_of

TUTORIALS = sorted(ROOT.glob("tutorials/*.md"))
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"), *TUTORIALS]
)
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def need_torch(text: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip(f"{text} needs PyTorch, which is not installed")


@pytest.mark.parametrize("page", [page for page in PAGES if script_of(page)], ids=relative)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    if NEEDS_TORCH in page.read_text(encoding="utf-8"):
        need_torch(page.name)
    done = run_page(page, tmp_path)
    assert done.returncode == 0, done.stdout
    place = 0
    for expected in expected_output(page):
        found = re.compile(expected, re.MULTILINE).search(done.stdout, place)
        assert found, f"{page.name} says that its code prints\n{expected}\nbut it prints\n{done.stdout[place:]}"
        place = found.end()
    for name in pictures(page) if page in TUTORIALS else []:
        assert looks_like(tmp_path / name, page.parent / "images" / name), f"make docs: {page.name} makes another {name}"


def looks_like(made: Path, kept: Path) -> bool:
    """Whether two pictures show the same: other versions of matplotlib set texts a little differently."""
    with Image.open(made) as one, Image.open(kept) as other:
        shapes = np.array([one.size, other.size])
        small = [np.asarray(picture.convert("RGB").resize((40, 40), Image.Resampling.BOX), float) for picture in (one, other)]
    return bool(np.all(abs(shapes[0] / shapes[1] - 1) < 0.1)) and float(abs(small[0] - small[1]).mean()) < 6


def test_pictures_that_differ_are_told_apart() -> None:
    shown = [ROOT / "tutorials" / "images" / name for page in TUTORIALS for name in pictures(page)]
    assert len(shown) > 4
    for one in shown:
        assert [other for other in shown if looks_like(one, other)] == [one]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_no_code_hides_from_the_tests(page: Path) -> None:
    """Each fence is one that `tools.pages` finds, and each block of code has a language that it runs."""
    text = page.read_text(encoding="utf-8")
    if page == reference.REFERENCE:  # made of docstrings, whose examples are run as doctests
        assert set(re.findall(r"^\s*```(\w+)$", text, re.MULTILINE)) == {"text", "pycon"}
        return
    found = list(blocks(page))
    assert len(re.findall(r"^\s*(```|~~~)", text, re.MULTILINE)) == 2 * len(found)
    for block in found:
        assert block.language in LANGUAGES, f"{page.name}, line {block.first_line}: {block.language!r} is not run"
        if block.language == "":
            assert not re.search(r"^\s*(streamwsi \w+ \S|import |from \w+ import|sw\.|pip |git )", block.text, re.MULTILINE), (
                block.text
            )
        assert block.language != "pycon", f"{page.name}, line {block.first_line}: a python block would be run"
        if block.language == "toml":
            assert block.file is not None
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^(    |\t)\s*(streamwsi|import|from|>>>|\$) ", outside, re.MULTILINE)


def test_blocks_that_are_not_run_are_these() -> None:
    left_out = {relative(page): [block.why_not for block in blocks(page) if block.why_not] for page in PAGES}
    assert {name: len(reasons) for name, reasons in left_out.items() if reasons} == {"README.md": 2}


def test_files_that_a_page_saves_are_used_by_it() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.file is not None:
                others = [other.text for other in blocks(page) if other.is_run and other.file is None]
                module = re.escape(Path(block.file).stem)
                uses = rf"{module}\.pt" if block.language == "toml" and "transform" in block.text else re.escape(block.file)
                used = any(re.search(rf"{uses}|import {module}\b|from {module} ", text) for text in others)
                assert used or not block.is_run, f"{page.name}: {block.file} is saved and never used"


def test_the_readme_s_blocks_are_found() -> None:
    script = script_of(ROOT / "README.md")
    assert "sw.Pipeline(" in script and "sw.read_map(" in script and "streamwsi heatmap slides/" in script
    assert "my_model.py" in [block.file for block in blocks(ROOT / "README.md")]


def run(script: list[str | Path], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", *script],
        cwd=folder,
        env=environment(folder / "tmp"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_writes_where_it_is_told(example: Path, tmp_path: Path) -> None:
    text = example.read_text(encoding="utf-8")
    if "import torch" in text:
        need_torch(example.name)
    assert len(text.splitlines()) <= 40
    assert run([example, tmp_path / "out"], tmp_path)
    assert list((tmp_path / "out").rglob("report.json"))
    assert not list((tmp_path / "tmp").iterdir())


def test_a_collector_of_the_examples_can_be_named_on_the_command_line(tmp_path: Path) -> None:
    collector = f"{ROOT / 'examples' / 'own_collector.py'}:Redness"
    arguments = ["heatmap", BUNDLED, "--out", tmp_path / "out", "--collector", collector, "--arg", "threshold=0.2"]
    run(["-m", "streamwsi.cli", *arguments, "--format", "csv"], tmp_path)
    assert (tmp_path / "out" / "CMU-1-Small-Region.csv").read_text().startswith("slide,index,x,y,level,width,height,redness,")


@functools.cache
def names_of_tests_in(path: Path) -> set[str]:
    """What pytest finds in a file, as it is called there: functions, classes, and cases of state machines."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if name.lower().startswith("test")}


def test_every_test_that_a_promise_rests_on_is_there() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`([^`\s]+\.py)::([^`\s]+)`", text)
    assert len(named) > 90 and len(named) == text.count("::")
    for path, name in named:
        assert name in names_of_tests_in(ROOT / "tests" / path), (
            f"docs/reliability.md names tests/{path}::{name}, which is not there"
        )


def test_every_promise_rests_on_a_test() -> None:
    promises = 0
    for table in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("| promise | held by |\n|---|---|\n")[1:]:
        for row in table.partition("\n\n")[0].splitlines():
            assert "::test_" in row or "::Test" in row, row
            promises += 1
    assert promises > 50


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), f"{document.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(there), f"{document.name} links to {target}, but no title is called so"


def anchors(page: Path) -> set[str]:
    """What the titles of a page are called in links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_reference_is_what_the_docstrings_say() -> None:
    assert reference.REFERENCE.read_text(encoding="utf-8") == reference.reference(), "docstrings have changed: make docs"


def test_every_public_name_and_every_parameter_has_a_word_on_it() -> None:
    assert reference.gaps() == []


def test_what_has_no_docstring_is_found() -> None:
    """That the test before could fail: in a module with one class and one function, all that lacks a word is named."""
    source = "class Box:\n    lid: int\n    def open(self, key): 'Opens it.'\n\ndef find(place, depth): 'At a `place`.'\n"
    with griffe.temporary_visited_module(source) as module:
        box, find = module["Box"], module["find"]
        assert [member.name for member in reference.members(box) if not reference.docstring(member)] == ["lid"]
        assert [one.name for one in reference.unspoken(box["open"], reference.docstring(box["open"]))] == ["key"]
        assert [one.name for one in reference.unspoken(find, reference.docstring(find))] == ["depth"]


def test_examples_in_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran, left_out = 0, []
    finder = doctest.DocTestFinder(recurse=True)
    names = [getattr(streamwsi, name) for name in reference.public_names()]
    for thing in [streamwsi, *(name for name in names if getattr(name, "__doc__", None))]:
        for test in finder.find(
            thing, globs={"sw": streamwsi, "Batch": streamwsi.Batch, **vars(streamwsi), **of_module(thing)}
        ):
            left_out += [test.name for example in test.examples if example.options.get(doctest.SKIP)]
            outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert outcome.failed == 0, test.name
            ran += outcome.attempted
    assert ran >= 3
    assert len(left_out) <= 10, left_out


def of_module(thing: object) -> dict[str, object]:
    return dict(vars(sys.modules[getattr(thing, "__module__", "streamwsi")]))
