# SPDX-License-Identifier: Apache-2.0
"""Years of sessions with losses, restarts and joins that came to nothing: no honest site is ever taken for an old copy.

What a site counts of another's memory (:mod:`fairflare.secagg.joining`) must never be more than is there; and a copy
that was put back is refused by whoever knows of more.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fairflare.errors import SecaggError
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.joining import JoinedSite
from tests.attacks.federation import STAGES, Federation, refused, site_names, vectors

NAMES = site_names(4)
KINDS = ("open", "closed", "nothing")


def files(folder: Path, anchored: bool = True) -> dict[str, RevealMemory]:
    return {
        name: RevealMemory(folder / f"{name}.sqlite", Anchor(folder / f"{name}.anchor") if anchored else None)
        for name in NAMES
    }


def known(memory: RevealMemory, name: str) -> int:
    """How many events a site demands of another one."""
    head = memory.peer(name)
    return max(0 if head is None else head[0], memory._known.least.get(name, 0))


def verify_nobody_is_owed_more(memories: dict[str, RevealMemory]) -> None:
    for memory in memories.values():
        for name in NAMES:
            assert known(memory, name) <= memories[name].head[0]


def step(federation: Federation, kind: str, lost: dict[str, str], fl_round: int, witness: bool) -> None:
    """One step, which ends where too many are lost; a redelivered message is one more."""
    if kind == "closed":
        seen = federation.to_upload("risk", fl_round)
        names = [name for name in NAMES if name not in lost]
        federation.upload(seen, vectors(names, 64))
        if len(names) == len(NAMES):
            uploads = federation.server.survivors(seen.number)
            for site in federation.sites.values():
                site.opening(seen.number, uploads, [seen.words[name] for name in NAMES])
        return
    _, _, seen = federation.run(vectors(NAMES), lost, fl_round)
    for site in federation.sites.values():
        with suppress(SecaggError):
            site.keyset(seen.number, seen.keyset)
        if witness:
            with suppress(SecaggError):
                site.witness(seen.number, seen.survivors, federation.server.confirms(seen.number))


def session(memories: dict[str, RevealMemory], data: st.DataObject, rounds: list[int]) -> None:
    """One session: everybody joins (also twice), some may never begin, then steps in which sites are lost."""
    federation = Federation(NAMES, memories=memories, begin=False)
    for name in NAMES:
        for _ in range(data.draw(st.integers(1, 2))):
            joined = federation.sites[name].join()
        federation.server.join(name, joined)
    roster = federation.server.begin(NAMES)
    absent = data.draw(st.sets(st.sampled_from(NAMES), max_size=4))
    for name in NAMES:
        if name not in absent:
            federation.sites[name].begin(roster)  # an honest site is never refused
    if absent:
        return
    for kind in data.draw(st.lists(st.sampled_from(KINDS), max_size=3)):
        lost = data.draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(STAGES), max_size=2))
        rounds[0] += 1
        if kind != "nothing":
            with suppress(SecaggError):  # too few are left
                step(federation, kind, lost, rounds[0], data.draw(st.booleans()))
        verify_nobody_is_owed_more(memories)


def years(data: st.DataObject, folder: Path, copies: dict[str, list[int]]) -> None:
    """Sessions, each after restarts; ``copies``: at how many events a site's file was copied."""
    rounds = [0]
    for number in range(data.draw(st.integers(1, 3))):
        with ExitStack() as stack:
            memories = files(folder)
            for memory in memories.values():
                stack.enter_context(memory)
            session(memories, data, rounds)
            verify_nobody_is_owed_more(memories)
            heads = {name: memory.head[0] for name, memory in memories.items()}
        for name in NAMES:
            shutil.copy(folder / f"{name}.sqlite", folder / f"{name}.{number}")
            copies[name].append(heads[name])


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes long
@given(st.data())
def test_an_honest_site_is_never_refused_and_an_old_copy_is(data: st.DataObject) -> None:
    with TemporaryDirectory() as place:
        folder, copies = Path(place), {name: list[int]() for name in NAMES}
        years(data, folder, copies)
        with ExitStack() as stack:
            memories = {name: stack.enter_context(memory) for name, memory in files(folder).items()}
            Federation(NAMES, memories=memories)  # after all that, everybody goes on together
        victim = data.draw(st.sampled_from(NAMES))
        number = data.draw(st.integers(0, len(copies[victim]) - 1))
        shutil.copy(folder / f"{victim}.{number}", folder / f"{victim}.sqlite")
        with refused("ROLLBACK"):  # the site's own anchor
            RevealMemory(folder / f"{victim}.sqlite", Anchor(folder / f"{victim}.anchor"))
        with ExitStack() as stack:
            memories = {name: stack.enter_context(memory) for name, memory in files(folder, anchored=False).items()}
            federation = Federation(NAMES, memories=memories, begin=False)
            for name, site in federation.sites.items():
                federation.server.join(name, site.join())
            roster = federation.server.begin(NAMES)
            had = copies[victim][number]
            told = max((memories[name].peer(victim) or (0, b""))[0] for name in NAMES if name != victim)
            owed = {name: told if name == victim else known(memories[name], victim) for name in NAMES}
            for name, site in federation.sites.items():
                if owed[name] > had:
                    with refused("ROLLBACK"):
                        site.begin(roster)
                else:  # nothing has left since, for all that this site was shown
                    site.begin(roster)


