# SPDX-License-Identifier: Apache-2.0
"""Attacks on who takes part: impostors, substituted keys, parameters that the server would like, too few sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg import identity as identity_module
from fairflare.secagg import joining as joining_module
from fairflare.secagg.identity import DEVELOPMENT, KIT, Identity, Trust
from fairflare.secagg.params import Params, most_colluders
from fairflare.secagg.server import ServerSession
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import (
    Join,
    Joining,
    Keys,
    Signed,
    parse_roster,
    roster_message,
    signed_join,
    signed_list,
)
from tests.attacks.federation import (
    JOB,
    Federation,
    Provisioner,
    Seen,
    identity,
    members,
    params,
    parse_signed_list,
    plain_sum,
    refused,
    rsa_key,
    site_names,
    stripped,
    vectors,
)

VICTIM = "site-01"
NAMES = site_names(4)
PEERS = [name for name in NAMES if name != VICTIM]
VALUES = vectors([VICTIM], 64)[VICTIM]


def new_site(one: Identity, believed: Trust) -> SiteSession:
    return SiteSession(one, believed, params(identities=KIT), RevealMemory.volatile(), JOB)


def read_by_impostors(victim: SiteSession, impostors: Mapping[str, Identity], believed: Trust) -> np.ndarray:
    """The server plays every other site towards the victim, and reads the statistic that it sends them."""
    federation = Federation(NAMES, params(identities=KIT), begin=False)
    federation.server = ServerSession(federation.params, JOB)
    federation.sites = {name: new_site(one, believed) for name, one in impostors.items()} | {VICTIM: victim}
    for name, site in federation.sites.items():
        federation.server.join(name, site.join())
    roster = federation.server.begin(NAMES)
    victim.begin(roster)
    for name in impostors:  # they believe anything
        site = federation.sites[name]
        site.session, site.index, site._peers = victim.session, federation.index(name), victim._peers
        site._memory.begin(site.session, site.params.plan_sha256, bytes(32))
    seen = federation.offer("risk")
    federation.keys(seen)
    victim.keyset(seen.number, seen.keyset)
    federation.upload(seen, {VICTIM: VALUES}, add=False)
    secrets = {federation.index(name): federation.sites[name]._steps[seen.number].mask or b"" for name in impostors}
    return stripped(seen, VICTIM, victim.index, others=secrets)


# --------------------------------------------------- impostors: attack 4 of the first list, attack 8 of the second list

ROOT = Provisioner()


def pins() -> dict[str, str]:
    return {name: ROOT.identity(name).spki.hex() for name in NAMES}


def minted() -> dict[str, Identity]:
    """Whoever holds the root key makes certificates with the right names, for keys of its own."""
    return {name: ROOT.identity(name, key=f"impostor {name}") for name in PEERS}


def other_names() -> dict[str, Identity]:
    """Another site of the federation, with a certificate that is in order, speaks in somebody else's name."""
    return {name: replace(ROOT.identity(f"other-{name}"), name=name) for name in PEERS}


def servers() -> dict[str, Identity]:
    return {name: ROOT.identity(name, role="server") for name in PEERS}


def administrators() -> dict[str, Identity]:
    return {name: ROOT.identity(name, role="project_admin") for name in PEERS}


def expired() -> dict[str, Identity]:
    return {name: ROOT.identity(name, days=-1) for name in PEERS}


def other_root() -> dict[str, Identity]:
    return {name: Provisioner("other").identity(name) for name in PEERS}


def without_key() -> dict[str, Identity]:
    """Certificates are public: the true ones, without their private keys."""
    return {name: replace(ROOT.identity(name), _key=rsa_key(f"impostor {name}")) for name in PEERS}


def development() -> dict[str, Identity]:
    return {name: identity(name) for name in PEERS}


def only_certificate(self: Trust, name: str, certificate: bytes, message: bytes, signature: bytes) -> bytes:
    return self.verify_certificate(name, certificate)


