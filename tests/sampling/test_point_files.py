"""Points in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamwsi.errors import ConfigError
from streamwsi.sampling.point_files import read_points


def save(folder: Path, text: str) -> Path:
    path = folder / "points.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_points_of_one_slide_come_as_they_stand(tmp_path: Path) -> None:
    points, labels = read_points(save(tmp_path, "\ufeffy,x\n2,1\n4.5,3\n"))
    assert points.tolist() == [[1, 2], [3, 4.5]] and labels is None  # type: ignore[union-attr]


def test_points_of_several_slides_come_by_slide(tmp_path: Path) -> None:
    points, labels = read_points(save(tmp_path, "slide,x,y,label\nb,1,2,t\na,3,4,\nb,5,6,s\n"))
    assert {key: each.tolist() for key, each in points.items()} == {"b": [[1, 2], [5, 6]], "a": [[3, 4]]}  # type: ignore[union-attr]
    assert labels == {"b": ["t", "s"], "a": [None]}
    points, labels = read_points(save(tmp_path, "patient,slide,x,y\np,s,1,2\nq,s,3,4\n"))
    assert set(points) == {("p", "s"), ("q", "s")} and labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;y\n1;2\n", "must have the columns x and y"),
        ("x,x,y\n1,2,3\n", "must have the columns x and y, each once"),
        ("x,y,colour\n1,2,red\n", "must have the columns x and y"),
        ("patient,x,y\np,1,2\n", "patient .with slide."),
        ("x,y\n", "holds no point"),
        ("", "it has none"),
        ("x,y\n1,2\n3,\n", r"line 3: x and y must be numbers, in level-0 pixels, got ''"),
        ("x,y\nnan,2\n", "line 2"),
        ("x,y\n1,2\n3\n", "line 3"),
    ],
)
def test_what_holds_no_points_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_points(save(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_points(tmp_path / "missing.csv")
