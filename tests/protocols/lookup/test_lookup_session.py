"""What a session answers, what it refuses, and how it ends."""

import pytest
from crosscheck_case import person, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_case import CLERK, OWNER, STREETS, Clock, Office, expected, some

from protocols.errors import InputError, ProtocolAborted
from protocols.lookup import clerk as clerk_module
from protocols.lookup import plan
from protocols.lookup.owner import Bucket
from protocols.party import UNDER_WAY, Incoming, Outgoing
from protocols.psi import dleq, group, oprf
from protocols.psi.oprf import Mode
from protocols.wire import Constraints


def opened(rows=None, **params):
    return Office().session(some(10) if rows is None else rows, **params).open()


def aborts(session, code: str, *people) -> None:
    with pytest.raises(ProtocolAborted) as refused:
        session.ask(*(people or (1,)))
    assert refused.value.code == code


# answers


@settings(max_examples=12, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 20),
        st.tuples(st.sampled_from(STREETS), st.sampled_from(["a", "已婚", ""]), st.just("2025-01")),
        max_size=15,
    ),
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=9), max_size=3),
    st.booleans(),
)
def test_every_look_up_finds_what_a_plain_table_says(rows, questions, verified):
    session = Office().session(rows, verified=verified).open()
    asked = found = 0
    for people in questions:
        answer = session.rows(*people)
        assert answer == [expected(rows, number) for number in people]
        asked, found = asked + len(people), found + sum(row is not None for row in answer)
    outputs = session.close()
    (content,) = outputs[CLERK]
    assert outputs[OWNER] == ()
    assert list(content.table) == [("asked", asked), ("found", found), ("refused", 0)]


