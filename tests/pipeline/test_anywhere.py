"""A run works from a script, a notebook, a REPL, and with collectors and callables that no module holds."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import streamwsi as sw
from tests.pipeline.test_results import Cli

CODE = """
import numpy as np
import streamwsi as sw

THRESHOLD = 0.5

def redness(pixels):
    return pixels[..., 0].mean(axis=(1, 2)) / 255

class Redness(sw.StreamCollector):
    def setup(self):
        self.threshold = THRESHOLD
    def process(self, batch):
        return redness(batch.pixels) > self.threshold

dataset = sw.Dataset([sw.Patient("p", {"s": SLIDE})])
loader = sw.SlidingWindowLoader(dataset, kernel_size=256, stride=256, level=lambda slide: slide.level_count - 1)
report = Redness().start_collecting(loader, sw.CSVStreamWriter(OUT), quiet=True)
print("windows", report.windows)
"""


def code(bundled: Path, out: Path) -> str:
    return f"SLIDE, OUT = {str(bundled)!r}, {str(out)!r}\n{CODE}"


def check(out: Path) -> None:
    pieces = sw.read_pieces(out / "p.csv")
    assert pieces.values.dtype == bool and len(pieces.values) == 108 and pieces.values.any()


def test_from_a_script_without_a_main_guard(bundled: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(code(bundled, tmp_path / "out"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "windows 108\n", done.stderr
    check(tmp_path / "out")


def test_from_a_notebook(bundled: Path, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code(bundled, tmp_path / "out"))])
    NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    assert "windows 108" in str(notebook.cells[0].outputs)
    check(tmp_path / "out")


def test_from_a_repl(bundled: Path, tmp_path: Path) -> None:
    driver, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
    repl = subprocess.Popen(
        [sys.executable, "-i", "-q"], stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    os.close(terminal)
    # A REPL takes a blank line as the end of a block
    for block in code(bundled, tmp_path / "out").split("\n\n"):
        os.write(driver, f"{block.strip()}\n\n".encode())
    os.write(driver, b"exit()\n")
    output, _ = repl.communicate(timeout=60)
    os.close(driver)
    assert b"windows 108" in output, output.decode()
    check(tmp_path / "out")


def test_from_standard_input(bundled: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=code(bundled, tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.stdout == "windows 108\n", done.stderr
    check(tmp_path / "out")


def test_with_a_module_that_no_child_can_import(bundled: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(code(bundled, tmp_path / "out"))
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r})"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "windows 108\n", done.stderr
    check(tmp_path / "out")


def test_with_a_collector_in_a_file_that_imports_its_neighbours(bundled: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "weights.py").write_text("FACTOR = 3\n")
    (folder / "my_model.py").write_text(
        textwrap.dedent("""
        import streamwsi as sw
        from weights import FACTOR

        class Scaled(sw.StreamCollector):
            def __init__(self, offset=0):
                self.offset = offset
            def process(self, batch):
                return [FACTOR + self.offset] * len(batch)
        """)
    )
    collector = f"{folder / 'my_model.py'}:Scaled"
    done = cli("heatmap", bundled, "--out", tmp_path / "out", "--collector", collector, "--arg", "offset=4", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert set(sw.read_pieces(tmp_path / "out" / "CMU-1-Small-Region.csv").values.tolist()) == {7}


def test_a_thread_may_run_a_pipeline(bundled: Path, tmp_path: Path) -> None:
    work = textwrap.indent(code(bundled, tmp_path / "out"), "    ")
    script = f"import threading\ndef work():\n{work}\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "windows 108" in done.stdout, done.stderr


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_sees_bars(bundled: Path, tmp_path: Path, quiet: bool) -> None:
    driver, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "streamwsi.cli", "heatmap", bundled, "--out", tmp_path / "out", "--collector", "mean"]
    process = subprocess.Popen(command + ["--quiet"] * quiet, stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    seen = b""
    while True:
        try:
            part = os.read(driver, 4096)
        except OSError:  # the other end of a pseudo-terminal has closed
            break
        if not part:
            break
        seen += part
    os.close(driver)
    assert process.wait() == 0
    if quiet:
        assert seen == b""
    else:
        assert b"windows: 100%" in seen and b"slides : 100%" in seen and b"window/s" in seen
