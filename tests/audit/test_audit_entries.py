"""Entries: one spelling, a closed vocabulary, no place for an identifier."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import Place

from audit import entries as entries_module
from audit.entries import (
    ENTRY_KINDS,
    FIELDS,
    KINDS_BY_VERSION,
    VERSION,
    Draft,
    Entry,
    PolicyRef,
    check_statement,
    format_time,
    parse_time,
)
from audit.note import VerifierKey
from audit.verify import verify_directory
from protocols.encoding import canonical_json
from protocols.errors import DecodeError, InputError

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "audit_entries.json").read_text())
VECTORS_V2 = json.loads((FOLDER / "audit_entries_v2.json").read_text())
VECTORS_V3 = json.loads((FOLDER / "audit_entries_v3.json").read_text())
LATER = {v: json.loads((FOLDER / f"audit_entries_v{v}.json").read_text()) for v in (4, 5, 6)}
VOCABULARY = json.loads((FOLDER / "audit_vocabulary.json").read_text())
FUTURE = "a format of the future"
DIGEST = "sha256:" + "ab" * 32
VKEY = str(VerifierKey("police.gz.example/node-a/journal/1", 1, bytes(32)))
IDENTIFIERS = [
    "11010119900307777X",
    "110101199003077778",
    "RIC:110101199003077778",
    "13800138000",
    "１３８００１３８０００",  # full-width digits
]

NAMES = st.sampled_from(["bureau", "police.gz.example/node-a", "crosscheck/1", "养老", "P-2026-014", DIGEST])
CODES = st.sampled_from(["no-rule", "job-end", "job.refused", "a1"])
COUNTS = st.integers(0, 10**10 - 1)
VALUES = {
    "sha256: and 64 hex digits": st.binary(min_size=32, max_size=32).map(lambda b: "sha256:" + b.hex()),
    FIELDS["requester"].says: NAMES,
    FIELDS["release"].says: st.binary(min_size=16, max_size=16).map(bytes.hex),
    FIELDS["roles"].says: st.lists(NAMES, max_size=5),
    FIELDS["code"].says: CODES,
    FIELDS["rows"].says: COUNTS,
    FIELDS["bytes"].says: st.integers(0, 2**53 - 1),
    FIELDS["step_ms"].says: st.integers(1 - 2**53, 2**53 - 1),
    FIELDS["retry"].says: st.booleans(),
    FIELDS["cost"].says: st.sampled_from(["0", "0.50", "12.000001"]),
    FIELDS["class"].says: st.sampled_from("ABC"),
    FIELDS["created"].says: st.datetimes(
        datetime(2000, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC)
    ).map(format_time),
    FIELDS["vkey"].says: st.just(VKEY),
}


@st.composite
def entries(draw) -> Entry:
    v = draw(st.sampled_from(sorted(KINDS_BY_VERSION)))
    kind = draw(st.sampled_from(sorted(KINDS_BY_VERSION[v])))
    published = KINDS_BY_VERSION[v][kind]
    optional = draw(st.sets(st.sampled_from(sorted(published.optional)))) if published.optional else set()
    about_job = draw(st.booleans()) if published.job is None else published.job
    return Entry(
        log=draw(st.sampled_from(["police.gz.example/node-a/journal/1", "民政.example"])),
        seq=draw(st.integers(0, 2**53 - 1)),
        time=draw(VALUES[FIELDS["created"].says]),
        kind=kind,
        job=DIGEST if about_job else "",
        attempt=draw(st.integers(0, 2**31 - 1)),
        policy=draw(st.none() | st.builds(PolicyRef, COUNTS, st.just(DIGEST), st.sampled_from(["", "R2"]))),
        actor=draw(st.just("") | NAMES),
        body={key: draw(VALUES[FIELDS[key].says]) for key in published.required | optional},
        refs=tuple(draw(st.lists(st.just(DIGEST), max_size=3))),
        v=v,
    )


@pytest.fixture
def v1_reader(monkeypatch) -> None:
    """A reader of the time when v = 1 was all there was."""
    monkeypatch.setattr(entries_module, "KINDS_BY_VERSION", {1: KINDS_BY_VERSION[1]})


@pytest.fixture
def v2_reader(monkeypatch) -> None:
    """A reader of the time when v = 2 was the newest."""
    monkeypatch.setattr(entries_module, "KINDS_BY_VERSION", {v: KINDS_BY_VERSION[v] for v in (1, 2)})


@pytest.fixture
def v3_reader(monkeypatch) -> None:
    """A reader of the time when v = 3 was the newest."""
    monkeypatch.setattr(entries_module, "KINDS_BY_VERSION", {v: KINDS_BY_VERSION[v] for v in (1, 2, 3)})


@pytest.mark.parametrize("v", KINDS_BY_VERSION)
def test_a_published_vocabulary_never_changes(v):
    found = {
        kind: {
            "required": sorted(published.required),
            "optional": sorted(published.optional),
            "job": published.job,
        }
        for kind, published in KINDS_BY_VERSION[v].items()
    }
    assert found == VOCABULARY[str(v)]


def test_every_published_vocabulary_is_pinned_and_the_newest_is_written():
    assert {str(v) for v in KINDS_BY_VERSION} == VOCABULARY.keys() - {"what"}
    assert max(KINDS_BY_VERSION) == VERSION
    assert ENTRY_KINDS is KINDS_BY_VERSION[VERSION]


def test_what_a_kind_may_say_only_grows():
    for v in range(2, VERSION + 1):
        for kind, before in KINDS_BY_VERSION[v - 1].items():
            now = KINDS_BY_VERSION[v][kind]
            assert (now.required, now.job) == (before.required, before.job)
            assert now.optional >= before.optional


@pytest.mark.parametrize("kind", sorted(ENTRY_KINDS))
def test_every_body_key_of_a_kind_has_a_type_and_is_listed_once(kind):
    published = ENTRY_KINDS[kind]
    assert published.required | published.optional <= FIELDS.keys()
    assert not published.required & published.optional
    assert published.says


def test_every_field_is_used_by_some_kind():
    used = set().union(*(kind.required | kind.optional for kind in ENTRY_KINDS.values()))
    assert used == FIELDS.keys()


def test_the_published_entry_is_read_and_written_back():
    data = VECTORS["good"].encode()
    entry = Entry.decode(data)
    assert entry.encode() == data
    assert (entry.seq, entry.kind, entry.policy) == (12, "job.received", PolicyRef(7, DIGEST, "R5"))


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda c: c["why"])
def test_a_bad_entry_is_refused_at_the_step_that_must_fail(case, v1_reader):
    with pytest.raises(DecodeError) as caught:
        Entry.decode(case["entry"].encode())
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda c: c["why"])
def test_what_a_reader_of_v1_refused_is_refused_still_unless_it_was_the_future(case):
    data = case["entry"].encode()
    if case["why"] == FUTURE:
        assert Entry.decode(data).v == 2
        return
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data)
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("data", VECTORS_V2["good"], ids=lambda d: json.loads(d)["kind"])
def test_an_entry_of_v2_is_read_and_written_back(data):
    entry = Entry.decode(data.encode())
    assert (entry.v, entry.encode()) == (2, data.encode())


@pytest.mark.parametrize("data", VECTORS_V2["good"], ids=lambda d: json.loads(d)["kind"])
def test_a_reader_of_v1_says_that_it_is_too_old_for_an_entry_of_v2(data, v1_reader):
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data.encode())
    assert (caught.value.code, caught.value.hint) == (
        "unknown-version",
        "read this log with a newer release",
    )


def test_the_vectors_of_v2_hold_every_kind_and_key_that_is_new_in_it():
    said = {entry["kind"]: entry["body"].keys() for entry in map(json.loads, VECTORS_V2["good"])}
    for kind, now in KINDS_BY_VERSION[2].items():
        before = KINDS_BY_VERSION[1].get(kind)
        if now != before:
            assert said[kind] >= (now.optional - before.optional if before else now.required), kind


@pytest.mark.parametrize("case", VECTORS_V2["bad"], ids=lambda c: c["why"])
def test_a_bad_entry_of_v2_is_refused_at_the_step_that_must_fail(case, v2_reader):
    with pytest.raises(DecodeError) as caught:
        Entry.decode(case["entry"].encode())
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", VECTORS_V2["bad"], ids=lambda c: c["why"])
def test_what_a_reader_of_v2_refused_is_refused_still_unless_it_was_the_future(case):
    data = case["entry"].encode()
    if case["why"] == FUTURE:
        assert Entry.decode(data).v == 3
        return
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data)
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("data", VECTORS_V3["good"], ids=lambda d: json.loads(d)["kind"])
def test_an_entry_of_v3_is_read_and_written_back(data):
    entry = Entry.decode(data.encode())
    assert (entry.v, entry.encode()) == (3, data.encode())


@pytest.mark.parametrize("data", VECTORS_V3["good"], ids=lambda d: json.loads(d)["kind"])
def test_a_reader_of_v2_says_that_it_is_too_old_for_an_entry_of_v3(data, v2_reader):
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data.encode())
    assert (caught.value.code, caught.value.hint) == (
        "unknown-version",
        "read this log with a newer release",
    )


def test_the_vectors_of_v3_hold_every_kind_and_key_that_is_new_in_it():
    said = {kind: set() for kind in KINDS_BY_VERSION[3]}
    for entry in map(json.loads, VECTORS_V3["good"]):
        said[entry["kind"]] |= entry["body"].keys()
    for kind, now in KINDS_BY_VERSION[3].items():
        before = KINDS_BY_VERSION[2].get(kind)
        if now != before:
            new = now.optional - before.optional if before else now.required | now.optional
            assert said[kind] >= new, kind


@pytest.mark.parametrize("case", VECTORS_V3["bad"], ids=lambda c: c["why"])
def test_a_bad_entry_of_v3_is_refused_at_the_step_that_must_fail(case, v3_reader):
    with pytest.raises(DecodeError) as caught:
        Entry.decode(case["entry"].encode())
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", VECTORS_V3["bad"], ids=lambda c: c["why"])
def test_what_a_reader_of_v3_refused_is_refused_still_unless_it_was_the_future(case):
    data = case["entry"].encode()
    if case["why"] == FUTURE:
        assert Entry.decode(data).v == 4
        return
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data)
    assert caught.value.code == case["code"]


GOOD_LATER = [(v, data) for v, vectors in LATER.items() for data in vectors["good"]]
BAD_LATER = [(v, case) for v, vectors in LATER.items() for case in vectors["bad"]]


@pytest.fixture
def reader_until(monkeypatch):
    """Make a reader of the time when a version was the newest."""

    def of(newest: int) -> None:
        known = {v: KINDS_BY_VERSION[v] for v in range(1, newest + 1)}
        monkeypatch.setattr(entries_module, "KINDS_BY_VERSION", known)

    return of


@pytest.mark.parametrize(("v", "data"), GOOD_LATER, ids=[json.loads(d)["kind"] for _, d in GOOD_LATER])
def test_an_entry_of_a_later_version_is_read_and_a_reader_of_the_one_before_says_that_it_is_too_old(
    v, data, reader_until
):
    entry = Entry.decode(data.encode())
    assert (entry.v, entry.encode()) == (v, data.encode())
    reader_until(v - 1)
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data.encode())
    assert (caught.value.code, caught.value.hint) == (
        "unknown-version",
        "read this log with a newer release",
    )


@pytest.mark.parametrize("v", LATER)
def test_the_vectors_of_a_version_hold_every_kind_and_key_that_is_new_in_it(v):
    said = {kind: set() for kind in KINDS_BY_VERSION[v]}
    for entry in map(json.loads, LATER[v]["good"]):
        said[entry["kind"]] |= entry["body"].keys()
    for kind, now in KINDS_BY_VERSION[v].items():
        before = KINDS_BY_VERSION[v - 1].get(kind)
        if now != before:
            new = now.optional - before.optional if before else now.required | now.optional
            assert said[kind] >= new, kind


@pytest.mark.parametrize(("v", "case"), BAD_LATER, ids=[f"{v}: {case['why']}" for v, case in BAD_LATER])
def test_a_bad_entry_of_a_later_version_is_refused_then_and_now_unless_it_was_the_future(
    v, case, reader_until
):
    data = case["entry"].encode()
    if case["why"] == FUTURE and v < VERSION:
        assert Entry.decode(data).v == v + 1
    else:
        with pytest.raises(DecodeError) as caught:
            Entry.decode(data)
        assert caught.value.code == case["code"]
    reader_until(v)
    with pytest.raises(DecodeError) as caught:
        Entry.decode(data)
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("text", ["0", "0.000000000000001", "9999999999", "9999999999.99999999999999999999"])
def test_an_amount_is_exact_from_the_smallest_delta_to_ten_digits(text):
    for key in ("cost", "spent", "limit", "rho", "delta"):
        assert FIELDS[key].accepts(text)


@pytest.mark.parametrize(
    "wrong", ["1e-9", "-1", "+1", "01", ".5", "5.", "1_0", "１", "", "10000000000", 1, 0.5]
)
def test_an_amount_has_one_spelling(wrong):
    for key in ("cost", "spent", "limit", "rho", "delta"):
        assert not FIELDS[key].accepts(wrong)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(entries())
def test_entries_round_trip(entry):
    data = entry.encode()
    assert Entry.decode(data) == entry
    assert json.loads(data).keys() == {
        "v", "log", "seq", "time", "kind", "job", "attempt", "policy", "actor", "body", "refs",
    }  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(entries(), st.data())
def test_other_bytes_are_another_entry_or_none(entry, data):
    original = entry.encode()
    at = data.draw(st.integers(0, len(original) - 1))
    changed = original[:at] + bytes([data.draw(st.integers(0, 255))]) + original[at + 1 :]
    if changed == original:
        return
    try:
        decoded = Entry.decode(changed)
    except DecodeError:
        return
    assert decoded != entry
    assert decoded.encode() == changed


def outcome(decode, data: bytes) -> Entry | tuple[str, str]:
    try:
        return decode(data)
    except DecodeError as error:
        return error.code, error.message


SPELLINGS = st.sampled_from(
    [
        (b'"seq":', b'"seq": '),
        (b'"v":', b'"v":0'),
        (b'"attempt":', b'"attempt":-'),
        (b'"attempt":0', b'"attempt":0.0'),
        (b'"attempt":1', b'"attempt":1e0'),
        (b'"job"', b'"\\u006aob"'),
        (b'"body":{', b'"body":{"a":1.5,'),
        (b'"body":{', b'"body":{"rows":18446744073709551616,'),
        (b'"body":{', b'"body":{"rows":100000.0,'),
        (b'"body":{', b'"body":{"\xe5\x88\x97":[[[[]]]],'),
        (b'"kind"', b'"kind":"clock.step","kind"'),
        (b"}", b',"z":null}'),
        (b'"refs":[]', b'"refs":null'),
        (b'"policy":null', b'"policy":{"rule":""}'),
        (b'"actor":""', b'"actor":"\xed\xa0\x80"'),
        (b'"actor":""', b'"actor":null'),
        (b"{", b"\xef\xbb\xbf{"),
        (b"sha256:", b"sha256\x00"),
    ]
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=200)
@given(entries(), st.data())
def test_the_fast_way_to_read_an_entry_says_what_the_strict_one_says(entry, data):
    original = entry.encode()
    strict = Entry._decode_strictly
    assert outcome(Entry.decode, original) == strict(original) == Entry.reread(original) == entry
    assert canonical_json(entry._document()) == original
    if data.draw(st.booleans()):
        changed = original.replace(*data.draw(SPELLINGS), 1)
    else:
        at = data.draw(st.integers(0, len(original)))
        cut = data.draw(st.integers(0, 2))
        changed = original[:at] + data.draw(st.binary(max_size=2)) + original[at + cut :]
    assert outcome(Entry.decode, changed) == outcome(strict, changed)


@pytest.mark.parametrize(
    "case", [*VECTORS["bad"], *VECTORS_V2["bad"], *VECTORS_V3["bad"]], ids=lambda c: c["why"]
)
def test_both_ways_refuse_the_published_bad_entries_alike(case):
    data = case["entry"].encode()
    assert outcome(Entry.decode, data) == outcome(Entry._decode_strictly, data)


class Text(str):
    """Text that is not quite a str."""

    __slots__ = ()


@pytest.mark.parametrize("origin", ['a"b', "a\\b", "a\x7fb", "民政/𝔸", Text("plain")])
def test_what_the_fast_encoder_is_not_sure_of_is_written_by_the_reference(origin):
    entry = Entry(origin, 1, "2026-12-01T08:00:00.000Z", "clock.step", "", 0, None, "", {}, ())
    data = entry.encode()
    assert data == rfc8785.dumps(entry._document())
    assert Entry.decode(data) == entry


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(entries())
def test_a_draft_in_its_place_is_the_entry(entry):
    draft = Draft.of(
        log=entry.log,
        kind=entry.kind,
        body=entry.body,
        job=entry.job,
        attempt=entry.attempt,
        policy=entry.policy,
        actor=entry.actor,
        refs=entry.refs,
        v=entry.v,
    )
    assert draft.at(entry.seq, entry.time) == entry.encode()


def longest(surplus: int) -> dict:
    """What an entry of 65,535 bytes at the longest place says, and `surplus` bytes more."""
    lists = [key for key in sorted(ENTRY_KINDS["job.refused"].optional) if FIELDS[key] is FIELDS["columns"]]
    said = {
        "log": "police.gz.example/node-a/journal/1",
        "kind": "job.refused",
        "job": DIGEST,
        "refs": [DIGEST] * 64,
        "body": {"code": "no-rule"} | {key: [] for key in lists},
    }
    empty = len(Draft.of(**said).at(2**53 - 1, "9999-12-31T23:59:59.999Z"))
    room = 65_535 + surplus - empty
    for key in lists:
        while room and len(said["body"][key]) < 64:
            comma = 1 if said["body"][key] else 0
            length = min(200, room - 2 - comma)
            left = room - length - 2 - comma
            if 0 < left < 4:
                length -= 4  # else what is left could not be a name
            said["body"][key].append("x" * length)
            room -= length + 2 + comma
    assert room == 0
    return said


def test_an_entry_has_at_most_65_535_bytes_at_the_longest_place():
    draft = Draft.of(**longest(0))
    data = draft.at(2**53 - 1, "9999-12-31T23:59:59.999Z")
    assert len(data) == 65_535
    assert Entry.decode(data).encode() == data
    with pytest.raises(DecodeError) as caught:
        Draft.of(**longest(1))
    assert caught.value.code == "too-long"
    longer = data.replace(b'"attempt":0', b'"attempt":10')
    assert len(longer) == 65_536
    assert outcome(Entry.decode, longer)[0] == "too-long"


def test_a_journal_keeps_the_longest_entry_and_refuses_a_longer_one(tmp_path):
    place = Place(tmp_path)
    said = longest(0)
    named = {"kind": said["kind"], "body": said["body"], "job": said["job"], "refs": said["refs"]}
    with place.open() as journal:
        seq = journal.record(**named)
        with pytest.raises(DecodeError) as caught:
            journal.record(**(named | {"attempt": 10}))
        assert (seq, caught.value.code, journal.size) == (1, "too-long", 2)
    assert verify_directory(place.directory, [place.vkey]).ok
    with place.open() as journal:
        assert next(journal.entries(1)).body == said["body"]


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_no_named_value_can_be_a_resident_id_or_telephone_number(identifier):
    named = {key: kind for key, kind in FIELDS.items() if kind.accepts("bureau")}
    assert {"requester", "purpose", "code", "dataset", "column"} <= named.keys()
    for key, kind in named.items():
        assert not kind.accepts(identifier), key
        assert not kind.accepts("P-" + identifier), key


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_no_list_can_hold_one_either(identifier):
    lists = {key: kind for key, kind in FIELDS.items() if kind.accepts(["bureau"])}
    assert {"recipients", "columns"} <= lists.keys()
    for key, kind in lists.items():
        assert not kind.accepts(["bureau", identifier]), key


def test_no_count_can_be_a_telephone_number_or_resident_id():
    for key in ("rows", "count", "version", "line"):
        assert FIELDS[key].accepts(23_000_000)
        assert not FIELDS[key].accepts(13_800_138_000)
        assert not FIELDS[key].accepts(110101199003077778)


def test_a_refusal_repeats_neither_the_value_nor_a_key_that_may_be_data():
    for body in ({"code": "11010119900307777X"}, {"code": "ok", "11010119900307777X": 1}):
        with pytest.raises(DecodeError) as caught:
            check_statement("job.refused", body, job=DIGEST)
        assert "1101" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("kind", "job"), [("job.refused", ""), ("policy.activate", DIGEST), ("job.refused", 5)]
)
def test_a_kind_says_whether_it_is_about_a_job(kind, job):
    body = {"code": "no-rule"} if kind == "job.refused" else {"version": 1, "sha256": DIGEST}
    with pytest.raises(DecodeError, match="job of"):
        check_statement(kind, body, job=job)


def test_a_deletion_may_or_may_not_be_about_a_job():
    check_statement("deletion.receipt", {"what": "intermediate"}, job=DIGEST)
    check_statement("deletion.receipt", {"what": "dataset"})


def test_an_entry_that_does_not_fit_in_a_tile_is_refused():
    body = {key: ["养" * 200] * 64 for key in ("recipients", "participants")} | {"admission_sha256": DIGEST}
    entry = Entry("log", 0, "2026-12-01T00:00:00.000Z", "job.admitted", DIGEST, 1, None, "", body, ())
    with pytest.raises(DecodeError) as caught:
        entry.encode()
    assert caught.value.code == "too-long"
    with pytest.raises(DecodeError) as caught:
        Entry.decode(canonical_json(["x" * 65_535]))
    assert caught.value.code == "too-long"


def test_times_are_utc_text_with_milliseconds():
    beijing = datetime(2026, 12, 1, 8, 0, 0, 123_999, tzinfo=timezone(timedelta(hours=8)))
    assert format_time(beijing) == "2026-12-01T00:00:00.123Z"
    assert parse_time("2026-12-01T00:00:00.123Z") == datetime(2026, 12, 1, 0, 0, 0, 123_000, tzinfo=UTC)
    with pytest.raises(InputError):
        format_time(datetime(2026, 12, 1))
