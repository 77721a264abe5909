"""What a session answers, what it refuses, and how it ends."""

from dataclasses import replace

import pytest
from crosscheck_case import person, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_case import CLERK, OWNER, STREETS, Clock, Office, expected, some

from protocols.errors import InputError, ProtocolAborted
from protocols.lookup import build, plan
from protocols.lookup import clerk as clerk_module
from protocols.lookup.pace import Minute
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
        assert session.rows(*people) == [expected(rows, number) for number in people]
        asked += len(set(people))
        found += sum(expected(rows, number) is not None for number in set(people))
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
    assert (answer["refused"], answer["fits"]) == ("too-many-items", 2)
    assert "2" in answer["sentence"]
    assert len(session.sent) == before
    assert session.rows(4, 5) == [expected(some(10), n) for n in (4, 5)]
    assert session.ask(6)["refused"] == "lookups-exhausted"


def test_more_in_a_minute_than_allowed_wait():
    session = opened(constraints=Constraints(max_rows=500, max_per_minute=6))
    assert session.rows(*range(6)) == [expected(some(10), n) for n in range(6)]
    answer = session.ask(7)
    assert answer["refused"] == "rate-exceeded"
    assert 60 <= answer["wait_s"] <= 62
    session.clock.now += 50
    assert session.ask(7)["refused"] == "rate-exceeded"
    session.clock.now += answer["wait_s"] - 50
    assert session.rows(7) == [expected(some(10), 7)]
    assert session.rows(8) == [expected(some(10), 8)]


def test_a_question_that_never_fits_into_a_minute_says_how_many_do():
    session = opened(constraints=Constraints(max_rows=500, max_per_minute=6))
    before = len(session.sent)
    answer = session.ask(*range(7))
    assert (answer["refused"], answer["fits"]) == ("too-many-items", 6)
    assert len(session.sent) == before
    assert session.rows(*range(6))[0] == expected(some(10), 0)


class Unlimited(Minute):
    def take(self, count: int, most: int) -> int:
        return 0


def careless(session):
    """Return a session whose clerk's node does not count."""
    party = session.parties[CLERK]
    party._left, party._minute = 10**6, Unlimited(session.clock)
    party._lookup = replace(party._lookup, per_minute=None)
    return session


def test_the_owner_counts_by_itself_and_its_refusal_does_not_end_the_session(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 2)
    rows = some(10)
    session = careless(opened(rows, constraints=Constraints(max_rows=500, max_per_minute=6), lookups=9))
    assert session.rows(1, 2, 3) == [expected(rows, n) for n in (1, 2, 3)]
    answer = session.ask(4, 5, 6, 7, 8, 9, 1, 2, 3)
    assert answer["refused"] == "rate-exceeded"
    assert 0 < answer["wait_s"] <= 61
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
def test_in_no_minute_more_pass_than_are_allowed_and_who_waits_as_told_passes(most, steps):
    clock = Clock()
    minute, passed = Minute(clock), []
    for wait, count in steps:
        clock.now += wait
        left = minute.take(count, most)
        if not left:
            passed.append((clock.now, count))
        elif count <= most:
            assert 0 < left <= 62
            clock.now += left
            assert not minute.take(count, most)
            passed.append((clock.now, count))
    for start, _ in passed:
        assert sum(count for at, count in passed if start <= at < start + 60) <= most


def test_a_minute_takes_little_memory_however_many_pass():
    clock = Clock()
    minute = Minute(clock)
    for _ in range(5000):
        clock.now += 0.013
        assert not minute.take(1, 10**6)
    assert len(minute._passed) <= 601


def test_the_first_minute_is_a_minute_like_any_other():
    session = careless(opened(constraints=Constraints(max_rows=500, max_per_minute=5)))
    answered = 0
    while session.clock.now < 1060:
        answered += "rows" in session.ask(1)
        session.clock.now += 1.9
    assert answered == 5


def test_two_sessions_of_one_requester_share_the_rate_and_another_requester_has_its_own():
    limits, rows = Constraints(max_rows=500, max_per_minute=6), some(10)
    office, clock = Office(), Clock()
    first, second = (office.session(rows, constraints=limits, clock=clock).open() for _ in range(2))
    spec = replace(first.spec, requester="sha256:" + "1" * 64)
    other = office.session(rows, constraints=limits, clock=clock, spec=spec).open()
    assert first.rows(0, 1, 2, 3) == [expected(rows, n) for n in range(4)]
    answer = second.ask(4, 5, 6)
    assert answer["refused"] == "rate-exceeded"
    assert 0 < answer["wait_s"] <= 61
    assert second.records[OWNER][-1]["code"] == "rate-exceeded"
    assert second.rows(4, 5) == [expected(rows, n) for n in (4, 5)]
    assert len(other.rows(*range(6))) == 6
    second.close()
    again = office.session(rows, constraints=limits, clock=clock).open()
    assert again.ask(1)["refused"] == "rate-exceeded"
    clock.now += 61
    assert again.rows(1) == [expected(rows, 1)]


