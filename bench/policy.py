"""How many jobs a node decides in a second, beside as many bare checks of one Ed25519 signature.

The policy has 100 rules: 20 datasets, five purposes each, every rule with two approvals, a rate, a window,
and two quotas. The node has a year of history, 1,000 attempts. Every job is one that its rule permits, so
that no decision ends early. `decide` asks about jobs that were asked about before, as a node does from offer
to start; `decide first` about jobs just decoded. One core; they take turns, the turn of median ratio counts.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import cycle, islice
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.note import COSIGNATURE, VerifierKey
from bench.rig.turns import take_turns
from bench.rows import Results, Row
from policies.decide import decide
from policies.decision import Ask, Permit, VerifiedApproval
from policies.history import Past, Remembered
from policies.model import ActivePolicy
from policies.parse import parse_policy
from protocols.encoding import sha256_digest
from protocols.envelope import key_id
from protocols.ids import DatasetName, JobId, NodeName, Organisation, Role
from protocols.wire import (
    Approval,
    JobInput,
    JobSpec,
    Roster,
    RosterAnalyst,
    RosterNode,
    RosterOrganisation,
    organisation_of,
)

DECISIONS: Final = 5_000
TURNS: Final = 5
DATASETS: Final = 20
PURPOSES: Final = 5
ATTEMPTS: Final = 1_000

NOW: Final = datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)
_LISTS: Final = ("police", "human-resources", "health", "housing", "education")
_NODE: Final = NodeName("human-resources.gz.example/node-a")


def measure(results: Results, *, long: bool) -> None:
    """Measure `decide` and `decide first` in decisions per second."""
    rounds = 10 if long else 1
    department = Department.open()
    for what, ours in (("decide", department.again), ("decide first", department.first)):
        if results.has(what):
            continue
        value, bare = take_turns(
            partial(ours, DECISIONS * rounds),
            partial(signatures, DECISIONS * rounds // 4),
            TURNS,
        )
        results.add(Row(what, value, "decisions/s", "bare Ed25519 verification", bare))


@dataclass(frozen=True, slots=True)
class Department:
    """A node with its policy, its roster, its past and the jobs that it is asked."""

    node: NodeName
    active: ActivePolicy
    roster: Roster
    history: Remembered
    jobs: tuple[tuple[JobSpec, Sequence[VerifiedApproval]], ...]

    @classmethod
    def open(cls) -> "Department":
        """Return it with one job per rule, approved by two people."""
        parsed = parse_policy(policy_text().encode())
        active, roster = ActivePolicy(parsed.policy, parsed.digest), _roster()
        jobs = [_job(roster, dataset, purpose) for dataset in range(DATASETS) for purpose in range(PURPOSES)]
        history = Remembered(tuple(_past(active, roster, jobs)))
        asked = [_decide(active, roster, history, job, ()) for job in jobs]
        return cls(
            _NODE,
            active,
            roster,
            history,
            tuple((job, _approved(active, job, ask)) for job, ask in zip(jobs, asked, strict=True)),
        )

    def again(self, decisions: int) -> float:
        """Return decisions per second about jobs that are known."""
        return self._rate(list(islice(cycle(self.jobs), decisions)))

    def first(self, decisions: int) -> float:
        """Return decisions per second about jobs just decoded."""
        payloads = [(job.encode(), approvals) for job, approvals in self.jobs]
        return self._rate(
            [(JobSpec.decode(payload), given) for payload, given in islice(cycle(payloads), decisions)]
        )

    def _rate(self, asked: Sequence[tuple[JobSpec, Sequence[VerifiedApproval]]]) -> float:
        permitted = 0
        started = time.perf_counter()
        for job, given in asked:
            answer = _decide(self.active, self.roster, self.history, job, given)
            permitted += isinstance(answer, Permit)
        seconds = time.perf_counter() - started
        if permitted != len(asked):
            raise SystemExit(f"{len(asked) - permitted} jobs that their rules permit were not permitted")
        return permitted / seconds


def _decide(
    active: ActivePolicy,
    roster: Roster,
    history: Remembered,
    job: JobSpec,
    approvals: Sequence[VerifiedApproval],
) -> Permit | Ask:
    answer = decide(
        active, job, node=_NODE, roster=roster, now=NOW, approvals=approvals, history=history, attempt=1
    )
    if not isinstance(answer, Permit | Ask):
        raise SystemExit(f"a job that its rule permits was refused: {answer.code}")
    return answer


def signatures(checks: int) -> float:
    """Return bare Ed25519 verifications of one message per second."""
    key, message = _key("analyst"), b"a job's digest of 32 bytes, about"
    signature, public = key.sign(message), key.public_key()
    started = time.perf_counter()
    for _ in range(checks):
        public.verify(signature, message)
    return checks / (time.perf_counter() - started)


def policy_text() -> str:
    """Return the policy of 100 rules."""
    analyst, dpo, owner = (key_id(_public(name)) for name in ("analyst", "dpo", "owner"))
    parts = [
        f"""schema = "minshu-policy/1"
