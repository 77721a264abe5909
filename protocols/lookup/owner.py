"""The owner's side of `lookup/1`: it makes and sends the table, then evaluates what it cannot read."""

from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from protocols.errors import InputError, ProtocolAborted
from protocols.jobs.job_type import Shelf
from protocols.lookup.build import Build
from protocols.lookup.inputs import LookupList
from protocols.lookup.plan import (
    ASK,
    BUILT,
    CLOSING,
    EVALUATED,
    EVALUATION,
    EXHAUSTED,
    GO_ON,
    HAVE,
    HELD,
    MAX_ASK,
    MAX_REFUSALS,
    OFFER,
    REFUSALS,
    REMOVED,
    ROWS,
    TOO_FAST,
    Lookup,
    unexpected,
)
from protocols.party import UNDER_WAY, Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi import group, oprf
from protocols.psi.oprf import KeyPair

IDENTITY_BYTES: Final = 32

MARGIN_S: Final = 60
"""How much longer than the clerk's node an owner keeps a session open."""

Pace = Callable[[int], int]
"""Lets so many look-ups pass and returns 0, or returns after how many seconds to ask again."""


class Owner:
    """The party of whoever has the rows. Nobody asks at its node."""

    def __init__(
        self,
        lookup: Lookup,
        people: LookupList,
        rand: Rand,
        *,
        shelf: Shelf,
        monotonic: Callable[[], float],
        pace: Pace,
    ) -> None:
        """Take the list as admitted. The session's time begins.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        if people.distinct_keys != lookup.rows:
            raise ProtocolAborted("own list does not have the admitted number of keys", code="count-changed")
        self._lookup, self._rand, self._shelf = lookup, rand, shelf
        self._people: LookupList | None = people  # let go once the table is there: a session lasts for days
        self._pace, self._monotonic = pace, monotonic
        self._ends = monotonic() + lookup.session_s + MARGIN_S
        self._expected = HAVE
        self._build: Build | None = None
        self._pair: KeyPair | None = None
        self._used = self._requests = self._refused = 0
        self._closing = self._said = False
        self._finished = False

    def start(self) -> Step:
        """Wait for the clerk to say what it has."""
        return Waiting()

    def ask(self, number: int, question: Any) -> Step:
        """Refuse: people ask at the clerk's node.

        Raises:
            InputError: `no-questions-here`.
        """
        del number, question
        raise InputError(
            "this node owns the rows of the session; questions are put at the clerk's node",
            code="no-questions-here",
            hint="look the person up in the own dataset",
        )

    def close(self) -> Step:
        """Refuse further look-ups and have the clerk end the session."""
        if self._closing or self._finished:
            return Waiting()
        self._closing = True
        return Waiting(self._told()) if self._expected == ASK else Waiting()

    def _told(self) -> tuple[Outgoing, ...]:
        """Return the message that has the clerk end the session, once."""
        if not self._closing or self._said:
            return ()
        self._said = True
        return (self._reply(0, bytes([CLOSING])),)

    def receive(self, message: Incoming) -> Step:
        """Take what the clerk has, its consent to go on, or a request.

        Raises:
            ProtocolAborted: not expected now, of another form, or with an invalid element.
        """
        if message.sender != self._lookup.clerk or message.round != self._expected:
            raise unexpected(message.round, message.sender)
        handlers = {HAVE: self._begin, GO_ON: self._go_on, HELD: self._held, ASK: self._asked}
        try:
            return handlers[message.round](message)
        except BaseException:
            if self._build is not None:
                self._build.end()
            raise

    # the table

    def _begin(self, message: Incoming) -> Step:
        if len(message.body) not in (0, IDENTITY_BYTES) or not message.last:
            _refuse_form(message)
        assert self._people is not None, "begins once"
        self._build = Build(self._lookup, self._people, self._shelf, self._rand, message.body)
        self._people = None
        self._expected = GO_ON
        return self._built()

    def _built(self) -> Step:
        build = self._at_work()
        build.step()
        progress = Progress("building", build.rows_ready, self._lookup.rows)
        body = build.rows_ready.to_bytes(8, "big")
        return Waiting((Outgoing(self._lookup.clerk, BUILT, body, last=build.ready),), progress)

    def _go_on(self, message: Incoming) -> Step:
        build = self._at_work()
        if message.body or message.last != build.ready:
            _refuse_form(message)
        if not build.ready:
            return self._built()
        offer = build.settle()
        self._expected = HELD
        return Waiting(
            self._table(build),
            Progress("serving", 0, self._lookup.lookups),
            answering=True,
            record={"event": "table-sent", **offer.facts()},
        )

    def _table(self, build: Build) -> Iterator[Outgoing]:
        assert build.offer is not None, "settled before"
        to, offer = self._lookup.clerk, build.offer
        try:
            yield Outgoing(to, OFFER, offer.encode())
            for number, bodies in ((REMOVED, build.removed()), (ROWS, build.rows())):
                held: bytes | None = None
                for body in bodies:
                    if held is not None:
                        yield Outgoing(to, number, held, last=False)
                    held = body
                if held is not None:
                    yield Outgoing(to, number, held)
        finally:
            build.sent()

    def _held(self, message: Incoming) -> Step:
        build = self._at_work()
        assert build.offer is not None, "settled before"
        if message.body != build.offer.manifest.identity() or not message.last:
            _refuse_form(message)
        build.commit()
        self._pair, self._build = build.key.pair, None
        self._expected = ASK
        return Waiting(self._told())

    def _at_work(self) -> Build:
        assert self._build is not None, "between HAVE and HELD"
        return self._build

    # look-ups

    def _asked(self, message: Incoming) -> Step:
        if message.last:
            if message.body:
                _refuse_form(message)
            self._finished = True
            return Finished((Outgoing(self._lookup.clerk, EVALUATED, b""),), ())
        number, elements = int.from_bytes(message.body[:4], "big"), group.points(message.body[4:])
        if len(elements) > MAX_ASK:
            raise ProtocolAborted(
                f"a request of {len(elements)} elements, at most {MAX_ASK} accepted", code="too-many-items"
            )
        self._requests += 1
        if number != self._requests:
            raise ProtocolAborted(
                f"request {number} where number {self._requests} is next", code="unexpected-message"
            )
        refusal, wait = self._refusal(len(elements))
        if refusal:
            return self._turned_away(len(elements), refusal, wait)
        assert self._pair is not None, "held before"
        mode = self._lookup.mode
        evaluated, proof = oprf.blind_evaluate(self._pair, elements, mode, self._rand)
        self._used += len(elements)
        return Waiting(
            (self._reply(number, bytes([EVALUATION]) + evaluated.tobytes() + proof),),
            Progress("serving", self._used, self._lookup.lookups),
            record={"event": "lookup-answered", "request": number, "lookups": len(elements)},
        )

    def _turned_away(self, count: int, refusal: int, wait: int) -> Step:
        """Refuse a request; what makes a journal longer and costs nobody anything has an end."""
        self._refused += 1
        if self._refused > MAX_REFUSALS + UNDER_WAY:
            raise ProtocolAborted(
                f"more requests than {MAX_REFUSALS} that had to be refused, after the session was closed",
                code="too-many-refusals",
            )
        if self._refused >= MAX_REFUSALS:
            self._closing = True
        code, _ = REFUSALS[refusal]
        number = self._requests
        reply = self._reply(number, bytes([refusal]) + wait.to_bytes(4, "big"))
        return Waiting(
            (reply, *self._told()),
            record={"event": "lookup-refused", "request": number, "lookups": count, "code": code},
        )

    def _refusal(self, count: int) -> tuple[int, int]:
        """Return the status of a refusal, 0 for none, and after how many seconds to ask again."""
        # The clerk's node ends the session; one that does not gets no answer all the same.
        self._closing = self._closing or self._monotonic() >= self._ends
        if self._closing:
            return CLOSING, 0
        if self._used + count > self._lookup.lookups:
            return EXHAUSTED, 0
        wait = self._pace(count)
        return (TOO_FAST, wait) if wait else (EVALUATION, 0)

    def _reply(self, number: int, rest: bytes) -> Outgoing:
        return Outgoing(self._lookup.clerk, EVALUATED, number.to_bytes(4, "big") + rest, last=False)


def _refuse_form(message: Incoming) -> NoReturn:
    raise ProtocolAborted(
        f"round {message.round} from {message.sender} has another form than it may have", code="bad-length"
    )
