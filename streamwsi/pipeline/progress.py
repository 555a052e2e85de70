"""What a person sees while a run is under way.

In: counts.  Out: bars on a terminal, plain lines elsewhere, nothing when quiet.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_LINE_EVERY_S = 10.0


class Progress:
    """Slides and windows done, with the rate and the time left; where a run has several collectors, those of all together."""

    def __init__(self, quiet: bool = False, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._quiet = quiet or self._file is None  # a process may have no standard error
        self._bars: list[Any] = []
        self._n_slides = self._slides = self._windows = self._expected = self._known = 0
        self._begun = self._last_line = time.monotonic()
        with self._showing():
            if not self._quiet and self._file.isatty():
                from tqdm import tqdm

                self._bars = [
                    tqdm(total=0, unit="slide", desc="slides ", position=0, file=self._file),
                    tqdm(total=0, unit="window", desc="windows", position=1, file=self._file, smoothing=0.1),
                ]

    def add_slides(self, count: int) -> None:
        """So many more slides are to be done."""
        self._n_slides += count
        if self._bars:
            self._bars[0].total = self._n_slides
            with self._showing():
                self._bars[0].refresh()

    def slide_opened(self, windows: int, done: int) -> None:
        """A slide's windows are known; `done` of them are committed already."""
        self._known += 1
        self._expected += windows
        if self._bars:
            # Slides that are not open yet are guessed to be like the others, so that the time left means the whole run
            self._bars[1].total = round(self._expected * self._n_slides / self._known)
            self._bars[1].initial += done
            with self._showing():
                self._bars[1].update(done)

    def windows_done(self, count: int) -> None:
        """Windows were committed."""
        self._windows += count
        if self._bars:
            with self._showing():
                self._bars[1].update(count)
        elif not self._quiet and time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.say(self._line())

    def slide_done(self) -> None:
        """A slide is complete, or has failed."""
        self._slides += 1
        if self._bars:
            with self._showing():
                self._bars[0].update()

    def say(self, line: str) -> None:
        """One line, above the bars if there are any."""
        if self._quiet:
            return
        with self._showing():
            if self._bars:
                self._bars[0].write(line, file=self._file)
            else:
                print(line, file=self._file, flush=True)

    def close(self) -> None:
        """Take the bars away."""
        with self._showing():
            for bar in reversed(self._bars):
                bar.close()
        self._bars = []

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Nobody may look any more, or the disk of what is written to be full: no reason to end a run of days."""
        try:
            yield
        except (OSError, ValueError):
            for bar in self._bars:
                bar.disable = True
            self._bars, self._quiet = [], True

    def _line(self) -> str:
        seconds = time.monotonic() - self._begun
        rate = self._windows / seconds
        text = f"{self._slides} of {self._n_slides} slides, {self._windows} windows, {rate:.0f} windows/s"
        if rate and self._known:
            left = (self._expected * self._n_slides / self._known - self._windows) / rate
            text += f", about {max(0, left) / 60:.0f} min left"
        return text
