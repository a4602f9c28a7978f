# SPDX-License-Identifier: Apache-2.0
"""``fairflare report --privacy``: epsilon of finished runs is what sites' ledgers hold, and the table has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fairflare.cli.report_privacy import cost_of
from fairflare.engine.local import run_local
from fairflare.errors import LedgerError, RunError
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.loss import DpSgd, Gaussian
from fairflare.record import write_record
from tests.unit.cli.test_report import invoke
from tests.unit.engine.test_private import FAIR, GROUPS, ledger_of, loaders
from tests.unit.engine.test_private import private_plan as engine_plan
from tests.unit.evaluation.private_runs import private_record


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A run with noise, and one without."""
    folders = []
    for place, sigma in enumerate((1.0, None)):
        folders.append(tmp_path / str(place))
        folders[-1].mkdir()
        write_record(folders[-1], private_record(sigma, 1, 0.9 + place / 2))
    return folders


def test_epsilon_of_a_run_is_that_of_a_sites_ledger(tmp_path: Path) -> None:
    record = run_local(engine_plan(FAIR, GROUPS, rounds=2, batches=4), loaders(), tmp_path)
    assert record.status == "complete", record.reason
    found = cost_of([record], 1e-5)
    assert found is not None
    for site in record.roster:
        ledger = ledger_of(tmp_path, site)
        assert found.add_remove == pytest.approx(ledger.epsilon(1e-5).value, rel=1e-9)
        assert found.replace == pytest.approx(ledger.epsilon(1e-5, "replace").value, rel=1e-9)


def test_sessions_and_rounds_that_were_begun_count() -> None:
    """Two sessions tell their numbers twice; a run that stopped after its first round cost no more than that."""
    record = private_record(1.0)
    counted = Gaussian(10.0, 1.0, 1)
    for sessions, begun, steps in ((1, 3, 40), (2, 3, 40), (1, 1, 20), (2, 0, 0)):
        update = {"sessions": record.sessions * sessions, "begun": begun}
        found = cost_of([record.model_copy(update=update)], 1e-5)
        wanted = [counted] * sessions + ([DpSgd(1 / 20, 1.0, steps)] if steps else [])
        assert found is not None
        assert found.add_remove == pytest.approx(epsilon(wanted, 1e-5).value, rel=1e-9)


def test_runs_together_cost_more_than_each() -> None:
    one, two = (cost_of([private_record(1.0, seed)] * seed, 1e-5) for seed in (1, 2))
    assert one is not None
    assert two is not None
    assert (one.add_remove or 0) < (two.add_remove or 0) < 2 * (one.add_remove or 0)


def test_the_table_is_shown_and_written(runs: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("t.csv", "t.json", "t.html")]
    result = invoke("--privacy", *runs, "--csv", files[0], "--json", files[1], "--html", files[2])
    assert result.exit_code == 0, result.output
    cost = cost_of([private_record(1.0)], 1e-5)
    assert cost is not None
    for value in (cost.add_remove, cost.replace):
        assert f"{value:.3f}" in result.output
    for words in ("no privacy: skin_fedavg", "Worst group by area", "male (n = 606)", "worse"):
        assert words in plain(result.output)
    assert all(file.stat().st_size > 1000 for file in files)
    assert max(map(len, result.output.splitlines())) <= 100


def test_delta_and_metric_are_the_askers(runs: list[Path]) -> None:
    result = invoke("--privacy", *runs, "--delta", "1e-8", "--metric", "balanced_accuracy")
    cost = cost_of([private_record(1.0)], 1e-8)
    assert cost is not None
    assert f"{cost.add_remove:.3f}" in result.output
    assert "Balanced accuracy difference" in plain(result.output)
    assert isinstance(invoke("--privacy", *runs, "--metric", "dice").exception, RunError)
    assert isinstance(invoke("--privacy", *runs, "--delta", "2").exception, LedgerError)


def test_curves_and_a_baseline_are_not_for_it(runs: list[Path], tmp_path: Path) -> None:
    for option in ("--png", "--baseline"):
        result = invoke("--privacy", *runs, option, tmp_path / "0")
        assert result.exit_code == 2
        assert "--privacy draws no curves" in plain(result.output)


def test_without_dp_accounting_the_table_is_refused_by_name(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairflare.privacy.accounting", None)
    monkeypatch.delattr("fairflare.privacy.accounting", raising=False)
    found = invoke("--privacy", *runs).exception
    assert isinstance(found, LedgerError)
    assert found.code == "FF-LEDGER-ACCOUNTING"
    assert invoke("--privacy", runs[1]).exit_code == 0  # nothing to count


def test_the_report_of_a_run_says_its_epsilon(runs: list[Path], tmp_path: Path) -> None:
    cost = cost_of([private_record(1.0)], 1e-5)
    assert cost is not None
    said = f"at delta 1e-05: {cost.add_remove:.3f} for one patient more or less, {cost.replace:.3f} for one patient in"
    page = tmp_path / "page.html"
    assert said in plain(invoke(runs[0], "--html", page).output)
    assert f"{cost.add_remove:.3f} for one patient more or less" in page.read_text(encoding="utf-8")
    both = plain(invoke(*runs).output)
    assert both.count("Epsilon of this run alone") == 1
    assert f"skin_fedavg: Epsilon of this run alone {said}" in both
    assert "Epsilon" not in invoke(runs[1]).output


def test_a_run_whose_batches_are_records_says_where_to_look(tmp_path: Path) -> None:
    write_record(tmp_path, private_record(1.0, training={"batch": {"unit": "records", "amount": 32}}))
    assert "'fairflare ledger show' says it there" in plain(invoke(tmp_path).output)


def test_without_dp_accounting_a_report_says_so_and_goes_on(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairflare.privacy.accounting", None)
    monkeypatch.delattr("fairflare.privacy.accounting", raising=False)
    result = invoke(runs[0])
    assert result.exit_code == 0
    assert "the package dp-accounting is not installed" in plain(result.output)
    assert "Results by group" in result.output


def test_nobody_else_waits_for_dp_accounting(runs: list[Path]) -> None:
    """Its import takes seconds; a report of runs without noise does without."""
    code = (
        "import sys, typer; from fairflare.cli.report import report; app = typer.Typer(); app.command()(report); "
        f"app([{str(runs[1])!r}], standalone_mode=False); sys.exit('dp_accounting' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
