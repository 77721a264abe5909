"""What one attempt of a training job is, as every party of it knows it: all public. SPEC.md, section 2."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Final, Self

from protocols.dp.cost import Cost
from protocols.dp.mechanism import Budget, Noise, Vector, calibrate
from protocols.encoding import Reader, canonical_json
from protocols.errors import DecodeError, InputError
from protocols.ids import Role
from protocols.sums.plan import MAX_SOURCES, MAX_TOTAL, MIN_SOURCES
from protocols.training.accounting import run_cost
from protocols.training.work import LEAD, NUMBER_OF_FIRST_SOURCE, Begin, Pin, Update

MIN_EXACT: Final = 3
"""Fewest sources without noise: of two, each would have the other's sums."""

MAX_WORDS: Final = 1 << 22
"""Most words of one round: an update, and an answer with all its receipts, go into one frame of a worker."""

MAX_NUMBER: Final = 1 << 27
"""Numbers of rounds are below: a round's streams have numbers of 32 bits."""

MAX_ATTEMPTS: Final = 1 << 8
"""More attempts than any coordinator gives a job: each may end with a round that nobody has the total of."""

SHAPE_BYTES: Final = 36
SET_BYTES: Final = 8

_READY: Final = b"minshu/train-ready/1"
_MASK: Final = b"minshu/train-mask/1"
_RUN: Final = b"minshu/train-run/1"
_SEED: Final = b"minshu/train-seed/1"


