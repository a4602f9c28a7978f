# SPDX-License-Identifier: Apache-2.0
"""The gates before FLARE's own ideas of who is who: a revoked certificate, and a token that one was given for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fairflare.errors import KitError, SecaggError
from fairflare.flare import revocation
from fairflare.flare.identities import server_trust
from fairflare.flare.revocation import allows, allows_session
from fairflare.policy.revoked import NOBODY, REVOKED_NAME, Revoked, read_authority, revoke, write_list
from tests.unit.audit import kits as provisioned

LEAD = "researcher@example.org"
LISTED = Revoked(frozenset({0xABC}), 1)
UUID = "0f572ebe-d81a-42ad-af2b-e947deaa1734"


@pytest.mark.parametrize(
    ("revoked", "name", "token", "passes"),
    [
        (NOBODY, "hospital-1", UUID, True),  # no list: as FLARE has it
        (NOBODY, "hospital-1", f"{UUID}.abc", True),
        (LISTED, "hospital-1", f"{UUID}.abc", False),
        (LISTED, "hospital-1", f"{UUID}.abd", True),
        (LISTED, "hospital-1", UUID, False),  # of an older server: by which certificate?
        (LISTED, "hospital-1", f"{UUID}.", False),
        (LISTED, "hospital-1", f"{UUID}.abd\n", False),
        (LISTED, "hospital-1", 7, False),
        (LISTED, "server", "server", True),
        (LISTED, "server_job", UUID, True),
        (LISTED, "server", f"-1{UUID}.abc", False),  # what FLARE signed for a site "server-1"
        (LISTED, "server_job", f"s{UUID}", False),
        (LISTED, None, UUID, False),
        (LISTED, "server_job", f"{UUID}.abc", False),  # a site that has called itself so
        (None, "hospital-1", f"{UUID}.abd", False),  # a list that cannot be believed
        (None, "server", "server", False),
    ],
)
def test_who_passes(revoked: Revoked | None, name: object, token: object, passes: bool) -> None:
    assert allows(revoked, name, token) is passes


@pytest.mark.parametrize(
    ("revoked", "session", "passes"),
    [
        (NOBODY, UUID, True),
        (NOBODY, f"{UUID}.abc", True),
        (LISTED, f"{UUID}.abc", False),
        (LISTED, f"{UUID}.abd", True),
        (LISTED, UUID, False),  # of an older server
        (LISTED, None, False),
        (None, f"{UUID}.abd", False),
    ],
)
def test_whose_session_goes_on(revoked: Revoked | None, session: object, passes: bool) -> None:
    assert allows_session(revoked, session) is passes


SCRIPT = """
    import logging
    import sys
    from pathlib import Path
    from nvflare.apis.shareable import Shareable
    from nvflare.fuel.f3.cellnet.defs import IdentityChallengeKey, MessageHeaderKey, ReturnCode
    from nvflare.fuel.f3.message import Message
    from nvflare.fuel.hci.conn import Connection
    from nvflare.fuel.hci.proto import InternalCommands
    from nvflare.fuel.hci.server.constants import ConnProps
    from nvflare.fuel.hci.server.login import LoginModule
    from nvflare.fuel.hci.server.sess import SessionManager
    from nvflare.private.defs import CellMessageHeaderKeys as K
    from nvflare.private.fed.server import fed_server
    from nvflare.private.fed.server.client_manager import Client, ClientManager
    from nvflare.private.fed.utils.identity_utils import IdentityAsserter, IdentityVerifier, InvalidAsserterCert
    from nvflare.private.fed.utils.identity_utils import TokenVerifier
    from fairflare.flare.revocation import refuse_revoked

    UUID = "0f572ebe-d81a-42ad-af2b-e947deaa1734"
    kit, person, listed, change = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    if change:
        def verify_common_name(self, other): ...
        IdentityVerifier.verify_common_name = verify_common_name
    ClientManager.authenticated_client = lambda self, request, fl_ctx, client_type: Client("hospital-2", UUID)
    refuse_revoked(kit)
    refuse_revoked(kit)
    verifier = IdentityVerifier(str(kit / "startup" / "rootCA.pem"))
    asserter = IdentityAsserter(str(person / "startup" / "client.key"), str(person / "startup" / "client.crt"))

    def proves():
        return verifier.verify_common_name(asserter.cn, "n", asserter.cert, asserter.sign_common_name("n"))

    shown = Message({}, Shareable())
    shown.payload[IdentityChallengeKey.CERT] = asserter.cert_data
    token = ClientManager().authenticated_client(shown, None, "regular").token
    assert token.endswith(f".{asserter.cert.serial_number:x}"), token
    server = IdentityAsserter(str(kit / "startup" / "server.key"), str(kit / "startup" / "server.crt"))

    other = token[:-1] + ("0" if token[-1] != "0" else "1")
    log = logging.getLogger("x")

    def speaks(token, name="hospital-2"):
        headers = {K.CLIENT_NAME: name, K.TOKEN: token, K.TOKEN_SIGNATURE: server.sign(name + token, return_str=True)}
        return fed_server.validate_auth_headers(Message(headers, None), TokenVerifier(server.cert), log)

    lead = IdentityAsserter(*(str(kit.parent / PERSON / "startup" / f"client.{end}") for end in ("key", "crt")))

    class Hci:
        def get_id_asserter(self): return server
        def get_id_verifier(self): return verifier

    def command(manager, name, *args, token=None, headers=None):
        conn = Connection(props={ConnProps.HCI_SERVER: Hci(), ConnProps.CMD_HEADERS: headers})
        conn.set_prop(ConnProps.REQUEST, Message({MessageHeaderKey.ORIGIN: "anybody"}, None))
        conn.get_token = lambda: token
        conn.append_token = lambda found: conn.set_prop("given", found)
        if name != InternalCommands.CERT_LOGIN:
            return LoginModule(manager).pre_command(conn, [name])
        LoginModule(manager).handle_cert_login(conn, [name, *args])
        return conn.get_prop("given")

    manager = SessionManager(None)
    shows = {"cert": lead.cert_data, "signature": lead.sign_common_name("")}
    session = command(manager, InternalCommands.CERT_LOGIN, lead.cn, headers=shows)
    nameless = manager.create_session("a", "b", "lead", "c").make_token(server)
    assert session and command(manager, "list_jobs", token=session) and command(manager, "list_jobs", token=nameless)
    assert command(SessionManager(None), "list_jobs", token=session)  # FLARE's: after a restart, from any connection

    assert proves() and speaks(token) is None
    target = kit / "local" / "revoked.pem"
    target.write_bytes(listed.read_bytes())  # while the process runs
    try:
        proves()
        raise SystemExit("believed")
    except InvalidAsserterCert as problem:
        assert str(problem) == "FF-KIT-REVOKED"
    answer = speaks(token)
    assert answer.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.AUTHENTICATION_ERROR, answer
    assert speaks(UUID) is not None
    assert speaks("server", "server") is None
    assert speaks(other) is None  # another certificate's
    for found in (manager, SessionManager(None)):
        assert not command(found, "list_jobs", token=session) and not command(found, "list_jobs", token=nameless)
    assert command(manager, InternalCommands.CERT_LOGIN, lead.cn, headers=shows) is None
    target.write_bytes(b"no list")
    assert speaks(other) is not None
    target.unlink()
    assert proves() and speaks(token) is None
    print("as expected")
