from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.errors import ConfigError, OutputError
from streamwsi.images.names import FIELDS, filled, fit, quoted, unfit
from streamwsi.images.options import NAME, ImageOptions


def options(**changed: Any) -> ImageOptions:
    given: dict[str, Any] = {"format": "png", "quality": None, "name": NAME, "by_label": False, "comment": None, "shards": None}
    return ImageOptions.of(**{**given, **changed})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{slide}_{tile}", r"no field \{tile\}; there are patient, slide, index"),
        ("{slide}", r"must hold \{index\}, or \{x\} and \{y\}"),
        ("{slide}_{x}", "must hold"),
        ("{slide}/{index}", "it holds '/'"),
        ("../{index}", "it holds '/'|begins with a dot"),
        (".{index}", "begins with a dot"),
        ("{index}.", "ends with a dot"),
        ("{index}:{x}", "it holds ':'"),
        ("{index", "is no template"),
        ("{index!r}", r"write \{index\}"),
        ("{index:{x}}", r"write \{index\}"),
        ("{index:z9}", "cannot be filled in"),
        ("{slide.__class__}{index}", "no field"),
        ("{}{index}", "no field"),
        ("x" * 300 + "{index}", "301 bytes, 255 are the most"),
        (7, "must be text, got 7"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options(name=name)


def test_names_are_filled_in_and_numbers_padded() -> None:
    assert options(name="{patient}-{index:06}").name == "{patient}-{index:06}"
    assert filled("{slide}_x{x:05}_y{y}_{label}", {**FIELDS, "slide": "H&E", "x": 12, "label": "a/b"}) == "H&E_x00012_y0_a%2Fb"


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20), unique=True, max_size=6))
def test_labels_can_name_folders_and_different_ones_stay_different(labels: list[str]) -> None:
    names = [quoted(label) for label in labels]
    assert len(set(names)) == len(names) and not any(map(unfit, names)), names


@pytest.mark.parametrize("label", ["..", ".", "/", "con", "NUL.txt", "a ", "a.", "%", "%2F", "Tumor/Stroma"])
def test_labels_that_are_no_names_are_written_otherwise(label: str) -> None:
    assert quoted(label) != label and not unfit(quoted(label))


def test_a_name_that_a_window_makes_unfit_is_refused_with_the_window() -> None:
    assert fit("a.png", "window 3") == "a.png"
    with pytest.raises(OutputError, match=r"window 3 of slide 's': 'x{300}\.png' cannot name a file: it has 304 bytes"):
        fit("x" * 300 + ".png", "window 3 of slide 's'")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"comment": "{slide} {what}"}, r"comment .* no field \{what\}"),
        ({"comment": "a\0b"}, "zero byte"),
        ({"shards": 0}, "at least 1"),
        ({"shards": "lots"}, "'500MB', got 'lots'"),
        ({"shards": True}, "got True"),
        ({"shards": 10, "name": "{index}_{resolution}"}, r"leave \{resolution\} out"),
    ],
)
def test_an_option_that_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options(**changed)


@pytest.mark.parametrize(
    ("shards", "images", "size"), [(5, 5, None), ("5", 5, None), ("500MB", None, 500 * 10**6), ("2 GB", None, 2 * 10**9)]
)
def test_shards_are_a_number_or_a_size(shards: int | str, images: int | None, size: int | None) -> None:
    found = options(shards=shards)
    assert (found.shard_images, found.shard_bytes, found.sharded) == (images, size, True)
    assert not options().sharded
