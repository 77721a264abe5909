"""The clerk's side of `lookup/1`: it keeps the table and looks persons up in it with the owner's help."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.encoding import b64decode, b64encode, canonical_json, decode_json
from protocols.errors import DecodeError, InputError, ProtocolAborted
from protocols.jobs.job_type import Content, Shelf
from protocols.jobs.job_type import Table as Released
from protocols.lookup.inputs import MAX_FIELD_BYTES
from protocols.lookup.pace import WINDOW_S, Minute
from protocols.lookup.plan import (
    ASK,
    BAD_ROW,
    BUILT,
    CLOSING,
    EVALUATED,
    EVALUATION,
    EXHAUSTED,
    GO_ON,
    HAVE,
    HELD,
    MAX_ASK,
    OFFER,
    REFUSALS,
    REMOVED,
    ROWS,
    TOO_FAST,
    TOO_MANY,
    Lookup,
    unexpected,
)
from protocols.lookup.table import (
    BUILD_BYTES,
    TAG_BYTES,
    BadRow,
    Manifest,
    Offer,
    Table,
    check_size,
    lower_bound,
    row_type,
    width_of,
)
from protocols.party import (
    UNDER_WAY,
    Answer,
    Finished,
    Incoming,
    Outgoing,
    Progress,
    Rand,
    Step,
    Waiting,
)
from protocols.psi import dleq, oprf
from protocols.psi.group import POINT_BYTES, points
from protocols.psi.oprf import Blinded, Mode

SESSION: Final = "session"
"""The release at the end of a session: how many look-ups there were."""

MAX_QUESTION: Final = 1_000_000
"""Most keys of one question."""

PIN_SCHEMA: Final = "minshu-lookup-pin/1"

_SLACK_S: Final = 1
"""How much longer a look-up counts here than at the owner, to whom messages come unevenly."""

_PIECE: Final = 1 << 16
_HEAD: Final = np.dtype([("tag", f"S{TAG_BYTES}"), ("build", f"V{BUILD_BYTES}")])

Keys = Callable[[Sequence[str]], list[bytes]]
"""From ids as people typed them to typed keys, in order. Raises InputError, which says how many are none."""


@dataclass(slots=True, eq=False)
class Question:
    """What somebody asked, and what has come of it so far."""

    number: int
    keys: list[bytes]  # different ones, in order of appearance
    places: list[int]  # of each id asked: its key's place in `keys`
    fields: tuple[str, ...]
    sent: int = 0
    back: int = 0
    found: list[dict[str, str] | None] = field(default_factory=list)
    refused: tuple[str, str] | None = None  # code and sentence
    limits: dict[str, int] = field(default_factory=dict)  # what the asker may do instead


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Blinded elements under way, and what they are of."""

    question: Question
    keys: list[bytes]
    blinded: Blinded


