"""Which joined persons meet a rule, told to one recipient: the parties. SPEC.md, section 7.

lists are tagged, rows and seeds go out and rows are aligned as for statistics (parties.py), then

dealer      -- SEEDS -->        both        what triples come from
dealer      -- CORRECTIONS -->  helper      batch by batch
helper      -- DEALT -->        dealer      a batch is done
matcher    <-- OPENINGS -->     helper      coins, openings and digests, in turn (bits.py)
helper      -- BITS -->         matcher     its shares of one bit a row
matcher     -- READY -->        source      the guards have passed
matcher     -- WANTED -->       helper      which rows are true, padded
helper      -- LOCKS -->        matcher     the keys of their locks, padded
source      -- LOCKED -->       matcher     locked envelopes of all rows
source      -- CONTENT_KEY -->  recipient   what opens envelopes
matcher     -- ENVELOPES -->    recipient   those of true rows, padded
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import ProtocolAborted
from protocols.identifiers import AreaTable
from protocols.ids import Role
from protocols.jobs.job_type import Content
from protocols.joined import bits
from protocols.joined.align import ABSENT, Alignment, Way, align, check_positions
from protocols.joined.field import Words
from protocols.joined.lists import JoinedList
from protocols.joined.parties import AHEAD, ALIGN, DEALT, ROWS, SEED, Dealing, Holder, MaskedRows
from protocols.joined.rules import LOCK_BYTES, Ints, Question, row_keys
from protocols.joined.triples import COIN_BYTES
from protocols.party import (
    MAX_BODY_BYTES,
    UNDER_WAY,
    Finished,
    Incoming,
    Outgoing,
    Progress,
    Rand,
    Step,
    Waiting,
)
from protocols.psi import group
from protocols.psi.envelopes import (
    CONTENT_KEY_BYTES,
    ENVELOPE_BYTES,
    PLAIN_BYTES,
    Inbox,
    Opened,
    check_selected,
    padded,
    plaintexts,
    record,
    sealed,
)
from protocols.psi.locks import GCM_TAG_BYTES
from protocols.psi.streams import Stream, bad_length, messages, single, unexpected
from protocols.psi.tagging import is_tagging
from protocols.sums.masks import RING, SEED_BYTES

SEEDS: Final = 0x2A00
"""Round: dealer → matcher, dealer → helper, 32 bytes."""
CORRECTIONS: Final = 0x2A10
"""Round: dealer → helper, of each batch what makes its triples right, u64 little-endian."""
OPENINGS: Final = 0x2A30
"""Round: both ways, what `bits` exchanges."""
BITS: Final = 0x2A40
"""Round: helper → matcher, its shares of one bit a row, in words of 64."""
READY: Final = 0x2A50
"""Round: matcher → the source of records, empty: every guard has passed."""
WANTED: Final = 0x2A60
"""Round: matcher → helper, u32 little-endian, numbers of true rows, then ABSENT."""
LOCKS: Final = 0x2A70
"""Round: helper → matcher, the keys of those rows' locks, then zeros."""
LOCKED: Final = 0x2A80
"""Round: the source of records → matcher, a locked envelope of each row, in tag order."""
CONTENT_KEY: Final = 0x2A90
"""Round: the source of records → recipient, 32 bytes."""
ENVELOPES: Final = 0x2AA0
"""Round: matcher → recipient, u8 source number ‖ u32 position ‖ envelope, then zeros."""

LOCKED_BYTES: Final = ENVELOPE_BYTES + GCM_TAG_BYTES
CHUNK_WANTED: Final = 1 << 17
CHUNK_LOCKS: Final = 8192
CHUNK_LOCKED: Final = 4096
CHUNK_CORRECTIONS: Final = MAX_BODY_BYTES

_ONE_MESSAGE: Final = bytes(12)  # a lock's key locks one envelope


# -- sources and recipient -----------------------------------------------------------------------------------


