"""One small collaboration for all policy tests: five departments, a neutral office, a bureau, their keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.decision import VerifiedApproval
from policies.model import ActivePolicy, PinnedSigners
from policies.parse import parse_policy
from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import sha256_digest
from protocols.envelope import APPROVAL, Envelope, KeySigner, key_id, sign
from protocols.errors import InputError
from protocols.ids import DatasetName, KeyId, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    Domain,
    Forecast,
    OutputClass,
    PlannedRelease,
    Separation,
    Statement,
)
from protocols.statistics.differencing import Between, Query
from protocols.wire import (
    Approval,
    Constraints,
    JobInput,
    JobSpec,
    Roster,
    RosterAnalyst,
    RosterNode,
    RosterOrganisation,
    organisation_of,
)

EXAMPLES = Path(__file__).parents[2] / "policies" / "examples"
NOW = datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)
COST = Cost(rows=20_000, queries=1)
"""What a source's rule charges scenario 1 with: its row cap."""
DATASETS = {
    "police": ("register", "population"),
    "human-resources": ("source-1", "insured"),
    "health": ("source-2", "patients"),
    "housing": ("source-3", "leases"),
    "education": ("source-4", "enrolment"),
}


class Count:
    """A job type of class A: persons counted by street, exactly, or with noise of `rho` or `epsilon`.

    `values`: the streets that have a cell. `bins`: by age, too. `bounds`: their ages are added up, as well.
    `kept`: only ages from and to, empty for no such end. `persons_in`: each person is in so many departments
    at most, else in all.
    """

    name = "count/1"
    output_class = OutputClass.AGGREGATE
    states_sizes = False
    counts_units = True

    def check(self, spec: JobSpec) -> None:
        known = {
            "rho",
            "epsilon",
            "delta",
            "streets",
            "ages",
            "values",
            "bins",
            "bounds",
            "kept",
            "persons_in",
        }
        if not spec.params.keys() <= known:
            raise InputError("params that nobody asked for", code="unknown-param", hint="remove them")

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        return frozenset({"aggregator"} if spec.input_of(role) is None else {"source"})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        asked, ages = spec.params, ("int", "decimal")
        values = Domain(values=tuple(asked.get("values", ())))
        needs = [ColumnNeed("street", "group", ("code", "enum"), domain=values)]
        if "bins" in asked:
            needs.append(
                ColumnNeed("age", "group", ages, domain=Domain(bins=tuple(map(Fraction, asked["bins"]))))
            )
        if "bounds" in asked:
            low, high = map(Fraction, asked["bounds"])
            domain = Domain(bounds=(low, high), covering=not self.noisy(spec))
            needs += [ColumnNeed("age", use, ages, domain=domain) for use in ("sum", "mean")]
        if "kept" in asked:
            needs.append(ColumnNeed("age", "filter", ages, domain=Domain(kept=self.kept(spec))))
        return tuple(needs)

    def kept(self, spec: JobSpec) -> tuple[Fraction | None, Fraction | None]:
        low, high = (Fraction(end) if end else None for end in spec.params["kept"])
        return low, high

    def persons_in(self, spec: JobSpec) -> tuple[int, int]:
        return spec.params.get("persons_in", len(spec.inputs)), len(spec.inputs)

    def noisy(self, spec: JobSpec) -> bool:
        return not spec.params.keys().isdisjoint({"rho", "epsilon"})

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        return tuple(Forecast(a, "street", "街道", 1 / float(a), Cost.zcdp(a)) for a in amounts)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        return (PlannedRelease("counts", OutputClass.AGGREGATE, Role("matcher"), REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        matcher = frozenset({organisation_of(spec.roles[Role("matcher")])})
        return (Separation("sums", matcher, frozenset({requester})),)

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        return {frozenset({Role("matcher")}): (Statement("sums", "sums", "总数"),)}

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        if spec.input_of(role) is None:
            return NOTHING
        rho, epsilon, delta = (Fraction(spec.params.get(name, 0)) for name in ("rho", "epsilon", "delta"))
        return Cost.zcdp(rho, delta) + Cost.pure_dp(epsilon) + Cost(queries=1)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        if spec.input_of(role) is None:
            return None
        filters: dict[str, frozenset[str] | Between] = {}
        if "streets" in spec.params:
            filters["street"] = frozenset(spec.params["streets"])
        if "ages" in spec.params:
            low, high = spec.params["ages"]
            filters["age"] = Between(Fraction(low), Fraction(high))
        elif "kept" in spec.params:
            filters["age"] = Between(*self.kept(spec))
        return Query("count/1", filters, self.noisy(spec), "bounds" in spec.params)

    def sources_asked(self, spec: JobSpec) -> int:
        return len(spec.inputs)


@dataclass(frozen=True)
class World:
    now: datetime = NOW
    examples: Path = EXAMPLES
    types: Any = (*JOB_TYPES, Count())

    def signer(self, name: str) -> KeySigner:
        return KeySigner(Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest()))

    def key(self, name: str) -> KeyId:
        return key_id(self.signer(name).public_key)

    def node(self, department: str) -> NodeName:
        return NodeName(f"{department}.gz.example/node-a")

    def text(self, department: str = "human-resources", **edits: str) -> str:
        """The department's example with real keys; each edit replaces a text that must be there, once."""
        text = (EXAMPLES / f"{department}.toml").read_text("utf-8")
        for letter, name in (("a", "analyst"), ("d", f"{department} dpo"), ("e", f"{department} owner")):
            text = text.replace("sha256:" + letter * 64, self.key(name))
        return self.edited(text, edits)

    def edited(self, text: str, edits: Mapping[str, str]) -> str:
        for old, new in edits.items():
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the text"
            text = text.replace(old, new)
        return text

    def active(
        self, department: str = "human-resources", edits: Mapping[str, str] | None = None
    ) -> ActivePolicy:
        parsed = parse_policy(self.text(department, **(edits or {})).encode())
        return ActivePolicy(parsed.policy, parsed.digest)

    def pinned(self, department: str = "human-resources") -> PinnedSigners:
        return PinnedSigners(
            {role: (self.signer(f"{department} {role}").public_key,) for role in ("dpo", "owner")}
        )

    @cached_property
    def roster(self) -> Roster:
        names = [*DATASETS, "statistics", "data-bureau"]
        return Roster(
            collaboration="gz.example",
            version=1,
            previous=None,
            suite=1,
            issued=NOW - timedelta(days=1),
            expires=NOW + timedelta(days=60),
            organisations=tuple(RosterOrganisation(Organisation(f"{n}.gz.example"), n) for n in names),
            nodes=tuple(
                RosterNode(
                    self.node(n),
                    self.signer(f"{n} node").public_key,
                    sha256_digest(n.encode()),
                    "vkey",
                    b"\x01" * 32,
                    (f"{self.node(n)}/witness/1+00000000+BA==",),
                )
                for n in names
            ),
            analysts=(
                RosterAnalyst(
                    "li",
                    Organisation("data-bureau.gz.example"),
                    self.signer("analyst").public_key,
                    b"\x02" * 32,
                ),
                RosterAnalyst(
                    "wang",
                    Organisation("police.gz.example"),
                    self.signer("policeman").public_key,
                    b"\x03" * 32,
                ),
            ),
        )

    def spec(self, **changes: Any) -> JobSpec:
        """Scenario 1 with all five departments; changes are JobSpec fields."""
        inputs = []
        for department, (role, dataset) in DATASETS.items():
            columns = {"key": "resident_id"}
            if role != "register":
                columns |= {"street": "street", "last_seen": "last_seen_month"}
            inputs.append(
                JobInput(Role(role), organisation_of(self.node(department)), DatasetName(dataset), columns)
            )
        roles = {Role(role): self.node(d) for d, (role, _) in DATASETS.items()}
        spec = JobSpec(
            job_type="crosscheck/1",
            params={"present_in": "at_least", "k": 2, "key_holder": "source-1"},
            inputs=tuple(inputs),
            roles={**roles, Role("matcher"): self.node("statistics")},
            purpose="P-2026-001",
            legal_basis="DPIA-2026-001",
            expected_use="核实名单并补登",
            recipients=(Organisation("police.gz.example"),),
            requester=self.key("analyst"),
            collaboration="gz.example",
            roster_digest=self.roster.digest,
            created=NOW - timedelta(hours=1),
            expires=NOW + timedelta(days=3),
            nonce="0" * 32,
        )
        return replace(spec, **changes)

    def count(self, **params: Any) -> JobSpec:
        """The same departments but the police, their persons counted by street."""
        spec = self.spec()
        return replace(
            spec,
            job_type="count/1",
            params=params,
            inputs=tuple(
                replace(i, columns={"street": "street"}) for i in spec.inputs if i.role != "register"
            ),
            roles={role: name for role, name in spec.roles.items() if role != "register"},
            recipients=(Organisation("data-bureau.gz.example"),),
        )

    def with_columns(self, spec: JobSpec, role: str, columns: Mapping[str, str]) -> JobSpec:
        return replace(
            spec,
            inputs=tuple(replace(i, columns=dict(columns)) if i.role == role else i for i in spec.inputs),
        )

    def approval(self, active: ActivePolicy, spec: JobSpec, **changes: Any) -> Approval:
        approval = Approval(
            job=spec.job_id,
            node=NodeName(active.policy.policy_id),
            policy_digest=active.digest,
            rule="R1",
            cost=COST.encode(),
            issued=NOW - timedelta(minutes=5),
            expires=NOW + timedelta(days=1),
            nonce="a" * 32,
        )
        return replace(approval, **changes)

    def signed(self, approval: Approval, *who: str) -> Envelope:
        return sign(APPROVAL, approval.encode(), [self.signer(name) for name in who])

    def verified(
        self, active: ActivePolicy, spec: JobSpec, who: Sequence[str] = ("dpo", "owner"), **changes: Any
    ) -> list[VerifiedApproval]:
        """Approvals as the gate hands them on, without the detour through signatures."""
        department = active.policy.policy_id.partition(".")[0]
        approval = self.approval(active, spec, **changes)
        return [
            VerifiedApproval(role, self.key(f"{department} {role}"), approval, sha256_digest(role.encode()))
            for role in who
        ]


@pytest.fixture(scope="session")
def world() -> World:
    return World()
