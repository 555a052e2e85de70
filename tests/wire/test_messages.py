from __future__ import annotations

import ast
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import assume, given

import streamwsi
from streamwsi.chunks import BigChunk
from streamwsi.dataset import Patient, SlideInfo
from streamwsi.errors import WireError
from streamwsi.geometry import Grid
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.wire import messages
from streamwsi.wire.messages import (
    AnyMessage,
    Chunk,
    ChunksCommitted,
    Clock,
    Codec,
    Hello,
    Message,
    PatientRef,
    Pieces,
    ReadChunk,
    Stop,
    chunk_message,
    chunk_of,
    slide_of,
)

KEY = bytes(range(32))
PACKAGE = Path(streamwsi.__file__).parent


@pytest.fixture
def codec() -> Codec:
    return Codec(KEY)


def as_received(frames: Sequence[Any]) -> list[memoryview]:
    """Frames as a socket gives them: bytes of their own. It takes only such as lie in one piece."""
    assert all(memoryview(frame).c_contiguous for frame in frames)
    return [memoryview(memoryview(frame).tobytes()) for frame in frames]


RESOLVED = ResolvedSlide(
    patient=3,
    slide=1,
    patient_id="Ünal, 17",
    id="H&E",
    path="/slides/a b.svs",
    fingerprint="00ff",
    info=SlideInfo(
        level_dimensions=((4000, 3000), (1000, 750)),
        level_downsamples=(1.0, 4.0),
        mpp=(0.25, 0.25),
        power=40.0,
        vendor="aperio",
        tile_sizes=((256, 256), None),
        associated_images=("label",),
        reader="openslide",
    ),
    level=1,
    kernel=(64, 32),
    stride=(32, 32),
    border="pad",
    background=(255, 255, 255),
    block=(4, 8),
    resampled_px=0.0,
)
PATIENT = PatientRef("Ünal, 17", (("H&E", "/slides/a b.svs"),), {"label": 1, "nested": {"of": [None, 0.5, "x"]}})
PIECES = Pieces(lease=7, patient=3, slide=1, chunk=2, values=ValueSpec("float32", (2,)), windows=4, rows=3)
PAYLOAD = [np.arange(4, dtype=np.int64), np.zeros(4, np.uint8), np.ones((3, 2), np.float32)]
SAMPLES: list[tuple[Message, list[Any]]] = [(Stop(), []), (ReadChunk(5, RESOLVED, 2, None), []), (PIECES, PAYLOAD)]


# ---- there and back

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    Any: plain,
    int: st.integers(-(1 << 63), (1 << 63) - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that a field of this type can have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.builds(kind, **{field.name: values_of(field.type) for field in msgspec.structs.fields(kind)})
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=3)
    return SIMPLE[kind]


def test_every_message_can_be_received() -> None:
    declared = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)}
    assert set(get_args(AnyMessage)) == declared - {Message}


@pytest.mark.parametrize("kind", get_args(AnyMessage), ids=lambda kind: kind.__name__)
def test_a_message_comes_back_as_it_was_sent(kind: type[Message]) -> None:
    codec = Codec(KEY)

    @given(message=values_of(kind), payload=st.lists(st.binary(max_size=30), max_size=3))
    def comes_back(message: Message, payload: list[bytes]) -> None:
        received, parts = codec.unpack(as_received(codec.pack(message, payload)))
        assert received == message
        assert type(received) is kind
        assert [bytes(part) for part in parts] == payload

    comes_back()


def test_a_payload_is_neither_copied_when_packed_nor_when_unpacked(codec: Codec) -> None:
    frames = codec.pack(PIECES, PAYLOAD)
    assert all(frame is part for frame, part in zip(frames[2:], PAYLOAD, strict=True))
    received = as_received(frames)
    _, parts = codec.unpack(received)
    for part, frame in zip(parts, received[2:], strict=True):
        assert np.shares_memory(np.frombuffer(part, np.uint8), np.frombuffer(frame, np.uint8))


def test_a_patient_and_a_slide_come_back_as_users_know_them() -> None:
    patient = Patient("p", {"H&E": "/a.svs", "second": "/b.svs"}, {"label": 1})
    assert PatientRef.of(patient).patient() == patient
    slide = slide_of(RESOLVED)
    assert (slide.id, str(slide.path), slide.mpp) == ("H&E", "/slides/a b.svs", (0.25, 0.25))


# ---- what is refused


def refused(codec: Codec, frames: Sequence[Any]) -> None:
    with pytest.raises(WireError):
        codec.unpack(frames)


@given(frames=st.lists(st.binary(max_size=64), max_size=5))
def test_random_bytes_are_refused(frames: list[bytes]) -> None:
    refused(Codec(KEY), frames)


@given(header=st.binary(max_size=64), code=st.binary(min_size=16, max_size=16), version=st.integers(0, 255))
def test_random_bytes_in_the_shape_of_a_message_are_refused(header: bytes, code: bytes, version: int) -> None:
    refused(Codec(KEY), [b"SWSI" + bytes([version]) + code, header])


