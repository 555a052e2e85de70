"""Slides: one protocol, one module per reader."""

from streamwsi.slides.reader import SlideReader, open_slide

__all__ = ["SlideReader", "open_slide"]
