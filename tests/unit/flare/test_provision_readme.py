# SPDX-License-Identifier: Apache-2.0
"""What the pages for hospital IT say about the code is what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import fairflare
from fairflare import presets
from fairflare.engine.job_traffic import job_messages
from fairflare.engine.messages import layout_of
from fairflare.evaluation.units import size
from fairflare.flare.topics import markdown
from fairflare.models import build, parameter_count
from fairflare.policy import SitePolicy, open_policy, standard_policy, strict_policy

ROOT = Path(__file__).resolve().parents[3]
PROVISION = ROOT / "provision"
README = (PROVISION / "README.md").read_text(encoding="utf-8")
NETWORK = (PROVISION / "NETWORK.md").read_text(encoding="utf-8")
LIFE = (PROVISION / "LIFE.md").read_text(encoding="utf-8")
_CODE = re.compile(r"FF(?:-[A-Z]+)+")


def between(text: str, name: str) -> str:
    """What stands between a page's two marks."""
    found = re.search(rf"^<!-- {name}: begin\b.*-->\n(.*?)^<!-- {name}: end -->$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(name)
    return found[1]


def rows(table: str) -> list[list[str]]:
    """Cells of a table of Markdown, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]


POLICY = {cells[0].strip("`"): cells[2:] for cells in rows(between(README, "policy"))}


def test_the_list_of_messages_is_the_codes() -> None:
    page = (PROVISION / "TOPICS.md").read_text(encoding="utf-8")
    assert between(page, "topics") == markdown()


def test_every_field_of_a_policy_is_explained_in_order() -> None:
    fields = [name for name in SitePolicy.model_fields if name != "format"]
    assert list(POLICY) == fields


@pytest.mark.parametrize("field", POLICY)
def test_what_a_template_writes_is_what_the_page_says(field: str) -> None:
    templates = (open_policy(Path("/s")), standard_policy(Path("/s")), strict_policy(Path("/s")))
    for said, policy in zip(POLICY[field], templates, strict=True):
        value = json.loads(policy.model_dump_json())[field]
        if value is None or isinstance(value, int) or value == []:
            first = said.split(";")[0].strip("`")
            # What is empty until names are given on the command line has a word of its own.
            assert first == json.dumps(value) or said in ("named", "roster", "installed one"), (field, said, value)
        elif field == "protection":
            assert set(value.values()) == {said}
        elif field in ("identities", "approvals"):
            assert said.split(";")[0].strip("`") == value
        else:
            assert said in ("given", "all", "all but `step_risks`", "in 365 days"), (field, said)


def is_made(code: str, text: str) -> bool:
    """Whether a module makes this code; some write its last part only, and put the rest before it."""
    kind, _, last = code.removeprefix("FF-").partition("-")
    whole = re.search(rf'"{code}[": ]', text)
    part = re.search(rf'["}}]-?{last}"', text) and re.search(rf'FF-{kind}-|"{kind}"|\.prefix\b', text)
    return whole is not None or part is not None


def test_every_code_that_a_page_explains_exists() -> None:
    sources = [file.read_text(encoding="utf-8") for file in Path(fairflare.__file__).parent.rglob("*.py")]
    codes = set(_CODE.findall(README + NETWORK + LIFE))
    assert len(codes) > 40
    assert [code for code in sorted(codes) if not any(is_made(code, text) for text in sources)] == []


def test_every_code_by_which_a_process_does_not_start_is_explained() -> None:
    folder = Path(fairflare.__file__).parent / "flare"
    modules = "\n".join((folder / f"{one}.py").read_text("utf-8") for one in ("kit_state", "kit_manifest", "harden"))
    made = set(re.findall(r'_refused?\(\s*"([A-Z]+)"', modules))
    assert {"EXPIRED", "EARLY", "ROOT", "KEY", "FILE", "CHANGED", "OPEN", "HIDDEN", "SIGNED"} <= made
    assert all(f"FF-KIT-{one}" in README for one in made)


def test_the_network_teams_page_names_the_projects_port_and_server() -> None:
    project = yaml.safe_load((PROVISION / "project.yml").read_text(encoding="utf-8"))
    (server,) = [one for one in project["participants"] if one["type"] == "server"]
    assert server["fed_learn_port"] == server["admin_port"]
    ports = set(re.findall(r"(?<=[\[:])\d{4}(?=[\]` \\])|port (\d+)/TCP", NETWORK))
    assert ports <= {"", str(server["fed_learn_port"])}
    assert f"`[{server['fed_learn_port']}]` TCP" in NETWORK
    assert f"`[{server['default_host']}]`" in NETWORK


@pytest.mark.parametrize("name", ["heart_flexfair", "skin_flexfair"])
def test_the_bytes_of_a_job_are_what_a_rehearsal_computes(name: str) -> None:
    plan = presets.shipped(name)
    parameters = parameter_count(build(plan))
    messages = job_messages(layout_of(plan, parameters), 4)
    down, up = size(sum(one.down for one in messages)), size(sum(one.up for one in messages))
    page = " ".join(NETWORK.split())
    assert f"{down} down and {up} up" in page
    assert f"{plan.training.rounds} rounds, {parameters:,} parameters" in page


def test_the_manual_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 350
