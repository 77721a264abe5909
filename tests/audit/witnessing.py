"""Logs in memory that may fork, witnesses with fixed keys, and a clock that only jumps."""

import asyncio
import hashlib
import selectors
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit.note import Checkpoint, Note, NoteSignature, VerifierKey, sign_note
from audit.witness import Answer, CosignerKeys, MemoryStore, add_checkpoint
from protocols.envelope import KeySigner
from protocols.errors import StateConflict, Unreachable

ORIGIN = "police.gz.example/node-a/journal/1"
START = datetime(2026, 12, 1, tzinfo=UTC)
LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"log-key-for-tests".ljust(32))
LOG_VKEY = VerifierKey(ORIGIN, 1, LOG_KEY.public_key().public_bytes_raw())


def mth(leaves: tuple[bytes, ...]) -> bytes:
    """RFC 6962 section 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    return _mth(leaves)


@cache
def _mth(leaves: tuple[bytes, ...]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = _half(len(leaves))
    return hashlib.sha256(b"\x01" + _mth(leaves[:k]) + _mth(leaves[k:])).digest()


def proof(old: int, leaves: tuple[bytes, ...]) -> list[bytes]:
    """RFC 6962 section 2.1.2."""
    return [] if old in (0, len(leaves)) else _subproof(old, leaves, whole=True)


def _subproof(old: int, leaves: tuple[bytes, ...], *, whole: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [_mth(leaves)]
    k = _half(len(leaves))
    if old <= k:
        return [*_subproof(old, leaves[:k], whole=whole), _mth(leaves[k:])]
    return [*_subproof(old - k, leaves[k:], whole=False), _mth(leaves[:k])]


def _half(count: int) -> int:
    k = 1
    while k * 2 < count:
        k *= 2
    return k


@cache
def signed(leaves: tuple[bytes, ...]) -> bytes:
    """The log's checkpoint over these entries."""
    text = Checkpoint(ORIGIN, len(leaves), mth(leaves)).encode()
    return sign_note(text, LOG_VKEY, LOG_KEY.sign).encode()


def branch(name: str, size: int, common: int = 0) -> tuple[bytes, ...]:
    """A history of `size` entries of which the first `common` are every history's."""
    return tuple(b"%d" % n if n < common else b"%s %d" % (name.encode(), n) for n in range(size))


@dataclass
class FakeJournal:
    """A log in memory, with what cosigning needs of a journal."""

    leaves: tuple[bytes, ...] = ()
    added: list[tuple[int, frozenset[str], bool]] = field(default_factory=list)
    notes: dict[int, Note] = field(default_factory=dict)
    fails: list[str] = field(default_factory=list)

    def grow(self, count: int = 1) -> int:
        self.leaves += tuple(b"%d" % n for n in range(len(self.leaves), len(self.leaves) + count))
        return self.published

    @property
    def published(self) -> int:
        return len(self.leaves)

    @property
    def cosigned_size(self) -> int:
        return max((size for size, _, quorum in self.added if quorum), default=0)

    def cosigned(self) -> bytes | None:
        return self.notes[self.cosigned_size].encode() if self.cosigned_size else None

    def checkpoint(self) -> bytes:
        newest = self.notes.get(self.published)
        return signed(self.leaves) if newest is None else newest.encode()

    def consistency_proof(self, old: int, size: int) -> list[bytes]:
        assert 0 <= old <= size <= self.published
        return proof(old, self.leaves[:size])

    def add_cosignatures(self, text: bytes, lines: Iterable[NoteSignature], *, quorum: bool) -> None:
        lines = tuple(lines)
        if self.fails:
            raise StateConflict("the disk is full", code=self.fails.pop(0))
        size = Checkpoint.decode(text).size
        note = self.notes.get(size, Note.decode(signed(self.leaves[:size])))
        assert note.text == text
        assert ORIGIN not in {line.name for line in lines}
        self.notes[size] = note.with_lines(lines)
        self.added.append((size, frozenset(line.name for line in lines), quorum))


