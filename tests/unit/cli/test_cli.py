# SPDX-License-Identifier: Apache-2.0
"""The command line: its help is committed, its errors are four lines, its exit statuses tell the truth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairflare import presets, schema
from fairflare.cli.files import file_error

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "help.txt"
COMMANDS = [
    [], ["plan"], ["plan", "new"], ["plan", "presets"], ["plan", "check"], ["plan", "hash"], ["plan", "diff"],
    ["plan", "feasibility"], ["plan", "privacy"], ["feasibility"],
    ["data"], ["data", "check"], ["data", "import"], ["data", "synthetic"],
    ["jobs"], ["jobs", "write"], ["jobs", "make"], ["jobs", "check"],
    ["audit"], ["audit", "job"], ["audit", "kit"], ["audit", "rules"],
    ["server"], ["server", "health"], ["server", "resume"],
    ["run"], ["run", "simulate"], ["run", "local"], ["run", "verify"], ["run", "resume"], ["secagg"],
    ["secagg", "explain"], ["he"], ["he", "make"], ["he", "seal"], ["he", "open"], ["he", "show"],
    ["rehearse"], ["report"],
    ["ledger"], ["ledger", "show"], ["ledger", "verify"], ["ledger", "export"], ["ledger", "forecast"],
    ["policy"], ["policy", "new"], ["policy", "key"], ["policy", "check"], ["policy", "explain"],
    ["policy", "approve"], ["policy", "decisions"],
    ["evaluate"], ["predict"], ["worth"], ["study"], ["pretrain"], ["weights"], ["weights", "show"], ["demo"],
]  # fmt: skip
SCRIPT = """
import sys
from fairflare.cli import app
for line in sys.stdin.read().splitlines():
    words = line.split()
    print("$ fairflare", *words, "--help")
    try:
        app([*words, "--help"], prog_name="fairflare")
    except SystemExit:
        pass
