"""Small secure sums for tests: plan, vectors, and all parties with seeded randomness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from crosscheck_case import CTX, seeded

from protocols.ids import Role
from protocols.party import Party, Sent, run
from protocols.sums.parties import Aggregator, Contributor
from protocols.sums.plan import Mode, Sums

AGGREGATOR = Role("aggregator")


def names(count: int) -> tuple[Role, ...]:
    return tuple(Role(f"source-{number}") for number in range(1, count + 1))


def sums_plan(
    sources: int, words: int, bound: int, mode: Mode = "mask", *, key_holder: int = 1, meaning: bytes = b""
) -> Sums:
    roles = names(sources)
    return Sums(roles, AGGREGATOR, roles[key_holder - 1], words, bound, mode, CTX, meaning)


@dataclass
class SumCase:
    """One secure sum, ready to run."""

    plan: Sums
    vectors: Mapping[Role, Any]
    parties: dict[Role, Party]
    sent: list[Sent] = field(default_factory=list)

    def run(self, change: Callable[[Sent], None] | None = None) -> Any:
        """Play it whole and return the totals; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=change or self.sent.append)
        totals = outputs.pop(self.plan.key_holder)
        assert set(outputs.values()) == {()}
        return totals


def sum_case(plan: Sums, vectors: Sequence[Sequence[int]], *, seed: object = 0) -> SumCase:
    given = {
        role: np.array(vector, dtype=np.int64) for role, vector in zip(plan.sources, vectors, strict=True)
    }
    parties: dict[Role, Party] = {
        role: Contributor(plan, role, vector, seeded(f"{seed}/{role}")) for role, vector in given.items()
    }
    parties[AGGREGATOR] = Aggregator(plan)
    return SumCase(plan, given, parties)