class Reading:
    """The recipient's part: a content key, and the padded stream of envelopes."""

    def __init__(
        self,
        question: Question,
        *,
        as_of: date,
        areas: AreaTable,
        own: tuple[Way, npt.NDArray[np.bytes_]] | None,
        publish: Callable[[Opened], tuple[Content, ...]],
    ) -> None:
        """Wait for envelopes.

        Args:
            question: what is asked.
            as_of: the day as of which keys are judged.
            areas: area codes that were ever valid.
            own: how the recipient's own list is asked, and its keys, ascending; None where it has none.
            publish: makes the output; called once.
        """
        self._question, self._as_of, self._areas = question, as_of, areas
        self._own, self._publish = own, publish
        self.inbox = Inbox(question.room, question.max_rows)
        self._content_key: bytes | None = None

    def hold(self, content_key: bytes) -> None:
        """Take the content key."""
        self._content_key = content_key

    def take(self, message: Incoming) -> None:
        """Take the content key or envelopes.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be.
        """
        question = self._question
        if message.round == CONTENT_KEY and message.sender == question.source and self._content_key is None:
            self.hold(single(message, CONTENT_KEY_BYTES))
        elif message.round == ENVELOPES and message.sender == question.joining.matcher:
            self.inbox.take(message)
        else:
            raise unexpected(message)

    @property
    def complete(self) -> bool:
        """Whether all has come."""
        return self.inbox.complete and self._content_key is not None

    def progress(self) -> Progress:
        """Return how far the stream is, padding and all."""
        return Progress("opening", self.inbox.received, self.inbox.room)

    def output(self) -> tuple[Content, ...]:
        """Open everything, and return what is published.

        Raises:
            ProtocolAborted: see `Inbox.open`; `not-selected`.
        """
        assert self._content_key is not None
        question = self._question
        opened = self.inbox.open(
            {question.number: self._content_key},
            question.joining.ctx,
            as_of=self._as_of,
            areas=self._areas,
        )
        if self._own is not None and self._own[0] != "may":
            check_selected(opened.keys, self._own[1], on=self._own[0] == "on")
        return self._publish(opened)


class Recipient:
    """A recipient without a list. Its output is what `Reading` publishes."""

    def __init__(self, reading: Reading) -> None:
        """Wait for envelopes."""
        self._reading = reading

    def start(self) -> Step:
        """Wait."""
        return Waiting((), self._reading.progress())

    def receive(self, message: Incoming) -> Step:
        """Take the content key or envelopes.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; see `Reading.output`.
        """
        self._reading.take(message)
        if self._reading.complete:
            return Finished((), self._reading.output())
        return Waiting((), self._reading.progress())


