"""What a model says of itself, in a small file beside it: its windows, its resolution, its classes, its transforms.

In: a TOML file, or the JSON of wsinfer.  Out: a ModelConfiguration, checked field by field.  Never imports PyTorch.

Source: the fields are those of wsinfer's model configuration 1.0, https://github.com/SBU-BMI/wsinfer-zoo,
``wsinfer_zoo/schemas/model-config.schema.json``; its transforms are those of torchvision, as wsinfer applies them to a
picture of Pillow (``wsinfer/modellib/transforms.py``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from streamwsi.errors import ConfigError

Activation = Literal["none", "softmax", "sigmoid"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Channels = tuple[float, float, float]
"""One value for each of R, G, B."""
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Resize(msgspec.Struct, frozen=True):
    """Windows are brought to another size before the model sees them, as Pillow would, with antialiasing."""

    size: tuple[int, int] | int
    """(height, width), or the length of the shorter side."""
    interpolation: Interpolation = "bilinear"

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a window comes to. Source: torchvision, ``transforms.Resize``."""
        if not isinstance(self.size, int):
            return self.size
        shorter, longer = sorted((height, width))
        scaled = int(self.size * longer / shorter)
        return (scaled, self.size) if width <= height else (self.size, scaled)


class Normalize(msgspec.Struct, frozen=True):
    """(pixels − mean) / std per channel, of pixels from 0 to 1."""

    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"mean must be finite and std above 0, got {self.mean} and {self.std}")


class ModelConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration file says; what it leaves out is None."""

    patch_size: int | None = None
    """Side of the windows that the model is made for, in pixels."""
    mpp: float | None = None
    """Micrometres per pixel that it is made for."""
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    """Numbers that it gives for a window."""
    resize: Resize | None = None
    normalize: Normalize | None = None
    activation: Activation | None = None


class _Transform(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any] = {}


class _File(msgspec.Struct):
    """The file's fields, by the names that wsinfer gives them, and ours."""

    spec_version: Literal["1.0"] | None = None
    name: str | None = None
    architecture: str | None = None
    num_classes: _Positive | None = None
    class_names: tuple[str, ...] | None = None
    patch_size_pixels: _Positive | None = None
    spacing_um_px: Annotated[float, msgspec.Meta(gt=0)] | None = None
    transform: tuple[_Transform, ...] = (_Transform("ToTensor"),)
    activation: Activation | None = None
    """Ours: what is applied to what the model gives."""


class _ResizeArguments(msgspec.Struct, forbid_unknown_fields=True):
    size: _Positive | Annotated[tuple[_Positive, ...], msgspec.Meta(min_length=1, max_length=2)]
    interpolation: str | int = "bilinear"
    max_size: None = None
    antialias: bool | None = None
    """Without effect: torchvision antialiases pictures of Pillow, which wsinfer gives it, whatever stands here."""


class _NormalizeArguments(msgspec.Struct, forbid_unknown_fields=True):
    mean: Channels
    std: Channels
    inplace: bool = False


class _ToTensorArguments(msgspec.Struct, forbid_unknown_fields=True):
    pass


_ARGUMENTS = {"Resize": _ResizeArguments, "ToTensor": _ToTensorArguments, "Normalize": _NormalizeArguments}
_INTERPOLATIONS: dict[str | int, Interpolation] = {
    **{name: name for name in ("nearest", "bilinear", "bicubic")},
    **{0: "nearest", 2: "bilinear", 3: "bicubic"},
}
"""By torchvision's names and Pillow's numbers."""


def configuration_beside(model: Path) -> Path | None:
    """The configuration that lies beside a model: ``model.toml`` or ``model.json`` for ``model.pt``, or ``config.json``; the
    first of them that there is.
    """
    candidates = (model.with_suffix(".toml"), model.with_suffix(".json"), model.with_name("config.json"))
    return next((path for path in candidates if path.is_file()), None)


