"""What each coalition of a look-up session can compute from what it has, and what it cannot.

A view is what its members sent and received, their shelves, lists and keys. Every attack takes a view alone.
"""

from collections import Counter

import numpy as np
import pytest
from crosscheck_case import person, seeded
from lookup_case import CLERK, LOOKUPS, OWNER, STREETS, Office, Session, expected, lookup_spec, some
from scipy.stats import chisquare

from protocols.encoding import b64encode
from protocols.ids import Role
from protocols.jobs.job_type import COORDINATOR, REQUESTER
from protocols.lookup import plan
from protocols.lookup.build import OwnerKey
from protocols.lookup.table import Table
from protocols.psi import group, oprf
from protocols.psi.oprf import Mode

ROWS = some(40, status="canary")
EVERYBODY = range(60)  # whom an attacker would guess


def played(
    *asked: int, rows=ROWS, office: Office | None = None, seed: object = 0, **params
) -> tuple[Office, Session]:
    office = office or Office()
    session = office.session(rows, seed=seed, **params).open()
    for number in asked:
        session.rows(number)
    return office, session


def shape(session: Session) -> list[tuple[str, int, int, bool]]:
    """Everything of the traffic but the bytes themselves."""
    return [(m.sender, m.round, len(m.body), m.last) for m in session.sent]


def table_of(office: Office) -> Table:
    (name,) = [each for each in office.clerk.names() if each.startswith("table.")]
    return Table.read(office.clerk.get(name))


def key_of(office: Office) -> OwnerKey:
    (name,) = [name for name in office.owner.names() if name.startswith("key.")]
    return OwnerKey.decode(office.owner.blobs[name])


def opened(table: Table, key: oprf.KeyPair) -> dict[int, dict[str, str] | None]:
    """Guess everybody and look each up, as whoever has a table and a key can."""
    keys = [f"RIC:{person(number)}".encode() for number in EVERYBODY]
    outputs = oprf.evaluate(key, keys, Mode(table.manifest.mode))
    return {number: table.find(output) for number, output in zip(EVERYBODY, outputs, strict=True)}


# the owner


def test_to_the_owner_whoever_is_looked_up_looks_the_same():
    one, other = (played(*asked)[1] for asked in ((1, 2, 3), (50, 51, 3)))
    assert shape(one) == shape(other)
    assert one.records[OWNER] == other.records[OWNER]
    assert one.records[CLERK] != other.records[CLERK]


def test_elements_of_one_person_look_random():
    # A uniform blind makes every element as likely for every person. False alarm: 1e-6.
    rand = seeded("elements")
    elements = oprf.blind([b"RIC:" + person(1).encode()] * 600, Mode.VOPRF, rand).elements
    assert len(np.unique(elements, axis=0)) == 600
    counts = np.bincount(elements[:, 1:31].ravel(), minlength=256)
    assert chisquare(counts).pvalue > 1e-6


def test_the_owner_cannot_recognise_a_person_it_guesses():
    office, session = played(1, 1)
    key, asked = key_of(office), [m.body[4:] for m in session.sent if m.round == plan.ASK]
    guess = group.hash_to_group([f"RIC:{person(1)}".encode()], oprf.group_dst(Mode.VOPRF))
    known = {guess.tobytes(), group.power(guess, key.pair.secret).tobytes()}
    seen = [*asked, *(m.body[5:37] for m in session.sent if m.round == plan.EVALUATED)]
    assert len(set(seen)) == len(seen) == 4
    assert not known & set(seen)


# the clerk


def test_without_the_key_a_table_opens_no_row_of_anybody():
    office, _ = played()
    table = table_of(office)
    assert any(opened(table, key_of(office).pair).values())
    for seed in range(5):
        other = oprf.derive_key_pair(seeded(seed)(32), b"minshu/lookup/1", Mode.VOPRF)
        assert not any(opened(table, other).values())


def test_an_evaluation_opens_the_row_it_was_made_for_and_no_other():
    office, session = played()
    keys = [f"RIC:{person(number)}".encode() for number in EVERYBODY]
    output = oprf.evaluate(key_of(office).pair, keys[3:4], Mode.VOPRF)[0]
    table = table_of(office)
    tags = [row.tobytes() for row in table.rows(0, 40)["tag"]]
    assert table.find(output) == expected(ROWS, 3)
    assert tags.count(output[:12]) == 1
    for tag in tags:
        if tag != output[:12]:  # its seed under another's tag
            with pytest.raises(Exception, match="does not open"):
                table.find(tag + output[12:])
    assert session.answers == {}


def test_a_table_shows_neither_persons_nor_rows_nor_the_order_they_were_in():
    office, session = played(1, 50)
    sent = b"".join(m.body for m in session.sent) + b"".join(office.clerk.blobs.values())
    for number in EVERYBODY:
        for text in (person(number), f"RIC:{person(number)}", *(ROWS.get(number) or ())[1:2]):
            assert text.encode() not in sent
    for secret in (key_of(office).pair.secret, key_of(office).salt):
        assert secret not in sent
        assert b64encode(secret).encode() not in sent
    rows = table_of(office).rows(0, 40)
    tags = [row.tobytes() for row in rows["tag"]]
    assert tags == sorted(tags)


