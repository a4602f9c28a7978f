# SPDX-License-Identifier: Apache-2.0
"""Attacks on what a sum is about: other inputs for one site, lossy transfers, false totals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fairflare.errors import SecaggError
from fairflare.secagg import site as site_module
from fairflare.secagg.fixedpoint import UpdateCodec
from fairflare.secagg.schedule import task_digest, tensor_digest, view_digest
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import sha256
from fairflare.secagg.transcript import Signed
from tests.attacks.federation import (
    INPUTS,
    LENGTH,
    Federation,
    Seen,
    confirms_of,
    looks_random,
    params,
    plain_sum,
    refused,
    resigned,
    survivors_of,
    vectors,
)

VICTIM = "site-02"
LONG = 4096
MODEL = np.linspace(-1, 1, 32, dtype=np.float32)


def inputs(model: np.ndarray = MODEL, *, a: float = 1.0, total: int = 1000, **changes: object) -> bytes:
    """D of a task: the model and the numbers that steer the local work."""
    shape, dtype, name = model.shape, str(model.dtype), "layer"
    tensor = tensor_digest(name, dtype, shape, model.astype(model.dtype.newbyteorder("<")).tobytes())
    fl_round, step = int(changes.get("fl_round", 0)), int(changes.get("step", 0))  # type: ignore[call-overload]
    numbers = [("a", np.float64(a).tobytes()), ("total", total.to_bytes(8, "big"))]
    return task_digest("train", fl_round, step, [tensor], numbers)


# ------------------------ unbound inputs: attack 2 of the first list, model inconsistency: attack 10 of the second list


def silence_the_others(federation: Federation, for_victim: bytes, for_others: bytes, length: int) -> np.ndarray:
    """Inputs that make everybody else's update zero, for everybody else: the sum would be the victim's."""
    values = vectors(federation.names, length=length)
    seen = federation.to_upload()
    for name in federation.names:
        told = for_victim if name == VICTIM else for_others
        words = values[name].copy() if name == VICTIM else np.zeros(length, dtype=np.uint32)
        (seen.uploads[name],) = federation.sites[name].upload([(seen.number, words)], told, "train")
        seen.words[name] = words
    return hostile_opening(federation, seen)


def hostile_opening(federation: Federation, seen: Seen) -> np.ndarray:
    """The server checks nothing: it lets the sites confirm and unmask, and adds up whatever it has."""
    server, message = federation.server, survivors_of(seen, federation.names)
    confirms = {name: federation.sites[name].confirm(seen.number, message) for name in federation.names}
    step = server._steps[seen.number]
    step.view = site_module.Upload.parse(seen.uploads[VICTIM].message).view
    step.total = plain_sum(list(seen.words.values()))
    step.uploads = {federation.index(name): one for name, one in seen.uploads.items()}
    server.survivors(seen.number)
    for name in federation.names:
        server.unmask(name, seen.number, federation.sites[name].unmask(seen.number, confirms_of(federation, confirms)))
    return server.unmasked(seen.number)[0]


OTHER_INPUTS: dict[str, Callable[[], bytes]] = {
    "another model": lambda: inputs(MODEL * 0),
    "a model changed by one ulp": lambda: inputs(np.nextafter(MODEL, np.float32(2))),
    "another dtype": lambda: inputs(MODEL.astype(np.float64)),
    "another shape": lambda: inputs(MODEL.reshape(4, 8)),
    "another multiplier": lambda: inputs(a=0.0),
    "another total": lambda: inputs(total=10**9),
    "another round": lambda: inputs(fl_round=1),
    "another step": lambda: inputs(step=1),
}


@pytest.mark.parametrize("kind", OTHER_INPUTS)
def test_other_inputs_for_one_site_end_in_no_opening(kind: str) -> None:
    federation = Federation(4)
    with refused("VIEW"):
        silence_the_others(federation, inputs(), OTHER_INPUTS[kind](), LENGTH)
    assert all(site._steps[0].phase == "uploaded" for site in federation.sites.values())


@pytest.mark.parametrize("kind", OTHER_INPUTS)
def test_other_inputs_for_one_site_read_it_where_the_view_does_not_hold_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(step: object, vector: object, dealers: bytes, inputs: bytes, fl_round: int, query: str) -> bytes:
        return view_digest(step, vector, dealers, bytes(32), fl_round, query)  # type: ignore[arg-type]

    monkeypatch.setattr(site_module, "view_digest", blind)
    federation = Federation(4)
    found = silence_the_others(federation, inputs(), OTHER_INPUTS[kind](), LENGTH)
    assert np.array_equal(found, vectors(federation.names)[VICTIM])


def test_what_a_hostile_server_adds_up_under_two_views_is_noise() -> None:
    federation = Federation(4, params(LONG))
    values = vectors(federation.names, 64, LONG)
    seen = federation.to_upload("risk")
    for name in federation.names:
        words = values[name].copy()
        told = inputs() if name == VICTIM else inputs(a=0.0)
        federation.sites[name].upload([(seen.number, words)], told, "measure")
        seen.words[name] = words
    assert looks_random(plain_sum(list(seen.words.values())))


def test_the_same_sum_under_one_view_is_the_sum() -> None:
    federation = Federation(4, params(LONG))
    values = vectors(federation.names, 64, LONG)
    seen = federation.uploaded(values, "risk")
    assert np.array_equal(plain_sum(list(seen.words.values())), plain_sum(list(values.values())))
    assert not looks_random(plain_sum(list(seen.words.values())))


@pytest.mark.parametrize("change", [{"fl_round": 5}, {"label": "size"}])
def test_a_step_offered_differently_to_one_site_gives_no_sum(change: dict[str, object]) -> None:
    federation = Federation(4)
    seen = federation.offer("risk", 0)
    for name in federation.names:
        offer = replace(seen.offer, **change) if name == VICTIM else seen.offer  # type: ignore[arg-type]
        (keys,) = federation.sites[name].keys([offer])
        federation.server._steps[seen.number].keys[federation.index(name)] = Signed.parse(keys)
    seen.keyset = federation.server.keyset(seen.number)
    values = vectors(federation.names, 64)
    if "label" in change:
        for site in federation.sites.values():
            with refused("KEYS"):
                site.keyset(seen.number, seen.keyset)
        return
    federation.keyset(seen)
    with refused("VIEW", VICTIM):
        federation.upload(seen, values)


# -------------------------------------------------------------------------- lossy transfers: attack 7 of the first list


def upload_after_a_lossy_transfer(federation: Federation, *, blind: bool) -> Seen:
    """A filter on the way rounds the model for one site to half precision; ``blind``: the server takes any view."""
    codec, seen = UpdateCodec(8.0, None), federation.to_upload()
    update = np.linspace(-1, 1, LENGTH - 1, dtype=np.float32)
    federation.server.expect(seen.number, inputs(), "train")
    lossy = MODEL.astype(np.float16).astype(np.float32)
    for name in federation.names:
        words, _ = codec.encode(update, codec.weight(1, 4), name.encode().ljust(32))
        told = inputs(lossy) if name == VICTIM else inputs()
        (signed,) = federation.sites[name].upload([(seen.number, words)], told, "train")
        seen.uploads[name], seen.words[name] = signed, words
        if blind:
            federation.server._steps[seen.number].view = site_module.Upload.parse(signed.message).view
        federation.server.upload(name, seen.number, signed.encoded(), words)
    return seen


def test_an_upload_for_another_model_is_refused_before_it_is_added() -> None:
    federation = Federation(4)
    with refused("VIEW", VICTIM):
        upload_after_a_lossy_transfer(federation, blind=False)
    step = federation.server._steps[0]
    assert federation.server.uploaded(0) == ("site-00", "site-01")
    assert step.total is not None


def test_an_honest_round_goes_on_without_the_site_behind_the_lossy_filter() -> None:
    federation = Federation(4)
    values = vectors(federation.names)
    seen = federation.to_upload()
    federation.upload(seen, {name: values[name] for name in federation.without(VICTIM)}, inputs())
    words = values[VICTIM].copy()
    (signed,) = federation.sites[VICTIM].upload([(seen.number, words)], inputs(a=0.0), "train")
    with refused("VIEW", VICTIM):
        federation.server.upload(VICTIM, seen.number, signed.encoded(), words)
    federation.unmask(seen, federation.confirm(seen))
    total, sites = federation.opened(seen)
    assert list(sites) == federation.without(VICTIM)
    assert np.array_equal(total, plain_sum([values[name] for name in sites]))


def test_an_upload_for_another_model_turns_the_sum_to_noise_where_it_is_added() -> None:
    federation = Federation(4)
    seen = upload_after_a_lossy_transfer(federation, blind=True)
    total = federation.server._steps[seen.number].total
    assert total is not None
    # Even if every self-mask is opened, the pair masks of two views do not cancel.
    for name in federation.names:
        site = federation.sites[name]
        step = site._steps[seen.number]
        key = site_module.self_key(step.self_mask or b"", step.view, site.index)
        site_module.add_masks(total, [], [key])
    with pytest.raises(SecaggError, match="FF-SECAGG-RANGE"):
        UpdateCodec(8.0, None).decode(total, 4)


# ---------------------------------------------------------------------------- false totals: attack 11 of the first list


def risk_step() -> tuple[Federation, Seen, dict[str, np.ndarray]]:
    federation = Federation(4)
    values = vectors(federation.names, 64)
    return federation, federation.uploaded(values, "risk"), values


def opening_of(seen: Seen, **changed: object) -> tuple[bytes, list[np.ndarray]]:
    payloads = {name: words.copy() for name, words in seen.words.items()}
    payloads.update(changed)  # type: ignore[arg-type]
    return survivors_of(seen, seen.uploads), [payloads[name] for name in sorted(seen.uploads)]


def lie(seen: Seen) -> tuple[bytes, list[np.ndarray]]:
    """Make the total what the server likes it to be."""
    return opening_of(seen, **{"site-00": seen.words["site-00"] + np.uint64(10**6)})


def test_a_false_total_is_refused() -> None:
    federation, seen, values = risk_step()
    for site in federation.sites.values():
        with refused("OPENING", "site-00"):
            site.opening(seen.number, *lie(seen))
        honest = site.opening(seen.number, *opening_of(seen))
        assert np.array_equal(honest, plain_sum(list(values.values())))
        with refused("STATE"):
            site.opening(seen.number, *opening_of(seen))


def test_a_false_total_is_believed_where_signatures_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SiteSession, "_verify_uploads", lambda *_: None)
    federation, seen, values = risk_step()
    found = federation.sites[VICTIM].opening(seen.number, *lie(seen))
    assert np.array_equal(found, plain_sum(list(values.values())) + np.uint64(10**6))


def test_every_other_false_opening_is_refused() -> None:
    federation, seen, _ = risk_step()
    site = federation.sites[VICTIM]
    uploads, payloads = opening_of(seen)
    without = Seen(seen.offer, uploads=dict(seen.uploads), words=seen.words)
    del without.uploads["site-03"]
    with refused("QUORUM", "without all sites"):
        site.opening(seen.number, *opening_of(without))
    del without.uploads[VICTIM]
    with refused("SURVIVORS", "own"):
        site.opening(seen.number, *opening_of(without))
    for wrong in ([], payloads[:-1], [*payloads, payloads[0]]):
        with refused("OPENING", "without"):
            site.opening(seen.number, uploads, wrong)
    for kind in (np.float64, np.int64, np.dtype(">u8")):  # the same bytes, read as other numbers
        with refused("OPENING", "site-00"):
            site.opening(seen.number, uploads, [payloads[0].view(kind), *payloads[1:]])
    with refused("OPENING", "site-00"):
        site.opening(seen.number, uploads, [payloads[0].reshape(2, -1), *payloads[1:]])
    with refused("OPENING", "site-00"):
        site.opening(seen.number, uploads, [payloads[0].tobytes(), *payloads[1:]])  # type: ignore[list-item]


def test_a_closed_payload_of_another_step_is_refused() -> None:
    """A hostile server puts a site's last statistics in the place of the new ones."""
    federation, old, _ = risk_step()
    values = vectors(federation.names, 64, seed=2)
    seen = federation.uploaded(values, "risk", 1)
    mixed = Seen(seen.offer, uploads=dict(seen.uploads), words=dict(seen.words))
    mixed.uploads["site-00"], mixed.words["site-00"] = old.uploads["site-00"], old.words["site-00"]
    with refused("VIEW", "site-00"):
        federation.sites[VICTIM].opening(seen.number, *opening_of(mixed))
    seen.words["site-00"] = old.words["site-00"]
    with refused("OPENING", "site-00"):
        federation.sites[VICTIM].opening(seen.number, *opening_of(seen))


