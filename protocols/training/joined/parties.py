"""A model of joined persons whose columns several departments have: the parties. SPEC.md, section 6.

lists are tagged, rows and seeds go out and rows are aligned as for statistics (protocols/joined), then

dealer      -- DEAL -->       both        seeds; to the helper what makes its part right, batch by batch
matcher     -- GROUPS -->     helper      how many rows are trained on, and how many held out
matcher    <-- TALK -->       helper      everything else between them, in turn (computing.py)
helper      -- DEALT -->      dealer      a batch is taken up
matcher     -- PART -->       source      its own weights, where the model is split
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import Content
from protocols.joined.align import Alignment, align, check_positions, check_sizes
from protocols.joined.parties import (
    ALIGN,
    DEAL,
    DEALT,
    GROUPS,
    ROWS,
    SEED,
    Dealing,
    Holder,
    Keys,
    MaskedRows,
)
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi.streams import Stream, bad_length, messages, single, unexpected
from protocols.psi.tagging import is_tagging
from protocols.sums.masks import SEED_BYTES
from protocols.training.joined.computing import Side, Trained
from protocols.training.joined.plan import Plan
from protocols.training.joined.talk import Talk
from protocols.training.schema import Ints

TALK: Final = 0x2B00
"""Round: both ways, what matcher and helper say in turn."""
PART: Final = 0x2B10
"""Round: matcher → source, i64 little-endian: its weights, then a constant, 0 at all but one."""

_GROUPS: Final = 2


class Source(Holder):
    """A list owner. Its output is `()`; where the model is split it keeps its own weights."""

    def __init__(  # noqa: PLR0917  # a list: whose, its keys, what belongs to them
        self,
        plan: Plan,
        role: Role,
        keys: Keys,
        words: Callable[[npt.NDArray[np.uint32]], Ints],
        rand: Rand,
        keep: Callable[[Ints], None] | None,
    ) -> None:
        """Take a list of distinct typed keys, in any order.

        Args:
            plan: what is computed.
            role: whose list it is.
            keys: see `Holder`.
            words: see `Holder`.
            rand: draws scalars, orders and the seed.
            keep: takes the own weights and the constant; None where the model is not split.

        Raises:
            ProtocolAborted: `count-changed`.
        """
        super().__init__(plan.joining, role, keys, words, np.zeros((len(keys), 0), np.uint16), rand)
        owner = plan.joining.tags.owners.index(role)
        self._weights = sum(column.width for column in plan.columns if column.owner == owner)
        self._keep, self._listing = keep, True

    def receive(self, message: Incoming) -> Step:
        """Take a tagging message, or the own weights.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be.
        """
        if self._listing:
            if not is_tagging(message.round):
                raise unexpected(message)
            step = super().receive(message)
            if isinstance(step, Waiting) or self._keep is None:
                return step
            self._listing = False
            return Waiting(step.outgoing, Progress("waiting", 0, 1), answering=True)
        if message.round != PART or message.sender != self._joining.matcher or self._keep is None:
            raise unexpected(message)
        body = single(message, 8 * (self._weights + 1))
        self._keep(np.frombuffer(body, dtype="<i8").astype(np.int64))
        return Finished((), ())


class Dealer(Dealing):
    """Makes random products and powers of nothing but public sizes, batch by batch."""

    def __init__(self, plan: Plan, rand: Rand) -> None:
        """Draw the seeds."""
        super().__init__(plan.joining.helper, len(plan.batches))
        self._plan = plan
        self._first, self._second = rand(SEED_BYTES), rand(SEED_BYTES)

    def deal(self, number: int) -> Iterator[Outgoing]:
        """Yield a batch, before the first one both seeds."""
        joining, batches = self._plan.joining, self._plan.batches
        if number == 0:
            yield Outgoing(joining.matcher, DEAL, self._first)
            yield Outgoing(joining.helper, DEAL, self._second, last=False)
        body = memoryview(batches[number].deal(self._first, self._second))
        ends = number == len(batches) - 1
        for start in range(0, len(body), MAX_BODY_BYTES):
            stop = start + MAX_BODY_BYTES
            last = ends and stop >= len(body)
            yield Outgoing(joining.helper, DEAL, bytes(body[start:stop]), last=last)


class Dealt:
    """The helper's side of what is dealt: the seed, then batches of known lengths, each cut anew."""

    def __init__(self, sizes: Sequence[int], ahead: int) -> None:
        """Expect batches of these lengths, so many before the first is taken up."""
        self._sizes, self._allowed = sizes, min(ahead, len(sizes))
        self.seed: bytes | None = None
        self._coming = 0
        self._parts: dict[int, list[bytes]] = {}

    def take(self, message: Incoming) -> None:
        """Take the next message.

        Raises:
            ProtocolAborted: `unexpected-message`, `bad-length`.
        """
        if self.seed is None:
            if len(message.body) != SEED_BYTES or message.last:
                raise bad_length(message)
            self.seed = message.body
            return
        if self._coming >= self._allowed:
            raise unexpected(message)
        parts = self._parts.setdefault(self._coming, [])
        left = self._sizes[self._coming] - sum(map(len, parts))
        size = min(MAX_BODY_BYTES, left)
        if len(message.body) != size or message.last != (
            self._coming == len(self._sizes) - 1 and size == left
        ):
            raise bad_length(message)
        parts.append(message.body)
        self._coming += size == left

    def has(self, number: int) -> bool:
        """Whether a batch is whole."""
        return number < self._coming

    def give(self, number: int) -> tuple[bytes, bool]:
        """Return a whole batch, and whether it was the last one; another one may come."""
        self._allowed = min(self._allowed + 1, len(self._sizes))
        return b"".join(self._parts.pop(number)), number == len(self._sizes) - 1


