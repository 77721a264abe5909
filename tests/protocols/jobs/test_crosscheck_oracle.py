"""Whole cross-checks in memory against sets in plain Python."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, LOOSE, Lists, case, person
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.jobs import crosscheck
from protocols.jobs.crosscheck import MATCHER, REGISTER, Params, district_of, regions, street_table
from protocols.jobs.job_type import SUSPECTED, source
from protocols.psi import envelopes, tagging
from protocols.wire import Constraints

pytestmark = pytest.mark.usefixtures("path")

VECTORS = json.loads((Path(__file__).parents[3] / "tests/vectors/crosscheck.json").read_text())

numbers = st.sets(st.integers(0, 30), min_size=1, max_size=30)
rows = st.builds(
    lambda n, street, month: (n, (street, month)),
    st.integers(0, 30),
    st.sampled_from(["", "990101001", "990101002", "990102001", "东街道"]),
    st.sampled_from(["", "2025-11", "1999-01"]),
)
source_lists = st.lists(rows, min_size=1, max_size=30).map(dict)


def expected(lists: Lists, k: int | None) -> set[int]:
    """Return the flagged persons."""
    register, *sources = lists
    if k is None:
        return set(register).intersection(*sources)
    held = Counter(number for each in sources for number in each)
    return {number for number, times in held.items() if times >= k and number not in register}


def assert_released(lists: Lists, k: int | None, seed: object, key_holder: int) -> None:
    params = {"present_in": "all"} if k is None else {"k": k}
    records, table = case(lists, seed=seed, key_holder=key_holder, **params).released()
    flagged = expected(lists, k)
    assert records.table.columns["key"].tolist() == sorted("RIC:" + person(number) for number in flagged)
    by_key = {"RIC:" + person(number): number for number in flagged}
    streets: Counter[str] = Counter()
    for key, street, month, seat, organisation in records.table:
        # Street and month are those of one and the same source, which holds the person.
        index = int(seat.removeprefix("source-"))
        assert lists[index][by_key[key]] == (street, month)
        assert organisation == f"department-{index}.example"
        streets[street] += 1
    assert records.facts == {"mark": SUSPECTED, "rows": len(flagged)}
    again = street_table(streets, 3)
    assert [*table.table] == [*again.table]
    assert table.facts == again.facts


@settings(max_examples=30, deadline=None)
@given(numbers, st.lists(source_lists, min_size=2, max_size=4), st.data())
def test_at_least_k_sources_and_not_the_register(register, sources, data):
    k = data.draw(st.integers(1, len(sources)), "k")
    key_holder = data.draw(st.integers(1, len(sources)), "key holder")
    assert_released([dict.fromkeys(register, ("", "")), *sources], k, data.draw(st.integers()), key_holder)


@pytest.mark.long
@settings(max_examples=600, deadline=None, derandomize=True)
@given(numbers, st.lists(source_lists, min_size=2, max_size=6), st.data())
def test_either_question_with_up_to_six_sources(register, sources, data):
    k = data.draw(st.none() | st.integers(1, len(sources)), "k")
    key_holder = data.draw(st.integers(1, len(sources)), "key holder")
    assert_released([dict.fromkeys(register, ("", "")), *sources], k, data.draw(st.integers()), key_holder)


@settings(max_examples=20, deadline=None)
@given(numbers, st.lists(source_lists, min_size=1, max_size=3), st.data())
def test_every_source_and_the_register(register, sources, data):
    key_holder = data.draw(st.integers(1, len(sources)), "key holder")
    assert_released([dict.fromkeys(register, ("", "")), *sources], None, data.draw(st.integers()), key_holder)


def plain_lists() -> list[dict[int, tuple[str, str]]]:
    return [
        dict.fromkeys(range(20), ("", "")),
        dict.fromkeys(range(10, 40), ("990101001", "2025-11")),
        dict.fromkeys(range(15, 45), ("990101002", "2025-10")),
        dict.fromkeys(range(5, 35), ("990102001", "2025-09")),
    ]


def test_the_register_receives_exactly_one_envelope_per_flagged_person(monkeypatch):
    run = case(plain_lists(), k=2)
    run.run()
    stream = b"".join(sent.body for sent in run.sent if sent.round == crosscheck.ENVELOPES)
    width = envelopes.RECORD_BYTES
    pieces = [stream[at : at + width] for at in range(0, len(stream), width)]
    assert sum(map(any, pieces)) == len(expected(plain_lists(), 2))


shares = st.sampled_from([Fraction(n, 7) for n in range(8)])
limits = st.tuples(shares, shares, st.integers(0, 30))


@settings(max_examples=300, deadline=None)
@given(numbers, st.lists(numbers, min_size=2, max_size=4), limits, st.data())
def test_no_answer_that_passes_the_guards_is_longer_than_the_padded_stream(register, sources, allowed, data):
    coverage, fraction, rows = allowed
    k = data.draw(st.none() | st.integers(1, len(sources)), "k")
    lists = [dict.fromkeys(each, ("", "")) for each in (register, *sources)]
    flagged = expected(lists, k)
    held = Counter(number for each in sources for number in each)
    asked = len(register) if k is None else sum(times >= k for times in held.values())
    passes = (
        all(len(register & each) >= coverage * len(each) for each in sources)
        and len(flagged) <= fraction * asked
        and len(flagged) <= rows
    )
    params = Params(k is None, len(lists) if k is None else k, len(sources), source(1), "demo-city")
    constraints = Constraints(max_rows=rows, max_fraction=fraction, min_coverage=coverage)
    most = crosscheck.most_flagged(params, [len(each) for each in lists], constraints)
    assert 0 <= most <= rows
    if passes:
        assert len(flagged) <= most


@pytest.mark.parametrize(
    ("params", "changed", "most"),
    [
        ({"k": 2}, {}, 45),  # three lists of 30 rows, two rows a person
        ({"k": 2}, {"min_coverage": Fraction(4, 5)}, 9),  # 6 rows of each list are not on the register
        ({"k": 2}, {"min_coverage": Fraction(1)}, 0),
        ({"k": 2}, {"max_fraction": Fraction(1, 10)}, 4),
        ({"k": 2}, {"max_rows": 3}, 3),
        ({"k": 1}, {"max_rows": 1000}, 90),
        ({"present_in": "all"}, {}, 20),  # the register's list is the shortest
        ({"present_in": "all"}, {"max_fraction": Fraction(1, 3)}, 6),
    ],
)
def test_what_the_padding_is_reckoned_from(params, changed, most):
    run = case(plain_lists(), constraints=replace(LOOSE, **changed), **params)
    counts = [each.distinct_keys for each in run.lists.values()]
    assert crosscheck.most_flagged(Params.of(run.spec), counts, run.setup.constraints) == most


@pytest.mark.parametrize("params", [{"k": 2}, {"k": 3}, {"present_in": "all"}])
def test_streams_cut_into_many_chunks_give_the_same_release(params, monkeypatch, path):
    whole = case(plain_lists(), **params).released()
    monkeypatch.setattr(tagging, "CHUNK_POINTS", 3)
    monkeypatch.setattr(crosscheck, "CHUNK_TAGS", 4)
    monkeypatch.setattr(crosscheck, "CHUNK_ROWS", 5)
    monkeypatch.setattr(envelopes, "CHUNK_RECORDS", 2)
    run = case(plain_lists(), **params)
    found = run.released()
    assert found[0].table.columns["key"].tolist() == whole[0].table.columns["key"].tolist()
    if path is None:  # else more or fewer draws come before those of the envelopes
        assert [[*content.table] for content in found] == [[*content.table] for content in whole]
    for stream in {(sent.sender, sent.to, sent.round) for sent in run.sent}:
        lasts = [sent.last for sent in run.sent if (sent.sender, sent.to, sent.round) == stream]
        assert lasts == [False] * (len(lasts) - 1) + [True]


def test_nobody_flagged_is_an_answer():
    lists = [dict.fromkeys(range(5), ("", ""))] * 3
    records, table = case(lists, k=2).released()
    assert records.table.rows == 0
    assert [*table.table] == [("city", "", "", 0, False)]


def test_the_same_seed_gives_the_same_release_and_another_seed_another_choice_of_sources():
    def sources(seed: int) -> list[str]:
        return case(plain_lists(), k=2, seed=seed).released()[0].table.columns["source"].tolist()

    assert sources(1) == sources(1)
    assert sources(1) != sources(2)


def test_each_source_of_a_person_is_as_likely_to_be_opened():
    # Persons in all three sources, 600 draws from fixed seeds; chi-square with 2 degrees of freedom above
    # 13.8 has probability 0.001.
    lists = [{99: ("", "")}, *[dict.fromkeys(range(60), ("", "")) for _ in range(3)]]
    drawn: Counter[str] = Counter()
    for seed in range(10):
        drawn.update(case(lists, k=2, seed=seed).released()[0].table.columns["source"].tolist())
    assert set(drawn) == {source(1), source(2), source(3)}
    assert sum((count - 200) ** 2 / 200 for count in drawn.values()) < 13.8


def test_positions_in_sorted_lists_ascend_nowhere_in_what_the_register_receives():
    lists = [{99: ("", "")}, *[dict.fromkeys(range(60), ("", "")) for _ in range(2)]]
    run = case(lists, k=2)
    run.run()
    (body,) = [sent.body for sent in run.sent if sent.round == crosscheck.ENVELOPES]
    pieces = [body[at : at + 5] for at in range(0, len(body), envelopes.RECORD_BYTES)]
    positions = [int.from_bytes(piece[1:], "big") for piece in pieces if piece[0]]
    # 60 positions in random order: all ascending has probability 1/60!.
    assert any(b < a for a, b in pairwise(positions))


# Lists of 20: register 0-19; S1 10-29, S2 12-31: held by both 12-29, flagged 20-29.
GUARDED = [
    dict.fromkeys(range(20), ("", "")),
    dict.fromkeys(range(10, 30), ("990101001", "2025-11")),
    dict.fromkeys(range(12, 32), ("990101001", "2025-11")),
]


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_rows": 10}, None),
        ({"max_rows": 9}, "guard-rows"),
        ({"max_fraction": Fraction(10, 18)}, None),
        ({"max_fraction": Fraction(10, 18) - Fraction(1, 10**9)}, "guard-fraction"),
        ({"min_coverage": Fraction(8, 20)}, None),
        ({"min_coverage": Fraction(8, 20) + Fraction(1, 10**9)}, "guard-coverage"),
    ],
)
def test_a_guard_binds_exactly_at_its_limit_and_before_any_envelope_leaves(limit, code):
    run = case(GUARDED, k=2, constraints=replace(LOOSE, **limit))
    if code is None:
        assert run.released()[0].table.rows == 10
        return
    with pytest.raises(ProtocolAborted) as aborted:
        run.run()
    assert aborted.value.code == code
    assert not {sent.round for sent in run.sent} & {
        crosscheck.READY,
        crosscheck.ROWS,
        crosscheck.CONTENT_KEY,
        crosscheck.ENVELOPES,
    }
    # The message names the rule's own limit and no count of persons.
    digits = {word for word in aborted.value.message.replace("/", " ").split() if word.isdigit()}
    allowed = {
        str(part)
        for value in limit.values()
        for part in (Fraction(value).numerator, Fraction(value).denominator)
    }
    assert digits <= allowed


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_rows": 8}, None),
        ({"max_rows": 7}, "guard-rows"),
        ({"max_fraction": Fraction(8, 20)}, None),
        ({"max_fraction": Fraction(7, 20)}, "guard-fraction"),
        ({"min_coverage": Fraction(9, 20)}, "guard-coverage"),
    ],
)
def test_guards_of_present_in_all_bind_on_the_registers_own_list(limit, code):
    run = case(GUARDED, present_in="all", constraints=replace(LOOSE, **limit))
    if code is None:
        assert run.released()[0].table.rows == 8
        return
    with pytest.raises(ProtocolAborted) as aborted:
        run.run()
    assert aborted.value.code == code


def test_a_register_of_garbage_of_the_right_size_receives_nothing():
    garbage = [dict.fromkeys(range(800, 820), ("", "")), *GUARDED[1:]]
    run = case(garbage, k=2, constraints=replace(LOOSE, min_coverage=Fraction(1, 2)))
    with pytest.raises(ProtocolAborted) as aborted:
        run.run()
    assert aborted.value.code == "guard-coverage"
    assert not any(sent.round == crosscheck.ENVELOPES for sent in run.sent)


@pytest.mark.parametrize(
    ("catalogue", "code"), [(20, None), (1000, "guard-list-size"), (19, "guard-list-size")]
)
def test_a_register_far_from_its_catalogue_does_not_even_start(catalogue, code):
    if code is None:
        case(GUARDED, k=2, catalogue=catalogue)
        return
    with pytest.raises(ProtocolAborted) as aborted:
        case(GUARDED, k=2, catalogue=catalogue)
    assert aborted.value.code == code


@given(st.lists(st.sets(st.binary(min_size=16, max_size=16), max_size=12), min_size=1, max_size=5))
def test_regions_are_exact(sets):
    lists = [np.array(sorted(each), dtype="S16") for each in sets]
    tags, masks = regions(lists)
    padded = [{tag.rstrip(b"\0") for tag in each} for each in sets]
    union = sorted(set().union(*padded))
    assert tags.tolist() == union
    assert masks.tolist() == [sum((tag in each) << i for i, each in enumerate(padded)) for tag in union]


@pytest.mark.parametrize(
    ("street", "district"),
    [
        ("990101001", "990101"),
        ("990101001203", "990101"),
        ("", ""),
        ("东街道", ""),
        ("99010100", ""),
        (person(1), ""),  # an identity number is no code of a street
        (person(1)[:15], ""),
        ("９９０１０１００１", ""),
    ],
)
def test_the_district_of_a_street_is_read_from_its_code(street, district):
    assert district_of(street) == district


def test_text_that_few_persons_share_is_not_published_as_a_street():
    # What stands in a department's street column need not be a street; a withheld cell shows its name.
    counts = {"990101001": 12, "990101002": 4, person(1): 1, "13800000000": 2, "东街道": 10, "": 3}
    content = street_table(counts, 10)
    rows = {(level, street): count for level, _, street, count, _ in content.table}
    assert {street for _, street in rows} == {"990101001", "990101002", "东街道", ""}
    assert rows["city", ""] == 30  # of 32, in fives; those of "" are counted, under no name
    merged = {"990101001": 12, "990101002": 4, "东街道": 10, "": 6}
    assert [*content.table] == [*street_table(merged, 10).table]


def test_an_envelope_row_is_that_of_the_vectors():
    vector = VECTORS
    lists = [{0: ("", "")}, {0: ("", "")}, {0: (vector["street"], vector["month"])}]
    run = case(lists, k=2)
    party = run.parties[source(2)]
    listed = replace(party.listed, keys=np.array([vector["typed_key"].encode()]))
    plain = envelopes.plaintexts(listed, np.array([0], dtype=np.uint32))
    assert plain.hex() == vector["plain"]
    keys, streets, months = envelopes.parse(plain)
    assert (keys.tolist(), streets, months) == (
        [vector["typed_key"].encode()],
        [vector["street"]],
        [vector["month"]],
    )
    assert bytes.fromhex(vector["ctx"]) == CTX
    # The vector's row is at position 5 of list 2: six rows of the same person stand in for the others.
    tagged = tagging.Tagged(
        np.array([b"x"] * 6),
        np.array([np.frombuffer(bytes.fromhex(vector["value"]), dtype=np.uint8)] * 6),
        np.zeros(6, dtype=np.uint32),
    )
    party.listed = listed
    (message,) = party._rows(tagged, bytes.fromhex(vector["content_key"]))
    assert message.body[5 * crosscheck.ROW_BYTES :].hex() == vector["row"]


@pytest.mark.parametrize("bad", VECTORS["bad_plain"], ids=lambda bad: bad["why"])
def test_a_malformed_content_is_refused(bad):
    with pytest.raises(ProtocolAborted) as aborted:
        envelopes.parse(bytes.fromhex(bad["plain"]))
    assert aborted.value.code == "envelope-malformed"


def test_the_matcher_and_the_sources_release_nothing():
    outputs = case(GUARDED, k=2).run()
    assert {role: output for role, output in outputs.items() if role != REGISTER} == {
        MATCHER: (),
        source(1): (),
        source(2): (),
    }