@given(header=st.binary(max_size=64))
def test_a_header_that_no_message_has_is_refused_even_with_the_right_code(header: bytes) -> None:
    codec = Codec(KEY)
    frames = codec.pack(msgspec.Raw(header))
    assert frames[1] == header
    with suppress(msgspec.MsgspecError):
        msgspec.msgpack.decode(header, type=AnyMessage)
        assume(False)
    refused(codec, frames)


class _Strange(Message, frozen=True):
    number: int


class _NotHello(Message, frozen=True, tag="Hello"):
    pid: str
    endpoint: int


class _ShortHello(Message, frozen=True, tag="Hello"):
    pid: int


@pytest.mark.parametrize("message", [_Strange(1), _NotHello("pid", 1), _ShortHello(1)])
def test_unknown_kinds_wrong_types_and_missing_fields_are_refused_even_with_the_right_code(
    codec: Codec, message: Message
) -> None:
    refused(codec, codec.pack(message))


@pytest.mark.parametrize(("message", "payload"), SAMPLES)
def test_another_runs_key_is_refused(message: Message, payload: list[Any]) -> None:
    frames = as_received(Codec(bytes(32)).pack(message, payload))
    refused(Codec(KEY), frames)


def test_another_version_is_refused_and_named(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(messages, "_VERSION", 2)
        frames = as_received(codec.pack(Hello(1, "ipc://x")))
        assert codec.unpack(frames)[0] == Hello(1, "ipc://x")
    with pytest.raises(WireError, match="version 2, expected 1"):
        codec.unpack(frames)


def test_the_version_is_covered_by_the_code(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(messages, "_VERSION", 2)
        envelope, header = as_received(codec.pack(Hello(1, "")))
    refused(codec, [bytes(envelope[:4]) + b"\x01" + bytes(envelope[5:]), header])


@pytest.mark.parametrize(("message", "payload"), SAMPLES)
@pytest.mark.parametrize("frame", [0, 1])
def test_every_flipped_bit_in_envelope_and_header_is_noticed(message: Message, payload: list[Any], frame: int) -> None:
    codec = Codec(KEY)
    frames: list[Any] = [bytes(part) for part in as_received(codec.pack(message, payload))]
    whole = frames[frame]
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        frames[frame] = flipped
        refused(codec, frames)


@pytest.mark.parametrize(("message", "payload"), SAMPLES)
def test_every_truncation_and_every_extension_is_noticed(message: Message, payload: list[Any]) -> None:
    codec = Codec(KEY)
    frames = [bytes(part) for part in as_received(codec.pack(message, payload))]
    for number, frame in enumerate(frames):
        for changed in (*(frame[:length] for length in range(len(frame))), frame + b"\0"):
            refused(codec, [*frames[:number], changed, *frames[number + 1 :]])


@pytest.mark.parametrize(("message", "payload"), SAMPLES)
def test_missing_added_and_exchanged_frames_are_noticed(message: Message, payload: list[Any]) -> None:
    codec = Codec(KEY)
    frames = [bytes(part) for part in as_received(codec.pack(message, payload))]
    for number in range(len(frames)):
        refused(codec, frames[:number] + frames[number + 1 :])
    for number in range(len(frames) + 1):
        refused(codec, [*frames[:number], b"", *frames[number:]])
    refused(codec, frames[::-1])
    refused(codec, frames[:2] + frames[:1:-1] if len(frames) > 3 else [*frames, *frames])


def test_a_code_is_of_no_use_for_another_message(codec: Codec) -> None:
    one, other = (as_received(codec.pack(Hello(pid, ""))) for pid in (1, 2))
    refused(codec, [one[0], other[1]])


# ---- big chunks


def big_chunk(packed: bool, n_windows: int = 6, skipped: tuple[int, ...] = ()) -> BigChunk:
    """Windows of a grid of 3 columns, with noise for pixels."""
    grid = Grid((40, 90), (16, 8), (12, 8), "pad", 1.0)
    windows = grid.windows(np.arange(n_windows, dtype=np.int64))
    right, bottom = (windows.start + windows.size).max(axis=0, initial=0).tolist()
    shape = (n_windows, 8, 16, 3) if packed else (bottom, right, 3)
    pixels = np.random.default_rng(n_windows).integers(0, 256, shape, np.uint8)
    return BigChunk(windows, pixels, None if packed else (0, 0), np.isin(np.arange(n_windows), skipped))


def sent(big: BigChunk) -> tuple[Chunk, list[Any]]:
    return chunk_message(7, 2, RESOLVED, PATIENT, "ipc://writer", big)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("n_windows", "skipped"), [(6, ()), (5, (0, 4)), (1, ()), (1, (0,)), (0, ())])
def test_a_big_chunk_comes_back_as_it_was_sent(codec: Codec, packed: bool, n_windows: int, skipped: tuple[int, ...]) -> None:
    big = big_chunk(packed, n_windows, skipped)
    message, payload = sent(big)
    received, parts = codec.unpack(as_received(codec.pack(message, payload)))
    assert isinstance(received, Chunk)
    assert received.axes == ("NYXS" if packed else "YXS")
    again = chunk_of(received, parts)
    assert again.origin == big.origin
    assert again.pixels.dtype == np.uint8
    np.testing.assert_array_equal(again.pixels, big.pixels)
    np.testing.assert_array_equal(again.windows.table(), big.windows.table())
    np.testing.assert_array_equal(again.skipped, big.skipped)
    assert list(again.windows) == list(big.windows)


@pytest.mark.parametrize("packed", [False, True])
def test_the_pixels_of_a_big_chunk_are_never_copied(codec: Codec, packed: bool) -> None:
    big = big_chunk(packed)
    message, payload = sent(big)
    assert np.shares_memory(payload[0], big.pixels)
    frames = as_received(codec.pack(message, payload))
    received, parts = codec.unpack(frames)
    again = chunk_of(received, parts)
    assert np.shares_memory(again.pixels, np.frombuffer(frames[2], np.uint8))
    assert np.shares_memory(next(again.small_chunks()).pixels, again.pixels)


def test_a_big_chunk_of_several_resolutions_comes_back_as_it_was_sent(codec: Codec) -> None:
    packed = big_chunk(packed=True)
    big = BigChunk(packed.windows, np.stack([packed.pixels, 255 - packed.pixels], axis=1), None, packed.skipped)
    received, parts = codec.unpack(as_received(codec.pack(*sent(big))))
    assert isinstance(received, Chunk) and received.axes == "NRYXS"
    np.testing.assert_array_equal(chunk_of(received, parts).pixels, big.pixels)


def test_pixels_that_do_not_lie_in_one_piece_are_sent_all_the_same(codec: Codec) -> None:
    big = big_chunk(packed=False)
    within = np.zeros((big.pixels.shape[0], big.pixels.shape[1] + 5, 3), np.uint8)
    view = within[:, 2:-3]
    view[...] = big.pixels
    message, payload = sent(BigChunk(big.windows, view, big.origin, np.zeros(12, bool)[::2]))
    received, parts = codec.unpack(as_received(codec.pack(message, payload)))
    np.testing.assert_array_equal(chunk_of(received, parts).pixels, big.pixels)


def _strange_chunks() -> Iterator[Any]:
    message, payload = sent(big_chunk(packed=False))
    packed, _ = sent(big_chunk(packed=True))
    pixels, table, skipped = payload
    change = msgspec.structs.replace
    yield pytest.param(message, [], id="no payload")
    yield pytest.param(message, [pixels, table], id="two parts")
    yield pytest.param(message, [*payload, skipped], id="four parts")
    yield pytest.param(change(message, dtype="uint16"), payload, id="another dtype")
    yield pytest.param(change(message, shape=(1, 1, 3)), payload, id="too small a shape")
    yield pytest.param(change(message, shape=(-1, 1, 3)), payload, id="a negative shape")
    yield pytest.param(change(message, shape=(1 << 40, 1 << 40, 3)), payload, id="a shape that overflows")
    yield pytest.param(change(message, shape=((1 << 63) - 1, 3)), payload, id="a shape of the largest number")
    yield pytest.param(change(message, shape=()), payload, id="no shape")
    yield pytest.param(change(message, shape=(*pixels.shape[:2], 1, 3)), payload, id="a region with four axes")
    yield pytest.param(change(message, origin=None), payload, id="a region without origin")
    yield pytest.param(change(packed, origin=(0, 0)), payload, id="a packed chunk with origin")
    yield pytest.param(message, [pixels, table.ravel()[:-1], skipped], id="a table with a column missing")
    yield pytest.param(message, [pixels, table.view(np.uint8).ravel()[:-3], skipped], id="a table cut inside a number")
    yield pytest.param(message, [pixels, table[:-1], skipped], id="a window less")
    yield pytest.param(message, [pixels, table, skipped[:-1]], id="a flag less")
    yield pytest.param(message, [pixels[:-1], table, skipped], id="a row of pixels less")


@pytest.mark.parametrize(("message", "payload"), [*_strange_chunks()])
def test_a_chunk_whose_parts_do_not_fit_its_header_is_refused(message: Chunk, payload: list[np.ndarray]) -> None:
    with pytest.raises(WireError):
        chunk_of(message, as_received([np.ascontiguousarray(part) for part in payload]))


# ---- no pickle


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 20
    return found


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)  # what importlib.import_module might be given
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_is_pickled_but_what_a_local_child_is_given(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pickles = imported(tree) & {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    may = ("collecting/spec.py", "doctor/software.py")  # the second says which version is installed
    assert pickles == ({"cloudpickle"} if path.relative_to(PACKAGE).as_posix() in may else set())
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not called & {"send_pyobj", "recv_pyobj", "read_pickle", "to_pickle"}
    given = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    assert not [keyword for keyword in given if keyword.startswith("allow_pickle") and keyword != "allow_pickle=False"]


def test_clocks_and_counts_cross_as_arrays_so_that_acknowledgements_stay_small(codec: Codec) -> None:
    frames = codec.pack(ChunksCommitted((1,), ((32, 0, 0),), Clock(1.5, 0.5, 0.0)))
    assert sum(len(frame) for frame in frames) < 100