class Source(Holder):
    """A list owner; perhaps the one whose envelopes go out, perhaps the recipient, perhaps both.

    Its output is `()`, or what `reading` publishes.
    """

    def __init__(
        self, question: Question, role: Role, listed: JoinedList, rand: Rand, reading: Reading | None
    ) -> None:
        """Take a list.

        Args:
            question: what is asked.
            role: whose list it is.
            listed: the list.
            rand: draws scalars, orders, seed and content key.
            reading: the recipient's part where this is the recipient.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        rule, owner = question.rule, question.joining.tags.owners.index(role)

        def words(rows: npt.NDArray[np.uint32]) -> Ints:
            return rule.words(owner, listed.amounts[rows], listed.counted[rows])

        alone = owner == rule.alone
        codes = listed.counted.astype(np.uint16)[:, np.newaxis][:, : int(alone)]
        super().__init__(question.joining, role, listed.keys, words, codes, rand)
        if alone:
            # The code says who waits: nothing is drawn in its place.
            self._waits = np.zeros_like(self._waits)
        self._question, self._listed, self._draw, self._reading = question, listed, rand, reading
        self._owes = role == question.source  # envelopes
        self._listing = True

    def receive(self, message: Incoming) -> Step:
        """Take a tagging message, the word that the guards have passed, the content key, or envelopes.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; see `Reading.output`.
        """
        outgoing: Iterable[Outgoing] = ()
        if is_tagging(message.round):
            step = super().receive(message)
            if isinstance(step, Waiting):
                return step
            self._listing, outgoing = False, step.outgoing
        elif self._listing:
            raise unexpected(message)
        elif message.round == READY and message.sender == self._question.joining.matcher and self._owes:
            single(message, 0)
            self._owes, outgoing = False, self._envelopes()
        elif self._reading is not None:
            self._reading.take(message)
        else:
            raise unexpected(message)
        if self._owes or (self._reading is not None and not self._reading.complete):
            progress = self._reading.progress() if self._reading is not None else Progress("waiting", 0, 1)
            return Waiting(outgoing, progress, answering=bool(outgoing))
        return Finished(outgoing, () if self._reading is None else self._reading.output())

    def _envelopes(self) -> Iterable[Outgoing]:
        """Return the locked envelopes of all rows, and the content key."""
        question, content_key = self._question, self._draw(CONTENT_KEY_BYTES)
        if self._reading is not None:
            self._reading.hold(content_key)
            return self._locked(content_key)
        return chain(self._locked(content_key), (Outgoing(question.recipient, CONTENT_KEY, content_key),))

    def _locked(self, content_key: bytes) -> Iterator[Outgoing]:
        question, tagged = self._question, self._tagging.tagged
        assert tagged is not None
        key, stand_in = question.lock_key(self._seed), len(tagged.order) - 1

        def locked(start: int, stop: int) -> bytes:
            rows = tagged.order[start:stop]
            own = rows != stand_in
            plain = np.zeros((len(rows), PLAIN_BYTES), dtype=np.uint8)
            plain[own] = np.frombuffer(plaintexts(self._listed, rows[own]), dtype=np.uint8).reshape(
                -1, PLAIN_BYTES
            )
            envelopes = sealed(plain.tobytes(), content_key, question.joining.ctx, question.number, start)
            keys = row_keys(key, np.arange(start, stop))
            return b"".join(
                AESGCM(each).encrypt(_ONE_MESSAGE, envelope, None)
                for each, envelope in zip(keys, envelopes, strict=True)
            )

        return messages(question.joining.matcher, LOCKED, len(tagged.order), CHUNK_LOCKED, locked)


# -- dealer --------------------------------------------------------------------------------------------------


class Dealer(Dealing):
    """Makes triples of nothing but public sizes, batch by batch."""

    def __init__(self, question: Question, rand: Rand) -> None:
        """Draw the seeds."""
        super().__init__(question.joining.helper, len(question.plan.batches))
        self._question = question
        self._first, self._second = rand(SEED_BYTES), rand(SEED_BYTES)

    def deal(self, number: int) -> Iterator[Outgoing]:
        """Yield a batch's corrections, before the first both seeds."""
        plan, helper = self._question.plan, self._question.joining.helper
        if number == 0:
            yield Outgoing(self._question.joining.matcher, SEEDS, self._first)
            yield Outgoing(helper, SEEDS, self._second)
        body = memoryview(bits.deal(plan, plan.batches[number], self._first, self._second).tobytes())
        last = number == len(plan.batches) - 1
        for start in range(0, len(body), CHUNK_CORRECTIONS):
            stop = start + CHUNK_CORRECTIONS
            yield Outgoing(helper, CORRECTIONS, bytes(body[start:stop]), last=last and stop >= len(body))


# -- matcher and helper --------------------------------------------------------------------------------------


