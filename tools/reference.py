"""The reference: every public name with its docstring, and every command with its options.

In: the source of the package (read, not run, but for the command line).  Out: docs/reference.md.  Never says anything that
does not stand in the source.

    python -m tools.reference        writes it anew
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import griffe

import streamwsi
from streamwsi.cli.main import cli
from tools.pages import ROOT

REFERENCE = ROOT / "docs" / "reference.md"
GROUPS: dict[str, tuple[str, ...]] = {
    "Slides and patients": ("Dataset", "Patient", "Slide", "SlideInfo", "open_slide"),
    "What is read": ("SlidingWindowLoader", "WindowLoader", "Paired", "LevelAtMpp"),
    "Windows in your own process": ("stream", "Stream", "StreamReport", "MixedBatch"),
    "Collectors": ("StreamCollector", "Batch", "ProcessedPiece", "Window", "Windows", "as_tensor"),
    "Ready-made collectors": (
        "MeanCollector",
        "TissueCollector",
        "StainCollector",
        "HematoxylinCollector",
        "FocusCollector",
        "Patches",
        "ModelCollector",
        "TorchScriptCollector",
        "ExportedProgramCollector",
    ),
    "Writers": ("HDF5StreamWriter", "CSVStreamWriter", "ImageStreamWriter", "MapStreamWriter"),
    "Running": ("Pipeline", "Report", "verify"),
    "Reading back, maps, pictures": (
        "read_pieces",
        "read_map",
        "render",
        "render_all",
        "export_geojson",
        "export_all",
        "contact_sheet",
        "summarize",
        "Summary",
    ),
    "Masks and annotations": (
        "Mask",
        "TissueMask",
        "PolygonMask",
        "read_mask",
        "Region",
        "read_annotations",
        "nested_as_holes",
        "write_geojson",
    ),
    "Where windows lie": (
        "GridSampler",
        "RandomSampler",
        "PoissonDiskSampler",
        "PointSampler",
        "read_points",
        "Annotated",
        "Tissue",
        "Sampler",
        "Scene",
        "Places",
    ),
    "Arrays of any dimension": ("ArraySampler", "Aggregator", "write_ome_zarr", "write_ome_tiff"),
    "Errors": (
        "StreamwsiError",
        "ConfigError",
        "DatasetError",
        "OutputError",
        "SlideError",
        "SamplingError",
        "MapError",
        "MaskError",
        "AnnotationError",
        "ArrayError",
        "RunError",
        "CollectorError",
        "ModelError",
        "DiskError",
        "WorkerDied",
        "Interrupted",
    ),
    "Seldom needed": ("BigChunk", "SmallChunk", "Status"),
}
"""Every public name stands in one of these, in the order in which one meets them."""
RETURNED = (
    "slides.reader.SlideReader",
    "pipeline.stream.BadSlide",
    "pipeline.report.PatientReport",
    "pipeline.report.SlideReport",
    "pipeline.report.StageReport",
    "summary.ColumnSummary",
    "maps.pieces.Pieces",
    "maps.pieces.SlidePlan",
    "maps.raster.Map",
    "verification.Verdict",
    "writing.stream_writer.StreamWriter",
)
"""Classes that are not made by users, but given to them, or the base of public ones."""


@dataclass(frozen=True)
class Gap:
    """Something public without a word on it."""

    where: str
    what: str


def package() -> griffe.Object:
    """The source of the package."""
    loaded = griffe.load("streamwsi", search_paths=[str(ROOT)])
    assert isinstance(loaded, griffe.Object)
    return loaded


def public_names() -> list[str]:
    """Names that ``streamwsi`` exports, in the order of the reference. Raises ValueError if one is in no group, or in two."""
    exported = {name for name in streamwsi.__all__ if not name.startswith("_")}
    grouped = [name for names in GROUPS.values() for name in names if name in exported]
    if sorted(grouped) != sorted(exported):
        raise ValueError(f"tools/reference.py: put into one of GROUPS: {sorted(exported.symmetric_difference(grouped))}")
    return grouped


def found(loaded: griffe.Object, name: str) -> griffe.Object:
    """A public name's definition, or one of `RETURNED`, by its dotted path."""
    path = name if "." in name else f"{_module_of(name)}.{name}"
    thing = loaded[path]
    while isinstance(thing, griffe.Alias):
        thing = thing.final_target
    return thing


def _module_of(name: str) -> str:
    return next(module for module, names in streamwsi._WHERE.items() if name in names)


def members(thing: griffe.Object) -> Iterator[griffe.Object]:
    """Public members of a class, as they stand in the source; those of private bases too, but not what ``__init__`` keeps."""
    if not isinstance(thing, griffe.Class):
        return
    for base in thing.bases:
        path = base if isinstance(base, str) else base.canonical_path
        if path.startswith("streamwsi.") and path.rpartition(".")[2].startswith("_"):
            yield from members(thing.modules_collection[path])
    own_init = thing.members.get("__init__")
    for name, member in thing.members.items():
        if name.startswith("_") or isinstance(member, griffe.Alias):
            continue
        if docstring(member) or not (isinstance(own_init, griffe.Function) and _stands_in(member, own_init)):
            yield member