def test_a_long_question_is_cut_and_keeps_its_order(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 3)
    rows = some(30)
    session = opened(rows)
    people = [*range(25, 40), 7, 7, *range(20)]
    assert session.rows(*people) == [expected(rows, number) for number in people]
    requests = [m for m in session.sent if m.round == plan.ASK]
    assert len(requests) == -(-len(set(people)) // 3)
    assert all(len(m.body) <= 4 + 3 * 32 for m in requests)


def test_no_more_requests_are_under_way_than_may_be(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 1)
    session = opened()
    step = session.parties[CLERK].ask(1, {"keys": [person(n) for n in range(10)]})
    assert len(list(step.outgoing)) == UNDER_WAY
    assert not list(session.parties[CLERK].ask(2, {"keys": [person(11)]}).outgoing)


def test_questions_are_answered_in_turn_while_others_are_under_way():
    rows = some(10)
    session = opened(rows)
    for number in (1, 2, 3):
        step = session.parties[CLERK].ask(number, {"keys": [person(number), person(number + 8)]})
        session.take(CLERK, step)
    session.deliver()
    assert session.answers == {n: {"rows": [expected(rows, n), expected(rows, n + 8)]} for n in (1, 2, 3)}


def test_one_person_asked_twice_in_a_question_counts_once():
    session = opened(lookups=2)
    assert session.rows(1, 1, 2, 1) == [expected(some(10), n) for n in (1, 1, 2, 1)]
    assert session.ask(3)["refused"] == "lookups-exhausted"


def test_only_the_fields_that_are_asked_for_are_handed_over():
    session = opened()
    assert session.ask(1, fields=["seen"])["rows"] == [{"seen": "2025-02"}]
    assert session.ask(1, fields=["seen", "status"])["rows"] == [{"status": "married-1", "seen": "2025-02"}]


def test_a_small_x_and_blanks_find_the_person():
    number = next(n for n in range(100) if person(n).endswith("X"))
    rows = some(1, first=number)
    session = opened(rows)
    assert session.ask(f" {person(number).lower()}")["rows"] == [expected(rows, number)]


@pytest.mark.parametrize(
    "question",
    [
        None, [], {}, {"keys": []}, {"keys": "1"}, {"keys": [1]}, {"keys": [None]},
        {"keys": ["1"], "more": 1},
        {"keys": ["1"], "fields": []}, {"keys": ["1"], "fields": ["name"]}, {"keys": ["1"], "fields": "seen"},
    ],
)  # fmt: skip
def test_a_question_of_another_form_is_refused_and_costs_nothing(question):
    session = opened(lookups=1)
    with pytest.raises(InputError) as refused:
        session.parties[CLERK].ask(1, question)
    assert refused.value.code == "bad-question"
    assert session.rows(1) == [expected(some(10), 1)]


def test_ids_that_are_none_are_counted_and_never_named_and_nothing_is_sent():
    session = opened(lookups=3)
    before = len(session.sent)
    with pytest.raises(InputError) as refused:
        session.ask(1, "990101195001010011", "secret", 2, "\ud800")
    assert refused.value.code == "bad-keys"
    with pytest.raises(InputError) as refused:
        session.ask(1, "990101195001010011", "secret", 2)
    assert refused.value.code == "bad-keys"
    assert "2 of 4" in str(refused.value)
    assert "secret" not in str(refused.value) + refused.value.hint
    assert "990101195001010011" not in str(refused.value)
    assert len(session.sent) == before
    assert session.rows(1, 2, 3) == [expected(some(10), n) for n in (1, 2, 3)]


def test_at_the_owners_node_nobody_asks():
    with pytest.raises(InputError) as refused:
        opened().parties[OWNER].ask(1, {"keys": [person(1)]})
    assert refused.value.code == "no-questions-here"


def test_before_the_table_is_here_a_question_is_refused_and_the_party_goes_on():
    session = Office().session(some(3))
    session.take(OWNER, session.parties[OWNER].start())
    session.take(CLERK, session.parties[CLERK].start())
    with pytest.raises(InputError) as refused:
        session.parties[CLERK].ask(1, {"keys": [person(1)]})
    assert refused.value.code == "not-ready"
    assert session.deliver().rows(1) == [expected(some(3), 1)]


# limits


def test_a_question_beyond_the_limit_is_refused_whole_and_sends_nothing():
    session = opened(lookups=5)
    assert session.rows(1, 2, 3) == [expected(some(10), n) for n in (1, 2, 3)]
    before = len(session.sent)
    answer = session.ask(4, 5, 6)
    assert answer["refused"] == "lookups-exhausted"
    assert answer["sentence"]
    assert len(session.sent) == before
    assert session.rows(4, 5) == [expected(some(10), n) for n in (4, 5)]
    assert session.ask(6)["refused"] == "lookups-exhausted"


def test_more_in_a_minute_than_allowed_wait():
    session = opened(constraints=Constraints(max_rows=500, max_per_minute=6))
    assert session.rows(*range(6)) == [expected(some(10), n) for n in range(6)]
    answer = session.ask(7)
    assert (answer["refused"], answer["wait_s"]) == ("rate-exceeded", 11)
    session.clock.now += answer["wait_s"]
    assert session.rows(7) == [expected(some(10), 7)]
    assert session.ask(8)["refused"] == "rate-exceeded"
    session.clock.now += 3600
    assert session.ask(*range(7))["refused"] == "rate-exceeded"
    assert session.rows(*range(6))[0] == expected(some(10), 0)


class Unlimited(Bucket):
    def take(self, count: int) -> int:
        return 0


def careless(session):
    """Return a session whose clerk's node does not count."""
    party = session.parties[CLERK]
    party._left, party._bucket = 10**6, Unlimited(None, session.clock)
    return session


def test_the_owner_counts_by_itself_and_its_refusal_does_not_end_the_session(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 2)
    rows = some(10)
    session = careless(opened(rows, constraints=Constraints(max_rows=500, max_per_minute=6), lookups=9))
    assert session.rows(1, 2, 3) == [expected(rows, n) for n in (1, 2, 3)]
    answer = session.ask(4, 5, 6, 7, 8, 9, 1, 2, 3)
    assert answer["refused"] == "rate-exceeded"
    assert 0 < answer["wait_s"] <= 30
    session.clock.now += 60
    assert session.ask(4, 5, 6, 7)["refused"] == "lookups-exhausted"
    refusals = [r for r in session.records[OWNER] if r["event"] == "lookup-refused"]
    assert {r["code"] for r in refusals} == {"rate-exceeded", "lookups-exhausted"}
    answered = sum(r["lookups"] for r in session.records[OWNER] if r["event"] == "lookup-answered")
    assert answered <= 9
    outputs = session.close()
    assert set(outputs) == {OWNER, CLERK}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.floats(0, 90), st.integers(1, 70)), max_size=30),
)
def test_in_no_minute_more_pass_than_a_full_bucket_and_a_minutes_refill(most, steps):
    clock = Clock()
    bucket, passed = Bucket(most, clock), []
    for wait, count in steps:
        clock.now += wait
        left = bucket.take(count)
        if not left:
            passed.append((clock.now, count))
        elif count <= most:
            clock.now += left
            assert not bucket.take(count)
            passed.append((clock.now, count))
    for start, _ in passed:
        assert sum(count for at, count in passed if start <= at <= start + 60) <= 2 * most + 1