def test_the_count_is_exact_where_a_session_brings_no_news_of_others(tmp_path: Path) -> None:
    """One event more and it would be too many: the session's own, the step's, and nothing else has been written."""
    first, others = NAMES[0], NAMES[1:]
    memories = files(tmp_path)
    for begins in ((first,), NAMES):  # the first time only one begins: it has written down what it heard of the others
        federation = Federation(NAMES, memories=memories, begin=False)
        before = memories[first].head[0]
        for name, site in federation.sites.items():
            federation.server.join(name, site.join())
        roster = federation.server.begin(NAMES)
        for name in begins:
            federation.sites[name].begin(roster)
    assert memories[first].head[0] == before + 1
    values = vectors(NAMES)
    federation.upload(federation.to_upload(), {name: values[name] for name in others})
    assert {known(memories[name], first) for name in others} == {before + 2} == {memories[first].head[0]}
    for memory in memories.values():
        memory.close()


def test_a_count_that_is_too_high_would_lock_an_honest_site_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the property above would find: one event too many, and a site that crashed before its next one is out."""
    right = JoinedSite._remember_active

    def wrong(site: JoinedSite) -> None:
        for one in site._proven.values():
            one.begun += 9
        right(site)

    monkeypatch.setattr(JoinedSite, "_remember_active", wrong)
    memories = files(tmp_path)
    federation = Federation(NAMES, memories=memories)
    federation.upload(federation.to_upload(), {NAMES[0]: vectors(NAMES)[NAMES[0]]})
    with pytest.raises(AssertionError):
        verify_nobody_is_owed_more(memories)
    with refused("ROLLBACK", "where it had"):
        Federation(NAMES, memories=memories)
    for memory in memories.values():
        memory.close()


@pytest.mark.parametrize("named", [True, False])
def test_two_projects_may_share_a_store_and_names(named: bool, tmp_path: Path) -> None:
    """One hospital is in both; the others of the second are others, by the names of the first."""
    for project, sessions in (("one/", 2), ("two/", 1)):
        shared = RevealMemory(tmp_path / "shared.sqlite", project=project if named else "")
        with ExitStack() as stack:
            memories = {name: RevealMemory(tmp_path / f"{project[:3]}-{name}.sqlite") for name in NAMES[1:]}
            memories[NAMES[0]] = shared
            for memory in memories.values():
                stack.enter_context(memory)
            for _ in range(sessions):
                federation = Federation(NAMES, memories=memories, begin=False)
                for name, site in federation.sites.items():
                    federation.server.join(name, site.join())
                roster = federation.server.begin(NAMES)
                for site in federation.sites.values():
                    if named or project == "one/":
                        site.begin(roster)
                    else:
                        with refused("ROLLBACK"):
                            site.begin(roster)
