"""What an owner makes, keeps and sends: new persons alone are computed, changes alone are sent."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import person, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_case import CLERK, LOOKUPS, OWNER, STREETS, Office, expected, lookup_spec, prepared, some

from protocols.errors import InputError, ProtocolAborted
from protocols.lookup import build, plan
from protocols.lookup.build import Build, OwnerKey, rotate
from protocols.lookup.table import Table
from protocols.psi import oprf

PEOPLE = range(30)


@pytest.fixture
def computed(monkeypatch):
    """Return a list that grows by every PRF output the owner computes."""
    done = []
    original = oprf.evaluate

    def watched(pair, inputs, mode):
        done.extend(inputs)
        return original(pair, inputs, mode)

    monkeypatch.setattr(oprf, "evaluate", watched)
    return done


def given_by(session) -> tuple[str, int, int]:
    (record,) = [r for r in session.records[OWNER] if r["event"] == "table-sent"]
    return record["give"], record["sent"], record["removed"]


def table_of(office) -> Table:
    (name,) = [each for each in office.clerk.names() if each.startswith("table.")]
    return Table.read(office.clerk.get(name))


def test_a_rebuild_computes_only_persons_who_are_new(computed):
    office, rows = Office(), some(20)
    office.session(rows).open()
    assert len(computed) == 20
    del computed[:]
    later = {**some(20, status="widowed"), **some(3, first=20)}
    assert given_by(office.session(later).open()) == ("delta", 23, 0)
    assert len(computed) == 3


def test_one_who_left_and_comes_back_is_computed_again_and_one_who_stays_never(computed):
    office = Office()
    for rows, expected_count in ((some(5), 5), (some(4), 0), (some(5), 1), (some(5), 0)):
        del computed[:]
        office.session(rows).open()
        assert len(computed) == expected_count


row = st.tuples(st.sampled_from(STREETS), st.sampled_from(["a", "b", ""]), st.sampled_from(["2025-01", ""]))
lists = st.dictionaries(st.integers(0, 29), row, max_size=30)


@settings(max_examples=8, deadline=None)
@given(st.lists(lists, min_size=2, max_size=4), st.integers(1, 8))
def test_changes_lead_to_the_table_that_a_rebuild_makes_and_to_right_answers(days, shard):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "SHARD_ROWS", shard)
        patched.setattr("protocols.lookup.clerk._PIECE", 3)
        patched.setattr(build, "_PIECE", 4)
        changed = Office()
        for day, rows in enumerate(days):
            session = changed.session(rows).open()
            assert given_by(session)[0] == ("whole" if not day else given_by(session)[0])
            assert not day or given_by(session)[0] in ("delta", "keep")
            assert session.rows(*PEOPLE) == [expected(rows, number) for number in PEOPLE]
            session.close()
        # Under the same key a clerk without a table gets the same persons, whatever came before.
        fresh = Office(owner=changed.owner)
        session = fresh.session(days[-1]).open()
        assert given_by(session)[0] == "whole"
        assert session.rows(*PEOPLE) == [expected(days[-1], number) for number in PEOPLE]
        old, new = table_of(changed), table_of(fresh)
        tags = [[r.tobytes() for r in t.rows(0, t.manifest.rows)["tag"]] for t in (old, new)]
        assert tags[0] == tags[1] == sorted(tags[0])


def test_rows_that_stay_keep_their_bytes_and_rows_that_change_get_another_key():
    office, rows = Office(), some(12)
    office.session(rows).open()
    before = {r["tag"].tobytes(): r.tobytes() for r in table_of(office).rows(0, 12)}
    rows = {**rows, 4: (STREETS[0], "x", "2025-01")}
    office.session(rows).open()
    after = {r["tag"].tobytes(): r.tobytes() for r in table_of(office).rows(0, 12)}
    assert before.keys() == after.keys()
    (changed,) = [tag for tag in before if before[tag] != after[tag]]
    assert before[changed][12:20] != after[changed][12:20]


def test_the_same_text_again_after_another_is_sealed_anew():
    office, rows = Office(), some(3)
    seen = set()
    for status in ("a", "b", "a"):
        office.session({**rows, 1: (STREETS[0], status, "2025-01")}).open()
        seen |= {r.tobytes() for r in table_of(office).rows(0, 3)}
    assert len(seen) == 2 + 3


def test_nothing_new_sends_nothing():
    office, rows = Office(), some(8)
    office.session(rows).open()
    version = table_of(office).manifest
    session = office.session(rows).open()
    assert given_by(session) == ("keep", 0, 0)
    assert [m.round for m in session.sent] == [1, 2, 3, 4, 7]
    assert table_of(office).manifest == version
    assert session.rows(2) == [expected(rows, 2)]


def test_a_person_who_is_removed_is_not_found_any_more():
    office, rows = Office(), some(8)
    office.session(rows).open().close()
    fewer = {number: row for number, row in rows.items() if number != 3}
    session = office.session(fewer).open()
    assert given_by(session) == ("delta", 0, 1)
    assert session.rows(2, 3, 4) == [expected(rows, 2), None, expected(rows, 4)]


@pytest.mark.parametrize("rows", [{}, some(1), some(5, street=1)])
def test_a_table_of_nobody_or_of_one_works(rows):
    office = Office()
    for _ in range(2):
        session = office.session(rows).open()
        assert session.rows(0, 1) == [expected(rows, 0), expected(rows, 1)]
        session.close()
    more = office.session(some(4)).open()
    assert more.rows(*range(5)) == [expected(some(4), number) for number in range(5)]
    none = office.session({}).open()
    assert none.rows(*range(5)) == [None] * 5


def test_a_clerk_that_lost_its_table_gets_the_whole_one():
    office, rows = Office(), some(8)
    office.session(rows).open()
    office.clerk.blobs.clear()
    session = office.session(rows).open()
    assert given_by(session) == ("whole", 8, 0)
    assert session.rows(5) == [expected(rows, 5)]


@pytest.mark.parametrize("lost", ["prf", "last", "sent"])
def test_whatever_an_owner_loses_is_made_again(lost):
    office, rows = Office(), some(8)
    office.session(rows).open()
    for name in office.owner.names():
        if name.startswith(lost):
            office.owner.drop(name)
    session = office.session({**rows, **some(1, first=9)}).open()
    assert given_by(session)[0] == ("delta" if lost == "prf" else "whole")
    assert session.rows(5, 9, 10) == [expected(rows, 5), expected(some(10), 9), None]


def test_a_damaged_table_counts_as_none():
    office, rows = Office(), some(8)
    office.session(rows).open()
    (name,) = [each for each in office.clerk.names() if each.startswith("table.")]
    office.clerk.blobs[name] = office.clerk.blobs[name][:-1]
    assert given_by(office.session(rows).open()) == ("whole", 8, 0)


def test_another_width_sends_the_whole_table():
    office, rows = Office(), some(8)
    office.session(rows).open()
    long = {**rows, 3: (STREETS[0], "x" * 60, "2025-01")}
    session = office.session(long).open()
    assert given_by(session) == ("whole", 8, 0)
    assert session.rows(3, 4) == [expected(long, 3), expected(long, 4)]


def test_after_a_rotation_the_next_session_has_another_key_and_the_whole_table(computed):
    office, rows = Office(), some(8)
    first = office.session(rows).open()
    old = table_of(office)
    assert rotate(office.owner, "another") == 0
    assert rotate(office.owner, "people") == 1
    assert first.rows(1) == [expected(rows, 1)]  # a session under way goes on
    del computed[:]
    session = office.session(rows).open()
    new = table_of(office)
    assert given_by(session) == ("whole", 8, 0)
    assert len(computed) == 8
    assert (old.manifest.key_version, new.manifest.key_version) == (1, 2)
    assert old.manifest.public != new.manifest.public
    assert not {r.tobytes() for r in old.rows(0, 8)["tag"]} & {r.tobytes() for r in new.rows(0, 8)["tag"]}
    assert session.rows(*PEOPLE) == [expected(rows, number) for number in PEOPLE]
    assert not [name for name in office.owner.names() if name.startswith("prf.") and ".1." in name[37:42]]


@pytest.mark.parametrize("drawn", [False, True], ids=["asked for", "carried out by another session"])
def test_a_rotation_while_a_table_is_made_is_not_lost(monkeypatch, drawn):
    """The table has grown, so that its session writes the key's record, too."""
    monkeypatch.setattr(build, "SHARD_ROWS", 2)
    office, rows = Office(), some(8)
    step = Build.step

    def meanwhile(self):
        step(self)
        if self.key.version == 1 and self.rows_ready and not rotated:
            rotated.append(rotate(office.owner, "people"))
            if drawn:
                build.current_key(office.owner, self._lookup, seeded(7))

    rotated = []
    monkeypatch.setattr(Build, "step", meanwhile)
    office.session(rows).open()
    assert rotated == [1]
    assert table_of(office).manifest.key_version == 1
    session = office.session(rows).open()
    assert (given_by(session), table_of(office).manifest.key_version) == (("whole", 8, 0), 2)
    assert session.rows(*PEOPLE) == [expected(rows, number) for number in PEOPLE]


