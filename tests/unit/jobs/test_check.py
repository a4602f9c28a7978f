# SPDX-License-Identifier: Apache-2.0
"""Every hostile or mistaken job is refused with its code, every good one accepted; texts tell no more than they may."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from nvflare.fuel.utils.zip_utils import unzip_all_from_bytes, zip_directory_to_bytes
from nvflare.lighter.utils import sign_folders
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fairflare import presets, schema
from fairflare.errors import JobError
from fairflare.jobs import SIGNATURES, check, job_files, write_job
from fairflare.jobs.check import MOST_PLAN, JobDefect, check_app, check_archive, check_job
from fairflare.jobs.content import MOST_ITEMS, list_folder
from fairflare.jobs.defects import CODES, place_of, sentence, verify_job
from fairflare.jobs.meta import load_json
from fairflare.plan import parse_plan
from tests.hostile import ARCHIVES, CASES, archive_of

ROOT = Path(__file__).resolve().parents[3]
PLAN = presets.shipped("heart_flexfair")
#: A key that signs the way FLARE's command line does; who it belongs to does not matter here.
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(PLAN, tmp_path / "jobs")


def sign(job: Path) -> None:
    certificate = job.parent / "submitter.crt"
    certificate.write_text("a certificate", encoding="utf-8")
    sign_folders(str(job), KEY, str(certificate))


def codes(defects: list[JobDefect]) -> set[str]:
    return {defect.code for defect in defects}


@pytest.mark.parametrize("name", presets.JOBS)
def test_a_committed_job_is_one(name: str) -> None:
    job = ROOT / "jobs" / name
    assert check_job(job) == []
    assert check_app(job / "app") == ([], presets.shipped(name))
    assert check_archive(archive_of(job / "app")) == ([], presets.shipped(name))


def test_a_signed_job_is_one_and_may_be_written_and_compared_again(job: Path) -> None:
    sign(job)
    assert len(list(job.rglob(SIGNATURES[0]))) == len(list(job.rglob(SIGNATURES[1]))) == 3
    assert check_job(job) == []
    assert check_app(job / "app")[0] == check_archive(archive_of(job / "app"))[0] == []
    assert write_job(PLAN, job.parent) == job
    assert not list(job.rglob(".*"))  # FLARE signs anew: what was signed may be another plan


def test_the_order_and_the_spaces_of_a_plan_do_not_matter(job: Path) -> None:
    plan = job / "app" / "config" / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()), sort_keys=True), encoding="utf-8")
    assert check_app(job / "app") == ([], PLAN)
    assert check_job(job) == []


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_or_mistaken_job_is_refused_with_its_code(job: Path, name: str) -> None:
    case = CASES[name]
    case.spoil(job)
    found = check_job(job)
    assert case.code in codes(found)
    if case.where == "app":
        inside = check_app(job / "app")[0]
        assert case.code in codes(inside)
        for defect in inside:  # the same places, but for the folder
            assert defect.place == "?" or any(one.place == f"app/{defect.place}" for one in found), defect
    with pytest.raises(JobError) as caught:
        verify_job(found)
    assert caught.value.code in codes(found)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_holds_no_path_and_is_short(job: Path, name: str) -> None:
    CASES[name].spoil(job)
    text = sentence(check_job(job))
    assert len(text) < 4100
    assert re.fullmatch(r"[ -~]+", text)
    assert not [secret for secret in (str(job.parent), "/etc", "/opt", "../", "evil:latest", "\\") if secret in text]


@pytest.mark.parametrize("name", CASES)
def test_what_flare_itself_says_to_it(job: Path, name: str) -> None:
    # By FLARE's own code: signing at the researcher's, then the check at submission. Most of it FLARE takes.
    case = CASES[name]
    case.spoil(job)
    try:
        sign(job)
        data = zip_directory_to_bytes(str(job.parent), job.name)
        valid, said, _ = JobMetaValidator().validate(job.name, data)
    except Exception as problem:  # FLARE gives its text to the submitter
        valid, said = False, str(problem)
    assert (case.flare is None) == valid, said
    assert case.flare is None or case.flare in said


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused_with_its_code(job: Path, name: str) -> None:
    body = ARCHIVES[name].spoil(archive_of(job / "app"))
    found, _ = check_archive(body)
    assert ARCHIVES[name].code in codes(found)
    assert not [secret for secret in ("/etc", "/opt", "../", "\\") if secret in sentence(found)]


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name != "bomb"])
def test_what_flare_itself_says_to_an_archive(job: Path, tmp_path: Path, name: str) -> None:
    body = ARCHIVES[name].spoil(archive_of(job / "app"))
    (tmp_path / "out").mkdir()
    try:
        unzip_all_from_bytes(body, str(tmp_path / "out"))
        said = None
    except Exception as problem:
        said = str(problem)
    expected = ARCHIVES[name].flare
    assert (said is None) == (expected is None), said
    assert expected is None or said is None or expected in said


def test_the_largest_plan_that_the_schema_allows_is_no_large_one(tmp_path: Path) -> None:
    data = json.loads(schema.pretty(PLAN))
    features = [{"name": f"a{at:063d}", "center": -1.2345678901234567e-300, "scale": 1e-300} for at in range(4096)]
    data["task"]["input"]["features"] = features
    attributes = [{"name": f"b{at}", "values": [f"{v:064d}" for v in range(64)], "edges": None} for at in range(14)]
    data["attributes"] += attributes
    job = write_job(parse_plan(json.dumps(data)), tmp_path)
    size = (job / "app" / "config" / "plan.json").stat().st_size
    assert MOST_PLAN // 2 < size < MOST_PLAN
    assert check_job(job) == []


SLOW = [
    "huge plan",
    "deep plan",
    "thousands of unknown keys",
    "unknown keys within the limits",
    "number of a million digits",
]
MEASURE = """
import resource, sys, time
from pathlib import Path
from fairflare.jobs.check import check_app
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
found = check_app(Path(sys.argv[1]))[0]
print(len(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""


@pytest.mark.parametrize("name", SLOW)
def test_a_hostile_plan_costs_little_time_and_memory(job: Path, name: str) -> None:
    CASES[name].spoil(job)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(job / "app")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found, kilobytes, seconds = (float(one) for one in done.stdout.split())
    assert found >= 1
    assert kilobytes < 32 * 1024
    assert seconds < 2


def test_a_bomb_is_not_unpacked(job: Path) -> None:
    body = ARCHIVES["bomb"].spoil(archive_of(job / "app"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    assert "FF-JOB-SIZE" in codes(check_archive(body)[0])
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_folder_of_many_files_is_not_listed_whole(job: Path) -> None:
    for at in range(3 * MOST_ITEMS):
        (job / "app" / "config" / f"{at}.txt").touch()
    found = check_app(job / "app")[0]
    assert "FF-JOB-SIZE" in codes(found)
    assert len(found) < 2 * MOST_ITEMS


def test_a_pipe_is_never_opened(job: Path) -> None:
    plan = job / "app" / "config" / "plan.json"
    plan.unlink()
    os.mkfifo(plan)  # whoever opens it waits for ever
    assert [str(one) for one in check_app(job / "app")[0]] == [
        "FF-JOB-FILE config/plan.json: got a device, expected a file"
    ]


def test_a_file_that_nobody_may_read_or_that_is_none_any_more_is_refused(job: Path, monkeypatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "denied", "/home/somebody")

    monkeypatch.setattr(os, "open", denied)
    found = check_app(job / "app")[0]
    assert codes(found) == {"FF-JOB-READ"}
    assert "somebody" not in sentence(found)


def test_a_link_that_takes_the_place_of_a_listed_file_is_not_followed(job: Path, monkeypatch) -> None:
    plan = job / "app" / "config" / "plan.json"
    shutil.copy(plan, job.parent / "outside.json")
    plan.unlink()
    plan.symlink_to(job.parent / "outside.json")
    real = os.DirEntry.stat

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self._entry = entry.name, entry.path, entry

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            return real(self._entry, follow_symlinks=True)  # what was there when it was listed

    scan = os.scandir

    class Scan:
        def __init__(self, folder: Path) -> None:
            self._entries = scan(folder)

        def __enter__(self) -> list[Entry]:  # the same entries, listed before the change
            with self._entries as found:
                return [Entry(one) for one in found]

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Scan)
    assert codes(check_app(job / "app")[0]) == {"FF-JOB-READ"}


def test_a_job_that_is_a_link_or_is_not_there_is_refused(job: Path) -> None:
    (job.parent / "link").symlink_to(job)
    assert codes(check_job(job.parent / "link")) >= {"FF-JOB-LINK"}
    assert codes(check_job(job.parent / "nothing")) >= {"FF-JOB-READ"}
    assert codes(check_app(job / "meta.json")[0]) >= {"FF-JOB-READ"}


def test_a_folder_that_should_not_be_there_is_told_once_and_not_by_its_signatures(job: Path) -> None:
    (job / "app" / "notes").mkdir()
    sign(job)
    assert [one.place for one in check_app(job / "app")[0]] == ["notes"]
    (job / "app" / "config" / SIGNATURES[0]).rename(job / "app" / "config" / "x")
    assert [one.place for one in check_app(job / "app")[0]] == ["config/x", "notes"]


def test_a_signature_without_its_folder_is_refused(job: Path) -> None:
    file = io.BytesIO(archive_of(job / "app"))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"custom/{SIGNATURES[0]}", b"{}")
    assert codes(check_archive(file.getvalue())[0]) == {"FF-JOB-CODE"}


def test_a_file_that_is_larger_than_it_says_is_refused(job: Path, monkeypatch) -> None:
    monkeypatch.setattr(check, "MOST_PLAN", 100)
    items, _ = list_folder(job / "app")
    lying = [dataclasses.replace(one, size=1) for one in items]
    monkeypatch.setattr(check, "list_folder", lambda _: (lying, []))
    assert codes(check_app(job / "app")[0]) == {"FF-JOB-SIZE"}


def test_a_pipe_in_the_place_of_a_listed_file_is_not_waited_for(job: Path) -> None:
    items, _ = list_folder(job / "app")
    plan = job / "app" / "config" / "plan.json"
    plan.unlink()
    os.mkfifo(plan)
    with pytest.raises(OSError, match="not a regular file"):
        next(one for one in items if one.path == "config/plan.json").read(10)


def test_large_signatures_are_refused(job: Path) -> None:
    (job / "app" / SIGNATURES[0]).write_bytes(b"x" * 70_000)
    assert codes(check_app(job / "app")[0]) == {"FF-JOB-SIZE"}


def test_a_changed_configuration_names_what_was_changed(job: Path) -> None:
    config = job / "app" / "config" / "config_fed_client.json"
    config.write_text(config.read_text().replace('"components": []', '"components": [{}], "x y": 1'), encoding="utf-8")
    (found,) = check_app(job / "app")[0]
    assert "in 'components', a text that is no plain name" in found.got
    config.write_text("{", encoding="utf-8")
    assert "no valid JSON" in check_app(job / "app")[0][0].got
    config.write_text("[]", encoding="utf-8")
    assert "no JSON object" in check_app(job / "app")[0][0].got


@settings(max_examples=60, deadline=None)
@given(at=st.integers(min_value=0), byte=st.integers(0, 255), server=st.booleans())
def test_every_other_byte_in_a_configuration_is_refused(tmp_path_factory, at: int, byte: int, server: bool) -> None:
    job = write_job(PLAN, tmp_path_factory.mktemp("jobs"))
    config = job / "app" / "config" / f"config_fed_{'server' if server else 'client'}.json"
    data = bytearray(config.read_bytes())
    at %= len(data)
    same = data[at] == byte
    data[at] = byte
    config.write_bytes(bytes(data))
    assert codes(check_app(job / "app")[0]) == (set() if same else {"FF-JOB-CONFIG"})


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(folder=st.sampled_from(["", "app", "app/config"]), name=NAMES, is_folder=st.booleans())
def test_every_other_name_is_refused_in_plain_words(tmp_path_factory, folder: str, name: str, is_folder: bool) -> None:
    job = write_job(PLAN, tmp_path_factory.mktemp("jobs"))
    path = job / folder / name
    if len(name.encode()) > 255 or path.exists() or name in SIGNATURES or name in (".", ".."):
        return
    path.mkdir() if is_folder else path.touch()
    found = check_job(job)
    assert codes(found) in ({"FF-JOB-FILE"}, {"FF-JOB-CODE"})
    assert all(re.fullmatch(r"[ -~]+", str(one)) for one in found)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_of_a_plan_make_the_check_fail(data: bytes) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in job_files(PLAN).items():
            if name.startswith("app/") and not name.endswith("plan.json"):
                archive.writestr(name.removeprefix("app/"), text)
        archive.writestr("config/plan.json", data)
    found, plan = check_archive(file.getvalue())
    assert (codes(found), plan) == ({"FF-JOB-PLAN"}, None)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_of_an_archive_make_the_check_fail(data: bytes) -> None:
    assert check_archive(data)[0]


@settings(max_examples=200, deadline=None)
@given(at=st.integers(min_value=0), byte=st.integers(0, 255))
def test_an_archive_with_one_other_byte_is_refused_or_unpacks_to_the_same(tmp_path_factory, at: int, byte: int) -> None:
    good = archive_of(ROOT / "jobs" / "heart_flexfair" / "app")
    data = bytearray(good)
    data[at % len(data)] = byte
    found, plan = check_archive(bytes(data))
    if not found:
        out = tmp_path_factory.mktemp("out")
        unzip_all_from_bytes(bytes(data), str(out))
        assert check_app(out) == ([], plan)
        assert plan == PLAN


def test_codes_are_a_closed_list_and_every_one_is_used() -> None:
    with pytest.raises(ValueError, match="no code"):
        JobDefect("FF-JOB-OTHER", "?", "x", "y")
    sources = "".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "custom" / "fairflare").rglob("*.py")
        if file.name != "defects.py"
    )  # fmt: skip
    assert all(f'"{code}"' in sources for code in CODES)


