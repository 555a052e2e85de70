"""Models in files give what they give in PyTorch; what is wrong with one is said, and the file named."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import streamwsi as sw
from streamwsi.collecting.models.configuration import Resize
from streamwsi.collecting.rows import Numbers
from streamwsi.collecting.spec import collector_arguments, collector_name, find_collector
from streamwsi.errors import ConfigError, ModelError
from streamwsi.geometry import Grid
from tests.helpers import BUNDLED, level_image

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'streamwsi[torch]'")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # it would rather have programs exported

SIDE = 48
MEAN, STD = (0.7, 0.55, 0.65), (0.15, 0.2, 0.18)
CONFIGURATION = f"""
class_names = ["glass", "stroma", "epithelium"]
patch_size_pixels = {SIDE}
spacing_um_px = 0.5
[[transform]]
name = "ToTensor"
[[transform]]
name = "Normalize"
arguments = {{ mean = {list(MEAN)}, std = {list(STD)} }}
"""


def network(dtype: Any = None, classes: int = 3) -> Any:
    """A small convolutional network with what makes modes and layouts matter: batch norm, dropout, pooling."""
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, classes),
    )
    net(torch.randn(8, 3, SIDE, SIDE))  # the batch norm has seen something
    return net.eval().to(dtype or torch.float32)


def scripted(path: Path, net: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fixtures are made outside of pytest's filters
        torch.jit.script(net).save(path)
    return path


def exported(path: Path, net: Any, n: int | None = None, dtype: Any = None) -> Path:
    """`n`: the only size that a batch may have; None: any."""
    pixels = torch.zeros((n or 2, 3, SIDE, SIDE), dtype=dtype or torch.float32)
    shapes = None if n else ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(net, (pixels,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, scripted and exported, with its configuration."""
    folder = tmp_path_factory.mktemp("models")
    scripted(folder / "model.pt", network())
    exported(folder / "model.pt2", network())
    exported(folder / "of_four.pt2", network(), n=4)
    (folder / "model.toml").write_text(CONFIGURATION)
    (folder / "of_four.toml").write_text(CONFIGURATION)
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    level = level_image(BUNDLED, 0)
    return np.stack(
        [level[y : y + SIDE, x : x + SIDE] for y, x in ((0, 0), (1000, 900), (1500, 900), (2200, 800), (2500, 700))]
    )


def batch_of(pixels: np.ndarray) -> sw.Batch:
    n, *_, height, width, _ = pixels.shape
    windows = Grid((width * n, height), (width, height), (width, height), "crop", 1.0).windows(np.arange(n))
    return sw.Batch(pixels.copy(), windows, sw.Slide(BUNDLED, "s"), sw.Patient("p", {"s": BUNDLED}))


def of(collector: sw.StreamCollector, pixels: np.ndarray) -> np.ndarray:
    """The rows that a run would store."""
    collector.setup()
    batch = batch_of(pixels)
    rows = Numbers().of_batch(collector.process(batch), batch.windows)
    collector.teardown()
    return rows


