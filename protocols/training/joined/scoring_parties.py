"""Scores of joined persons, told to one recipient: the parties. SPEC.md, section 7.

All goes as for a rule (protocols/joined/rule_parties.py), whose one clause is that the score reaches the
first step. When the matcher has named the rows for which it does, then

dealer      -- FURTHER -->        helper      of a second plan of triples, batch by batch, its corrections
helper      -- TAKEN -->          dealer      a batch is done
matcher    <-- COMPARED -->       helper      coins, openings and digests of that plan
matcher     -- REACHED -->        recipient   its shares of one bit for each received row and further step
helper      -- REACHED -->        recipient   its own
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import date
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.identifiers import AreaTable
from protocols.jobs.job_type import Content
from protocols.joined import bits, rule_parties
from protocols.joined.align import ABSENT, Way
from protocols.joined.parties import AHEAD, DEALT, Dealing
from protocols.joined.rule_parties import CHUNK_CORRECTIONS
from protocols.joined.rules import Ints, Question
from protocols.joined.triples import COIN_BYTES
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi.envelopes import Opened
from protocols.psi.streams import Stream, bad_length, messages, unexpected
from protocols.training.joined.scoring import Asked, Climb
from protocols.training.joined.talk import Need, Part, Talk, said

FURTHER: Final = 0x2B10
"""Round: dealer → helper, of each batch of the second plan what makes its triples right."""
TAKEN: Final = 0x2B20
"""Round: helper → dealer, empty: a batch of the second plan is done."""
COMPARED: Final = 0x2B30
"""Round: both ways, what `bits` exchanges for the second plan."""
REACHED: Final = 0x2B40
"""Round: matcher → recipient, helper → recipient, a share of a bit for each row and step, in words of 64."""


# -- recipient -----------------------------------------------------------------------------------------------


class Reading(rule_parties.Reading):
    """The recipient's part: envelopes, and of each person in them which steps the score reaches."""

    def __init__(
        self,
        question: Asked,
        *,
        as_of: date,
        areas: AreaTable,
        own: tuple[Way, npt.NDArray[np.bytes_]] | None,
        publish: Callable[[Opened, list[str]], tuple[Content, ...]],
    ) -> None:
        """Wait for envelopes and shares.

        Args:
            question: what is asked.
            as_of: see `rule_parties.Reading`.
            areas: see there.
            own: see there.
            publish: makes the output of envelopes, and of what each one's score reaches; called once.
        """
        super().__init__(
            question,
            as_of=as_of,
            areas=areas,
            own=own,
            publish=lambda opened: publish(opened, self._reached(len(opened.keys))),
        )
        self._climb, joining = question.climb, question.joining
        words, chunk = question.climb.plan.words, MAX_BODY_BYTES // bits.WORD_BYTES
        self._shares = {
            holder: Stream(REACHED, words, bits.WORD_BYTES, chunk)
            for holder in (joining.matcher, joining.helper)
        }

    def take(self, message: Incoming) -> None:
        """Take the content key, envelopes or shares.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be.
        """
        if message.round == REACHED and message.sender in self._shares:
            shares = self._shares[message.sender]
            shares.keep(shares.take(message))
        else:
            super().take(message)

    @property
    def complete(self) -> bool:
        """Whether all has come."""
        return super().complete and all(each.complete for each in self._shares.values())

    def _reached(self, persons: int) -> list[str]:
        """Return what the score of each person reaches, in the order of envelopes.

        Raises:
            ProtocolAborted: `bad-steps`.
        """
        one, other = (each.raw().reshape(-1).view("<u8") for each in self._shares.values())
        steps = len(self._climb.further)
        above = bits.unpacked(one ^ other)[: persons * steps].reshape(persons, steps)
        # Whoever reaches a step reaches those below.
        if bool((above[:, 1:] & ~above[:, :-1]).any()):
            raise ProtocolAborted(
                "a score reaches a step and not one below it",
                code="bad-steps",
                hint="the matcher or the helper runs another version, or not this job; compare journals",
            )
        return self._climb.scoring.reached(above)


# -- dealer --------------------------------------------------------------------------------------------------


class _Further(Dealing):
    """Makes triples of the second plan."""

    def __init__(self, climb: Climb, seeds: tuple[bytes, bytes]) -> None:
        super().__init__(climb.joining.helper, len(climb.plan.batches))
        self._climb, self._seeds = climb, seeds

    def deal(self, number: int) -> Iterator[Outgoing]:
        plan = self._climb.plan
        body = memoryview(bits.deal(plan, plan.batches[number], *self._seeds).tobytes())
        last = number == len(plan.batches) - 1
        for start in range(0, len(body), CHUNK_CORRECTIONS):
            stop = start + CHUNK_CORRECTIONS
            end = last and stop >= len(body)
            yield Outgoing(self._climb.joining.helper, FURTHER, bytes(body[start:stop]), last=end)


