"""Small matches for tests: a spec, two lists, and both parties with seeded randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from crosscheck_case import CTX, ZERO, person, seeded

from protocols import jobs
from protocols.ids import DatasetName, Digest, KeyId, NodeName, Organisation, Role
from protocols.jobs.job_type import Content, Setup
from protocols.jobs.match import OWNERS, RECEIVER, SENDER, Matching
from protocols.match.inputs import MatchList
from protocols.match.parties import Match
from protocols.match.shape import Sizing
from protocols.party import Party, Sent, run
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

MATCHING = Matching()
LOOSE = Constraints(
    min_group_size=3, max_rows=1 << 20, max_fraction=Fraction(1), min_coverage=Fraction(1, 10**18)
)  # limits that never bind, for tests of something else
MARITAL = [["10"], ["20", "21", "22", "23"], ["30"], ["40"]]
"""Never married, married, widowed, divorced: GB/T 2261.2."""

KKRT = Sizing(dh_below=1, least=128, receiver_mean=24, sender_most=64)
"""Short lists in the form of long ones, in several buckets: for tests."""

Row = tuple[int, str, str]
"""Person number, value and month last seen, as text; an empty text is no value."""


def match_spec(receiver_keys: int = 500, **params: Any) -> JobSpec:
    """Return a valid spec; `values` among the params makes it one of values that differ."""
    nodes = {RECEIVER: "civil-affairs.example/a", SENDER: "police.example/a"}
    roles = {Role(role): NodeName(node) for role, node in nodes.items()}
    given: dict[str, Any] = {"receiver_keys": receiver_keys, "areas": "demo-city"} | params
    if "values" in params:
        given = {"compare": "differs"} | given
    columns = {"key": "id", "value": "marital", "last_seen": "seen"} if "values" in params else {"key": "id"}
    return JobSpec(
        job_type="match/1",
        params=given,
        inputs=tuple(
            JobInput(role, organisation_of(node), DatasetName("people"), columns)
            for role, node in roles.items()
        ),
        roles=roles,
        purpose="P-1",
        legal_basis="L-1",
        expected_use="逐条核对后更正登记",
        recipients=(Organisation("civil-affairs.example"),),
        requester=KeyId(Digest(ZERO)),
        collaboration="example",
        roster_digest=ZERO,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 2, 1, tzinfo=UTC),
        nonce="0" * 32,
    )


def prepared(spec: JobSpec, role: Role, rows: Sequence[Row] | Sequence[int]) -> MatchList:
    """Return a list as its node would prepare it: of rows, or of person numbers alone."""
    given = spec.input_of(role)
    assert given is not None
    full = [(row, "", "") if isinstance(row, int) else row for row in rows]
    columns = {
        "key": [person(number) for number, _, _ in full],
        "value": [value or None for _, value, _ in full],
        "last_seen": [month or None for _, _, month in full],
    }
    builder = MATCHING.builder(spec, role)
    builder.add({slot: pa.array(columns[slot], pa.string()) for slot in given.columns})
    listed = builder.finish()
    assert isinstance(listed, MatchList)
    return listed


def summary(listed: MatchList, catalogue: int | None = None) -> InputSummary:
    """Return what a node would say of a list; `catalogue` is its published number."""
    return InputSummary(
        listed.rows,
        listed.distinct_keys,
        listed.distinct_keys if catalogue is None else catalogue,
        listed.commitment(bytes(32)),
        "2026-01-01",
        ZERO,
        listed.rule_version,
    )


@dataclass
class Case:
    """One match, ready to run."""

    spec: JobSpec
    setup: Setup
    lists: Mapping[Role, MatchList]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def run(self) -> dict[Role, Any]:
        """Play it whole and return the outputs; `sent` has every message afterwards."""
        return run(self.parties, observe=self.sent.append)

    def released(self) -> Content:
        """Play it whole and return the records."""
        (records,) = self.run()[RECEIVER]
        return records


def match_case(
    receiver: Sequence[Row] | Sequence[int],
    sender: Sequence[Row] | Sequence[int],
    *,
    constraints: Constraints = LOOSE,
    seed: object = 0,
    ctx: bytes = CTX,
    sizing: Sizing | None = None,
    **params: Any,
) -> Case:
    """Return a match of two lists; `sizing` decides which form it takes, and how large its buckets are."""
    spec = match_spec(**params)
    MATCHING.check(spec)
    lists = {role: prepared(spec, role, rows) for role, rows in zip(OWNERS, (receiver, sender), strict=True)}
    inputs = {role: summary(listed) for role, listed in lists.items()}
    setup = replace(Setup(spec, 1, CTX, constraints, inputs), ctx=ctx)
    sized = Match if sizing is None else partial(Match, sizing=sizing)
    with patch.object(jobs.match, "Match", sized):
        parties = {
            role: MATCHING.party(role, setup, lists[role], seeded(f"{seed}/{role}")) for role in spec.roles
        }
    return Case(spec, setup, lists, parties)