def as_input(pixels: np.ndarray, mean: Any = MEAN, std: Any = STD, dtype: Any = np.float32) -> Any:
    """What torchvision's ToTensor and Normalize make of them."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(dtype) / dtype(255))
    return (tensor - torch.tensor(mean, dtype=tensor.dtype)[:, None, None]) / torch.tensor(std, dtype=tensor.dtype)[
        :, None, None
    ]


def expected(pixels: np.ndarray, net: Any = None, **given: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = (net or network())(as_input(pixels, **given)).numpy()
    return found


BOTH = pytest.mark.parametrize(
    ("kind", "file"),
    [
        (sw.TorchScriptCollector, "model.pt"),
        (sw.ExportedProgramCollector, "model.pt2"),
        (sw.ExportedProgramCollector, "of_four.pt2"),
    ],
)


@BOTH
def test_a_model_gives_what_it_gives_in_pytorch(kind: Any, file: str, folder: Path, pixels: np.ndarray) -> None:
    rows = of(kind(folder / file), pixels)
    assert rows.dtype == np.float32 and rows.shape == (5, 3)
    np.testing.assert_allclose(rows, expected(pixels), rtol=1e-4, atol=1e-5)
    assert np.ptp(rows, axis=0).min() > 1e-3  # the windows differ, so that rows in another order would be seen


def test_several_resolutions_are_refused(folder: Path, pixels: np.ndarray) -> None:
    with pytest.raises(sw.ModelError, match="takes windows of one resolution"):
        of(sw.TorchScriptCollector(folder / "model.pt"), np.stack([pixels, pixels], axis=1))


@BOTH
def test_it_says_its_columns_windows_and_resolution(kind: Any, file: str, folder: Path) -> None:
    collector = kind(folder / file)
    assert (collector.columns, collector.kernel_size, collector.mpp) == (("glass", "stroma", "epithelium"), SIDE, 0.5)


@BOTH
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_activations(kind: Any, file: str, activation: str, folder: Path, pixels: np.ndarray) -> None:
    rows = of(kind(folder / file, activation=activation), pixels)
    logits = torch.from_numpy(expected(pixels))
    theirs = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid(), "none": logits}[activation]
    np.testing.assert_allclose(rows, theirs.numpy(), rtol=1e-4, atol=1e-5)


@BOTH
def test_under_autocast_rows_are_float32(kind: Any, file: str, folder: Path, pixels: np.ndarray) -> None:
    rows = of(kind(folder / file, autocast="bfloat16"), pixels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = network()(as_input(pixels))
    assert theirs.dtype == torch.bfloat16 and rows.dtype == np.float32
    np.testing.assert_allclose(rows, theirs.float().numpy(), rtol=0.02, atol=0.02)
    assert not np.array_equal(rows, of(kind(folder / file), pixels))


@BOTH
def test_channels_last_gives_the_same(kind: Any, file: str, folder: Path, pixels: np.ndarray) -> None:
    rows = of(kind(folder / file, channels_last=True), pixels)
    np.testing.assert_allclose(rows, expected(pixels), rtol=1e-4, atol=1e-5)


@BOTH
def test_a_batch_gives_the_same_whatever_came_before(kind: Any, file: str, folder: Path, pixels: np.ndarray) -> None:
    """To the last bit: a worker that replaces another has not seen the same batches."""
    collector = kind(folder / file)
    collector.setup()
    first = collector.process(batch_of(pixels))
    for n in (5, 1, 3, 5):
        collector.process(batch_of(pixels[:n]))
    assert torch.equal(collector.process(batch_of(pixels)), first)


def test_mean_and_std_may_be_given(folder: Path, pixels: np.ndarray) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.5, 1, 2)
    rows = of(sw.TorchScriptCollector(folder / "model.pt", mean=mean, std=std), pixels)
    np.testing.assert_allclose(rows, expected(pixels, mean=mean, std=std), rtol=1e-4, atol=1e-5)


def test_without_a_configuration_pixels_go_from_0_to_1_and_values_have_no_names(tmp_path: Path, pixels: np.ndarray) -> None:
    collector = sw.TorchScriptCollector(scripted(tmp_path / "model.pt", network()))
    assert (collector.columns, collector.kernel_size, collector.mpp) == (None, None, None)
    np.testing.assert_allclose(of(collector, pixels), expected(pixels, mean=(0, 0, 0), std=(1, 1, 1)), rtol=1e-4, atol=1e-5)


def test_what_the_model_is_given_is_what_torchvision_makes_of_it(tmp_path: Path, pixels: np.ndarray) -> None:
    rows = of(sw.TorchScriptCollector(scripted(tmp_path / "m.pt", torch.nn.Identity()), mean=MEAN, std=STD), pixels)
    np.testing.assert_allclose(rows, as_input(pixels).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_pixels_come_in_the_dtype_of_the_weights(dtype: str, tmp_path: Path, pixels: np.ndarray) -> None:
    kind = getattr(torch, dtype)
    rows = of(sw.TorchScriptCollector(scripted(tmp_path / "m.pt", network(kind)), mean=MEAN, std=STD), pixels)
    if dtype == "float64":
        np.testing.assert_allclose(rows, expected(pixels, network(kind), dtype=np.float64), rtol=1e-10)
    else:
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, expected(pixels), atol=0.05)


def test_a_program_saved_in_training_is_not_run_in_training(tmp_path: Path, pixels: np.ndarray) -> None:
    collector = sw.TorchScriptCollector(scripted(tmp_path / "m.pt", network().train()), mean=MEAN, std=STD)
    np.testing.assert_allclose(of(collector, pixels), expected(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 40), (61, 70), 20])
def test_windows_are_resized_as_pillow_does(size: Any, interpolation: str, pixels: np.ndarray) -> None:
    from streamwsi.collecting.models.running import resized

    windows = pixels[:, :, :40]
    resize = Resize(size, interpolation)  # type: ignore[arg-type]
    height, width = resize.of(*windows.shape[1:3])
    mode = Image.Resampling[interpolation.upper()]
    theirs = np.stack([np.asarray(Image.fromarray(window).resize((width, height), mode)) for window in windows])
    ours = resized(torch.from_numpy(windows.transpose(0, 3, 1, 2).astype(np.float32)), resize).permute(0, 2, 3, 1).numpy()
    assert ours.shape == theirs.shape
    if interpolation == "nearest":  # where two are equally near, either is
        assert (ours != theirs).any(axis=-1).mean() < 0.05
    else:
        assert np.abs(ours - theirs).max() <= 1


def test_the_configurations_resize_is_applied(folder: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    resize = f'[[transform]]\nname = "Resize"\narguments = {{ size = {SIDE} }}\n'
    (tmp_path / "m.toml").write_text(CONFIGURATION.replace("[[transform]]", resize + "[[transform]]", 1))
    larger = np.stack([np.asarray(Image.fromarray(window).resize((100, 100))) for window in pixels])
    back = np.stack([np.asarray(Image.fromarray(w).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for w in larger])
    rows = of(sw.ExportedProgramCollector(folder / "model.pt2", config=tmp_path / "m.toml"), larger)
    np.testing.assert_allclose(rows, expected(back), atol=0.02)


def test_values_of_any_shape_are_rows(tmp_path: Path, pixels: np.ndarray) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(1, 2, 3))

    rows = of(sw.TorchScriptCollector(scripted(tmp_path / "m.pt", Mean())), pixels)
    np.testing.assert_allclose(rows, pixels.mean(axis=(1, 2, 3)) / 255, rtol=1e-5)
    maps = of(sw.TorchScriptCollector(scripted(tmp_path / "c.pt", torch.nn.Conv2d(3, 2, 5))), pixels)
    assert maps.shape == (5, 2, SIDE - 4, SIDE - 4)


# what is compared on resume


def test_weights_and_options_decide_the_results(folder: Path, tmp_path: Path) -> None:
    one = collector_arguments(sw.TorchScriptCollector(folder / "model.pt"))
    net = network()
    with torch.no_grad():
        net[-1].bias += 0.001
    other = collector_arguments(sw.TorchScriptCollector(scripted(tmp_path / "model.pt", net), config=folder / "model.toml"))
    assert {name for name in one if one[name] != other[name]} == {"model_hash"}
    softmax = collector_arguments(sw.TorchScriptCollector(folder / "model.pt", activation="softmax", autocast="bfloat16"))
    assert {name for name in one if one[name] != softmax[name]} == {"activation", "autocast"}
    (tmp_path / "bare.toml").write_text("")
    bare = collector_arguments(sw.TorchScriptCollector(folder / "model.pt", config=tmp_path / "bare.toml"))
    assert {name for name in one if one[name] != bare[name]} == {"mean", "std"}


def test_where_the_files_lie_does_not(folder: Path, tmp_path: Path) -> None:
    for name in ("model.pt", "model.toml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    named = find_collector(f"torchscript:{tmp_path / 'model.pt'}", {"config": str(tmp_path / "model.toml")})
    assert collector_arguments(named) == collector_arguments(sw.TorchScriptCollector(folder / "model.pt"))


def test_the_command_lines_names(folder: Path) -> None:
    for name, kind in (("torchscript", sw.TorchScriptCollector), ("export", sw.ExportedProgramCollector)):
        file = "model.pt" if name == "torchscript" else "model.pt2"
        collector = find_collector(f"{name}:{folder / file}", {"activation": "softmax", "mean": [0.5] * 3, "std": [1, 1, 1]})
        assert type(collector) is kind and collector_name(collector) == name
        assert (collector.activation, collector.std) == ("softmax", (1.0, 1.0, 1.0))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"collector 'torchscript:.*cannot be made with arguments \{'colour': 'red'\}"):
        find_collector(f"torchscript:{folder / 'model.pt'}", {"colour": "red"})


# what is wrong


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ConfigError, match=f"there is no model {path}"):
            sw.TorchScriptCollector(path)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(kept: float, folder: Path, tmp_path: Path) -> None:
    data = (folder / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(kept * len(data) if kept < 1 else kept)])
    with pytest.raises(ConfigError, match=r"cut\.pt holds no model, or was cut short"):
        sw.TorchScriptCollector(tmp_path / "cut.pt")


def test_a_damaged_file_is_refused_when_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "model.pt").read_bytes())
    with zipfile.ZipFile(folder / "model.pt") as archive:
        pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    data[pickled.header_offset + 100 : pickled.header_offset + 140] = bytes(40)
    (tmp_path / "damaged.pt").write_bytes(data)
    with pytest.raises(ModelError, match=r"damaged\.pt cannot be loaded onto cpu by PyTorch .* it is damaged"):
        sw.TorchScriptCollector(tmp_path / "damaged.pt").setup()


def test_the_wrong_kind_of_file_is_refused_with_the_right_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.pt2 is not a TorchScript program: .* use export:.*model\.pt2"):
        sw.TorchScriptCollector(folder / "model.pt2")
    with pytest.raises(ConfigError, match=r"model\.pt is not a program of torch\.export: .* use torchscript:.*model\.pt"):
        sw.ExportedProgramCollector(folder / "model.pt")
    for saved in (network().state_dict(), network()):
        torch.save(saved, tmp_path / "weights.pt")
        with pytest.raises(ConfigError, match=r"weights\.pt is not a Torch.* no program: save one with torch\.jit\.script"):
            sw.TorchScriptCollector(tmp_path / "weights.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(ConfigError, match=r"arrays\.npz is not a program of torch\.export: it is an archive of something else"):
        sw.ExportedProgramCollector(tmp_path / "arrays.npz")


def test_a_model_that_changed_since_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes((folder / "model.pt").read_bytes())
    collector = sw.TorchScriptCollector(path)
    scripted(path, network(classes=2))
    with pytest.raises(ModelError, match=r"model\.pt has changed since the run began"):
        collector.setup()


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
@BOTH
def test_a_device_that_is_not_there_is_named_with_those_that_are(kind: Any, file: str, device: str, folder: Path) -> None:
    collector = kind(folder / file)
    collector.device = device
    with pytest.raises(ModelError, match=rf"{file}: device '{device}' cannot be used; PyTorch .* has cpu.* here: "):
        collector.setup()


def test_windows_of_another_size_than_was_exported_are_refused_with_it(folder: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"model\.pt2: the model failed on pixels \(5, 3, 40, 48\) .* for \(any, 3, 48, 48\)"):
        of(sw.ExportedProgramCollector(folder / "model.pt2"), pixels[:, :40])


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten()


class Scalar(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Pair(), r"the model gave a tuple, expected one tensor \(n, …\)"),
        (Flat(), r"the model gave \(34560,\) for 5 windows, expected \(5, …\)"),
        (Scalar(), r"the model gave \(\) for 5 windows, expected \(5, …\)"),
        (torch.nn.Conv2d(4, 1, 1), r"the model failed on pixels \(5, 3, 48, 48\) torch\.float32 on cpu: "),
    ],
)
def test_what_is_no_row_per_window_is_refused(net: Any, message: str, tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ModelError, match=rf"(?s)odd\.pt: {message}"):
        of(sw.TorchScriptCollector(scripted(tmp_path / "odd.pt", net)), pixels)


def test_other_numbers_than_the_configuration_has_classes_are_refused(folder: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    path = scripted(tmp_path / "two.pt", network(classes=2))
    with pytest.raises(ModelError, match=r"two\.pt: the model gave \(5, 2\) for 5 windows, expected \(5, 3\)"):
        of(sw.TorchScriptCollector(path, config=folder / "model.toml"), pixels)


def test_one_number_has_no_softmax(tmp_path: Path, pixels: np.ndarray) -> None:
    path = scripted(tmp_path / "one.pt", network(classes=1))
    with pytest.raises(ModelError, match=r"gave \(5, 1\) for 5 windows, expected .*, for a softmax"):
        of(sw.TorchScriptCollector(path, activation="softmax"), pixels)


def test_a_program_that_takes_more_than_pixels_is_refused(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    torch.export.save(torch.export.export(Sum(), (torch.zeros(2, 3, 4, 4),) * 2), tmp_path / "sum.pt2")
    with pytest.raises(ModelError, match=r"sum\.pt2: the program takes 2 inputs \('x', 'y'\), expected one"):
        sw.ExportedProgramCollector(tmp_path / "sum.pt2").setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": MEAN}, "mean and std go together, got"),
        ({"mean": (1, 2), "std": STD}, "mean and std: .*at `mean`"),
        ({"mean": MEAN, "std": (1, 1, 0)}, "std above 0"),
        ({"activation": "relu"}, "activation must be one of 'none', 'softmax', 'sigmoid', got 'relu'"),
        ({"autocast": "int8"}, "autocast must be one of None, 'bfloat16', 'float16', got 'int8'"),
        ({"channels_last": "yes"}, "channels_last must be one of False, True, got 'yes'"),
        ({"config": "none.toml"}, "none.toml: the model's configuration cannot be read"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sw.TorchScriptCollector(folder / "model.pt", **options)


def test_without_pytorch_the_extra_is_named_before_anything_starts_and_it_is_not_imported_in_the_users_process(
    folder: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, streamwsi as sw\n"
        f"model = {str(folder / 'model.pt')!r}\n"
        "sw.TorchScriptCollector(model)\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"  # as if it were not installed
        "try: sw.TorchScriptCollector(model)\n"
        "except sw.ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder / 'model.pt'} takes PyTorch, which is not installed: pip install 'streamwsi[torch]'\n"


# in runs


def test_in_a_run_rows_are_those_of_the_model_whatever_the_devices_and_another_model_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    dataset = sw.Dataset([sw.Patient(BUNDLED.stem, {BUNDLED.stem: BUNDLED})])
    collector = sw.TorchScriptCollector(folder / "model.pt", activation="softmax")
    level = sw.LevelAtMpp(collector.mpp or 0)
    loader = sw.SlidingWindowLoader(dataset, collector.kernel_size or 0, (200, 300), level=level, border="crop")

    def run(collector: sw.StreamCollector) -> None:
        writer = sw.HDF5StreamWriter(tmp_path / "two")
        sw.Pipeline(loader, collector, writer, devices=["cpu", "cpu"], chunk_px=1 << 18, quiet=True).run()

    run(collector)
    command = [sys.executable, "-m", "streamwsi.cli", "heatmap", BUNDLED, "--out", tmp_path / "one", "--quiet"]
    windows_asked = ["--kernel-size", SIDE, "--stride", "200x300", "--border", "crop"]
    model = ["--collector", f"export:{folder / 'model.pt2'}", "--arg", "activation=softmax", "--devices", "cpu"]
    subprocess.run([*map(str, (*command, *windows_asked, *model))], check=True)

    image = level_image(BUNDLED, 0)
    starts = [(x, y) for y in range(0, image.shape[0] - SIDE + 1, 300) for x in range(0, image.shape[1] - SIDE + 1, 200)]
    windows = np.stack([image[y : y + SIDE, x : x + SIDE] for x, y in starts])
    theirs = torch.from_numpy(expected(windows)).softmax(1).numpy()
    for out, name in (("two", "torchscript"), ("one", "export")):
        pieces = sw.read_pieces(tmp_path / out / f"{BUNDLED.stem}.h5")
        assert pieces.values.dtype == np.float32 and len(pieces.values) == len(starts)
        np.testing.assert_allclose(pieces.values, theirs, rtol=1e-4, atol=1e-5)
        defining = json.loads((tmp_path / out / "run.json").read_text())["defining"]
        assert (defining["collector"], defining["columns"]) == (name, ["glass", "stroma", "epithelium"])
        assert defining["collector_arguments"]["activation"] == "softmax"

    other = scripted(tmp_path / "other.pt", network().double())
    with pytest.raises(
        sw.OutputError, match=r"another run: its collector_arguments is \{'model_hash': .* this one's is"
    ) as refusal:
        run(sw.TorchScriptCollector(other, activation="softmax", config=folder / "model.toml"))
    assert collector.model_hash in str(refusal.value)
