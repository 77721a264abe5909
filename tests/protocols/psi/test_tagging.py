"""Two-key tagging: the same person gets the same tag everywhere, whatever the route, chunks and keys."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.party import Finished, Incoming, Outgoing, Sent, Step, Waiting, run
from protocols.psi import group, tagging
from protocols.psi.tagging import Plan, Tagged, Tagging, check_chunk

VECTORS = json.loads((Path(__file__).parents[3] / "tests/vectors/tags.json").read_text())
OWNERS = tuple(Role(name) for name in ("register", "source-1", "source-2", "source-3"))


class Owner:
    """A party that does nothing but tag its list."""

    def __init__(self, plan: Plan, role: Role, keys: Sequence[bytes], seed: object = 0) -> None:
        self.tagging = Tagging(plan, role, np.array(keys, dtype="S24"), seeded(f"{seed}/{role}"))

    def start(self) -> Step:
        return Waiting(self.tagging.start())

    def receive(self, message: Incoming) -> Step:
        outgoing = self.tagging.receive(message)
        if self.tagging.tagged is not None and not self.tagging.serving:
            return Finished(outgoing, self.tagging.tagged)
        return Waiting(outgoing)


def plan_of(lists: Sequence[Sequence[bytes]], second: int = 1) -> Plan:
    return Plan(OWNERS[: len(lists)], (OWNERS[0], OWNERS[second]), tuple(len(each) for each in lists), CTX)


def play(
    lists: Sequence[Sequence[bytes]], observe: Callable[[Sent], None] | None = None, second: int = 1
) -> list[Tagged]:
    plan = plan_of(lists, second)
    parties = {role: Owner(plan, role, keys) for role, keys in zip(plan.owners, lists, strict=True)}
    outputs = run(parties, observe=observe)
    return [outputs[role] for role in plan.owners]


def by_key(keys: Sequence[bytes], tagged: Tagged) -> dict[bytes, bytes]:
    return {keys[row]: tag for row, tag in zip(tagged.order.tolist(), tagged.tags.tolist(), strict=True)}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(tagging, "CHUNK_POINTS", 4)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.sets(st.binary(min_size=1, max_size=24).filter(lambda b: b[-1]), min_size=1, max_size=20),
        min_size=3,
        max_size=4,
    ),
    st.sampled_from([1, 2]),
)
def test_equal_keys_get_equal_tags_and_different_keys_different_ones(sets, second):
    lists = [sorted(each) for each in sets]
    found: dict[bytes, set[bytes]] = {}
    for keys, tagged in zip(lists, play(lists, second=second), strict=True):
        assert tagged.tags.tolist() == sorted(tagged.tags.tolist())
        assert (tagging.tags(tagged.values) == tagged.tags).all()
        for key, tag in by_key(keys, tagged).items():
            found.setdefault(key, set()).add(tag)
    assert all(len(tags) == 1 for tags in found.values())
    assert len(set().union(*found.values())) == len(found)


def test_tags_are_those_of_the_vectors():
    keys = [case["typed_key"].encode() for case in VECTORS["cases"]]
    hashed = group.hash_to_group(keys, b"minshu/tag/1" + bytes.fromhex(VECTORS["ctx"]))
    values = group.power(group.power(hashed, bytes.fromhex(VECTORS["k1"])), bytes.fromhex(VECTORS["k2"]))
    tags = tagging.tags(values)
    for number, case in enumerate(VECTORS["cases"]):
        assert hashed[number].tobytes().hex() == case["hashed"]
        assert values[number].tobytes().hex() == case["value"]
        assert tags[number : number + 1].tobytes().hex() == case["tag"]


@pytest.mark.parametrize("role", range(3))
def test_a_party_ends_with_the_vectors_tags_whichever_seat_it_has(role, monkeypatch):
    keys = [case["typed_key"].encode() for case in VECTORS["cases"][:3]]
    lists: list[list[bytes]] = [[b"other"], [b"another"], [b"third"]]
    lists[role] = keys
    drawn = {OWNERS[0]: "k1", OWNERS[1]: "k2"}
    plan = plan_of(lists)
    parties = {owner: Owner(plan, owner, items) for owner, items in zip(plan.owners, lists, strict=True)}
    for owner, name in drawn.items():
        mine = parties[owner].tagging
        mine._key = bytes.fromhex(VECTORS[name])
        mine._unblind = group.multiply(mine._key, group.invert(mine._blind))
    tagged = run(parties)[OWNERS[role]]
    assert {key: tag.hex() for key, tag in by_key(keys, tagged).items()} == {
        case["typed_key"].encode(): case["tag"] for case in VECTORS["cases"][:3]
    }


def test_a_list_skips_its_own_key_holder(small_chunks):
    lists = [[b"a%d" % i for i in range(9)] for _ in range(3)]
    hops: Counter[tuple[str, str]] = Counter()
    play(lists, lambda sent: hops.update([(sent.sender, sent.to)]))
    register, source, other = OWNERS[:3]
    # 3 chunks each: the register's own and source-1's own cross once each way, source-2's makes three hops.
    assert hops == {
        (register, source): 3 + 3 + 3,
        (source, register): 3 + 3,
        (other, register): 3,
        (source, other): 3,
    }


def test_a_holder_keeps_no_more_than_the_window_under_way(small_chunks):
    lists = [[b"r"], [b"s"], [b"x%d" % i for i in range(100)]]
    under_way = deepest = 0

    def observe(sent: Sent) -> None:
        nonlocal under_way, deepest
        under_way += (sent.sender == OWNERS[2]) - (sent.to == OWNERS[2])
        deepest = max(deepest, under_way)

    tagged = play(lists, observe)[2]
    assert deepest == tagging.UNDER_WAY
    assert sorted(tagged.order.tolist()) == list(range(100))


def test_the_order_sent_is_not_the_order_of_the_list():
    plan = plan_of([[b"r"], [b"s"], [b"x%d" % i for i in range(50)]])
    owner = Owner(plan, OWNERS[2], [b"x%d" % i for i in range(50)])
    assert owner.tagging._own._order.tolist() != list(range(50))
    assert sorted(owner.tagging._own._order.tolist()) == list(range(50))


def test_two_attempts_share_no_point():
    lists = [[b"r1", b"r2"], [b"s1"], [b"x1", b"x2"]]
    plan = plan_of(lists)
    seen: list[set[bytes]] = []
    for seed in (1, 2):
        points: set[bytes] = set()

        def observe(sent: Sent, points: set[bytes] = points) -> None:
            points.update(sent.body[at : at + 32] for at in range(0, len(sent.body), 32))

        run(
            {role: Owner(plan, role, keys, seed) for role, keys in zip(plan.owners, lists, strict=True)},
            observe=observe,
        )
        seen.append(points)
    assert seen[0].isdisjoint(seen[1])


def first_message(owner: Owner) -> Outgoing:
    return next(iter(owner.start().outgoing))


def key_holder(count: int) -> tuple[Owner, Outgoing]:
    """The register as first key-holder, and source-2's honest first chunk to it."""
    keys = [b"x%d" % i for i in range(count)]
    lists = [[b"r"], [b"s"], keys]
    plan = plan_of(lists)
    return Owner(plan, OWNERS[0], lists[0]), first_message(Owner(plan, OWNERS[2], keys))