def _stands_in(member: griffe.Object, function: griffe.Function) -> bool:
    first, last = function.lineno or 0, function.endlineno or 0
    return first <= (member.lineno or 0) <= last


def constructor(thing: griffe.Object) -> griffe.Function | None:
    """The ``__init__`` of a class, its own or inherited within the package."""
    if not isinstance(thing, griffe.Class):
        return None
    own = thing.all_members.get("__init__")
    while isinstance(own, griffe.Alias):
        own = own.final_target
    return own if isinstance(own, griffe.Function) else None


def parameters(function: griffe.Function) -> list[griffe.Parameter]:
    """What callers give."""
    return [parameter for parameter in function.parameters if parameter.name not in ("self", "cls")]


def docstring(thing: griffe.Object) -> str:
    """The docstring, or ""."""
    return inspect.cleandoc(thing.docstring.value) if thing.docstring else ""


def gaps() -> list[Gap]:
    """Public things without a docstring, and parameters of which none speaks."""
    loaded = package()
    missing: list[Gap] = []
    for name in (*public_names(), *RETURNED):
        thing = found(loaded, name)
        if not docstring(thing):
            missing.append(Gap(name, "docstring"))
        functions = [(thing, docstring(thing))] if isinstance(thing, griffe.Function) else []
        if name not in RETURNED and isinstance(init := constructor(thing), griffe.Function):
            functions.append((init, _about_making(thing, init)))
        for member in members(thing):
            if _documented_above(thing, member.name):
                continue
            if not docstring(member) and f"`{member.name}`" in in_markdown(docstring(thing)):
                continue
            if not docstring(member):
                missing.append(Gap(f"{name}.{member.name}", "docstring"))
            elif isinstance(member, griffe.Function):
                functions.append((member, docstring(member)))
        for function, text in functions:
            missing += [Gap(f"{name}.{function.name}", f"word on {one.name}") for one in unspoken(function, text)]
    return missing


def _about_making(thing: griffe.Object, init: griffe.Function) -> str:
    """What is said of a constructor's parameters: by it, by the class and those above it, and by fields of the same name."""
    above = [base for base in thing.mro() if isinstance(base, griffe.Object)] if isinstance(thing, griffe.Class) else []
    fields = [member.name for member in members(thing) if docstring(member)]
    return " ".join([docstring(init), *map(docstring, (thing, *above)), *fields])


def unspoken(function: griffe.Function, text: str) -> list[griffe.Parameter]:
    """Parameters of which a text does not speak, neither by name nor, where it is prose, in the plural."""
    return [one for one in parameters(function) if not re.search(rf"(?<![A-Za-z_]){one.name}s?(?![A-Za-z_])", text)]


def _documented_above(thing: griffe.Object, name: str) -> bool:
    """Whether a base class says what a member is for: one that is defined anew is for the same."""
    if not isinstance(thing, griffe.Class):
        return False
    above = (base.members.get(name) for base in thing.mro())
    return any(isinstance(member, griffe.Object) and docstring(member) for member in above)


def sections(text: str) -> list[tuple[str, str]]:
    """A docstring as (title, text); the first has no title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", text, flags=re.MULTILINE)
    return [("", parts[0].strip()), *((title, body.strip()) for title, body in zip(parts[1::2], parts[2::2], strict=True))]


def in_markdown(text: str) -> str:
    """A docstring as Markdown."""
    out = []
    for title, body in sections(text):
        if title == "Parameters":
            out.append(_parameter_list(body))
        elif body:
            out.append(f"**{title}** {_prose(body)}" if title and not body.startswith(">>>") else _prose(body))
    return "\n\n".join(part for part in out if part)


def _parameter_list(body: str) -> str:
    items = re.split(r"^(?=\S)", body, flags=re.MULTILINE)
    lines, below = [], []
    for item in filter(None, items):
        names, _, said = item.partition("\n")
        if not said.startswith(" "):  # no name of a parameter, but what follows the list
            below.append(item)
            continue
        said = _prose(textwrap.dedent(said)).replace("\n", "\n  ")
        called = ", ".join(f"`{name}`" for name in re.findall(r"[*\w]+", names))
        lines.append(f"- {called}: {said}")
    return "\n".join(lines) + (f"\n\n{_prose(''.join(below))}" if below else "")


def _prose(text: str) -> str:
    """Roles and double backticks as Markdown has them; examples in blocks."""
    out: list[str] = []
    for part in re.split(r"^(>>>(?:.*\n?)(?:^(?!\s*$).*\n?)*)", text, flags=re.MULTILINE):
        if part.startswith(">>>"):
            example = re.sub(r"\s*# doctest: .*$", "", part.strip(), flags=re.MULTILINE)
            out.append(f"```pycon\n{example}\n```")
        elif part.strip():
            said = re.sub(r":\w+:`~?([^`]+)`", lambda role: f"`{role[1].rpartition('.')[2]}`", part.strip())
            out.append(_escaped(re.sub(r"``([^`]+)``", r"`\1`", said)))
    return "\n\n".join(out)


def _escaped(text: str) -> str:
    """Text in which ``<patient>`` is not taken for HTML; what stands in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"<(?=\w)", r"\\<", part) for part in parts)