"""


def _run(tmp_path: Path, change: str) -> subprocess.CompletedProcess[str]:
    kits = provisioned.provision(tmp_path / "project", stock=False) / "prod_00"
    person = kits / "hospital-2"
    root, key = read_authority(kits.parent / "state")
    listed = tmp_path / "revoked.pem"
    gone = [(one / "startup" / "client.crt").read_bytes() for one in (person, kits / LEAD)]
    write_list(listed, revoke(root, key, gone, None)[0])
    script = textwrap.dedent(SCRIPT).replace("PERSON", repr(LEAD))
    arguments = [str(kits / "fl-server"), str(person), str(listed), change]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip


def test_a_list_counts_at_once_for_log_ins_and_for_tokens(tmp_path: Path) -> None:
    """In a process of its own: what is replaced in FLARE stays replaced."""
    done = _run(tmp_path, "")
    assert "as expected" in done.stdout, done.stdout + done.stderr


def test_another_form_of_flares_functions_refuses_the_start(tmp_path: Path) -> None:
    done = _run(tmp_path, "changed")
    assert "FF-KIT-FLARE" in done.stderr


def test_a_list_that_comes_while_a_job_runs_counts_for_its_next_session(tmp_path: Path) -> None:
    kits = provisioned.provision(tmp_path / "project", stock=False) / "prod_00"
    shown = (kits / "hospital-2" / "startup" / "client.crt").read_bytes()
    der = x509.load_pem_x509_certificate(shown).public_bytes(serialization.Encoding.DER)
    trust = server_trust(kits / "fl-server" / "startup")
    assert len(trust.verify_certificate("hospital-2", der)) == 32
    listed = kits / "fl-server" / "local" / REVOKED_NAME
    root, key = read_authority(kits.parent / "state")
    write_list(listed, revoke(root, key, [shown], None)[0])
    with pytest.raises(SecaggError) as caught:
        trust.verify_certificate("hospital-2", der)
    assert caught.value.code == "FF-SECAGG-REVOKED"
    listed.write_bytes(b"no list")
    with pytest.raises(
        SecaggError, match="FF-SECAGG-REVOKED: got no list"
    ):  # what the collector of answers takes for a refusal
        trust.verify_certificate("hospital-2", der)
    with pytest.raises(KitError, match="FF-KIT-REVOCATION"):
        server_trust(listed.parents[1] / "startup")


def test_a_list_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(kit: Path) -> Revoked:
        raise KitError("FF-KIT-REVOCATION", got="too many open files", expected="a list", next_step="wait")

    monkeypatch.setattr(revocation, "read_revoked", fails)
    listed = revocation._List(tmp_path)
    assert listed.now() is None
    monkeypatch.setattr(revocation, "read_revoked", lambda kit: LISTED)
    assert listed.now() is None  # not with every message
    monkeypatch.setattr(revocation, "_AGAIN", 0.0)
    listed._again = 0.0
    assert listed.now() is LISTED