"""


def fairflare(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("fairflare")), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_help_texts_are_the_committed_ones():
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    lines = "\n".join(" ".join(words) for words in COMMANDS)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input=lines, env=environment, capture_output=True, text=True, timeout=60, check=True)
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN"):
        GOLDEN.write_text(done.stdout, encoding="utf-8")
    assert done.stdout == GOLDEN.read_text(encoding="utf-8")


def test_an_error_is_code_got_expected_and_next_step_without_a_trace(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(schema.pretty(presets.shipped("heart_fedavg")).replace('"rounds"', '"round"'), encoding="utf-8")
    done = fairflare("plan", "check", str(plan))
    assert done.returncode == 1
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first == "FF-PLAN-UNKNOWN-KEY"
    assert [line.split(":")[0].strip() for line in rest] == ["got", "expected", "next step"]
    assert "'rounds'" in rest[0]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["plan", "check", "none.json"], "FF-PLAN-FILE"),
        (["plan", "new", "--preset", "hart_flexfair"], "FF-PLAN-PRESET"),
        (["run", "verify", "empty"], "FF-RUN-NO-RECORD"),
        (["run", "resume", "empty"], "FF-RUN-NO-RECORD"),
        (["run", "simulate", "plan.json", "--catalog", "none.json"], "FF-CAT-FILE"),
        (["run", "local", "plan.json", "--out", "old"], "FF-RUN-EXISTS"),
        (["run", "simulate", "plan.json", "--catalog", "flat.json"], "FF-RUN-CATALOG"),
        (["report", "empty"], "FF-RUN-NO-RECORD"),
    ],
)
def test_bad_input_is_refused_before_work_starts(tmp_path, words, code):
    (tmp_path / "plan.json").write_text(schema.pretty(presets.shipped("heart_fedavg")), encoding="utf-8")
    (tmp_path / "flat.json").write_text(
        '{"format": "fairflare/catalog/1", "sites": null, "data_sets": '
        '{"heart": {"manifest": "/x.csv", "root": null, "opt_out": null}}}',
        encoding="utf-8",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "record.json").touch()
    done = fairflare(*words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert done.stderr.splitlines()[0] == code
    assert "Traceback" not in done.stderr


def test_a_new_plan_does_not_replace_a_file(tmp_path):
    target = tmp_path / "plan.json"
    assert fairflare("plan", "new", "--to", str(target)).returncode == 0
    before = target.read_bytes()
    done = fairflare("plan", "new", "--to", str(target))
    assert done.stderr.splitlines()[0] == "FF-PLAN-EXISTS"
    assert target.read_bytes() == before


@pytest.mark.parametrize(("preset", "name"), [("paper", "heart_flexfair"), ("official", "heart_flexfair_official")])
def test_flexfairs_presets_have_short_names(preset, name):
    done = fairflare("plan", "new", "--preset", preset)
    assert done.returncode == 0, done.stderr
    assert done.stdout == schema.pretty(presets.PRESETS[name](name))


def test_every_preset_is_listed_with_what_it_is():
    done = fairflare("plan", "presets")
    assert done.returncode == 0, done.stderr
    listed = {words[0]: line for line in done.stdout.splitlines() if line.startswith("  ") and (words := line.split())}
    assert set(listed) == set(presets.PRESETS)
    for name, line in listed.items():
        assert presets.described(name)[1] in line
        assert ("  job  " in line) == (name in presets.JOBS)
    for defect in (
        "overwritten by the plain average: it is FedAvg",
        "after the optimiser's step",
        "shortened direction",
    ):
        assert defect in done.stdout


@pytest.mark.parametrize("preset", ["fundus_fairmixup", "fundus_reweighting", "fundus_fairmixup_official"])
def test_a_method_that_a_task_cannot_have_is_refused_with_the_reason(preset):
    done = fairflare("plan", "new", "--preset", preset)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "FF-PLAN-PRESET")
    assert presets.REFUSED[preset.removesuffix("_official")] in done.stderr


def test_whoever_decides_on_a_plan_is_told_what_its_method_sends():
    for job, words in {
        "heart_scaffold": ("control clip 16.0", "in the update's own sum: the change of the site's control variate"),
        "heart_fednova": ("normalize true", "how far the site's steps lead"),
        "heart_fairfed": ("beta 0.1", "the model's decisions on training records by sex", "only the site knows"),
        "fundus_fairfed": ("attribute hospital", "the Dice of images on training records, and of everybody"),
        "heart_fedprox": ("mu 0.1", "nothing: what FedAvg sends"),
        "skin_fairmixup": ("direction difference", "nothing: what FedAvg sends"),
        "skin_reweighting": ("max weight 8.0", "once in a session", "each group of age and label"),
        "heart_flexfair": ("for each group that is compared",),
    }.items():
        done = fairflare("plan", "check", f"jobs/{job}")
        assert done.returncode == 0, done.stderr
        for one in words:
            assert one in done.stdout, (job, one)


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["report", "run", "--csv", "nodir/x.csv"], "nodir/x.csv"),
        (["report", "run", "--json", "afile/x.json"], "afile/x.json"),
        (["report", "run", "--csv", "run"], "run"),
        (["run", "local", "plan.json", "--out", "afile"], "afile"),
        (["run", "local", "plan.json", "--out=afile/deep"], "afile/deep"),
        (["run", "simulate", "plan.json", "--out", "afile"], "afile"),
        (["plan", "new", "--to", "afile/x.json"], "afile/x.json"),
        (["jobs", "write", "--to", "afile"], "afile"),
        (["jobs", "make", "plan.json", "--to", "afile"], "afile"),
        (["demo", "--out", "afile"], "afile"),
        (["data", "synthetic", "--plan", "plan.json", "--sites", "2", "--records", "30", "--to", "afile"], "afile"),
    ],
)
def test_a_path_that_cannot_be_used_is_an_error_without_a_trace(tmp_path, words, typed):
    (tmp_path / "plan.json").write_text(schema.pretty(presets.shipped("heart_fedavg")), encoding="utf-8")
    (tmp_path / "afile").write_text("mine", encoding="utf-8")
    (tmp_path / "run").mkdir()  # without a record: what cannot be written is refused before anything is read
    done = fairflare(*words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    first, *rest = done.stderr.splitlines()
    assert first == "FF-RUN-FILE"
    assert [line.split(":")[0].strip() for line in rest] == ["got", "expected", "next step"]
    assert f"'{typed}'" in rest[0]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "afile").read_text(encoding="utf-8") == "mine"


def test_a_path_that_nobody_typed_is_not_repeated():
    problem = PermissionError(13, "Permission denied", "/srv/anna mueller.csv")
    assert file_error(problem, ["run", "local", "plan.json", "--out=", "-"]).got == "Permission denied"
    assert file_error(OSError("odd"), ["x"]).got == "OSError"
    assert file_error(problem, ["/srv/anna mueller.csv"]).got == "'/srv/anna mueller.csv': Permission denied"


def test_diff_is_silent_on_equal_plans_and_exits_1_on_others():
    same = fairflare("plan", "diff", "jobs/heart_fedavg", "jobs/heart_fedavg")
    assert (same.returncode, same.stdout) == (0, "")
    other = fairflare("plan", "diff", "jobs/heart_fedavg", "jobs/heart_flexfair")
    assert other.returncode == 1
    assert '+    "name": "flexfair",' in other.stdout


def test_a_changed_job_is_noticed(tmp_path):
    assert fairflare("jobs", "write", "--to", str(tmp_path)).returncode == 0
    assert fairflare("jobs", "check", str(tmp_path)).returncode == 0
    (tmp_path / "heart_fedavg" / "app" / "custom").mkdir()
    (tmp_path / "heart_fedavg" / "app" / "custom" / "x.py").touch()
    done = fairflare("jobs", "check", str(tmp_path))
    assert done.returncode == 1
    assert "heart_fedavg" in done.stdout


def test_the_demo_does_not_erase_a_folder_that_is_no_demo(tmp_path):
    (tmp_path / "thesis.txt").touch()
    assert fairflare("demo", "--out", str(tmp_path)).returncode != 0
    assert (tmp_path / "thesis.txt").exists()