# the owner's own time, and refusals


@pytest.mark.parametrize("late", [False, True])
def test_the_owner_ends_a_session_whose_clerk_does_not(late):
    session = opened(session_s=60)
    session.clock.now += 119 + 2 * late
    answer = session.ask(1)
    assert answer.get("refused") == ("session-closed" if late else None)
    assert (set(session.outputs) == {OWNER, CLERK}) is late


def test_a_table_that_takes_longer_than_the_session_serves_nobody():
    session = Office().session(some(3), session_s=60)
    session.clock.now += 121
    session.open()
    assert session.ask(1)["refused"] == "session-closed"
    assert not [r for r in session.records[OWNER] if r["event"] == "lookup-answered"]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_request_out_of_turn_ends_the_session(number):
    session = opened()
    session.rows(1)
    aborts(
        changed(session, plan.ASK, lambda body: number.to_bytes(4, "big") + body[4:]),
        "unexpected-message", 2,
    )  # fmt: skip


def test_after_a_hundred_refusals_the_session_ends_and_then_nothing_more_is_recorded():
    session = opened(lookups=1)
    owner = session.parties[OWNER]
    element = oprf.blind([b"x"], Mode.VOPRF, seeded(1)).elements.tobytes()

    def request(number):
        return owner.receive(Incoming(CLERK, plan.ASK, number.to_bytes(4, "big") + element, last=False))

    most = 1 + plan.MAX_REFUSALS + UNDER_WAY
    steps = [request(number) for number in range(1, most + 1)]
    with pytest.raises(ProtocolAborted) as refused:
        request(most + 1)
    assert refused.value.code == "too-many-refusals"
    assert [step.record["event"] for step in steps] == ["lookup-answered", *["lookup-refused"] * (most - 1)]
    replies = [message.body for step in steps for message in step.outgoing]
    assert replies.count(bytes(4) + bytes([plan.CLOSING])) == 1


def test_a_clerk_whose_requests_are_refused_too_often_ends_in_good_order():
    session = careless(opened(lookups=1))
    session.rows(1)
    for _ in range(plan.MAX_REFUSALS):
        assert session.ask(2)["refused"] == "lookups-exhausted"
    assert set(session.outputs) == {OWNER, CLERK}


def test_questions_that_still_wait_when_the_owner_closes_are_answered_without_being_sent(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 1)
    session = opened()
    for number in range(1, 9):
        session.take(CLERK, session.parties[CLERK].ask(number, {"keys": [person(number)]}))
    session.take(OWNER, session.parties[OWNER].close())
    session.take(CLERK, session.parties[CLERK].receive(session.inbox[CLERK].popleft()))
    session.deliver()
    assert {answer["refused"] for answer in session.answers.values()} == {"session-closed"}
    assert len(session.answers) == 8
    assert len([m for m in session.sent if m.round == plan.ASK and m.body]) == UNDER_WAY
    assert sum(r["lookups"] for r in session.records[CLERK] if r["event"] == "lookup-refused") == 8
    assert set(session.outputs) == {OWNER, CLERK}


# rows that do not open


def marked(monkeypatch, text: bytes):
    """Have the owner put rows that do not open where this text is."""
    seal = build.seal

    def spoilt(seed, number, plain, width):
        return bytes(width + 16) if text in plain else seal(seed, number, plain, width)

    monkeypatch.setattr(build, "seal", spoilt)


def test_to_the_owner_a_row_that_it_spoilt_looks_like_any_other(monkeypatch):
    def session_about(*people):
        session = opened()
        for number in people:
            session.ask(number)
        return session, session.close()

    marked(monkeypatch, b"married-1")
    spoilt, outputs = session_about(3, 4, 5)
    plain, _ = session_about(3, 6, 5)
    assert spoilt.answers[2]["refused"] == "bad-row"
    assert "rows" not in spoilt.answers[2]
    assert spoilt.answers[3] == {"rows": [expected(some(10), 5)]}
    shapes = [[(m.sender, m.round, len(m.body), m.last) for m in s.sent] for s in (spoilt, plain)]
    assert shapes[0] == shapes[1]
    assert spoilt.records[OWNER] == plain.records[OWNER]
    assert spoilt.records[CLERK][2] == {
        "event": "lookup-refused", "request": 2, "lookups": 1, "code": "bad-row"
    }  # fmt: skip
    (content,) = outputs[CLERK]
    assert list(content.table) == [("asked", 3), ("found", 2), ("refused", 1)]


def test_a_long_question_with_a_spoilt_row_is_asked_to_its_end(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 2)
    marked(monkeypatch, b"married-1")
    session = opened()
    assert session.ask(*range(9))["refused"] == "bad-row"
    assert len([m for m in session.sent if m.round == plan.ASK]) == 5


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
    assert step.record == {"event": "lookup-asked", "request": 1, "lookups": 2, "found": 1}
    assert [answer.number for answer in step.answers] == [1]


