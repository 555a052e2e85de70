"""What the documents say is what happens: their code runs, their commands work, their links lead somewhere.

A Markdown file is run as a reader would go through it, from top to bottom, in an empty folder with the bundled slide in
``slides/``: Python blocks as one script, in between the commands of shell blocks that begin with ``streamwsi``. A Python block
that begins with a file name (``# my_model.py``) is saved under it. Examples and tutorials are run as scripts.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers import BUNDLED

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
TUTORIALS = sorted(ROOT.glob("tutorials/*.py"))


class Block(NamedTuple):
    """A fenced block of a Markdown file."""

    language: str
    first_line: int
    """Number of its first line in the file, from 1."""
    text: str


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])


def file_name(block: Block) -> str | None:
    """What a Python block is to be saved as."""
    named = re.match(r"# ([\w-]+\.py)\n", block.text)
    return named[1] if named else None


def script_of(document: Path) -> str:
    """The document as one script, each block at its own line numbers."""
    lines: dict[int, str] = {}
    for block in blocks(document):
        if block.language == "python" and file_name(block) is None:
            lines |= dict(enumerate(block.text.splitlines(), block.first_line))
        elif block.language == "sh":
            for number, line in enumerate(block.text.splitlines(), block.first_line):
                if line.startswith("streamwsi "):
                    command = shlex.split(line, comments=True)
                    lines[number] = f"__import__('subprocess').run({command!r}, check=True)"
    return "\n".join(lines.get(number, "") for number in range(1, max(lines, default=0) + 1))


@pytest.fixture
def as_a_reader(tmp_path: Path) -> dict[str, str]:
    """The environment of a reader who has the command on the path and no display; temporary folders lie in `tmp_path`."""
    (tmp_path / "tmp").mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "MPLBACKEND": "agg", "TMPDIR": str(tmp_path / "tmp")}


def run(script: list[str | Path], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", *script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if script_of(path)], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_the_code_of_a_document_runs(document: Path, tmp_path: Path, as_a_reader: dict[str, str]) -> None:
    (tmp_path / "slides").mkdir()
    shutil.copy(BUNDLED, tmp_path / "slides")
    for block in blocks(document):
        if block.language == "python" and (name := file_name(block)):
            ast.parse(block.text, name)
            (tmp_path / name).write_text(block.text, encoding="utf-8")
    script = tmp_path / f"{document.stem}.py"
    script.write_text(script_of(document), encoding="utf-8")
    run([script], tmp_path, as_a_reader)


def test_the_readme_s_blocks_are_found() -> None:
    script = script_of(ROOT / "README.md")
    assert "sw.Pipeline(" in script and "sw.read_map(" in script and "'streamwsi', 'heatmap'" in script
    assert [name for block in blocks(ROOT / "README.md") if (name := file_name(block))] == ["my_model.py", "torch_model.py"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_writes_where_it_is_told(example: Path, tmp_path: Path, as_a_reader: dict[str, str]) -> None:
    run([example, tmp_path / "out"], tmp_path, as_a_reader)
    assert (tmp_path / "out" / "report.json").exists()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.name)
def test_a_tutorial_runs_from_any_folder(tutorial: Path, tmp_path: Path, as_a_reader: dict[str, str]) -> None:
    assert tutorial.read_text(encoding="utf-8").startswith("# %% [markdown]\n")
    run([tutorial], tmp_path, as_a_reader)
    assert list((tmp_path / "tmp").rglob("report.json"))


def test_a_collector_of_the_examples_can_be_named_on_the_command_line(tmp_path: Path, as_a_reader: dict[str, str]) -> None:
    collector = f"{ROOT / 'examples' / 'own_collector.py'}:Redness"
    arguments = ["heatmap", BUNDLED, "--out", tmp_path / "out", "--collector", collector, "--arg", "threshold=0.2"]
    run(["-m", "streamwsi.cli", *arguments, "--format", "csv"], tmp_path, as_a_reader)
    assert (tmp_path / "out" / "CMU-1-Small-Region.csv").read_text().startswith("slide,index,x,y,level,width,height,redness,")


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        assert not path or (document.parent / path).exists(), f"{document.name} links to {target}, which is not there"
        assert path or anchor in anchors, f"{document.name} links to {target}, but no title is called so"
