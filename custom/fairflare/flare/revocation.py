# SPDX-License-Identifier: Apache-2.0
"""Whoever the project's root has revoked proves nothing to FLARE any more, at once and without a restart.

FLARE 2.9 knows no revoked certificates. It looks at one when a party registers, and from then on goes by a token that
the server signed: that token lets in for ever, also after a restart of the server. So the certificate's serial number
becomes a part of the token, which the server's signature covers; and with every message it is looked up in the kit's
list (:mod:`fairflare.policy.revoked`), which is read anew when its file changes.

A person has a second token, of the log-in: signed by the server too, good from any connection and until the person's
certificate ends. It carries the serial number as well: else whoever was given fewer rights would keep the old ones.

A token without a serial number is one of an older server's, or of the server's own processes. Once there is a list the
former is refused: that party registers again when it is started again.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cryptography import x509
from nvflare.fuel.f3.cellnet.defs import IdentityChallengeKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.login import LoginModule
from nvflare.fuel.hci.server.sess import Session, SessionManager
from nvflare.lighter.utils import load_crt_chain_bytes
from nvflare.private.defs import AUTH_CLIENT_NAME_FOR_SJ, CellMessageHeaderKeys
from nvflare.private.fed.server import fed_server
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.utils.identity_utils import IdentityVerifier, InvalidAsserterCert

from fairflare.errors import FairFlareError, KitError
from fairflare.policy.revoked import REVOKED_NAME, Revoked, read_revoked

CODE: Final = "FF-KIT-REVOKED"
#: Names under which the server's own processes speak, and their tokens, which FLARE signs itself. Whole ones: FLARE's
#: signature runs over name and token without a mark between them, so a site "server-1" could speak as "server".
_OWN: Final = MappingProxyType(
    {"server": re.compile("server"), AUTH_CLIENT_NAME_FOR_SJ: re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")}
)
_TOKEN: Final = re.compile(r"[0-9a-f-]{36}\.([0-9a-f]{1,40})")
_TOKEN_HEADER: Final = CellMessageHeaderKeys.TOKEN
#: Seconds until a list that could not be read is tried again: it may have been the disk, or too many open files.
_AGAIN: Final = 5.0
_LOG = logging.getLogger("fairflare.revocation")

#: What is replaced, and the parameters that it must have.
_EXPECTED: Mapping[tuple[Any, str], tuple[str, ...]] = MappingProxyType(
    {
        (IdentityVerifier, "verify_common_name"): (
            "self", "asserted_cn", "nonce", "asserter_cert", "signature", "intermediate_certs", "expected_eku",
        ),
        (ClientManager, "authenticated_client"): ("self", "request", "fl_ctx", "client_type"),
        (fed_server, "validate_auth_headers"): (
            "message", "token_verifier", "logger", "client_fqcn_resolver", "local_cell_fqcn",
        ),
        (LoginModule, "handle_cert_login"): ("self", "conn", "args"),
        (SessionManager, "create_session"): (
            "self", "user_name", "user_org", "user_role", "origin_fqcn", "active_study", "cert_exp",
        ),
        (Session, "decode_token"): ("token", "id_asserter"),
    }
)  # fmt: skip


class _List:
    """The kit's list as its file is now; a list that cannot be believed lets nobody in."""

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._lock = threading.Lock()
        self._stamp: object = ()
        self._found: Revoked | None = None
        self._again = 0.0

    def now(self) -> Revoked | None:
        """What the list says; ``None`` if it is not the root's."""
        with self._lock:
            stamp, now = self._look(), time.monotonic()
            if stamp != self._stamp or (self._found is None and now >= self._again):
                self._found, self._stamp, self._again = self._read(), stamp, now + _AGAIN
            return self._found

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = os.lstat(self._kit / "local" / REVOKED_NAME)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _read(self) -> Revoked | None:
        try:
            return read_revoked(self._kit)
        except FairFlareError as problem:
            _LOG.error("%s nobody is let in until it is put right", problem.code)
            return None


def allows(revoked: Revoked | None, name: object, token: object) -> bool:
    """Whether a message passes.

    Parameters
    ----------
    revoked
        The list; ``None`` if it cannot be believed.
    name, token
        What the message says, and the server has signed.
    """
    if revoked is None:
        return False
    if not isinstance(token, str) or not isinstance(name, str):
        return not revoked.serials
    serial = _TOKEN.fullmatch(token)
    if serial is not None:
        return int(serial.group(1), 16) not in revoked.serials
    own = _OWN.get(name)
    return not revoked.serials or (own is not None and own.fullmatch(token) is not None)


def allows_session(revoked: Revoked | None, session: object) -> bool:
    """Whether a person's session goes on, by the list and the session's id, which the server has signed."""
    if revoked is None:
        return False
    serial = _TOKEN.fullmatch(session) if isinstance(session, str) else None
    return not revoked.serials if serial is None else int(serial.group(1), 16) not in revoked.serials