@dataclass(frozen=True, slots=True)
class Shape:
    """One round's vector, known before any data is looked at; the same at every source.

    Attributes:
        words: its length.
        largest: of the magnitudes that one row adds to any word.
        l1: what one unit changes it by at most at one source, in ℓ1 norm.
        l2_squared: the same in ℓ2 norm, squared.
    """

    words: int
    largest: int
    l1: int
    l2_squared: int

    @classmethod
    def of(cls, update: Update) -> Self:
        """Return what a worker says of its update.

        Raises:
            InputError: `update-wrong-length`: no whole number of words, none at all, or too many;
                `update-out-of-range`: bounds that contradict each other.
        """
        words, rest = divmod(len(update.words), 8)
        if rest or not 1 <= words <= MAX_WORDS:
            raise InputError(
                f"an update of {len(update.words)} bytes, 1 to {MAX_WORDS} words of 8 expected",
                code="update-wrong-length",
                hint="the recipe answers with a vector that it does not declare: pin another version",
            )
        found = cls(words, update.largest, int(update.l1), int(update.l2_squared))
        if not found.sound:
            raise InputError(
                "what one unit changes an update by is less than what one row adds to a word",
                code="update-out-of-range",
                hint="the recipe declares bounds that contradict each other: pin another version",
            )
        return found

    @property
    def sound(self) -> bool:
        """Whether its bounds can be true together: one row adds no more than one unit changes."""
        return (
            1 <= self.words <= MAX_WORDS
            and 1 <= self.largest <= self.l1 <= 1 << 52
            and self.largest**2 <= self.l2_squared <= self.l1**2
        )

    def encode(self) -> bytes:
        """Return u32 words ‖ u64 largest ‖ u64 l1 ‖ u128 l2_squared, big-endian."""
        return (
            self.words.to_bytes(4, "big")
            + self.largest.to_bytes(8, "big")
            + self.l1.to_bytes(8, "big")
            + self.l2_squared.to_bytes(16, "big")
        )

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read what `encode` wrote.

        Raises:
            DecodeError: cut short, or `bad-shape`: bounds that cannot be true together.
        """
        found = cls(reader.uint(4), reader.uint(8), reader.uint(8), reader.uint(16))
        if not found.sound:
            raise DecodeError("bounds of an update that contradict each other", code="bad-shape")
        return found


@dataclass(frozen=True)
class Plan:
    """One attempt of a training job.

    Attributes:
        job: 32 bytes, the job's id: what has to be the same in every attempt of it follows from this.
        ctx: 32 bytes, binds masks to all admissions of the attempt.
        sources: who is trained on, in order; the lower of two sends the seed.
        aggregator: who leads; no source.
        recipe: of the workers.
        settings: canonical JSON for the recipe, the same at all nodes.
        rounds: turn → most rounds of a source, all attempts of the job together.
        budgets: turn → of one round; None without noise.
        quorum: fewest sources of a round; without noise all of them.
        honest: contributors of a round, at least so many, whose noise nobody who sees its total can subtract.
        persons_in: in how many sources one person may be.
        rows: source → how many rows it has as its catalogue publishes it; means are of these.
        most_rows: source → rows that it has at most; no word of its update is beyond so many times `largest`.
        holdout: every so-manyth person is not trained on; 0 for none.
        shown: whether figures may be shown while it runs; see `shows`.
        deadline_s: seconds that a source's worker has for one update; 0: as long as its node gives it.
        delta: at which the ε spent is shown.
        retries: rounds in a row that may lack a quorum before the attempt ends.

    Raises:
        InputError: `bad-roles`, `bad-params`, `too-few-organisations`, `no-honest-contributor`.
    """

    job: bytes
    ctx: bytes
    sources: tuple[Role, ...]
    aggregator: Role
    recipe: str | Pin
    settings: bytes
    rounds: Mapping[str, int]
    budgets: Mapping[str, Budget | None]
    quorum: int
    honest: int
    persons_in: int
    rows: Mapping[Role, int]
    most_rows: Mapping[Role, int]
    holdout: int
    shown: bool
    deadline_s: int = 0
    delta: Fraction = Fraction(1, 100_000)
    retries: int = 3

    def __post_init__(self) -> None:
        """Check what no later step checks."""
        count = len(self.sources)
        if not MIN_SOURCES <= count <= MAX_SOURCES or (
            len(set(self.sources)) != count or self.aggregator in self.sources
        ):
            raise InputError(
                f"{count} sources, {MIN_SOURCES} to {MAX_SOURCES} different ones and an aggregator expected",
                code="bad-roles",
                hint="name each source once, and an aggregator beside them",
            )
        exact = self.exact
        if exact and (count < MIN_EXACT or self.quorum != count):
            raise InputError(
                f"{self.quorum} of {count} sources without noise: all of {MIN_EXACT} or more are needed",
                code="too-few-organisations",
                hint="train with noise, or with more departments, all of which take part in every round",
            )
        if not exact and not 1 <= self.honest <= self.quorum:
            raise InputError(
                f"{self.honest} of {self.quorum} contributors whose noise nobody else knows",
                code="no-honest-contributor",
                hint="ask for a larger quorum, or count fewer departments as colluding",
            )
        if not (
            len(self.job) == len(self.ctx) == 32
            and 2 <= self.quorum <= count
            and 1 <= self.persons_in <= count
            and self.rows.keys() == self.most_rows.keys() == set(self.sources)
            and all(1 <= rows <= 1 << 40 for rows in (*self.rows.values(), *self.most_rows.values()))
            and self.rounds.keys() == self.budgets.keys()
            and self.holdout >= 0
            and self.retries >= 0
        ):
            raise InputError(
                "numbers of rows, rounds, quorum or departments of a person that no run has",
                code="bad-params",
                hint="every source has rows, and every turn a budget",
            )

    @property
    def exact(self) -> bool:
        """Whether sums carry no noise in some turn."""
        return None in self.budgets.values()

    @property
    def shows(self) -> bool:
        """Whether figures are shown while it runs: never without noise, even of a public test set.

        A figure of a public set is one of a model whose every round is exact.
        """
        return self.shown and not self.exact

    @property
    def last(self) -> int:
        """The greatest number that an honest run's rounds come to.

        Each source is in so many rounds at most, so that there are no more than all of these together; one is
        lost with each attempt; and each may take `retries` numbers more.
        """
        held = len(self.sources) * sum(self.rounds.values()) + MAX_ATTEMPTS
        return min(held * (self.retries + 1), MAX_NUMBER // 2)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that every party has to agree on before round one."""
        pin = self.recipe if isinstance(self.recipe, str) else self.recipe.digest
        plain = {
            "sources": [*self.sources],
            "aggregator": self.aggregator,
            "recipe": pin,
            "settings": sha256(self.settings).hexdigest(),
            "turns": {
                turn: [str(most), "" if (budget := self.budgets[turn]) is None else str(budget.amount)]
                for turn, most in self.rounds.items()
            },
            "quorum": self.quorum,
            "honest": self.honest,
            "persons_in": self.persons_in,
            "rows": [[self.rows[source], self.most_rows[source]] for source in self.sources],
            "holdout": self.holdout,
        }
        return sha256(_READY + self.job + self.ctx + canonical_json(plain)).digest()

    # -- workers

    def node(self, role: Role) -> int:
        """Return the number of a party's worker."""
        return LEAD if role == self.aggregator else NUMBER_OF_FIRST_SOURCE + self.sources.index(role)

    def begin(self, role: Role, state: bytes = b"") -> Begin:
        """Return the first frame of a party's worker; whoever starts the process knows where its rows lie."""
        run = sha256(_RUN + self.job).digest()
        return Begin(
            role="lead" if role == self.aggregator else "contribute",
            recipe=self.recipe,
            settings=self.settings,
            # Of the job, not of the attempt: a lead is told again what it was told in earlier attempts.
            run=(int.from_bytes(run[:8], "big") >> 1) or 1,
            node=self.node(role),
            nodes=tuple(map(self.node, self.sources)),
            seed=sha256(_SEED + self.job).digest(),
            state=state,
            # What a lead does between two rounds is not what anybody waits for.
            deadline_s=0 if role == self.aggregator else self.deadline_s,
        )

    # -- sums

    def noise(self, turn: str, shape: Shape) -> Noise | None:
        """Return the noise of a round; None without any.

        Raises:
            InputError: see `calibrate`; `sum-too-large`: totals could wrap.
        """
        noise, scale = None, 1
        if (budget := self.budgets[turn]) is not None:
            noise = _noise(shape, budget, self.persons_in, self.honest, len(self.sources))
            scale = noise.scale
        if self.bound(self.sources, shape) * scale > MAX_TOTAL:
            raise InputError(
                f"a total of up to 2^{(self.bound(self.sources, shape) * scale).bit_length()} could wrap",
                code="sum-too-large",
                hint="ask for a coarser recipe, or fewer rows",
            )
        return noise

    def bound(self, members: Iterable[Role], shape: Shape) -> int:
        """Return what no word of their sum exceeds, without scale and noise."""
        return sum(self.most_rows[member] for member in members) * shape.largest

    def rows_of(self, turn: str, members: Iterable[Role]) -> int:
        """Return how many rows a total is about, as catalogues have it; those held out are not trained on."""
        rows = sum(self.rows[member] for member in members)
        if turn.startswith("train") and self.holdout:
            rows -= rows // self.holdout
        return max(rows, 1)

    def set_of(self, members: Iterable[Role]) -> bytes:
        """Return a set of sources as a u64, big-endian, whose bit i is the i-th source."""
        return sum(1 << self.sources.index(member) for member in members).to_bytes(SET_BYTES, "big")

    def members(self, body: bytes) -> tuple[Role, ...]:
        """Return the sources of a set, in order.

        Raises:
            DecodeError: another length, or a source that there is not.
        """
        bits = int.from_bytes(body, "big")
        if len(body) != SET_BYTES or bits >> len(self.sources):
            raise DecodeError("not a set of this job's sources", code="bad-set")
        return tuple(source for place, source in enumerate(self.sources) if bits >> place & 1)

    def label(self, number: int, members: Iterable[Role], turn: str, message: bytes, shape: Shape) -> bytes:
        """Return what the masks of a round are for: another round, set, turn, message, shape or plan has
        others.

        Args:
            number: of the round.
            members: whose masks are to cancel.
            turn: of the round.
            message: 32 bytes, the digest of what the lead's message says.
            shape: of the vector.
        """
        told = self.set_of(members) + bytes((len(turn),)) + turn.encode() + message + shape.encode()
        return _MASK + number.to_bytes(4, "big") + sha256(told + self.digest).digest()

    def cost(self, rounds: Mapping[str, int]) -> Cost:
        """Return what rounds cost one dataset."""
        return run_cost(self.budgets, rounds)


@lru_cache(maxsize=64)
def _noise(shape: Shape, budget: Budget, persons_in: int, honest: int, contributors: int) -> Noise:
    # One person changes the updates of so many sources, each by its bound at most.
    vector = Vector("update", shape.words, shape.l1 * persons_in, shape.l2_squared * persons_in**2)
    (noise,), _ = calibrate([vector], budget, honest=honest, contributors=contributors)
    return noise
