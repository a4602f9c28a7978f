# SPDX-License-Identifier: Apache-2.0
"""Rules 1xx, files: private keys, who may read and write a kit, and configurations that hide behind others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fairflare.audit.evidence import Evidence
from fairflare.audit.folder import MOST_BYTES, Folder, plain_name
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity
from fairflare.audit.rules.encrypted import contexts_of

#: Configuration of the connections between FLARE's processes.
COMM: Final = "comm_config"
_LOCAL: Final = ("authorization", "privacy")
_OTHERS: Final = 0o077
_WRITE: Final = 0o022
_PRIVATE: Final = b"PRIVATE KEY-----"
_KEY_NAMES: Final = (".key", ".p12", ".pfx", ".jks")
#: FLARE looks for a configuration by the first part of its name, with these endings in this order, through all folders
#: below: a file that comes earlier is taken instead of the one that everybody reads.
_ENDINGS: Final = (
    ".json", ".conf", ".yml", ".yaml", ".json.default", ".conf.default", ".yml.default", ".yaml.default",
)  # fmt: skip


def _check_keys(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    own = kit.folder.entries.get(kit.key_file)
    if own is None:
        yield Doubt(kit.key_file, "there is no private key to look at")
    elif own.kind != "file":
        yield Doubt(kit.key_file, "the private key is no plain file")
    elif own.owner != kit.folder.owner:
        yield Defect(kit.key_file, "another owner than the kit's", "the user who runs FLARE")
    secrets = [kit.key_file, *contexts_of(kit.folder)]
    for name in secrets:
        entry = kit.folder.entries.get(name)
        if entry is not None and entry.kind == "file" and entry.mode & _OTHERS:
            yield Defect(plain_name(name), f"mode {entry.mode:04o}", "0600: for its owner only")
    for name in _holding_keys(kit.folder, [name for name in kit.folder.entries if name != kit.key_file]):
        allowed = "this kit's own key in startup/, and no other"
        yield Defect(plain_name(name), "another private key", allowed, Severity.critical)


def _check_job_keys(evidence: Evidence) -> Iterator[Outcome]:
    folder = evidence.job.folder
    for name in _holding_keys(folder, list(folder.entries)):
        allowed = "no key: a job goes to the server and to every site"
        yield Defect(plain_name(name), "a private key", allowed, Severity.critical)


def _holding_keys(folder: Folder, names: list[str]) -> Iterator[str]:
    for name in names:
        if folder.entries[name].kind != "file" or folder.entries[name].size > MOST_BYTES:
            continue  # no key is as large as that; a log may be
        data = folder.content(name)
        if name.lower().endswith(_KEY_NAMES) or (isinstance(data, bytes) and _PRIVATE in data):
            yield name


def _check_writable(evidence: Evidence) -> Iterator[Outcome]:
    folder = evidence.kit.folder
    for name, entry in folder.entries.items():
        if entry.kind in ("file", "folder") and entry.mode & _WRITE:
            yield Defect(plain_name(name), f"mode {entry.mode:04o}", "writable by its owner only")
        if entry.owner not in (folder.owner, 0) and name != evidence.kit.key_file:  # root can change everything anyway
            yield Defect(plain_name(name), "another owner than the kit's", "the user who runs FLARE, or root")
    if folder.mode & _WRITE:
        yield Defect(".", f"mode {folder.mode:04o}", "writable by its owner only")


def _check_readable_by_others(evidence: Evidence) -> Iterator[Outcome]:
    folder = evidence.kit.folder
    if not folder.mode & 0o011:
        return  # whoever cannot enter the kit's folder reads nothing in it
    entries = folder.entries
    for below in ("startup", "local", "transfer", ""):
        outer = entries.get(below)
        if outer is not None and not outer.mode & 0o011:
            continue
        names = folder.files(below) if below else [name for name, one in entries.items() if "/" not in name]
        open_ = [name for name in names if entries[name].kind == "file" and entries[name].mode & 0o044]
        if open_:
            got = f"files that other users of this machine can read: {len(open_)}"
            yield Defect(f"{below}/" if below else ".", got, "none")


def _check_shadows(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    startup = kit.startup_file.removeprefix("startup/").removesuffix(".json")
    # Of these FLARE searches its whole workspace, which is the kit; of the others it only looks into local/.
    homes = {startup: "startup", "resources": "local", COMM: "local"}
    found, whole = kit.folder.named(lambda file: any(_is_of(file, base) for base in homes))
    if not whole:
        yield Doubt(".", "not every folder could be searched for configurations that FLARE would find first")
    found += [name for name in kit.folder.files("local") if any(_is_of(name, base) for base in _LOCAL)]
    for name in found:
        base = name.rsplit("/", 1)[1].split(".")[0] if "/" in name else name.split(".")[0]
        home = homes.get(base, "local")
        # Of the connections no kit has a fallback, and the rules about them read the one file only.
        ours = [f"{home}/{base}.json", *([] if base == COMM else [f"{home}/{base}.json.default"])]
        if not any(kit.folder.is_same(name, one) for one in ours):
            yield Defect(plain_name(name), f"a second configuration '{base}'", f"only {home}/{base}.json")


def _is_of(name: str, base: str) -> bool:
    """Whether FLARE could take the file for the configuration ``base``."""
    file = name.rsplit("/", 1)[-1]
    return file.startswith(f"{base}.") and file[len(base) :] in _ENDINGS


FILES = (
    Rule(
        "FFA-104",
        Severity.high,
        "Private keys are for their owner only, and nowhere else",
        "Whoever can read a key acts in this participant's name, in every project of this root.",
        "chmod 600 the key; if somebody else may have read it, or it was in a job, have the certificate replaced.",
        "45 CFR 164.312(a)(1)",
        (Check(("site", "server", "admin"), _check_keys), Check(("job",), _check_job_keys)),
    ),
    Rule(
        "FFA-105",
        Severity.high,
        "Nobody but its owner can change the kit",
        "Whoever can write to local/ can open every door that this audit finds closed.",
        "chmod -R go-w the kit's folder.",
        "45 CFR 164.312(a)(1)",
        (Check(("site", "server", "admin"), _check_writable),),
    ),
    Rule(
        "FFA-106",
        Severity.low,
        "Nobody but its owner can read the kit",
        "Catalogues name folders with patients' data, logs name jobs, policies say what the hospital gives.",
        "chmod 700 the kit's folder.",
        "45 CFR 164.312(a)(1)",
        (Check(("site", "server", "admin"), _check_readable_by_others),),
    ),
    Rule(
        "FFA-107",
        Severity.critical,
        "No configuration hides another one",
        "FLARE takes the first file of a name, with any ending and in any sub-folder, and so perhaps components from "
        "another file than the reviewed one.",
        "Remove the second file, or move it out of the kit.",
        "45 CFR 164.312(c)(1)",
        (Check(("site", "server", "admin"), _check_shadows),),
    ),
)

__all__ = ["FILES"]
