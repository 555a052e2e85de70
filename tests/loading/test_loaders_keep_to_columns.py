"""Several loaders that read one slide decode few of its tiles twice: each reads chunks that are neighbours."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamwsi.loading.read import read_chunk
from streamwsi.pipeline.decisions import Limits, Open, PatientJob, Read, Resolve, Send
from streamwsi.pipeline.scheduler import Scheduler
from streamwsi.slides import open_slide
from streamwsi.slides.tiff import TiffReader
from streamwsi.slides.tile_codecs import CopyingDecoder
from tests.loading.test_read_parity import resolve
from tests.loading.test_tiles_are_decoded_once import MOST, blank_slide, decode_nothing


def decodes_per_tile(path: Path, n_loaders: int, stride: int, seed: int = 0) -> float:
    """With loaders that read one chunk after the other, none faster than the others on the whole, each with its own cache."""
    scheduler = Scheduler([PatientJob(0, 1)], Limits(loaders=n_loaders))
    turns = random.Random(seed)
    with ExitStack() as stack:
        readers = {f"loader-{number}": stack.enter_context(open_slide(path, "tiff")) for number in range(n_loaders)}
        for reader in readers.values():
            assert isinstance(reader, TiffReader)
            reader.levels = [
                replace(level, decoder=CopyingDecoder(decode_nothing)) for level in reader.levels
            ]  # only counted here
        resolved = resolve(next(iter(readers.values())), path, kernel=256, stride=stride)
        orders: dict[str, list[Read]] = {name: [] for name in readers}
        for role in ("collector", "writer", "publisher", *readers):
            scheduler.worker_came(role.partition("-")[0], role)
        n_read = 0
        while n_read < len(resolved.chunks()):
            for decision in scheduler.decisions():
                if isinstance(decision, Open):
                    scheduler.patient_opened(0, {})
                elif isinstance(decision, Resolve):
                    scheduler.slide_resolved(decision.slide, resolved.chunks())
                elif isinstance(decision, Read):
                    orders[decision.loader].append(decision)
                elif isinstance(decision, Send):
                    scheduler.chunk_collected(decision.lease)
                    scheduler.chunk_committed(decision.lease)
            busy = [name for name, own in orders.items() if own]
            if busy:
                name = turns.choice(busy)
                order = orders[name].pop(0)
                read_chunk(readers[name], resolved, order.chunk)
                scheduler.chunk_read(order.lease)
                n_read += 1
        counts, seen, _ = zip(
            *(reader.tiles_read() for reader in readers.values() if isinstance(reader, TiffReader)), strict=True
        )
    distinct = np.bitwise_or.reduce([np.frombuffer(bits, np.uint8) for bits in seen])
    return sum(counts) / int(np.unpackbits(distinct).sum())


@pytest.mark.parametrize(
    ("extent", "n_loaders"), [((16384, 16384), 1), ((16384, 16384), 2), ((25000, 12000), 2), ((30000, 9000), 3)]
)
def test_loaders_of_one_slide_hardly_decode_a_tile_twice(tmp_path, extent, n_loaders):
    path = blank_slide(tmp_path / "slide.tiff", extent, 256)
    assert decodes_per_tile(path, n_loaders, stride=128) <= MOST
