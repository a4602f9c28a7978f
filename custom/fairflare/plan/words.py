# SPDX-License-Identifier: Apache-2.0
"""Names, words and numbers that every part of a plan is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fairflare.schema import rule

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+<>=-]{0,63}$")]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def refuse_repeats(what: str, names: list[str]) -> None:
    """Refuse the first of ``names`` that is there more than once."""
    for name in names:
        if names.count(name) > 1:
            raise rule(f"got the {what} '{name}' more than once, expected each once")
