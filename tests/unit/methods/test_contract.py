# SPDX-License-Identifier: Apache-2.0
"""The contract of a method, for every row of ``contract.ROWS``: what FedAvg promises, each method promises as well."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

import fairflare.methods
from fairflare import presets
from fairflare.engine.masked import params_of
from fairflare.engine.messages import layout_of
from fairflare.errors import PlanError
from fairflare.methods import METHODS, UPDATE, MethodParameters
from fairflare.models import build, parameter_count
from fairflare.plan import parse_plan
from fairflare.schema import StrictModel
from tests.unit.engine.hospitals import four
from tests.unit.methods.contract import (
    PROTECTIONS,
    ROUNDS,
    ROWS,
    Limit,
    Loaders,
    Missing,
    Ran,
    Row,
    method_of,
    plan_of,
    run,
    server_life,
    site_life,
    site_terms,
    text_of,
)

FOLDER = Path(fairflare.methods.__file__).parent
TRAINING_ROWS = [row for row in ROWS if row.trains]
LIMITS = [row for row in ROWS if row.limit is not None]

every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
every_training_row = pytest.mark.parametrize("row", TRAINING_ROWS, ids=[row.name for row in TRAINING_ROWS])
every_limit = pytest.mark.parametrize("row", LIMITS, ids=[row.name for row in LIMITS])
both_protections = pytest.mark.parametrize("protection", PROTECTIONS)

Runs = Callable[..., Ran]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs a plan, each once unless it is asked for by another name."""
    done: dict[tuple[str, str, str], Ran] = {}

    def get(
        method: dict, protection: str, training: dict, *, rounds: int = ROUNDS, loaders: Callable[[], Loaders] = four,
        name: str = "first", turn: int = 1,
    ) -> Ran:  # fmt: skip
        the_plan = plan_of(method, protection, training, rounds)
        key = (the_plan.sha256, loaders.__name__, name)
        if key not in done:
            done[key] = run(the_plan, tmp_path_factory.mktemp("run"), loaders(), turn)
        return done[key]

    return get


# ------------------------------------------------------------------------------------------------------- what is there


def test_every_method_has_one_row_and_one_file() -> None:
    assert sorted(row.name for row in ROWS) == sorted(METHODS)
    assert len({method.__module__ for method in METHODS.values()}) == len(METHODS)
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}
    assert files == {method.__module__.rpartition(".")[2] for method in METHODS.values()}


def test_every_method_that_trains_has_a_limit_case() -> None:
    assert [row.name for row in ROWS if row.limit is None] == [row.name for row in ROWS if not row.trains]


@every_training_row
def test_it_names_its_paper_and_its_limit_case(row: Row) -> None:
    method = METHODS[row.name]
    about = sys.modules[method.__module__].__doc__ or ""
    assert re.search(r": [A-Z].*, .*\b(19|20)\d\d\b|[A-Z].* et al\., .*\b(19|20)\d\d\b", about, re.DOTALL), "no paper"
    own = " ".join(filter(None, (inspect.getdoc(one) for one in (method, method.of))))
    assert method.__doc__, "a class without a docstring"
    assert row.name == "fedavg" or re.search(r"\bis FedAvg\b", own.replace("\n", " ")), "no limit case"


def test_no_method_needs_torch() -> None:
    heavy = {"torch", "torchvision", "opacus", "nvflare", "fairflare.engine", "fairflare.models", "fairflare.plan"}
    for path in FOLDER.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert [name for name in names if {name, name.split(".")[0], ".".join(name.split(".")[:2])} & heavy] == []
    code = "import sys, fairflare.methods; print(*sorted({'torch', 'nvflare'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---------------------------------------------------------------------------------------------------------- parameters


@every_row
def test_its_parameters_are_frozen_and_written_out(row: Row) -> None:
    parameters = parse_plan(text_of(row)).method
    assert type(parameters) is METHODS[row.name].of
    assert isinstance(parameters, MethodParameters)
    assert isinstance(parameters, StrictModel)
    assert parameters.name == row.name
    for name in type(parameters).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(parameters, name, getattr(parameters, name))
        if name != "name":
            with pytest.raises(PlanError, match="FF-PLAN-MISSING-KEY"):
                parse_plan(text_of(row, **{name: Missing}))


@every_row
def test_it_refuses_unknown_parameters(row: Row) -> None:
    with pytest.raises(PlanError, match="FF-PLAN-UNKNOWN-KEY"):
        parse_plan(text_of(row, not_a_parameter=1.0))


# ---------------------------------------------------------------------------------------------------------------- runs


@both_protections
@every_row
def test_it_runs_and_its_record_verifies(runs: Runs, row: Row, protection: str) -> None:
    done = runs(row.method, protection, row.training)
    assert len(done.record.rounds) == (ROUNDS if row.trains else 0)
    assert done.record.plan.protection.masked == (protection == "masked")


