# SPDX-License-Identifier: Apache-2.0
"""Rules 1xx, connection and identity: who a kit talks to, and who it says it is."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from fairflare.audit.evidence import Evidence, Kit
from fairflare.audit.folder import Problem, plain_name, shown
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity

_LAST_DAYS: Final = timedelta(days=30)
_SHORTEST_KEY: Final = 2048
_HERE: Final = ("localhost", "127.0.0.1", "::1")
_SIGNATURES: Final = "startup/signature.json"
#: What FLARE signs with, and never signs itself.
_UNSIGNED: Final = ("signature.json", ".__nvfl_submitter.crt")
#: What a kit's holder signs with the kit's own key, where the project's root signed nothing.
_MANIFEST: Final = "local/kit_manifest.json"
_MANIFEST_DOMAIN: Final = b"fairflare/kit-manifest/1\x00"
_MANIFEST_LOCAL: Final = ("*.default", "privacy.json", "*__*resources.json", "job_resources.json")


def _check_readable(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    for name in kit.folder.files("startup", "local"):
        if name != kit.key_file:
            kit.folder.content(name)
    for name, problem in kit.folder.problems:
        yield Doubt(plain_name(name), problem.text)


def _check_job_readable(evidence: Evidence) -> Iterator[Outcome]:
    for name, problem in evidence.job.folder.problems:
        yield Doubt(plain_name(name), problem.text)
    if evidence.job.doubt:
        yield Doubt("?", evidence.job.doubt)


def _check_tls(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    for name, document in kit.documents():
        if isinstance(document, Problem):
            yield Doubt(name, f"the file {document.text}")
            continue
        for key, part in _connections(document):
            if not isinstance(part, Mapping):
                yield Doubt(f"{name}:{key}", "expected an object")
            # Without the key FLARE takes mutual TLS.
            elif part.get("connection_security", "mtls") != "mtls":
                yield Defect(f"{name}:{key}.connection_security", shown(part["connection_security"]), "'mtls'")
    yield from _check_inner(kit)


def _connections(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("client", "admin", "relay_config"):
        if key in document:
            yield key, document[key]
    servers = document.get("servers", [])
    for at, one in enumerate(servers if isinstance(servers, list) else [servers]):
        yield f"servers[{at}]", one


def _check_inner(kit: Kit) -> Iterator[Outcome]:
    """What a site's own processes say to one another: in clear only inside one machine."""
    for name in ("local/comm_config.json", "startup/comm_config.json"):
        found = kit.folder.json(name)
        if isinstance(found, Problem):
            if not found.absent:
                yield Doubt(name, f"the file {found.text}")
            continue
        part = found.get("internal", {}).get("resources", {})
        hosts = [part.get(key, _HERE[0]) for key in ("host", "listen_host")]
        inside = all(host in _HERE for host in hosts)
        if not inside and part.get("connection_security", "clear") not in ("mtls", "tls"):
            got = shown(part.get("connection_security"))
            yield Defect(f"{name}:internal.resources.connection_security", got, "'mtls' to another host", Severity.high)
        if found.get("allow_adhoc_conns", False) is not False:
            got = shown(found["allow_adhoc_conns"])
            yield Defect(f"{name}:allow_adhoc_conns", got, "false: sites speak to the server only", Severity.high)


