# SPDX-License-Identifier: Apache-2.0
"""A site's filter: out goes what the release gate made, for this task, once; everything else is refused."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskAssignment, TaskRouter
from nvflare.private.privacy_manager import Scope

from fairflare.engine.failures import ERRORS
from fairflare.engine.messages import Message
from fairflare.errors import FairFlareError, GateError
from fairflare.flare import seal, wire
from fairflare.flare.seal import SealFilter
from fairflare.privacy.gate import Release, ReleaseGate, ReleaseLog
from fairflare.secagg.plain import PlainSite
from fairflare.secagg.protection import Payload, VectorSpec, Weighted

LARGE = 20_000  # travels as an array
JOB, SITE, TASK = "a-job", "hospital-1", "train"
SPECS = {"update": VectorSpec("update", "float32", LARGE), "sums": VectorSpec("sums", "float64", 3)}
MESSAGE = Message(TASK, 2, 0, "session", "plan")


class Engine:
    def __init__(self, base: Path) -> None:
        self.base = base

    def get_workspace(self) -> Any:
        return SimpleNamespace(get_run_dir=lambda job: str(self.base / job))

    def fire_event(self, *_: object) -> None:
        return None


def context(base: Path, **props: object) -> FLContext:
    """What FLARE's runner knows when it has a result and is about to filter it."""
    ctx = FLContext()
    known = {"task": TASK, "number": "task-1", "job": JOB, "site": SITE, "direction": FilterKey.OUT, **props}
    ctx.set_prop(ReservedKey.ENGINE, Engine(base), private=True, sticky=False)
    ctx.set_prop(ReservedKey.RUN_NUM, known["job"], private=False, sticky=False)
    ctx.set_prop(ReservedKey.IDENTITY_NAME, known["site"], private=False, sticky=False)
    ctx.set_prop(FLContextKey.TASK_NAME, known["task"], private=True, sticky=False)
    ctx.set_prop(FLContextKey.TASK_ID, known["number"], private=True, sticky=False)
    ctx.set_prop(FLContextKey.FILTER_DIRECTION, known["direction"], private=True, sticky=False)
    return ctx


@pytest.fixture
def ctx(tmp_path: Path) -> FLContext:
    return context(tmp_path)


@pytest.fixture
def gate(tmp_path: Path) -> ReleaseGate:
    return ReleaseGate({TASK: SPECS}, PlainSite(), ReleaseLog(tmp_path / "log"))


def of_scope() -> SealFilter:
    """The filter as FLARE makes it of ``privacy.json``."""
    made, scope = SealFilter(), Scope()
    scope.add_task_result_filter(made, FilterKey.OUT)
    return made


def made(gate: ReleaseGate, value: float = 1.0) -> Release:
    vectors = {
        "update": Weighted(np.full(LARGE, value, np.float32), 7.0),
        "sums": Weighted(np.array([value, 0.0, -2.0])),
    }
    return gate.release(TASK, 2, 0, vectors)


@pytest.fixture
def sealed(gate: ReleaseGate, ctx: FLContext) -> Shareable:
    return seal.release(made(gate), MESSAGE, ctx)


def refused(shareable: Any, ctx: FLContext, code: str = "FF-GATE-SEAL") -> None:
    with pytest.raises(GateError, match=f"^{code}: "):
        of_scope().process(shareable, ctx)


# ---------------------------------------------------------------------------------------------------- what goes out


def test_what_the_gate_made_goes_out_as_it_was(sealed: Shareable, ctx: FLContext) -> None:
    out = of_scope().process(sealed, ctx)
    reply = wire.decode_reply(out)
    assert (reply.task, reply.round, reply.step, reply.session) == (TASK, 2, 0, "session")
    assert reply.payloads["update"].values.tolist() == [1.0] * LARGE
    assert reply.payloads["sums"].values.tolist() == [1.0, 0.0, -2.0]
    assert out is not sealed
    assert set(out) == {ReservedHeaderKey.HEADERS, wire.HEAD, wire.VECTOR + "update", wire.VECTOR + "sums"}
    assert out[ReservedHeaderKey.HEADERS] == {}


