# SPDX-License-Identifier: Apache-2.0
"""``fairflare he``: make the hospitals' key for encrypted statistics, and hand it from one hospital to the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.errors import HeError, PolicyError

if TYPE_CHECKING:
    from fairflare.he.parameters import Record
    from fairflare.secagg.identity import Identity, Trust

app = typer.Typer(
    help="Make and hand on the hospitals' key for plans with statistics 'ckks' (needs fairflare[he]).",
    no_args_is_help=True,
)

Kit = Annotated[Path, typer.Option(help="This hospital's start-up kit.")]
#: Said whenever a key is made or taken over.
_TRUST = (
    "This key is the same at every hospital. It keeps totals of training groups from the server; the server together "
    "with any one hospital can open them. What hospitals keep from each other is up to the masks underneath."
)


@app.command()
def make(
    kit: Kit,
    server_to: Annotated[Path, typer.Option(help="New folder for the two files that the server gets.")],
    sites: Annotated[int, typer.Option(help="Most hospitals that will ever take part.")] = 63,
) -> None:
    """Make a key at this hospital: its own context goes to the kit's local/, the server's, without a key, elsewhere.

    Then seal a parcel for each other hospital.
    """
    from fairflare.he.ckks import make_contexts
    from fairflare.he.context import write_contexts
    from fairflare.he.parameters import parameters_for

    _verify_free(kit)
    parameters = parameters_for(sites)
    parameters.verify_room(sites)
    server_to.mkdir(parents=True)
    contexts = make_contexts(parameters)
    write_contexts(kit / "local", contexts.record, client=contexts.client)
    write_contexts(server_to, contexts.record, server=contexts.server)
    typer.echo(f"wrote this hospital's context into {kit / 'local'}")
    typer.echo(f"wrote what the server gets into {server_to}: both files go to its kit's local/")
    _show(contexts.record)
    typer.echo(_TRUST)


@app.command()
def seal(
    kit: Kit,
    to: Annotated[str, typer.Option(help="Name of the hospital that the parcel is for.")],
    certificate: Annotated[Path, typer.Option(help="Its startup/client.crt, which holds nothing secret.")],
    out: Annotated[Path, typer.Option(help="New file for the parcel.")],
) -> None:
    """Encrypt this hospital's context for another one; the parcel may travel by any way, also by the server."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from fairflare import schema
    from fairflare.he.context import read_client, write_private
    from fairflare.he.parcels import seal as sealed

    identity, trust = _own(kit)
    try:
        receiver = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    except ValueError:
        receiver = b""  # refused by name below
    parcel = sealed(read_client(kit / "startup", kit / "local"), identity, to, receiver, trust)
    write_private(out, schema.pretty(parcel).encode("utf-8"))
    typer.echo(f"wrote {out}, for {to} alone")
    _show(parcel.record)
    typer.echo(f"Tell {to} this fingerprint by telephone, not by the way that the parcel takes.")


@app.command(name="open")
def open_(
    parcel: Annotated[Path, typer.Argument(help="A file that another hospital has sealed for this one.")],
    kit: Kit,
    sender: Annotated[str, typer.Option("--from", help="Name of the hospital that it is expected from.")],
) -> None:
    """Open a parcel and put the context into the kit's local/, for its owner only."""
    from fairflare.he.ckks import SiteCipher
    from fairflare.he.context import write_contexts
    from fairflare.he.parcels import open_parcel, read_parcel

    _verify_free(kit)
    identity, trust = _own(kit)
    files = open_parcel(read_parcel(parcel), identity, sender, trust)
    SiteCipher(files)
    write_contexts(kit / "local", files.record, client=files.context)
    typer.echo(f"wrote the context into {kit / 'local'}")
    _show(files.record)
    typer.echo(f"Compare the fingerprint with what {sender} tells by telephone before this site starts.")
    typer.echo(_TRUST)


@app.command()
def show(kit: Annotated[Path, typer.Argument(help="A hospital's or the server's start-up kit.")]) -> None:
    """Check a kit's context as a job would, and show the fingerprint that all of them must have."""
    from fairflare.he.ckks import SiteCipher, verify_server
    from fairflare.he.context import read_client, read_server

    folders = (kit / "startup", kit / "local")
    if (kit / "startup" / "server.crt").is_file():
        _show(verify_server(read_server(*folders, simulated=False)))
        typer.echo("no secret key at this server")
        return
    _show(SiteCipher(read_client(*folders)).record)


def _show(record: Record) -> None:
    one = record.parameters
    bits = ", ".join(map(str, one.coeff_mod_bit_sizes))
    typer.echo(f"CKKS of degree {one.poly_modulus_degree}, primes of {bits} bits, scale 2^{one.scale_bits}")
    typer.echo(f"fingerprint {record.fingerprint.hex()}")


def _verify_free(kit: Path) -> None:
    from fairflare.he.parameters import CLIENT_CONTEXT, RECORD_NAME

    if not (kit / "local").is_dir():
        raise PolicyError(
            "FF-POLICY-KEY",
            got="a folder without local/",
            expected="a hospital's start-up kit, with startup/ and local/",
            next_step="give the kit's folder, as the user to whom it belongs",
        )
    names = (f"{part}/{name}" for part in ("startup", "local") for name in (CLIENT_CONTEXT, RECORD_NAME))
    if any((kit / name).exists() for name in names):
        raise HeError(
            "FF-HE-TWO",
            got="a kit that has a context of CKKS already",
            expected="none: a second key would part this hospital from the others",
            next_step="take the old files away first, if all hospitals get a new key",
        )


def _own(kit: Path) -> tuple[Identity, Trust]:
    """Who this hospital is, and whom it believes: its root, and the keys that its policy pins."""
    from fairflare.policy import POLICY_NAME, read_policy
    from fairflare.policy.approvals import own_identity
    from fairflare.policy.revoked import read_revoked
    from fairflare.secagg.identity import KIT, Trust

    identity = own_identity(kit)
    peers = read_policy(kit / "local").peers if (kit / "local" / POLICY_NAME).is_file() else None
    if peers is None:
        typer.echo("note: no pinned keys; whoever holds the project's root can pose as a hospital", err=True)
    pins = {} if peers is None else {**peers, identity.name: identity.spki.hex()}
    revoked = read_revoked(kit).serials
    return identity, Trust(KIT, (kit / "startup" / "rootCA.pem").read_bytes(), pins, lambda: revoked)


__all__ = ["app"]