def test_every_scope_field_set_and_mode_has_a_key_of_its_own():
    office, rows = Office(), some(4)
    for params in (
        {}, {"scope": {"street": STREETS[1]}}, {"scope": None}, {"fields": ["seen"]}, {"verified": False}
    ):  # fmt: skip
        office.session(rows, **params).open()
    names = [name for name in office.owner.names() if name.startswith("key.")]
    keys = {OwnerKey.decode(office.owner.blobs[name]).pair.secret for name in names}
    assert len(names) == len(keys) == 5


def test_two_nodes_never_share_a_key_and_have_versions_of_their_own():
    one, rows = Office(), some(6)
    other = Office(owner=one.owner)
    spec = lookup_spec()
    elsewhere = replace(spec, roles={**spec.roles, CLERK: "street-office.example/b"})
    one.session(rows).open()
    assert given_by(other.session(rows, spec=elsewhere, seed="other").open()) == ("whole", 6, 0)
    later = some(7)
    assert given_by(one.session(later).open()) == ("delta", 1, 0)
    assert given_by(other.session(later, spec=elsewhere).open()) == ("delta", 1, 0)
    assert table_of(one).manifest.public != table_of(other).manifest.public


def kept_outputs(monkeypatch, session, *people) -> list[bytes]:
    """Look people up and return what a node could keep of it."""
    kept, find = [], Table.find

    def watched(self, output):
        kept.append(output)
        return find(self, output)

    with monkeypatch.context() as patched:
        patched.setattr(Table, "find", watched)
        session.rows(*people)
    return kept