def test_an_attribute_of_the_object_does_not_ride_along(sealed: Shareable, ctx: FLContext) -> None:
    sealed.patients = "SECRET"
    assert not hasattr(of_scope().process(sealed, ctx), "patients")
    refusal = seal.refusal("FF-DATA-FEW", ctx)
    refusal.patients = "SECRET"
    assert not hasattr(of_scope().process(refusal, ctx), "patients")


def test_a_code_goes_out_and_nothing_else(ctx: FLContext) -> None:
    out = of_scope().process(seal.refusal("FF-DATA-FEW", ctx), ctx)
    assert wire.failure_code(out) == "FF-DATA-FEW"
    assert dict(out) == dict(wire.error_reply("FF-DATA-FEW"))


def test_protocol_messages_go_out(ctx: FLContext) -> None:
    shareable = wire.encode_message(Message(TASK, 0, 0, "s", "p", protocol=b"shares"))
    out = of_scope().process(seal._remember(shareable, ctx), ctx)
    assert out[wire.PROTOCOL] == b"shares"


@pytest.mark.parametrize("code", sorted(seal.BARE))
def test_a_bare_code_of_flare_goes_out_anew(code: str, ctx: FLContext) -> None:
    sent = make_reply(code)
    out = of_scope().process(sent, ctx)
    assert out is not sent
    assert dict(out) == {ReservedHeaderKey.HEADERS: {ReservedHeaderKey.RC: code}}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_vectors_the_gate_made_go_out(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    ctx = context(Path(os.devnull))
    kinds = st.sampled_from(sorted(wire.NUMBERS))
    sizes = st.sampled_from([0, 1, 5, 70_000])
    vectors = {str(n): np.zeros(data.draw(sizes), data.draw(kinds)) for n in range(data.draw(st.integers(0, 3)))}
    shareable = wire.encode_message(Message(TASK, 0, 0, "s", "p", vectors))
    out = of_scope().process(seal._remember(shareable, ctx), ctx)
    got = wire.decode_message(out).vectors
    assert {label: (values.dtype, values.size) for label, values in got.items()} == {
        label: (values.dtype, values.size) for label, values in vectors.items()
    }


# -------------------------------------------------------------------------------------------- what the gate did not


def nested() -> Shareable:
    return Shareable({"weights": {"layer": [np.ones(3), {"deeper": b"x"}]}})


class Dressed(Shareable):
    """It looks like a result and is one of another class."""


UNSEALED: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "an empty Shareable": Shareable,
    "a plain dict": lambda: {"update": [1.0]},
    "an empty dict": dict,
    "bytes": lambda: b"update",
    "a text": lambda: "patient 17",
    "a number": lambda: 17,
    "an array": lambda: np.ones(4, np.float32),
    "a list": lambda: [np.ones(4)],
    "a DXO": lambda: DXO(DataKind.WEIGHTS, {"w": np.ones(4)}),
    "a DXO in a Shareable": lambda: DXO(DataKind.WEIGHT_DIFF, {"w": np.ones(4)}).to_shareable(),
    "metrics": lambda: DXO(DataKind.METRICS, {"accuracy": 0.9}).to_shareable(),
    "a collection": lambda: DXO(DataKind.COLLECTION, {"a": DXO(DataKind.WEIGHTS, {"w": np.ones(1)})}).to_shareable(),
    "an FLModel": lambda: FLModel(params={"w": np.ones(4)}),
    "an FLModel in a Shareable": lambda: FLModelUtils.to_shareable(FLModel(params={"w": np.ones(4)})),
    "a nested payload": nested,
    "an answer of our form that nobody made": lambda: Shareable({wire.HEAD: "{}"}),
    "a code that nobody made": lambda: wire.error_reply("FF-DATA-FEW"),
    "a code and more": lambda: Shareable({wire.CODE: "FF-DATA-FEW", wire.VECTOR + "x": b"1"}),
    "an ok without a result": lambda: make_reply(ReturnCode.OK),
    "a code of the caller's own": lambda: make_reply("PATIENT_17_IS_ILL"),
    "a code that is no text": lambda: make_reply(17),
    "a bare code with another header": lambda: make_reply(ReturnCode.TASK_ABORTED, {"note": "SECRET"}),
    "a bare code with a cookie": lambda: make_reply(ReturnCode.TASK_ABORTED, {ReservedHeaderKey.COOKIE_JAR: {"a": 1}}),
    "a bare code with a key": lambda: with_key(make_reply(ReturnCode.TASK_ABORTED), "note", "SECRET"),
    "headers that are none": lambda: with_key(Shareable(), ReservedHeaderKey.HEADERS, ["SECRET"]),
    "no headers": lambda: without(Shareable(), ReservedHeaderKey.HEADERS),
    **{
        f"numbers of type {kind}": lambda kind=kind: Shareable({wire.VECTOR + "x": np.zeros(3, kind)})
        for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "u4", "u8", "?", "c8", "S3", "U3", "O", "M8[s]")
    },
}