class Clerk:
    """The party at whose node people ask."""

    def __init__(
        self, lookup: Lookup, keys: Keys, rand: Rand, *, shelf: Shelf, monotonic: Callable[[], float]
    ) -> None:
        """Take what is public, how ids become keys, and where tables are kept."""
        self._lookup, self._keys, self._rand, self._shelf = lookup, keys, rand, shelf
        self._minute = Minute(monotonic, WINDOW_S + _SLACK_S)
        self._name, self._pin_name = f"table.{lookup.table}", f"pin.{lookup.table}"
        self._table: Table | None = None  # the one that look-ups go to
        self._receiving: Receiving | None = None
        self._expected: tuple[int, ...] = (BUILT,)
        self._left = lookup.lookups
        self._waiting: deque[Question] = deque()
        self._under_way: deque[tuple[int, Request]] = deque()
        self._requests = 0
        self._asked = self._found = self._refused = 0
        self._closing = self._said = False

    def start(self) -> Step:
        """Say which table is here."""
        old = self._stored()
        body = old.manifest.identity() if old is not None else b""
        return Waiting(
            (Outgoing(self._lookup.owner, HAVE, body),), Progress("receiving", 0, self._lookup.rows)
        )

    def _stored(self) -> Table | None:
        """Return the table on the shelf; what is no table of this session counts as none."""
        blob = self._shelf.get(self._name)
        try:
            table = Table.read(blob) if blob is not None else None
        except DecodeError:
            return None
        return table if table is None or self._is_ours(table) else None

    def _is_ours(self, table: Table) -> bool:
        manifest = table.manifest
        return (manifest.mode, manifest.fields) == (self._lookup.mode, self._lookup.fields)

    def receive(self, message: Incoming) -> Step:
        """Take a part of the table, or an evaluation.

        Raises:
            ProtocolAborted: not expected now, of another form, an invalid element, a proof that does not
                hold, or a table that is not what was offered.
        """
        if message.sender != self._lookup.owner or message.round not in self._expected:
            raise unexpected(message.round, message.sender)
        if message.round == EVALUATED:
            return self._evaluated(message)
        if message.round == BUILT:
            return self._built(message)
        if message.round == OFFER:
            return self._offered(message)
        return self._part(message)

    # the table

    def _built(self, message: Incoming) -> Step:
        if message.last:
            self._expected = (OFFER,)
        ready = int.from_bytes(message.body, "big")
        if len(message.body) != 8 or ready > self._lookup.rows:
            raise ProtocolAborted("the owner has more rows ready than were admitted", code="bad-length")
        return Waiting(
            (Outgoing(self._lookup.owner, GO_ON, b"", last=message.last),),
            Progress("building", ready, self._lookup.rows),
        )

    def _offered(self, message: Incoming) -> Step:
        try:
            offer = Offer.decode(message.body)
        except DecodeError as error:
            raise ProtocolAborted(error.message, code=error.code) from None
        manifest, base = offer.manifest, self._stored()
        if (manifest.rows, manifest.mode, manifest.fields) != (
            self._lookup.rows, self._lookup.mode, self._lookup.fields
        ):  # fmt: skip
            raise ProtocolAborted(
                "the table offered is not of the admitted rows, fields and mode", code="wrong-table"
            )
        most = width_of(len(self._lookup.fields) * (MAX_FIELD_BYTES + 1) - 1)
        if manifest.width > most:
            raise ProtocolAborted(
                f"rows of {manifest.width} bytes, at most {most} hold the fields of the job",
                code="wrong-table",
            )
        check_size(manifest.rows, manifest.width)
        self._check_pin(manifest)
        if offer.give != "whole":
            if base is None:
                raise _WRONG_VERSION
            same = (base.manifest.key_version, base.manifest.public, base.manifest.width) == (
                manifest.key_version, manifest.public, manifest.width
            )  # fmt: skip
            if not same or (offer.give == "keep" and base.manifest != manifest):
                raise _WRONG_VERSION
            left = base.manifest.rows - offer.removed
            if left < 0 or not left <= manifest.rows <= left + offer.sent:
                raise ProtocolAborted("a change that does not lead to as many rows", code="bad-offer")
        old = base.manifest if base is not None and offer.give == "delta" else None
        self._receiving = Receiving(offer, old, self._shelf, self._name)
        return self._received()

    def _check_pin(self, manifest: Manifest) -> None:
        """Refuse a key that was replaced already, and another one under the number of the last.

        Where this node's table is gone there is nothing to protect: whoever removed it begins anew.
        """
        blob = self._shelf.get(self._pin_name)
        if blob is None or self._shelf.get(self._name) is None:
            return
        try:
            version, public = _read_pin(blob.tobytes())
        except DecodeError:
            raise _SHELF_CHANGED from None
        if manifest.key_version < version or (manifest.key_version == version and manifest.public != public):
            raise _WRONG_VERSION

    def _pin(self, manifest: Manifest) -> None:
        """Remember the key of the table that is here, for when the table itself cannot be read."""
        data = _pin(manifest)
        blob = self._shelf.get(self._pin_name)
        if blob is None or blob.tobytes() != data:
            with self._shelf.put(self._pin_name) as write:
                write(data)

    def _part(self, message: Incoming) -> Step:
        assert self._receiving is not None, "offered before"
        self._receiving.take(message)
        return self._received()

    def _received(self) -> Step:
        assert self._receiving is not None, "offered before"
        self._expected = self._receiving.expects
        if self._expected:
            progress = Progress("receiving", self._receiving.count, self._lookup.rows)
            return Waiting(progress=progress)
        offer, self._receiving = self._receiving.offer, None
        table = self._stored()
        if table is None or table.manifest != offer.manifest:
            raise _SHELF_CHANGED
        self._pin(table.manifest)
        self._table = table
        self._expected = (EVALUATED,)
        held = Outgoing(self._lookup.owner, HELD, offer.manifest.identity())
        return Waiting(
            chain((held,), self._next()),
            Progress("serving", 0, self._lookup.lookups),
            record={"event": "table-received", **offer.facts()},
        )

    # look-ups

    def ask(self, number: int, question: Any) -> Step:
        """Take `{"keys": [id, …], "fields": [field, …]}`, of which fields may be left out.

        The answer is `{"rows": [fields or None for each id]}`, or `{"refused": code, "sentence": …}`. Where a
        limit forbids it, nothing was sent, and `wait_s` or `fits` say when or how many may be asked; what the
        owner evaluated counts. With `bad-row`, all of it counts.

        Raises:
            InputError: `bad-question`, `bad-keys`, `not-ready` before the table is here, `session-closed`.
        """
        if self._closing:
            raise InputError(
                REFUSALS[CLOSING][1], code="session-closed", hint="open another session and ask there"
            )
        if self._table is None:
            raise InputError(
                "the table has not come yet",
                code="not-ready",
                hint="wait until the job says that it is serving, and ask again",
            )
        ids, fields = _read(question, self._lookup.fields)
        keys, places = _distinct(self._keys(ids))
        asked = Question(number, keys, places, fields, found=[None] * len(keys))
        self._limit(asked)
        if asked.refused is not None:
            return Waiting(
                self._next(),
                record=self._turned_away(asked, len(keys), asked.refused[0]),
                answers=(self._answer(asked),),
            )
        self._left -= len(keys)
        self._waiting.append(asked)
        return Waiting(self._next())

    def _limit(self, asked: Question) -> None:
        """Refuse a question that the owner would refuse, or a part of it."""
        count, per_minute = len(asked.keys), self._lookup.per_minute
        fits = self._left if per_minute is None else min(self._left, per_minute)
        if not self._left:
            asked.refused = REFUSALS[EXHAUSTED]
        elif count > fits:
            code, sentence = TOO_MANY
            asked.refused, asked.limits = (code, sentence.format(fits)), {"fits": fits}
        elif per_minute is not None and (wait := self._minute.take(count, per_minute)):
            asked.refused, asked.limits = REFUSALS[TOO_FAST], {"wait_s": wait}

    def close(self) -> Step:
        """Take no more questions; those under way are answered, then the session ends."""
        if self._closing:
            return Waiting()
        self._closing = True
        return Waiting(self._next()) if self._table is not None else Waiting()

    def _next(self) -> Iterator[Outgoing]:
        """Yield as many requests as may be under way; once closed, after the last answer, the end."""
        while self._waiting and len(self._under_way) < UNDER_WAY:
            question = self._waiting[0]
            keys = question.keys[question.sent : question.sent + MAX_ASK]
            blinded = oprf.blind(keys, self._lookup.mode, self._rand)
            self._requests += 1
            question.sent += len(keys)
            self._under_way.append((self._requests, Request(question, keys, blinded)))
            if question.sent == len(question.keys):
                self._waiting.popleft()
            body = self._requests.to_bytes(4, "big") + blinded.elements.tobytes()
            yield Outgoing(self._lookup.owner, ASK, body, last=False)
        if self._closing and not self._waiting and not self._under_way and not self._said:
            self._said = True
            yield Outgoing(self._lookup.owner, ASK, b"")

    def _evaluated(self, message: Incoming) -> Step:
        body = message.body
        if message.last:
            if body or not self._said:
                raise unexpected(message.round, message.sender)
            return Finished((), (self._summary(),))
        number, status, rest = int.from_bytes(body[:4], "big"), body[4:5], body[5:]
        if (number, status, rest) == (0, bytes([CLOSING]), b""):
            return self._closed()
        if not self._under_way or self._under_way[0][0] != number or not status:
            raise unexpected(message.round, message.sender)
        _, request = self._under_way.popleft()
        question, count = request.question, len(request.keys)
        if status[0] == EVALUATION:
            record = self._look_up(request, rest)
        elif status[0] in REFUSALS and len(rest) == 4:
            question.refused = question.refused or REFUSALS[status[0]]
            if wait := int.from_bytes(rest, "big"):
                question.limits = {"wait_s": wait}
            if question.sent < len(question.keys):  # no use in asking the rest
                self._waiting.remove(question)
                count += len(question.keys) - question.sent
                question.keys = question.keys[: question.sent]
            self._left += count
            record = self._turned_away(question, count, REFUSALS[status[0]][0])
        else:
            raise ProtocolAborted("an answer of unknown status", code="bad-length")
        question.back += len(request.keys)
        answers = (self._answer(question),) if question.back == len(question.keys) else ()
        return Waiting(self._next(), record=record, answers=answers)

    def _closed(self) -> Step:
        """End the session because the owner does: nothing that waits would be answered any more."""
        self._closing = True
        given_up = [question for question in self._waiting if not question.sent]
        for question in given_up:
            self._waiting.remove(question)
            question.refused = REFUSALS[CLOSING]
        if not given_up:
            return Waiting(self._next())
        count = sum(len(question.keys) for question in given_up)
        record = self._turned_away(given_up[0], count, REFUSALS[CLOSING][0])
        return Waiting(self._next(), record=record, answers=tuple(map(self._answer, given_up)))

    def _look_up(self, request: Request, rest: bytes) -> dict[str, int | str]:
        """Find the persons of a request in the table; return what to record.

        A row that cannot be read shows in the answer alone: nothing that goes out is another for it.
        """
        assert self._table is not None, "asked after it came"
        size, mode = len(request.keys) * POINT_BYTES, self._lookup.mode
        proof_bytes = dleq.PROOF_BYTES if mode is Mode.VOPRF else 0
        if len(rest) != size + proof_bytes:
            raise ProtocolAborted("an answer of another number of elements", code="bad-length")
        evaluated = points(rest[:size])
        public = self._table.manifest.public
        oprf.check_evaluation(public, request.blinded.elements, evaluated, rest[size:], mode)
        question, found, bad = request.question, 0, False
        outputs = oprf.finalize(request.keys, request.blinded, evaluated)
        for place, output in enumerate(outputs, start=question.back):
            try:
                row = self._table.find(output)
            except BadRow:
                bad = True
            else:
                question.found[place] = row
                found += row is not None
        count = len(request.keys)
        if bad:
            question.refused = question.refused or BAD_ROW
            return self._turned_away(question, count, BAD_ROW[0])
        self._asked += count
        self._found += found
        return {"event": "lookup-asked", "request": question.number, "lookups": count, "found": found}

    def _turned_away(self, question: Question, count: int, code: str) -> dict[str, int | str]:
        """Count look-ups without an answer; return what to record."""
        self._asked += count
        self._refused += count
        return {"event": "lookup-refused", "request": question.number, "lookups": count, "code": code}

    def _answer(self, question: Question) -> Answer:
        if question.refused is not None:
            code, sentence = question.refused
            return Answer(question.number, {"refused": code, "sentence": sentence, **question.limits})
        rows = [question.found[place] for place in question.places]
        return Answer(
            question.number,
            {"rows": [row and {name: row[name] for name in question.fields} for row in rows]},
        )

    def _summary(self) -> Content:
        counts = {"asked": self._asked, "found": self._found, "refused": self._refused}
        columns = {
            "what": np.array(list(counts), dtype=np.str_),
            "lookups": np.array(list(counts.values()), dtype=np.int64),
        }
        return Content(SESSION, Released(columns))


