"""One small collaboration for all policy tests: five departments, a neutral office, a bureau, their keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.decide import VerifiedApproval
from policies.model import ActivePolicy, PinnedSigners
from policies.parse import parse_policy
from protocols.encoding import sha256_digest
from protocols.envelope import APPROVAL, Envelope, KeySigner, key_id, sign
from protocols.ids import DatasetName, KeyId, NodeName, Organisation, Role
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

EXAMPLES = Path(__file__).parents[2] / "policies" / "examples"
NOW = datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)
DATASETS = {
    "police": ("register", "population"),
    "human-resources": ("source-1", "insured"),
    "health": ("source-2", "patients"),
    "housing": ("source-3", "leases"),
    "education": ("source-4", "enrolment"),
}


@dataclass(frozen=True)
class World:
    now: datetime = NOW

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
            recipients=(Organisation("police.gz.example"),),
            requester=self.key("analyst"),
            collaboration="gz.example",
            roster_digest=self.roster.digest,
            created=NOW - timedelta(hours=1),
            expires=NOW + timedelta(days=3),
            nonce="0" * 32,
        )
        return replace(spec, **changes)

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
            cost="0",
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