def test_names_and_places_are_repeated_only_if_plain() -> None:
    assert place_of("app/config/plan.json") == "app/config/plan.json"
    for path in ("../x", "a b", "a/../b", "a//b", "", "/x", "a\nb", "a/b/c/d/e/f/g", "x" * 65):
        assert place_of(path) == "?"
    assert sentence([]) == ""
    verify_job([])
    assert sentence(["FF-JOB-FILE x"] * 1000).endswith("more")


def test_json_of_a_job_may_be_32_levels_deep() -> None:
    load_json(b"[" * 32 + b"]" * 32)
    load_json(b'["' + b"[" * 100 + b'"]')
    with pytest.raises(ValueError, match="levels"):
        load_json(b"[" * 33 + b"]" * 33)
    load_json(b"[" + b"1," * 19_998 + b"1]")
    with pytest.raises(ValueError, match="values"):
        load_json(b"[" + b"1," * 20_000 + b"1]")


def test_the_modes_of_an_archive_tell_files_from_folders(job: Path) -> None:
    file = io.BytesIO(archive_of(job / "app"))
    with zipfile.ZipFile(file, "a") as archive:
        info = zipfile.ZipInfo(SIGNATURES[0])
        info.external_attr = (stat.S_IFDIR | 0o755) << 16
        archive.writestr(info, b"{}")
    assert codes(check_archive(file.getvalue())[0]) == {"FF-JOB-FILE"}