class _Talk:
    """One holder's side of what `bits` exchanges: cut into messages, batch after batch."""

    def __init__(self, question: Question, to: Role) -> None:
        self._to, self._plan = to, question.plan
        self.total = sum(map(self._plan.exchanges, self._plan.batches))
        self.done = 0
        self._part: bits.Exchange[bits.Words] | None = None
        self._expected = 0  # bytes of the other's that are still to come in this exchange
        self._taken: list[bytes] = []
        self._early: list[Incoming] = []

    def progress(self) -> Progress:
        return Progress("comparing", self.done, self.total)

    def take(self, message: Incoming) -> None:
        """Keep a message of the other, which may be one exchange ahead.

        Raises:
            ProtocolAborted: `unexpected-message`.
        """
        if len(self._early) >= UNDER_WAY:
            raise unexpected(message)
        self._early.append(message)

    def begin(self, part: "bits.Exchange[bits.Words]") -> list[Outgoing]:
        """Play a batch's part; return what goes out first."""
        self._part = part
        return self._cut(next(part))

    def _cut(self, body: bytes) -> list[Outgoing]:
        self.done += 1
        self._expected, end = len(body), self.done == self.total
        cut = []
        for start in range(0, len(body), MAX_BODY_BYTES):
            stop = start + MAX_BODY_BYTES
            cut.append(Outgoing(self._to, OPENINGS, body[start:stop], last=end and stop >= len(body)))
        return cut

    def go(self) -> tuple[list[Outgoing], bits.Words | None]:
        """Go as far as what has come allows; return what goes out, and the batch's result at its end.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-triple`.
        """
        outgoing: list[Outgoing] = []
        while self._part is not None and self._early:
            message = self._early.pop(0)
            size = min(MAX_BODY_BYTES, self._expected)
            ends = self.done == self.total and size == self._expected
            if len(message.body) != size or message.last != ends:
                raise bad_length(message)
            self._taken.append(message.body)
            self._expected -= size
            if self._expected:
                continue
            body, self._taken = b"".join(self._taken), []
            try:
                outgoing += self._cut(self._part.send(body))
            except StopIteration as end:
                self._part = None
                result: bits.Words = end.value
                return outgoing, result
        return outgoing, None


def _part(
    question: Question, batch: bits.Batch, dealt: bits.Triples, shares: "Shares", coin: bytes, *, first: bool
) -> "bits.Exchange[bits.Words]":
    """Check a batch's triples, then evaluate the rule on its rows."""
    triples = yield from bits.checked(question.plan, batch, dealt, coin, first=first)
    values, packed = shares.batch(batch)
    return (yield from bits.conjoined(question.plan, values, packed, triples, first=first))


class Shares:
    """One holder's aligned words of all lists, as inputs of the circuit."""

    def __init__(self, question: Question, aligned: Sequence[Words], *, first: bool) -> None:
        """Take the words of each list, joined rows × its words; `first`: of the holder who adds constants."""
        self._rule, self._aligned, self._first = question.rule, aligned, first

    def batch(self, batch: bits.Batch) -> tuple[list[bits.Words], list[bits.Words]]:
        """Return compared values and packed bits of a batch; what fills up the last word is 0."""
        rule, rows = self._rule, batch.words * bits.WORD_BITS
        start = batch.start * bits.WORD_BITS

        def column(owner: int, word: int) -> bits.Words:
            filled = np.zeros(rows, dtype=np.uint64)
            here = self._aligned[owner][start : start + rows, word]
            filled[: len(here)] = here
            return filled

        owners = range(len(rule.ways))
        values = []
        for place, form in enumerate(rule.crossing):
            total = np.full(rows, form.constant % RING if self._first else 0, dtype=np.uint64)
            for owner in form.owners:
                total += column(owner, rule.parts(owner).index(place))
            values.append(total)
        one = np.uint64(1)
        flags = [column(owner, rule.width(owner) - 1) for owner in owners if rule.has_bit(owner)]
        return values, [bits.packed((each & one).astype(np.bool_)) for each in flags]


