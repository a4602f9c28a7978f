# SPDX-License-Identifier: Apache-2.0
"""``fairflare data``: look at a site's data, convert a public data set, make synthetic hospitals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.errors import CatalogError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.data.check import Finding
    from fairflare.plan import Plan
    from fairflare.policy import Entry

app = typer.Typer(
    no_args_is_help=True, help="Look at a site's data, convert a public data set, make synthetic hospitals."
)

_PLAN = Annotated[Path, typer.Option("--plan", help="plan.json, or the job's folder that holds it.")]
_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@app.command()
def check(
    plan: _PLAN,
    catalog: Annotated[
        Path | None, typer.Option("--catalog", help="data_catalog.json, or the folder that holds it.")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Site in a catalogue by site; all of them if left out.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option("--manifest", help="A manifest, instead of a catalogue.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="With --manifest: folder that its files are relative to.")
    ] = None,
    opt_out: Annotated[Path | None, typer.Option("--opt-out", help="With --manifest: the opt-out file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON on standard output.")] = False,
) -> None:
    """List everything that a plan's job would stumble over, before it does. Exit code 0: no errors."""
    from rich.console import Console

    from fairflare.plan import read_plan

    the_plan = read_plan(plan)
    if (catalog is None) == (manifest is None):
        raise CatalogError(
            "FF-CAT-ARGUMENTS",
            got="both of --catalog and --manifest" if catalog else "neither --catalog nor --manifest",
            expected="one of them",
            next_step="give --catalog data_catalog.json, or --manifest manifest.csv",
        )
    console = Console(stderr=as_json)
    found = {}
    if catalog is not None:
        for name in _sites(catalog, site):
            found[name] = _look(the_plan, console, name, _entry(catalog, name, the_plan.task.data_set))
    elif manifest is not None:
        found[site or "manifest"] = _look(the_plan, console, "manifest", _loose_entry(manifest, root, opt_out))
    errors = sum(finding.severity == "error" for part in found.values() for finding in part)
    if as_json:
        findings = {name: [asdict(finding) for finding in part] for name, part in found.items()}
        print(json.dumps({"format": "fairflare/data-check/1", "errors": errors, "findings": findings}, indent=2))
    else:
        _print_table(console, found, errors)
    if errors:
        raise typer.Exit(1)


def _sites(catalog: Path, site: str | None) -> tuple[str, ...]:
    from fairflare.policy import read_catalog

    if site is not None:
        return (site,)
    return read_catalog(catalog).site_names or ("this site",)


def _entry(catalog: Path, site: str, data_set: str) -> Entry:
    from fairflare.policy import read_catalog

    return read_catalog(catalog).entry(site, data_set)


def _loose_entry(manifest: Path, root: Path | None, opt_out: Path | None) -> Entry:
    from fairflare.policy import Entry

    paths = [None if path is None else str(path.resolve()) for path in (root, opt_out)]
    return Entry(manifest=str(manifest.resolve()), root=paths[0], opt_out=paths[1])


def _look(plan: Plan, console: Console, name: str, entry: Entry) -> list[Finding]:
    from rich.progress import Progress

    from fairflare.data.check import check as check_data

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"images of {name}", total=None)
        return check_data(plan, entry, lambda done, total: bar.update(task, completed=done, total=total))


def _print_table(console: Console, found: dict[str, list[Finding]], errors: int) -> None:
    from rich.table import Table

    for name, findings in found.items():
        table = Table("", "code", "what was found", "next step", title=f"Data of {name}", title_justify="left")
        for one in findings:
            colour = _COLOURS[one.severity]
            table.add_row(f"[{colour}]{one.severity}[/]", one.code, one.text, one.next_step)
        console.print(table)
    console.print(f"{errors} error{'' if errors == 1 else 's'}")


@app.command("import")
def import_(
    name: Annotated[
        str, typer.Argument(metavar="SOURCE", help="uci_heart, ham10000, chase_db1, drive, stare or fundus.")
    ],
    source: Annotated[Path, typer.Option("--from", help="Folder of the data set as it was fetched.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the manifests and the catalogue.")],
    subset: Annotated[bool, typer.Option("--subset", help="Only its small, balanced part (ham10000).")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier catalogue.")] = False,
) -> None:
    """Write one manifest per real site of a public data set, and a catalogue by site. Copies no image."""
    from fairflare.data.sources import SOURCES

    if name not in SOURCES:
        raise DataError(
            "FF-DATA-UNKNOWN-SOURCE",
            got=f"the source '{name}'",
            expected=f"one of {', '.join(SOURCES)}",
            next_step="correct the name, or write a manifest yourself",
        )
    _refuse_overwriting(to, overwrite)
    _report(to, len(SOURCES[name](source, to, subset=subset).site_names))


@app.command()
def synthetic(
    plan: _PLAN,
    sites: Annotated[int, typer.Option("--sites", min=1, max=1000, help="How many hospitals: site-1, site-2, ...")],
    records: Annotated[int, typer.Option("--records", help="Mean number of records of a hospital.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the hospitals and the catalogue.")],
    seed: Annotated[int, typer.Option("--seed", help="The same seed writes the same files.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier catalogue.")] = False,
) -> None:
    """Make synthetic hospitals that fit a plan: real manifests and images of nobody."""
    from fairflare.data.synthetic import write_hospitals
    from fairflare.plan import read_plan

    the_plan = read_plan(plan)
    _refuse_overwriting(to, overwrite)
    names = [f"site-{number}" for number in range(1, sites + 1)]
    _report(to, len(write_hospitals(to, the_plan, names, records, seed).site_names))


def _refuse_overwriting(to: Path, overwrite: bool) -> None:
    from fairflare.policy import CATALOG_NAME

    if (to / CATALOG_NAME).exists() and not overwrite:
        raise DataError(
            "FF-DATA-EXISTS",
            got=f"a folder that already has a {CATALOG_NAME}",
            expected="a new folder: a catalogue is a hospital's own decision, and not replaced by the way",
            next_step="choose another folder, or add --overwrite",
        )


def _report(to: Path, sites: int) -> None:
    from fairflare.policy import CATALOG_NAME

    typer.echo(f"{sites} site{'' if sites == 1 else 's'}; catalogue: {to / CATALOG_NAME}")