@both_protections
@every_row
def test_the_same_plan_gives_the_same_result_twice(runs: Runs, row: Row, protection: str) -> None:
    first, second = (runs(row.method, protection, row.training, name=name) for name in ("first", "second"))
    assert first.outcome == second.outcome


@both_protections
@every_row
def test_the_order_of_arrival_changes_nothing(runs: Runs, row: Row, protection: str) -> None:
    one = runs(row.method, protection, row.training)
    other = runs(row.method, protection, row.training, name="other way round", turn=-1)
    assert [line.model_sha256 for line in one.record.rounds] == [line.model_sha256 for line in other.record.rounds]
    assert one.outcome == other.outcome


@both_protections
@every_limit
def test_its_limit_case_is_fedavg_bit_by_bit(runs: Runs, row: Row, protection: str) -> None:
    limit = row.limit or Limit({})
    same = {"rounds": limit.rounds, "loaders": limit.loaders}
    found = runs(limit.method, protection, limit.training, **same)
    assert found.outcome == runs(presets.FEDAVG, protection, limit.training, **same).outcome


@both_protections
@every_training_row
def test_away_from_its_limit_it_is_another_method(runs: Runs, row: Row, protection: str) -> None:
    """Otherwise the limit case would show nothing."""
    found = runs(row.method, protection, row.training).outcome
    plain = runs(presets.FEDAVG, protection, row.training).outcome
    assert (found == plain) == (row.name == "fedavg")


# ------------------------------------------------------------------------------------------------------- what it sends


@both_protections
@every_row
def test_nothing_leaves_a_site_but_what_it_declares(runs: Runs, row: Row, protection: str) -> None:
    done, plain = runs(row.method, protection, row.training), runs(presets.FEDAVG, protection, row.training)
    layout = layout_of(done.plan, parameter_count(build(done.plan)))
    inside = set(layout.parts)
    assert inside <= row.sends
    # With masks further parts of the update are inside the update's own words.
    expected = row.sends - inside if protection == "masked" else row.sends
    assert _labels(done) - _labels(plain) == expected
    for message, release in done.exchanges:
        specs = {label: spec for label, spec in layout.tasks[message.task].items() if label in release.payloads}
        assert set(release.payloads) == set(specs)
        for label, payload in release.payloads.items():
            if protection == "none":
                assert (payload.values.size, str(payload.values.dtype)) == (specs[label].length, specs[label].dtype)
            else:
                words = params_of(layout, "development").vector(label)
                assert (payload.values.size, payload.values.itemsize * 8) == (words.length, words.bits)
                assert payload.weight is None
    if row.trains:
        sizes = {len(release.payloads[UPDATE].values) for _, release in done.exchanges if UPDATE in release.payloads}
        further = sum(part.length for part in layout.parts.values())
        assert sizes == {layout.vectors[UPDATE].length + (further + 1 if protection == "masked" else 0)}


def _labels(done: Ran) -> set[str]:
    return {label for _, release in done.exchanges for label in release.payloads}


# ---------------------------------------------------------------------------------------------------------- two halves


@every_training_row
def test_a_half_belongs_to_one_site_and_one_session(row: Row) -> None:
    """What one site was told changes nothing of what another one says, nor of what it says in the next session."""
    method = method_of(row)
    alone = site_life(method, method_of(row).at_site(), 1)
    first, second = method.at_site(), method.at_site()
    site_life(method, first, 2)
    assert site_life(method, second, 1) == alone
    assert site_life(method, method.at_site(), 1) == alone


@every_training_row
def test_terms_of_records_do_not_depend_on_earlier_ones(row: Row) -> None:
    method = method_of(row)
    alone = site_terms(method_of(row), 1)
    assert site_terms(method, 2) != alone or not alone[0]
    assert site_terms(method, 1) == alone


@every_training_row
def test_a_servers_half_belongs_to_one_session(row: Row) -> None:
    method = method_of(row)
    alone = server_life(method, method_of(row).at_server(6), 1)
    first, second = method.at_server(6), method.at_server(6)
    server_life(method, first, 2)
    assert server_life(method, second, 1) == alone


@every_training_row
def test_what_it_says_has_the_form_that_it_declares(row: Row) -> None:
    method = method_of(row)
    parts = {UPDATE: 6, **{label: part.length for label, part in method.parts(6).items()}}
    for _, _, shift, made, weight in site_life(method, method.at_site(), 3):
        assert {label: len(values) for label, values in made.items()} == parts
        assert shift is None or len(shift) == 6
        assert (weight is not None) == (method.weighing == "own")
        assert weight is None or 0 <= weight <= 1
    for down, model in server_life(method, method.at_server(6), 3):
        assert {label: len(values) for label, values in down.items()} == dict(method.inputs(6))
        assert len(model) == 6