def with_key(shareable: Shareable, key: Any, value: Any) -> Shareable:
    shareable[key] = value
    return shareable


def without(shareable: Shareable, key: str) -> Shareable:
    del shareable[key]
    return shareable


@pytest.mark.parametrize("what", UNSEALED)
def test_what_the_gate_did_not_make_stays(what: str, ctx: FLContext) -> None:
    refused(UNSEALED[what](), ctx)


@pytest.mark.parametrize("what", UNSEALED)
def test_it_stays_also_when_the_gates_answer_was_held_back(what: str, sealed: Shareable, ctx: FLContext) -> None:
    refused(UNSEALED[what](), ctx)
    refused(sealed, ctx)  # asked for once


def test_an_answer_of_another_class_stays(sealed: Shareable, ctx: FLContext) -> None:
    dressed = Dressed()
    dressed.update(sealed)
    refused(dressed, ctx)


# ----------------------------------------------------------------------------------- what was changed on the way


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def one_bit(shareable: Shareable) -> None:
    shareable[wire.VECTOR + "update"].view(np.uint8)[-1] ^= 1


CHANGES: dict[str, Callable[[Shareable], None]] = {
    "a bit of an array": one_bit,
    "a byte of a vector": lambda s: s.update({wire.VECTOR + "sums": flip(s[wire.VECTOR + "sums"])}),
    "a letter of the head": lambda s: s.update({wire.HEAD: s[wire.HEAD].replace('"round": 2', '"round": 3')}),
    "a space in the head": lambda s: s.update({wire.HEAD: s[wire.HEAD] + " "}),
    "another type of number": lambda s: s.update({wire.VECTOR + "update": s[wire.VECTOR + "update"].view(np.uint32)}),
    "another shape": lambda s: s.update({wire.VECTOR + "update": s[wire.VECTOR + "update"].reshape(2, -1)}),
    "an array as bytes": lambda s: s.update({wire.VECTOR + "update": s[wire.VECTOR + "update"].tobytes()}),
    "bytes as a bytearray": lambda s: s.update({wire.VECTOR + "sums": bytearray(s[wire.VECTOR + "sums"])}),
    "the head as bytes": lambda s: s.update({wire.HEAD: s[wire.HEAD].encode()}),
    "a strided array": lambda s: s.update(
        {wire.VECTOR + "update": np.repeat(s[wire.VECTOR + "update"], 2)[::2]}
    ),
    "an array of a class of its own": lambda s: s.update(
        {wire.VECTOR + "update": s[wire.VECTOR + "update"].view(np.recarray)}
    ),
    "words in the type of numbers": lambda s: s.update(
        {wire.VECTOR + "update": s[wire.VECTOR + "update"].view(np.dtype("<f4", metadata={"patient": 17}))}
    ),
    "a vector more": lambda s: s.update({wire.VECTOR + "patients": b"17"}),
    "an empty vector more": lambda s: s.update({wire.VECTOR + "patients": b""}),
    "a key more": lambda s: s.update({"note": "SECRET"}),
    "a key that is no text": lambda s: s.update({17: b"SECRET"}),
    "a code more": lambda s: s.update({wire.CODE: "FF-DATA-FEW"}),
    "protocol messages": lambda s: s.update({wire.PROTOCOL: b"17"}),
    "a vector less": lambda s: s.__delitem__(wire.VECTOR + "sums"),
    "another name of a vector": lambda s: s.update({wire.VECTOR + "sums2": s.pop(wire.VECTOR + "sums")}),
    "a header": lambda s: s.set_header("note", "SECRET"),
    "a return code": lambda s: s.set_return_code(ReturnCode.OK),
    "a return code of failure": lambda s: s.set_return_code(ReturnCode.EXECUTION_EXCEPTION),
    "a cookie": lambda s: s.add_cookie("note", "SECRET"),
    "a task's name as header": lambda s: s.set_header(ReservedHeaderKey.TASK_NAME, TASK),
    "a context of its own": lambda s: s.set_peer_context({"note": "SECRET"}),
    "headers that are no dict": lambda s: s.update({ReservedHeaderKey.HEADERS: []}),
    "two vectors exchanged": lambda s: s.update(
        {wire.VECTOR + "sums": s[wire.VECTOR + "update"], wire.VECTOR + "update": s[wire.VECTOR + "sums"]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_the_gate_is_found(what: str, sealed: Shareable, ctx: FLContext) -> None:
    CHANGES[what](sealed)
    refused(sealed, ctx)


@pytest.mark.parametrize("what", CHANGES)
def test_after_a_change_the_true_answer_does_not_go_out_either(what: str, sealed: Shareable, ctx: FLContext) -> None:
    true = copy.deepcopy(sealed)
    CHANGES[what](sealed)
    refused(sealed, ctx)
    refused(true, ctx)


REFUSALS: dict[str, Callable[[Shareable], None]] = {
    "another code": lambda s: s.update({wire.CODE: "FF-DATA-MANY"}),
    "a text as code": lambda s: s.update({wire.CODE: "patient 17"}),
    "another return code": lambda s: s.set_return_code(ReturnCode.TASK_ABORTED),
    "no return code": lambda s: s.update({ReservedHeaderKey.HEADERS: {}}),
    "a header": lambda s: s.set_header("note", "SECRET"),
    "a key": lambda s: s.update({"note": "SECRET"}),
    "a vector": lambda s: s.update({wire.VECTOR + "x": b"17"}),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_changed_refusal_stays(what: str, ctx: FLContext) -> None:
    answer = seal.refusal("FF-DATA-FEW", ctx)
    REFUSALS[what](answer)
    refused(answer, ctx)


# ------------------------------------------------------------------------------------- another task, a second time


OTHERS = {"task": "measure", "number": "task-2", "job": "b-job", "site": "hospital-2"}


@pytest.mark.parametrize("what", OTHERS)
def test_an_answer_is_good_for_its_task_only(what: str, sealed: Shareable, tmp_path: Path) -> None:
    refused(sealed, context(tmp_path, **{what: OTHERS[what]}))


@pytest.mark.parametrize("what", OTHERS)
def test_where_flare_does_not_say_what_task_it_is_nothing_goes_out(
    what: str, gate: ReleaseGate, tmp_path: Path
) -> None:
    nowhere = context(tmp_path, **{what: ""})
    refused(seal.release(made(gate), MESSAGE, nowhere), nowhere)


def test_an_answer_goes_out_once(sealed: Shareable, ctx: FLContext) -> None:
    out = of_scope().process(copy.deepcopy(sealed), ctx)
    refused(sealed, ctx)
    refused(out, ctx)  # a scope that names the filter twice is closed, not open


def test_an_answer_to_an_earlier_task_stays(gate: ReleaseGate, tmp_path: Path) -> None:
    first, second = context(tmp_path), context(tmp_path, number="task-2")
    old = seal.release(made(gate), MESSAGE, first)
    of_scope().process(copy.deepcopy(old), first)
    seal.release(made(gate, 2.0), MESSAGE, second)
    refused(old, second)


def test_a_newer_answer_takes_the_place_of_one_that_never_went_out(gate: ReleaseGate, ctx: FLContext) -> None:
    old = seal.release(made(gate), MESSAGE, ctx)
    new = seal.release(made(gate, 2.0), MESSAGE, ctx)
    assert wire.decode_reply(of_scope().process(new, ctx)).payloads["sums"].values[0] == 2.0
    refused(old, ctx)


def test_sites_of_one_process_do_not_disturb_one_another(gate: ReleaseGate, tmp_path: Path) -> None:
    one, two = context(tmp_path), context(tmp_path, site="hospital-2")
    first, second = seal.release(made(gate), MESSAGE, one), seal.release(made(gate, 2.0), MESSAGE, two)
    of_scope().process(first, one)
    of_scope().process(second, two)


def test_what_is_remembered_does_not_grow(gate: ReleaseGate, ctx: FLContext) -> None:
    for _ in range(5):
        seal.release(made(gate), MESSAGE, ctx)
    assert len([owner for owner in seal._MEMORY._digests if owner == (JOB, SITE)]) == 1


# -------------------------------------------------------------------------------------------- only through the gate


def test_only_a_release_of_the_gate_is_sealed(ctx: FLContext) -> None:
    forged = Release(TASK, 2, 0, {"sums": Payload(np.zeros(3), 1.0)})
    with pytest.raises(GateError, match="FF-GATE-SEAL"):
        seal.release(forged, MESSAGE, ctx)


FORMS: dict[str, tuple[str, object]] = {
    "a text under another key": ("note", "SECRET"),
    "bytes under another key": ("note", b"SECRET"),
    "bytes as head": (wire.HEAD, b"{}"),
    "a text as vector": (wire.VECTOR + "x", "SECRET"),
    "an array of two dimensions": (wire.VECTOR + "x", np.zeros((2, 2), np.float32)),
    "an array as protocol messages": (wire.PROTOCOL, np.zeros(2, np.uint8)),
}


@pytest.mark.parametrize("what", FORMS)
def test_what_no_answer_can_hold_is_not_even_remembered(what: str, ctx: FLContext) -> None:
    key, value = FORMS[what]
    with pytest.raises(GateError, match="FF-GATE-SEAL"):
        seal._remember(Shareable({key: value}), ctx)


def test_fields_do_not_flow_into_one_another() -> None:
    answer = Shareable({wire.HEAD: "{}"})
    assert seal._digest(answer, ("aplaceb", "c")) != seal._digest(answer, ("a", "bplacec"))


@pytest.mark.parametrize("change", [{"task": "measure"}, {"round": 3}, {"step": 1}])
def test_a_release_is_sealed_for_the_message_it_answers(
    change: dict[str, Any], gate: ReleaseGate, ctx: FLContext
) -> None:
    fields = {"task": TASK, "round": 2, "step": 0, "session": "session", "plan_sha256": "plan", **change}
    with pytest.raises(GateError, match="FF-GATE-TASK"):
        seal.release(made(gate), Message(**fields), ctx)


# ----------------------------------------------------------------------------------------------------- its own place


def places() -> dict[str, SealFilter]:
    as_data, data_scope = SealFilter(), Scope()
    data_scope.add_task_data_filter(as_data, FilterKey.OUT)
    of_job = of_scope()
    of_job.set_prop("__source", "job")
    return {"not built by FLARE": SealFilter(), "a filter of data": as_data, "a filter of the job": of_job}


@pytest.mark.parametrize("what", places())
def test_in_another_place_it_lets_nothing_pass(what: str, sealed: Shareable, ctx: FLContext) -> None:
    with pytest.raises(GateError, match="FF-GATE-PLACE"):
        places()[what].process(sealed, ctx)


def test_what_comes_in_does_not_pass_it(sealed: Shareable, tmp_path: Path) -> None:
    refused(sealed, context(tmp_path, direction=FilterKey.IN), "FF-GATE-PLACE")


PUBLIC: dict[str, tuple[str, object]] = {
    "a property of one's own": ("fairflare.note", "SECRET"),
    "the folder of the workspace": (FLContextKey.WORKSPACE_ROOT, "/data/hospital"),
    "another job": (ReservedKey.CURRENT_JOB_ID, "b-job"),
    "another site": (ReservedKey.CLIENT_NAME, "hospital-2"),
    "a place that is none of this site": (ReservedKey.FQSN, "relay/hospital-2"),
    "a place that is no text": (ReservedKey.FQSN, [SITE]),
    "a leaf that is a text": (ReservedKey.IS_LEAF, "SECRET"),
}


@pytest.mark.parametrize("what", PUBLIC)
def test_flares_context_says_no_more_than_who_and_which_job(what: str, sealed: Shareable, ctx: FLContext) -> None:
    key, value = PUBLIC[what]
    ctx.set_prop(key, value, private=False, sticky=False)
    refused(sealed, ctx, "FF-GATE-CONTEXT")


def test_flares_own_public_properties_may_go_along(sealed: Shareable, ctx: FLContext) -> None:
    own: dict[str, object] = {
        ReservedKey.CURRENT_JOB_ID: JOB, ReservedKey.CLIENT_NAME: SITE, ReservedKey.FQSN: f"relay/{SITE}",
        ReservedKey.IS_LEAF: True,
    }  # fmt: skip
    for key, value in own.items():
        ctx.set_prop(key, value, private=False, sticky=False)
    of_scope().process(sealed, ctx)


def test_the_site_can_read_why_and_the_text_holds_nothing(sealed: Shareable, ctx: FLContext, tmp_path: Path) -> None:
    sealed["SECRET"] = "SECRET"
    with pytest.raises(FairFlareError) as caught:
        of_scope().process(sealed, ctx)
    assert "SECRET" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    told = (tmp_path / JOB / "fairflare" / ERRORS).read_text(encoding="utf-8")
    assert "FF-GATE-SEAL" in told


# ----------------------------------------------------------------------------------------------- as FLARE runs it


class Runner(ClientRunner):
    """FLARE's own runner, without a server to talk to."""

    def __init__(self, executor: Any, filters: dict[str, list[Filter]] | None = None) -> None:
        router = TaskRouter()
        router.add_executor([TASK], executor)
        engine = SimpleNamespace(
            register_aux_message_handler=lambda **_: None, fire_event=lambda *_: None, get_cell=lambda: None
        )
        super().__init__({}, ClientRunnerConfig(router, {}, filters or {}), JOB, engine)


def run(answer: Callable[[FLContext], Any], base: Path, seals: int = 1, filters: Any = None) -> Shareable:
    """What FLARE would send for one task whose executor answers so."""
    ctx, scope, peer = context(base), Scope(), FLContext()
    for _ in range(seals):
        scope.add_task_result_filter(SealFilter(), FilterKey.OUT)
    ctx.set_prop(FLContextKey.SCOPE_OBJECT, scope, private=True, sticky=False)
    peer.set_prop(ReservedKey.RUN_NUM, JOB, private=False, sticky=False)
    ctx.set_peer_context(peer)
    executor = SimpleNamespace(execute=lambda name, data, fl_ctx, abort: answer(fl_ctx), unsafe=False)
    assignment = TaskAssignment(TASK, "task-1", Shareable())
    result: Shareable = Runner(executor, filters)._process_task(assignment, ctx)
    return result


def test_an_error_of_the_filters_own_says_nothing_either(sealed: Shareable, ctx: FLContext, tmp_path: Path) -> None:
    sealed[wire.HEAD] = "SECRET \udc80"  # no text that can be encoded
    with pytest.raises(GateError, match=r"^FF-GATE-SEAL: ") as caught:
        of_scope().process(sealed, ctx)
    assert caught.value.__suppress_context__
    assert "UnicodeEncodeError" in (tmp_path / JOB / "fairflare" / ERRORS).read_text(encoding="utf-8")


def own_keys(shareable: Shareable) -> set[str]:
    return set(shareable) - {ReservedHeaderKey.HEADERS}


def test_flare_sends_what_the_gate_made(gate: ReleaseGate, tmp_path: Path) -> None:
    sent = run(lambda ctx: seal.release(made(gate), MESSAGE, ctx), tmp_path)
    assert sent.get_return_code() == ReturnCode.OK
    assert own_keys(sent) == {wire.HEAD, wire.VECTOR + "update", wire.VECTOR + "sums"}
    assert set(sent[ReservedHeaderKey.HEADERS]) <= {
        ReservedHeaderKey.TASK_NAME, ReservedHeaderKey.TASK_ID, ReservedHeaderKey.AUDIT_EVENT_ID
    }  # fmt: skip


#: FLARE's own logging does not survive these headers: its runner ends before anything is sent.
BROKEN = "headers that are none"


@pytest.mark.parametrize("what", sorted({*UNSEALED} - {BROKEN}))
def test_flare_sends_a_bare_code_in_place_of_everything_else(what: str, tmp_path: Path) -> None:
    sent = run(lambda _: UNSEALED[what](), tmp_path)
    assert own_keys(sent) == set()
    assert sent.get_return_code() in {ReturnCode.TASK_RESULT_FILTER_ERROR, ReturnCode.EXECUTION_RESULT_ERROR}
    assert b"SECRET" not in sent.to_bytes()


def test_flare_sends_nothing_where_it_breaks_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="header object must be a dict"):
        run(lambda _: UNSEALED[BROKEN](), tmp_path)


def test_without_the_filter_flare_sends_anything(tmp_path: Path) -> None:
    sent = run(lambda _: with_key(Shareable(), "note", "SECRET"), tmp_path, seals=0)
    assert own_keys(sent) == {"note"}


def test_a_scope_that_names_the_filter_twice_sends_nothing(gate: ReleaseGate, tmp_path: Path) -> None:
    sent = run(lambda ctx: seal.release(made(gate), MESSAGE, ctx), tmp_path, seals=2)
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR


class Sending(SimpleNamespace):
    """FLARE's engine while the line to the server fails twice, then works."""

    def send_task_result(self, result: Shareable, fl_ctx: FLContext, timeout: float | None = None) -> bool:
        self.tries.append(own_keys(result))
        return len(self.tries) > 2

    def send_aux_request(self, targets: list[str], **_: object) -> dict[str, Shareable]:
        return {targets[0]: make_reply(ReturnCode.OK)}


def test_what_passed_is_sent_again_without_another_look(gate: ReleaseGate, tmp_path: Path) -> None:
    """FLARE sends the same result again when the line fails; its filters do not run again."""
    sent = run(lambda ctx: seal.release(made(gate), MESSAGE, ctx), tmp_path)
    runner = Runner(SimpleNamespace())
    runner.engine, runner.task_check_interval = Sending(tries=[]), 0.0
    assert runner._send_task_result(sent, "task-1", context(tmp_path)) is True
    assert runner.engine.tries == [own_keys(sent)] * 3


def test_a_task_that_flare_hands_over_again_is_answered_again(gate: ReleaseGate, tmp_path: Path) -> None:
    """After a restart of its server FLARE gives a site the same task with the same number: a new answer, a new look."""
    for _ in range(2):
        sent = run(lambda ctx: seal.release(made(gate), MESSAGE, ctx), tmp_path)
        assert sent.get_return_code() == ReturnCode.OK


def test_flare_knows_no_other_filter_of_results_than_these(sealed: Shareable, ctx: FLContext) -> None:
    """The filter is reached through FLARE's own function, in the direction in which FLARE sends."""
    scope = Scope()
    scope.add_task_result_filter(SealFilter(), FilterKey.OUT)
    ctx.set_prop(FLContextKey.SCOPE_OBJECT, scope, private=True, sticky=False)
    out = apply_filters(Scope.TASK_RESULT_FILTERS_NAME, sealed, ctx, {}, TASK, FilterKey.OUT)
    assert own_keys(out) == own_keys(sealed)