class Dealer(rule_parties.Dealer):
    """Makes triples of nothing but public sizes, for both plans. Output `()`."""

    def __init__(self, question: Asked, rand: Rand) -> None:
        """Draw the seeds."""
        super().__init__(question, rand)
        self._further = _Further(question.climb, (self._first, self._second))
        self._turned = False

    def receive(self, message: Incoming) -> Step:
        """Deal the next batch, if there is one; be done with the last of both plans.

        Raises:
            ProtocolAborted: a message that is not due.
        """
        if self._turned:
            if message.round != TAKEN:
                raise unexpected(message)
            return self._further.receive(replace(message, round=DEALT))
        step = super().receive(message)
        if isinstance(step, Finished):
            self._turned = True
            return self._further.start()
        return step


# -- matcher and helper --------------------------------------------------------------------------------------


class _Corrections:
    """What the dealer sends the helper for the second plan, batch by batch."""

    def __init__(self, plan: bits.Plan) -> None:
        self._batches = plan.batches
        self._taken: list[list[bytes]] = [[] for _ in self._batches]
        self._coming = self.done = 0
        self._asked = min(AHEAD, len(self._batches))

    def take(self, message: Incoming) -> None:
        """Take a message.

        Raises:
            ProtocolAborted: `unexpected-message`, `bad-length`.
        """
        if self._coming >= self._asked:
            raise unexpected(message)
        taken = self._taken[self._coming]
        left = self._batches[self._coming].correction_bytes - sum(map(len, taken))
        size = min(CHUNK_CORRECTIONS, left)
        ends = self._coming == len(self._batches) - 1 and size == left
        if len(message.body) != size or message.last != ends:
            raise bad_length(message)
        taken.append(message.body)
        self._coming += size == left

    def of(self, number: int) -> bytes | None:
        """Return a batch's corrections, once; None while some are to come."""
        if number >= self._coming:
            return None
        whole, self._taken[number] = b"".join(self._taken[number]), []
        return whole

    def take_up(self) -> bool:
        """Count a batch as done, and expect another one; return whether it is the last."""
        self.done += 1
        self._asked = min(self.done + AHEAD, len(self._batches))
        return self.done == len(self._batches)


class _Comparing:
    """One holder's side of the second plan: a share of one bit for each received row and further step."""

    def __init__(self, climb: Climb, *, first: bool, rand: Rand) -> None:
        self._climb, self._first, self._rand = climb, first, rand
        to = climb.joining.helper if first else climb.joining.matcher
        self.talk = Talk(to, COMPARED, self._part())
        self._received: Ints | None = None
        self._seed = b""
        self.bits: list[bits.Words] = []  # of batches that are done

    @property
    def due(self) -> bool:
        """Whether the other's messages are due."""
        return self._received is not None and not self.talk.complete

    def progress(self) -> Progress:
        """Return how far it is."""
        return Progress("grading", len(self.bits), len(self._climb.plan.batches))

    def begin(self, scores: Ints, rows: npt.NDArray[np.integer], seed: bytes) -> list[Outgoing]:
        """Compare the scores of these rows; return what goes out.

        Args:
            scores: the own shares of all rows' scores less the first threshold.
            rows: which are received, `Asked.room` at most.
            seed: what the dealer sent.
        """
        self._received = np.zeros(self._climb.room, dtype=np.int64)
        self._received[: len(rows)] = scores[rows]
        self._seed = seed
        return self.talk.begin()

    def _part(self) -> Part[None]:
        plan, first = self._climb.plan, self._first
        for batch in plan.batches:
            if first:
                dealt = bits.Triples.first(plan, batch, self._seed)
            else:
                corrections = yield Need(batch.number)
                dealt = bits.Triples.second(plan, batch, self._seed, corrections)
            # Drawn when the corrections are whole: nothing of them can depend on the challenge.
            coin = self._rand(COIN_BYTES)
            triples = yield from said(bits.checked(plan, batch, dealt, coin, first=first))
            assert self._received is not None
            values = self._climb.values(batch, self._received, first=first)
            self.bits.append((yield from said(bits.conjoined(plan, [values], [], triples, first=first))))

    def told(self) -> Iterator[Outgoing]:
        """Yield the own shares for the recipient."""
        words = np.concatenate(self.bits)
        return messages(
            self._climb.recipient,
            REACHED,
            len(words),
            MAX_BODY_BYTES // bits.WORD_BYTES,
            lambda start, stop: words[start:stop],
        )


def _scores(question: Question, shares: rule_parties.Shares) -> Ints:
    """Return one holder's shares of all scores less the first threshold: at the matcher that is taken off."""
    (values,), _ = shares.batch(bits.Batch(0, 0, question.plan.words, 0))
    return values.view(np.int64)