IMPOSTORS = {
    "minted": (minted, "PIN"),
    "other names": (other_names, "CERTIFICATE"),
    "servers": (servers, "ROLE"),
    "administrators": (administrators, "ROLE"),
    "expired": (expired, "CERTIFICATE"),
    "other root": (other_root, "CERTIFICATE"),
    "without key": (without_key, "SIGNATURE"),
    "development": (development, "IDENTITY"),
}
#: What has to be taken out, and only that, for the attack to work.
DEFENCES: dict[str, tuple[object, str, Callable[..., object]]] = {
    "minted": (identity_module, "_refuse_pin", lambda *_: None),
    "other names": (identity_module, "_check_name", lambda *_: None),
    "servers": (identity_module, "_check_role", lambda *_: None),
    "administrators": (identity_module, "_check_role", lambda *_: None),
    "expired": (identity_module, "_check_period", lambda *_: None),
    "other root": (identity_module, "_check_issued", lambda *_: None),
    "without key": (Trust, "verify_signature", only_certificate),
}


def believed(kind: str) -> Trust:
    """The victim's policy pins keys in one case only: else the pin would stop what another check is there for."""
    return ROOT.trust(pins() if kind == "minted" else None)


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_impostors_are_refused(kind: str) -> None:
    impostors, code = IMPOSTORS[kind]
    victim = new_site(ROOT.identity(VICTIM), believed(kind))
    with refused(code):
        read_by_impostors(victim, impostors(), believed(kind))
    assert victim.session == b""
    assert victim._memory.head == (0, bytes(32))


@pytest.mark.parametrize("kind", DEFENCES)
def test_impostors_read_a_statistic_where_one_check_is_missing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    impostors, _ = IMPOSTORS[kind]
    monkeypatch.setattr(*DEFENCES[kind])
    victim = new_site(ROOT.identity(VICTIM), believed(kind))
    assert np.array_equal(read_by_impostors(victim, impostors(), believed(kind)), VALUES)


def test_pins_refuse_the_provisioners_new_names_as_well() -> None:
    """A Sybil: names that nobody knows, with certificates that are in order."""
    victim = new_site(ROOT.identity(VICTIM), ROOT.trust(pins()))
    with refused("PIN", "site-90"):
        join_with(victim, [ROOT.identity(f"site-9{at}") for at in range(3)])


def test_without_pins_the_provisioner_reads_a_statistic() -> None:
    victim = new_site(ROOT.identity(VICTIM), ROOT.trust())
    assert np.array_equal(read_by_impostors(victim, minted(), ROOT.trust()), VALUES)


def join_with(victim: SiteSession, others: list[Identity]) -> None:
    joinings = [Joining.parse(new_site(one, ROOT.trust()).join()) for one in others]
    joinings.append(Joining.parse(victim.join()))
    victim.begin(roster_message(sorted(joinings, key=lambda one: Join.parse(one.join).name)))


@pytest.mark.parametrize("field", ["channel_key", "signing_key", "spki"])
def test_one_key_at_two_sites_is_refused(field: str) -> None:
    """Two JOINs with one key are one site that counts twice."""
    victim = new_site(ROOT.identity(VICTIM), ROOT.trust())
    shared = "one key" if field == "spki" else ""
    twins = [ROOT.identity(name, key=shared) for name in PEERS[:2]]
    sites = [new_site(one, ROOT.trust()) for one in twins]
    if field == "channel_key":
        sites[1]._channel = sites[0]._channel
    if field == "signing_key":
        sites[1]._signing = sites[0]._signing
    joinings = [Joining.parse(site.join()) for site in (*sites, victim)]
    roster = roster_message(sorted(joinings, key=lambda one: Join.parse(one.join).name))
    with refused("ROSTER", "one key at two sites"):
        victim.begin(roster)


# ------------------------------------------------------------------------ substituted keys: attack 8 of the second list


def substituted(roster: bytes, change: Callable[[Joining], Joining]) -> bytes:
    """The server changes one peer's JOIN on its way to the victim."""
    joinings = parse_roster(roster)
    joinings[0] = change(joinings[0])
    return roster_message(joinings)


def own_channel_key(one: Joining) -> Joining:
    server_key = X25519PrivateKey.from_private_bytes(b"s" * 32).public_key().public_bytes_raw()
    return replace(one, join=replace(Join.parse(one.join), channel_key=server_key).encoded())


def signed_by_another_site(one: Joining) -> Joining:
    changed = own_channel_key(one)
    return replace(changed, signature=identity("site-03").sign(signed_join(changed.join)))


def certificate_of_another_site(one: Joining) -> Joining:
    return replace(signed_by_another_site(one), certificate=identity("site-03").certificate)