def read_configuration(path: Path) -> ModelConfiguration:
    """The configuration in a ``.toml`` or ``.json`` file.

    Every field may be left out of a TOML file, and none be added. A JSON file is wsinfer's: it must say its ``spec_version``,
    and what its schema does not know is passed over. A configuration that says its ``spec_version`` means what wsinfer
    does with it: what the model gives goes through the softmax of several classes, or the sigmoid of one, unless
    ``activation`` says otherwise.

    Raises ConfigError naming the file, the field and what was expected.
    """
    try:
        text = path.read_bytes()
        fields = (msgspec.toml if path.suffix.lower() == ".toml" else msgspec.json).decode(text)
    except OSError as error:
        raise ConfigError(f"{path}: the model's configuration cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is no valid {path.suffix[1:].upper()}: {error}") from error
    own = path.suffix.lower() == ".toml"
    if not own and (not isinstance(fields, dict) or "spec_version" not in fields):
        raise ConfigError(
            f"{path} is no model configuration of wsinfer: it has no spec_version; give config= the right file, or write a "
            ".toml beside the model, which is preferred"
        )
    if own and (unknown := [name for name in fields if name not in _File.__struct_fields__]):
        raise ConfigError(f"{path}: there is no field {unknown[0]!r}; there are {', '.join(_File.__struct_fields__)}")
    return _checked(path, _convert(fields, _File, f"{path}"))


def _checked(path: Path, file: _File) -> ModelConfiguration:
    names, number = file.class_names, file.num_classes
    if names is not None and len(set(names)) < len(names):
        raise ConfigError(f"{path}: class_names must be different, got {list(names)}")
    if names is not None and number is not None and number != len(names):
        raise ConfigError(f"{path}: num_classes is {number}, class_names has {len(names)}: {list(names)}")
    number = number if names is None else len(names)
    resize, normalize = _transforms(path, file.transform)
    return ModelConfiguration(
        patch_size=file.patch_size_pixels,
        mpp=file.spacing_um_px,
        class_names=names,
        num_classes=number,
        resize=resize,
        normalize=normalize,
        activation=file.activation or (_wsinfers(number) if file.spec_version is not None else None),
    )


def _wsinfers(classes: int | None) -> Activation | None:
    """What wsinfer applies. Source: ``wsinfer/modellib/run_inference.py``."""
    return None if classes is None else "sigmoid" if classes == 1 else "softmax"


def _transforms(path: Path, transforms: tuple[_Transform, ...]) -> tuple[Resize | None, Normalize | None]:
    for number, transform in enumerate(transforms):
        if transform.name not in _ARGUMENTS:
            raise ConfigError(
                f"{path}: transform {number} is {transform.name!r}, which is not known here; known are {', '.join(_ARGUMENTS)}"
            )
    order = [transform.name for transform in transforms]
    if order != [name for name in _ARGUMENTS if name in order] or "ToTensor" not in order:
        raise ConfigError(
            f"{path}: transform must be Resize (or not), ToTensor, Normalize (or not), in this order; got {order}"
        )
    given = {
        transform.name: _convert(transform.arguments, _ARGUMENTS[transform.name], f"{path}: transform {transform.name}")
        for transform in transforms
    }
    resize, normalize = given.get("Resize"), given.get("Normalize")
    return (
        None if resize is None else _resize(path, resize),
        None if normalize is None else normalisation(normalize.mean, normalize.std, f"{path}: transform Normalize"),
    )


def _resize(path: Path, arguments: _ResizeArguments) -> Resize:
    interpolation = arguments.interpolation
    if isinstance(interpolation, str):
        interpolation = interpolation.lower()
    if interpolation not in _INTERPOLATIONS:
        raise ConfigError(
            f"{path}: transform Resize: interpolation must be one of nearest, bilinear, bicubic (or 0, 2, 3, as Pillow "
            f"numbers them), got {arguments.interpolation!r}"
        )
    size = arguments.size
    if not isinstance(size, int):
        size = size[0] if len(size) == 1 else (size[0], size[1])
    return Resize(size, _INTERPOLATIONS[interpolation])


def normalisation(mean: Any, std: Any, where: str) -> Normalize:
    """Checked; raises ConfigError beginning with `where`."""
    return _convert({"mean": mean, "std": std}, Normalize, where)  # type: ignore[no-any-return]


def _convert(value: Any, kind: type[Any], where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {str(error).replace('`$.', '`').replace(' - at `$`', '')}") from error
