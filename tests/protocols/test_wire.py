"""The signed documents of a job: one byte form each, refused in every other."""

import copy
import json
import random
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import key_id
from protocols.errors import DecodeError
from protocols.ids import DatasetName, JobId, KeyId, NodeName, Organisation, Role
from protocols.wire import (
    MAX_JOB_BYTES,
    MAX_PARTICIPANTS,
    MAX_TEXT,
    Admission,
    Approval,
    Constraints,
    CostLine,
    Freshness,
    Head,
    InputSummary,
    JobInput,
    JobSpec,
    Leaving,
    NextRoots,
    Outcome,
    Receipt,
    ReleaseNote,
    Roster,
    RosterAnalyst,
    RosterCoordinator,
    RosterNode,
    RosterOrganisation,
    Rotation,
    Verdict,
    civil_day,
    context,
    organisation_of,
    parse_utc,
    strictest,
    utc_text,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text("utf-8"))

# ---------------------------------------------------------------- any valid document

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True)
COLUMNS = st.from_regex(r"[^\W\d]\w{0,6}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20)
DIGESTS = st.binary(max_size=4).map(sha256_digest)
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)).map(
    lambda t: t.replace(microsecond=0)
)
NONCES = st.binary(min_size=16, max_size=16).map(bytes.hex)
COUNTS = st.integers(0, 2**53 - 1)
FRACTIONS = st.fractions(0, 1, max_denominator=10**9)


@st.composite
def jobs(draw: Any) -> JobSpec:
    roles = {
        Role(role): NodeName(f"{draw(NAMES)}/node-{n}")
        for n, role in enumerate(draw(st.lists(NAMES, max_size=4, unique=True)))
    }
    givers = [role for role in roles if draw(st.booleans())]
    created = draw(TIMES.filter(lambda t: t.year < 9999))
    return JobSpec(
        job_type=draw(st.from_regex(r"[a-z][a-z-]{0,6}/[1-9]", fullmatch=True)),
        params=draw(
            st.dictionaries(TEXT, COUNTS | TEXT | st.booleans() | st.none() | st.lists(TEXT), max_size=3)
        ),
        inputs=tuple(
            JobInput(
                role,
                organisation_of(roles[role]),
                DatasetName(draw(st.from_regex(r"[a-z0-9][a-z0-9_]{0,5}[a-z0-9]", fullmatch=True))),
                draw(st.dictionaries(COLUMNS, COLUMNS, max_size=3)),
            )
            for role in givers
        ),
        roles=roles,
        purpose=draw(TEXT),
        legal_basis=draw(TEXT),
        expected_use=draw(TEXT),
        recipients=tuple(Organisation(name) for name in draw(st.lists(NAMES, max_size=3))),
        requester=KeyId(draw(DIGESTS)),
        collaboration=draw(NAMES),
        roster_digest=draw(DIGESTS),
        created=created,
        expires=created + timedelta(seconds=draw(st.integers(1, 10**6))),
        nonce=draw(NONCES),
    )


CONSTRAINTS = st.builds(
    Constraints,
    min_group_size=st.none() | COUNTS,
    min_organisations=st.none() | COUNTS,
    min_sources=st.none() | COUNTS,
    max_rows=st.none() | COUNTS,
    max_fraction=st.none() | FRACTIONS,
    min_coverage=st.none() | FRACTIONS,
    max_runtime_s=st.none() | COUNTS,
)
NODES = st.tuples(NAMES, NAMES).map(lambda pair: NodeName("/".join(pair)))
ATTEMPTS = st.integers(1, 1 << 20)

ADMISSIONS = st.builds(
    Admission,
    job=DIGESTS.map(JobId),
    attempt=ATTEMPTS,
    node=NODES,
    suite=st.integers(1, 255),
    key=st.binary(max_size=40),
    roster_digest=DIGESTS,
    participants=st.dictionaries(NAMES.map(Role), NODES, max_size=3),
    policy_version=st.integers(1, 2**53 - 1),
    policy_digest=DIGESTS,
    rule=TEXT,
    constraints=CONSTRAINTS,
    inputs=st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9_]{0,5}[a-z0-9]", fullmatch=True).map(DatasetName),
        st.builds(
            InputSummary,
            rows=COUNTS,
            distinct_keys=COUNTS,
            catalogue_keys=COUNTS,
            commitment=DIGESTS,
            snapshot=TEXT,
            quality_sha256=DIGESTS,
            rule_version=TEXT,
        ),
        max_size=2,
    ),
    not_after=TIMES,
)

DECIMALS = st.from_regex(r"(0|[1-9][0-9]{0,9})(\.[0-9]{1,9})?", fullmatch=True)

VERDICTS = st.builds(
    Verdict,
    job=DIGESTS.map(JobId),
    attempt=st.integers(0, 1 << 20),
    node=NODES,
    answer=st.sampled_from(["permit", "ask", "refuse"]),
    rule=TEXT,
    code=TEXT,
    sentence=TEXT,
    hint=TEXT,
    approvals_needed=st.integers(0, 99),
    approvals_given=st.integers(0, 99),
    approvers=st.lists(NAMES, max_size=3).map(tuple),
    costs=st.lists(
        st.builds(
            CostLine,
            budget=NAMES,
            notion=NAMES,
            cost=DECIMALS,
            remaining=DECIMALS,
            limit=DECIMALS,
            until=TIMES,
        ),
        max_size=2,
    ).map(tuple),
    leaves=st.lists(
        st.builds(
            Leaving,
            name=NAMES,
            output_class=st.sampled_from("ABC"),
            recipient=NAMES.map(Organisation),
            made_by=NAMES.map(Role),
        ),
        max_size=2,
    ).map(tuple),
    answered=st.just("") | DIGESTS,
    sentence_zh=TEXT,
    hint_zh=TEXT,
)