_SHELF_CHANGED: Final = ProtocolAborted(
    "the table on this node's shelf is no longer the one that was there",
    code="shelf-changed",
    hint="start the session again, one at a time for each table while it begins",
)

_WRONG_VERSION: Final = ProtocolAborted(
    "the owner offers a change of a table that is not the one here, or a key that is not newer than the last",
    code="wrong-key-version",
    hint="start the session again; if it happens again, ask the owner whether it lost its keys; if it did, "
    "remove the table from this node's shelf",
)


def _pin(manifest: Manifest) -> bytes:
    return canonical_json({
        "schema": PIN_SCHEMA, "key_version": manifest.key_version, "public": b64encode(manifest.public)
    })  # fmt: skip


def _read_pin(data: bytes) -> tuple[int, bytes]:
    """Return version and public point of a key.

    Raises:
        DecodeError: another form.
    """
    match decode_json(data):
        case {"schema": "minshu-lookup-pin/1", "key_version": int(version), "public": str(public)} as value:
            if len(value) == 3:
                return version, b64decode(public)
    raise DecodeError("not the key of a look-up table", code="bad-pin")


def _read(question: Any, known: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Return ids and fields of a question.

    Raises:
        InputError: `bad-question`.
    """
    bad = InputError(
        f"a question is no object with keys, 1 to {MAX_QUESTION} texts, and perhaps fields, some of "
        f"{', '.join(known)}",
        code="bad-question",
        hint='write {"keys": ["…"]}, or name fields that the job hands out',
    )
    if not isinstance(question, dict) or not {"keys"} <= set(question) <= {"keys", "fields"}:
        raise bad
    ids, fields = question["keys"], question.get("fields", list(known))
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise bad
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise bad
    if not 1 <= len(ids) <= MAX_QUESTION or not fields or not set(fields) <= set(known):
        raise bad
    return ids, tuple(name for name in known if name in fields)


def _distinct(keys: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Return each key once, and where each one stands among those."""
    seen: dict[bytes, int] = {}
    places = [seen.setdefault(key, len(seen)) for key in keys]
    return list(seen), places


class Receiving:
    """A table on its way to the shelf: an offer, then tags that are gone, then rows, merged with the old.

    Of the tags that are gone, a byte for each row of the old table is kept; each has to be there.
    """

    def __init__(self, offer: Offer, base: Manifest | None, shelf: Shelf, name: str) -> None:
        """Begin; `base` is of the table under that name that a change goes to."""
        self.offer, self._base, self._shelf, self._name = offer, base, shelf, name
        self.count = 0
        self._form = row_type(offer.manifest.width)
        self._gone: npt.NDArray[np.bool_] = np.zeros(0 if base is None else base.rows, dtype=np.bool_)
        self._sought = 0  # where in the base the next tag that is gone is looked for
        self._struck = -1  # the last row found to be gone
        self._left = {REMOVED: offer.removed, ROWS: offer.sent}
        self._at = 0  # rows of the base that have been merged
        self._last = b""
        self._digest = hashlib.sha256()
        self._writing = ExitStack()
        if offer.give != "keep":
            self._write = self._writing.enter_context(shelf.put(name))
            self._write(offer.manifest.header())
            if not self.expects:
                self._guarded(self._end)

    @property
    def expects(self) -> tuple[int, ...]:
        """Rounds that may come next; none: the table is on the shelf."""
        return next(((number,) for number, left in self._left.items() if left), ())

    def take(self, message: Incoming) -> None:
        """Take a part.

        Raises:
            ProtocolAborted: too much, too little, not in order, or not what was offered. Nothing is kept.
        """
        self._guarded(lambda: self._take(message))
        if not self.expects:
            self._guarded(self._end)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._writing.__exit__(type(error), error, error.__traceback__)
            raise

    def _take(self, message: Incoming) -> None:
        stride = TAG_BYTES if message.round == REMOVED else self._form.itemsize
        count, rest = divmod(len(message.body), stride)
        self._left[message.round] -= count
        left = self._left[message.round]
        if rest or not count or left < 0 or message.last != (left == 0):
            raise ProtocolAborted("a part of a table of another size than offered", code="bad-length")
        if message.round == REMOVED:
            self._strike_out(np.frombuffer(message.body, dtype=f"S{TAG_BYTES}"))
            if message.last and not self._left[ROWS]:
                self._merge(np.empty(0, dtype=self._form), whole=True)
            return
        rows = np.frombuffer(message.body, dtype=self._form)
        if not _ascending(rows["tag"]):
            raise _BAD_TABLE
        self._merge(rows, whole=message.last)

    def _strike_out(self, tags: npt.NDArray[np.bytes_]) -> None:
        """Mark rows of the base that are gone; they come in order, each once."""
        if not _ascending(tags):
            raise _BAD_TABLE
        while len(tags):
            stop = min(self._sought + _PIECE, len(self._gone))
            old = self._old().rows(self._sought, stop)["tag"].copy()
            here = int(np.searchsorted(tags, old[-1], "right")) if len(old) else 0
            at = np.searchsorted(old, tags[:here])
            if not bool((old[at] == tags[:here]).all()):
                raise _BAD_TABLE
            if here:
                if self._sought + at[0] <= self._struck:
                    raise _BAD_TABLE
                self._gone[self._sought + at] = True
                self._struck = self._sought + int(at[-1])
            tags = tags[here:]
            if len(tags):
                if stop == len(self._gone):
                    raise _BAD_TABLE
                self._sought = stop

    def _merge(self, rows: npt.NDArray[np.void], *, whole: bool) -> None:
        """Write rows, and those of the base up to the last of them; at the end, all that are left."""
        if self._base is None:
            self._emit(rows)
            return
        end, table = self._base.rows, self._old()
        if not whole:
            last = rows["tag"][-1:].tobytes()
            end = lower_bound(table.data, self._form.itemsize, end, last)
            end += table.rows(end, end + 1)["tag"].tobytes() == last
        while self._at < end or len(rows):
            stop = min(self._at + _PIECE, end)
            old, gone = self._old().rows(self._at, stop), self._gone[self._at : stop]
            self._at = stop
            upto = len(rows) if stop == end else int(np.searchsorted(rows["tag"], old["tag"][-1], "right"))
            part, rows = rows[:upto], rows[upto:]
            merged = np.concatenate((old[~gone & ~_among(old["tag"], part["tag"])], part))
            self._emit(merged[np.argsort(merged["tag"], kind="stable")])

    def _old(self) -> Table:
        """Return the old table, mapped anew, so that no more of it than a piece is in memory."""
        blob = self._shelf.get(self._name)
        table = Table.read(blob) if blob is not None else None
        if table is None or table.manifest != self._base:
            raise _SHELF_CHANGED
        return table

    def _emit(self, rows: npt.NDArray[np.void]) -> None:
        if not len(rows):
            return
        first = rows["tag"][:1].tobytes()
        if self.count and first <= self._last:
            raise _BAD_TABLE
        self._last = rows["tag"][-1:].tobytes()
        self.count += len(rows)
        self._digest.update(rows[["tag", "build"]].astype(_HEAD).tobytes())
        self._write(rows.tobytes())

    def _end(self) -> None:
        manifest = self.offer.manifest
        if (self.count, self._digest.digest()) != (manifest.rows, manifest.digest):
            raise _BAD_TABLE
        self._writing.close()


def _ascending(tags: npt.NDArray[np.bytes_]) -> bool:
    return bool((tags[1:] > tags[:-1]).all())


def _among(tags: npt.NDArray[np.bytes_], those: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Return which tags are among those, which are in order."""
    if not len(those):
        return np.zeros(len(tags), dtype=np.bool_)
    at = np.minimum(np.searchsorted(those, tags), len(those) - 1)
    return np.asarray(those[at] == tags, dtype=np.bool_)


_BAD_TABLE: Final = ProtocolAborted(
    "the table that came is not the one that was offered: rows out of order, missing, or not as they were",
    code="bad-table",
    hint="start the session again; the table that was here before is still here",
)