def another_spki(one: Joining) -> Joining:
    join = replace(Join.parse(one.join), spki=identity("site-03").spki).encoded()
    return replace(one, join=join, signature=identity("site-00").sign(signed_join(join)))


SUBSTITUTES = [
    (own_channel_key, "SIGNATURE"),
    (signed_by_another_site, "SIGNATURE"),
    (certificate_of_another_site, "CERTIFICATE"),
    (another_spki, "CERTIFICATE"),
]


@pytest.mark.parametrize(("change", "code"), SUBSTITUTES)
def test_a_substituted_join_is_refused(change: Callable[[Joining], Joining], code: str) -> None:
    federation = Federation(NAMES, begin=False)
    for name, site in federation.sites.items():
        federation.server.join(name, site.join())
    roster = federation.server.begin(NAMES)
    victim = federation.sites[VICTIM]
    with refused(code):
        victim.begin(substituted(roster, change))
    victim.begin(roster)  # a refusal leaves everything as it was


def read_with_substituted_keys(federation: Federation) -> np.ndarray:
    """The server puts mask keys of its own in the place of everybody else's."""
    victim, secrets = federation.sites[VICTIM], {}
    seen = Seen(Offer(0, "risk", 0))
    keyset = []
    for name in NAMES:
        (keys,) = federation.sites[name].keys([seen.offer])
        signed = Signed.parse(keys)
        if name != VICTIM:
            index = federation.index(name)
            secrets[index] = bytes([index]) * 32
            public = X25519PrivateKey.from_private_bytes(secrets[index]).public_key().public_bytes_raw()
            signed = Signed(replace(Keys.parse(signed.message), public=public).encoded(), signed.signature)
        keyset.append(signed)
    seen.keyset = signed_list("keyset", keyset)
    victim.keyset(seen.number, seen.keyset)
    federation.upload(seen, {VICTIM: VALUES}, add=False)
    return stripped(seen, VICTIM, victim.index, others=secrets)


def test_substituted_mask_keys_are_refused() -> None:
    with refused("SIGNATURE", "site-00"):
        read_with_substituted_keys(Federation(NAMES))


def test_substituted_mask_keys_read_a_statistic_where_signatures_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining_module, "verify_signed", lambda *_: None)
    assert np.array_equal(read_with_substituted_keys(Federation(NAMES)), VALUES)


def test_a_mask_key_that_another_site_copied_is_refused() -> None:
    federation = Federation(NAMES)
    seen = federation.offer("risk")
    federation.keys(seen)
    keys = members(seen)
    copied = replace(keys[3], public=keys[1].public).encoded()
    signed = parse_signed_list("keyset", seen.keyset)
    signed[2] = Signed(copied, federation.sites["site-02"]._signing.sign(copied))
    with refused("KEYS", "one key at two sites"):
        federation.sites[VICTIM].keyset(seen.number, signed_list("keyset", signed))


