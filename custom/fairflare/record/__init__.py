# SPDX-License-Identifier: Apache-2.0
"""The record of a run, ``record.json``: what happened, who took part, what came out; success is decided from it.

The server writes it anew after every round (atomically), so it is complete at any moment. It names sites, never
their single results: every number is a sum over sites or derived from one.
"""

from __future__ import annotations

from fairflare.record.feasibility import ANY, MISSING, OTHER, WITHHELD, Feasibility, Use, VocabularyCell
from fairflare.record.files import (
    FILE_NAME,
    MODEL_NAME,
    PROGRESS_NAME,
    find_record,
    read_record,
    session_number,
    write_atomically,
    write_record,
)
from fairflare.record.parts import (
    ABSENT,
    DEPLOY,
    Cell,
    Collapse,
    Final,
    GroupLine,
    LostRound,
    PenaltyRecord,
    Reason,
    Refusal,
    RoundRecord,
    Seconds,
    Session,
    Sha256,
)
from fairflare.record.run import (
    RunRecord,
    best_model,
    cells_from_sums,
    changed,
    group_lines,
    results_of,
    sums_from_cells,
    validation_value,
)
from fairflare.record.state import (
    SERVER_NAME,
    STATE_NAME,
    JobState,
    Refused,
    ServerState,
    counted,
    first_state,
    followed,
    write_state,
)

__all__ = [
    "ABSENT",
    "ANY",
    "DEPLOY",
    "FILE_NAME",
    "MISSING",
    "MODEL_NAME",
    "OTHER",
    "PROGRESS_NAME",
    "SERVER_NAME",
    "STATE_NAME",
    "WITHHELD",
    "Cell",
    "Collapse",
    "Feasibility",
    "Final",
    "GroupLine",
    "JobState",
    "LostRound",
    "PenaltyRecord",
    "Reason",
    "Refusal",
    "Refused",
    "RoundRecord",
    "RunRecord",
    "Seconds",
    "ServerState",
    "Session",
    "Sha256",
    "Use",
    "VocabularyCell",
    "best_model",
    "cells_from_sums",
    "changed",
    "counted",
    "find_record",
    "first_state",
    "followed",
    "group_lines",
    "read_record",
    "results_of",
    "session_number",
    "sums_from_cells",
    "validation_value",
    "write_atomically",
    "write_record",
    "write_state",
]
