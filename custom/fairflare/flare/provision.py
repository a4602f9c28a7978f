# SPDX-License-Identifier: Apache-2.0
"""The part of ``nvflare provision`` that closes what FLARE's own template leaves open (``provision/project.yml``)."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.lighter.constants import CtxKey, ProvFileName
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder, ProvisionContext
from nvflare.lighter.utils import sign_folders

from fairflare import schema
from fairflare.errors import HeError
from fairflare.flare.harden import harden_kit
from fairflare.flare.provision_files import Role, Settings, close_to_others
from fairflare.he.ckks import SiteCipher, record_from, verify_server
from fairflare.he.context import Files
from fairflare.he.parameters import CLIENT_CONTEXT, RECORD_NAME, SERVER_CONTEXT
from fairflare.policy.catalog import is_site_name
from fairflare.secagg.identity import key_hash

#: Where FLARE's certificate builder keeps the project's private key.
_STATE = "cert.json"


class HardeningBuilder(Builder):  # type: ignore[misc]
    """Hardens every kit; stands after ``CertBuilder`` and before ``SignatureBuilder``.

    Parameters
    ----------
    heartbeat_seconds, schedule_tries, store
        As in :class:`fairflare.flare.provision_files.Settings`.

    Raises
    ------
    ValueError
        For a parameter that makes no sense, for a project with parties that this builder cannot harden, and for
        contexts of ``HEBuilder`` below 128-bit security; FLARE prints the text and makes no kits.
    """

    def __init__(
        self,
        heartbeat_seconds: int = Settings.heartbeat_seconds,
        schedule_tries: int = Settings.schedule_tries,
        store: str = Settings.store,
    ) -> None:
        self.settings = Settings(heartbeat_seconds, schedule_tries, store)

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Harden the kits of the server, of all sites and of all people."""
        root_key = ctx.get(CtxKey.ROOT_PRI_KEY)
        if root_key is None:
            raise ValueError("HardeningBuilder must stand after CertBuilder in project.yml")
        _verify_parties(project)
        sites = {client.name: _key(client, ctx) for client in project.get_clients()}
        parties: list[tuple[Participant, Role]] = [(project.get_server(), "server")]
        parties += [(client, "site") for client in project.get_clients()]
        _record_contexts([Path(ctx.get_kit_dir(party)) for party, _ in parties])
        parties += [(admin, "person") for admin in project.get_admins()]
        for party, role in parties:
            kit = Path(ctx.get_ws_dir(party))
            harden_kit(kit, role, party.name, sites, self.settings)
            if role != "person":
                # FLARE signs start-up folders only where homomorphic encryption is used. Signed, a changed
                # fed_client.json (no TLS, unsigned jobs) is found at every start.
                sign_folders(str(kit / "startup"), root_key, signature_file=ProvFileName.SIGNATURE_JSON)
            close_to_others(kit)
        _close_state(Path(ctx.get_state_dir()))
        # Whoever may write into a folder may put another kit, or another root, in the place of one that is closed.
        for folder in (Path(ctx.get_wip_dir()), Path(ctx.get_workspace())):
            folder.chmod(folder.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))


def _record_contexts(startups: Sequence[Path]) -> None:
    """Write the record of its parameters beside every context of ``HEBuilder``, once each context proves it.

    The files' modes are set with those of the whole kit: FLARE leaves the hospitals' secret key readable by everybody.
    """
    clients = [file for one in startups if (file := one / CLIENT_CONTEXT).is_file()]
    if not clients:
        return
    try:
        record = record_from(clients[0].read_bytes())
        for file in clients:
            SiteCipher(Files(file.read_bytes(), record))
        for one in startups:
            if (one / SERVER_CONTEXT).is_file():
                verify_server(Files((one / SERVER_CONTEXT).read_bytes(), record))
            (one / RECORD_NAME).write_text(schema.pretty(record), encoding="utf-8")
    except HeError as problem:  # FLARE prints the text of this one
        raise ValueError(str(problem)) from None


def _verify_parties(project: Project) -> None:
    """Refuse what would be made and left open, or made and never work."""
    if project.get_relays():
        raise ValueError("relays: got one, expected none: sites connect to the server themselves, relays stay open")
    for client in project.get_clients():
        if client.get_listening_host() is not None:
            raise ValueError(f"{client.name}: got listening_host, expected none: a hospital accepts no connection")
        if client.name == FQCN.ROOT_SERVER or not is_site_name(client.name):
            raise ValueError(f"{client.name}: got a name that no site can have, expected another, such as hospital-1")


def _key(client: Any, ctx: ProvisionContext) -> str:
    return key_hash((Path(ctx.get_kit_dir(client)) / "client.crt").read_bytes())


def _close_state(folder: Path) -> None:
    """See to it that the project's private key, which FLARE writes after this builder, is for its owner only."""
    os.close(os.open(folder / _STATE, os.O_WRONLY | os.O_CREAT, 0o600))
    (folder / _STATE).chmod(0o600)
    folder.chmod(0o700)