def created(days: int):
    spec = lookup_spec()
    return replace(
        spec, created=spec.created + timedelta(days=days), expires=spec.expires + timedelta(days=days)
    )


def test_what_a_node_kept_of_a_look_up_reads_later_rows_until_the_key_is_old(monkeypatch):
    """The statement `later-rows`: true, and it ends."""
    office = Office()
    (kept,) = kept_outputs(monkeypatch, office.session(some(5)).open(), 3)
    later = {**some(5), 3: (STREETS[0], "widowed", "2025-12")}
    session = office.session(later, spec=created(build.KEY_DAYS - 1)).open()
    assert given_by(session)[0] == "delta"
    assert table_of(office).find(kept) == expected(later, 3)
    assert not [r for r in session.records[OWNER] if r["event"] == "lookup-answered"]
    session = office.session(later, spec=created(build.KEY_DAYS)).open()
    assert given_by(session)[0] == "whole"
    assert table_of(office).manifest.key_version == 2
    assert table_of(office).find(kept) is None
    assert session.rows(3) == [expected(later, 3)]
    # The new key's age counts from its own day.
    assert given_by(office.session(later, spec=created(2 * build.KEY_DAYS - 1)).open())[0] == "keep"
    assert given_by(office.session(later, spec=created(2 * build.KEY_DAYS)).open())[0] == "whole"