def test_a_refused_question_is_recorded_too():
    session = opened(lookups=1)
    session.ask(1, 2)
    session.ask(1)
    session.ask(2)
    assert [r for r in session.records[CLERK] if r["event"] == "lookup-refused"] == [
        {"event": "lookup-refused", "request": 1, "lookups": 2, "code": "too-many-items"},
        {"event": "lookup-refused", "request": 3, "lookups": 1, "code": "lookups-exhausted"},
    ]


def test_both_sides_record_the_same_number_of_look_ups(monkeypatch):
    monkeypatch.setattr(clerk_module, "MAX_ASK", 3)
    session = opened(constraints=Constraints(max_rows=500, max_per_minute=12))
    session.ask(1, 1, 1, 2)
    session.ask(*range(8))
    careless(session).ask(*range(9))
    both = [
        sum(r["lookups"] for r in session.records[role] if r["event"] == event)
        for role, event in ((OWNER, "lookup-answered"), (CLERK, "lookup-asked"))
    ]
    assert both[0] == both[1] == 10
    refused = [r["lookups"] for r in session.records[CLERK] if r["event"] == "lookup-refused"]
    assert sum(refused) == 9


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
        (plan.OFFER, lambda body: body.replace(b'"width":32', b'"width":544'), "wrong-table"),
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
        (plan.OFFER, lambda body: body.replace(b'"removed":2', b'"removed":11'), "bad-offer"),
        (plan.OFFER, lambda body: body.replace(b'"removed":2', b'"removed":1000000000000'), "bad-offer"),
        (plan.OFFER, lambda body: body.replace(b'"removed":2', b'"removed":3'), "bad-offer"),
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


@pytest.mark.parametrize("piece", [2, 1 << 16])
def test_tags_that_are_gone_are_struck_out_as_they_come(monkeypatch, piece):
    monkeypatch.setattr(clerk_module, "_PIECE", piece)
    monkeypatch.setattr(build, "MAX_BODY_BYTES", 150)
    office, rows = Office(), some(60)
    office.session(rows).open()
    later = {n: row for n, row in rows.items() if n % 3} | some(2, first=90)
    session = office.session(later).open()
    assert len([m for m in session.sent if m.round == plan.REMOVED]) == 2
    assert session.rows(*range(92)) == [expected(later, n) for n in range(92)]

    fewer = {n: row for n, row in later.items() if n % 2}
    seen = []

    def again(_role, message):
        if message.round != plan.REMOVED:
            return message
        seen.append(message.body)
        return message if len(seen) < 2 else replace(message, body=seen[0][: len(message.body)])

    session = office.session(fewer)
    session.change = again
    with pytest.raises(ProtocolAborted) as refused:
        session.open()
    assert refused.value.code == "bad-table"
    assert len(seen) == 2


def test_a_table_that_takes_more_room_than_a_node_has_to_make_is_refused(monkeypatch):
    office = Office()
    monkeypatch.setattr("protocols.lookup.table.MAX_TABLE_BYTES", 10 * 68 - 1)
    with pytest.raises(ProtocolAborted) as refused:
        office.session(some(10)).open()
    assert refused.value.code == "table-too-large"
    assert not office.owner.names()
    monkeypatch.setattr(build, "check_size", lambda *_: None)
    with pytest.raises(ProtocolAborted) as refused:
        office.session(some(10)).open()
    assert refused.value.code == "table-too-large"
    assert not office.clerk.names()


@pytest.mark.parametrize("why", ["an older key", "another key of that number"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_clerk_takes_no_key_that_is_not_newer_until_it_gives_its_table_up(why, damaged):
    office = Office()
    office.session(some(10)).open()
    before = dict(office.owner.blobs)
    build.rotate(office.owner, "people")
    office.session(some(10)).open()
    office.owner.blobs.clear()
    if why == "an older key":
        office.owner.blobs.update(before)
    else:
        office.session(some(10), clerk=Office().clerk).open()
        build.rotate(office.owner, "people")
    (name,) = [each for each in office.clerk.names() if each.startswith("table.")]
    if damaged:
        office.clerk.blobs[name] = office.clerk.blobs[name][:-1]
    with pytest.raises(ProtocolAborted) as refused:
        office.session(some(10)).open()
    assert refused.value.code == "wrong-key-version"
    office.clerk.drop(name)
    assert office.session(some(10)).open().rows(1) == [expected(some(10), 1)]


def test_a_pin_that_cannot_be_read_is_no_permission():
    office = Office()
    office.session(some(10)).open()
    (name,) = [each for each in office.clerk.names() if each.startswith("pin.")]
    for data in (b"", b"{}", b'{"key_version":1}'):
        office.clerk.blobs[name] = data
        with pytest.raises(ProtocolAborted) as refused:
            office.session(some(10)).open()
        assert refused.value.code == "shelf-changed"


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
