# SPDX-License-Identifier: Apache-2.0
"""What an audit looks at: a start-up kit, a job and a site's policy, read from files only.

The auditor does not trust the audited: nothing here imports FLARE or the part of FairFlare that runs jobs. What FLARE
would make of a kit is worked out from the files as FLARE 2.9 reads them: a configuration falls back to its
``.default``, and every ``*__resources.json`` adds its components.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fairflare.audit.folder import Folder, Problem, plain_name
from fairflare.audit.rule import Doubt, Target
from fairflare.errors import AuditError, FairFlareError
from fairflare.jobs.check import JobDefect, check_job
from fairflare.plan import Plan, parse_plan
from fairflare.policy import POLICY_NAME, SitePolicy, read_policy

#: Startup file of each kind of kit, and the name of its certificate and key.
KINDS: Mapping[Target, tuple[str, str]] = {
    "site": ("fed_client.json", "client"),
    "server": ("fed_server.json", "server"),
    "admin": ("fed_admin.json", "client"),
}
#: Where the plan stands in a job's folder.
PLAN: Final = "app/config/plan.json"
_MORE_RESOURCES = ("*__resources.json", "*__p_resources.json", "*__j_resources.json")


@dataclass(frozen=True)
class Component:
    """Something that FLARE builds from a kit's configuration: where it is written, its class path, its arguments."""

    place: str
    path: str
    args: Any
    disabled: bool = False


class Kit:
    """A start-up kit: ``startup/`` as provisioned, ``local/`` as its owner left it."""

    def __init__(self, root: Path) -> None:
        """List ``root``; raises ``FF-AUDIT-KIT`` if it is no kit of one participant."""
        self.folder = Folder(root, parts=("startup", "local", "transfer"))
        kinds = [kind for kind, (file, _) in KINDS.items() if f"startup/{file}" in self.folder.entries]
        if len(kinds) != 1:
            raise AuditError(
                "FF-AUDIT-KIT",
                got=f"a folder with {len(kinds)} of startup/" + ", startup/".join(file for file, _ in KINDS.values()),
                expected="the folder of one participant's start-up kit, with exactly one of them",
                next_step="name the folder that holds startup/ and local/, such as prod_00/hospital-1",
            )
        self.root = root
        self.kind: Target = kinds[0]
        self.startup_file = f"startup/{KINDS[self.kind][0]}"

    @cached_property
    def startup(self) -> Mapping[str, Any] | Problem:
        """The kit's startup configuration."""
        return _object(self.folder.json(self.startup_file))

    @cached_property
    def resources_file(self) -> str:
        """The file that FLARE takes ``resources`` from."""
        return self._effective("resources")

    @cached_property
    def resources(self) -> Mapping[str, Any] | Problem:
        """``resources.json``, or its fallback."""
        return _object(self.folder.json(self.resources_file))

    @cached_property
    def authorization_file(self) -> str:
        """The file that FLARE takes roles and rights from."""
        return self._effective("authorization")

    @cached_property
    def authorization(self) -> Mapping[str, Any] | Problem:
        """``authorization.json``, or its fallback."""
        return _object(self.folder.json(self.authorization_file))

    @cached_property
    def privacy(self) -> Mapping[str, Any] | Problem:
        """``privacy.json``; it has no fallback."""
        return _object(self.folder.json("local/privacy.json"))

    @property
    def logging_file(self) -> str:
        """The file that FLARE takes the configuration of its logs from."""
        return self._effective("log_config")

    @cached_property
    def more_resources(self) -> tuple[str, ...]:
        """Further configuration files that FLARE adds to a kit's own."""
        names = [name for name in self.folder.files("startup", "local") if name.count("/") == 1]
        more = [name for name in names if any(fnmatch.fnmatch(name.split("/")[1], one) for one in _MORE_RESOURCES)]
        return tuple(more + [name for name in names if name == "local/job_resources.json"])

    def documents(self) -> Iterator[tuple[str, Mapping[str, Any] | Problem]]:
        """Each file that FLARE merges into the configuration of this kit's processes, in FLARE's order."""
        yield self.startup_file, self.startup
        yield self.resources_file, self.resources
        for name in self.more_resources:
            yield name, _object(self.folder.json(name))

    def components(self) -> Iterator[Component | Doubt]:
        """Everything in lists of components; a doubt for what cannot be read."""
        for name, document in self.documents():
            if isinstance(document, Problem):
                yield Doubt(name, f"the file {document.text}")
            else:
                yield from _components(f"{name}:components", document.get("components", []))

    def classes(self) -> Iterator[Component]:
        """Everything with a class path, at any depth: FLARE also builds what stands in arguments."""
        for name, document in self.documents():
            if not isinstance(document, Problem):
                yield from _classes(name, document, ":")

    def certificate(self) -> x509.Certificate | Problem:
        """The participant's own certificate."""
        return self._certificate(f"startup/{KINDS[self.kind][1]}.crt")

    def root_certificate(self) -> x509.Certificate | Problem:
        """The root that this kit believes."""
        return self._certificate("startup/rootCA.pem")

    @property
    def site_name(self) -> str | None:
        """The participant's name in the project, as its certificate has it."""
        own = self.certificate()
        if isinstance(own, Problem):
            return None
        names = own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(names[0].value) if len(names) == 1 else None

    @property
    def key_file(self) -> str:
        """Where the kit's private key is; it is looked at, and never read."""
        return f"startup/{KINDS[self.kind][1]}.key"

    def _certificate(self, name: str) -> x509.Certificate | Problem:
        data = self.folder.content(name)
        if isinstance(data, Problem):
            return data
        try:
            found = x509.load_pem_x509_certificate(data)
            found.public_key()  # parsed only now, as are the dates: what is broken there must not stop the audit later
            found.not_valid_before_utc, found.not_valid_after_utc  # noqa: B018
        except Exception:  # a hostile certificate can break the parser in many ways
            return Problem("is no certificate")
        return found

    def _effective(self, base: str) -> str:
        own = f"local/{base}.json"
        return own if own in self.folder.entries else f"{own}.default"