APPROVALS = st.builds(
    Approval,
    job=DIGESTS.map(JobId),
    node=NODES,
    policy_digest=DIGESTS,
    rule=TEXT,
    cost=TEXT,
    issued=TIMES,
    expires=TIMES,
    nonce=NONCES,
)

RELEASES = st.builds(
    ReleaseNote,
    release=NONCES,
    job=DIGESTS.map(JobId),
    attempt=ATTEMPTS,
    node=NODES,
    name=NAMES,
    output_class=st.sampled_from("ABC"),
    recipient=NAMES.map(Organisation),
    sealed_to=DIGESTS,
    suite=st.integers(1, 255),
    sha256=DIGESTS,
    content_sha256=DIGESTS,
    statement=TEXT,
    created=TIMES,
    expires=TIMES,
)


COORDINATORS = st.builds(
    lambda name, key: RosterCoordinator(name, vkey(f"{name}/journal/1", 1, key)),
    NODES,
    st.binary(min_size=32, max_size=32),
)

NEXT_ROOTS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4, unique=True).flatmap(
    lambda keys: st.integers(1, len(keys)).map(lambda n: NextRoots(n, tuple(sorted(keys))))
)


def vkey(name: str, kind: int, key: bytes) -> str:
    """Return a verifier key line, as C2SP signed-note says."""
    data = bytes((kind,)) + key
    label = sha256(name.encode() + b"\n" + data).hexdigest()[:8]
    return f"{name}+{label}+{b64encode(data).decode()}"


@st.composite
def rosters(draw: Any) -> Roster:
    members = draw(st.lists(NAMES, max_size=3, unique=True))
    keys = iter(draw(st.lists(st.binary(min_size=32, max_size=32), min_size=13, max_size=13, unique=True)))

    def cosigner(name: str) -> tuple[str, ...]:
        line = f"{name}/witness/{draw(st.integers(1, 9))}"
        both = (vkey(line, 4, next(keys)), vkey(line, 6, next(keys) * 41))
        return both[: draw(st.integers(0, 2))]

    return Roster(
        collaboration=draw(NAMES),
        version=draw(st.integers(1, 2**53 - 1)),
        previous=draw(st.none() | DIGESTS),
        suite=draw(st.integers(1, 255)),
        issued=draw(TIMES),
        expires=draw(TIMES),
        organisations=tuple(RosterOrganisation(Organisation(m), draw(TEXT)) for m in members),
        nodes=tuple(
            RosterNode(
                NodeName(f"{m}/n"),
                next(keys),
                draw(DIGESTS),
                draw(TEXT),
                draw(st.binary(max_size=40)),
                cosigner(f"{m}/n"),
            )
            for m in members
        ),
        analysts=tuple(
            RosterAnalyst(f"li@{m}", Organisation(m), next(keys), draw(st.binary(max_size=40)))
            for m in members
        ),
        freshness_keys=tuple(next(keys) for _ in range(draw(st.integers(0, 1)))),
        roots=draw(st.none() | NEXT_ROOTS),
        coordinator=draw(st.none() | COORDINATORS),
    )


FRESHNESS = st.builds(
    Freshness, collaboration=NAMES, version=st.integers(1, 2**53 - 1), sha256=DIGESTS, issued=TIMES
)

ROTATIONS = st.builds(
    lambda keys, **facts: Rotation(previous_key=keys[0], next_key=keys[1], **facts),
    keys=st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=2, unique=True),
    node=NODES,
    journal_size=COUNTS,
    journal_root=DIGESTS,
    issued=TIMES,
)

OUTCOMES = st.builds(
    lambda figures, **facts: Outcome(checked=max(figures), confirmed=min(figures), **facts),
    figures=st.tuples(COUNTS, COUNTS),
    job=DIGESTS.map(JobId),
    by=NODES | DIGESTS,
    note=TEXT,
    filed=TIMES,
)


ORIGINS = st.tuples(NODES, st.integers(1, 99)).map(lambda log: f"{log[0]}/journal/{log[1]}")

HEADS = st.builds(
    lambda seen, **facts: Head(size=seen[0], root=seen[1], **facts),
    seen=st.just((0, None)) | st.tuples(st.integers(1, 2**53 - 1), DIGESTS),
    nonce=st.binary(min_size=32, max_size=32),
    log=ORIGINS,
    witness=NODES,
    issued=TIMES,
)

RECEIPTS = st.builds(
    Receipt,
    job=DIGESTS.map(JobId),
    attempt=st.integers(1, 1 << 20),
    node=NODES,
    kind=st.just("output.commit"),
    release=NONCES,
    sha256=DIGESTS,
    note_sha256=DIGESTS,
    log=ORIGINS,
    seq=COUNTS,
    issued=TIMES,
)


DOCUMENTS = {
    JobSpec: jobs(),
    Admission: ADMISSIONS,
    Verdict: VERDICTS,
    Approval: APPROVALS,
    ReleaseNote: RELEASES,
    Roster: rosters(),
    Freshness: FRESHNESS,
    Rotation: ROTATIONS,
    Outcome: OUTCOMES,
    Head: HEADS,
    Receipt: RECEIPTS,
}
KINDS = pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda k: k.__name__)