class Matcher:
    """Joins rows, opens totals, makes the weights; outputs what `publish` makes of them."""

    def __init__(
        self,
        plan: Plan,
        rand: Rand,
        *,
        admit: Callable[[int, int], float],
        publish: Callable[[Trained], tuple[Content, ...]],
        split: bool,
    ) -> None:
        """Wait for every list.

        Args:
            plan: what is computed.
            rand: draws orders, who is held out, coins, and noise.
            admit: given how many persons are joined, and how many of them are trained on, before anything of
                it leaves; returns how many the weights are reckoned with, noisy where there is noise; raises
                `ProtocolAborted` where the attempt must not go on.
            publish: called once.
            split: whether each source is sent its own weights.
        """
        self._plan, self._rand, self._admit, self._publish = plan, rand, admit, publish
        self._split = split
        self._lists = [MaskedRows(plan.joining, index) for index in range(len(plan.joining.widths))]
        self._total = sum(plan.joining.tags.counts)
        self._seed: bytes | None = None
        self._aligned: tuple[list[npt.NDArray[np.unsignedinteger]], Alignment, float] | None = None
        self._side: Side | None = None
        self._talk: Talk[Trained | None] | None = None

    def start(self) -> Step:
        """Wait for rows."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        if self._side is not None:
            return Progress("training", self._side.done, self._plan.rounds)
        return Progress("collecting", sum(each.stream.seen for each in self._lists), self._total)

    def receive(self, message: Incoming) -> Step:
        """Take rows, the dealer's seed, and what the helper says.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; whatever `admit` raises;
                see `Side.play`.
        """
        joining = self._plan.joining
        if message.round == ROWS and message.sender in joining.tags.owners:
            self._lists[joining.tags.owners.index(message.sender)].take(message)
            if not all(each.stream.complete for each in self._lists):
                return Waiting((), self._progress())
            outgoing = self._align()
            return self._begin(outgoing)
        if message.round == DEAL and message.sender == self._plan.dealer and self._seed is None:
            self._seed = single(message, SEED_BYTES)
            return self._begin(())
        if message.round != TALK or message.sender != joining.helper or self._talk is None:
            raise unexpected(message)
        self._talk.take(message)
        return self._step(self._talk, self._talk.go())

    def _align(self) -> Iterator[Outgoing]:
        """Join the lists, draw who is held out, and yield the alignment, as long for any number of rows."""
        plan, joining = self._plan, self._plan.joining

        def held(places: npt.NDArray[np.uint32]) -> Ints:
            # Each by a throw of its own, so that one person more or less changes nothing for another.
            throws = np.frombuffer(self._rand(8 * len(places)), dtype="<u8")
            return (throws < np.uint64((1 << 64) // plan.holdout)).astype(np.int64)

        found = align(
            [each.tags for each in self._lists],
            joining.ways,
            self._rand,
            groups=_GROUPS,
            group_of=held if plan.holdout else None,
        )
        persons = self._admit(found.n, int(found.sizes[0]))
        shares = [
            each.shares(found.positions[:, place], joining.rows) for place, each in enumerate(self._lists)
        ]
        self._aligned = shares, found, persons
        sizes = found.sizes.astype("<u4")
        return chain(
            joining.told(found),
            messages(joining.helper, GROUPS, _GROUPS, _GROUPS, lambda start, stop: sizes[start:stop]),
        )

    def _begin(self, outgoing: Iterable[Outgoing]) -> Step:
        if self._aligned is None or self._seed is None:
            return Waiting(outgoing, self._progress())
        shares, found, persons = self._aligned
        self._aligned = None
        trained, held = found.sizes.tolist()
        self._side = Side(self._plan, shares, trained, held, self._seed, self._rand, True, persons)  # noqa: FBT003  # the first
        self._talk = Talk(self._plan.joining.helper, TALK, self._side.play())
        return self._step(self._talk, chain(outgoing, self._talk.begin()))

    def _step(self, talk: Talk[Trained | None], outgoing: Iterable[Outgoing]) -> Step:
        if not talk.complete:
            return Waiting(outgoing, self._progress())
        assert talk.result is not None
        return Finished(chain(outgoing, self._parts(talk.result)), self._publish(talk.result))

    def _parts(self, trained: Trained) -> Iterator[Outgoing]:
        plan = self._plan
        for owner, role in enumerate(plan.joining.tags.owners if self._split else ()):
            constant = trained.weights[-1:] if owner == plan.columns[0].owner else [0]
            own = np.array([*part_of(plan, trained.weights, owner), *constant], dtype="<i8")
            yield Outgoing(role, PART, self._plan.scaled(own).tobytes())


def part_of(plan: Plan, weights: Ints, owner: int) -> list[int]:
    """Return the weights of one source's codes, in the job's order."""
    found: list[int] = []
    at = 0
    for column in plan.columns:
        if column.owner == owner:
            found += weights[at : at + column.width].tolist()
        at += column.width
    return found


class Helper:
    """Holds masks in the order of the alignment; sees no tag, and of rows no word. Its output is `()`."""

    def __init__(self, plan: Plan, rand: Rand, *, ahead: int) -> None:
        """Wait for seeds, the alignment and the dealer's part.

        Args:
            plan: what is computed.
            rand: draws coins and noise.
            ahead: batches that the dealer sends before one is taken up.
        """
        self._plan, self._rand = plan, rand
        joining = plan.joining
        self._seeds: dict[Role, bytes] = {}
        self._align = Stream(ALIGN, joining.rows, 4 * len(joining.widths), joining.align_chunk)
        self._groups = Stream(GROUPS, _GROUPS, 4, _GROUPS)
        self._dealt = Dealt([batch.size for batch in plan.batches], ahead)
        self._side: Side | None = None
        self._talk: Talk[Trained | None] | None = None
        self._early: list[Incoming] = []

    def start(self) -> Step:
        """Wait for seeds."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        if self._side is not None:
            return Progress("training", self._side.done, self._plan.rounds)
        return Progress("collecting", self._align.seen, self._plan.rows)

    def receive(self, message: Incoming) -> Step:
        """Take seeds, the dealer's part, the alignment, and what the matcher says.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-alignment`,
                `bad-groups`; see `Side.play`.
        """
        joining = self._plan.joining
        match message.round:
            case number if number == SEED and message.sender in joining.tags.owners:
                if message.sender in self._seeds:
                    raise unexpected(message)
                self._seeds[message.sender] = single(message, SEED_BYTES)
            case number if number == DEAL and message.sender == self._plan.dealer:
                self._dealt.take(message)
            case number if number == ALIGN and message.sender == joining.matcher:
                self._align.keep(self._align.take(message))
            case number if number == GROUPS and message.sender == joining.matcher:
                self._groups.keep(self._groups.take(message))
            case number if number == TALK and message.sender == joining.matcher and self._groups.complete:
                if self._talk is None:
                    # The matcher is ahead: the dealer's part, or a seed, is still on its way here.
                    if len(self._early) >= _EARLY:
                        raise unexpected(message)
                    self._early.append(message)
                else:
                    self._talk.take(message)
            case _:
                raise unexpected(message)
        return self._go()

    def _go(self) -> Step:
        joining = self._plan.joining
        outgoing: list[Outgoing] = []
        if self._talk is None:
            ready = self._align.complete and self._groups.complete and len(self._seeds) == len(joining.widths)
            if not ready or self._dealt.seed is None:
                return Waiting((), self._progress())
            self._side = self._expanded(self._dealt.seed)
            self._talk = Talk(joining.matcher, TALK, self._side.play())
            for message in self._early:
                self._talk.take(message)
            self._early = []
            outgoing += self._talk.begin()
        talk = self._talk
        outgoing += talk.go()
        while (number := talk.need) is not None and self._dealt.has(number):
            batch, last = self._dealt.give(number)
            outgoing.append(Outgoing(self._plan.dealer, DEALT, b"", last=last))
            outgoing += talk.give(batch)
        return Finished(outgoing, ()) if talk.complete else Waiting(outgoing, self._progress())

    def _expanded(self, seed: bytes) -> Side:
        joining = self._plan.joining
        positions = self._align.raw().reshape(-1).view("<u4").reshape(joining.rows, -1)
        n = check_positions(positions, joining.tags.counts, joining.ways)
        sizes = self._groups.raw().reshape(-1).view("<u4").astype(np.int64)
        check_sizes(sizes, n)
        trained, held = sizes.tolist()
        if held and not self._plan.holdout:
            raise ProtocolAborted("rows are held out in a job that holds none out", code="bad-groups")
        shares = joining.placed(positions, self._seeds)
        return Side(self._plan, shares, trained, held, seed, self._rand, first=False)


_EARLY: Final = 8
