"""Small secure sums for tests: plan, vectors, all parties with seeded randomness; and an attack on a view."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from crosscheck_case import CTX, seeded

from protocols.ids import Role
from protocols.party import Party, Sent, run
from protocols.sums import bfv
from protocols.sums.masks import RING, Masks, stream_key
from protocols.sums.parties import MASKED, SEED, TOTALS, Aggregator, Contributor
from protocols.sums.plan import CHECKS, Mode, Sums

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


# the attack


def subsets(roles) -> list[frozenset[Role]]:
    return [frozenset(some) for size in range(1, len(roles) + 1) for some in combinations(roles, size)]


class View:
    """What a coalition has."""

    def __init__(self, case: SumCase, members: frozenset[Role]) -> None:
        self.plan, self.members = case.plan, members
        self.messages = [m for m in case.sent if m.sender in members or m.to in members]
        self.own = {role: case.vectors[role] for role in members if role in case.vectors}
        self.secret = case.parties[case.plan.key_holder]._secret if case.plan.key_holder in members else None
        # Seeds travel; what a member drew for itself it has, too.
        self.seeds = {frozenset({m.sender, m.to}): m.body for m in self.messages if m.round == SEED}
        for role in members - {AGGREGATOR}:
            self.seeds[frozenset({role})] = case.parties[role]._own_seed

    def masked(self, source: Role) -> np.ndarray | None:
        """A source's masked words, opened as far as the coalition can."""
        body = b"".join(m.body for m in self.messages if (m.sender, m.round) == (source, MASKED))
        return self.opened(body) if body else None

    def totals(self) -> np.ndarray | None:
        body = b"".join(m.body for m in self.messages if m.round == TOTALS)
        return self.opened(body) if body else None

    def opened(self, body: bytes) -> np.ndarray | None:
        if self.plan.mode == "mask":
            return np.frombuffer(body, dtype="<u8").view(np.int64).copy()
        if self.secret is None:
            return None
        opened, count = [], 0
        while len(opened) < self.plan.places:  # several messages, each framed by itself
            length = int.from_bytes(body[count : count + 4], "big")
            opened.append(self.secret.decrypt(body[count + 4 : count + 4 + length]))
            count += 4 + length
        limbs = self.plan.parameters.limbs
        low = np.concatenate(opened[::limbs])
        return low if limbs == 1 else low + (np.concatenate(opened[1::limbs]) << 32)

    def streams(self, source: Role) -> Masks:
        """Every stream in a source's masked words whose seed is in view, ready to be taken off."""
        plan, place = self.plan, self.plan.sources.index(source)
        added, subtracted = [], []
        for at, other in enumerate(plan.sources):
            seed = self.seeds.get(frozenset({source, other}))
            if seed is None:
                continue
            lower, higher = plan.sources[min(at, place)], plan.sources[max(at, place)]
            if other != source:
                key = stream_key(seed, CTX, lower, higher, b"cancel")
                (added if at > place else subtracted).append(key)
            if plan.mode == "mask" and (other == plan.key_holder or source == plan.key_holder == other):
                added.append(stream_key(seed, CTX, lower, higher, b"cover"))
        return Masks(subtracted, added, plan.parameters.modulus)


def carried(words: np.ndarray, plan: Sums) -> np.ndarray:
    """Blocks without checks and filling."""
    blocks = words.reshape(plan.blocks, -1)
    return blocks[:, CHECKS:].ravel()[: plan.words]


def reduced(words: np.ndarray, plan: Sums) -> list[int]:
    """Words as numbers with a sign, without the checks."""
    modulus = plan.parameters.modulus
    found = [int(word) % modulus for word in carried(words, plan)]
    return [word - modulus if word > modulus // 2 else word for word in found]


def sum_of(view: View, outsiders: frozenset[Role]) -> list[int] | None:
    """What the coalition believes the outsiders' vectors add up to; None without anything to go by.

    (1) Of the totals it takes off its members' vectors. (2) It opens masked words one by one, takes off every
    stream that it can expand, and adds up.
    """
    plan = view.plan
    everybody = outsiders | (view.members - {AGGREGATOR}) == set(plan.sources)
    totals = view.totals()
    if totals is not None and everybody and plan.key_holder in view.members:
        if plan.mode == "mask":
            for source in plan.sources:
                # Members' own streams cancel; only covers are left on totals.
                seed = view.seeds[frozenset({source, plan.key_holder})]
                lower, higher = sorted((source, plan.key_holder))
                Masks([], [stream_key(seed, CTX, lower, higher, b"cover")], RING).add_to(totals)
        found = reduced(totals, plan)
        for vector in view.own.values():
            found = [word - own for word, own in zip(found, vector.tolist(), strict=True)]
        return found
    total = np.zeros(sum(plan.size(block) for block in range(plan.blocks)), dtype=np.int64)
    for source in outsiders:
        words = view.masked(source)
        if words is None:
            return None
        view.streams(source).add_to(words)
        # Once reduced, fifty of them do not leave 64 bits; modulo 2^64 they may.
        total += words % bfv.PRIME if plan.parameters.modulus == bfv.PRIME else words
    return reduced(total, plan)