# ---------------------------------------------------------------- one example of each

T0 = datetime(2026, 11, 22, 8, tzinfo=UTC)
DIGEST = sha256_digest(b"example")
POLICE, CIVIL, NEUTRAL = (
    NodeName("police.gz.example/node-a"),
    NodeName("civil-affairs.gz.example/node-a"),
    NodeName("data-bureau.gz.example/neutral"),
)
ROLES = {Role("register"): POLICE, Role("source-1"): CIVIL, Role("matcher"): NEUTRAL}

JOB = JobSpec(
    job_type="crosscheck/1",
    params={"k": 1},
    inputs=(
        JobInput(Role("register"), organisation_of(POLICE), DatasetName("population"), {"key": "person_id"}),
        JobInput(Role("source-1"), organisation_of(CIVIL), DatasetName("elder_subsidy"), {"key": "证件号码"}),
    ),
    roles=ROLES,
    purpose="P-2026-014",
    legal_basis="DPIA-2026-031",
    expected_use="核实后补登户口",
    recipients=(organisation_of(POLICE),),
    requester=key_id(bytes(32)),
    collaboration="gz-population",
    roster_digest=DIGEST,
    created=T0,
    expires=T0 + timedelta(days=1),
    nonce="00112233445566778899aabbccddeeff",
)
ADMISSION = Admission(
    job=JOB.job_id,
    attempt=1,
    node=CIVIL,
    suite=1,
    key=bytes(range(32)),
    roster_digest=DIGEST,
    participants=ROLES,
    policy_version=7,
    policy_digest=DIGEST,
    rule="R5",
    constraints=Constraints(min_sources=2, max_rows=20_000, max_fraction=Fraction(3, 10)),
    inputs={DatasetName("elder_subsidy"): InputSummary(100, 90, 91, DIGEST, "2026-11-21", DIGEST, "ids/1")},
    not_after=T0,
)
ROSTER = Roster(
    collaboration="gz-population",
    version=2,
    previous=DIGEST,
    suite=1,
    issued=T0,
    expires=T0 + timedelta(days=90),
    organisations=tuple(RosterOrganisation(organisation_of(n), "某市某局") for n in ROLES.values()),
    nodes=tuple(
        RosterNode(
            n,
            bytes((i,)) * 32,
            DIGEST,
            vkey(f"{n}/journal/1", 1, bytes((i,)) * 32),
            b"\1" * 32,
            (
                vkey(f"{n}/witness/1", 4, bytes((0x20 + i,)) * 32),
                vkey(f"{n}/witness/1", 6, bytes((0x20 + i,)) * 1312),
            )[: i - 1],
        )
        for i, n in enumerate(ROLES.values(), 1)
    ),
    analysts=(RosterAnalyst("li@bureau", organisation_of(NEUTRAL), b"\x10" * 32, b"\2" * 32),),
    freshness_keys=(b"\x11" * 32,),
    roots=NextRoots(2, (b"\x12" * 32, b"\x13" * 32)),
    coordinator=RosterCoordinator(
        NodeName("data-bureau.gz.example/coordinator"),
        vkey("data-bureau.gz.example/coordinator/journal/1", 1, b"\x14" * 32),
    ),
)
EXAMPLES: dict[type, Any] = {
    JobSpec: JOB,
    Admission: ADMISSION,
    Verdict: Verdict(
        JOB.job_id,
        1,
        CIVIL,
        "ask",
        "R5",
        "needs-approval",
        "两人批准",
        "minshu-node approve",
        2,
        1,
        ("owner",),
        (CostLine("rows_quarter", "rows", "20000", "40000", "60000", T0),),
        (Leaving("records", "B", organisation_of(POLICE), Role("register")),),
        DIGEST,
    ),
    Approval: Approval(JOB.job_id, CIVIL, DIGEST, "R5", "0", T0, T0, "0" * 32),
    ReleaseNote: ReleaseNote(
        "f" * 32,
        JOB.job_id,
        1,
        POLICE,
        "street-table",
        "A",
        Organisation("bureau"),
        DIGEST,
        1,
        DIGEST,
        DIGEST,
        "",
        T0,
        T0,
    ),
    Roster: ROSTER,
    Freshness: Freshness("gz-population", 2, ROSTER.digest, T0),
    Rotation: Rotation(CIVIL, b"\1" * 32, b"\2" * 32, 41, DIGEST, T0),
    Outcome: Outcome(JOB.job_id, POLICE, 1_347_400, 789_700, "三个月内核实", T0),
    Head: Head(bytes(range(32)), f"{CIVIL}/journal/1", 4711, DIGEST, POLICE, T0),
    Receipt: Receipt(
        JOB.job_id, 1, POLICE, "output.commit", "f" * 32, DIGEST, DIGEST, f"{POLICE}/journal/1", 4710, T0
    ),
}


def plain(kind: type) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(EXAMPLES[kind].encode())
    return value


def refusal(kind: Any, payload: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        kind.decode(payload if isinstance(payload, bytes) else canonical_json(payload))
    return caught.value.code


# ---------------------------------------------------------------- vectors

BY_NAME = {kind.__name__: kind for kind in DOCUMENTS}


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda v: v["name"])
def test_good_vectors_decode_to_the_same_bytes(vector):
    payload = vector["payload"].encode()
    assert sha256_digest(payload) == vector["digest"]
    assert BY_NAME[vector["type"]].decode(payload).encode() == payload


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda v: f"{v['type']}: {v['name']}")
def test_bad_vectors_fail_at_their_step(vector):
    assert refusal(BY_NAME[vector["type"]], vector["payload"].encode()) == vector["fails"]


