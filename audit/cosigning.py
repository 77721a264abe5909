"""The log's side: gather cosignatures until enough organisations have seen what the log says.

One checkpoint at a time is the target: the newest published one when it was chosen. Every witness is asked
for it, each on its own, so that a slow one holds up nobody; what a log publishes meanwhile is covered by the
next target. A checkpoint counts once a quorum cosigned that very text and the journal has stored the lines.

(1) A witness is believed to know a size, and the request proves consistency from there; where it answers that
    it knows another, it is asked again from that one.
(2) A line counts if it verifies over the target under a key of the very witness that was asked, and is from
    after it was asked, and not from the future, as far as clocks agree: auditors go by its time. Nothing else
    that arrives counts: it all passes through hands that may be hostile.
(3) A witness that gives no such line rests, longer each time, at most a minute.
(4) A target is left for a newer one when it has its quorum, or when every witness has answered or rests.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

from audit.note import COSIGNATURE, MAX_SIGNATURES, Checkpoint, Note, NoteSignature, VerifierKey, cosigned_at
from audit.proof import parse_size
from audit.quorum import CLOCK_AHEAD, Quorum, cosigner_keys
from audit.witness import encode_request
from protocols.errors import DecodeError, MinshuError, Unreachable
from protocols.ids import NodeName
from protocols.succession import CLOCK_TOLERANCE

MAX_ANSWER_BYTES: Final = 64 << 10
"""Longest answer that is looked at; two cosignatures take less than 4 KiB."""

LONGEST_REST_S: Final = 60.0

_FIRST_REST_S: Final = 1.0
_MAX_TRIES: Final = 3
"""Requests to one witness before it rests: from the size believed, from the one it names, one lost race."""

_REFUSALS: Final = {
    400: "witness-bad-request",
    403: "witness-unknown-key",
    404: "witness-unknown-log",
    422: "witness-conflict",
}


class WitnessedLog(Protocol):
    """What cosigning needs of a journal; `audit.log.Journal` is one."""

    @property
    def published(self) -> int:
        """Entries that the newest checkpoint covers."""
        ...

    def cosigned(self) -> bytes | None:
        """Return the newest checkpoint that was stored with a quorum, None if there is none."""
        ...

    def checkpoint(self) -> bytes:
        """Return the newest signed checkpoint."""
        ...

    def consistency_proof(self, old: int, size: int) -> list[bytes]:
        """Return the proof that the tree of `size` extends the one of `old`."""
        ...

    def add_cosignatures(self, text: bytes, lines: Iterable[NoteSignature], *, quorum: bool) -> None:
        """Store lines over the checkpoint of that text; `quorum` tells that they are enough."""
        ...


@dataclass(frozen=True, slots=True)
class Trouble:
    """A witness gave no cosignature, or the journal could not store any.

    Attributes:
        code: `witness-unanswered`; `witness-bad-answer`;
            `witness-clock`: a cosignature from the future, or from before it was asked for;
            `witness-unknown-log`, `witness-unknown-key`, `witness-bad-request` (it refused, 404, 403, 400);
            `witness-conflict`: it says that it cosigned another history of this log;
            `witness-ahead`: it says that it cosigned more of this log than there is, which a restored backup
            looks like, and a liar too: only a checkpoint signed by this log's own key can prove it;
            `journal-…`: the journal's own code; the lines are stored later.
        witness: its name, empty for the journal.
        size: entries of the checkpoint that was asked for, or, for `witness-ahead`, that the witness named.
    """

    code: str
    witness: str
    size: int


@dataclass(slots=True, eq=False)
class _Target:
    """The checkpoint that cosignatures are gathered for.

    Attributes:
        note: as the log signed it, without cosignatures.
        size: its entries.
        origin: the log's name.
        lines: cosignatures that verified, by key.
        stored: how many of `lines` the journal has.
        covered: the journal has a quorum of them.
    """

    note: Note
    size: int
    origin: str
    lines: dict[VerifierKey, NoteSignature] = field(default_factory=dict)
    stored: int = 0
    covered: bool = False

    @classmethod
    def of(cls, data: bytes) -> "_Target":
        """Return a signed checkpoint as a target, without the cosignatures that it may have already."""
        note = Note.decode(data)
        checkpoint = Checkpoint.decode(note.text)
        own = tuple(line for line in note.signatures if line.name == checkpoint.origin)
        return cls(Note(note.text, own), checkpoint.size, checkpoint.origin)

    def best(self) -> tuple[NoteSignature, ...]:
        """Return the cosignatures, Ed25519 first, no more than fit into the note."""
        room = MAX_SIGNATURES - len(self.note.signatures)
        order = sorted(self.lines, key=lambda key: (key.type, key.name))
        return tuple(self.lines[key] for key in order[:room])


@dataclass(slots=True, eq=False)
class _Witness:
    """One witness.

    Attributes:
        keys: its verifier keys.
        known: size that it is believed to have cosigned last.
        done: the last target that it answered for.
        failures: answers without a cosignature since the last with one.
        rests_until: on the monotonic clock.
        resting: it is waiting for that moment.
        rested: ends the rest early.
        trouble: what was reported of it last, empty if nothing is wrong.
        task: asks it.
    """

    name: str
    keys: tuple[VerifierKey, ...]
    known: int
    done: _Target | None = None
    failures: int = 0
    rests_until: float = 0.0
    resting: bool = False
    rested: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str = ""
    task: asyncio.Task[None] | None = None


class Cosigner:
    """Gathers cosignatures for one log. Belongs to one event loop.

    `covered` and `uncovered_s` may be read from any thread.
    """

    def __init__(
        self,
        journal: WitnessedLog,
        ask: Callable[[str, bytes], Awaitable[tuple[int, bytes]]],
        now: Callable[[], datetime],
        *,
        every_s: float = 1.0,
        timeout_s: float = 10.0,
        report: Callable[[Trouble], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Begin without witnesses; `set_witnesses` says who they are.

        Args:
            journal: the log.
            ask: sends an add-checkpoint body to the witness of that name and returns status and body of its
                answer. A `MinshuError` says that there was none; it is cancelled after `timeout_s`.
            now: the time, with its zone.
            every_s: least seconds between two targets while nobody waits.
            timeout_s: how long a witness has to answer.
            report: called in the loop when something begins to be wrong with a witness, or with the journal.
            monotonic: seconds that only ever grow, as the loop counts them.
            in_thread: runs what reads or writes files where it blocks nobody.
        """
        self._journal = journal
        self._send = ask
        self._now = now
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._report = report
        self._monotonic = monotonic
        self._in_thread = in_thread
        self._quorums: tuple[Quorum, ...] = (Quorum({}, 1),)
        self._described: object = None
        self._witnesses: dict[str, _Witness] = {}
        self._wake = asyncio.Event()
        self._target: _Target | None = None
        self._began = -math.inf
        self._covered = 0
        self._uncovered_since: float | None = None
        self._beyond_since: float | None = None
        self._unstored = ""
        self._waiting: dict[asyncio.Future[None], int] = {}

    @property
    def covered(self) -> int:
        """Entries of the largest checkpoint that is stored with a quorum of the present witnesses."""
        return self._covered

    @property
    def uncovered_s(self) -> float:
        """For how many seconds the oldest entry without a quorum has been published; 0.0 if there is none.

        Counted from when it was noticed, at most `every_s` late, and never from before this object's start.
        """
        since = self._uncovered_since
        return 0.0 if since is None else max(0.0, self._monotonic() - since)

    @property
    def quorums(self) -> tuple[Quorum, ...]:
        """Whose votes count, and how many it takes: each of these has to be reached."""
        return self._quorums

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong with each witness that gives no cosignatures: name to the code of `Trouble`."""
        return {name: witness.trouble for name, witness in self._witnesses.items() if witness.trouble}

    def set_witnesses(
        self, nodes: Mapping[NodeName, Sequence[str]], needed: int, *, counted: Sequence[Quorum] = ()
    ) -> None:
        """Say who is asked and how many organisations it takes, as `policies.witnesses.Witnesses` has it.

        What was covered stays so if the stored cosignatures are a quorum of these witnesses, too; else these
        are asked for it. Without a change nothing happens.

        Args:
            nodes: the witnesses' names, as `ask` knows them, and their vkey lines. A node without an Ed25519
                cosigning key is not asked.
            needed: votes that it takes, one for each organisation.
            counted: the quorums that all have to be reached, where these are not `needed` of all `nodes`:
                some are asked whose votes do not count, or the witnesses are about to change.
        """
        quorums = tuple(counted) or (Quorum.of_nodes(nodes, needed),)
        described = (sorted((name, tuple(lines)) for name, lines in nodes.items()), quorums)
        if described == self._described:
            return
        self._described = described
        self._quorums = quorums
        data = self._journal.cosigned()
        seen = 0 if data is None else _Target.of(data).size
        reached = data is not None and self._reached(Note.decode(data))
        self._covered = seen if reached else 0
        before, self._witnesses = self._witnesses, {}
        for name, lines in nodes.items():
            keys = cosigner_keys(lines)
            kept = before.get(name)
            if kept is not None and kept.keys == keys:
                self._witnesses[name] = before.pop(name)
            elif any(key.type == COSIGNATURE for key in keys):
                self._witnesses[name] = _Witness(name, keys, seen)
        for gone in before.values():
            if gone.task is not None:
                gone.task.cancel()
        self._target = None
        self._let_go()
        self._wake.set()

    def reconnected(self) -> None:
        """Ask the resting witnesses again at once: after a lost link is back."""
        for witness in self._witnesses.values():
            witness.failures, witness.rests_until = 0, 0.0
            witness.rested.set()
        self._wake.set()

    async def until(self, size: int, timeout_s: float) -> None:
        """Return once the first `size` entries stand under a checkpoint with its quorum.

        Raises:
            Unreachable: `no-quorum`: not within `timeout_s`.
        """
        if size <= self._covered:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[reached] = size
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await reached
        except TimeoutError:
            raise Unreachable(
                f"{max(quorum.needed for quorum in self._quorums)} organisations were to cosign {size} "
                f"entries; they have cosigned {self._covered}",
                code="no-quorum",
                hint="nothing leaves until they do: see which witnesses do not answer, and why",
            ) from None
        finally:
            del self._waiting[reached]

    async def run(self) -> None:
        """Gather until cancelled.

        Raises:
            ExceptionGroup: the journal's own files cannot be read, or `ask` failed in a way it must not.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    await self._step(tasks)
                    try:
                        async with asyncio.timeout(self._pause_s()):
                            await self._wake.wait()
                    except TimeoutError:
                        pass  # time to look again
        finally:
            for witness in self._witnesses.values():
                witness.task, witness.resting = None, False

    # -- one step --------------------------------------------------------------------------------------------

    async def _step(self, tasks: asyncio.TaskGroup) -> None:
        """Store what arrived, and choose a new target if it is time to."""
        await self._store()
        published = self._notice()
        if self._due(published):
            self._target = _Target.of(self._journal.checkpoint())
            self._began, self._beyond_since = self._monotonic(), None
        if self._target is not None:
            for witness in self._witnesses.values():
                if witness.task is None and witness.done is not self._target:
                    witness.task = tasks.create_task(self._attend(witness))

    def _notice(self) -> int:
        """Note since when there is something to cover; return the entries published."""
        published, now = self._journal.published, self._monotonic()
        if published <= self._covered:
            self._uncovered_since = self._beyond_since = None
        elif self._uncovered_since is None:
            self._uncovered_since = now
        if self._target is not None and published > self._target.size and self._beyond_since is None:
            self._beyond_since = now
        return published

    def _due(self, published: int) -> bool:
        """Tell whether it is time for a new target (4)."""
        if published <= self._covered or not self._witnesses:
            return False
        target = self._target
        if target is None:
            return True
        if published <= target.size or not (target.covered or self._quiet()):
            return False
        # Without a quorum last time, whoever waits gains nothing by asking faster.
        return (target.covered and bool(self._waiting)) or self._monotonic() >= self._began + self._every_s

    def _quiet(self) -> bool:
        """Tell whether every witness has answered for the target, or rests."""
        return all(each.resting or each.task is None for each in self._witnesses.values())

    def _pause_s(self) -> float:
        """Return how long nothing has to be looked at, unless something wakes the loop."""
        left_s = self._began + self._every_s - self._monotonic()
        return left_s if left_s > 0 else self._every_s

    async def _store(self) -> None:
        """Hand the journal the lines that it lacks: when they are a quorum, and when all are there."""
        target = self._target
        if target is None or target.stored == len(target.lines):
            return
        lines, count = target.best(), len(target.lines)
        enough = target.covered or self._reached(Note(target.note.text, lines))
        if not (self._quiet() or (enough and not target.covered)):
            return
        try:
            await self._in_thread(
                partial(self._journal.add_cosignatures, target.note.text, lines, quorum=enough)
            )
        except MinshuError as error:
            if error.code != self._unstored:
                self._unstored = error.code
                self._report(Trouble(error.code, "", target.size))
            return
        self._unstored, target.stored = "", count
        # If the witnesses changed while it was stored, this was not their quorum.
        if enough and not target.covered and target is self._target:
            target.covered = True
            self._covered = max(self._covered, target.size)
            self._uncovered_since, self._beyond_since = self._beyond_since, None
            self._let_go()

    def _reached(self, note: Note) -> bool:
        """Tell whether a note has every quorum that it needs."""
        return all(quorum.reached(note, self._now()) for quorum in self._quorums)

    def _let_go(self) -> None:
        """Wake who waits for what is covered now."""
        for reached, size in self._waiting.items():
            if size <= self._covered and not reached.done():
                reached.set_result(None)

    # -- one witness -----------------------------------------------------------------------------------------

    async def _attend(self, witness: _Witness) -> None:
        """Ask one witness until it has answered for the target of the moment."""
        try:
            while (target := self._target) is not None and witness.done is not target:
                wait_s = witness.rests_until - self._monotonic()
                if wait_s > 0:
                    await self._rest(witness, wait_s)
                else:
                    await self._ask(witness, target)
        finally:
            witness.task = None
            self._wake.set()

    async def _rest(self, witness: _Witness, wait_s: float) -> None:
        witness.resting = True
        witness.rested.clear()
        self._wake.set()
        try:
            async with asyncio.timeout(wait_s):
                await witness.rested.wait()
        except TimeoutError:
            pass  # rested for as long as it should
        finally:
            witness.resting = False

    async def _ask(self, witness: _Witness, target: _Target) -> None:
        """Ask for a cosignature over `target`, from whatever size the witness says that it knows (1)."""
        for _ in range(_MAX_TRIES):
            old = min(witness.known, target.size)
            proof = await self._in_thread(partial(self._journal.consistency_proof, old, target.size))
            asked = self._now()
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, body = await self._send(
                        witness.name, encode_request(old, proof, target.note.encode())
                    )
            except (TimeoutError, MinshuError):
                return self._failed(witness, Trouble("witness-unanswered", witness.name, target.size))
            if status == 200:
                return self._take(witness, target, body, asked)
            known = _size(body) if status == 409 else None
            if known is None:
                code = _REFUSALS.get(status, "witness-bad-answer")
                return self._failed(witness, Trouble(code, witness.name, target.size))
            if known == old:
                return self._failed(witness, Trouble("witness-conflict", witness.name, target.size))
            if known > self._journal.published:
                return self._failed(witness, Trouble("witness-ahead", witness.name, known))
            witness.known = known
            if known > target.size:
                # It saw a later one of ours, asked for before a restart: the next target is for it.
                witness.done = target
                return None
        return self._failed(witness, Trouble("witness-bad-answer", witness.name, target.size))

    def _take(self, witness: _Witness, target: _Target, body: bytes, asked: datetime) -> None:
        """Keep the lines of an answer that verify (2)."""
        earliest = int((asked - CLOCK_TOLERANCE).timestamp())
        latest = int((self._now() + CLOCK_AHEAD).timestamp())
        # A witness key that bears the log's own name would pass for the log's.
        keys = {(key.name, key.key_id): key for key in witness.keys if key.name != target.origin}
        lines: dict[VerifierKey, NoteSignature] = {}
        elsewhen = False
        for line in _lines(body):
            key = keys.get((line.name, line.key_id))
            if key is not None and key not in lines and key.holds(target.note.text, line.signature):
                if earliest <= cosigned_at(line.signature) <= latest:
                    lines[key] = line
                else:
                    elsewhen = True
        if not any(key.type == COSIGNATURE for key in lines):
            code = "witness-clock" if elsewhen else "witness-bad-answer"
            return self._failed(witness, Trouble(code, witness.name, target.size))
        target.lines.update(lines)
        witness.known, witness.done = target.size, target
        witness.failures, witness.trouble = 0, ""
        return None

    def _failed(self, witness: _Witness, trouble: Trouble) -> None:
        """Let the witness rest (3)."""
        rest_s = min(LONGEST_REST_S, _FIRST_REST_S * 2 ** min(witness.failures, 10))
        witness.failures += 1
        witness.rests_until = self._monotonic() + rest_s
        if trouble.code != witness.trouble:
            witness.trouble = trouble.code
            self._report(trouble)


def _size(body: bytes) -> int | None:
    """Return the size that an answer of 409 names, None if it names none."""
    if len(body) > 20 or not body.endswith(b"\n"):
        return None
    try:
        return parse_size(body[:-1].decode("ascii"))
    except (DecodeError, UnicodeDecodeError):
        return None


def _lines(body: bytes) -> list[NoteSignature]:
    """Return the signature lines of an answer of 200, none if it is anything but such lines."""
    if len(body) > MAX_ANSWER_BYTES or not body.endswith(b"\n"):
        return []
    try:
        lines = [NoteSignature.parse(line) for line in body[:-1].decode().split("\n")]
    except (DecodeError, UnicodeDecodeError):
        return []
    return lines if len(lines) <= MAX_SIGNATURES else []
