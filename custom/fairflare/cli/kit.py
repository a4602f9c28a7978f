# SPDX-License-Identifier: Apache-2.0
"""``fairflare kit``: look after a start-up kit through its years."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fairflare.errors import KitError
from fairflare.flare.provision_files import Settings

app = typer.Typer(
    help="Look after a start-up kit: harden, check, revoke certificates, back up, restore, clean up.",
    no_args_is_help=True,
)

KitFolder = Annotated[Path, typer.Argument(help="The start-up kit: the folder that holds startup/ and local/.")]


class Holder(str, Enum):
    """Whose kit it is."""

    site = "site"
    server = "server"
    person = "person"


@app.command()
def harden(
    kit: KitFolder,
    role: Annotated[Holder | None, typer.Option(help="Whose kit it must be.", show_default="what the kit says")] = None,
    store: Annotated[
        str, typer.Option(help="A site's folder for what must last, below which its own stands.")
    ] = Settings.store,
    heartbeat: Annotated[
        int, typer.Option(help="The server's: seconds without a sign of life until a site is lost.")
    ] = Settings.heartbeat_seconds,
    tries: Annotated[
        int, typer.Option(help="The server's: how often a job is offered to sites that do not take it.")
    ] = Settings.schedule_tries,
) -> None:
    """Close what FLARE's template leaves open in a kit, and sign its files with its own key.

    The last step after 'nvflare package'. Doing it again changes nothing.
    """
    from fairflare.flare.harden import harden_own

    try:
        settings = Settings(heartbeat, tries, store)
    except ValueError as problem:
        raise KitError(
            "FF-KIT-SETTING", got=str(problem), expected="a sensible one", next_step="correct the option"
        ) from None
    found, name = harden_own(kit, settings, role.value if role else None)
    typer.echo(f"hardened: the kit of the {found} {name}")
    typer.echo(f"next step: read {kit / 'readme.txt'}")


@app.command()
def check(
    kit: KitFolder,
    days: Annotated[
        int, typer.Option(min=0, help="Exit status 1 if a certificate ends within so many days: for a timer.")
    ] = 0,
) -> None:
    """Say whether a site or the server may start from a kit: certificates, files as signed, no second configuration.

    The start script of a hardened kit runs it first. It reads files; 'fairflare audit kit' looks at much more.
    """
    from fairflare.flare.harden import kit_holder
    from fairflare.flare.kit_state import days_left, verify_person, verify_start

    person = kit_holder(kit) == "person"
    (verify_person if person else verify_start)(kit)
    left = days_left(kit)
    if left < days:
        raise KitError(
            "FF-KIT-SOON", got=f"a certificate that ends in {left} days", expected=f"one that is good for {days}",
            next_step="provision/LIFE.md of FairFlare says how a party gets a new one; its data stay",
        )  # fmt: skip
    more = "; a person's kit has no list of its files" if person else "; signed files and configurations too"
    typer.echo(f"kit: the certificates are as they must be, for {left} more days{more}")


@app.command()
def roster(
    kit: KitFolder,
    add: Annotated[
        list[str], typer.Option(help="NAME=HASH of another site, as it told by telephone; may be given again.")
    ],
    replace: Annotated[bool, typer.Option("--replace", help="Take another hash than the one that is there.")] = False,
) -> None:
    """Write other hospitals' keys into local/roster.json; then 'fairflare policy new --kit' pins them."""
    from fairflare.flare.harden import add_to_roster

    pairs = [one.partition("=") for one in add]
    hashes = {name: pin.lower() for name, _, pin in pairs}
    if len(hashes) < len(pairs):
        raise KitError(
            "FF-KIT-ROSTER", got="a site that is named twice", expected="one hash of each", next_step="take one out"
        )
    add_to_roster(kit, hashes, replace=replace)
    typer.echo(f"local/roster.json: {', '.join(sorted(hashes))}")