def test_what_one_node_kept_reads_nothing_of_another_nodes_table(monkeypatch):
    one = Office()
    (kept,) = kept_outputs(monkeypatch, one.session(some(5)).open(), 3)
    other, spec = Office(owner=one.owner), lookup_spec()
    elsewhere = replace(spec, roles={**spec.roles, CLERK: "street-office.example/b"})
    other.session(some(5), spec=elsewhere, seed="other").open()
    assert table_of(one).find(kept) == expected(some(5), 3)
    assert table_of(other).find(kept) is None


def test_sessions_that_begin_at_once_after_a_rotation_agree_on_one_key():
    office, rows = Office(), some(4)
    office.session(rows).open()
    rotate(office.owner, "people")
    sessions = [office.session(rows) for _ in range(4)]
    start = Barrier(len(sessions))

    def begin(session):
        start.wait()
        return build.current_key(office.owner, session.parties[OWNER]._lookup, seeded(id(session)))

    with ThreadPoolExecutor(len(sessions)) as pool:
        keys = list(pool.map(begin, sessions))
    assert {key.version for key in keys} == {2}
    assert len({key.pair.public for key in keys}) == 1


def begun(session, messages: int):
    """Start a session and deliver so many messages."""
    for role, party in session.parties.items():
        session.take(role, party.start())
    for _ in range(messages):
        role, waiting = next((role, waiting) for role, waiting in session.inbox.items() if waiting)
        session.take(role, session.parties[role].receive(waiting.popleft()))
    return session


def of_kind(office, *kinds: str) -> list[str]:
    return [name for name in office.owner.names() if name.startswith(kinds)]


def test_a_session_that_was_given_up_leaves_nothing_for_long(monkeypatch):
    monkeypatch.setattr(build, "SHARD_ROWS", 4)
    office = Office()
    for _ in range(3):
        session = begun(office.session(some(40)), 7)
        drafts = of_kind(office, "draft.")
        assert drafts
        del session
        gc.collect()
    assert len(drafts) <= 16
    assert office.session(some(40)).open().rows(1) == [expected(some(40), 1)]
    assert not of_kind(office, "draft.")
    assert len(of_kind(office, "sent.")) == 1


def test_a_table_that_never_arrived_leaves_no_record_for_long():
    office = Office()
    office.session(some(8)).open()
    for _ in range(3):
        lost = office.session(some(9))
        lost.change = lambda role, message: None if message.round == plan.ROWS else message
        lost.open()
        del lost
        gc.collect()
        assert len(of_kind(office, "sent.")) == 2
    office.session(some(8)).open()
    assert len(of_kind(office, "sent.")) == 1


@pytest.mark.parametrize("at", [plan.GO_ON, plan.HELD])
def test_a_message_that_ends_the_attempt_clears_what_was_made_for_it(monkeypatch, at):
    monkeypatch.setattr(build, "SHARD_ROWS", 4)
    office = Office()
    session = office.session(some(40))
    seen = []

    def change(_role, message):
        seen.append(message.round)
        return replace(message, body=b"x") if message.round == at and seen.count(at) == 1 else message

    session.change = change
    with pytest.raises(ProtocolAborted):
        session.open()
    assert not of_kind(office, "draft.", "sent.")
    assert session.parties


