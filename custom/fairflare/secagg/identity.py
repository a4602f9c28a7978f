# SPDX-License-Identifier: Apache-2.0
"""Who signs: a site's own identity, and what a site believes about the others'.

The server carries every certificate, so a site trusts none of them before it has checked it: issued by its own root,
of the right name, of a site, and with the pinned key where its policy pins one. Pins matter: whoever holds the root's
key (the provisioner) can issue any name, and with central provisioning also made every private key.

What a certificate of an NVIDIA FLARE kit says about the role:

* ``nvflare cert`` (each hospital makes its own key) writes the role into the subject (``unstructuredName``):
  ``client``, ``server`` or the administrator's role. All are told apart.
* ``nvflare provision`` writes the role of an administrator only. The certificates of a server and of a site differ in
  their alternative names: a site's holds its own name and nothing else, a server's its host names. A server whose
  only host name is its own name, and a relay, have certificates like a site's: only the pins tell them apart. Each
  still speaks under its own name only.

Nothing here opens a file: certificates and keys come in as bytes.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from fairflare.errors import FairFlareError, SecaggError

#: Identities of a FLARE start-up kit: the project's root vouches for them.
KIT: Final = "kit"
#: Identities that a program made for itself, for simulators: nobody vouches for them.
DEVELOPMENT: Final = "development"
#: The subject's OU of a development identity. No kit has it.
MARK: Final = "FairFlare development identity"
#: Bytes of a certificate that are looked at; a kit's has about 900.
LONGEST: Final = 16 * 1024
#: Bits of an RSA key: weaker is refused, longer would only cost the verifier time.
SHORTEST_KEY, LONGEST_KEY = 2048, 8192

_DEVELOPMENT_DAYS = 366
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
)


@dataclass(frozen=True, eq=False)
class Identity:
    """A site's own name, certificate and private key.

    Attributes
    ----------
    name
        The site's name, the certificate's CN.
    kind
        ``KIT`` or ``DEVELOPMENT``.
    certificate
        DER.
    spki
        SHA-256 of the public key (SubjectPublicKeyInfo, DER), 32 bytes: what peers pin.
    """

    name: str
    kind: str
    certificate: bytes = field(repr=False)
    spki: bytes = field(repr=False)
    _key: rsa.RSAPrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """RSA-PSS-SHA256 signature of ``message``, salt of 32 bytes."""
        return self._key.sign(message, _padding(), hashes.SHA256())

    def unwrap(self, wrapped: bytes, purpose: bytes) -> bytes:
        """What :func:`wrap` was given for this site and ``purpose``; raises :class:`ValueError` for anything else."""
        return self._key.decrypt(wrapped, _oaep(purpose))


def wrap(certificate: bytes, secret: bytes, purpose: bytes) -> bytes:
    """Encrypt a short secret to the key of a certificate (DER) that was verified before: RSA-OAEP-SHA256."""
    return _rsa_key("a receiver", x509.load_der_x509_certificate(certificate)).encrypt(secret, _oaep(purpose))


def key_hash(certificate_pem: bytes) -> str:
    """SHA-256 (hex) of a certificate's public key: what other sites pin. Raises ``FF-SECAGG-CERTIFICATE``."""
    try:
        return _spki(_rsa_key("this site", x509.load_pem_x509_certificate(certificate_pem))).hex()
    except ValueError:
        _refuse_certificate("this site", "a certificate that cannot be read")


