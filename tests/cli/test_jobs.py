"""Jobs: what the options of ``heatmap``, the fields of a job file and the template have in common, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.cli import cli
from streamwsi.cli.execute import dataset_of, window_of
from streamwsi.cli.heatmap import heatmap
from streamwsi.cli.job import (
    COMMAND_LINE_ONLY,
    CollectorJob,
    Job,
    PairedJob,
    default_of,
    example_of,
    help_of,
    job_of,
    path_fields,
)
from streamwsi.cli.job_file import line_of, read_job, template, written
from streamwsi.cli.options import job_from_options, option_name
from streamwsi.config import MOST, MOST_NUMBER
from streamwsi.pipeline.report import PatientReport, Report, SlideReport

SETTING = re.compile(r"^#(?=[\w\[])", re.MULTILINE)
"""What is to be removed from a line of the template to make it count."""


def save(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(sw.ConfigError) as refused:
        read_job(save(folder, text))
    return str(refused.value).replace(f"{folder}/", "")


def job_of_command(*arguments: str) -> Job:
    """The job that a command line of ``heatmap`` means."""
    context = heatmap.make_context("heatmap", list(arguments))
    return job_from_options({name: value for name, value in context.params.items() if name in Job.__struct_fields__})


# options, fields and template are one


def test_every_field_is_an_option_that_says_what_it_means():
    options = {param.name: param for param in heatmap.params}
    assert set(options) == {*Job.__struct_fields__, "overwrite", "quiet", "as_json"}
    for name in set(Job.__struct_fields__) - {"slides", "arguments"}:
        option = options[name]
        assert isinstance(option, click.Option) and option_name(name) in option.opts
        assert (option.help or "").startswith(help_of(Job, name).rstrip("."))


def test_an_option_that_is_not_given_is_the_field_s_default():
    job = job_of_command("a.svs", "--out", "o", "--collector", "mean")
    for name in set(Job.__struct_fields__) - {"slides", "out", "collector"}:
        assert getattr(job, name) == default_of(Job, name), name


def test_the_template_saved_is_a_job(tmp_path):
    job = read_job(save(tmp_path, template()))
    assert job == Job(slides=f"{tmp_path}/slides/", out=f"{tmp_path}/out/", collector="mean")


def test_the_template_with_every_line_made_to_count_is_a_job_with_every_field(tmp_path):
    every = SETTING.sub("", template())
    job = read_job(save(tmp_path, every))
    assert job.arguments == {"threshold": 0.5}
    for name in Job.__struct_fields__:
        assert re.search(rf"^{name} = |^\[{name}\]$", every, re.MULTILINE), name
        if name not in (*path_fields(), "arguments", "background", "paired"):
            assert getattr(job, name) == example_of(Job, name), name


def test_the_template_s_several_collectors_are_a_job(tmp_path):
    text = re.sub(r"^##(?=[\w\[])", "", template(), flags=re.MULTILINE).replace('collector = "mean"', "", 1)
    job = read_job(save(tmp_path, text))
    assert job.images["mask"] == PairedJob(
        **{name: example_of(PairedJob, name) for name in PairedJob.__struct_fields__ if name != "source"},
        source=f"{tmp_path}/labels/{{stem}}.png",
    )
    assert list(job.several) == ["tissue"]
    for name in CollectorJob.__struct_fields__:
        assert name == "arguments" or getattr(job.several["tissue"], name) == example_of(CollectorJob, name)


values_of_fields = {
    "slides": st.one_of(st.just("/s"), st.lists(st.text("abc/ é\"'\\", min_size=1).map("/".__add__), min_size=1, max_size=3)),
    "out": st.text("ab é#=\n", min_size=1).map("/".__add__),
    "arguments": st.dictionaries(
        st.text("abc_", min_size=1), st.one_of(st.integers(), st.booleans(), st.text(), st.lists(st.integers()))
    ),
    "kernel_size": st.one_of(st.none(), st.integers(1, MOST), st.lists(st.integers(1, MOST), min_size=2, max_size=2)),
    "level": st.one_of(st.none(), st.integers(0, 9)),
    "mpp": st.one_of(st.none(), st.floats(0.01, 99)),
    "magnification": st.one_of(st.none(), st.floats(0.01, 99)),
    "missing_mpp": st.one_of(st.none(), st.floats(0.01, 99)),
    "levels": st.one_of(st.none(), st.lists(st.integers(0, 9), min_size=1)),
    "mpps": st.one_of(st.none(), st.lists(st.floats(0.01, 99), min_size=1)),
    "border": st.sampled_from(["pad", "crop"]),
    "background": st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
    "devices": st.one_of(st.none(), st.lists(st.text("cuda:01"), max_size=3)),
    "one_file": st.booleans(),
    "grace": st.floats(0, MOST_NUMBER),
    "batch_size": st.one_of(st.none(), st.integers(1, MOST)),
}


@given(st.fixed_dictionaries(values_of_fields))
def test_a_job_that_is_written_is_read_again(tmp_path_factory, values):
    job = Job(collector="mean", **values)
    path = tmp_path_factory.mktemp("job") / "job.toml"
    path.write_bytes(written(job, "What was run\nhere"))
    assert read_job(path) == job


# lines and fields


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("strid = 128", "job.toml, line 4, strid: there is no such field; did you mean stride?"),
        ("qqqqqq = 1", "job.toml, line 4, qqqqqq: there is no such field; there are slides, out, collector"),
        ('writers = "2"', "job.toml, line 4, writers: expected a whole number, got '2'"),
        ("writers = 0", "job.toml, line 4, writers: expected a whole number >= 1, got 0"),
        ("kernel_size = [256]", "job.toml, line 4, kernel_size: expected a list of length >= 2, got [256]"),
        ("kernel_size = 0", "job.toml, line 4, kernel_size: expected a whole number >= 1, got 0"),
        ("level = -1", "job.toml, line 4, level: expected a whole number >= 0, got -1"),
        ('border = "wrap"', "line 4, border: expected one of 'pad', 'edge', 'squeeze', 'adaptive', 'crop', got 'wrap'"),
        ("background = [0, 0, 256]", "line 4, background: expected a whole number <= 255, got [0, 0, 256]"),
        ("grace = -0.5", "line 4, grace: expected a number >= 0.0, got -0.5"),
        ("grace = nan", "line 4, grace: expected a number >= 0.0, got nan"),
        ("grace = inf", "line 4, grace: expected a number <= 1000000000.0, got inf"),
        ("tile_cache_mb = 1e30", "line 4, tile_cache_mb: expected a number <= 1000000000.0, got 1e+30"),
        ("max_restarts = 99999999999999999999999", "line 4, max_restarts: expected a whole number <= 2147483647, got 999"),
        ("one_file = 1", "line 4, one_file: expected true or false, got 1"),
        ('devices = "cuda:0"', "line 4, devices: expected a list, got 'cuda:0'"),
        ("arguments = 1", "line 4, arguments: expected a table, got 1"),
        ("slides = 'again'", "job.toml, line 4: this is not TOML: "),
        ("level = ", "job.toml, line 4: this is not TOML: "),
        ("level = [0,", "job.toml, line 4: this is not TOML: "),
        ("overwrite = true", "line 4, overwrite: it is not part of a job: give it on the command line, as --overwrite"),
    ],
)
def test_line_and_field_are_named(tmp_path, line, message):
    assert message in refusal(tmp_path, f"slides = 's'\nout = 'o'\ncollector = 'mean'\n{line}\n")


def test_a_line_is_found_after_values_of_several_lines(tmp_path):
    text = '''
        # a comment that says writers = 1
        slides = [
            "writers = 0",   # a string
            "b",
        ]
        out = """
        writers = 2"""

        collector = "mean"
        writers = 0
        '''
    assert "job.toml, line 11, writers" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slides = 's'\nout = 'o'\n", "job.toml: collector is missing: What makes the values"),
        ("slides = 's'\ncollector = 'mean'\n", "job.toml: out is missing: Folder for the patients' files."),
        ("slides = 's'\nout = 'o'\ncollector = 'mean'\n[collectors.a]\ncollector = 'mean'\n", "line 3, collector: give it in"),
        ("slides = 's'\nout = 'o'\n[arguments]\nx = 1\n[collectors.a]\ncollector = 'mean'\n", "line 3, arguments: give it in"),
        ("slides = 's'\nout = 'o'\n[collectors]\n", "line 3, collectors: there is no collector in it"),
        ("slides = 's'\nout = 'o'\n[collectors.a]\nbatch_size = 2\n", "line 3, collectors.a: collector is missing"),
        (
            "slides = 's'\nout = 'o'\n[collectors.a]\ncollector = 'mean'\n[collectors.b]\ncollector = 'mean'\nbatch_sise = 2\n",
            "line 7, collectors.b.batch_sise: there is no such field; did you mean batch_size?",
        ),
        ("slides = 's'\nout = 'o'\n[collectors.a]\ncollector = 1\n", "line 4, collectors.a.collector: expected text, got 1"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(sw.ConfigError, match=r"job\.toml cannot be read as a job: .*utf-8"):
        read_job(tmp_path / "job.toml")
    with pytest.raises(sw.ConfigError, match=r"none\.toml cannot be read as a job: No such file"):
        read_job(tmp_path / "none.toml")


@given(
    st.lists(st.tuples(st.text("abc", min_size=1), st.sampled_from(['"x"', "1", "[\n1,\n2]", '"""\na = 1\n"""'])), max_size=6)
)
def test_the_line_of_a_field_is_where_it_is_given(pairs):
    text, expected = "", {}
    for name, value in pairs:
        if name not in expected:
            text += "\n# comment\n"
            expected[name] = text.count("\n") + 1
            text += f"{name} = {value}\n"
    for name, line in expected.items():
        assert line_of(text, (name,)) == line
    assert line_of(text, ("not_there",)) is None


def test_command_line_only_options_are_options_of_run_and_heatmap():
    for name in ("heatmap", "run"):
        said = {opt for param in cli.commands[name].params for opt in param.opts}
        assert {f"--{option}" for option in COMMAND_LINE_ONLY} <= said


# paths


def test_paths_are_relative_to_the_job_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    job = read_job(
        save(
            tmp_path / "deep",
            """
            slides = ["a.svs", "/abs/b.svs"]
            out = "o"
            collector = "my_model.py:Mine"
            journal_dir = "j"
            key_dir = "k"
            [arguments]
            weights = "w.pt"
            """,
        )
    )
    deep = tmp_path / "deep"
    assert job.slides == [f"{deep}/a.svs", "/abs/b.svs"]
    assert (job.out, job.journal_dir, job.key_dir) == (f"{deep}/o", f"{deep}/j", f"{deep}/k")
    assert job.collector == f"{deep}/my_model.py:Mine"
    assert job.arguments == {"weights": "w.pt"}


@pytest.mark.parametrize(
    ("spec", "anchored"),
    [
        ("mean", "mean"),
        ("package.module:Class", "package.module:Class"),
        ("m.py:Class", "{}/m.py:Class"),
        ("/x/m.py:Class", "/x/m.py:Class"),
        ("torchscript:net.pt", "torchscript:{}/net.pt"),
        ("torchscript:models/net", "torchscript:{}/models/net"),
    ],
)
def test_the_file_of_a_collector_is_relative_to_the_job_file_too(tmp_path, spec, anchored):
    one = read_job(save(tmp_path, f"slides = 's'\nout = 'o'\ncollector = '{spec}'\n"))
    several = read_job(save(tmp_path, f"slides = 's'\nout = 'o'\n[collectors.a]\ncollector = '{spec}'\n"))
    assert one.collector == several.several["a"].collector == anchored.format(tmp_path)


def test_slides_are_a_folder_a_manifest_files_or_patterns(tmp_path):
    for name in ("x/a.svs", "x/y/b.svs", "c.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "m.csv").write_text("patient,slide,path\nanna,H&E,c.tif\n")

    def found(slides: str | list[str]) -> list[str]:
        return [patient.id for patient in dataset_of(slides)]

    assert found(f"{tmp_path}/x") == found(f"{tmp_path}/x/**/*.svs") == ["a", "b"]
    assert found(f"{tmp_path}/m.csv") == ["anna"]
    assert found([f"{tmp_path}/c.tif", f"{tmp_path}/x/*.svs"]) == ["c", "a"]
    with pytest.raises(sw.ConfigError, match=r"no file matches .*\*\.ndpi"):
        found(f"{tmp_path}/*.ndpi")
    with pytest.raises(sw.ConfigError, match="is a folder among others"):
        found([f"{tmp_path}/x", f"{tmp_path}/c.tif"])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "[a].svs").touch()
    assert dataset_of(f"{tmp_path}/[a].svs")[0].slides[0].path == tmp_path / "[a].svs"


# several collectors on the command line


def test_several_collectors_are_tables():
    job = job_of_command(
        *("a.svs", "--out", "/o", "--collector", "mean", "--collector", "feat=/m.py:Features"),
        *("--arg", "feat.threshold=1", "--arg", "mean.x=a=b", "--collectors", "feat=2", "--devices", "feat=cuda:0,cuda:1"),
        *("--batch-size", "64", "--batch-size", "mean=8"),
    )
    assert job.several == {
        "mean": CollectorJob(collector="mean", arguments={"x": "a=b"}, batch_size=8),
        "feat": CollectorJob(
            collector="/m.py:Features", arguments={"threshold": 1}, batch_size=64, collectors=2, devices=["cuda:0", "cuda:1"]
        ),
    }


@pytest.mark.parametrize("spec", ["m.py:Redness", "package.m:Redness"])
def test_a_collector_is_called_after_its_class(spec):
    job = job_of_command("a.svs", "--out", "/o", "--collector", spec, "--collector", "mean")
    assert list(job.several) == ["Redness", "mean"]


def test_a_model_is_called_after_its_file():
    job = job_of_command("a.svs", "--out", "/o", "--collector", "torchscript:nets/resnet.pt", "--collector", "mean")
    assert list(job.several) == ["resnet", "mean"]


def test_one_collector_with_a_name_is_a_table():
    assert list(job_of_command("a.svs", "--out", "/o", "--collector", "only=mean").several) == ["only"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--collector", "mean"], "--collector: two are called 'mean'; give each a name, as mean_2=mean"),
        (["--arg", "x=1"], "--arg x=1: there are several collectors, say whose it is, as mean.x=1"),
        (["--arg", "men.x=1"], "--arg men.x=1: there is no collector 'men'; there are mean, stain"),
        (["--devices", "men=cuda:0"], "--devices men=cuda:0: there is no collector 'men'; there are mean, stain"),
        (["--batch-size", "mean=0"], "--batch-size: expected a whole number >= 1, got 0"),
        (["--collectors", "mean=many"], "--collectors: expected a whole number, got 'many'"),
        (["--batch-size", "many"], "--batch-size: expected a whole number, got 'many'"),
    ],
)
def test_what_is_said_of_several_collectors_must_fit(options, message):
    with pytest.raises(sw.ConfigError, match=re.escape(message)):
        job_of_command("a.svs", "--out", "/o", "--collector", "mean", "--collector", "stain=hematoxylin", *options)


# runs, with a stand-in for the pipeline


class StandIn:
    """Takes what a Pipeline takes, and says what it was given."""

    given: dict[str, Any]
    reports: Any = Report(streamwsi_version="0")

    def __init__(self, loader: Any, collector: Any, writer: Any, **options: Any) -> None:
        type(self).given = {"loader": loader, "collector": collector, "writer": writer, **options}

    def run(self) -> Any:
        if isinstance(self.reports, Exception):
            raise self.reports
        return self.reports


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    kind = type("StandIn", (StandIn,), {})
    monkeypatch.setattr("streamwsi.pipeline.pipeline.Pipeline", kind)
    return kind


@pytest.fixture
def invoke(tmp_path: Path, bundled: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call the command line in a folder with a slide."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundled, tmp_path / "a.svs")
    return lambda *arguments: CliRunner().invoke(cli, list(arguments), standalone_mode=False)


def test_one_collector_is_given_as_it_was_before(stand_in, invoke, tmp_path):
    done = invoke("heatmap", "a.svs", "--out", "o", "--collector", "mean", "--kernel-size", "64x32", "--devices", "cpu, cpu:1")
    assert done.return_value == 0
    assert isinstance(stand_in.given["collector"], sw.MeanCollector)
    assert stand_in.given["devices"] == ["cpu", "cpu:1"]
    assert stand_in.given["collectors"] is None and stand_in.given["batch_size"] is None
    assert stand_in.given["loader"].kernel_size == stand_in.given["loader"].stride == (64, 32)
    assert stand_in.given["stall_timeout_s"] == 1800.0 and stand_in.given["overwrite"] is False


def test_several_collectors_are_given_by_name(stand_in, invoke, tmp_path):
    stand_in.reports = {
        "mean": Report(streamwsi_version="0"),
        "h": Report(streamwsi_version="0", state="some slides failed"),
    }
    command = ["--collector", "mean", "--collector", "h=hematoxylin", "--batch-size", "h=8", "--collectors", "h=2"]
    done = invoke("heatmap", "a.svs", "--out", "o", *command, "--json")
    assert done.return_value == 1  # the worst of both
    assert {name: type(one) for name, one in stand_in.given["collector"].items()} == {
        "mean": sw.MeanCollector,
        "h": sw.HematoxylinCollector,
    }
    assert (stand_in.given["batch_size"], stand_in.given["collectors"]) == ({"h": 8}, {"h": 2})
    assert stand_in.given["devices"] is None
    assert {name: report["state"] for name, report in json.loads(done.output).items()} == {
        "mean": "done",
        "h": "some slides failed",
    }
    before = stand_in.given
    again = invoke("run", "o/job.toml")
    assert again.return_value == 1 and f"h: 0 patients: ; 0 windows in 0.0 s (0/s)\nfiles: {tmp_path}/o/h;" in again.output
    for name in set(before) - {"loader", "collector", "writer", "quiet"}:
        assert stand_in.given[name] == before[name], name


def test_quiet_still_names_what_failed(stand_in, invoke):
    lost = SlideReport(id="a", path="/slides/a.svs", state="failed", reason="it is torn")
    stand_in.reports = {
        "mean": Report(streamwsi_version="0"),
        "h": Report(streamwsi_version="0", state="some slides failed", patients=[PatientReport(id="p", slides=[lost])]),
    }
    both = ["--collector", "mean", "--collector", "hematoxylin"]
    done = invoke("heatmap", "a.svs", "--out", "o", *both, "--quiet")
    assert (done.return_value, done.stdout, done.stderr) == (1, "", "h: failed: /slides/a.svs: it is torn\n")
    as_json = invoke("heatmap", "a.svs", "--out", "o", *both, "--quiet", "--json")
    assert as_json.stderr == "" and json.loads(as_json.stdout)["h"]["patients"][0]["slides"][0]["reason"] == "it is torn"


class Wants(sw.StreamCollector):
    def __init__(self, kernel_size: Any = None, mpp: float | None = None) -> None:
        self.kernel_size = kernel_size
        self.mpp = mpp


def test_the_kernel_is_what_is_given_or_the_collector_s_or_256():
    job = Job(slides="s", out="o", collector="x")
    given = msgspec.structs.replace(job, kernel_size=[64, 32])
    assert window_of(given, {"": Wants(224)}) == ((64, 32), {}, "")
    assert window_of(job, {"": Wants(224)}) == (224, {}, "kernel size 224: as the collector wants it")
    assert window_of(job, {"": Wants((224, 112))})[0] == (224, 112)
    assert window_of(job, {"": Wants()}) == (256, {}, "")
    assert window_of(job, {"a": Wants(224), "b": Wants()})[0] == 224
    with pytest.raises(sw.ConfigError, match=r"differ in their kernel_size \(a wants 224, b wants 96\): give --kernel-size"):
        window_of(job, {"a": Wants(224), "b": Wants(96)})


def test_the_resolution_is_what_is_given_or_the_collector_s():
    job = Job(slides="s", out="o", collector="x")
    assert window_of(job, {"": Wants(mpp=0.5)})[1:] == ({"mpp": 0.5}, "0.5 um/px: as the collector wants it")
    silent = msgspec.structs.replace(job, missing_mpp=0.25)
    assert window_of(silent, {"": Wants(mpp=0.5)})[1] == {"mpp": 0.5, "missing_mpp": 0.25}
    for own in ({"level": 1}, {"mpp": 1.0}, {"magnification": 10.0}, {"levels": [0, 1]}, {"mpps": [0.5, 2.0]}):
        assert window_of(msgspec.structs.replace(job, **own), {"": Wants(mpp=0.5)})[1:] == (own, "")
    with pytest.raises(sw.ConfigError, match="give --mpp or --level"):
        window_of(job, {"a": Wants(mpp=0.5), "b": Wants(mpp=1.0)})


# the job file of an output folder


def test_a_refused_run_leaves_the_folder_as_it_was(stand_in, invoke, tmp_path):
    stand_in.reports = sw.OutputError("it is in use by another run")
    assert invoke("heatmap", "a.svs", "--out", "new/o", "--collector", "mean").exception is stand_in.reports
    assert not (tmp_path / "new").exists()
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "job.toml").write_text("of before")
    assert invoke("heatmap", "a.svs", "--out", "o", "--collector", "mean").exception is stand_in.reports
    assert (tmp_path / "o" / "job.toml").read_text() == "of before"


def test_a_folder_that_cannot_be_made_is_refused(stand_in, invoke, tmp_path):
    (tmp_path / "file").touch()
    done = invoke("heatmap", "a.svs", "--out", "file/o", "--collector", "mean")
    assert isinstance(done.exception, sw.OutputError) and done.exception.exit_code == 2
    assert re.search("the output folder .*/file/o cannot be written: .*Not a directory", str(done.exception))


def test_a_run_that_is_broken_off_leaves_its_job(stand_in, invoke, tmp_path):
    stand_in.reports = sw.RunError("a worker died")
    assert invoke("heatmap", "a.svs", "--out", "o", "--collector", "mean").exception is stand_in.reports
    assert read_job(tmp_path / "o" / "job.toml").slides == [f"{tmp_path}/a.svs"]


def test_overwriting_is_not_part_of_what_can_be_run_again(stand_in, invoke, tmp_path):
    assert invoke("heatmap", "a.svs", "--out", "o", "--collector", "mean", "--overwrite").return_value == 0
    assert stand_in.given["overwrite"] is True
    assert invoke("run", "o/job.toml").return_value == 0
    assert stand_in.given["overwrite"] is False
    assert invoke("run", "o/job.toml", "--overwrite").return_value == 0
    assert stand_in.given["overwrite"] is True


def test_an_argument_that_toml_does_not_have_is_refused_before_anything_starts(stand_in, invoke, tmp_path):
    (tmp_path / "c.py").write_text("import streamwsi as sw\nclass C(sw.StreamCollector):\n  def __init__(self, x): pass\n")
    done = invoke("heatmap", "a.svs", "--out", "o", "--collector", "c.py:C", "--arg", "x=null")
    assert isinstance(done.exception, sw.ConfigError) and "TOML has no null" in str(done.exception)
    assert not (tmp_path / "o").exists()


def test_run_takes_a_file_or_shows_the_template(invoke):
    assert invoke("run", "--template").output == template()
    for arguments in ([], ["job.toml", "--template"]):
        assert "give a job file, or --template" in str(invoke("run", *arguments).exception)


def test_what_a_job_made_is_done_when_its_own_job_file_is_run(invoke, tmp_path):
    (tmp_path / "slides").mkdir()
    shutil.move(tmp_path / "a.svs", tmp_path / "slides")
    save(tmp_path, template())
    first = invoke("run", "job.toml", "--json")
    assert first.return_value == 0 and json.loads(first.stdout)["patients"][0]["state"] == "done"
    made = (tmp_path / "out" / "a.h5").stat().st_mtime_ns
    again = invoke("run", "out/job.toml", "--json")
    assert again.return_value == 0 and json.loads(again.stdout)["patients"][0]["state"] == "already done"
    assert (tmp_path / "out" / "a.h5").stat().st_mtime_ns == made


def test_a_job_is_checked_wherever_it_comes_from():
    with pytest.raises(sw.ConfigError, match="here: collector is missing"):
        job_of({"slides": "s", "out": "o"}, lambda names: "here")
