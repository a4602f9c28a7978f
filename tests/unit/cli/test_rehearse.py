# SPDX-License-Identifier: Apache-2.0
"""``fairflare rehearse``: one page at the hospital, private, with the verdict first; and an exit status to rely on."""

from __future__ import annotations

import html as html_words
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fairflare import presets, schema
from fairflare.cli.rehearse import MODULES
from fairflare.engine import rehearsal, rehearsal_process
from fairflare.engine.messages import layout_of
from fairflare.engine.rehearsal_process import answered
from fairflare.evaluation import rehearsal_words
from fairflare.evaluation.rehearsal import Found, Rehearsal, Work
from fairflare.evaluation.rehearsal_page import FORMAT, to_html, to_json, to_terminal
from fairflare.evaluation.rehearsal_words import CAUTION, MEANINGS, TASKS, verdict
from fairflare.evaluation.render import to_text
from fairflare.evaluation.units import duration, size
from fairflare.models import build, parameter_count
from fairflare.plan import Plan, parse_plan
from fairflare.policy import open_policy, standard_policy, write_policy
from fairflare.policy.approvals import sign_approval
from fairflare.privacy.reveals import STARTED, UPLOADED, RevealMemory, Transition
from tests.unit.cli.own import NAME, code, heart, hospitals, invoke, mode, shapes
from tests.unit.policy.support import make_kit