def test_the_vectors_cover_every_document():
    for part in ("good", "bad"):
        assert {vector["type"] for vector in VECTORS[part]} == set(BY_NAME)


def test_the_context_vector():
    vector = VECTORS["context"]
    admissions = [Admission.decode(text.encode()) for text in vector["admissions"]]
    assert context(admissions).hex() == vector["ctx"]


# ---------------------------------------------------------------- round trips and tampering


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_document_round_trips(kind, data):
    document = data.draw(DOCUMENTS[kind])
    payload = document.encode()
    assert kind.decode(payload) == document
    assert kind.decode(payload).encode() == payload


@KINDS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_is_another_document(kind, data):
    example = EXAMPLES[kind]
    payload = bytearray(example.encode())
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = kind.decode(bytes(payload))
    except DecodeError:
        return
    # What is accepted has exactly the received bytes as its one form, so digests agree everywhere.
    assert decoded != example
    assert decoded.encode() == bytes(payload)


@KINDS
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_cut_or_lengthened_document_is_refused(kind, data):
    payload = EXAMPLES[kind].encode()
    cut = data.draw(st.integers(0, len(payload) - 1))
    assert refusal(kind, payload[:cut]) == "not-json"
    assert refusal(kind, payload + data.draw(st.binary(min_size=1, max_size=3))) in {
        "not-canonical",
        "not-json",
    }


@KINDS
@given(data=st.binary(max_size=60))
@settings(max_examples=30, deadline=None)
def test_arbitrary_bytes_are_a_clear_error(kind, data):
    refusal(kind, data)


@KINDS
def test_a_document_of_another_kind_is_refused(kind):
    for other, example in EXAMPLES.items():
        if other is not kind:
            # Some are longer than any document of this kind, and not even parsed.
            assert refusal(kind, example.encode()) in {"unknown-schema", "too-long"}


@KINDS
def test_an_unknown_version_is_refused(kind):
    value = plain(kind)
    name, _, version = value["schema"].partition("/")
    value["schema"] = f"{name}/{int(version) + 1}"
    assert refusal(kind, value) == "unknown-schema"


@KINDS
@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_what_is_no_object_is_refused(kind, value):
    assert refusal(kind, value) == "bad-field"


