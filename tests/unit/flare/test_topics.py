# SPDX-License-Identifier: Apache-2.0
"""The list of messages is the whole list: everything that the installed FLARE can handle or send is in it, once."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nvflare
import pytest
from nvflare.apis.fl_constant import ReservedTopic, ServerCommandNames
from nvflare.apis.utils import reliable_message
from nvflare.fuel.f3.cellnet import core_cell, net_agent
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic
from nvflare.fuel.f3.streaming import download_service, stream_const
from nvflare.private import defs, stream_runner
from nvflare.private.fed.client import client_engine, client_run_manager, communicator, fed_client_base
from nvflare.private.fed.client.admin_commands import AdminCommands
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.widgets import fed_event

from fairflare.flare.topics import ADMIN, ENVELOPE, RETURN, STREAM, TOPICS, Topic, find, markdown

FLARE = Path(nvflare.__file__).parent


def _listed(channel: str, process: str, direction: str) -> set[str]:
    return {
        one.topic
        for one in TOPICS
        if one.channel == channel and one.process in (process, "both") and one.direction == direction
    }


def _constants(owner: type) -> set[str]:
    return {value for name, value in vars(owner).items() if name.isupper() and isinstance(value, str)}


# ------------------------------------------------------------------------------------------------------ the list itself


def test_no_message_is_listed_twice() -> None:
    keys = [
        (one.channel, one.topic, process, one.direction)
        for one in TOPICS
        for process in (("parent", "job") if one.process == "both" else (one.process,))
    ]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("topic", TOPICS, ids=lambda one: f"{one.process}-{one.direction}-{one.channel}-{one.topic}")
def test_every_entry_says_why_in_one_sentence(topic: Topic) -> None:
    assert topic.reason[0].isupper() or topic.reason.startswith("FLARE")
    assert topic.reason.endswith(".")
    assert "|" not in topic.reason


def test_what_is_not_listed_is_closed() -> None:
    for process in ("parent", "job"):
        for direction in ("in", "out"):
            assert find(process, direction, "nobody", "knows") is None  # type: ignore[arg-type]
            assert find(process, direction, ADMIN, "sys.shell2") is None  # type: ignore[arg-type]


def test_the_shell_is_closed() -> None:
    entry = find("parent", "in", ADMIN, "sys.shell")
    assert entry is not None
    assert entry.verdict == "closed"


def test_open_are_exactly_these() -> None:
    # A change here is a change of what a hospital answers: it belongs into provision/README.md too.
    found = {(one.process, one.direction, one.channel, one.topic) for one in TOPICS if one.verdict != "closed"}
    stream = {
        ("both", direction, channel, topic)
        for direction in ("in", "out")
        for channel, topic in (
            STREAM, ("sm__STREAM", "sm__ACK"), ("sm__STREAM", "sm__ERROR"), (RETURN, "*"), ("cellnet.channel", "bye"),
        )
    }  # fmt: skip
    admin = (
        ENVELOPE, "train.check_status", "sys.report_version", "scheduler.check_resource", "scheduler.cancel_resource",
        "train.deploy", "train.start_job", "train.abort", "train.notify_job_status",
    )  # fmt: skip
    task = ("challenge", "register", "heart_beat", "quit", "report_job_failure")
    download = "download_service__"
    assert found == stream | {("parent", "in", ADMIN, one) for one in admin} | {
        ("parent", "out", "task", one) for one in task
    } | {
        ("parent", "out", "client_command", "abort"), ("job", "in", "client_command", "abort"),
        ("job", "in", "aux_communication", "__end_run__"), ("job", "out", "aux_communication", "__sync_runner__"),
        ("job", "out", "aux_communication", "__job_heartbeat__"), ("job", "out", "aux_communication", "__task_check__"),
        ("job", "out", ADMIN, "train.notify_job_status"), ("job", "out", "server_command", "get_task"),
        ("job", "out", "server_command", "submit_update"), ("job", "in", download, f"{download}download"),
        ("job", "out", download, f"{download}download"),
    }  # fmt: skip


def test_the_table_has_a_row_for_every_entry() -> None:
    rows = markdown().splitlines()
    assert len(rows) == len(TOPICS) + 2
    assert all(row.count("|") == 7 for row in rows)
    assert [row for row in rows if "| closed |" in row] == rows[
        -len([1 for one in TOPICS if one.verdict == "closed"]) :
    ]


# -------------------------------------------------------------------------------------------------------- FLARE's code


def test_administration_is_complete() -> None:
    handled = {topic for one in ClientRequestProcessors.request_processors for topic in one.get_topics()}
    named = set().union(
        *(
            _constants(owner)
            for owner in (
                defs.TrainingTopic, defs.SysCommandTopic, defs.InfoCollectorTopic, defs.ComponentCallerTopic,
                defs.ControlCommandTopic,
            )
        )
    )  # fmt: skip
    assert handled <= named
    assert _listed(ADMIN, "parent", "in") == named | {ENVELOPE}
    without = {one.topic for one in TOPICS if one.channel == ADMIN and "without a handler" in one.reason}
    assert without | {"comp_caller.call"} == named - handled


def test_the_envelope_is_what_the_server_uses() -> None:
    source = (FLARE / "private/fed/server/admin.py").read_text(encoding="utf-8")
    assert f'command="{ENVELOPE}"' in source


def test_commands_to_a_job_are_complete() -> None:
    names = {one.get_command_name() for one in AdminCommands.commands}
    assert _listed("client_command", "job", "in") == names
    sent = {f"AdminCommandNames.{name.upper()}" for name in _listed("client_command", "parent", "out")}
    assert {call["topic"] for call in _calls("private/fed/client/client_executor.py") if "topic" in call} >= sent
    assert {
        call["topic"] for call in _calls("private/fed/client/client_executor.py")
        if call.get("channel") == "CellChannel.CLIENT_COMMAND"
    } == sent  # fmt: skip


def test_the_network_agent_is_complete() -> None:
    taken: list[tuple[str, str]] = []
    cell = SimpleNamespace(register_request_cb=lambda channel, topic, cb: taken.append((channel, topic)))
    net_agent.NetAgent(cell)
    assert {channel for channel, _ in taken} == {"_net_manager"}
    for direction in ("in", "out"):
        for process in ("parent", "job"):
            assert _listed("_net_manager", process, direction) == {topic for _, topic in taken}
    sent = {value for name, value in vars(net_agent).items() if name.startswith("_TOPIC_")}
    assert sent == {topic for _, topic in taken}


def test_channels_are_complete() -> None:
    listed = {one.channel for one in TOPICS}
    assert {value for name, value in vars(CellChannel).items() if name.isupper()} <= listed


def test_logging_in_and_staying_in_is_complete() -> None:
    sent = {
        call["topic"]
        for file in ("private/fed/client/communicator.py", "private/fed/authenticator.py",
                     "private/fed/client/client_executor.py")
        for call in _calls(file) if call.get("channel") == "CellChannel.SERVER_MAIN"
    }  # fmt: skip
    assert {getattr(CellChannelTopic, name.split(".")[1]) for name in sent} == _listed("task", "parent", "out")


def test_tasks_are_complete() -> None:
    calls = [one for one in _calls("private/fed/client/communicator.py")
             if one.get("channel") == "CellChannel.SERVER_COMMAND"]  # fmt: skip
    names = {getattr(ServerCommandNames, one["topic"].split(".")[1]) for one in calls}
    assert names == _listed("server_command", "job", "out") == _listed("server_command", "parent", "in")


def test_side_messages_are_complete() -> None:
    """Handlers are put up by name all over FLARE's code for sites; senders likewise."""
    known = {
        "ReservedTopic.END_RUN": ReservedTopic.END_RUN, "ReservedTopic.DO_TASK": ReservedTopic.DO_TASK,
        "ReservedTopic.SYNC_RUNNER": ReservedTopic.SYNC_RUNNER, "ReservedTopic.TASK_CHECK": ReservedTopic.TASK_CHECK,
        "ReservedTopic.JOB_HEART_BEAT": ReservedTopic.JOB_HEART_BEAT,
        "TOPIC_STREAM_REQUEST": stream_runner.TOPIC_STREAM_REQUEST,
        "TOPIC_STREAM_ABORT": stream_runner.TOPIC_STREAM_ABORT, "self.topic": fed_event.FED_EVENT_TOPIC,
        "TOPIC_RELIABLE_REQUEST": reliable_message.TOPIC_RELIABLE_REQUEST,
        "TOPIC_RELIABLE_REPLY": reliable_message.TOPIC_RELIABLE_REPLY, "topic": "(a caller's own)",
    }  # fmt: skip
    files = (
        "private/fed/client/client_runner.py", "private/stream_runner.py", "widgets/fed_event.py",
        "apis/utils/reliable_message.py", "private/fed/client/client_run_manager.py",
        "private/fed/client/client_engine.py", "private/aux_runner.py",
    )  # fmt: skip
    taken, sent = set(), set()
    for file in files:
        for call in _calls(file):
            if "topic" in call and call["_name"] == "register_aux_message_handler":
                taken.add(known[call["topic"]])
            if "topic" in call and call["_name"].endswith(("send_aux_request", "fire_and_forget_aux_request")):
                sent.add(known[call["topic"]])
    assert taken - {"(a caller's own)"} == _listed("aux_communication", "job", "in")
    assert sent - {"(a caller's own)"} == _listed("aux_communication", "job", "out")