def test_a_site_that_signs_two_statistics_cannot_be_told_apart_but_both_are_signed() -> None:
    """A colluding site may give the server two payloads; each honest site still adds up what that site signed."""
    federation, seen, _ = risk_step()
    colluder, server = federation.sites["site-00"], federation.server
    upload = site_module.Upload.parse(seen.uploads["site-00"].message)
    other = seen.words["site-00"] + np.uint64(1)
    second = resigned(colluder, replace(upload, payload=sha256(other.tobytes())).encoded())
    with refused("LATE"):
        server.verify_upload("site-00", seen.number, second.encoded(), other)
    mixed = Seen(seen.offer, uploads={**seen.uploads, "site-00": second}, words={**seen.words, "site-00": other})
    honest = federation.sites["site-01"].opening(seen.number, *opening_of(seen))
    told = federation.sites["site-03"].opening(seen.number, *opening_of(mixed))
    assert np.array_equal(told - honest, np.ones(LENGTH, dtype=np.uint64))


def test_the_server_refuses_a_payload_that_was_changed_on_its_way() -> None:
    federation = Federation(4)
    seen = federation.to_upload("risk")
    federation.server.expect(seen.number, INPUTS, "train")
    words = vectors(["one"], 64)["one"]
    (signed,) = federation.sites[VICTIM].upload([(seen.number, words)], INPUTS, "train")
    with refused("PAYLOAD", VICTIM):
        federation.server.upload(VICTIM, seen.number, signed.encoded(), words + np.uint64(1))
    with refused("SHAPE", VICTIM):
        federation.server.upload(VICTIM, seen.number, signed.encoded(), words[:-1].copy())
    with refused("LATE", "site-00"):
        federation.server.upload(
            "site-00", seen.number, resigned(federation.sites["site-00"], signed.message).encoded(), words
        )
    with refused("SIGNATURE", "site-00"):
        federation.server.upload("site-00", seen.number, signed.encoded(), words)
    federation.server.upload(VICTIM, seen.number, signed.encoded(), words)