policy_id = "{_NODE}"
version = 1
not_before = 2026-12-01T00:00:00+08:00
expires = 2027-03-01T00:00:00+08:00
timezone = "Asia/Shanghai"
controller = "某市人力资源和社会保障局信息中心"
defaults = {{ min_group_size = 10, release_requires = "cosigned" }}
retention = {{ journal_days = 1095, release_days = 30, intermediate = "job-end" }}
requesters = {{ bureau = {{ organisation = "data-bureau.gz.example", keys = ["{analyst}"] }} }}
approvers = {{ dpo = {{ keys = ["{dpo}"] }}, owner = {{ keys = ["{owner}"] }} }}
"""
    ]
    parts += [
        f"""[purposes.P-{number}]
title = "核查"
legal_basis = "DPIA-{number}"
valid_until = 2027-02-28
"""
        for number in range(PURPOSES)
    ]
    for dataset in range(DATASETS):
        parts.append(f"""[datasets.list-{dataset}]
source = "local:list-{dataset}"
grade = "general-4"
personal = "sensitive"
[datasets.list-{dataset}.columns]
resident_id = {{ type = "resident-id", use = ["join"] }}
street = {{ type = "code", use = ["group"] }}
last_seen_month = {{ type = "month", use = ["carry"] }}
[quotas.rows-{dataset}]
dataset = "list-{dataset}"
counts = "rows"
limit = 10000000
period = "calendar-quarter"
scope = "all-requesters"
[quotas.questions-{dataset}]
dataset = "list-{dataset}"
counts = "queries"
limit = 1000
period = "calendar-year"
scope = "per-purpose"
[[negative_list]]
dataset = "list-{dataset}"
column = "bank_account"
reason = "负面清单 2.1"
""")
        parts += [
            f"""[[rules]]