@pytest.mark.parametrize("public", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
def test_a_mask_key_of_small_order_is_refused_before_a_vector_is_used(public: bytes) -> None:
    """With it the pair's secret is zero, and everybody knows its mask."""
    federation = Federation(NAMES)
    seen = federation.offer("risk")
    federation.keys(seen)
    weak = replace(members(seen)[3], public=public).encoded()
    signed = parse_signed_list("keyset", seen.keyset)
    signed[2] = Signed(weak, federation.sites["site-02"]._signing.sign(weak))
    victim = federation.sites[VICTIM]
    with refused("KEY", "small order"):
        victim.keyset(seen.number, signed_list("keyset", signed))
    federation.keyset(seen)  # the step itself is still good
    federation.upload(seen, vectors(NAMES, 64))


@pytest.mark.parametrize("public", [bytes(32)])
def test_a_channel_key_of_small_order_gets_no_share(public: bytes) -> None:
    federation = Federation(NAMES)
    seen = federation.offer()
    federation.keys(seen)
    federation.keyset(seen)
    victim = federation.sites[VICTIM]
    victim._peers[1].channel_key = public
    with refused("KEY", "small order"):
        victim.deal(seen.number)


# ----------------------------------------------- parameters, Sybils, too few sites: attacks 9 and 16 of the second list


@pytest.mark.parametrize(
    "change",
    [{"least_sites": 3}, {"colluders": 0}, {"norm_clip": 9.0}, {"vectors": params(7).vectors}],
)
def test_parameters_that_another_site_was_given_are_refused(change: dict[str, object]) -> None:
    """The server gives a colluding site another plan; the victim's own copy decides."""
    federation = Federation(5, params(least_sites=5, colluders=2), begin=False)
    asked = replace(federation.params, **change)  # type: ignore[arg-type]
    other = SiteSession(identity("site-04"), federation.sites[VICTIM]._trust, asked, RevealMemory.volatile(), JOB)
    joinings = [Joining.parse(site.join()) for site in [*federation.sites.values()][:4]] + [Joining.parse(other.join())]
    with refused("PARAMS", "site-04"):
        federation.sites[VICTIM].begin(roster_message(joinings))


def open_over_four_of_five(federation: Federation) -> tuple[np.ndarray, np.ndarray]:
    values = vectors(federation.names)
    total, sites, _ = federation.run(values, {"site-04": "upload"}, 0)
    return total, plain_sum([values[name] for name in sites])


def test_the_servers_quorum_does_not_count() -> None:
    federation = Federation(5, params(least_sites=5))
    federation.server.params = params(least_sites=3)  # fixed after the JOINs: nothing that a site can see
    with refused("QUORUM", "4 sites"):
        open_over_four_of_five(federation)


def test_a_site_that_takes_the_servers_quorum_opens_a_smaller_sum() -> None:
    federation = Federation(5, params(least_sites=5))
    for one in (federation.server, *federation.sites.values()):
        one.params = params(least_sites=3)
    total, expected = open_over_four_of_five(federation)
    assert np.array_equal(total, expected)


def test_two_sites_are_refused() -> None:
    federation = Federation(2, params(least_sites=1), begin=False)
    joinings = [Joining.parse(site.join()) for site in federation.sites.values()]
    for site in federation.sites.values():
        with refused("SITES", "2 sites"):
            site.begin(roster_message(joinings))
    for name, joining in zip(federation.names, joinings, strict=True):
        federation.server.join(name, joining.encoded())
    with refused("SITES", "2 sites"):
        federation.server.begin(federation.names)


def test_of_two_sites_each_reads_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Params, "verify_sites", lambda self, sites: None)
    federation = Federation(2)
    values = vectors(federation.names, 64)
    seen = federation.uploaded(values, "risk")
    total = federation.sites["site-00"].opening(seen.number, *federation.server.opening(seen.number))
    assert np.array_equal(total - values["site-00"], values["site-01"])


@pytest.mark.parametrize("sites", [3, 4, 5, 8])
def test_all_but_one_colluding_sites_read_the_last(sites: int) -> None:
    """A limit of every sum, not a defect: no protocol hides one vector from all the others."""
    federation = Federation(sites)
    values = vectors(federation.names)
    total, *_ = federation.run(values, {}, 0)
    colluders = plain_sum([values[name] for name in federation.without(VICTIM)])
    assert np.array_equal(total - colluders, values[VICTIM])
    assert most_colluders(sites) < sites - 1
    with refused("COLLUDERS"):  # and no plan can claim to survive it
        params(colluders=sites - 1).verify_sites(sites)


def test_a_roster_in_which_a_site_stands_twice_or_out_of_order_is_refused() -> None:
    federation = Federation(NAMES, begin=False)
    joinings = [Joining.parse(site.join()) for site in federation.sites.values()]
    for wrong in ([joinings[0], *joinings], joinings[::-1]):
        with refused("ROSTER", "twice, or out of order"):
            federation.sites[VICTIM].begin(roster_message(wrong))
    with refused("ROSTER", "own JOIN"):
        federation.sites[VICTIM].begin(roster_message([joinings[0], *joinings[2:]]))


def test_a_site_with_development_parameters_stays_out_of_a_real_federation() -> None:
    assert params().identities == DEVELOPMENT
    victim = new_site(ROOT.identity(VICTIM), ROOT.trust())
    others = [SiteSession(ROOT.identity(name), ROOT.trust(), params(), RevealMemory.volatile(), JOB) for name in PEERS]
    joinings = [Joining.parse(site.join()) for site in (*others, victim)]
    with refused("PARAMS", PEERS[0]):
        victim.begin(roster_message(sorted(joinings, key=lambda one: Join.parse(one.join).name)))
