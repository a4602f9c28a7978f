# SPDX-License-Identifier: Apache-2.0
"""Who must never be used: the opt-out file, and how its names are found in a manifest.

One id or patient in each line, UTF-8. A line that begins with ``#`` is a comment, an empty one is ignored; a ``#``
further on belongs to the name (``Bed #4``). Both sides are compared in Unicode's composed form (NFC), without the
spaces around them. A line that would miss somebody by its writing stops all work: nobody is used because of a comma.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from fairflare.data.table import count
from fairflare.errors import DataError

# Signs that belong to the writing of a table, not to a name. An apostrophe is one only around a name: O'Brien.
_SIGNS = frozenset('",;\t\u201c\u201d\u201e\u00ab\u00bb')
_AROUND = frozenset("'`\u2018\u2019\u201a")
# Letters and marks that are drawn as nothing; the other invisible ones have a category of their own.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_REMARK = re.compile(r"\s#.*")


def normal(text: str) -> str:
    """``text`` as it is compared: in the form NFC, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def is_plain_name(name: str) -> bool:
    """Whether an opt-out file can hold ``name``: no invisible character, no sign of a table, no ``#`` in front."""
    if _BLANK.search(name) or _SIGNS.intersection(name):
        return False
    if name[:1] == "#" or _AROUND.intersection((name[:1], name[-1:])):
        return False
    return not any(_is_invisible(sign) for sign in name)


def _is_invisible(sign: str) -> bool:
    category = unicodedata.category(sign)
    return category[0] == "C" or category in {"Zl", "Zp"} or (category == "Zs" and sign != " ")


def read_opt_outs(path: Path) -> frozenset[str]:
    """Names in the opt-out file at ``path``; raises :class:`DataError` ``FF-DATA-OPT-OUT`` if one is in doubt."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as problem:
        raise DataError(
            "FF-DATA-OPT-OUT",
            got=f"an opt-out file, named by the catalogue, that cannot be read ({type(problem).__name__})",
            expected="a UTF-8 text file with one id or patient in each line; it may be empty",
            next_step="restore the file before any work starts: without it, people who said no would be used",
        ) from None
    # Not splitlines(): it would also split a name at control characters.
    lines = [line for line in text.split("\n") if line.strip() and line.lstrip()[0] != "#"]
    names = [normal(line) for line in lines]
    if doubtful := sum("\t" in line or not is_plain_name(name) for line, name in zip(lines, names, strict=True)):
        raise DataError(
            "FF-DATA-OPT-OUT",
            got=f"an opt-out file with quotes, commas, semicolons, tabs or invisible characters in "
            f"{count(doubtful, 'line')}",
            expected="one id or patient in each line, exactly as the manifest has it, and nothing else",
            next_step="save it as plain text, one name in each line; comments go on lines of their own, after '#'",
        )
    return frozenset(names)


def verify_found(names: Collection[str], present: Collection[str]) -> None:
    """Refuse names that are in no row as written, but would be if written a little differently.

    Raises
    ------
    DataError
        ``FF-DATA-OPT-OUT`` for names that differ from a row's only by capitals, spaces, the width of letters or a
        remark after ``#``. Other names without a row are of people that this data set does not have.
    """
    alike = {loose(name) for name in present}
    unmatched = [name for name in names if name not in present]
    near = sum(not alike.isdisjoint((loose(name), loose(_REMARK.sub("", name)))) for name in unmatched)
    if near:
        raise DataError(
            "FF-DATA-OPT-OUT",
            got=f"{count(near, 'name')} in the opt-out file written otherwise than in the manifest (capitals, spaces, "
            "or a remark in the same line)",
            expected="ids and patients exactly as the manifest has them, comments on lines of their own",
            next_step="write these names as in the manifest: people who said no would be used",
        )


def loose(name: str) -> str:
    """``name`` without what people write differently: capitals, spaces, the width of letters."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