def objects(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all objects in `value` whose keys are fields, not names chosen by a person."""
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in objects(item, (*path, i))]
    if not isinstance(value, dict):
        return []
    inner = [p for key, item in value.items() for p in objects(item, (*path, key))]
    free = path[-1:] in {("params",), ("roles",), ("columns",), ("participants",)} or path == ("inputs",)
    return inner if free else [path, *inner]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


FIELDS = [
    (kind, path, name) for kind in EXAMPLES for path in objects(plain(kind)) for name in at(plain(kind), path)
]
EACH_FIELD = pytest.mark.parametrize(
    ("kind", "path", "name"),
    FIELDS,
    ids=[f"{kind.__name__}.{'.'.join(map(str, (*path, name)))}" for kind, path, name in FIELDS],
)
OPTIONAL = {f.name for f in fields(Constraints)}
NULLABLE = {"previous", "roots", "coordinator"}


@EACH_FIELD
def test_a_missing_field_is_refused(kind, path, name):
    value = plain(kind)
    del at(value, path)[name]
    if name in OPTIONAL:
        kind.decode(canonical_json(value))
    else:
        assert refusal(kind, value) == "missing-field"


@EACH_FIELD
def test_a_field_of_another_type_is_refused(kind, path, name):
    original = at(plain(kind), path)[name]
    for other in (None, True, 1, 1.5, "", [], {}):
        if type(other) is type(original) or (name in NULLABLE and other is None):
            continue
        value = plain(kind)
        at(value, path)[name] = other
        assert refusal(kind, value) == "bad-field"


@EACH_FIELD
def test_a_boolean_is_no_integer(kind, path, name):
    value = plain(kind)
    if type(at(value, path)[name]) is int:
        at(value, path)[name] = True
        assert refusal(kind, value) == "bad-field"


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind in EXAMPLES for path in objects(plain(kind))],
    ids=lambda x: x.__name__ if isinstance(x, type) else ".".join(map(str, x)),
)
def test_an_unknown_field_is_refused(kind, path):
    value = plain(kind)
    at(value, path)["zz"] = 1
    assert refusal(kind, value) == "unknown-field"


@KINDS
def test_a_duplicate_key_is_refused(kind):
    payload = EXAMPLES[kind].encode()
    name = next(iter(plain(kind)))
    first = payload.index(f'"{name}":'.encode())
    value = json.dumps(plain(kind)[name], ensure_ascii=False, separators=(",", ":")).encode()
    double = payload[:first] + f'"{name}":'.encode() + value + b"," + payload[first:]
    assert refusal(kind, double) == "not-canonical"


@KINDS
def test_another_spelling_is_refused(kind):
    value = plain(kind)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    shuffled = dict(sorted(value.items(), reverse=True))
    for other in (
        json.dumps(value, sort_keys=True),
        json.dumps(shuffled, ensure_ascii=False, separators=(",", ":")),
        text.replace('"schema"', '"\\u0073chema"'),
        text + " ",
    ):
        assert refusal(kind, other.encode()) == "not-canonical"


@EACH_FIELD
def test_a_text_that_is_too_long_is_refused(kind, path, name):
    value = plain(kind)
    if isinstance(at(value, path)[name], str):
        at(value, path)[name] = "a" * 9000
        refusal(kind, value)


FREE_TEXT = {
    JobSpec: ["purpose", "legal_basis", "expected_use"],
    Admission: ["policy.rule", "inputs.elder_subsidy.snapshot", "inputs.elder_subsidy.rule_version"],
    Verdict: ["rule", "code", "sentence", "hint", "sentence_zh", "hint_zh"],
    Approval: ["rule", "cost"],
    ReleaseNote: ["statement"],
    Roster: ["organisations.0.title", "nodes.0.journal_vkey"],
    Outcome: ["note"],
}


@pytest.mark.parametrize(
    ("kind", "where"), [(kind, where) for kind, all_of in FREE_TEXT.items() for where in all_of]
)
def test_text_that_reads_as_something_else_is_refused(kind, where):
    # A terminal obeys escapes, and a right-to-left override shows an approver another text than she signs.
    *path, name = (int(step) if step.isdigit() else step for step in where.split("."))
    for mark in "\x00\x07\x1b\n\r\x7f\x85\x9b\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069":
        value = plain(kind)
        at(value, tuple(path))[name] = f"某{mark}局"
        assert refusal(kind, value) == "bad-field", repr(mark)
    value = plain(kind)
    at(value, tuple(path))[name] = "某局，约 12 人 (é) 🏠"
    kind.decode(canonical_json(value))


def test_a_ten_megabyte_job_is_refused_before_it_is_parsed():
    assert refusal(JobSpec, b'{"purpose":"' + b"a" * (10 << 20) + b'"}') == "too-long"
    fat = plain(JobSpec) | {"params": {"list": ["x" * 100] * (MAX_JOB_BYTES // 100)}}
    assert refusal(JobSpec, fat) == "too-long"


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22T08:00:00",
        "2026-11-22T08:00:00+00:00",
        "2026-11-22t08:00:00z",
        "2026-11-22 08:00:00Z",
        "2026-11-22T08:00:00.0Z",
        "2026-11-22T08:00:00Z\n",
        "2026-02-30T08:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T08:00:60Z",
        "0000-11-22T08:00:00Z",
        "２０２６-11-22T08:00:00Z",
        "٢٠٢٦-11-22T08:00:00Z",
    ],
)
def test_a_moment_has_one_spelling(text):
    with pytest.raises(DecodeError) as caught:
        parse_utc(text)
    assert caught.value.code == "bad-time"


@given(TIMES)
@settings(deadline=None)
def test_a_moment_round_trips_in_every_year(moment):
    assert parse_utc(utc_text(moment)) == moment
    assert len(utc_text(moment)) == 20


def test_a_moment_is_written_in_utc_without_fractions():
    beijing = timezone(timedelta(hours=8))
    assert utc_text(datetime(2026, 11, 22, 16, 0, 0, 999_999, beijing)) == "2026-11-22T08:00:00Z"


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-11-21T15:59:59Z", date(2026, 11, 21)),
        ("2026-11-21T16:00:00Z", date(2026, 11, 22)),
        ("2026-11-21T23:30:00Z", date(2026, 11, 22)),
        ("2026-07-31T16:00:00Z", date(2026, 8, 1)),  # no summer time
    ],
)
def test_a_moment_is_of_the_day_that_it_is_in_china(text, day):
    assert civil_day(parse_utc(text)) == day
    assert civil_day(parse_utc(text).astimezone(timezone(timedelta(hours=-11)))) == day


# ---------------------------------------------------------------- jobs


def job(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    value = copy.deepcopy(plain(JobSpec))
    change(value)
    return value


BAD_JOBS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a node in two roles": (lambda j: j["roles"].update(matcher=POLICE), "bad-roles"),
    "an input of no role": (lambda j: j["inputs"][0].update(role="source-9"), "bad-inputs"),
    "a role twice": (lambda j: j["inputs"].append(j["inputs"][0]), "bad-inputs"),
    "another organisation's input": (lambda j: j["inputs"][0].update(organisation="other"), "bad-inputs"),
    "expires when created": (lambda j: j.update(expires=j["created"]), "bad-time"),
    "expires before created": (lambda j: j.update(expires="2026-11-21T08:00:00Z"), "bad-time"),
    "65 roles": (
        lambda j: j["roles"].update({f"r{n}": f"o{n}/n" for n in range(MAX_PARTICIPANTS)}), "bad-field"
    ),
    "65 inputs": (lambda j: j.update(inputs=j["inputs"][:1] * 65), "bad-field"),
    "65 recipients": (lambda j: j.update(recipients=["a"] * 65), "bad-field"),
    "65 parameters": (lambda j: j.update(params={f"p{n}": 1 for n in range(65)}), "bad-field"),
    "65 columns": (lambda j: j["inputs"][0].update(columns={f"c{n}": "c" for n in range(65)}), "bad-field"),
    "purpose too long": (lambda j: j.update(purpose="字" * (MAX_TEXT + 1)), "bad-field"),
    "a dataset that is a path": (lambda j: j["inputs"][0].update(dataset="../etc"), "bad-field"),
    "a column that is SQL": (lambda j: j["inputs"][0].update(columns={"key": 'a"; drop'}), "bad-field"),
    "a column that is no text": (lambda j: j["inputs"][0].update(columns={"key": 1}), "bad-field"),
    "a node without organisation": (lambda j: j["roles"].update(matcher="neutral"), "bad-field"),
    "a node with two slashes": (lambda j: j["roles"].update(matcher="a/b/c"), "bad-field"),
    "an upper-case node": (lambda j: j["roles"].update(matcher="A/b"), "bad-field"),
    "a role with a newline": (lambda j: j["roles"].update({"matcher\n": "a/b"}), "bad-field"),
    "an empty role": (lambda j: j["roles"].update({"": "a/b"}), "bad-field"),
    "a job type without version": (lambda j: j.update(job_type="crosscheck"), "bad-field"),
    "a job type of version 0": (lambda j: j.update(job_type="crosscheck/0"), "bad-field"),
    "a short nonce": (lambda j: j.update(nonce="00"), "bad-field"),
    "an upper-case nonce": (lambda j: j.update(nonce="A" * 32), "bad-field"),
    "a recipient that is no name": (lambda j: j.update(recipients=["a b"]), "bad-field"),
    "params 33 levels deep": (lambda j: j.update(params={"p": deep(32)}), "too-deep"),
}  # fmt: skip


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize(("change", "code"), BAD_JOBS.values(), ids=BAD_JOBS)
def test_a_job_that_contradicts_itself_is_refused(change, code):
    assert refusal(JobSpec, job(change)) == code


@settings(max_examples=40, deadline=None)
@given(jobs())
def test_a_decoded_job_has_the_id_of_its_payload(spec):
    decoded = JobSpec.decode(spec.encode())
    assert decoded.job_id == sha256_digest(spec.encode()) == sha256_digest(decoded.encode())
    assert replace(decoded, nonce="f" * 32).job_id != decoded.job_id or decoded.nonce == "f" * 32


def test_the_job_id_is_the_digest_of_the_payload():
    assert JOB.job_id == sha256_digest(JOB.encode())
    assert JobSpec.decode(JOB.encode()).job_id == JOB.job_id


def test_the_same_question_however_it_is_put():
    same = [
        replace(JOB, nonce="1" * 32, created=T0 + timedelta(1), expires=T0 + timedelta(2)),
        replace(JOB, inputs=JOB.inputs[::-1]),
        replace(JOB, purpose="P-2026-015", legal_basis="other", expected_use="other"),
        replace(JOB, requester=key_id(b"\1" * 32)),
    ]
    assert {job.question("snapshot") for job in same} == {JOB.question("snapshot")}
    assert len({JOB.job_id, *(job.job_id for job in same)}) == len(same) + 1


def test_other_data_params_lists_seats_recipients_or_types_are_another_question():
    first, *others = JOB.inputs
    asks_else = [
        replace(JOB, params={"k": 2}),
        replace(JOB, recipients=()),
        replace(JOB, inputs=JOB.inputs[:1]),
        replace(JOB, inputs=(replace(first, dataset=DatasetName("another")), *others)),
        replace(JOB, inputs=(replace(first, columns={"key": "other"}), *others)),
        replace(JOB, roles={**ROLES, Role("matcher"): NodeName("other.example/n")}),
        replace(JOB, job_type="crosscheck/2"),
    ]
    questions = {JOB.question("a"), JOB.question("b"), *(j.question("a") for j in asks_else)}
    assert len(questions) == len(asks_else) + 2


def test_a_node_finds_its_role_and_input():
    assert JOB.role_of(CIVIL) == "source-1"
    assert JOB.role_of(NodeName("other.example/n")) is None
    assert JOB.input_of(Role("source-1")) == JOB.inputs[1]
    assert JOB.input_of(Role("matcher")) is None


# ---------------------------------------------------------------- rosters


def roster(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    value = copy.deepcopy(plain(Roster))
    change(value)
    return value


def witness(*keys: tuple[int, int, bytes], by: str = "") -> Callable[[dict[str, Any]], object]:
    """Return a change of the first node's witness keys to these: number, type, key."""

    def change(value: dict[str, Any]) -> None:
        node = value["nodes"][0]
        node["witness_vkeys"] = [
            vkey(f"{by or node['name']}/witness/{n}", kind, key) for n, kind, key in keys
        ]

    return change


BAD_ROSTERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an organisation twice": (lambda r: r["organisations"].append(r["organisations"][0]), "bad-roster"),
    "a node name twice": (
        lambda r: r["nodes"].append(r["nodes"][0] | {"identity_key": "aa" * 32}), "bad-roster"
    ),
    "one identity key for two nodes": (
        lambda r: r["nodes"][0].update(identity_key=r["nodes"][1]["identity_key"]), "bad-roster"
    ),
    "a node's key for an analyst": (
        lambda r: r["analysts"][0].update(key=r["nodes"][1]["identity_key"]), "bad-roster"
    ),
    "a node of no member": (lambda r: r["nodes"][0].update(name="other.example/n"), "bad-roster"),
    "an analyst of no member": (lambda r: r["analysts"][0].update(organisation="other"), "bad-roster"),
    "a short key": (lambda r: r["nodes"][0].update(identity_key="00" * 31), "bad-field"),
    "an upper-case key": (lambda r: r["nodes"][0].update(identity_key="AA" * 32), "bad-field"),
    "a key with an odd digit": (lambda r: r["nodes"][0].update(recipient_key="abc"), "bad-field"),
    "a previous that is no digest": (lambda r: r.update(previous="x"), "bad-digest"),
    "version 0": (lambda r: r.update(version=0), "bad-field"),
    "suite 0": (lambda r: r.update(suite=0), "bad-field"),
    "suite 256": (lambda r: r.update(suite=256), "bad-field"),
    "a journal's key as a witness's": (witness((1, 1, b"\x31" * 32)), "bad-field"),
    "a second witness key alone": (witness((1, 6, b"\x31" * 1312)), "bad-field"),
    "two Ed25519 witness keys": (witness((1, 4, b"\x31" * 32), (2, 4, b"\x32" * 32)), "bad-field"),
    "three witness keys": (
        witness((1, 4, b"\x31" * 32), (1, 6, b"\x31" * 1312), (2, 4, b"\x32" * 32)), "bad-field"
    ),
    "a witness key of 31 bytes": (witness((1, 4, b"\x31" * 31)), "bad-field"),
    "a witness key without a key": (witness((1, 4, b"")), "bad-field"),
    "another's witness key": (witness((1, 4, b"\x31" * 32), by=CIVIL), "bad-field"),
    "witness 0": (witness((0, 4, b"\x31" * 32)), "bad-field"),
    "a witness key with another's key id": (
        lambda r: r["nodes"][1].update(witness_vkeys=[r["nodes"][1]["witness_vkeys"][0][:-4] + "AAA="]),
        "bad-field",
    ),
    "one witness key at two nodes": (witness((1, 4, b"\x22" * 32)), "bad-roster"),
    "an identity key that cosigns": (witness((1, 4, b"\1" * 32)), "bad-roster"),
    "an analyst's key that cosigns": (witness((1, 4, b"\x10" * 32)), "bad-roster"),
    "a coordinator without a journal": (lambda r: r["coordinator"].pop("journal_vkey"), "missing-field"),
    "a coordinator whose journal is no key": (
        lambda r: r["coordinator"].update(journal_vkey="vkey"), "bad-field"
    ),
    "a coordinator of no form": (lambda r: r["coordinator"].update(name="data-bureau"), "bad-field"),
    "1025 members": (lambda r: r.update(organisations=[{"name": "a", "title": ""}] * 1025), "bad-field"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "code"), BAD_ROSTERS.values(), ids=BAD_ROSTERS)