def signature(name: str, function: griffe.Function) -> str:
    """How something is called."""
    parts: list[str] = []
    keyword_only = False
    for parameter in parameters(function):
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not keyword_only:
            parts.append("*")
            keyword_only = True
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        default = "" if parameter.default is None or star else f"={parameter.default}"
        parts.append(f"{star}{parameter.name}{default}")
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"


def entry(name: str, thing: griffe.Object) -> str:
    """One name of the reference."""
    shown = name.rpartition(".")[2]
    out = [f"### {shown}"]
    if "." in name:
        out.append(f"`streamwsi.{name}`")
    function = thing if isinstance(thing, griffe.Function) else constructor(thing)
    if function is not None and not _is_error(thing) and name not in RETURNED:
        out.append(f"```text\n{signature(shown, function)}\n```")
    if isinstance(thing, griffe.Class) and _is_error(thing):
        out.append("Derives from " + ", ".join(f"`{str(base).rpartition('.')[2]}`" for base in thing.bases) + ".")
    out.append(in_markdown(docstring(thing)))
    listed = []
    for member in members(thing):
        called = member.name
        if isinstance(member, griffe.Function):
            called = signature(member.name, member).replace("\n    ", " ").replace("( ", "(").replace(",\n)", ")")
        said = in_markdown(docstring(member)) or ("as above" if not _documented_above(thing, member.name) else "as in its base")
        listed.append(f"- `{called}`: {textwrap.indent(said, '  ').strip()}")
    if listed:
        out.append("\n".join(listed))
    return "\n\n".join(out)


def _is_error(thing: griffe.Object) -> bool:
    return thing.path.startswith("streamwsi.errors.")


def command_entry(name: str, command: click.Command) -> str:
    """One command of the reference."""
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    options = [param for param in command.params if isinstance(param, click.Option)]
    given = "".join(
        f" {'' if param.required else '['}{(param.metavar or param.human_readable_name).upper()}{'' if param.required else ']'}"
        + ("…" if param.nargs == -1 else "")
        for param in arguments
    )
    out = [
        f"### streamwsi {name}",
        f"```text\nstreamwsi {name} [OPTIONS]{given}\n```",
        _escaped(inspect.cleandoc(command.help or "")),
    ]
    lines = []
    for option in options:
        default = "" if not option.show_default or option.default in (None, False) else f" [{_shown(option.default)}]"
        called = " ".join([", ".join(option.opts), _metavar(option)]).strip()
        lines.append(f"- `{called}`: {_escaped(option.help or '')}{default}".rstrip(": "))
    return "\n\n".join(part for part in (*out, "\n".join(lines)) if part)


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _metavar(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return (option.metavar or option.type.name).upper().replace("DIRECTORY", "FOLDER")


def reference() -> str:
    """All of docs/reference.md. Raises ValueError where a public name is in no group."""
    loaded = package()
    exported = set(public_names())
    groups = {title: [name for name in names if name in exported] for title, names in GROUPS.items()}
    groups["What these return"] = list(RETURNED)
    contents = [
        f"- {title}: " + ", ".join(f"[{name.rpartition('.')[2]}](#{name.rpartition('.')[2].lower()})" for name in names)
        for title, names in groups.items()
    ]
    commands = ", ".join(f"[{name}](#streamwsi-{name})" for name in cli.commands)
    parts = [
        "# Reference",
        "<!-- Made by `make docs` of the docstrings; do not edit. -->",
        "Every public name of `import streamwsi as sw`, and every command. This page is made of the docstrings in the source; "
        "how the parts play together stands in the [README](../README.md) and the [tutorials](../tutorials/01_heatmaps.md).",
        "\n".join([*contents, f"- Commands: {commands}"]),
    ]
    for title, names in groups.items():
        parts.append(f"## {title}")
        parts += [entry(name, found(loaded, name)) for name in names]
    parts.append("## Commands")
    parts.append("`-h` or `--help` shows the same. Values in brackets are defaults.")
    parts += [command_entry(name, command) for name, command in cli.commands.items()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(REFERENCE).write_text(reference(), encoding="utf-8")
    for gap in gaps():
        print(f"{gap.where}: no {gap.what}")
