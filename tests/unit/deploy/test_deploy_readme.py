# SPDX-License-Identifier: Apache-2.0
"""The page on containers and installation says what the code, the files beside it and the tests say."""

from __future__ import annotations

import re
from pathlib import Path

import fairflare
from fairflare.policy import package
from provision.deploy.chart import CONFIG
from tests.unit.deploy.test_prepare import CHANGES

DEPLOY = CONFIG.parent
ROOT = DEPLOY.parents[1]
PAGE = (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_tests_found() -> None:
    (table,) = re.findall(r"^<!-- prepare: begin .*?-->\n(.*?)^<!-- prepare: end -->", PAGE, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    found = {runtime.strip(): tuple(set(re.findall(r"`(.+?)`", cell)) for cell in cells) for runtime, *cells in rows}
    assert found == {runtime: (gone, added) for runtime, (gone, added) in CHANGES.items()}


def test_every_file_that_is_named_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert {"Dockerfile", "compose.yaml", "k8s.yaml", "slurm.yaml", "site.slurm", "../NETWORK.md"} <= set(links)
    named = [DEPLOY / link for link in links] + [ROOT / one for one in re.findall(r"provision/deploy/[\w.]*\w\b", PAGE)]
    missing = [one for one in named if not one.exists() and not one.with_suffix(".py").exists()]
    assert missing == []
    modules = re.findall(r"-m (provision\.deploy\.\w+)", PAGE)
    assert modules
    assert all((ROOT / f"{one.replace('.', '/')}.py").is_file() for one in modules)


def test_every_code_exists() -> None:
    sources = "".join(one.read_text(encoding="utf-8") for one in Path(fairflare.__file__).parent.rglob("*.py"))
    codes = set(re.findall(r"FF-[A-Z]+-[A-Z]+", PAGE))
    assert codes
    assert [code for code in codes if f'"{code}"' not in sources and f'"{code.rsplit("-", 1)[1]}"' not in sources] == []


def test_the_command_from_outside_is_the_modules() -> None:
    (command,) = [line.strip() for line in (package.__doc__ or "").splitlines() if line.strip().startswith("find ")]
    assert command in PAGE


def test_the_image_and_the_chart_agree_with_one_another() -> None:
    recipe, config = (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), CONFIG.read_text(encoding="utf-8")
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert "USER 10001:10001" in recipe
    assert "runAsUser: 10001" in config
    assert 'user: "10001:10001"' in compose
    for text in (recipe, compose, config):
        assert "/opt/fairflare/kit" in text
    assert "--require-hashes" in recipe
    assert "docker.sock" not in compose