def refused(owner: Owner, *messages: Incoming) -> str:
    *before, last = messages
    for message in before:
        owner.receive(message)
    with pytest.raises(ProtocolAborted) as aborted:
        owner.receive(last)
    return aborted.value.code


def test_a_key_holder_refuses_more_points_than_admitted():
    owner, honest = key_holder(3)
    assert (
        refused(owner, Incoming(OWNERS[2], honest.round, honest.body + honest.body[:32])) == "too-many-items"
    )


def test_a_key_holder_refuses_fewer_points_than_admitted():
    owner, honest = key_holder(3)
    assert refused(owner, Incoming(OWNERS[2], honest.round, honest.body[:64])) == "too-few-items"


def test_a_key_holder_refuses_a_stream_that_does_not_end_where_it_must():
    owner, honest = key_holder(3)
    assert refused(owner, Incoming(OWNERS[2], honest.round, honest.body, last=False)) == "bad-length"


def test_a_key_holder_refuses_chunks_of_another_size(small_chunks):
    owner, honest = key_holder(9)
    assert refused(owner, Incoming(OWNERS[2], honest.round, honest.body[:96], last=False)) == "bad-length"


def test_a_key_holder_refuses_half_a_point():
    owner, honest = key_holder(3)
    assert refused(owner, Incoming(OWNERS[2], honest.round, honest.body[:-1])) == "bad-length"


def test_a_key_holder_refuses_the_identity():
    owner, honest = key_holder(3)
    assert refused(owner, Incoming(OWNERS[2], honest.round, bytes(32) + honest.body[32:])) == "bad-point"


def test_a_key_holder_refuses_a_replayed_stream():
    owner, honest = key_holder(3)
    message = Incoming(OWNERS[2], honest.round, honest.body)
    assert refused(owner, message, message) == "too-many-items"


@pytest.mark.parametrize(
    ("sender", "number"),
    [
        (OWNERS[1], 1 << 8 | 2),  # another's list
        (OWNERS[2], 2 << 8 | 2),  # a hop that does not lead here
        (OWNERS[2], 3 << 8 | 2),
        (OWNERS[2], 1 << 8 | 7),  # no such list
        (OWNERS[2], 1 << 8 | 0),  # the register's own list, from somebody it never passes
        (OWNERS[1], 3 << 8 | 0),  # a third hop of a list that has two
    ],
)
def test_a_message_on_no_route_is_refused(sender, number):
    owner, honest = key_holder(3)
    assert refused(owner, Incoming(sender, number, honest.body)) == "unexpected-message"


def test_a_chunk_that_was_never_sent_cannot_come_back(small_chunks):
    plan = plan_of([[b"r"], [b"s"], [b"x%d" % i for i in range(9)]])
    holder = Owner(plan, OWNERS[2], [b"x%d" % i for i in range(9)])
    body = group.BASE * 4
    assert refused(holder, Incoming(OWNERS[1], 3 << 8 | 2, body, last=False)) == "unexpected-message"


def test_a_list_that_changed_since_admission_is_not_tagged():
    with pytest.raises(ProtocolAborted) as aborted:
        Owner(plan_of([[b"r"], [b"s"], [b"x"]]), OWNERS[2], [b"x", b"y"])
    assert aborted.value.code == "count-changed"


@given(st.integers(0, 40), st.integers(1, 8), st.data())
def test_only_one_cut_of_a_stream_is_accepted(count, chunk, data):
    seen = 0
    for start in range(0, count, chunk):
        found = min(chunk, count - start)
        check_chunk(seen, found, count, chunk, last=start + found == count)
        wrong, last = data.draw(st.tuples(st.integers(0, 50), st.booleans()))
        if (wrong, last) != (found, start + found == count):
            with pytest.raises(ProtocolAborted):
                check_chunk(seen, wrong, count, chunk, last=last)
        seen += found
