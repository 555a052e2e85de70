"""``streamwsi doctor``: whether streamwsi can work here.

In: nothing, or a folder.  Out: what was found, in words or as JSON, and an exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from streamwsi.doctor.finding import Finding


@click.command()
@click.option("--out", type=click.Path(), help="A folder that is to be --out of a run: look at it too.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(out: str | None, as_json: bool) -> int:
    """Try what a run needs (libraries, codecs, memory, limits, a folder), and say what is wrong; exit code 0 if nothing is."""
    import msgspec

    from streamwsi.doctor.finding import carry_out
    from streamwsi.doctor.folder import folder_checks
    from streamwsi.doctor.machine import machine_checks
    from streamwsi.doctor.software import software_checks

    groups = {"software": carry_out(software_checks()), "machine": carry_out(machine_checks())}
    if out is not None:
        groups[out] = carry_out(folder_checks(Path(out)))
    findings = [finding for group in groups.values() for finding in group]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(groups), indent=2))
    else:
        click.echo("\n\n".join(in_words(name, group) for name, group in groups.items()))
        click.echo(f"\n{verdict(findings)}")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def in_words(group: str, findings: list[Finding]) -> str:
    """A group of findings, one below the other, each with what to do."""
    lines = [group]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "WRONG" if finding.state == "wrong" else finding.state
        lines.append(f"  {mark:<5}  {finding.name:<{width}}  {finding.said}")
        if finding.remedy:
            lines.append(f"  {'':<5}  {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def verdict(findings: list[Finding]) -> str:
    """The last word."""
    wrong = [finding.name for finding in findings if finding.state == "wrong"]
    if wrong:
        return f"{len(wrong)} will not work: {', '.join(wrong)}"
    notes = [finding.name for finding in findings if finding.state == "note"]
    return "all is well" + (f"; to be known: {', '.join(notes)}" if notes else "")