def test_a_roster_that_contradicts_itself_is_refused(change, code):
    assert refusal(Roster, roster(change)) == code


BAD_HEADS: dict[str, dict[str, Any]] = {
    "a nonce of 16 bytes": {"nonce": "00" * 16},
    "a nonce in upper case": {"nonce": "AB" * 32},
    "entries without a root": {"root": None},
    "a root without entries": {"size": 0},
    "a log with a blank": {"log": "police.gz.example/node-a journal"},
    "a log with a plus": {"log": "police.gz.example/node-a+1"},
    "a witness that is no node": {"witness": "police.gz.example"},
    "a negative size": {"size": -1},
}


@pytest.mark.parametrize("change", BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_that_contradicts_itself_is_refused(change):
    assert refusal(Head, plain(Head) | change) == "bad-field"


def test_a_head_of_a_log_that_was_never_seen_has_neither_entries_nor_root():
    head = replace(EXAMPLES[Head], size=0, root=None)
    assert Head.decode(head.encode()) == head


@pytest.mark.parametrize(
    "change", [{"kind": "job.done"}, {"attempt": 0}, {"seq": -1}, {"release": "f" * 31}, {"node": "police"}]
)
def test_a_receipt_of_something_else_is_refused(change):
    assert refusal(Receipt, plain(Receipt) | change) == "bad-field"


def test_a_roster_finds_nodes_by_name_and_analysts_by_key():
    assert ROSTER.node(CIVIL) == ROSTER.nodes[1]
    assert ROSTER.node(NodeName("other.example/n")) is None
    assert ROSTER.analyst(key_id(b"\x10" * 32)) == ROSTER.analysts[0]
    assert ROSTER.analyst(key_id(ROSTER.nodes[0].identity_key)) is None
    assert ROSTER.digest == sha256_digest(ROSTER.encode())


# ---------------------------------------------------------------- admissions, constraints, context


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1/0",
        "0/1",
        "2",
        "-1/2",
        "2/4",
        "3/2",
        "1/3 ",
        "+1/3",
        "0.5",
        "1_0/3_0",
        "1e-1",
        "1e999999999",
        "１/２",
        "01/2",
    ],
)
def test_a_fraction_has_one_spelling_and_no_exponent(text):
    value = plain(Admission)
    value["constraints"] = {"max_fraction": text}
    assert refusal(Admission, value) == "bad-field"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempt", 0),
        ("attempt", 2**20 + 1),
        ("suite", 0),
        ("suite", 256),
        ("key", "0"),
        ("key", "0G"),
        ("key", "AA"),
    ],
)
def test_an_admission_out_of_bounds_is_refused(name, value):
    assert refusal(Admission, plain(Admission) | {name: value}) == "bad-field"


