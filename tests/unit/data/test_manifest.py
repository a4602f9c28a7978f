# SPDX-License-Identifier: Apache-2.0
"""The manifest: what is read, what is refused, and that a refusal tells no secret."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fairflare.data.manifest import SiteData, load
from fairflare.data.table import number, numbers, read_table, write_table
from fairflare.errors import DataError
from fairflare.policy import Entry
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
    write_manifest,
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


def verify_tells_no_secret(problem: DataError, folder: Path) -> None:
    assert problem.got
    assert problem.expected
    assert problem.next_step
    assert [secret for secret in SECRETS if secret in str(problem)] == []
    assert str(folder) not in str(problem)


# ------------------------------------------------------------------------------------------------------ what is read


def test_a_table_becomes_scaled_values_and_then_indicators(folder: Path) -> None:
    rows = good_rows()
    rows[1]["pressure"] = ""
    data = load(TABLE, write_entry(folder, rows, root=False))
    assert [len(part) for part in (data.training, data.validation, data.test)] == [4, 2, 2]
    assert data.training.inputs.dtype == np.float32
    assert data.training.inputs[0].tolist() == pytest.approx([(60 - 100) / 20, (120.5 - 100) / 20, 1, 1])
    assert data.training.inputs[1].tolist() == pytest.approx([(61 - 100) / 20, 0, 1, 0])
    assert data.training.labels.dtype == np.int64
    assert data.training.labels.tolist() == [0, 1, 0, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert data.opted_out == 0


def test_groups_are_places_in_the_vocabulary(folder: Path) -> None:
    rows = good_rows()
    rows[0]["sex"] = ""
    for row, age in zip(rows, ("39.99", "40", "64.9", "65", "", "-3", "1e2", "40"), strict=True):
        row["age"] = age
    data = load(TABLE, write_entry(folder, rows))
    assert data.training.groups["sex"].tolist() == [-1, 0, 0, 1]
    # [.., 40), [40, 65), [65, ..): an edge belongs to the value above it
    assert data.training.groups["age"].tolist() == [0, 1, 1, 2]
    assert data.validation.groups["age"].tolist() == [-1, 0]
    assert data.test.groups["age"].tolist() == [2, 1]
    assert data.training.groups["age"].dtype == np.int64


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_loaded_in_the_order_of_the_manifest(folder: Path, channels: int) -> None:
    plan = make_plan(image_input(channels))
    data = load(plan, write_entry(folder, image_rows(folder)))
    assert data.training.inputs.shape == (4, channels, 16, 24)
    assert data.training.inputs.dtype == np.uint8
    if channels == 3:
        assert data.training.inputs[:, :, 5, 7].tolist() == [[at, 2 * at, 255 - at] for at in range(4)]
        assert data.test.inputs[:, 0].max(axis=(1, 2)).tolist() == [6, 7]


def test_a_split_may_be_empty_but_for_training(folder: Path) -> None:
    rows = good_rows()
    for row in rows:
        row["split"] = "training"
    data = load(TABLE, write_entry(folder, rows))
    assert data.test.inputs.shape == (0, 4)
    assert len(data.validation) == 0
    images = load(IMAGES, write_entry(folder, [{**row, "split": "training"} for row in image_rows(folder)]))
    assert images.test.inputs.shape == (0, 3, 16, 24)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_exports_of_spreadsheet_programs_are_read(folder: Path, encoding: str, newline: str) -> None:
    path = write_manifest(folder, good_rows())
    text = path.read_text(encoding="utf-8")
    path.write_bytes((text.replace("\r\n", "\n").replace("\n", newline) + newline + ",,,,,,,,,").encode(encoding))
    data = load(TABLE, Entry(manifest=str(path), root=None, opt_out=None))
    assert len(data.training) == 4


@pytest.mark.parametrize("word", ["None", "NA", "nan", "null"])
def test_words_that_others_take_for_missing_are_words(folder: Path, word: str) -> None:
    plan = make_plan(table_input())
    attribute = plan.attributes[0].model_copy(update={"values": ("female", word)})
    plan = plan.model_copy(update={"attributes": (attribute, plan.attributes[1])})
    rows = [{**row, "sex": attribute.values[1]} for row in good_rows()]
    assert load(plan, write_entry(folder, rows)).training.groups["sex"].tolist() == [1, 1, 1, 1]


def test_other_columns_may_hold_anything(folder: Path) -> None:
    rows = [{**row, "remark": 'a "quoted", cell\nof two lines'} for row in good_rows()]
    assert len(load(TABLE, write_entry(folder, rows)).training) == 4


def test_loading_twice_gives_the_same(folder: Path) -> None:
    entry = write_entry(folder, image_rows(folder))
    first, second = load(IMAGES, entry), load(IMAGES, entry)
    assert np.array_equal(first.training.inputs, second.training.inputs)


def test_nothing_loaded_shows_its_content(folder: Path) -> None:
    data = load(TABLE, write_entry(folder, good_rows()))
    assert "array" not in repr(data)
    assert "SECRET" not in repr(data) + repr(data.training)


# --------------------------------------------------------------------------------------------------- what is refused

Rows = list[Row]


def put(at: int, column: str, cell: str) -> Callable[[Rows], Rows]:
    def changed(rows: Rows) -> Rows:
        rows[at][column] = cell
        return rows

    return changed


def rename(old: str, new: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{new if name == old else name: cell for name, cell in row.items()} for row in rows]


# name of the defect -> what breaks the eight good rows, code, what the message has to say
BROKEN_ROWS: dict[str, tuple[Callable[[Rows], Rows], str, str]] = {
    "patient_column_renamed": (rename("patient", "patient_no"), "COLUMN", "to 'patient' is 'patient_no'"),
    "feature_column_missing": (rename("heart_rate", "x"), "COLUMN", "heart_rate"),
    "attribute_column_missing": (rename("sex", "x"), "COLUMN", "sex"),
    "no_training_record": (lambda rows: rows[4:], "NO-TRAINING", "no training record"),
    "id_twice": (put(1, "id", f"{SECRET_ID}-0"), "DUPLICATE-ID", "1 row "),
    "id_eight_times": (lambda rows: [{**row, "id": SECRET_ID} for row in rows], "DUPLICATE-ID", "7 rows "),
    "id_empty": (put(3, "id", " "), "NO-ID", "1 row "),
    "patient_empty": (put(3, "patient", ""), "NO-ID", "'patient'"),
    "patient_in_two_splits": (put(7, "patient", f"{SECRET_PATIENT}-1"), "PATIENT-SPLIT", "1 patient "),
    "label_unknown": (put(0, "label", "SECRET"), "LABEL", "absent or present"),
    "label_in_capitals": (put(0, "label", "Present"), "LABEL", "1 row "),
    "label_empty": (put(0, "label", ""), "LABEL", "1 row "),
    "split_unknown": (put(2, "split", "SECRET"), "SPLIT", "training, validation, test"),
    "split_of_another_convention": (put(2, "split", "train"), "SPLIT", "1 row "),
    "attribute_word_unknown": (put(5, "sex", "SECRET"), "ATTRIBUTE", "attribute 'sex'"),
    "attribute_word_looks_missing": (put(5, "sex", "NA"), "ATTRIBUTE", "1 row "),
    "attribute_number_is_text": (put(5, "age", "SECRET"), "ATTRIBUTE", "attribute 'age'"),
    "attribute_number_is_infinite": (put(5, "age", "inf"), "ATTRIBUTE", "1 row "),
    "feature_is_text": (put(5, "pressure", "SECRET"), "FEATURE", "feature 'pressure'"),
    "feature_with_trailing_text": (put(5, "pressure", "1e5abc"), "FEATURE", "1 row "),
    "feature_with_decimal_comma": (put(5, "pressure", "1,5"), "FEATURE", "1 row "),
    "feature_is_nan": (put(5, "pressure", "nan"), "FEATURE", "1 row "),
    "feature_is_infinite": (put(5, "pressure", "-Infinity"), "FEATURE", "1 row "),
    "feature_overflows": (put(5, "pressure", "1e999"), "FEATURE", "1 row "),
    "feature_overflows_when_scaled": (put(5, "pressure", "1e300"), "FEATURE", "1 row "),
    "feature_with_underscores": (put(5, "pressure", "1_000"), "FEATURE", "1 row "),
    "feature_in_hexadecimal": (put(5, "pressure", "0x10"), "FEATURE", "1 row "),
    "feature_in_other_digits": (put(5, "pressure", "\u0661\u0662"), "FEATURE", "1 row "),
}  # fmt: skip


@pytest.mark.parametrize("defect", BROKEN_ROWS)
def test_broken_rows_are_refused(folder: Path, defect: str) -> None:
    mutate, code, says = BROKEN_ROWS[defect]
    entry = write_entry(folder, mutate(good_rows()))
    with pytest.raises(DataError) as caught:
        load(TABLE, entry)
    assert caught.value.code == f"FF-DATA-{code}"
    assert says in str(caught.value)
    verify_tells_no_secret(caught.value, folder)


def header_first(text: str) -> bytes:
    return text.splitlines()[0].encode()


BROKEN_BYTES: dict[str, tuple[Callable[[str], bytes], str]] = {
    "empty_file": (lambda text: b"", "EMPTY"),
    "blank_lines_only": (lambda text: b"\n\n  \n", "EMPTY"),
    "header_only": (header_first, "EMPTY"),
    "no_header": (lambda text: text.split("\n", 1)[1].encode(), "HEADER"),
    "semicolons": (lambda text: text.replace(",", ";").encode(), "HEADER"),
    "column_twice": (lambda text: text.replace("remark", "id", 1).encode(), "HEADER"),
    "row_too_short": (lambda text: text.encode() + SECRET_ID.encode() + b",x\n", "ROW"),
    "row_too_long": (lambda text: text.rstrip().encode() + b",SECRET\n", "ROW"),
    "quotes_not_closed": (lambda text: text.encode() + b'"SECRET\n', "ROW"),
    "latin_1": (lambda text: text.replace("female", "f\u00e9male").encode("latin-1"), "FILE"),
    "utf_16": (lambda text: text.encode("utf-16"), "FILE"),
    "zeros": (lambda text: text.encode() + b"\0\0\0\n", "ROW"),
}


@pytest.mark.parametrize("defect", BROKEN_BYTES)
def test_broken_files_are_refused(folder: Path, defect: str) -> None:
    mutate, code = BROKEN_BYTES[defect]
    entry = write_entry(folder, good_rows())
    path = Path(entry.manifest)
    path.write_bytes(mutate(path.read_text(encoding="utf-8")))
    with pytest.raises(DataError) as caught:
        load(TABLE, entry)
    assert caught.value.code == f"FF-DATA-{code}"
    verify_tells_no_secret(caught.value, folder)


def test_semicolons_are_named_as_the_reason(folder: Path) -> None:
    entry = write_entry(folder, good_rows())
    path = Path(entry.manifest)
    path.write_text(path.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
    with pytest.raises(DataError, match="separated by ';'"):
        load(TABLE, entry)


def test_a_manifest_that_is_not_there(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(TABLE, Entry(manifest=str(folder / "none.csv"), root=None, opt_out=None))
    assert caught.value.code == "FF-DATA-FILE"
    verify_tells_no_secret(caught.value, folder)


# ------------------------------------------------------------------------------------------------------------- files


def outside_link(folder: Path, rows: Rows) -> None:
    Image.new("RGB", (4, 4)).save(folder.parent / "other.png")
    (folder / "link.png").symlink_to(folder.parent / "other.png")
    rows[0]["file"] = "link.png"


def outside_folder_link(folder: Path, rows: Rows) -> None:
    outside_link(folder, rows)
    (folder / "folder").symlink_to(folder.parent)
    rows[0]["file"] = "folder/other.png"


def outside_parent(folder: Path, rows: Rows) -> None:
    rows[0]["file"] = f"../{SECRET_FOLDER}/{rows[0]['file']}"


def outside_absolute(folder: Path, rows: Rows) -> None:
    rows[0]["file"] = str(folder / rows[0]["file"])


def outside_windows(folder: Path, rows: Rows) -> None:
    rows[0]["file"] = "C:\\SECRET\\a.png"


def outside_windows_parent(folder: Path, rows: Rows) -> None:
    rows[0]["file"] = "..\\SECRET.png"


def missing(folder: Path, rows: Rows) -> None:
    (folder / rows[0]["file"]).unlink()
    (folder / rows[7]["file"]).unlink()


def missing_is_a_folder(folder: Path, rows: Rows) -> None:
    (folder / "SECRET.png").mkdir()
    rows[0]["file"] = "SECRET.png"


def missing_cell(folder: Path, rows: Rows) -> None:
    rows[0]["file"] = ""


def truncated(folder: Path, rows: Rows) -> None:
    path = folder / rows[0]["file"]
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def text_file(folder: Path, rows: Rows) -> None:
    (folder / rows[0]["file"]).write_text("SECRET")


def sixteen_bits(folder: Path, rows: Rows) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(folder / rows[0]["file"])


def postscript(folder: Path, rows: Rows) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.eps")
    rows[0]["file"] = "a.eps"


BROKEN_FILES: dict[str, tuple[Callable[[Path, Rows], None], str, str]] = {
    "link_to_the_outside": (outside_link, "FILE-OUTSIDE", "1 row "),
    "folder_link_to_the_outside": (outside_folder_link, "FILE-OUTSIDE", "1 row "),
    "parent_folder": (outside_parent, "FILE-OUTSIDE", "1 row "),
    "absolute_path": (outside_absolute, "FILE-OUTSIDE", "1 row "),
    "windows_path": (outside_windows, "FILE-OUTSIDE", "1 row "),
    "windows_parent_folder": (outside_windows_parent, "FILE-OUTSIDE", "1 row "),
    "files_missing": (missing, "FILE-MISSING", "2 rows "),
    "file_is_a_folder": (missing_is_a_folder, "FILE-MISSING", "1 row "),
    "file_cell_empty": (missing_cell, "FILE-MISSING", "1 row "),
    "image_cut_off": (truncated, "IMAGE", "1 file "),
    "no_image": (text_file, "IMAGE", "1 file "),
    "sixteen_bits_per_channel": (sixteen_bits, "IMAGE", "8 bits"),
    "postscript": (postscript, "IMAGE", "1 file "),
}


@pytest.mark.parametrize("defect", BROKEN_FILES)
def test_broken_image_files_are_refused(folder: Path, defect: str) -> None:
    spoil, code, says = BROKEN_FILES[defect]
    rows = image_rows(folder)
    spoil(folder, rows)
    entry = write_entry(folder, rows)
    with pytest.raises(DataError) as caught:
        load(IMAGES, entry)
    assert caught.value.code == f"FF-DATA-{code}"
    assert says in str(caught.value)
    verify_tells_no_secret(caught.value, folder)


def test_a_link_inside_the_root_is_followed(folder: Path) -> None:
    rows = image_rows(folder)
    (folder / "link.png").symlink_to(folder / rows[0]["file"])
    rows[0]["file"] = "link.png"
    assert len(load(IMAGES, write_entry(folder, rows)).training) == 4


def test_images_need_a_root_folder(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(IMAGES, write_entry(folder, image_rows(folder), root=False))
    assert caught.value.code == "FF-DATA-ROOT"


# ----------------------------------------------------------------------------------------------------------- opt-out


def test_opted_out_records_are_left_out_at_every_load(folder: Path) -> None:
    entry = write_entry(folder, good_rows(), opt_out="")
    assert load(TABLE, entry).opted_out == 0
    names = f'\ufeff# those who said no\r\n\r\n  {SECRET_ID}-3  \r\n  # O"K, \r\n{SECRET_PATIENT}-1\r\nnobody\r\n'
    (folder / "opt_out.txt").write_text(names, encoding="utf-8", newline="")
    data = load(TABLE, entry)
    assert data.opted_out == 3  # one record by its id, the patient's two records by the patient
    assert len(data.training) == 1


def test_who_opted_out_is_not_even_looked_at(folder: Path) -> None:
    rows = image_rows(folder)
    rows[0]["label"] = "nonsense"
    (folder / rows[0]["file"]).unlink()
    data = load(IMAGES, write_entry(folder, rows, opt_out=f"{SECRET_ID}-0"))
    assert data.opted_out == 1
    assert data.training.inputs[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_everybody_in_training_opted_out(folder: Path) -> None:
    names = "\n".join(f"{SECRET_ID}-{at}" for at in range(4))
    with pytest.raises(DataError, match="after 4 records opted out") as caught:
        load(TABLE, write_entry(folder, good_rows(), opt_out=names))
    assert caught.value.code == "FF-DATA-NO-TRAINING"
    verify_tells_no_secret(caught.value, folder)


@pytest.mark.parametrize("broken", ["missing", "a folder", "not text"])
def test_an_opt_out_file_that_cannot_be_read_is_never_ignored(folder: Path, broken: str) -> None:
    entry = write_entry(folder, good_rows(), opt_out="")
    path = folder / "opt_out.txt"
    path.unlink()
    if broken == "a folder":
        path.mkdir()
    elif broken == "not text":
        path.write_bytes(b"\xff\xfeS\x00")
    with pytest.raises(DataError) as caught:
        load(TABLE, entry)
    assert caught.value.code == "FF-DATA-OPT-OUT"
    verify_tells_no_secret(caught.value, folder)


def renamed(change: dict[int, str], column: str = "patient") -> Rows:
    return [{**row, column: change.get(at, row[column])} for at, row in enumerate(good_rows())]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Bed #4", "Bed #4"),
        ("Bed #4", "  Bed #4 \r"),
        ("M\u00fcller 7", "Mu\u0308ller 7"),
        ("Mu\u0308ller 7", "M\u00fcller 7"),
        ("\u00a0P-7\u2003", "P-7"),
        ("P-7", "\u00a0P-7 \u2003"),
        ("O'Brien", "O'Brien"),
        ("P/7:a_b (2)", "P/7:a_b (2)"),
    ],
)
@pytest.mark.parametrize("column", ["id", "patient"])
def test_names_are_found_however_unicode_writes_them(folder: Path, name: str, line: str, column: str) -> None:
    rows = renamed({2: "Bed", 3: name}, column)
    data = load(TABLE, write_entry(folder, rows, opt_out=f"{line}\n"))
    assert data.opted_out == 1
    assert data.training.inputs[:, 0].tolist() == pytest.approx([(60 + at - 100) / 20 for at in range(3)])


DOUBTFUL_LINES = {
    "quoted": '"{}"',
    "in apostrophes": "'{}'",
    "in typographic quotes": "\u201e{}\u201c",
    "with a comma": "{},yes",
    "with a semicolon": "{};",
    "with a tab": "{}\tyes",
    "with a tab at the end": "{}\t",
    "with a zero-width space": "{}\u200b",
    "with a soft hyphen": "PATIENT\u00ad{}",
    "with a byte-order mark": "\ufeff\ufeff{}",
    "with a direction mark": "\u200e{}",
    "with a no-break space inside": "a\u00a0{}",
    "with a line separator": "{}\u2028other",
    "with a control character": "{}\x1cother",
    "with a variation selector": "{}\ufe0f",
    "with a Hangul filler": "{}\u3164",
    "in other capitals": "{}",
    "with another space": "{} 2",
    "in full width": "{}\uff12",
    "with a remark": "{} 2 # moved away",
}


@pytest.mark.parametrize("how", DOUBTFUL_LINES)
def test_a_line_that_could_miss_somebody_stops_all_work(folder: Path, how: str) -> None:
    name = "patient-secret" if how == "in other capitals" else "PATIENT-SECRET"
    rows = renamed({3: "PATIENT-SECRET" if how == "in other capitals" else "PATIENT-SECRET2"})
    text = f"# who said no\nsomebody else\n{DOUBTFUL_LINES[how].format(name)}\n"
    with pytest.raises(DataError) as caught:
        load(TABLE, write_entry(folder, rows, opt_out=text))
    assert caught.value.code == "FF-DATA-OPT-OUT"
    assert "1 line" in caught.value.got or "1 name " in caught.value.got
    verify_tells_no_secret(caught.value, folder)


@pytest.mark.parametrize("column", ["id", "patient"])
@pytest.mark.parametrize(
    "name", ["#7", "P\u200b7", "P-7\u200d", "a\u00a0b", "Secret, Anna", "a;b", '"a"', "'a'", "a\tb", "a\nb", "a\x07"]
)
@pytest.mark.parametrize("opt_out", [None, "nobody\n"])
def test_who_could_not_be_named_in_an_opt_out_file_is_refused(
    folder: Path, column: str, name: str, opt_out: str | None
) -> None:
    with pytest.raises(DataError) as caught:
        load(TABLE, write_entry(folder, renamed({3: name}, column), opt_out=opt_out))
    assert caught.value.code == "FF-DATA-ID-TEXT"
    assert f"1 row with an '{column}'" in caught.value.got
    verify_tells_no_secret(caught.value, folder)


def test_one_name_in_two_forms_of_unicode_is_one_name(folder: Path) -> None:
    rows = renamed({2: "M\u00fcller", 3: "Mu\u0308ller"}, "id")
    with pytest.raises(DataError, match="DUPLICATE-ID"):
        load(TABLE, write_entry(folder, rows))
    rows = renamed({3: "M\u00fcller", 4: "Mu\u0308ller"})
    with pytest.raises(DataError, match="PATIENT-SPLIT"):
        load(TABLE, write_entry(folder, rows))


def total(data: SiteData) -> int:
    return len(data.training) + len(data.validation) + len(data.test)


@settings(deadline=None)  # files are written and read, on a machine that may be busy
@given(names=st.sets(st.integers(1, 7)))
def test_opting_out_removes_exactly_those(names: set[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        rows = good_rows()
        entry = write_entry(Path(place), rows, opt_out="\n".join(f"{SECRET_ID}-{name}" for name in names))
        data = load(TABLE, entry)  # record 0 is a training record that always stays
    assert data.opted_out == len(names)
    assert total(data) == len(rows) - len(names)


# -------------------------------------------------------------------------------------------------------- properties


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_exactly(value: float) -> None:
    assert number(repr(value)) == value


@given(st.text(max_size=8) | st.from_regex(r"[+-]?[0-9.]{0,5}[eE]?[+-]?[0-9]{0,3}", fullmatch=True))
def test_a_number_is_finite_or_refused(text: str) -> None:
    value = number(text)
    assert value is None or (math.isfinite(value) and value == float(text))
    values, wrong = numbers([text])
    assert bool(wrong[0]) == (value is None and text != "")
    assert bool(np.isnan(values[0])) == (value is None)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12).map(
    lambda text: text.strip() or "x"
)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_what_is_written_is_read_back(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "table.csv"
        write_table(path, ("a", "b"), [dict(zip(("a", "b"), row, strict=True)) for row in rows])
        table = read_table(path, ("b", "a"), "table")
    assert list(zip(table.columns["a"], table.columns["b"], strict=True)) == rows


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_rows_is_kept(order: list[int]) -> None:
    rows = good_rows()
    with tempfile.TemporaryDirectory() as place:
        data = load(TABLE, write_entry(Path(place), [rows[at] for at in order]))
    assert data.training.inputs[:, 0].tolist() == pytest.approx([(60 + at - 100) / 20 for at in order if at < 4])