class _Gates:
    """The functions that stand in the place of FLARE's, with the ones that they replace."""

    def __init__(self, kit: Path) -> None:
        self._list = _List(kit)
        self._verify: Callable[..., bool] = IdentityVerifier.verify_common_name
        self._register: Callable[..., Any] = ClientManager.authenticated_client
        self._validate: Callable[..., Any] = fed_server.validate_auth_headers
        self._log_in: Callable[..., None] = LoginModule.handle_cert_login
        self._create: Callable[..., Any] = SessionManager.create_session
        self._decode: Callable[..., Any] = Session.decode_token
        self._shown = threading.local()

    def install(self) -> None:
        gates = self

        def verify_common_name(
            verifier: Any, asserted_cn: Any, nonce: Any, asserter_cert: Any, signature: Any,
            intermediate_certs: Any = None, expected_eku: Any = None,
        ) -> bool:  # fmt: skip
            gates.verify(asserter_cert)
            return gates._verify(
                verifier, asserted_cn, nonce, asserter_cert, signature, intermediate_certs, expected_eku
            )

        def authenticated_client(manager: Any, request: Any, fl_ctx: Any, client_type: Any) -> Any:
            return gates.register(manager, request, fl_ctx, client_type)

        def handle_cert_login(module: Any, conn: Any, args: Any) -> None:
            gates.log_in(module, conn, args)

        def create_session(manager: Any, *args: Any, **more: Any) -> Any:
            return gates.create(manager, *args, **more)

        IdentityVerifier.verify_common_name = verify_common_name
        ClientManager.authenticated_client = authenticated_client
        fed_server.validate_auth_headers = self.validate
        LoginModule.handle_cert_login = handle_cert_login
        SessionManager.create_session = create_session
        Session.decode_token = staticmethod(self.decode)

    def verify(self, certificate: x509.Certificate) -> None:
        """Before FLARE believes a certificate, at either end: that of a site, a person or the server."""
        revoked = self._list.now()
        if revoked is None or revoked.holds(certificate):
            _LOG.warning("%s a certificate that no longer counts was shown", CODE)
            raise InvalidAsserterCert(CODE)

    def register(self, manager: Any, request: Any, fl_ctx: Any, client_type: Any) -> Any:
        """After FLARE has let a party in: the token names the certificate by which it came."""
        client = self._register(manager, request, fl_ctx, client_type)
        shown = request.payload.get(IdentityChallengeKey.CERT) if client is not None else None
        if shown:
            client.token = f"{client.token}.{load_crt_chain_bytes(shown)[0].serial_number:x}"
        return client

    def validate(
        self, message: Any, token_verifier: Any, logger: Any, client_fqcn_resolver: Any = None,
        local_cell_fqcn: Any = None,
    ) -> Any:  # fmt: skip
        """Before a message goes through the server; FLARE's own check, of the token's signature, comes first."""
        answer = self._validate(message, token_verifier, logger, client_fqcn_resolver, local_cell_fqcn)
        name, token = (message.get_header(key) for key in (CellMessageHeaderKeys.CLIENT_NAME, _TOKEN_HEADER))
        if answer is None and token is not None and not allows(self._list.now(), name, token):
            return make_reply(rc=ReturnCode.AUTHENTICATION_ERROR, error=CODE)
        return answer

    def log_in(self, module: Any, conn: Any, args: Any) -> None:
        """A person's log-in, with the serial number of the certificate that is shown at hand for :meth:`create`."""
        try:
            shown = (conn.get_prop(ConnProps.CMD_HEADERS) or {}).get("cert")
            self._shown.serial = load_crt_chain_bytes(shown)[0].serial_number if shown else None
            self._log_in(module, conn, args)
        finally:
            self._shown.serial = None

    def create(self, manager: Any, *args: Any, **more: Any) -> Any:
        """After FLARE has let a person in: the session's id, which its token holds, names the certificate."""
        session = self._create(manager, *args, **more)
        serial = getattr(self._shown, "serial", None)
        if serial is not None:
            with manager.sess_update_lock:
                del manager.sessions[session.sess_id]
                session.sess_id = f"{session.sess_id}.{serial:x}"
                manager.sessions[session.sess_id] = session
        return session

    def decode(self, token: Any, id_asserter: Any) -> Any:
        """The session of a token that the server has signed, with every command; ``None`` once it counts no more."""
        session = self._decode(token, id_asserter)
        if session is None or allows_session(self._list.now(), session.sess_id):
            return session
        _LOG.warning("%s a session of a certificate that no longer counts was gone on with", CODE)
        return None


_gates: _Gates | None = None
_once = threading.Lock()


def refuse_revoked(kit: Path) -> None:
    """Put the gates in place in this process, once; raises :class:`KitError` if FLARE is not the one that is known."""
    global _gates
    with _once:
        if _gates is not None:
            return
        for (owner, name), expected in _EXPECTED.items():
            function = vars(owner).get(name)
            if not callable(function) or tuple(inspect.signature(function).parameters) != expected:
                raise KitError(
                    "FF-KIT-FLARE", got=f"another form of {name}", expected="NVIDIA FLARE 2.9 as its authors made it",
                    next_step="install nvflare 2.9.0",
                )  # fmt: skip
        _gates = _Gates(kit.absolute())
        _gates.install()
