from __future__ import annotations

from pathlib import Path

from streamwsi.slides import SlideReader, open_slide
from tests.helpers import RGB, WHITE
from tests.slides.reader_contract import ReaderContract


class TestTiffReader(ReaderContract):
    def open_reader(self, path: Path, background: RGB = WHITE) -> SlideReader:
        return open_slide(path, "auto", background)