def test_a_table_whose_sending_ends_half_way_leaves_no_drafts(monkeypatch):
    office = Office()
    session = begun(office.session(some(8)), 2)
    (message,) = session.inbox[OWNER]
    outgoing = session.parties[OWNER].receive(message).outgoing
    next(outgoing)
    assert of_kind(office, "draft.")
    outgoing.close()
    assert not of_kind(office, "draft.")


def test_one_session_that_begins_leaves_anothers_drafts_alone(monkeypatch):
    monkeypatch.setattr(build, "SHARD_ROWS", 4)
    office, rows = Office(), some(40)
    one = begun(office.session(rows), 7)
    other = Office(owner=office.owner).session(rows).open()
    one.deliver()
    assert one.rows(3) == other.rows(3) == [expected(rows, 3)]


def test_finer_shards_keep_what_was_computed(computed, monkeypatch):
    office = Office()
    office.session(some(30)).open()
    monkeypatch.setattr(build, "SHARD_ROWS", 4)
    del computed[:]
    session = office.session(some(31)).open()
    assert len(computed) == 1
    assert session.rows(*range(32)) == [expected(some(31), number) for number in range(32)]
    shards = [name for name in office.owner.names() if name.startswith("prf.")]
    assert len(shards) == 8
    del computed[:]
    assert given_by(office.session(some(31)).open())[0] == "keep"
    assert not computed


def test_drafts_do_not_outlive_the_sending():
    office = Office()
    office.session(some(5)).open()
    assert not [name for name in office.owner.names() if name.startswith("draft.")]


def test_a_table_that_never_arrived_is_not_remembered():
    office, rows = Office(), some(8)
    office.session(rows).open()
    lost = office.session(some(9))
    lost.change = lambda role, message: None if role == OWNER and message.round == 6 else message
    lost.open()
    assert table_of(office).manifest.rows == 8
    session = office.session(some(9)).open()
    assert given_by(session) == ("delta", 1, 0)
    assert session.rows(8) == [expected(some(9), 8)]


def test_a_table_that_arrived_unnoticed_is_sent_again():
    office, rows = Office(), some(8)
    office.session(rows).open()
    lost = office.session(some(9))
    lost.change = lambda role, message: None if message.round == 7 else message
    lost.open()
    session = office.session(some(9)).open()
    assert given_by(session) == ("whole", 9, 0)
    assert session.rows(8) == [expected(some(9), 8)]


def test_keys_and_memories_of_another_form_are_refused():
    office = Office()
    office.session(some(2)).open()
    for name in office.owner.names():
        if name.startswith(("key.", "last.")):
            office.owner.blobs[name] = b"{}"
    from protocols.errors import DecodeError

    with pytest.raises(DecodeError):
        office.session(some(2)).open()


def test_neither_keys_nor_persons_show_in_what_is_printed():
    office = Office()
    session = office.session(some(2)).open()
    (name,) = [name for name in office.owner.names() if name.startswith("key.")]
    key = OwnerKey.decode(office.owner.blobs[name])
    from protocols.encoding import b64encode

    printed = repr((key, session.people, table_of(office)))
    for secret in (key.pair.secret.hex(), b64encode(key.pair.secret), key.salt.hex(), "married", "9901"):
        assert secret not in printed


def test_a_list_that_changed_after_admission_is_refused():
    office = Office()
    session = office.session(some(4))
    with pytest.raises(ProtocolAborted) as refused:
        LOOKUPS.serving(
            OWNER, session.setup, prepared(session.spec, list(some(5).items())), seeded(1),
            shelf=office.owner, monotonic=lambda: 0.0,
        )  # fmt: skip
    assert refused.value.code == "count-changed"


# what a list is made of


def listed(rows, **params):
    return prepared(lookup_spec(columns={"last_seen": "the_seen"}, **params), rows)


def texts(people) -> list[bytes]:
    return people.plain(np.arange(people.distinct_keys))