@pytest.mark.parametrize(
    "constraints",
    [
        {"max_rows": -1},
        {"max_rows": "1"},
        {"max_rows": True},
        {"max_rows": 1.5},
        {"max_fraction": 1},
        {"approvals": 2},
    ],
)
def test_a_constraint_that_is_none_is_refused(constraints):
    assert refusal(Admission, plain(Admission) | {"constraints": constraints}) in {
        "bad-field",
        "unknown-field",
    }


@given(st.lists(ADMISSIONS, min_size=1, max_size=4), st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_context_does_not_depend_on_the_order(admissions, order: random.Random):
    shuffled = list(admissions)
    order.shuffle(shuffled)
    assert context(shuffled) == context(admissions)
    assert len(context(admissions)) == 32


OTHER: dict[str, Any] = {
    "job": sha256_digest(b"other"),
    "attempt": 2,
    "node": NEUTRAL,
    "suite": 2,
    "key": bytes(32),
    "roster_digest": sha256_digest(b"other"),
    "participants": {**ROLES, Role("matcher"): NodeName("other.example/n")},
    "policy_version": 8,
    "policy_digest": sha256_digest(b"other"),
    "rule": "R6",
    "constraints": Constraints(min_sources=3),
    "inputs": {},
    "not_after": T0 + timedelta(seconds=1),
}


@pytest.mark.parametrize("field", [f.name for f in fields(Admission)])
def test_the_context_changes_with_every_field_of_every_admission(field):
    others = [replace(ADMISSION, node=POLICE), replace(ADMISSION, node=NodeName("third.example/n"))]
    before = context([ADMISSION, *others])
    for n in range(3):
        changed = [ADMISSION, *others]
        changed[n] = replace(changed[n], **{field: OTHER[field]})
        assert context(changed) != before


@given(st.data())
@settings(deadline=None)
def test_the_context_changes_with_every_byte_of_an_admission(data):
    payload = bytearray(ADMISSION.encode())
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = Admission.decode(bytes(payload))
    except DecodeError:
        return
    assert context([changed]) != context([ADMISSION])


def test_the_context_changes_with_the_set_of_admissions():
    other = replace(ADMISSION, node=POLICE)
    sets = [(), (ADMISSION,), (other,), (ADMISSION, other), (ADMISSION, ADMISSION)]
    assert len({context(one) for one in sets}) == len(sets)


@dataclass(frozen=True)
class Size:
    """A job measured by every constraint."""

    group: int
    organisations: int
    sources: int
    rows: int
    fraction: Fraction
    coverage: Fraction
    runtime_s: int


def satisfies(size: Size, c: Constraints) -> bool:
    return (
        (c.min_group_size is None or size.group >= c.min_group_size)
        and (c.min_organisations is None or size.organisations >= c.min_organisations)
        and (c.min_sources is None or size.sources >= c.min_sources)
        and (c.max_rows is None or size.rows <= c.max_rows)
        and (c.max_fraction is None or size.fraction <= c.max_fraction)
        and (c.min_coverage is None or size.coverage >= c.min_coverage)
        and (c.max_runtime_s is None or size.runtime_s <= c.max_runtime_s)
    )


SMALL = st.integers(0, 4)
QUARTERS = st.integers(0, 4).map(lambda n: Fraction(n, 4))
SIZES = st.builds(Size, SMALL, SMALL, SMALL, SMALL, QUARTERS, QUARTERS, SMALL)
SMALL_CONSTRAINTS = st.builds(
    Constraints,
    *(st.none() | SMALL,) * 4,
    *(st.none() | QUARTERS,) * 2,
    st.none() | SMALL,
)


@given(st.lists(SMALL_CONSTRAINTS, max_size=4), SIZES)
@settings(deadline=None)
def test_the_strictest_holds_exactly_when_all_hold(all_of, size):
    assert satisfies(size, strictest(all_of)) == all(satisfies(size, one) for one in all_of)


@pytest.mark.parametrize("name", sorted(OPTIONAL))
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_each_demand_merges_to_the_strictest(name, data):
    demands = data.draw(st.lists(QUARTERS if name in {"max_fraction", "min_coverage"} else SMALL, min_size=2))
    all_of = [Constraints(**{name: demand}) for demand in demands]
    size = data.draw(SIZES)
    assert satisfies(size, strictest(all_of)) == all(satisfies(size, one) for one in all_of)


@given(st.lists(CONSTRAINTS, min_size=1, max_size=4), st.randoms())
@settings(deadline=None)
def test_the_strictest_is_idempotent_commutative_and_associative(all_of, order: random.Random):
    merged = strictest(all_of)
    shuffled = list(all_of)
    order.shuffle(shuffled)
    assert strictest(shuffled) == merged
    assert strictest([merged, *all_of]) == merged
    assert strictest([strictest(all_of[:1]), strictest(all_of[1:])]) == merged
    assert strictest([merged, Constraints()]) == merged


def test_nobody_demanding_anything_demands_nothing():
    assert strictest([]) == strictest([Constraints(), Constraints()]) == Constraints()


def test_zero_is_a_demand():
    assert strictest([Constraints(max_rows=0), Constraints(max_rows=5)]) == Constraints(max_rows=0)
    assert Constraints.from_json(Constraints(max_rows=0).to_json()) == Constraints(max_rows=0)


def test_an_organisation_is_the_part_before_the_slash():
    assert organisation_of(CIVIL) == "civil-affairs.gz.example"


def test_errors_carry_no_value_of_the_document():
    secret = "440106199001011234"
    value = plain(JobSpec) | {"nonce": secret, "purpose": 5}
    for change in (
        {"purpose": "x" * 600 + secret},
        {secret: 1},
        {"roles": {secret + " ": "a/b"}},
        {"nonce": secret},
    ):
        with pytest.raises(DecodeError) as caught:
            JobSpec.decode(canonical_json(value | {"purpose": "p", "nonce": "0" * 32} | change))
        assert secret not in str(caught.value) + caught.value.hint
        assert caught.value.__cause__ is None
