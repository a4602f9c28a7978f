# SPDX-License-Identifier: Apache-2.0
"""``check`` finds everything at once, and agrees with what ``load`` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fairflare.data.check import Finding, check
from fairflare.data.manifest import load
from tests.unit.data.plans import (
    SECRET_FOLDER,
    SECRET_ID,
    SECRET_PATIENT,
    SECRETS,
    Row,
    good_rows,
    image_input,
    make_plan,
    table_input,
    write_entry,
)

TABLE = make_plan(table_input())
IMAGES = make_plan(image_input())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / SECRET_FOLDER
    home.mkdir()
    return home


def image_rows(folder: Path) -> list[Row]:
    rows = good_rows()
    for at, row in enumerate(rows):
        Image.new("RGB", (40, 30), (at, 2 * at, 255 - at)).save(folder / row["file"])
    return rows


def by_code(findings: list[Finding], severity: str) -> dict[str, str]:
    return {one.code: one.text for one in findings if one.severity == severity}


def verify_tells_no_secret(findings: list[Finding]) -> None:
    text = " ".join(f"{one.text} {one.next_step}" for one in findings)
    assert [secret for secret in SECRETS if secret in text] == []
    assert all(one.next_step for one in findings)


def test_good_data_have_no_errors(folder: Path) -> None:
    entry = write_entry(folder, image_rows(folder))
    for plan in (TABLE, IMAGES):
        findings = check(plan, entry)
        assert by_code(findings, "error") == {}
        assert by_code(findings, "info")["FF-DATA-SIZE"] == "8 records: 4 training, 2 validation, 2 test"
        verify_tells_no_secret(findings)
        load(plan, entry)


def test_all_defects_are_found_at_once(folder: Path) -> None:
    rows = image_rows(folder)
    rows[0]["label"] = rows[1]["label"] = "SECRET"
    rows[2]["sex"] = "SECRET"
    rows[3]["split"] = "SECRET"
    rows[4]["id"] = rows[5]["id"]
    rows[6]["patient"] = f"{SECRET_PATIENT}-2"
    rows[5]["file"] = "/SECRET.png"
    (folder / rows[6]["file"]).unlink()
    (folder / rows[7]["file"]).write_bytes(b"SECRET")
    findings = check(IMAGES, write_entry(folder, rows))
    errors = by_code(findings, "error")
    assert list(errors) == [
        "FF-DATA-DUPLICATE-ID", "FF-DATA-SPLIT", "FF-DATA-PATIENT-SPLIT", "FF-DATA-LABEL", "FF-DATA-ATTRIBUTE",
        "FF-DATA-FILE-OUTSIDE", "FF-DATA-FILE-MISSING", "FF-DATA-IMAGE",
    ]  # fmt: skip
    assert errors["FF-DATA-LABEL"].startswith("2 rows")
    assert [one.severity for one in findings] == sorted(
        (one.severity for one in findings), key="error warning info".find
    )
    verify_tells_no_secret(findings)


def test_a_manifest_without_a_table_is_one_error(folder: Path) -> None:
    entry = write_entry(folder, good_rows())
    Path(entry.manifest).write_text("", encoding="utf-8")
    assert [(one.severity, one.code) for one in check(TABLE, entry)] == [("error", "FF-DATA-EMPTY")]


def test_copies_of_an_image_across_splits_are_an_error(folder: Path) -> None:
    rows = image_rows(folder)
    (folder / rows[7]["file"]).write_bytes((folder / rows[0]["file"]).read_bytes())
    (folder / rows[3]["file"]).write_bytes((folder / rows[2]["file"]).read_bytes())
    findings = check(IMAGES, write_entry(folder, rows))
    assert by_code(findings, "error")["FF-DATA-COPY-ACROSS"].startswith("2 records")
    assert by_code(findings, "warning")["FF-DATA-COPY-WITHIN"].startswith("2 records")


def test_copies_of_a_row_need_the_same_features_and_the_same_label(folder: Path) -> None:
    rows = good_rows()
    for name in ("heart_rate", "pressure"):
        rows[2][name] = rows[0][name]  # both absent, both training
        rows[1][name] = rows[0][name]  # another label: no copy
        rows[5][name] = rows[3][name]  # both present, training and validation
    rows[3]["pressure"] = rows[5]["pressure"] = ""  # missing is equal to missing
    findings = check(TABLE, write_entry(folder, rows))
    assert by_code(findings, "error")["FF-DATA-COPY-ACROSS"].startswith("2 records")
    assert by_code(findings, "warning")["FF-DATA-COPY-WITHIN"].startswith("2 records")


def test_small_cells_are_counted_per_split(folder: Path) -> None:
    warnings = [one.text for one in check(TABLE, write_entry(folder, good_rows())) if one.code == "FF-DATA-SMALL-CELL"]
    assert "training, 'sex': cells under 2 records: female/present 1, male/absent 0, male/present 1" in warnings
    assert len(warnings) == 6  # two attributes, three splits
    relaxed = make_plan(table_input(), cells={"minimum": 0, "sites": 1})
    assert "FF-DATA-SMALL-CELL" not in {one.code for one in check(relaxed, write_entry(folder, good_rows()))}


def test_a_group_that_the_site_does_not_have_is_said_once(folder: Path) -> None:
    rows = [{**row, "sex": "female"} for row in good_rows()]
    findings = check(TABLE, write_entry(folder, rows))
    assert by_code(findings, "info")["FF-DATA-ABSENT-GROUP"] == "attribute 'sex': no record with male"
    assert not any("male/" in one.text.replace("female/", "") for one in findings)


def test_empty_splits_and_missing_values_are_told(folder: Path) -> None:
    rows = good_rows()[:6]
    for row in rows:
        row["pressure"] = ""
    rows[0]["sex"] = rows[1]["sex"] = rows[0]["heart_rate"] = ""
    findings = check(TABLE, write_entry(folder, rows))
    warnings = by_code(findings, "warning")
    assert warnings["FF-DATA-EMPTY-SPLIT"] == "no test record"
    assert warnings["FF-DATA-MISSING"] == "feature 'pressure' is missing in every record"
    infos = [one.text for one in findings if one.code == "FF-DATA-MISSING" and one.severity == "info"]
    assert infos == [
        "attribute 'sex' is missing in 33.3% of the records",
        "attribute 'age' is missing in 0.0% of the records",
        "feature 'heart_rate' is missing in 16.7% of the records",
    ]


def test_the_opt_out_is_counted(folder: Path) -> None:
    entry = write_entry(folder, good_rows(), opt_out=f"{SECRET_ID}-0\n{SECRET_PATIENT}-7\nPATIENT-SECRET-77\n")
    findings = check(TABLE, entry)
    infos = by_code(findings, "info")
    assert infos["FF-DATA-OPT-OUT"] == "2 records left out by 3 names of the opt-out file"
    assert infos["FF-DATA-OPT-OUT-UNMATCHED"].startswith("1 name ")
    verify_tells_no_secret(findings)


def test_everybody_opted_out(folder: Path) -> None:
    names = "\n".join(row["id"] for row in good_rows())
    for plan in (TABLE, IMAGES):
        errors = by_code(check(plan, write_entry(folder, image_rows(folder), opt_out=names)), "error")
        assert list(errors) == ["FF-DATA-NO-TRAINING"]


def test_progress_reaches_the_end(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(IMAGES, write_entry(folder, image_rows(folder)), lambda done, total: seen.append((done, total)))
    assert seen == [(8, 8)]