def _check_signature(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    listed = kit.folder.json(_SIGNATURES)
    manifest = kit.folder.json(_MANIFEST)
    whole = isinstance(manifest, Problem) and manifest.absent
    if not whole:
        yield from _check_manifest(kit, manifest)
    if isinstance(listed, Problem):
        if not listed.absent:
            yield Doubt(_SIGNATURES, f"the file {listed.text}")
        elif whole:
            allowed = "a signature of the project's root for every file, or a hardened kit's own manifest"
            yield Defect(_SIGNATURES, "no signatures", allowed)
        return
    root = kit.root_certificate()
    key = None if isinstance(root, Problem) else root.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or not isinstance(listed, Mapping):
        yield Doubt(_SIGNATURES, "there is no root certificate with an RSA key, or no list, to verify with")
        return
    here = [name.removeprefix("startup/") for name in kit.folder.entries if name.startswith("startup/")]
    # Where the kit's holder signed as well, that manifest is the list of the files that belong there.
    for name in sorted(({*here, *listed} if whole else {*here} & {*listed}) - set(_UNSIGNED)):
        place = f"startup/{plain_name(name)}"
        if name not in here:
            yield Defect(place, "a signed file that is not there", "every file as it was provisioned")
        elif name not in listed:
            yield Defect(place, "a file that nobody signed", "files of the provisioned kit only")
        elif place == kit.key_file:
            continue  # it never leaves its file; that it belongs to the certificate is seen when the site connects
        else:
            yield from _check_signed(kit, name, listed[name], key)


def _check_signed(kit: Kit, name: str, signature: object, key: rsa.RSAPublicKey) -> Iterator[Outcome]:
    data = kit.folder.content(f"startup/{name}")
    if isinstance(data, Problem):
        return  # rule 100 says so
    try:
        raw = base64.b64decode(signature if isinstance(signature, str) else "", validate=True)
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
        key.verify(raw, data, pss, hashes.SHA256())
    except (InvalidSignature, binascii.Error, ValueError):
        place = f"startup/{plain_name(name)}"
        yield Defect(place, "a file that is not the one that was signed", "every file as it was provisioned")


def _check_manifest(kit: Kit, manifest: object) -> Iterator[Outcome]:
    files = manifest.get("files") if isinstance(manifest, Mapping) else None
    if not isinstance(manifest, Mapping) or not isinstance(files, Mapping):
        yield Doubt(_MANIFEST, f"the file {manifest.text}" if isinstance(manifest, Problem) else "is no manifest")
        return
    own = kit.certificate()
    key = None if isinstance(own, Problem) else own.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        yield Doubt(_MANIFEST, "there is no certificate with an RSA key to verify it with")
        return
    unsigned = {**manifest, "signature": ""}
    text = json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("utf-8")
    if not _is_signed(key, manifest.get("signature"), _MANIFEST_DOMAIN + text):
        yield Defect(_MANIFEST, "a manifest that this kit's key did not sign", "the one of 'fairflare kit harden'")
        return
    here = {name for name in kit.folder.files("startup") if name != kit.key_file} | {
        name for name in kit.folder.files("local")
        if name.count("/") == 1 and any(fnmatch.fnmatchcase(name.split("/")[1], one) for one in _MANIFEST_LOCAL)
    }  # fmt: skip
    for name in sorted({*here, *files}):
        data = kit.folder.content(name) if name in here else None
        if name not in here:
            yield Defect(plain_name(name), "a signed file that is not there", "every file as it was hardened")
        elif name not in files:
            yield Defect(plain_name(name), "a file that nobody signed", "files of the hardened kit only")
        elif isinstance(data, bytes) and hashlib.sha256(data).hexdigest() != files[name]:  # else rule 100 says so
            yield Defect(plain_name(name), "a file that is not the one that was signed", "every file as hardened")


def _is_signed(key: rsa.RSAPublicKey, signature: object, message: bytes) -> bool:
    try:
        raw = base64.b64decode(signature if isinstance(signature, str) else "", validate=True)
        key.verify(raw, message, padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=0), hashes.SHA256())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _check_certificates(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    own, root = kit.certificate(), kit.root_certificate()
    own_file = kit.key_file.replace(".key", ".crt")
    for place, one in ((own_file, own), ("startup/rootCA.pem", root)):
        if isinstance(one, Problem):
            yield Doubt(place, f"the file {one.text}")
        else:
            yield from _check_dates(place, one, evidence)
    if isinstance(own, Problem) or isinstance(root, Problem):
        return
    try:
        own.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        yield Defect(own_file, "a certificate that this kit's root did not issue", "one that rootCA.pem vouches for")


def _check_dates(place: str, certificate: x509.Certificate, evidence: Evidence) -> Iterator[Defect]:
    now, first, last = evidence.now, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        yield Defect(place, f"expired on {last:%Y-%m-%d}", "a valid certificate")
    elif now < first:
        allowed = "a certificate that is valid now; or this machine's clock is wrong"
        yield Defect(place, f"not valid before {first:%Y-%m-%d}", allowed)
    elif last - now < _LAST_DAYS:
        yield Defect(place, f"expires on {last:%Y-%m-%d}", "at least 30 days more", Severity.medium)
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _SHORTEST_KEY:
        yield Defect(place, f"an RSA key of {key.key_size} bits", f"at least {_SHORTEST_KEY}", Severity.high)


TRANSPORT = (
    Rule(
        "FFA-100",
        Severity.high,
        "All evidence can be read",
        "What cannot be read could say anything.",
        "Run the audit as the user to whom the folder belongs; take out links, pipes and foreign files.",
        "ISO/IEC 27559 9",
        (Check(("site", "server", "admin"), _check_readable), Check(("job",), _check_job_readable)),
    ),
    Rule(
        "FFA-101",
        Severity.critical,
        "Every connection uses mutual TLS",
        "Without it anybody on the way can read models, and pose as a hospital or as the server.",
        "Provision the project again with connection_security 'mtls', and install the new kits.",
        "45 CFR 164.312(e)(1)",
        (Check(("site", "server", "admin"), _check_tls),),
    ),
    Rule(
        "FFA-102",
        Severity.high,
        "The startup folder is as it was provisioned or hardened",
        "Its files say whom the kit believes and how it connects; a changed one can switch TLS or signed jobs off.",
        "Fetch or make the kit again; FairFlare's builder signs kits, and 'fairflare kit harden' signs one's own.",
        "45 CFR 164.312(c)(1)",
        (Check(("site", "server"), _check_signature),),
    ),
    Rule(
        "FFA-103",
        Severity.critical,
        "Certificates are valid and the project's own",
        "With an expired certificate, or a wrong clock, nobody connects; a foreign one is of another project.",
        "Correct the clock; ask the person who provisions for a new certificate some weeks before the old one ends.",
        "45 CFR 164.312(d)",
        (Check(("site", "server", "admin"), _check_certificates),),
    ),
)

__all__ = ["TRANSPORT"]