def test_a_table_without_its_key_looks_random():
    # Tags, sealed rows: 40 rows of 12 + 48 bytes in 12 sessions with keys of their own. False alarm 1e-6.
    pieces = []
    for seed in range(12):
        office, _ = played(seed=f"key {seed}")
        rows = table_of(office).rows(0, 40)
        pieces += [rows["tag"].tobytes(), rows["sealed"].tobytes()]
    counts = np.bincount(np.frombuffer(b"".join(pieces), np.uint8), minlength=256)
    assert counts.sum() == 12 * 40 * 60
    assert chisquare(counts).pvalue > 1e-6


def test_tables_of_the_same_size_class_look_the_same_whatever_they_say():
    texts = {number: (STREETS[0], "x" * (number % 20), "") for number in range(100, 140)}
    one, other = played()[1], played(rows=texts)[1]
    assert shape(one) == shape(other)


def test_a_clerk_recognises_rows_again_as_long_as_the_key_is_the_same_and_sees_how_many_changed():
    office, _ = played()
    before = {r["tag"].tobytes() for r in table_of(office).rows(0, 40)}
    later = {n: row for n, row in ROWS.items() if n not in (1, 2)} | some(1, first=50)
    _, session = played(rows=later, office=office)
    after = {r["tag"].tobytes() for r in table_of(office).rows(0, 39)}
    assert (len(before - after), len(after - before)) == (2, 1)
    assert {r["give"]: (r["sent"], r["removed"]) for r in session.records[CLERK]} == {"delta": (1, 2)}


def test_a_clerk_learns_of_no_more_persons_than_the_job_says():
    _, session = played(lookups=5)
    for number in EVERYBODY:
        session.ask(number)
    found = [answer for answer in session.answers.values() if "rows" in answer]
    assert len(found) == 5
    assert sum(len(m.body[4:]) // 32 for m in session.sent if m.round == plan.ASK) == 5


def test_rows_outside_the_scope_are_not_in_the_table_at_all():
    office, _ = played(rows=some(10) | some(30, first=10, street=1))
    assert table_of(office).manifest.rows == 10
    held = [number for number, row in opened(table_of(office), key_of(office).pair).items() if row]
    assert held == list(range(10))


def test_a_table_of_one_scope_does_not_open_with_the_evaluations_of_another():
    office = Office()
    everywhere = some(10) | some(10, first=10, street=1)
    played(rows=everywhere, office=office)
    played(rows=everywhere, office=office, scope={"street": STREETS[1]})
    names = [name for name in office.clerk.names() if name.startswith("table.")]
    tables = [Table.read(office.clerk.get(name)) for name in names]
    keys = [
        OwnerKey.decode(office.owner.blobs[name]).pair
        for name in office.owner.names()
        if name.startswith("key.")
    ]
    opens = Counter(
        sum(row is not None for row in opened(table, key).values()) for table in tables for key in keys
    )
    assert opens == {10: 2, 0: 2}


# together


def test_owner_and_clerk_together_open_every_row_and_test_guesses_about_who_was_looked_up():
    office, session = played(1, 50)
    found = opened(table_of(office), key_of(office).pair)
    assert found == {number: expected(ROWS, number) for number in EVERYBODY}
    # With a blind, that the clerk's node had, a request is matched against guesses.
    rand = seeded("blind")
    keys = [f"RIC:{person(number)}".encode() for number in EVERYBODY]
    blinded = oprf.blind(keys[7:8], Mode.VOPRF, rand)
    unblinded = group.power_each(blinded.elements, blinded.inverses)
    guesses = group.hash_to_group(keys, oprf.group_dst(Mode.VOPRF))
    assert [n for n in EVERYBODY if (guesses[n] == unblinded[0]).all()] == [7]
    assert session.answers


# the relay


def test_to_the_relay_only_sizes_and_times_differ():
    one, other = played(1, 2)[1], played(1, 2, rows=some(40, first=5, status="other-"))[1]
    assert shape(one) == shape(other)
    assert {m.sender for m in one.sent} == {OWNER, CLERK}


def test_progress_follows_from_what_the_relay_sees():
    office = Office()
    session = office.session(ROWS)
    told = []
    for role, party in session.parties.items():
        step = party.start()
        told.append(step.progress)
        session.take(role, step)
    session.deliver()
    for phase in told:
        assert phase is None or phase.total in (40, 500)


# the table says just that

SHOWN = {
    frozenset({OWNER}): {"list-size", "counted"},
    frozenset({CLERK}): {"list-size", "table-shape", "found-persons", "later-rows"},
    frozenset({Role(REQUESTER)}): {"session-counts"},
    frozenset({Role(COORDINATOR)}): {"list-size", "traffic"},
    frozenset({OWNER, CLERK}): {"opened-table"},
}
"""What the tests above establish, by coalition; `later-rows`, what the tests of keys' age do."""


def test_the_leakage_statement_is_what_these_tests_establish():
    table = LOOKUPS.learns(lookup_spec())
    assert {members: {s.key for s in said} for members, said in table.items()} == SHOWN


def test_the_statement_says_how_many_of_whom_and_which_fields():
    said = {s.key: s for each in LOOKUPS.learns(lookup_spec(lookups=7)).values() for s in each}
    for words in (said["found-persons"].en, said["found-persons"].zh):
        assert all(part in words for part in ("7", STREETS[0], "status, seen"))
    everybody = {s.key: s for each in LOOKUPS.learns(lookup_spec(scope=None)).values() for s in each}
    assert STREETS[0] not in everybody["found-persons"].en