# records


def test_each_request_is_recorded_before_its_answer_leaves_and_nobody_is_named():
    session = opened()
    owner, clerk = session.parties[OWNER], session.parties[CLERK]
    step = clerk.ask(1, {"keys": [person(1), person(77)]})
    assert step.record is None
    (request,) = step.outgoing
    step = owner.receive(Incoming(CLERK, request.round, request.body, request.last))
    assert step.record == {"event": "lookup-answered", "request": 1, "lookups": 2}
    assert len(tuple(step.outgoing)) == 1
    (reply,) = step.outgoing
    step = clerk.receive(Incoming(OWNER, reply.round, reply.body, reply.last))
    assert step.record == {"event": "lookup-asked", "question": 1, "lookups": 2, "found": 1}
    assert [answer.number for answer in step.answers] == [1]


def test_a_refused_question_is_recorded_too():
    session = opened(lookups=1)
    session.ask(1, 2)
    assert session.records[CLERK][-1] == {
        "event": "lookup-refused", "question": 1, "lookups": 2, "code": "lookups-exhausted"
    }  # fmt: skip


def test_the_table_is_charged_before_anything_of_it_leaves():
    session = Office().session(some(3))
    owner, steps = session.parties[OWNER], []
    owner.start()
    steps.append(owner.receive(Incoming(CLERK, plan.HAVE, b"")))
    assert not steps[0].answering
    steps.append(owner.receive(Incoming(CLERK, plan.GO_ON, b"")))
    assert steps[1].answering
    assert steps[1].record["event"] == "table-sent"
    assert [m.round for m in steps[1].outgoing] == [plan.OFFER, plan.ROWS]


# malformed messages


def changed(session, number, make):
    """Have the messages of a round changed on the way."""

    def change(_role, message):
        if message.round != number or not message.body:
            return message
        return Outgoing(message.to, message.round, make(message.body), message.last)

    session.change = change
    return session


def test_an_evaluation_with_another_key_is_refused():
    other = oprf.derive_key_pair(bytes(32), b"other", Mode.VOPRF)

    def wrong(body: bytes) -> bytes:
        points = group.points(body[5:-64])
        raised = group.power(points, other.secret)
        proof = dleq.prove(
            other.secret, group.BASE, other.public, points, raised, oprf.context(Mode.VOPRF), seeded(1)
        )
        return body[:5] + raised.tobytes() + proof

    aborts(changed(opened(), plan.EVALUATED, wrong), "bad-proof")


@pytest.mark.parametrize("at", [-1, -40])
def test_a_proof_that_was_changed_is_refused(at):
    def wrong(body: bytes) -> bytes:
        spoilt = bytearray(body)
        spoilt[at] ^= 1
        return bytes(spoilt)

    aborts(changed(opened(), plan.EVALUATED, wrong), "bad-proof")


def test_evaluations_that_changed_places_are_refused():
    session = changed(opened(), plan.EVALUATED, lambda body: body[:5] + body[37:69] + body[5:37] + body[69:])
    aborts(session, "bad-proof", 1, 2)


BAD_POINTS = {
    "identity": bytes(32), "not canonical": b"\xff" * 31 + b"\x7f", "top bit": group.BASE[:-1] + b"\xf6"
}  # fmt: skip


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("point", BAD_POINTS.values(), ids=BAD_POINTS)
@pytest.mark.parametrize(("number", "start"), [(plan.ASK, 4), (plan.EVALUATED, 5)])
def test_a_malformed_element_ends_the_session(number, start, point, verified):
    session = opened(verified=verified)
    aborts(changed(session, number, lambda body: body[:start] + point + body[start + 32 :]), "bad-point")


@pytest.mark.parametrize(
    ("number", "make", "code"),
    [
        (plan.ASK, lambda body: body[:-1], "bad-length"),
        (plan.ASK, lambda body: body[:4], "bad-length"),
        (plan.ASK, lambda body: body[:3], "bad-length"),
        (plan.ASK, lambda body: body + group.BASE * plan.MAX_ASK, "too-many-items"),
        (plan.EVALUATED, lambda body: body[:-1], "bad-length"),
        (plan.EVALUATED, lambda body: body[:-32], "bad-length"),
        (plan.EVALUATED, lambda body: body[:5] + group.BASE + body[5:], "bad-length"),
        (plan.EVALUATED, lambda body: body[:4], "unexpected-message"),
        (plan.EVALUATED, lambda body: b"\0\0\0\7" + body[4:], "unexpected-message"),
        (plan.EVALUATED, lambda body: body[:4] + b"\x09" + body[5:], "bad-length"),
        (plan.EVALUATED, lambda body: body[:4] + b"\1", "bad-length"),
    ],
)
def test_a_request_or_answer_of_another_size_ends_the_session(number, make, code):
    aborts(changed(opened(), number, make), code)


