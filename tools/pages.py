"""Pages: Markdown files whose code is run.

In: a Markdown file.  Out: what its code prints, and the pictures that it makes.  Never changes the page.

A page is run as a reader would go through it, from top to bottom, in a folder with the bundled slide in ``slides/``: its
``python`` blocks as one script, in between its ``sh`` blocks. A block that begins with a file's name (``# my_model.py``) is
saved under it instead. A ``text`` block is what the code before it has printed; in it, ``…`` stands for anything. A block is
left out if the line before it says so, and why: ``<!-- not run: … -->``, ``<!-- needs torch -->`` where there is none.

    python -m tools.pages tutorials/01_heatmaps.md      runs it, prints what it prints, and keeps its pictures beside it
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SLIDE = ROOT / "examples" / "data" / "CMU-1-Small-Region.svs"
RUN = ("python", "sh")
LANGUAGES = (*RUN, "toml", "pycon", "text", "")
"""What blocks may be called. ``pycon`` are examples of docstrings, run as doctests; "" is neither code nor output."""
NEEDS_TORCH = "<!-- this page needs torch -->"

_FENCED = re.compile(
    r"(?:^<!-- (?:not run: (?P<why_not>[^\n]+)|needs (?P<needs>\w+)) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PICTURE = re.compile(r"!\[[^\]]*\]\(images/([^)\s]+)\)")
_HELPERS = (
    "import subprocess, pathlib; "
    "_sh = lambda text: subprocess.run(['bash', '-euo', 'pipefail', '-c', text], check=True); "
    "_save = lambda name, text: pathlib.Path(name).write_text(text, encoding='utf-8')"
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    first_line: int
    """Number of its first line in the page, from 1."""
    text: str
    why_not: str | None
    """Why it is not run; None: it is."""
    needs: str | None
    """A module without which it is not run."""

    @property
    def file(self) -> str | None:
        """What it is to be saved as, or None."""
        named = re.match(r"# ([\w-]+\.(?:py|toml))\n", self.text)
        return named[1] if named and self.language in ("python", "toml") else None

    @property
    def is_run(self) -> bool:
        """Whether it is run, or saved, here."""
        if self.why_not is not None or (self.needs and importlib.util.find_spec(self.needs) is None):
            return False
        return self.language in RUN or self.file is not None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCED.finditer(text):
        first_line = text.count("\n", 0, found.start("text")) + 1
        yield Block(found["language"], first_line, found["text"], found["why_not"], found["needs"])


def script_of(page: Path) -> str:
    """The code of a page as one script, each block at its own line numbers; "" where there is none."""
    lines: dict[int, str] = {}
    for block in blocks(page):
        if not block.is_run:
            continue
        if block.file is not None:
            lines[block.first_line] = f"_save({block.file!r}, {block.text!r})"
        elif block.language == "sh":
            lines[block.first_line] = f"_sh({block.text!r})"
        else:
            lines |= dict(enumerate(block.text.splitlines(), block.first_line))
    if not lines:
        return ""
    lines[1] = _HELPERS  # a page begins with its title, not with code
    return "\n".join(lines.get(number, "") for number in range(1, max(lines) + 1))


def expected_output(page: Path) -> list[str]:
    """A regular expression for each ``text`` block that stands below code that is run."""
    expected, ran = [], False
    for block in blocks(page):
        if block.language == "text" and ran:
            lines = block.text.splitlines()
            expected.append(
                "".join(
                    r"(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + r"[ \t]*\n"
                    for line in lines
                )
            )
        elif block.language in RUN and block.file is None:
            ran = block.is_run
    return expected


def pictures(page: Path) -> list[str]:
    """Names of the pictures that a page shows, without their folder."""
    return _PICTURE.findall(page.read_text(encoding="utf-8"))


def environment(temporary: Path) -> dict[str, str]:
    """That of a reader who has the command on the path and no display; temporary files go to `temporary`."""
    temporary.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "MPLBACKEND": "agg", "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}


def run_page(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the code of a page in `folder`, which is empty; what it says, also of errors, is in ``stdout``."""
    (folder / "slides").mkdir()
    shutil.copy(SLIDE, folder / "slides")
    script = folder / f"{page.stem}.py"
    script.write_text(script_of(page), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", script],
        cwd=folder,
        env=environment(folder / "tmp"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main() -> int:
    """Run the pages named on the command line, or all that show pictures, and keep their pictures."""
    chosen = [Path(name) for name in sys.argv[1:]] or [page for page in sorted(ROOT.glob("tutorials/*.md")) if pictures(page)]
    for page in chosen:
        with tempfile.TemporaryDirectory(prefix="page-") as folder:
            done = run_page(page, Path(folder))
            print(f"==== {page}\n{done.stdout}")
            if done.returncode != 0:
                return done.returncode
            for name in pictures(page):
                made = Path(folder, name)
                if made.exists():
                    (page.parent / "images").mkdir(exist_ok=True)
                    shutil.copy(made, page.parent / "images" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