COUNTS = {"name": "feasibility", "claims": [], "alpha": 0.05, "power": 0.8}
ROOT = Path(__file__).resolve().parents[3]
SITES = ("amber", "beryl", "coral")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The work in this process (another one takes seconds to start), and what was asked for."""
    asked: list[Any] = []

    def run(request: Any, modules: Sequence[str], watch: Any) -> Work | Found:
        asked.append((request, tuple(modules)))
        out = StringIO()
        answered(rehearsal_process._encoded(request, ()), out)
        said = json.loads(out.getvalue().splitlines()[-1])
        return TypeAdapter(Work).validate_python(said["work"]) if "work" in said else Found(**said["error"])

    monkeypatch.setattr(rehearsal, "run_apart", run)
    return asked


def masked(of: Plan, **changes: Any) -> Plan:
    data = json.loads(schema.pretty(of))
    data["federation"]["min_sites"], data["protection"] = 3, presets.MASKED
    return parse_plan(json.dumps({**data, **changes}))


def with_counts(of: Plan) -> Plan:
    return parse_plan(json.dumps({**json.loads(schema.pretty(of)), "method": COUNTS, "consents": []}))


class Place:
    """A plan, its hospitals (whose files and patients bear :data:`NAME`) and room for pages."""

    def __init__(self, folder: Path, of: Plan) -> None:
        self.folder, self.of = folder, of
        hospitals(folder, of, sites=SITES)
        self.plan = folder / "plan.json"
        self.plan.write_text(schema.pretty(of), encoding="utf-8")
        self.html, self.json = folder / "page.html", folder / "page.json"

    def policy(self, approved: bool = True, **changes: Any) -> Path:
        local = self.folder / "local"
        local.mkdir(exist_ok=True)
        least = {"cells_minimum": 0, "cells_sites": 1, "plans": (self.of.sha256,) if approved else ()}
        write_policy(local, standard_policy(self.folder / "store").model_copy(update={**least, **changes}))
        return local

    def rehearse(self, *words: object) -> Any:
        return invoke(
            "rehearse", self.plan, "--catalog", self.folder / NAME, "--site", "amber", "--html", self.html,
            "--json", self.json, *words,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return json.loads(self.json.read_text(encoding="utf-8"))


PLANS = {
    "table": masked(heart()),
    "images with masks": masked(shapes()),
    "counts": masked(with_counts(heart())),
    "in clear": heart(),
    "counts in clear": with_counts(heart()),
}


def said(place: Place, output: str) -> list[str]:
    page = place.html.read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return [" ".join(text.split()) for text in (output, html_words.unescape(re.sub(r"<[^>]+>", " ", body)))]


@pytest.mark.parametrize("quick", [(), ("--quick",)], ids=["whole", "quick"])
@pytest.mark.parametrize("kind", PLANS)
def test_the_page_of_every_kind_of_plan(kind: str, quick: tuple[str, ...], tmp_path: Path, requests: list[Any]) -> None:
    place = Place(tmp_path, PLANS[kind])
    done = place.rehearse(*quick)
    assert done.exit_code == 0, done.output
    for text in said(place, done.output):
        for words in ("This plan would run here", "Do not send it on", "does NOT leave", "Memory and disk", "deadline"):
            assert words in text
        assert ("IN CLEAR" in text) == ("clear" in kind)
        assert NAME not in text.replace(str(tmp_path), "")
    facts = place.facts()
    assert (facts["format"], facts["runs"], facts["codes"]) == (FORMAT, True, [])
    assert {one["task"] for one in facts["leaving"]} <= {one["task"] for one in facts["messages"]}
    assert facts["bytes_up"] == sum(one["up"] for one in facts["messages"]) > 0
    assert (mode(place.html), mode(place.json)) == (0o600, 0o600)
    assert requests[0][1] == MODULES


def test_the_work_is_done_in_a_process_with_a_jobs_modules(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    done = place.rehearse("--quick")
    assert done.exit_code == 0, done.output
    assert place.facts()["work"]["peak_bytes"] > 100_000_000


# ------------------------------------------------------------------------------------------------------------- verdict


@pytest.mark.usefixtures("requests")
def test_a_plan_within_the_policy_and_approved_would_run(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    done = place.rehearse("--policy", place.policy())
    assert done.exit_code == 0, done.output
    assert "This plan would run here." in done.output
    assert "has approved the plan" in done.output
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("requests")
def test_a_plan_that_only_lacks_its_approval(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    done = place.rehearse("--policy", place.policy(approved=False))
    assert done.exit_code == 1
    for words in ("would run here once this site approves it", "FF-POLICY-REFUSED", "fairflare policy approve"):
        assert words in " ".join(done.output.split())
    assert "would NOT run" not in done.output
    assert place.facts()["codes"] == ["FF-POLICY-REFUSED"]


@pytest.mark.usefixtures("requests")
def test_a_signed_approval_in_the_kit_counts(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    least = {"cells_minimum": 0, "cells_sites": 1, "approvals": "signed", "plans": ()}
    kit = make_kit(tmp_path / "kit", policy=standard_policy(tmp_path / "store").model_copy(update=least))
    assert place.rehearse("--quick", "--policy", kit / "local").exit_code == 1
    sign_approval(kit, place.of, by="Dr Example")
    assert place.rehearse("--quick", "--policy", kit / "local").exit_code == 0
    assert place.rehearse("--quick", "--policy", kit / "local" / "site_policy.json").exit_code == 0
    assert place.facts()["policy"]["approval"] == "given"


@pytest.mark.usefixtures("requests")
def test_a_store_in_the_kit_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    least = {"cells_minimum": 0, "cells_sites": 1, "plans": (place.of.sha256,)}
    kit = make_kit(tmp_path / "kit", policy=standard_policy(tmp_path / "kit" / "s").model_copy(update=least))
    assert place.rehearse("--quick", "--policy", kit / "local").exit_code == 1
    assert place.facts()["codes"] == ["FF-POLICY-STORE"]


@pytest.mark.usefixtures("requests")
def test_a_policy_that_knows_too_few_sites_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    assert place.rehearse("--quick", "--policy", place.policy(peers={"beryl": "ab" * 32})).exit_code == 1
    assert place.facts()["codes"] == ["FF-SECAGG-PIN"]
    peers = {"beryl": "ab" * 32, "coral": "cd" * 32}
    assert place.rehearse("--quick", "--policy", place.policy(peers=peers)).exit_code == 0


@pytest.mark.usefixtures("requests")
def test_a_plan_that_was_answered_before_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    least = {"cells_minimum": 0, "cells_sites": 1, "plans": (place.of.sha256,)}
    policy = standard_policy(tmp_path / "store").model_copy(update=least)
    kit = make_kit(tmp_path / "kit", policy=policy)
    file = policy.memory_file(None, place.of.task.data_set, kit)
    with RevealMemory(file) as memory:
        memory.begin(b"t" * 32, place.of.sha256, b"r" * 32)
        started = Transition(STARTED, b"t" * 32, 0, place.of.sha256, 0, "counts", "closed", b"c" * 32, b"d" * 32, 0)
        memory.commit([started])
        assert place.rehearse("--quick", "--policy", kit / "local").exit_code == 0  # nothing has left
        memory.commit([replace(started, state=UPLOADED)])
        before = {path: path.read_bytes() for path in file.parent.iterdir()}
        assert place.rehearse("--quick", "--policy", kit / "local").exit_code == 1  # also beside a job that runs
    assert place.facts()["codes"] == ["FF-SECAGG-REUSED"]
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before
    file.write_text("no memory", encoding="utf-8")
    assert place.rehearse("--quick", "--policy", kit / "local").exit_code == 1
    assert place.facts()["codes"] == ["FF-SECAGG-MEMORY"]


@pytest.mark.usefixtures("requests")
def test_a_plan_outside_the_policy_lists_every_reason(tmp_path: Path) -> None:
    place = Place(tmp_path, heart())
    local = place.policy()
    done = place.rehearse("--policy", local / "site_policy.json")
    assert done.exit_code == 1
    found = place.facts()
    assert "This plan would NOT run here: FF-POLICY-REFUSED" in done.output
    for text in said(place, done.output):
        for reason in found["policy"]["violations"]:
            assert reason["text"].split(":")[0] in text
    assert "protection.update: got 'none', expected 'masked'" in [one["text"] for one in found["policy"]["violations"]]


@pytest.mark.usefixtures("requests")
def test_data_that_stop_the_job(tmp_path: Path) -> None:
    place = Place(tmp_path, masked(heart()))
    manifest = tmp_path / NAME / "amber" / "manifest.csv"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("training", "elsewhere"), encoding="utf-8")
    done = place.rehearse("--policy", place.policy())
    assert done.exit_code == 1
    assert "would NOT run here: FF-DATA-" in done.output
    assert place.facts()["work"] is None
    assert "No round could be tried, because of the data" in said(place, done.output)[1]


@pytest.mark.usefixtures("requests")
def test_work_that_fails(tmp_path: Path) -> None:
    place = Place(tmp_path, heart(batch={"unit": "batches_per_epoch", "amount": 5000}))
    done = place.rehearse()
    assert (done.exit_code, place.facts()["codes"]) == (1, ["FF-DATA-FEW"])
    assert "No round could be tried: FF-DATA-FEW" in done.output


@pytest.mark.usefixtures("requests")
def test_an_open_policy_lets_any_plan_run(tmp_path: Path) -> None:
    place = Place(tmp_path, heart())
    write_policy(tmp_path, open_policy(tmp_path / "store"))
    done = place.rehearse("--policy", tmp_path)
    assert done.exit_code == 0
    assert "nobody has to approve one" in " ".join(done.output.split())


# ------------------------------------------------------------------------------------------------------------- options


def test_as_many_sites_as_the_policy_knows(tmp_path: Path, requests: list[Any]) -> None:
    place = Place(tmp_path, masked(heart()))
    peers = dict.fromkeys(("beryl", "coral", "dune", "east"), "0" * 64)
    place.rehearse("--policy", place.policy(peers=peers))  # and amber itself
    place.rehearse("--policy", place.policy(peers={"beryl": "0" * 64}))
    place.rehearse()
    place.rehearse("--sites", 7)
    assert [request.sites for request, _ in requests] == [5, 3, 3, 7]


def test_too_few_sites_for_masks_are_an_error(tmp_path: Path) -> None:
    done = Place(tmp_path, masked(heart())).rehearse("--sites", 2)
    assert (done.exit_code, code(done)) == (1, "FF-SECAGG-SITES")


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_page_that_cannot_be_written_is_an_error_before_any_work(
    option: str, tmp_path: Path, requests: list[Any]
) -> None:
    done = Place(tmp_path, heart()).rehearse(option, tmp_path / "none" / "page")
    assert isinstance(done.exception, OSError)
    assert requests == []


def test_a_catalogue_of_several_sites_needs_a_name(tmp_path: Path) -> None:
    place = Place(tmp_path, heart())
    done = invoke("rehearse", place.plan, "--catalog", tmp_path / NAME)
    assert (done.exit_code, code(done)) == (1, "FF-CAT-SITE")


@pytest.mark.usefixtures("requests")
def test_an_older_page_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    place = Place(tmp_path, heart())
    place.html.write_text("old", encoding="utf-8")
    place.html.chmod(0o644)
    place.rehearse("--quick")
    assert mode(place.html) == 0o600


# ------------------------------------------------------------------------------------------------------------ the page


@pytest.fixture
def found(tmp_path: Path, requests: list[Any]) -> Rehearsal:
    """All facts of one rehearsal."""
    place = Place(tmp_path, masked(heart(), cells={"minimum": 4, "sites": 2}))
    assert place.rehearse("--policy", place.policy(cells_minimum=6)).exit_code == 1
    facts = place.facts()
    fields = {name: facts[name] for name in Rehearsal.__dataclass_fields__}
    return TypeAdapter(Rehearsal).validate_python(fields)


def test_json_has_every_fact(found: Rehearsal) -> None:
    facts = json.loads(to_json(found))
    for name, value in json.loads(json.dumps(asdict(found))).items():
        assert facts[name] == value
    assert facts["caution"] == CAUTION
    assert found.work is not None
    assert facts["seconds"] == pytest.approx(found.work.seconds(found.plan.rounds))
    assert [one["code"] for one in facts["refusals"]] == ["FF-POLICY-REFUSED"]


def test_json_is_stable(found: Rehearsal) -> None:
    """Names that programs rely on."""
    assert list(json.loads(to_json(found))) == [
        "format", "caution", "runs", "codes", "refusals", "warnings", "seconds", "bytes_up", "bytes_down", "plan",
        "site", "sites", "quick", "software", "policy", "data", "failure", "work", "leaving", "messages", "told",
    ]  # fmt: skip


def test_every_fact_is_on_both_pages(found: Rehearsal) -> None:
    work = found.work
    assert work is not None
    assert {one.by for one in work.held} == {"plan", "policy"}
    page = html_words.unescape(to_html(found))
    text = " ".join(to_text(to_terminal(found), 400).split())
    wanted = [found.plan.sha256, found.site, size(work.peak_bytes), size(work.disk_bytes)]
    wanted += [duration(one.seconds) for one in work.times] + [one.text for one in found.refusals]
    wanted += [sentence for part in asdict(found.told).values() for sentence in part]
    wanted += [size(one.bytes) for one in found.leaving] + [size(one.up) for one in found.messages]
    wanted += [MEANINGS[one.label] for one in found.leaving] + [TASKS[one.task] for one in found.messages]
    wanted += [f"{one.numbers:,}" for one in found.leaving] + list(found.plan.summary)
    for one in wanted:
        assert one in page
        assert " ".join(one.split()) in text


def test_the_page_needs_nothing_else_and_forbids_the_rest(found: Rehearsal) -> None:
    page = to_html(found)
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<img|src=|href=|url\(", page)
    assert page.index("would NOT run") < page.index("What was found")


def test_names_from_elsewhere_cannot_become_markup_or_turn_text_around(found: Rehearsal) -> None:
    evil = replace(found, plan=replace(found.plan, name="<b>[red]x\u202e", summary=("<script>",)))
    page, text = to_html(evil), to_text(to_terminal(evil))
    assert "<b>" not in page
    assert "<script>" not in page
    assert "\u202e" not in page + text
    assert "<b>[red]x" in text


def test_groups_of_which_zeros_are_sent_are_listed_with_why(found: Rehearsal) -> None:
    text = " ".join(to_text(to_terminal(found), 400).split())
    assert found.work is not None
    for words in ("fewer than 4 records", "only by this site's policy", "more would have to be held back"):
        assert words in text
    assert "a group is opened only if 2 sites have enough of it" in text
    none = replace(found, work=replace(found.work, held=()))
    assert "No group is held back: none has 1 to 3 records here" in to_text(to_terminal(none), 400)
    open_ = replace(none, plan=replace(none.plan, minimum=0))
    assert "however small it is: the plan's cells.minimum is 0" in to_text(to_terminal(open_), 400)


def test_a_task_that_takes_too_long_is_told(found: Rehearsal) -> None:
    late = replace(found, policy=None, plan=replace(found.plan, deadline=1e-9))
    assert verdict(late) == "This plan would NOT run here: FF-ROUND-TIMEOUT."
    assert "Too slow for the plan's deadline: join, measure" in to_text(to_terminal(late), 400)


def test_without_a_policy_the_next_step_is_to_give_one(found: Rehearsal) -> None:
    text = to_text(to_terminal(replace(found, policy=None)), 400)
    assert "as far as can be said without a policy" in text
    assert "rehearse it again with --policy" in text


def test_every_vector_and_task_of_every_plan_has_words() -> None:
    plans = [*(presets.shipped(job.name) for job in (ROOT / "jobs").iterdir()), *PLANS.values()]
    labels, tasks = set(), set()
    for of in plans:
        layout = layout_of(of, parameter_count(build(of)))
        labels |= set(layout.vectors)
        tasks |= set(layout.tasks)
    assert labels <= set(MEANINGS)
    assert tasks - {"keys", "share"} <= set(TASKS)  # these two come only where somebody was missing
    assert "batch_sums" in MEANINGS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0001, "under 1 ms"),
        (0.0123, "0.012 s"),
        (12.34, "12.3 s"),
        (245, "4 min 5 s"),
        (600, "10 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(512, "512 B"), (1_234_567, "1,234.6 kB"), (98_760_000, "98.76 MB")])
def test_bytes_in_words(count: int, words: str) -> None:
    assert size(count) == words


def test_quick_says_so(found: Rehearsal) -> None:
    text = to_text(to_terminal(replace(found, quick=True)), 400)
    assert rehearsal_words.QUICK in text
    assert rehearsal_words.QUICK not in to_text(to_terminal(found), 400)