def test_of_several_rows_of_a_person_the_one_last_seen_stays_in_whatever_order_they_come():
    rows = [
        (1, (STREETS[0], s, m)) for s, m in (("b", "2025-03"), ("c", "2025-03"), ("a", "2025-02"), ("z", ""))
    ]
    for turned in (rows, rows[::-1], rows[2:] + rows[:2]):
        people = listed([(0, (STREETS[0], "x", "")), *turned, (2, (STREETS[0], "y", "2025-01"))])
        assert sorted(texts(people)) == [b"b\x1f2025-03", b"x\x1f", b"y\x1f2025-01"]
        assert people.quality() == {"repeated-key": 3, "no-month": 1}
        assert people.commitment(bytes(32)) == listed([
            (2, (STREETS[0], "y", "2025-01")), (0, (STREETS[0], "x", "")), rows[0]
        ]).commitment(bytes(32))  # fmt: skip


def test_without_a_date_the_text_that_sorts_first_stays():
    rows = [(1, (STREETS[0], s, "2025-01")) for s in "cab"]
    assert texts(prepared(lookup_spec(), rows)) == [b"a\x1f2025-01"]
    both = [(n, (STREETS[0], s, "2025-01")) for n in (1, 2) for s in "cab"]
    assert texts(prepared(lookup_spec(), both)) == [b"a\x1f2025-01"] * 2


MOVED = [
    (1, (STREETS[0], "old", "2020-01")), (1, (STREETS[1], "new", "2025-01")),  # moved away
    (2, (STREETS[1], "old", "2020-01")), (2, (STREETS[0], "new", "2025-01")),  # moved here
    (3, (STREETS[0], "b", "2025-01")), (3, (STREETS[1], "a", "2025-01")),  # both in one month
    (4, (STREETS[0], "old", "")), (4, (STREETS[1], "dated", "2019-01")),
    (5, (STREETS[0], "first", "2019-01")), (5, (STREETS[0], "second", "2021-01")),
]  # fmt: skip


@pytest.mark.parametrize("turned", [1, -1])
def test_somebody_who_moved_away_is_not_shown_as_they_were(turned):
    people = listed(MOVED[::turned])
    assert sorted(texts(people)) == [b"b\x1f2025-01", b"new\x1f2025-01", b"second\x1f2021-01"]
    assert people.distinct_keys == 3
    assert people.quality() == {"outside-scope": 6, "repeated-key": 1}
    session = Office().session(MOVED[::turned], columns={"last_seen": "the_seen"}).open()
    assert [row and row["status"] for row in session.rows(*range(1, 6))] == [None, "new", "b", None, "second"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.tuples(
                st.sampled_from(STREETS), st.sampled_from("abc"), st.sampled_from(["2024-01", "2025-01", ""])
            ),
        ),
        max_size=25,
    ),
    st.integers(1, 25),
)
def test_the_row_last_seen_decides_whether_a_person_is_in_the_scope(rows, cut):
    builder = LOOKUPS.builder(lookup_spec(columns={"last_seen": "the_seen"}), OWNER)
    for part in (rows[:cut], rows[cut:]):
        builder.add({
            "key": pa.array([person(number) for number, _ in part], pa.string()),
            **{
                slot: pa.array([row[at] for _, row in part], pa.string())
                for slot, at in (("street", 0), ("status", 1), ("seen", 2), ("last_seen", 2))
            },
        })  # fmt: skip
    people, right = builder.finish(), {}
    for number in {number for number, _ in rows}:
        own = [row for each, row in rows if each == number]
        last = max(row[2] for row in own)
        here = [row for row in own if row[2] == last and row[0] == STREETS[0]]
        if here:
            right[f"RIC:{person(number)}".encode()] = min(f"{row[1]}\x1f{row[2]}".encode() for row in here)
    assert dict(zip(people.keys.tolist(), texts(people), strict=True)) == right
    counts = people.quality()
    assert counts.get("outside-scope", 0) + counts.get("repeated-key", 0) == len(rows) - len(right)