@dataclass
class Job:
    """A researcher's job folder, as ``fairflare.jobs.check`` sees it."""

    root: Path
    folder: Folder
    defects: list[JobDefect] = field(default_factory=list)
    plan: Plan | None = None
    doubt: str = ""


@dataclass
class Policy:
    """A site's policy: ``subject`` and ``place`` say where it was found."""

    subject: str
    place: str
    policy: SitePolicy | None
    absent: bool = False
    problem: str = ""
    digest: tuple[str, int] | None = None


@dataclass
class Evidence:
    """Everything one audit may look at, and its time. Rules run only for what is there."""

    now: datetime
    a_job: Job | None = None
    a_kit: Kit | None = None
    policy: Policy | None = None
    approved: frozenset[str] = frozenset()

    @property
    def kit(self) -> Kit:
        """The kit, for rules that look at one."""
        if self.a_kit is None:
            raise LookupError
        return self.a_kit

    @property
    def job(self) -> Job:
        """The job, for rules that look at one."""
        if self.a_job is None:
            raise LookupError
        return self.a_job

    @property
    def site_policy(self) -> SitePolicy:
        """The policy, for rules that need one."""
        if self.policy is None or self.policy.policy is None:
            raise LookupError
        return self.policy.policy

    @property
    def policy_file(self) -> str:
        """Where the policy stands, for findings about it."""
        return f"local/{POLICY_NAME}" if self.policy is None else self.policy.place


def read_job(root: Path) -> Job:
    """List a job's folder and let the shared check judge it; whatever breaks in it becomes a doubt."""
    job = Job(root, Folder(root))
    for name in [name for name, entry in job.folder.entries.items() if entry.kind == "file"]:
        job.folder.content(name)
    try:
        job.defects = check_job(root)
    except Exception as problem:  # a job's folder is hostile until proven otherwise
        job.doubt = f"the check of job folders stopped ({type(problem).__name__})"
    data = job.folder.content(PLAN)
    # Only a plan without defects is read once more: the check knows its limits, and how to refuse it quickly. From the
    # bytes whose digest the report names, not from the disk.
    if isinstance(data, bytes) and not job.doubt and not any(one.place == PLAN for one in job.defects):
        with suppress(FairFlareError, UnicodeDecodeError):
            job.plan = parse_plan(data.decode("utf-8"))
    return job


def read_policy_file(path: Path) -> Policy:
    """A policy given by itself: a file, or a folder that holds one."""
    file = path / POLICY_NAME if path.is_dir() else path
    return _policy(file, "policy", plain_name(file.name))


def read_kit_policy(kit: Kit) -> Policy:
    """The policy in a kit's ``local/``."""
    return _policy(kit.root / "local" / POLICY_NAME, "kit", f"local/{POLICY_NAME}", kit.folder)


def key_digest(certificate: x509.Certificate) -> str:
    """SHA-256 (hex) of a certificate's public key: what rosters and policies pin."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(certificate.public_key().public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _policy(file: Path, subject: str, place: str, folder: Folder | None = None) -> Policy:
    folder = folder or Folder(file.parent, parts=())
    data = folder.content(place if subject == "kit" else file.name)
    if isinstance(data, Problem):
        return Policy(subject, place, None, data.absent, f"the file {data.text}")
    digest = (hashlib.sha256(data).hexdigest(), len(data))
    try:
        return Policy(subject, place, read_policy(file), digest=digest)
    except FairFlareError as problem:
        return Policy(subject, place, None, problem=f"the policy is refused ({problem.code})", digest=digest)


def _object(found: Any) -> Mapping[str, Any] | Problem:
    if isinstance(found, Problem | Mapping):
        return found
    return Problem("is no JSON object")


def _classes(place: str, value: Any, joint: str = ".") -> Iterator[Component]:
    if isinstance(value, Mapping):
        path = value.get("path", value.get("class_path"))
        if path is None and "args" in value:
            path = value.get("name")  # FLARE searches its own packages for a class of this name
            path = f"name.{path}" if isinstance(path, str) else None
        if isinstance(path, str) and "." in path and "/" not in path:
            yield Component(place, path, value.get("args", {}), value.get("disabled") is True)
        for key, inner in value.items():
            yield from _classes(f"{place}{joint}{plain_name(key)}", inner)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _classes(f"{place}[{at}]", inner)


def _components(place: str, items: Any) -> Iterator[Component | Doubt]:
    if not isinstance(items, list):
        yield Doubt(place, "expected a list")
        return
    for at, item in enumerate(items):
        path = item.get("path", item.get("class_path")) if isinstance(item, Mapping) else None
        if isinstance(path, str):
            yield Component(f"{place}[{at}]", path, item.get("args", {}), item.get("disabled") is True)
        else:
            yield Doubt(f"{place}[{at}]", "a component without a class path: FLARE would search one by its name")


__all__ = [
    "KINDS",
    "PLAN",
    "Component",
    "Evidence",
    "Job",
    "Kit",
    "Policy",
    "key_digest",
    "read_job",
    "read_kit_policy",
    "read_policy_file",
]
