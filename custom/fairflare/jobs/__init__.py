# SPDX-License-Identifier: Apache-2.0
"""Job folders: how a plan becomes one (``files``), and what a folder must be to count as one (``check``)."""

from __future__ import annotations

from fairflare.jobs.files import (
    AGGREGATOR,
    CLIENT_CONFIG,
    CONTROLLER,
    EXECUTOR,
    SERVER_CONFIG,
    SIGNATURES,
    TASKS,
    job_files,
    write_job,
)

__all__ = [
    "AGGREGATOR",
    "CLIENT_CONFIG",
    "CONTROLLER",
    "EXECUTOR",
    "SERVER_CONFIG",
    "SIGNATURES",
    "TASKS",
    "job_files",
    "write_job",
]