def test_rows_outside_the_scope_are_left_out_and_counted():
    people = listed(
        [*some(3).items(), *some(4, first=3, street=1).items(), (9, (f" {STREETS[0]} ", "x", ""))]
    )
    assert people.distinct_keys == 4
    assert people.quality()["outside-scope"] == 4


def test_control_characters_become_blanks_and_nulls_nothing():
    builder = LOOKUPS.builder(lookup_spec(scope=None), OWNER)
    from crosscheck_case import person

    builder.add({
        "key": pa.array([person(1), person(2), "no id"]),
        "status": pa.array(["a\x1fb\nc", None, "x"]),
        "seen": pa.array([None, "2025-01", "2025-01"]),
    })  # fmt: skip
    people = builder.finish()
    assert sorted(texts(people)) == [b"\x1f2025-01", b"a b c\x1f"]
    assert people.rows == 3
    assert sum(people.quality().values()) == 1


def test_numbers_and_dates_are_handed_out_in_their_text_form():
    from datetime import date
    from decimal import Decimal

    from crosscheck_case import person

    spec = lookup_spec(scope=None, fields=["day", "amount", "flag", "count"])
    builder = LOOKUPS.builder(spec, OWNER)
    builder.add({
        "key": pa.array([person(1)]),
        "day": pa.array([date(2025, 11, 3)]),
        "amount": pa.array([Decimal("12.50")]),
        "flag": pa.array([True]),
        "count": pa.chunked_array([pa.array([7])]),
    })  # fmt: skip
    assert texts(builder.finish()) == [b"2025-11-03\x1f12.50\x1ftrue\x1f7"]


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        ({"key": ["1"], "status": ["x"]}, "unknown-slot"),
        ({"key": ["1"], "status": ["x"], "seen": [""], "street": [""], "more": [""]}, "unknown-slot"),
        ({"key": ["1"], "status": ["x", "y"], "seen": [""], "street": [""]}, "length-mismatch"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch, code):
    with pytest.raises(InputError) as refused:
        LOOKUPS.builder(lookup_spec(), OWNER).add({k: pa.array(v, pa.string()) for k, v in batch.items()})
    assert refused.value.code == code


def test_a_text_too_long_is_refused_without_being_quoted():
    with pytest.raises(InputError) as refused:
        prepared(lookup_spec(), [(1, (STREETS[0], "secret" * 50, "2025-01"))])
    assert refused.value.code == "field-too-long"
    assert "secretsecret" not in str(refused.value)


def test_a_table_that_vanishes_while_it_changes_ends_the_attempt():
    office, rows = Office(), some(8)
    office.session(rows).open()
    session = office.session(some(9))
    clerk = session.parties[CLERK]
    receive = clerk.receive

    def watched(message):
        if message.round == plan.ROWS:
            office.clerk.blobs.clear()
        return receive(message)

    clerk.receive = watched
    with pytest.raises(ProtocolAborted) as refused:
        session.open()
    assert refused.value.code == "shelf-changed"
    assert office.session(some(9)).open().rows(8) == [expected(some(9), 8)]


@pytest.mark.parametrize("lost", ["sent", "prf", "draft"])
def test_what_vanishes_from_an_owners_shelf_while_a_session_begins_ends_the_attempt(lost):
    office = Office()
    if lost != "draft":
        office.session(some(8)).open()
    session = office.session(some(9))

    def change(_role, message):
        if message.round == plan.GO_ON:
            for name in office.owner.names():
                if name.startswith(lost):
                    office.owner.drop(name)
        return message

    session.change = change
    with pytest.raises(ProtocolAborted) as refused:
        session.open()
    assert refused.value.code == "shelf-changed"
    assert office.session(some(9)).open().rows(8) == [expected(some(9), 8)]