def test_transport_is_complete() -> None:
    made = {
        (stream_const.STREAM_CHANNEL, getattr(stream_const, f"STREAM_{name}_TOPIC"))
        for name in ("DATA", "ACK", "ERROR")
    }
    assert {(one.channel, one.topic) for one in TOPICS if one.channel == "sm__STREAM"} == made
    assert (core_cell._SM_CHANNEL, core_cell._SM_TOPIC) == ("credential_manager", "key_exchange")
    assert {CellChannelTopic.Bye, core_cell._TOPIC_BULK} == _listed("cellnet.channel", "job", "in")
    service = download_service.OBJ_DOWNLOADER_CHANNEL
    assert _listed(service, "job", "in") == {
        download_service.OBJ_DOWNLOADER_TOPIC, download_service.SOURCE_FAILURE_TOPIC,
    }  # fmt: skip


#: Every file of FLARE that puts up a handler, and the channels of ours in which it stands, or why it is not a site's.
HANDLERS = {
    "app_common/executors/multi_process_executor.py": "multi_process_executor",
    "app_common/executors/client_api/cell_backend.py": "client_api",
    "app_common/executors/client_api/external_process_backend.py": "client_api",
    "app_common/executors/ipc_exchanger.py": "flare_agent",
    "app_common/widgets/metric_relay.py": "client_api",
    "app_opt/job_launcher/workspace_cell_transfer.py": "workspace_transfer",
    "app_opt/confidential_computing/cc_manager.py": "cc_validation",
    "client/cell/api.py": "client_api",
    "client/cell/attach_session.py": "client_api",
    "client/ipc/ipc_agent.py": "flare_agent",
    "collab/runtime/dispatch.py": "collab",
    "edge/widgets/etr.py": "edge_request",
    "fuel/f3/cellnet/cell.py": RETURN,
    "fuel/f3/cellnet/core_cell.py": "cellnet.channel",
    "fuel/f3/cellnet/net_agent.py": "_net_manager",
    "fuel/f3/streaming/byte_receiver.py": "sm__STREAM",
    "fuel/f3/streaming/byte_streamer.py": "sm__STREAM",
    "fuel/f3/streaming/download_service.py": "download_service__",
    "fuel/f3/streaming/tools/receiver.py": "(a tool)",
    "fuel/hci/client/api.py": "(the administrator's console)",
    "fuel/hci/server/hci.py": "hci_channel",
    "private/fed/app/client/sub_worker_process.py": "client_sub_worker_command",
    "private/fed/client/admin.py": ADMIN,
    "private/fed/client/client_engine.py": "aux_communication",
    "private/fed/client/command_agent.py": "client_command",
    "private/fed/client/communicator.py": "server_command",
    "private/fed/server/fed_server.py": "task",
    "private/fed/server/server_command_agent.py": "(the server)",
    "private/fed/server/server_engine.py": "server_parent_listener",
}