class FailingStore(MemoryStore):
    """Fails at the next swap, before or after it is stored."""

    fails = ""

    def swap(self, origin: str, expected: bytes | None, new: bytes) -> bool:
        failing, self.fails = self.fails, ""
        if failing == "before":
            raise StateConflict("the disk is full", code="journal-write-failed")
        swapped = super().swap(origin, expected, new)
        if failing == "after":
            raise StateConflict("the power went", code="journal-write-failed")
        return swapped


def keys_of(name: str, *, mldsa: bool = False) -> CosignerKeys:
    seed = hashlib.sha256(name.encode()).digest()
    return CosignerKeys(
        f"{name}/witness/1",
        KeySigner(Ed25519PrivateKey.from_private_bytes(seed)),
        MlDsa(MLDSA44PrivateKey.from_seed_bytes(seed)) if mldsa else None,
    )


@dataclass(frozen=True)
class MlDsa:
    key: MLDSA44PrivateKey

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


@dataclass
class Clock:
    """Wall time that the test sets."""

    at: datetime = START

    def __call__(self) -> datetime:
        return self.at

    @property
    def time_s(self) -> int:
        return int(self.at.timestamp())


@dataclass
class Witness:
    """A witness of one log. `ahead` is what its own clock is off by."""

    name: str
    clock: Clock = field(default_factory=Clock)
    mldsa: bool = False
    ahead: timedelta = timedelta(0)
    store: FailingStore = field(default_factory=FailingStore)

    def __post_init__(self) -> None:
        self.keys = keys_of(self.name, mldsa=self.mldsa)
        self.vkeys = tuple(map(str, self.keys.vkeys))

    def sign(self, text: bytes) -> tuple[NoteSignature, ...]:
        return self.keys.sign(text, self.clock.time_s + int(self.ahead.total_seconds()))

    def answer(self, body: bytes) -> Answer:
        return add_checkpoint(
            body,
            known=lambda origin: [LOG_VKEY] if origin == ORIGIN else [],
            store=self.store,
            sign=self.sign,
        )

    @property
    def size(self) -> int:
        note = self.store.get(ORIGIN)
        return 0 if note is None else Checkpoint.decode(Note.decode(note).text).size


class Relay:
    """Carries requests to witnesses, each after `delay_s`; `down` ones never answer. Override `passes_on`."""

    def __init__(self, *witnesses: Witness, delay_s: float = 0.01) -> None:
        self.witnesses = {witness.name: witness for witness in witnesses}
        self.delays = dict.fromkeys(self.witnesses, delay_s)
        self.down: set[str] = set()
        self.asked: list[tuple[float, str]] = []
        self.busy: set[str] = set()

    async def __call__(self, name: str, body: bytes) -> tuple[int, bytes]:
        assert name not in self.busy, "one request to a witness at a time"
        self.busy.add(name)
        try:
            self.asked.append((asyncio.get_running_loop().time(), name))
            await asyncio.sleep(self.delays[name])
            if name in self.down:
                await asyncio.sleep(1e6)
            return self.passes_on(name, body)
        finally:
            self.busy.discard(name)

    def passes_on(self, name: str, body: bytes) -> tuple[int, bytes]:
        try:
            answer = self.witnesses[name].answer(body)
        except StateConflict:
            raise Unreachable("the witness gave no answer") from None
        return answer.status, answer.body


class _Jumping(selectors.DefaultSelector):
    """Never waits: where nothing is ready, the time passes at once. A turn of the loop takes 1 µs."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("nothing will ever happen again")
        self.passed += 1e-6 + (0.0 if ready else timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` in virtual time: hours pass in no time, and the same way every time."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


async def inline(work: Any) -> Any:
    """In place of a thread, which takes real time."""
    return work()