@app.command()
def revoke(
    certificates: Annotated[list[Path], typer.Argument(help="Each a client.crt, a server.crt, or a .signed.zip.")],
    ca: Annotated[Path, typer.Option(help="Folder of 'nvflare cert init' (or 'state' of 'nvflare provision').")],
    to: Annotated[Path, typer.Option(help="The list; one that is there is gone on with.")],
) -> None:
    """For the holder of the root: declare certificates void that have not ended yet (key stolen, hospital left).

    Writes a certificate revocation list, signed by the root. Send it to every party: each takes it over itself.
    """
    from fairflare.policy import revoked as lists

    root, key = lists.read_authority(ca)
    before = to.read_bytes() if to.exists() else None
    text, made = lists.revoke(root, key, [lists.read_certificate(one) for one in certificates], before)
    lists.write_list(to, text)
    typer.echo(f"{to}: list number {made.number}, {len(made.serials)} certificates that no longer count")
    typer.echo("next step: send it to every party, which runs 'fairflare kit revoked KIT LIST'")


@app.command()
def revoked(
    kit: KitFolder,
    listed: Annotated[Path | None, typer.Argument(help="The list that the holder of the root sent.")] = None,
) -> None:
    """Take a list of revoked certificates over into a kit; it counts at once, also for processes that run.

    Without a list: say what the kit's own list holds.
    """
    from fairflare.policy.revoked import read_revoked, take_over

    found = read_revoked(kit) if listed is None else take_over(kit, listed.read_bytes())
    typer.echo(f"list number {found.number}: {len(found.serials)} certificates that no longer count")
    for serial in sorted(found.serials):
        typer.echo(f"  serial {serial:x}")


@app.command()
def backup(
    kit: KitFolder,
    to: Annotated[Path, typer.Option(help="The archive to write, a new file.")],
    with_key: Annotated[
        bool,
        typer.Option("--with-key", help="With all private keys (startup/, encrypted statistics): keep it like a key."),
    ] = False,
) -> None:
    """Copy what a site must not lose: local/, the store with what was revealed and decided, and the anchors.

    Also while a job runs. The archive names no patient, but says what this hospital took part in.
    """
    from fairflare.flare.kit_backup import back_up

    made = back_up(kit, to, with_key=with_key)
    typer.echo(f"{to}: {len(made.files)} files of {made.site}, {made.made}")
    if with_key:
        typer.echo("it holds the private keys: whoever reads it can act as this hospital")


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="What 'fairflare kit backup' wrote.")],
    kit: KitFolder,
) -> None:
    """Put a copy back where the store is lost. Never over one that is there, and never one that this kit knows is old.

    On a new machine only the other hospitals can tell: they refuse a site that has forgotten what it revealed.
    """
    from fairflare.flare.kit_backup import restore as put_back

    index, written = put_back(archive, kit)
    typer.echo(f"{index.site} as of {index.made}: {len(written)} of {len(index.files)} files written, the others stay")
    typer.echo(
        "next step: 'fairflare policy decisions' and 'fairflare audit kit'; if it says ROLLBACK, find a newer copy"
    )


@app.command()
def clean(
    kit: KitFolder,
    days: Annotated[int, typer.Option(min=1, help="Only jobs in which nothing was written for so many days.")],
    everything: Annotated[
        bool, typer.Option("--everything", help="Also releases.jsonl, the list of all that left this site.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove what old jobs left in a kit: logs, models, records. The store stays, and so does what says what left.

    Asks first, and says what would go.
    """
    from datetime import datetime, timedelta, timezone

    from fairflare.flare.harden import kit_holder
    from fairflare.flare.kit_jobs import left_jobs, remove_jobs

    kit_holder(kit)
    jobs = left_jobs(kit, datetime.now(timezone.utc) - timedelta(days=days), evidence=everything)
    for job in jobs:
        typer.echo(f"{job.folder.name}  last written {job.last:%Y-%m-%d}  {job.size / 1e6:.1f} MB")
    if not jobs:
        typer.echo("nothing to remove")
        return
    if not yes:
        typer.confirm(f"remove {len(jobs)} jobs, {sum(job.size for job in jobs) / 1e6:.1f} MB?", abort=True)
    gone = sum(1 for _ in remove_jobs(jobs, evidence=everything))
    typer.echo(f"removed {gone} jobs" + ("" if everything else "; the lists of what left this site stay"))