id = "R{dataset}-{purpose}"
requesters = ["bureau"]
purposes = ["P-{purpose}"]
job_types = ["crosscheck/1"]
roles = ["source", "key-holder"]
datasets = ["list-{dataset}"]
columns = ["resident_id", "street", "last_seen_month"]
recipients = ["police.gz.example"]
min_sources = 2
max_rows = 20000
max_fraction = "0.30"
min_coverage = "0.80"
quotas = ["rows-{dataset}", "questions-{dataset}"]
approvals = 2
approvers = ["dpo", "owner"]
rate = {{ jobs = 40, per = "month" }}
window = {{ days = ["mon", "tue", "wed", "thu", "fri"], from = 08:00:00, to = 20:00:00 }}
"""
            for purpose in range(PURPOSES)
        ]
    return "\n".join(parts)


def _roster() -> Roster:
    names = [*_LISTS, "statistics", "data-bureau"]
    return Roster(
        collaboration="gz.example",
        version=1,
        previous=None,
        suite=1,
        issued=NOW - timedelta(days=1),
        expires=NOW + timedelta(days=60),
        organisations=tuple(RosterOrganisation(Organisation(f"{name}.gz.example"), name) for name in names),
        nodes=tuple(
            RosterNode(
                NodeName(f"{name}.gz.example/node-a"),
                _public(name),
                sha256_digest(name.encode()),
                "vkey",
                b"\1" * 32,
                (
                    str(
                        VerifierKey(
                            f"{name}.gz.example/node-a/witness/1", COSIGNATURE, _public(f"{name} witness")
                        )
                    ),
                ),
            )
            for name in names
        ),
        analysts=(
            RosterAnalyst("li", Organisation("data-bureau.gz.example"), _public("analyst"), b"\2" * 32),
        ),
    )


def _job(roster: Roster, dataset: int, purpose: int) -> JobSpec:
    roles = {Role("register"): _LISTS[0]}
    roles |= {Role(f"source-{number}"): name for number, name in enumerate(_LISTS[1:], start=1)}
    nodes = {role: NodeName(f"{name}.gz.example/node-a") for role, name in roles.items()}
    key, others = {"key": "resident_id"}, {"street": "street", "last_seen": "last_seen_month"}
    return JobSpec(
        job_type="crosscheck/1",
        params={"present_in": "at_least", "k": 2, "key_holder": "source-1"},
        inputs=tuple(
            JobInput(
                role,
                organisation_of(node),
                DatasetName(f"list-{dataset}"),
                key if role == "register" else key | others,
            )
            for role, node in nodes.items()
        ),
        roles={**nodes, Role("matcher"): NodeName("statistics.gz.example/node-a")},
        purpose=f"P-{purpose}",
        legal_basis=f"DPIA-{purpose}",
        expected_use="核实名单并补登",
        recipients=(Organisation("police.gz.example"),),
        requester=key_id(_public("analyst")),
        collaboration="gz.example",
        roster_digest=roster.digest,
        created=NOW - timedelta(hours=1),
        expires=NOW + timedelta(days=3),
        nonce=f"{dataset * PURPOSES + purpose:032x}",
    )


def _past(active: ActivePolicy, roster: Roster, jobs: Sequence[JobSpec]) -> Iterator[Past]:
    """Yield a year of attempts, evenly spread over time and rules, what they cost and asked as decided."""
    for number in range(ATTEMPTS):
        # Another nonce would be another job; what is asked stays the same.
        job = jobs[number * 7 % len(jobs)]
        ask = _decide(active, roster, Remembered(), job, ())
        yield Past(
            job=JobId(sha256_digest(number.to_bytes(4, "big"))),
            attempt=1,
            time=NOW - timedelta(days=365) * (ATTEMPTS - number) / ATTEMPTS,
            requester=job.requester,
            purpose=job.purpose,
            job_type=job.job_type,
            source=ask.terms.source,
            unit=ask.terms.unit,
            cost=ask.terms.cost,
            query=ask.terms.query,
            charged=True,
            exact=True,
            rule=ask.rule,
        )


def _approved(active: ActivePolicy, job: JobSpec, ask: Permit | Ask) -> tuple[VerifiedApproval, ...]:
    yes = Approval(
        job=job.job_id,
        node=_NODE,
        policy_digest=active.digest,
        rule=ask.rule,
        cost=ask.terms.cost.encode(),
        issued=NOW - timedelta(minutes=5),
        expires=NOW + timedelta(days=1),
        nonce="0" * 32,
    )
    return tuple(
        VerifiedApproval(
            who,
            key_id(_public(who)),
            replace(yes, nonce=who.encode().hex().zfill(32)),
            sha256_digest(who.encode()),
        )
        for who in ("dpo", "owner")
    )


def _key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest())


def _public(name: str) -> bytes:
    return _key(name).public_key().public_bytes_raw()