class Matcher:
    """Joins rows, learns which are true, and sends their envelopes on. Its output is `()`."""

    def __init__(self, question: Question, rand: Rand) -> None:
        """Wait for every list."""
        self._question, self._rand = question, rand
        joining = question.joining
        self._lists = [MaskedRows(joining, index) for index in range(len(joining.widths))]
        self._total = sum(joining.tags.counts)
        self._alignment: Alignment | None = None
        self._shares: Shares | None = None
        self._seed: bytes | None = None
        self._talk = _Talk(question, joining.helper)
        self._bits: list[bits.Words] = []
        self._theirs = Stream(BITS, question.plan.words, bits.WORD_BYTES, MAX_BODY_BYTES // bits.WORD_BYTES)
        self._locks = Stream(LOCKS, question.room, LOCK_BYTES, CHUNK_LOCKS)
        index = question.number - 1
        self._envelopes = Stream(LOCKED, joining.tags.counts[index], LOCKED_BYTES, CHUNK_LOCKED)
        self._true: npt.NDArray[np.int64] | None = None  # places in the source's list, in the order asked
        self._kept: dict[int, bytes] = {}

    def start(self) -> Step:
        """Wait for rows."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        if self._true is not None:
            return Progress("opening", self._envelopes.seen, self._envelopes.count)
        if self._shares is not None:
            return self._talk.progress()
        return Progress("collecting", sum(each.stream.seen for each in self._lists), self._total)

    def receive(self, message: Incoming) -> Step:
        """Take rows, the dealer's seed, what the helper sends, and locked envelopes.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-triple`; a guard.
        """
        question, joining = self._question, self._question.joining
        if message.round == ROWS and message.sender in joining.tags.owners:
            self._lists[joining.tags.owners.index(message.sender)].take(message)
            if not all(each.stream.complete for each in self._lists):
                return Waiting((), self._progress())
            return self._compare(self.align())
        if message.round == SEEDS and message.sender == question.dealer and self._seed is None:
            self._seed = single(message, SEED_BYTES)
            return self._compare(())
        if message.round == LOCKED and message.sender == question.source and self._true is not None:
            self._take_envelopes(message, self._true)
            return self._open()
        if message.sender != joining.helper or self._shares is None:
            raise unexpected(message)
        if message.round == OPENINGS and len(self._bits) < len(question.plan.batches):
            self._talk.take(message)
            return self._compare(())
        if message.round == BITS and len(self._bits) == len(question.plan.batches):
            self._theirs.keep(self._theirs.take(message))
            return self.tell() if self._theirs.complete else Waiting((), self._progress())
        if message.round == LOCKS and self._true is not None:
            self._locks.keep(self._locks.take(message))
            return self._open()
        raise unexpected(message)

    def align(self) -> Iterator[Outgoing]:
        """Join the lists, and yield the alignment, as long for any number of rows."""
        question, joining = self._question, self._question.joining
        found = align([each.tags for each in self._lists], question.rule.ways, self._rand)
        if (alone := question.rule.alone) is not None:
            # Its stand-in and who waits there would be joined: nobody has to be on another list.
            counts = self._lists[alone].codes[found.positions[:, alone], 0] == 1
            found = Alignment(found.positions[counts], np.array([counts.sum()]))
        self._alignment, aligned = found, []
        for owner, each in enumerate(self._lists):
            places = found.positions[:, owner]
            words = each.shares(places, joining.rows)
            # Of who is not on the list both know the words: the helper's share is 0.
            words[np.flatnonzero(places == ABSENT)] = question.rule.absent(owner)
            aligned.append(words)
        self._shares = Shares(question, aligned, first=True)
        return joining.told(found)

    def _compare(self, outgoing: Iterable[Outgoing]) -> Step:
        """Go on with the batches as far as can be."""
        question, shares, seed = self._question, self._shares, self._seed
        if shares is None or seed is None:
            return Waiting(outgoing, self._progress())
        batches = question.plan.batches
        said: list[Outgoing] = []
        if self._talk.done == 0:
            said += self._begin(0, shares, seed)
        while True:
            more, result = self._talk.go()
            said += more
            if result is None:
                break
            self._bits.append(result)
            if len(self._bits) == len(batches):
                self._shares = Shares(question, (), first=True)
                break
            said += self._begin(len(self._bits), shares, seed)
        return Waiting(chain(outgoing, said), self._progress())

    def _begin(self, number: int, shares: Shares, seed: bytes) -> list[Outgoing]:
        question = self._question
        batch = question.plan.batches[number]
        dealt = bits.Triples.first(question.plan, batch, seed)
        coin = self._rand(COIN_BYTES)
        return self._talk.begin(_part(question, batch, dealt, shares, coin, first=True))

    def tell(self) -> Step:
        """Open which rows are true, check the guards, and ask for their locks and for envelopes.

        Raises:
            ProtocolAborted: a guard.
        """
        question, found = self._question, self._alignment
        assert found is not None
        theirs = self._theirs.raw().reshape(-1).view("<u8")
        # What fills up the joined rows has no meaning.
        holds = bits.unpacked(np.concatenate(self._bits) ^ theirs)[: found.n]
        rows = np.flatnonzero(holds)
        question.check(len(rows), found.n)
        rows = rows[group.permutation(len(rows), self._rand)]
        self._true = found.positions[rows, question.number - 1].astype(np.int64)

        def wanted(start: int, stop: int) -> npt.NDArray[np.uint32]:
            numbers = np.full(stop - start, ABSENT, dtype="<u4")
            here = rows[start:stop]
            numbers[: len(here)] = here
            return numbers

        return Waiting(
            chain(
                (Outgoing(question.source, READY, b""),),
                messages(question.joining.helper, WANTED, question.room, CHUNK_WANTED, wanted),
            ),
            self._progress(),
        )

    def _take_envelopes(self, message: Incoming, true: npt.NDArray[np.int64]) -> None:
        start = self._envelopes.seen
        rows = self._envelopes.take(message)
        for place in true[(true >= start) & (true < self._envelopes.seen)].tolist():
            self._kept[place] = rows[place - start].tobytes()

    def _open(self) -> Step:
        """Take the locks of true rows off and send the envelopes, once all is there."""
        if not (self._locks.complete and self._envelopes.complete):
            return Waiting((), self._progress())
        question, true = self._question, self._true
        assert true is not None
        keys = self._locks.raw()
        if keys[len(true) :].any():
            raise ProtocolAborted("padding of locks says something", code="lock-broken")
        records = b"".join(
            record(question.number, place, _unlocked(key.tobytes(), self._kept[place]))
            for place, key in zip(true.tolist(), keys[: len(true)], strict=True)
        )
        return Finished(padded(question.recipient, ENVELOPES, records, question.room), ())


def _unlocked(key: bytes, locked: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(_ONE_MESSAGE, locked, None)
    except InvalidTag:
        raise ProtocolAborted(
            "a lock does not open with the key that came for it",
            code="lock-broken",
            hint="the source of the records or the helper runs another version; compare journals",
        ) from None


class Helper:
    """Holds masks in the order of the alignment, and the locks of true rows. Its output is `()`."""

    def __init__(self, question: Question, rand: Rand) -> None:
        """Wait for seeds, the alignment and the dealer's part."""
        self._question, self._rand = question, rand
        joining = question.joining
        self._seeds: dict[Role, bytes] = {}
        self._align = Stream(ALIGN, joining.rows, 4 * len(joining.widths), joining.align_chunk)
        self._positions: npt.NDArray[np.uint32] | None = None  # in the source's list
        self._joined = 0
        self._shares: Shares | None = None
        self._seed: bytes | None = None
        self._dealt: list[list[bytes]] = [[] for _ in question.plan.batches]
        self._dealing = 0  # the batch whose corrections are coming
        self._asked = min(AHEAD, len(self._dealt))
        self._begun = False
        self._talk = _Talk(question, joining.matcher)
        self._bits: list[bits.Words] = []
        self._wanted = Stream(WANTED, question.room, 4, CHUNK_WANTED)

    def start(self) -> Step:
        """Wait for seeds."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        if self._shares is not None:
            return self._talk.progress()
        return Progress("collecting", self._align.seen, self._question.joining.rows)

    def receive(self, message: Incoming) -> Step:
        """Take seeds, the dealer's part, the alignment, and what the matcher sends.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-alignment`,
                `bad-triple`; `bad-rows`, rows asked for that are none; a guard.
        """
        question, joining = self._question, self._question.joining
        sender = message.sender
        if message.round == SEED and sender in joining.tags.owners and sender not in self._seeds:
            self._seeds[sender] = single(message, SEED_BYTES)
            return self._compare()
        if message.round == SEEDS and sender == question.dealer and self._seed is None:
            self._seed = single(message, SEED_BYTES)
            return self._compare()
        if message.round == CORRECTIONS and sender == question.dealer:
            self._take_corrections(message)
            return self._compare()
        if sender != joining.matcher:
            raise unexpected(message)
        finished = len(self._bits) == len(self._dealt)
        if message.round == ALIGN:
            self._align.keep(self._align.take(message))
            return self._compare()
        if message.round == OPENINGS and self._align.complete and not finished:
            self._talk.take(message)
            return self._compare()
        if message.round == WANTED and finished:
            self._wanted.keep(self._wanted.take(message))
            return Finished(self.locks(), ()) if self._wanted.complete else Waiting((), self._progress())
        raise unexpected(message)

    def _take_corrections(self, message: Incoming) -> None:
        if self._dealing >= self._asked:
            raise unexpected(message)
        batch, taken = self._question.plan.batches[self._dealing], self._dealt[self._dealing]
        left = batch.correction_bytes - sum(map(len, taken))
        size = min(CHUNK_CORRECTIONS, left)
        ends = self._dealing == len(self._dealt) - 1 and size == left
        if len(message.body) != size or message.last != ends:
            raise bad_length(message)
        taken.append(message.body)
        self._dealing += size == left

    def _compare(self) -> Step:
        """Expand the masks once the alignment is known, and go on with the batches as far as can be."""
        question, joining = self._question, self._question.joining
        if self._shares is None:
            if not self._align.complete or len(self._seeds) != len(joining.widths):
                return Waiting((), self._progress())
            self._shares = self.expanded()
        said: list[Outgoing] = []
        while len(self._bits) < len(self._dealt):
            number = len(self._bits)
            if not self._begun:
                if self._seed is None or self._dealing <= number:
                    break
                self._begun = True
                said += self._begin(number, self._shares, self._seed)
            more, result = self._talk.go()
            said += more
            if result is None:
                break
            self._begun = False
            self._bits.append(result)
            self._asked = min(self._asked + 1, len(self._dealt))
            finished = len(self._bits) == len(self._dealt)
            said.append(Outgoing(question.dealer, DEALT, b"", last=finished))
            if finished:
                self._shares = Shares(question, (), first=False)
                return Waiting(chain(said, self._said()), self._progress())
        return Waiting(said, self._progress())

    def _begin(self, number: int, shares: Shares, seed: bytes) -> list[Outgoing]:
        question = self._question
        batch = question.plan.batches[number]
        corrections, self._dealt[number] = b"".join(self._dealt[number]), []
        dealt = bits.Triples.second(question.plan, batch, seed, corrections)
        # Drawn when the corrections are whole: nothing of them can depend on the challenge.
        coin = self._rand(COIN_BYTES)
        return self._talk.begin(_part(question, batch, dealt, shares, coin, first=False))

    def expanded(self) -> Shares:
        """Return the own shares, once the alignment and every source's seed are there.

        Raises:
            ProtocolAborted: `bad-alignment`.
        """
        question, joining = self._question, self._question.joining
        positions = self._align.raw().reshape(-1).view("<u4").reshape(joining.rows, -1)
        self._joined = check_positions(positions, joining.tags.counts, question.rule.ways)
        self._positions = positions[:, question.number - 1].copy()
        return Shares(question, joining.placed(positions, self._seeds), first=False)

    def _said(self) -> Iterator[Outgoing]:
        words = np.concatenate(self._bits)
        return messages(
            self._question.joining.matcher,
            BITS,
            len(words),
            MAX_BODY_BYTES // bits.WORD_BYTES,
            lambda start, stop: words[start:stop],
        )

    def locks(self) -> Iterator[Outgoing]:
        """Yield the keys of the locks of the rows asked for, once they have passed the guards here, too.

        Raises:
            ProtocolAborted: `bad-rows`; a guard.
        """
        question, positions = self._question, self._positions
        assert positions is not None
        numbers = self._wanted.raw().reshape(-1).view("<u4")
        true = int((numbers != ABSENT).sum())
        rows = numbers[:true]
        if bool((rows >= self._joined).any()) or len(np.unique(rows)) != true:
            raise ProtocolAborted(
                "the matcher asks for a row that is none, or twice for one",
                code="bad-rows",
                hint="the matcher runs another version, or not this job; compare versions and journals",
            )
        question.check(true, self._joined)
        keys = row_keys(question.lock_key(self._seeds[question.source]), positions[rows])
        keys += [bytes(LOCK_BYTES)] * (question.room - true)
        return messages(
            question.joining.matcher,
            LOCKS,
            question.room,
            CHUNK_LOCKS,
            lambda start, stop: b"".join(keys[start:stop]),
        )