def kit_identity(name: str, certificate_pem: bytes, key_pem: bytes) -> Identity:
    """The identity in a start-up kit (``client.crt``, ``client.key``).

    Raises
    ------
    SecaggError
        ``FF-SECAGG-CERTIFICATE``: unreadable, of another name, no RSA key of at least 2,048 bits, or a key that does
        not belong to the certificate. ``FF-SECAGG-IDENTITY``: a development identity.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
        marked = _marked(certificate)
    except Exception:  # a file of the kit can break in many ways, and a parser's text could quote the private key
        _refuse_certificate(name, "a certificate or key in the start-up kit that cannot be read")
    if marked:
        _refuse_kind(name, KIT)
    _check_name(name, certificate)
    spki = _spki(_rsa_key(name, certificate))
    if not isinstance(key, rsa.RSAPrivateKey) or _spki(key.public_key()) != spki:
        _refuse_certificate(name, "a private key that does not belong to the certificate")
    return Identity(name, KIT, certificate.public_bytes(serialization.Encoding.DER), spki, key)


def development_identity(name: str) -> Identity:
    """A fresh RSA-2048 identity with a certificate signed by itself, valid for a year.

    For simulators: nobody vouches for it, and a site with a start-up kit refuses it. ``name`` has 1 to 64 characters.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-CERTIFICATE``: a name that cannot stand in a certificate.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=SHORTEST_KEY)
    now = datetime.now(timezone.utc)
    try:
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, name)
    except ValueError:
        _refuse_certificate(name, "a name that cannot stand in a certificate")
    subject = x509.Name([common_name, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, MARK)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # the clocks of two machines differ
        .not_valid_after(now + timedelta(days=_DEVELOPMENT_DAYS))
        .sign(key, hashes.SHA256())
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Identity(name, DEVELOPMENT, der, _spki(key.public_key()), key)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Trust:
    """What a site believes about its peers; made from its own kit and policy, never from a message.

    Attributes
    ----------
    kind
        ``KIT`` or ``DEVELOPMENT``; certificates of the other kind are refused.
    root_pem
        The site's own ``rootCA.pem``, exactly one certificate (KIT); None (DEVELOPMENT).
    pinned
        Peers' names, and the hex SHA-256 of their public keys. Not empty: every other name is refused.
    revoked
        Gives the serial numbers of certificates that the root has declared void, asked each time.
    now
        The clock, in UTC, for the periods of validity.

    Raises
    ------
    SecaggError
        At construction: ``FF-SECAGG-IDENTITY`` (another kind, a root where none belongs or none where one does),
        ``FF-SECAGG-CERTIFICATE`` (the root is unreadable or no certificate authority's), ``FF-SECAGG-PIN`` (no hash).
    """

    kind: str
    root_pem: bytes | None = None
    pinned: Mapping[str, str] = field(default_factory=dict)
    revoked: Callable[[], Collection[int]] = field(default=frozenset, repr=False, compare=False)
    now: Callable[[], datetime] = field(default=_utc_now, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in (KIT, DEVELOPMENT) or (self.kind == KIT) != (self.root_pem is not None):
            raise SecaggError(
                "FF-SECAGG-IDENTITY",
                got=f"trust of kind {self.kind!r} {'without' if self.root_pem is None else 'with'} a root certificate",
                expected=f"{KIT!r} with the start-up kit's rootCA.pem, or {DEVELOPMENT!r} without one",
                next_step="give the root certificate of the site's own start-up kit",
            )
        if self.root_pem is not None:
            _root(self.root_pem)
        for name, pin in self.pinned.items():
            if len(pin) != 64 or not set(pin) <= set(string.hexdigits):
                _refuse_pin(name, "a pin that is no hash")
        object.__setattr__(self, "pinned", MappingProxyType({name: pin.lower() for name, pin in self.pinned.items()}))

    def verify_certificate(self, name: str, certificate: bytes) -> bytes:
        """Check that ``certificate`` (DER) is the one of the site ``name``.

        Returns
        -------
        bytes
            SHA-256 of its public key (SubjectPublicKeyInfo, DER), 32 bytes.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-CERTIFICATE``: unreadable, of another name, not by this root, outside its period, weak key.
            ``FF-SECAGG-ROLE``: an administrator's, a server's or an authority's. ``FF-SECAGG-PIN``: not the pinned
            key. ``FF-SECAGG-IDENTITY``: of the other kind. ``FF-SECAGG-REVOKED``: declared void.
        """
        return _spki(self._verified_key(name, certificate))

    def verify_signature(self, name: str, certificate: bytes, message: bytes, signature: bytes) -> bytes:
        """Check ``certificate`` as :meth:`verify_certificate`, then its signature of ``message``.

        Returns
        -------
        bytes
            SHA-256 of the public key, 32 bytes.

        Raises
        ------
        SecaggError
            As :meth:`verify_certificate`, and ``FF-SECAGG-SIGNATURE``.
        """
        key = self._verified_key(name, certificate)
        with suppress(InvalidSignature, ValueError, TypeError):
            key.verify(signature, message, _padding(), hashes.SHA256())
            return _spki(key)
        raise SecaggError(
            "FF-SECAGG-SIGNATURE",
            got=f"a signature that {_called(name)} did not make over this message",
            expected="an RSA-PSS-SHA256 signature by the key of the site's certificate",
            next_step="a message was changed on its way, or somebody else wrote it: ask the site before a new run",
        )

    def _verified_key(self, name: str, certificate: bytes) -> rsa.RSAPublicKey:
        if type(certificate) is not bytes or len(certificate) > LONGEST:
            _refuse_certificate(name, f"a certificate of more than {LONGEST} bytes, or no bytes at all")
        try:
            return self._check(name, x509.load_der_x509_certificate(certificate))
        except FairFlareError:
            raise
        except Exception:  # fields are parsed when they are read, and a hostile one may raise anything
            _refuse_certificate(name, "a certificate that cannot be read")

    def _check(self, name: str, leaf: x509.Certificate) -> rsa.RSAPublicKey:
        if _marked(leaf) != (self.kind == DEVELOPMENT):
            _refuse_kind(name, self.kind)
        issuer = leaf if self.root_pem is None else _root(self.root_pem)
        key = _rsa_key(name, leaf)
        _check_issued(name, leaf, issuer)
        for certificate in (leaf, issuer):
            _check_period(name, certificate, self.now())
        if leaf.serial_number in self.revoked():
            _refuse(
                "REVOKED", name, "a certificate that the project's root has revoked", "the site's certificate of today",
                "telephone that hospital: either it still uses its old kit, or somebody else uses its old key",
            )  # fmt: skip
        _check_constraints(name, leaf)
        if self.kind == KIT:
            _check_role(name, leaf)
        _check_name(name, leaf)
        if self.pinned and self.pinned.get(name) != _spki(key).hex():
            _refuse_pin(
                name, "a valid certificate whose key is not the pinned one" if name in self.pinned else "no pin"
            )
        return key


def _root(pem: bytes) -> x509.Certificate:
    with suppress(Exception):  # whatever is wrong with it, the answer is the same
        (root,) = x509.load_pem_x509_certificates(pem)
        if root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return root
    raise SecaggError(
        "FF-SECAGG-CERTIFICATE",
        got="a root file that does not hold exactly one certificate of a certificate authority",
        expected="the rootCA.pem of the site's own start-up kit",
        next_step="restore rootCA.pem from the start-up kit",
    )


def _check_issued(name: str, leaf: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        if not isinstance(leaf.signature_hash_algorithm, _HASHES):
            _refuse_certificate(name, "a certificate with another kind of signature")
        leaf.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        _refuse_certificate(name, "a certificate that the project's root did not issue")


def _check_period(name: str, certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        _refuse_certificate(name, "a certificate, or its issuer's, that has expired or is not valid yet")


def _check_constraints(name: str, leaf: x509.Certificate) -> None:
    """Refuse an authority, a key that may not sign or be a client's, and what must be understood but is not."""
    for extension in leaf.extensions:
        value = extension.value
        if extension.critical and extension.oid not in _UNDERSTOOD:
            _refuse_certificate(name, "a certificate with a critical extension that is not understood")
        if isinstance(value, x509.BasicConstraints) and value.ca:
            _refuse_role(name, "a certificate authority")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            _refuse_role(name, "a key that may not sign")
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CLIENT_AUTH not in value:
            _refuse_role(name, "a key that is not a client's")


def _check_role(name: str, leaf: x509.Certificate) -> None:
    """Refuse every certificate that a kit does not give to a site (the module's docstring says how they differ)."""
    roles = [role.value for role in leaf.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)]
    if roles not in ([], ["client"]):
        _refuse_role(name, "an administrator or a server")
    own = [x509.DNSName(str(cn.value)) for cn in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    extensions = [extension.value for extension in leaf.extensions]
    found = [one for names in extensions if isinstance(names, x509.SubjectAlternativeName) for one in names]
    if found != own:
        _refuse_role(name, "a server, by its alternative names")


def _check_name(name: str, leaf: x509.Certificate) -> None:
    if [cn.value for cn in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] != [name]:
        _refuse_certificate(name, "a certificate of another name")


def _rsa_key(name: str, certificate: x509.Certificate) -> rsa.RSAPublicKey:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or not SHORTEST_KEY <= key.key_size <= LONGEST_KEY:
        _refuse_certificate(name, "a certificate with another kind or length of key")
    return key


def _marked(certificate: x509.Certificate) -> bool:
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return any(unit.value == MARK for unit in units)


def _spki(key: rsa.RSAPublicKey) -> bytes:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


def _padding() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


def _oaep(purpose: bytes) -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=purpose)


def _called(name: str) -> str:
    """The site's name for a message; a name that is too long for a certificate is cut."""
    return repr(name[:64])


def _refuse(code: str, name: str, got: str, expected: str, next_step: str) -> NoReturn:
    raise SecaggError(
        f"FF-SECAGG-{code}", got=f"for site {_called(name)}: {got}", expected=expected, next_step=next_step
    ) from None


def _refuse_certificate(name: str, got: str) -> NoReturn:
    _refuse(
        "CERTIFICATE", name, got,
        f"the site's own certificate: by the project's root, valid today, RSA of {SHORTEST_KEY} bits or more",
        "check that all sites have start-up kits of the same project, and renew what has expired",
    )  # fmt: skip


def _refuse_role(name: str, got: str) -> NoReturn:
    next_step = "let only the sites' own start-up kits join; ask the provisioner who holds this certificate"
    _refuse("ROLE", name, f"the certificate of {got}", "the certificate of a site (a FLARE client)", next_step)


def _refuse_pin(name: str, got: str) -> NoReturn:
    _refuse(
        "PIN", name, got, "the hex SHA-256 of the key that the site's policy pins for this name",
        "ask that hospital for the fingerprint of its key, not by way of the server, and correct the policy",
    )  # fmt: skip


def _refuse_kind(name: str, expected: str) -> NoReturn:
    got = f"{'a development' if expected == KIT else 'no development'} identity"
    next_step = "use start-up kits at every site, or development identities at every site of a simulator"
    _refuse("IDENTITY", name, got, f"an identity of kind {expected!r}", next_step)
