# SPDX-License-Identifier: Apache-2.0
"""Every kind of message that FLARE 2.9.0 can handle in, or send from, a site's processes, with our verdict on each.

A site has a parent process, which stays, and one job process per job. A message names a channel and a topic; whoever
holds the server can send any of them straight to either process. Data only: :mod:`fairflare.flare.shutters` keeps it,
tests compare it with FLARE's code, and :func:`markdown` prints it. What is not listed is closed. A topic ``*`` stands
for a channel's other topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Process = Literal["parent", "job"]
Direction = Literal["in", "out"]
Verdict = Literal["closed", "harmless", "needed", "checked"]
Peer = Literal["server", "site", "any"]

_PROCESSES: tuple[Process, ...] = ("parent", "job")
_DIRECTIONS: tuple[Direction, ...] = ("in", "out")

#: Frames of a stream; each names the channel and topic of what it carries.
STREAM = ("sm__STREAM", "sm__DATA")
#: Channel on which the answer to a streamed request comes; its topic is the request's, ``channel:topic``.
RETURN = "return_only"
#: Channel of administration; the server names this envelope as the topic, and the one that counts stands inside.
ADMIN = "admin"
ENVELOPE = "admin"


@dataclass(frozen=True)
class Topic:
    """One kind of message.

    Parameters
    ----------
    channel, topic
        FLARE's names.
    process
        Which of a site's processes takes part.
    direction
        ``in``: a request that reaches the process; ``out``: one that it sends.
    verdict
        ``closed`` is answered by a code; ``harmless`` may pass and is not needed; ``needed`` is what every run uses;
        ``checked`` passes if what it holds passes.
    reason
        What it gives to the caller, or why it is needed.
    peer
        Who must be on the other end: the server, another process of the same site, or either.
    """

    channel: str
    topic: str
    process: Literal["parent", "job", "both"]
    direction: Direction
    verdict: Verdict
    reason: str
    peer: Peer = "server"


def _closed(
    channel: str, process: Literal["parent", "job", "both"], direction: Direction, reasons: Mapping[str, str]
) -> tuple[Topic, ...]:
    return tuple(Topic(channel, topic, process, direction, "closed", reason) for topic, reason in reasons.items())


_ADMIN_OPEN = (
    Topic(
        ADMIN, ENVELOPE, "parent", "in", "checked",
        "Envelope of every request of administration; judged by the topic inside, which must be one of those below.",
    ),
    Topic(
        ADMIN, "train.check_status", "parent", "in", "harmless",
        "Tells the site's name and id, app name and state of its running jobs, which the server gave to it.",
    ),
    Topic(ADMIN, "sys.report_version", "parent", "in", "harmless", "Tells FLARE's version, as registration does."),
    Topic(
        ADMIN, "scheduler.check_resource", "parent", "in", "checked",
        "The server asks before each job; only an empty demand is answered, with yes or no and a random token.",
    ),
    Topic(
        ADMIN, "scheduler.cancel_resource", "parent", "in", "checked",
        "The server gives back what it had reserved, when a job cannot start after all.",
    ),
    Topic(
        ADMIN, "train.deploy", "parent", "in", "checked",
        "Brings a job; looked at before FLARE writes it to disk, then by FLARE and by the plan's validator.",
    ),
    Topic(ADMIN, "train.start_job", "parent", "in", "checked", "Starts a job that this process has accepted."),
    Topic(ADMIN, "train.abort", "parent", "in", "checked", "Ends a job's process; the server may stop a run."),
    Topic(
        ADMIN, "train.notify_job_status", "parent", "in", "checked",
        "The site's own job process says that it started or stopped.", "site",
    ),
)  # fmt: skip

_ADMIN_CLOSED = {
    "sys.shell": "Runs cat, ls, grep, head, tail with any path and returns the output: every file of the hospital.",
    "sys.info": "Returns memory and graphics cards of the machine.",
    "sys.report_env": "Returns the path of the workspace and the address of the server.",
    "sys.configure_site_log": "Changes what the site writes to its own log: a caller could silence the evidence.",
    "resource_manager.report_resources": "Returns the site's free resources; FairFlare's jobs ask for none.",
    "train.configure_job_log": "Changes what a job writes to the site's log: a caller could silence the evidence.",
    "train.delete_run": "Deletes a folder whose name the caller gives, `..` included, and returns its full path.",
    "train.abort_task": "Breaks off one task of a run; a run is ended whole, by train.abort.",
    "train.shutdown": "Ends the hospital's process for good; a hospital stops its own process.",
    "train.restart": "Restarts the hospital's process; a hospital restarts its own process.",
    "train.get_scopes": "Returns the names of the site's privacy scopes.",
    "train.start": "A name without a handler in FLARE 2.9.0.",
    "train.set_job_id": "A name without a handler in FLARE 2.9.0.",
    "scheduler.allocate_resource": "A name without a handler in FLARE 2.9.0.",
    "control.do_command": "A name without a handler in FLARE 2.9.0.",
    "info.show_stats": "Returns whatever a job's components collected about the run.",
    "info.show_errors": "Returns texts of errors, which may hold paths and values.",
    "info.reset_errors": "Wipes the collected errors of a job.",
    "comp_caller.call": "Calls a method of any component of a job; FLARE 2.9.0 does not install its handler.",
}

#: Answers come on these: a stream's frames, their receipts, and the answer to a streamed request.
_TRANSPORT = tuple(
    Topic(channel, topic, "both", direction, "checked" if checked else "needed", reason, "any")
    for direction in _DIRECTIONS
    for channel, topic, checked, reason in (
        (*STREAM, True, "One frame of a longer message; judged by the channel and topic that it carries."),
        ("sm__STREAM", "sm__ACK", False, "Receipt for frames: counts of bytes only."),
        ("sm__STREAM", "sm__ERROR", False, "Says that a stream is broken; the text leaves as a code."),
        (RETURN, "*", True, "Answer to a streamed request; only to a request that was open and is waited for."),
    )
)  # fmt: skip
_GOODBYE = (
    Topic("cellnet.channel", "bye", "both", "out", "needed", "Says goodbye when a process ends; holds nothing.", "any"),
    Topic(
        "cellnet.channel", "bye", "both", "in", "needed",
        "The site's other process says goodbye; from the server it would cut the site off, and is closed.", "site",
    ),
)  # fmt: skip

_AUX_IN = {
    "__do_task__": "Runs a task and returns its result past the site's filters for results.",
    "__sync_runner__": "For sites that serve other sites; FairFlare's sites do not.",
    "__job_heartbeat__": "For sites that serve other sites; FairFlare's sites do not.",
    "__task_check__": "For sites that serve other sites; FairFlare's sites do not.",
    "RM.RELIABLE_REQUEST": "Runs any handler that a job's component has put up.",
    "RM.RELIABLE_REPLY": "Answers requests that FairFlare never sends.",
}
_AUX_BOTH = {
    "fed.event": "Fires any event of FLARE in the other process, with data of the sender's choice.",
    "ObjectStreamer.Request": "Carries files, logs and other objects piece by piece.",
    "ObjectStreamer.Abort": "Ends a stream of objects; there is none.",
}
_AUX = (
    Topic("aux_communication", "__end_run__", "job", "in", "needed", "The server says that the run is over."),
    *_closed("aux_communication", "job", "in", _AUX_IN),
    *_closed("aux_communication", "both", "in", _AUX_BOTH),
    Topic("aux_communication", "__sync_runner__", "job", "out", "needed", "Asks whether the server's run has begun."),
    Topic("aux_communication", "__job_heartbeat__", "job", "out", "needed", "Says that the job's process is alive."),
    Topic("aux_communication", "__task_check__", "job", "out", "needed", "Asks whether a result is still waited for."),
    *_closed(
        "aux_communication", "job", "out",
        {
            "RM.RELIABLE_REQUEST": "Sends data of a component to the server outside of the release gate.",
            "RM.RELIABLE_REPLY": "Sends data of a component to the server outside of the release gate.",
        },
    ),
    *_closed("aux_communication", "both", "out", _AUX_BOTH),
)  # fmt: skip

_COMMANDS = {
    "abort_task": "Breaks off one task; a run is ended whole.",
    "check_status": "Returns a word about the job; the parent process knows it without asking.",
    "shutdown": "Does nothing in FLARE 2.9.0.",
    "show_stats": "Returns whatever the job's components collected about the run.",
    "show_errors": "Returns texts of errors, which may hold paths and values.",
    "reset_errors": "Wipes the collected errors.",
    "configure_job_log": "Changes what the job writes to the site's log.",
}
_JOB = (
    Topic("client_command", "abort", "job", "in", "needed", "The parent process ends the run.", "site"),
    *_closed("client_command", "job", "in", _COMMANDS),
    Topic("client_command", "abort", "parent", "out", "needed", "Ends the run of the site's own job process.", "site"),
    *_closed(
        "client_command", "parent", "out",
        {name: why for name, why in _COMMANDS.items() if name not in ("check_status", "shutdown")},
    ),
    Topic(ADMIN, "train.notify_job_status", "job", "out", "needed", "Says that the job started or stopped.", "site"),
    Topic("server_command", "get_task", "job", "out", "needed", "Asks the server for the next task."),
    Topic("server_command", "submit_update", "job", "out", "needed", "A sealed result: the one way out for data."),
    *_closed(
        "server_command", "both", "in",
        {
            "get_task": "Returns the task that the site is working on; for sites that serve other sites.",
            "submit_update": "Takes results of other sites; FairFlare's sites serve none.",
        },
    ),
    Topic(
        "download_service__", "download_service__download", "job", "in", "needed",
        "The server fetches a long vector of a result that was released; references are random and end with it.",
    ),
    Topic(
        "download_service__", "download_service__download", "job", "out", "needed",
        "Fetches a long vector of a task from the server.",
    ),
    *_closed(
        "download_service__", "parent", "in",
        {"download_service__download": "The parent process releases nothing."},
    ),
    *(
        topic for direction in _DIRECTIONS for topic in _closed(
            "download_service__", "both", direction,
            {"download_service__source_failure": "For sites that hand on vectors of others; FairFlare's do not."},
        )
    ),
)  # fmt: skip

_PARENT_OUT = (
    Topic("task", "challenge", "parent", "out", "needed", "Asks the server to prove who it is."),
    Topic(
        "task", "register", "parent", "out", "needed",
        "Logs in with the certificate; the site's configuration and inner address are taken off.",
    ),
    Topic("task", "heart_beat", "parent", "out", "needed", "Says that the site is alive, with the ids of its jobs."),
    Topic(
        "task", "quit", "parent", "out", "harmless",
        "Logs out; FLARE sends it only when it is told from outside to shut down, which is closed.",
    ),
    Topic(
        "task", "report_job_failure", "parent", "out", "needed",
        "Tells how a job's process ended: one of FLARE's fixed words.",
    ),
)  # fmt: skip

_NETWORK = {
    "peers": "Lists the processes that a process is connected to.",
    "cells": "Lists all processes of the network.",
    "route": "Returns the way of a message.",
    "start_route": "Makes a process send messages to others and return their way.",
    "stop": "Ends the process and those below it.",
    "stop_cell": "Ends the process.",
    "url_use": "Tells which addresses are in use.",
    "conns": "Returns all connections with their addresses.",
    "speed": "Makes a process send data of any size to another.",
    "echo": "Returns what was sent.",
    "stress": "Makes a process send many messages to others.",
    "change_root": "Makes the site connect to another server.",
    "bulk_test": "Makes a process send many messages.",
    "bulk_item": "Counts test messages.",
    "msg_stats": "Returns counts and times of all messages.",
    "list_pools": "Lists statistics of the process.",
    "show_pool": "Returns statistics of the process.",
    "comm_config": "Returns the process's configuration of connections, with paths of keys.",
    "config_vars": "Returns all variables of the site's configuration.",
    "process_info": "Returns process id, memory and the names of threads.",
    "heartbeat": "For watched parts of a network; FairFlare has none.",
}

_PLUMBING = (
    *(
        topic
        for direction in _DIRECTIONS
        for topic in (
            *_closed("_net_manager", "both", direction, _NETWORK),
            *_closed(
                "cellnet.channel", "both", direction,
                {"bulk": "A bag of other messages, which are run without a look at each."},
            ),
            *_closed(
                "credential_manager", "both", direction,
                {"key_exchange": "Trades certificates for FLARE's own encryption, which FairFlare does not use."},
            ),
        )
    ),
)  # fmt: skip

_CHANNELS = {
    "client_sub_worker_command": "Commands to processes below a job's process; FairFlare starts none.",
    "multi_process_executor": "Answers of processes below a job's process; FairFlare starts none.",
    "simulator_runner": "FLARE's simulator.",
    "server_parent_listener": "A server's processes among themselves.",
    "edge_request": "Edge devices below a site.",
    "hci_channel": "The administrator's console.",
    "client_api": "Training programs that run beside FLARE.",
    "flare_agent": "Training programs that run beside FLARE.",
    "metrics": "Measurements of components, sent on while they run.",
    "collab": "Calls between the objects of a collaborative job.",
    "workspace_transfer": "Fetches a workspace into a container; FairFlare's job process runs beside its parent.",
    "cc_validation": "Confidential computing.",
}

#: The whole list.
TOPICS: tuple[Topic, ...] = (
    *_ADMIN_OPEN,
    *_closed(ADMIN, "parent", "in", _ADMIN_CLOSED),
    *_JOB,
    *_AUX,
    *_PARENT_OUT,
    *_TRANSPORT,
    *_GOODBYE,
    *_PLUMBING,
    *(
        Topic(name, "*", "both", direction, "closed", reason)
        for direction in _DIRECTIONS
        for name, reason in _CHANNELS.items()
    ),
)


def _index(process: Process, direction: Direction) -> Mapping[tuple[str, str], Topic]:
    chosen = [one for one in TOPICS if one.process in (process, "both") and one.direction == direction]
    return MappingProxyType({(one.channel, one.topic): one for one in chosen})


_INDEX: Mapping[tuple[str, str], Mapping[tuple[str, str], Topic]] = MappingProxyType(
    {(process, direction): _index(process, direction) for process in _PROCESSES for direction in _DIRECTIONS}
)


def find(process: Process, direction: Direction, channel: str, topic: str) -> Topic | None:
    """The entry for a message, or ``None``: not listed, hence closed."""
    table = _INDEX[(process, direction)]
    return table.get((channel, topic)) or table.get((channel, "*"))


def markdown() -> str:
    """The list as a table of Markdown, open ones first, for the page that hospital IT reads."""
    order = {"needed": 0, "checked": 1, "harmless": 2, "closed": 3}
    lines = ["| channel | topic | process | direction | verdict | reason |", "|---|---|---|---|---|---|"]
    rows = sorted(TOPICS, key=lambda one: (order[one.verdict], one.channel, one.topic, one.process, one.direction))
    lines += [
        f"| `{one.channel}` | `{one.topic}` | {one.process} | {one.direction} | {one.verdict} | {one.reason} |"
        for one in rows
    ]
    return "\n".join(lines) + "\n"