def test_no_other_part_of_flare_puts_up_a_handler() -> None:
    wanted = {"register_request_cb", "register_blob_cb", "register_stream_cb"}
    found = {
        file.relative_to(FLARE).as_posix()
        for file in FLARE.rglob("*.py")
        if any(name in file.read_text(encoding="utf-8", errors="replace") for name in wanted)
        and any(call["_name"] in wanted for call in _calls(file.relative_to(FLARE).as_posix()))
    }
    assert found - {"fuel/f3/stream_cell.py"} == set(HANDLERS)
    listed = {one.channel for one in TOPICS}
    assert {channel for channel in HANDLERS.values() if not channel.startswith("(")} <= listed


def test_sites_create_their_cells_where_we_look() -> None:
    # The parts of a site of which the tests above read the code.
    for module, word in (
        (fed_client_base, "NetAgent(self.cell)"), (communicator, "ServerCommandNames.GET_TASK"),
        (client_engine, "ObjectStreamer(self.aux_runner)"), (client_run_manager, "ClientFedEventRunner()"),
        (core_cell, "CertificateExchanger(self"),
    ):  # fmt: skip
        assert word in inspect.getsource(module)
    assert issubclass(Cell, object)


def _calls(file: str) -> Iterator[dict[str, Any]]:
    """Every call in a file: its last name, and its keyword arguments as they are written."""
    for node in ast.walk(ast.parse((FLARE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg}
            yield {"_name": node.func.attr, **keywords}
