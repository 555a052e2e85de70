"""The configuration beside a model: what it means, and what is wrong with it, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamwsi.collecting.models.configuration import (
    ModelConfiguration,
    Normalize,
    Resize,
    configuration_beside,
    read_configuration,
)
from streamwsi.errors import ConfigError

WSINFER: dict[str, Any] = {
    "spec_version": "1.0",
    "architecture": "resnet34",
    "num_classes": 2,
    "class_names": ["Other", "Tumor"],
    "patch_size_pixels": 350,
    "spacing_um_px": 0.25,
    "transform": [
        {"name": "Resize", "arguments": {"size": 224}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.7238, 0.5716, 0.6779], "std": [0.112, 0.1459, 0.1089]}},
    ],
}
TOML = """
spec_version = "1.0"
architecture = "resnet34"
num_classes = 2
class_names = ["Other", "Tumor"]
patch_size_pixels = 350
spacing_um_px = 0.25

[[transform]]
name = "Resize"
arguments = { size = 224 }

[[transform]]
name = "ToTensor"

[[transform]]
name = "Normalize"
arguments = { mean = [0.7238, 0.5716, 0.6779], std = [0.112, 0.1459, 0.1089] }
"""


def from_json(folder: Path, fields: Any) -> ModelConfiguration:
    path = folder / "config.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return read_configuration(path)


def from_toml(folder: Path, text: str) -> ModelConfiguration:
    path = folder / "model.toml"
    path.write_text(text)
    return read_configuration(path)


def test_wsinfers_configuration_means_what_wsinfer_makes_of_it(tmp_path: Path) -> None:
    found = from_json(tmp_path, WSINFER)
    assert found == ModelConfiguration(
        patch_size=350,
        mpp=0.25,
        class_names=("Other", "Tumor"),
        num_classes=2,
        resize=Resize(224),
        normalize=Normalize((0.7238, 0.5716, 0.6779), (0.112, 0.1459, 0.1089)),
        activation="softmax",
    )
    assert from_toml(tmp_path, TOML) == found


def test_of_one_class_wsinfer_takes_the_sigmoid(tmp_path: Path) -> None:
    assert from_json(tmp_path, {**WSINFER, "num_classes": 1, "class_names": ["Tumor"]}).activation == "sigmoid"
    assert from_json(tmp_path, {**WSINFER, "activation": "none"}).activation == "none"


def test_all_may_be_left_out_of_toml(tmp_path: Path) -> None:
    assert from_toml(tmp_path, "") == ModelConfiguration()
    names = from_toml(tmp_path, 'class_names = ["a", "b", "c"]')
    assert names == ModelConfiguration(class_names=("a", "b", "c"), num_classes=3)


def test_what_wsinfers_schema_does_not_know_is_passed_over(tmp_path: Path) -> None:
    assert from_json(tmp_path, {**WSINFER, "license": "MIT"}) == from_json(tmp_path, WSINFER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 3}, r"num_classes is 3, class_names has 2: \['Other', 'Tumor'\]"),
        ({"num_classes": "2"}, r"Expected `int \| null`, got `str` - at `num_classes`"),
        ({"num_classes": 0}, r"Expected `int` >= 1 - at `num_classes`"),
        ({"class_names": ["a", "a"]}, r"class_names must be different, got \['a', 'a'\]"),
        ({"class_names": "tumor"}, r"Expected `array \| null`, got `str` - at `class_names`"),
        ({"patch_size_pixels": 0}, r">= 1 - at `patch_size_pixels`"),
        ({"spacing_um_px": 0}, r"Expected `float` > 0\.0 - at `spacing_um_px`"),
        ({"spec_version": "2.0"}, r"Invalid enum value '2\.0' - at `spec_version`"),
        ({"activation": "relu"}, r"Invalid enum value 'relu' - at `activation`"),
        (
            {"transform": [{"name": "CenterCrop"}]},
            "transform 0 is 'CenterCrop', which is not known here; known are Resize, ToT",
        ),
        ({"transform": [{"arguments": {}}]}, r"missing required field `name` - at `transform\[0\]`"),
        ({"transform": [{"name": "Resize"}, {"name": "ToTensor"}]}, "transform Resize: Object missing required field `size`"),
        ({"transform": []}, r"transform must be Resize \(or not\), ToTensor, Normalize \(or not\), in this order; got \[\]"),
        ({"transform": [{"name": "ToTensor"}, {"name": "Resize"}]}, r"in this order; got \['ToTensor', 'Resize'\]"),
        ({"transform": [{"name": "ToTensor"}] * 2}, "in this order"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json.*{message}"):
        from_json(tmp_path, {**WSINFER, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 224, "interpolation": "lanczos"}, "interpolation must be one of nearest, bilinear, bicubic .*got 'lanczos'"),
        ({"size": 224, "interpolation": 1}, "got 1"),
        ({"size": [1, 2, 3]}, "at `size`"),
        ({"size": 0}, "at `size`"),
        ({"size": "224"}, "at `size`"),
        ({"size": 224, "max_size": 300}, "at `max_size`"),
        ({"size": 224, "crop": True}, "unknown field `crop`"),
    ],
)
def test_what_is_wrong_with_a_resize_is_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    transform = [{"name": "Resize", "arguments": arguments}, {"name": "ToTensor"}]
    with pytest.raises(ConfigError, match=rf"config\.json: transform Resize: .*{message}"):
        from_json(tmp_path, {**WSINFER, "transform": transform})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0]}, r"std above 0, got .*0\.0"),
        ({"mean": [0.5] * 2, "std": [0.5] * 3}, "at `mean`"),
        ({"mean": 0.5, "std": 0.5}, "at `mean`"),
        ({"mean": [0.5] * 3}, "missing required field `std`"),
    ],
)
def test_what_is_wrong_with_a_normalize_is_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    transform = [{"name": "ToTensor"}, {"name": "Normalize", "arguments": arguments}]
    with pytest.raises(ConfigError, match=rf"config\.json: transform Normalize: .*{message}"):
        from_json(tmp_path, {**WSINFER, "transform": transform})


@pytest.mark.parametrize("size", [[224], 224, [224, 224]])
@pytest.mark.parametrize(("given", "meant"), [("bicubic", "bicubic"), ("BILINEAR", "bilinear"), (0, "nearest"), (3, "bicubic")])
def test_interpolations_have_torchvisions_names_and_pillows_numbers(
    tmp_path: Path, size: Any, given: str | int, meant: str
) -> None:
    arguments = {"size": size, "interpolation": given, "antialias": True}
    found = from_json(tmp_path, {**WSINFER, "transform": [{"name": "Resize", "arguments": arguments}, {"name": "ToTensor"}]})
    assert found.resize == Resize((224, 224) if size == [224, 224] else 224, meant)  # type: ignore[arg-type]


def test_a_number_is_the_shorter_side() -> None:
    assert Resize(224).of(448, 300) == (334, 224)
    assert Resize(224).of(300, 448) == (224, 334)
    assert Resize((7, 9)).of(300, 448) == (7, 9)


def test_a_field_that_there_is_not_is_refused_in_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.toml: there is no field 'classnames'; there are .*class_names"):
        from_toml(tmp_path, 'classnames = ["a"]')


@pytest.mark.parametrize("text", ["[", '{"class_names": ["a"]}', "[1]", "7"])
def test_json_that_is_not_wsinfers_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is no (valid JSON|model configuration of wsinfer)"):
        from_json(tmp_path, text)


def test_toml_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.toml is no valid TOML: .*line 2"):
        from_toml(tmp_path, 'name = "a"\nclass_names = [1 2]\n')


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: the model's configuration cannot be read: No such file"):
        read_configuration(tmp_path / "missing.toml")


def test_the_one_of_the_models_own_name_comes_first(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    assert configuration_beside(model) is None
    for name in ("config.json", "model.json", "model.toml"):
        (tmp_path / name).write_text("")
        assert configuration_beside(model) == tmp_path / name