class Matcher(rule_parties.Matcher):
    """Joins rows, learns whose score reaches the first step, and sends on what the recipient opens.

    Its output is `()`.
    """

    def __init__(self, question: Asked, rand: Rand) -> None:
        """Wait for every list."""
        super().__init__(question, rand)
        self._comparing = _Comparing(question.climb, first=True, rand=rand)
        self._scores: Ints = np.zeros(0, dtype=np.int64)
        self._owed: Iterable[Outgoing] | None = None

    def receive(self, message: Incoming) -> Step:
        """Take what the matcher of a rule takes, and the helper's side of the second plan.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-triple`; a guard.
        """
        if (
            message.round == COMPARED
            and message.sender == self._question.joining.helper
            and self._comparing.due
        ):
            self._comparing.talk.take(message)
            return self._go_on(self._comparing.talk.go())
        step = super().receive(message)
        if isinstance(step, Finished):
            self._owed = step.outgoing
            return self._go_on(())
        return step

    def align(self) -> Iterator[Outgoing]:
        """Join the lists, yield the alignment, and keep the shares of scores."""
        told = super().align()
        assert self._shares is not None
        self._scores = _scores(self._question, self._shares)
        return told

    def tell(self) -> Step:
        """Ask for locks and envelopes, and begin to compare the scores of these rows with further steps.

        Raises:
            ProtocolAborted: a guard.
        """
        step = super().tell()
        assert self._true is not None
        assert self._alignment is not None
        places = self._alignment.positions[:, self._question.number - 1].astype(np.int64)
        order = np.argsort(places)
        rows = order[np.searchsorted(places, self._true, sorter=order)]
        assert self._seed is not None
        begun = self._comparing.begin(self._scores, rows, self._seed)
        self._scores = self._scores[:0]
        return self._go_on(chain(step.outgoing, begun))

    def _go_on(self, outgoing: Iterable[Outgoing]) -> Step:
        """Once all is compared and envelopes are there, send both."""
        if self._comparing.talk.complete and self._owed is not None:
            return Finished(chain(outgoing, self._owed, self._comparing.told()), ())
        return Waiting(outgoing, self._comparing.progress())


class Helper(rule_parties.Helper):
    """Holds masks in the order of the alignment, and the locks of received rows. Its output is `()`."""

    def __init__(self, question: Asked, rand: Rand) -> None:
        """Wait for seeds, the alignment and the dealer's part."""
        super().__init__(question, rand)
        self._comparing = _Comparing(question.climb, first=False, rand=rand)
        self._corrections = _Corrections(question.climb.plan)
        self._scores: Ints = np.zeros(0, dtype=np.int64)
        self._owed: Iterable[Outgoing] = ()
        self._opening: list[Outgoing] = []

    def receive(self, message: Incoming) -> Step:
        """Take what the helper of a rule takes, and what belongs to the second plan.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-alignment`,
                `bad-triple`; `bad-rows`, rows asked for that are none; a guard.
        """
        question = self._question
        if message.round == FURTHER and message.sender == question.dealer:
            if len(self._bits) < len(question.plan.batches):
                raise unexpected(message)
            self._corrections.take(message)
            return self._go_on(())
        if message.round == COMPARED and message.sender == question.joining.matcher and self._comparing.due:
            self._comparing.talk.take(message)
            return self._go_on(self._comparing.talk.go())
        step = super().receive(message)
        if isinstance(step, Finished):
            self._owed = step.outgoing
            return self._go_on(self._opening)
        return step

    def expanded(self) -> rule_parties.Shares:
        """Return the own shares, and keep those of scores.

        Raises:
            ProtocolAborted: `bad-alignment`.
        """
        shares = super().expanded()
        self._scores = _scores(self._question, shares)
        return shares

    def locks(self) -> Iterator[Outgoing]:
        """Yield the keys of locks, and begin to compare the scores of these rows with further steps.

        Raises:
            ProtocolAborted: `bad-rows`; a guard.
        """
        asked = self._wanted.raw()
        self._wanted.keep(asked)
        locks = super().locks()
        numbers = asked.reshape(-1).view("<u4")
        assert self._seed is not None
        self._opening = self._comparing.begin(self._scores, numbers[numbers != ABSENT], self._seed)
        self._scores = self._scores[:0]
        return locks

    def _go_on(self, outgoing: Iterable[Outgoing]) -> Step:
        """Compare as far as the dealer's part has come; once that is done, send locks and shares."""
        talk, sent = self._comparing.talk, [*outgoing]
        while (number := talk.need) is not None and (corrections := self._corrections.of(number)) is not None:
            sent += talk.give(corrections)
        while self._corrections.done < len(self._comparing.bits):
            last = self._corrections.take_up()
            sent.append(Outgoing(self._question.dealer, TAKEN, b"", last=last))
        if talk.complete:
            return Finished(chain(sent, self._owed, self._comparing.told()), ())
        return Waiting(sent, self._comparing.progress())