def test_without_proofs_none_is_sent_and_none_accepted():
    session = opened(verified=False)
    assert session.rows(1) == [expected(some(10), 1)]
    assert len(session.bodies(plan.EVALUATED)) == 5 + 32
    aborts(changed(session, plan.EVALUATED, lambda body: body + bytes(64)), "bad-length")


@pytest.mark.parametrize(
    ("number", "make", "code"),
    [
        (plan.BUILT, lambda body: body[:-1], "bad-length"),
        (plan.BUILT, lambda body: body[:-1] + b"\x7f", "bad-length"),
        (plan.OFFER, lambda body: body[:-1], "not-json"),
        (plan.OFFER, lambda body: body.replace(b'"sent":10', b'"sent":11'), "bad-offer"),
        (plan.OFFER, lambda body: body.replace(b'"rows":10', b'"rows":9').replace(b'"sent":10', b'"sent":9'),
         "wrong-table"),
        (plan.OFFER, lambda body: body.replace(b'"mode":1', b'"mode":0'), "wrong-table"),
        (plan.OFFER, lambda body: body.replace(b'"status"', b'"salary"'), "wrong-table"),
        (plan.ROWS, lambda body: body[:-1], "bad-length"),
        (plan.ROWS, lambda body: body[:-68], "bad-length"),
        (plan.ROWS, lambda body: body[68:] + body[:68], "bad-table"),
        (plan.ROWS, lambda body: body[:68] + body[:68] + body[136:], "bad-table"),
        (plan.ROWS, lambda body: body[:15] + bytes([body[15] ^ 1]) + body[16:], "bad-table"),
        (plan.HELD, lambda body: body[::-1], "bad-length"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_the_one_offered_is_refused(number, make, code):
    office = Office()
    with pytest.raises(ProtocolAborted) as refused:
        changed(office.session(some(10)), number, make).open()
    assert refused.value.code == code
    if number in (plan.ROWS, plan.OFFER):
        assert not office.clerk.names()
    assert office.session(some(10)).open().rows(1) == [expected(some(10), 1)]


def test_an_owner_notices_a_clerk_that_holds_another_table_than_it_was_given():
    office = Office()
    session = changed(
        office.session(some(10)),
        plan.OFFER,
        lambda body: body.replace(b'"key_version":1', b'"key_version":2'),
    )
    with pytest.raises(ProtocolAborted) as refused:
        session.open()
    assert refused.value.code == "bad-length"
    assert not [name for name in office.owner.names() if name.startswith("last.")]


def test_a_clerk_that_names_its_table_in_another_form_is_refused():
    office = Office()
    office.session(some(10)).open()
    with pytest.raises(ProtocolAborted) as refused:
        changed(office.session(some(10)), plan.HAVE, lambda body: body[:-1]).open()
    assert refused.value.code == "bad-length"


@pytest.mark.parametrize(
    ("number", "make", "code"),
    [
        (plan.REMOVED, lambda body: body[:-1], "bad-length"),
        (plan.REMOVED, lambda body: body[12:] + body[:12], "bad-table"),
        (plan.REMOVED, lambda body: body[:11] + bytes([body[11] ^ 1]) + body[12:], "bad-table"),
        (plan.ROWS, lambda body: body[:15] + bytes([body[15] ^ 1]) + body[16:], "bad-table"),
        (plan.OFFER, lambda body: body.replace(b'"key_version":1', b'"key_version":2'), "wrong-key-version"),
        (plan.OFFER, lambda body: body.replace(b'"width":32', b'"width":64'), "wrong-key-version"),
        (plan.OFFER, lambda body: body.replace(b'"removed":2', b'"removed":1'), "bad-length"),
    ],
)
def test_a_change_that_does_not_lead_to_the_table_offered_leaves_the_old_one(number, make, code):
    office, rows = Office(), some(10)
    office.session(rows).open()
    before = dict(office.clerk.blobs)
    later = {n: row for n, row in rows.items() if n > 1} | some(3, first=20)
    session = changed(office.session(later), number, make)
    with pytest.raises(ProtocolAborted) as refused:
        session.open()
    assert refused.value.code == code
    assert office.clerk.blobs == before
    assert office.session(later).open().rows(0, 1, 2, 20) == [
        None, None, expected(later, 2), expected(later, 20)
    ]  # fmt: skip


def test_a_keep_of_another_table_is_refused():
    office, rows = Office(), some(10)
    office.session(rows).open()
    session = changed(
        office.session(rows), plan.OFFER, lambda body: body.replace(b'"version":1', b'"version":2')
    )
    with pytest.raises(ProtocolAborted) as refused:
        session.open()
    assert refused.value.code == "wrong-key-version"


def test_a_keep_without_a_table_is_refused():
    office, rows = Office(), some(10)
    office.session(rows).open()
    session = office.session(rows)
    session.take(OWNER, session.parties[OWNER].start())
    session.take(CLERK, session.parties[CLERK].start())
    office.clerk.blobs.clear()
    with pytest.raises(ProtocolAborted) as refused:
        session.deliver()
    assert refused.value.code == "wrong-key-version"


@pytest.mark.parametrize("number", range(12))
def test_messages_that_have_no_place_are_refused(number):
    for role, other in ((OWNER, CLERK), (CLERK, OWNER)):
        session = opened()
        if (role, number) in ((OWNER, plan.ASK), (CLERK, plan.EVALUATED)):
            continue
        for sender in (other, "someone"):
            with pytest.raises(ProtocolAborted) as refused:
                session.parties[role].receive(Incoming(sender, number, b"x"))
            assert refused.value.code == "unexpected-message"


def test_an_answer_that_nobody_asked_for_is_refused():
    session = opened()
    for body, last in ((b"\0\0\0\1\0", False), (b"", True), (b"x", True)):
        with pytest.raises(ProtocolAborted) as refused:
            session.parties[CLERK].receive(Incoming(OWNER, plan.EVALUATED, body, last))
        assert refused.value.code == "unexpected-message"


# the end


@pytest.mark.parametrize("role", [OWNER, CLERK])
def test_either_side_ends_the_session_in_good_order(role):
    session = opened()
    session.rows(1)
    outputs = session.close(role)
    assert set(outputs) == {OWNER, CLERK}
    with pytest.raises(InputError) as refused:
        session.parties[CLERK].ask(9, {"keys": [person(1)]})
    assert refused.value.code == "session-closed"
    assert (CLERK, plan.ASK) in session.ended
    assert (OWNER, plan.EVALUATED) in session.ended


@pytest.mark.parametrize("role", [OWNER, CLERK])
def test_a_session_that_is_closed_before_the_table_is_here_ends_after_it(role):
    session = Office().session(some(3))
    for each, party in session.parties.items():
        session.take(each, party.start())
    session.take(role, session.parties[role].close())
    session.take(role, session.parties[role].close())
    session.deliver()
    assert set(session.outputs) == {OWNER, CLERK}


def test_what_is_under_way_is_answered_before_the_end(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 1)
    rows = some(10)
    session = opened(rows)
    session.take(CLERK, session.parties[CLERK].ask(1, {"keys": [person(n) for n in range(9)]}))
    session.take(CLERK, session.parties[CLERK].close())
    session.deliver()
    assert session.answers[1] == {"rows": [expected(rows, n) for n in range(9)]}
    assert set(session.outputs) == {OWNER, CLERK}


def test_an_owner_that_closes_refuses_what_is_still_to_come(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 1)
    session = opened()
    session.take(CLERK, session.parties[CLERK].ask(1, {"keys": [person(n) for n in range(9)]}))
    session.take(OWNER, session.parties[OWNER].close())
    session.deliver()
    assert session.answers[1]["refused"] == "session-closed"
    assert set(session.outputs) == {OWNER, CLERK}


def test_both_may_close_at_once():
    session = opened()
    session.take(CLERK, session.parties[CLERK].close())
    session.take(OWNER, session.parties[OWNER].close())
    session.deliver()
    assert set(session.outputs) == {OWNER, CLERK}


def test_the_release_is_the_counts_alone():
    session = opened(lookups=4)
    session.rows(1, 2, 50)
    session.ask(3, 4)
    (content,) = session.close()[CLERK]
    assert list(content.table) == [("asked", 5), ("found", 2), ("refused", 2)]
    assert content.name == "session"
