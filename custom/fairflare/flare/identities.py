# SPDX-License-Identifier: Apache-2.0
"""Who a process of FLARE is: its start-up kit's certificate and key, or in a simulator nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fairflare.engine.masked_site import Masks
from fairflare.errors import KitError, PolicyError, SecaggError
from fairflare.he.ckks import SiteCipher, verify_server
from fairflare.he.context import read_client, read_server
from fairflare.he.parameters import Record
from fairflare.plan import Plan
from fairflare.policy import SitePolicy
from fairflare.policy.revoked import read_revoked
from fairflare.privacy.anchor import ledger_anchor, reveals_anchor
from fairflare.privacy.ledger import Account, Ledger
from fairflare.privacy.loss import Budget
from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.identity import DEVELOPMENT, KIT, Identity, Trust, development_identity, key_hash, kit_identity

_SITE_FILES = ("client.crt", "client.key", "rootCA.pem")
_SERVER_FILES = ("server.crt", "server.key", "rootCA.pem")


def server_trust(startup: Path) -> Trust:
    """Whom a server with this start-up folder believes: the root of its kit, or in a simulator anybody."""
    if _is_kit(startup, _SERVER_FILES):
        root = (startup / "rootCA.pem").read_bytes()
        return Trust(KIT, root, {}, _revoked(startup.parent, root))
    return Trust(DEVELOPMENT, None, {})


def is_site_kit(startup: Path) -> bool:
    """Whether a site has a start-up kit; raises :class:`SecaggError` for half of one."""
    return _is_kit(startup, _SITE_FILES)


def server_cipher(plan: Plan, startup: Path, local: Path) -> Record | None:
    """What a server knows of its sites' cipher, or ``None`` for a plan that needs none; raises :class:`HeError`.

    The context is loaded to prove the record and to refuse a secret key; the server has no other use for it.
    """
    if not plan.protection.encrypted:
        return None
    return verify_server(read_server(startup, local, simulated=not _is_kit(startup, _SERVER_FILES)))


def site_masks(plan: Plan, policy: SitePolicy, name: str, startup: Path, local: Path, workspace: Path) -> Masks | None:
    """What a site needs for masks, or ``None`` for a plan without.

    Raises
    ------
    PolicyError
        ``FF-POLICY-IDENTITY``: without a start-up kit where the policy asks for one; ``FF-POLICY-STORE``.
    SecaggError
        For an incomplete kit, a broken certificate, or a memory that cannot be used.
    KitError
        ``FF-KIT-REVOCATION``: a list of revoked certificates that is not the root's.
    HeError
        For a plan with encrypted statistics: without a context, or with one that others can read or is not safe.
    """
    if not plan.protection.masked:
        return None
    opener = SiteCipher(read_client(startup, local)) if plan.protection.encrypted else None
    identity, root = _identity(policy, name, startup)
    simulated = name if identity.kind == DEVELOPMENT else None
    file = policy.memory_file(simulated, plan.task.data_set, workspace)
    anchor = reveals_anchor(startup.parent, plan.task.data_set) if root is not None else None
    memory = RevealMemory(file, anchor, f"{key_hash(root)[:16]}/" if root is not None else "")
    peers = {} if policy.peers is None else {**policy.peers, name: identity.spki.hex()}
    revoked = frozenset if root is None else _revoked(startup.parent, root)
    trust = Trust(identity.kind, root, peers, revoked)
    return Masks(identity, trust, memory, policy.cohort_changes, opener)


def site_account(plan: Plan, policy: SitePolicy, name: str, startup: Path, workspace: Path, job: str) -> Account | None:
    """What pays for a job's private releases at a site, or ``None`` for a plan without any.

    Raises
    ------
    PolicyError
        ``FF-POLICY-STORE``: the policy's store is no safe place.
    """
    if plan.differential_privacy is None:
        return None
    kit = is_site_kit(startup)
    file = policy.ledger_file(None if kit else name, plan.task.data_set, workspace)
    anchor = ledger_anchor(startup.parent, plan.task.data_set) if kit else None
    most = policy.differential_privacy
    budget = None if most is None else Budget(most.epsilon, most.delta, most.relation)
    return Account(Ledger(file, anchor), budget, job)


def _revoked(kit: Path, root: bytes) -> Callable[[], frozenset[int]]:
    """Reads the kit's list at each join: one that is taken over while a job runs counts for its next session."""
    read_revoked(kit, root)  # a list that is not the root's is said now

    def serials() -> frozenset[int]:
        try:
            return read_revoked(kit, root).serials
        except KitError as problem:  # as of any other certificate that does not count: this JOIN is refused by name
            raise SecaggError(
                "FF-SECAGG-REVOKED", got=problem.got, expected=problem.expected, next_step=problem.next_step
            ) from None

    return serials


def _identity(policy: SitePolicy, name: str, startup: Path) -> tuple[Identity, bytes | None]:
    if is_site_kit(startup):
        certificate, key, root = ((startup / file).read_bytes() for file in _SITE_FILES)
        return kit_identity(name, certificate, key), root
    if policy.identities == KIT:
        raise PolicyError(
            "FF-POLICY-IDENTITY",
            got="a site without a start-up kit, so nobody vouches for the sites' keys",
            expected="a start-up kit, as the policy asks for",
            next_step="start this site from its kit; for a simulation, write identities 'development' in its policy",
        )
    return development_identity(name), None


def _is_kit(startup: Path, files: tuple[str, ...]) -> bool:
    there = [file for file in files if (startup / file).is_file()]
    if there and len(there) < len(files):
        raise SecaggError(
            "FF-SECAGG-CERTIFICATE",
            got=f"a start-up folder with {', '.join(there)} only",
            expected=", ".join(files),
            next_step="install the whole start-up kit",
        )
    return bool(there)


__all__ = ["is_site_kit", "server_cipher", "server_trust", "site_account", "site_masks"]
