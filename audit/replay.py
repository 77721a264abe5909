"""One bundle of 256 entries at a time: all that can be verified of it without the bundles before.

`replay` is a pure function of the files it reads, so bundles are spread over processes. They are started as
plain programs that read requests and write answers: nothing of the caller's is inherited or imported again,
whatever it is. Where they cannot be started, or one dies, the work is done here.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from audit.entries import Entry
from audit.folder import CHECKPOINT
from audit.merkle import (
    ENTRIES,
    TILE_WIDTH,
    Tile,
    decode_bundle,
    leaf_hash,
    merkle_root,
    split_tile,
    tile_at,
)
from protocols.envelope import decode_envelope, key_id, verify
from protocols.errors import DecodeError, SignatureInvalid
from protocols.ids import KeyId

MAX_OBJECT_BYTES: Final = 16 << 20
"""Longest object that is read; a signed document is at most an eighth of that."""

_BUNDLES_AT_ONCE: Final = 8
_REQUESTS_AHEAD: Final = 3
_SERIAL_BUNDLES: Final = 64
"""Bundles that are verified here before other processes are worth starting."""

_MAX_WORKERS: Final = 8
_MAX_SEEN: Final = 1 << 17
_ENVELOPE: Final = b'{"payload":"'


class LogReader(Protocol):
    """The read side of a log's folder, wherever it lies. What can be pickled is read by several processes."""

    def read_checkpoint(self, name: str = CHECKPOINT) -> bytes | None:
        """Return the checkpoint called `name`, None if there is none."""
        ...

    def read_tile(self, tile: Tile) -> bytes | None:
        """Return a hash tile or entry bundle, None if it is not there."""
        ...

    def read_object(self, digest: str, limit: int = ...) -> bytes | None:
        """Return an object of at most `limit` bytes that hashes to its digest, None if it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectCheck:
    """How to check the objects that entries name, in `envelope_sha256` or `refs`.

    Every one that is there must hash to its digest. One that is a signed envelope of a type in `signers` must
    carry a valid signature by one of the keys given for that type.

    Attributes:
        signers: DSSE payload type → raw 32-byte Ed25519 keys.
    """

    signers: Mapping[str, Iterable[bytes]] = field(default_factory=dict)


class Task(msgspec.Struct, array_like=True, frozen=True):
    """What every request of one verification has in common.

    Attributes:
        origin: the log's, as its checkpoint says.
        size: entries that the checkpoint covers.
        entries: whether the entries themselves are wanted.
        signers: as in `ObjectCheck`; None where objects are not looked at.
    """

    origin: str
    size: int
    entries: bool
    signers: dict[str, list[bytes]] | None


class Flaw(msgspec.Struct, array_like=True, frozen=True):
    """Something that does not hold, as in `audit.verify.Problem`."""

    code: str
    where: str
    what: str


class Replayed(msgspec.Struct, array_like=True):
    """What one bundle came to.

    Attributes:
        steps: in the order of the entries, what does not hold, and what the caller has to look at, who knows
            the entries before: an entry that concerns the log's key, as its bytes; and, as its seq, the first
            entry, which is to be no earlier than the one before.
        root: of the bundle's tile; empty where it is known by its leaves.
        leaves: hashes of its entries, where it is not full, or where they were asked for.
        usable: whether entries or hashes could be read at all.
        kinds: well-formed entries by kind.
        first: time of the first well-formed entry, empty if there is none.
        last: time of the last one.
        versions: seq and `v` of the first well-formed entry, and `v` of the last; None without one.
        entries: the well-formed entries, if they were asked for.
        objects: objects looked at, once for each entry that names them.
        missing: of those, how many are not there.
    """

    steps: list[Flaw | bytes | int] = msgspec.field(default_factory=list)
    root: bytes = b""
    leaves: list[bytes] = msgspec.field(default_factory=list)
    usable: bool = True
    kinds: dict[str, int] = msgspec.field(default_factory=dict)
    first: str = ""
    last: str = ""
    versions: tuple[int, int, int] | None = None
    entries: list[bytes] = msgspec.field(default_factory=list)
    objects: int = 0
    missing: int = 0


class Replay:
    """Verifies bundles of one log; remembers nothing but which objects it has seen."""

    def __init__(self, reader: LogReader, task: Task) -> None:
        """`reader` gives the log's files."""
        self._reader = reader
        self._task = task
        self._seen: set[str] = set()
        self._signers: dict[str, dict[KeyId, bytes]] = {
            kind: {key_id(key): key for key in keys} for kind, keys in (task.signers or {}).items()
        }

    def bundle(self, index: int, *, leaves: bool) -> Replayed:
        """Verify bundle `index`: its entries, what they name, and the hash tile over them.

        Args:
            index: of the bundle.
            leaves: whether the leaf hashes are wanted, though the bundle be full.
        """
        done = Replayed()
        bundle = tile_at(self._task.size, ENTRIES, index)
        tile = Tile(0, index, bundle.width)
        entries = self._entries(bundle, done)
        stored = self._read(tile, done)
        if entries is not None:
            hashes = [leaf_hash(entry) for entry in entries]
            if stored is not None and stored != b"".join(hashes):
                done.steps.append(Flaw("tile-mismatch", tile.path, "its hashes are not those of the entries"))
        else:
            # Without its entries, its hashes still let the rest be checked.
            try:
                hashes = split_tile(tile, stored or b"")
            except DecodeError:
                done.usable = False
                return done
        if leaves or bundle.width < TILE_WIDTH:
            done.leaves = hashes
        else:
            done.root = merkle_root(hashes)
        return done

    def _entries(self, bundle: Tile, done: Replayed) -> list[bytes] | None:
        stored = self._read(bundle, done)
        if stored is None:
            return None
        try:
            entries = decode_bundle(stored, bundle.width)
        except DecodeError as error:
            done.steps.append(Flaw("bad-bundle", bundle.path, error.message))
            return None
        for seq, data in enumerate(entries, bundle.index * TILE_WIDTH):
            self._entry(data, seq, done)
        return entries

    def _entry(self, data: bytes, seq: int, done: Replayed) -> None:
        """Check that an entry is strict, in its place and in time order."""
        try:
            entry = Entry.decode(data)
        except DecodeError as error:
            done.steps.append(Flaw(error.code, f"entry {seq}", error.message))
            return
        if entry.seq != seq:
            done.steps.append(Flaw("wrong-seq", f"entry {seq}", f"it carries seq {entry.seq}"))
        if entry.log != self._task.origin:
            done.steps.append(Flaw("wrong-log", f"entry {seq}", "it names another log"))
        kind = entry.kind
        if (kind == "log.open") != (seq == 0):
            done.steps.append(Flaw("log-open", f"entry {seq}", "a log opens once, with its first entry"))
        if kind in ("log.open", "key.rotate"):
            done.steps.append(data)
        if kind != "clock.step":
            if not done.first:
                done.steps.append(seq)
            elif entry.time < done.last:
                done.steps.append(went_back(seq))
        first_seq, first_v, v = done.versions or (seq, entry.v, entry.v)
        if entry.v < v:
            done.steps.append(version_back(seq))
        done.versions = first_seq, first_v, entry.v
        done.first = done.first or entry.time
        done.last = entry.time
        done.kinds[kind] = done.kinds.get(kind, 0) + 1
        if self._task.entries:
            done.entries.append(data)
        if self._task.signers is not None:
            self._objects(entry, done)

    def _objects(self, entry: Entry, done: Replayed) -> None:
        """Check what the entry names."""
        named = entry.body.get("envelope_sha256")
        for digest in dict.fromkeys([*([named] if named else []), *entry.refs]):
            done.objects += 1
            if digest in self._seen:
                continue
            try:
                data = self._reader.read_object(digest, MAX_OBJECT_BYTES)
                if data is None:
                    done.missing += 1
                    continue
                self._signed(data)
            except (DecodeError, SignatureInvalid) as error:
                done.steps.append(Flaw(error.code, f"entry {entry.seq}", f"{digest}: {error.message}"))
            except OSError as error:
                what = error.strerror or "it cannot be read"
                done.steps.append(Flaw("unreadable", f"entry {entry.seq}", f"{digest}: {what}"))
            else:
                if len(self._seen) == _MAX_SEEN:
                    self._seen.clear()
                self._seen.add(digest)

    def _signed(self, data: bytes) -> None:
        """Check the signature of an object that is a signed envelope of a known type."""
        if not data.startswith(_ENVELOPE):
            return
        try:
            envelope = decode_envelope(data)
        except DecodeError:
            return  # it hashes to its name and was never an envelope
        keys = self._signers.get(envelope.payload_type)
        if keys is not None:
            verify(envelope, envelope.payload_type, keys)

    def _read(self, tile: Tile, done: Replayed) -> bytes | None:
        try:
            stored = self._reader.read_tile(tile)
        except DecodeError as error:
            done.steps.append(Flaw(error.code, tile.path, error.message))
            return None
        except OSError as error:
            done.steps.append(Flaw("unreadable", tile.path, error.strerror or "it cannot be read"))
            return None
        if stored is None:
            done.steps.append(Flaw("missing", tile.path, "the file is not there"))
        return stored


def went_back(seq: int) -> Flaw:
    """Return what is said of an entry that is earlier than the one before it."""
    return Flaw("time-backwards", f"entry {seq}", "earlier than the entry before, and no clock.step says why")


def version_back(seq: int) -> Flaw:
    """Return what is said of an entry of an earlier version than the one before it."""
    return Flaw("version-went-back", f"entry {seq}", "of an earlier version than the entry before")


class _Request(msgspec.Struct, array_like=True, frozen=True):
    """Bundles `start` up to, not including, `stop`; of those in `leaves` the leaf hashes."""

    start: int
    stop: int
    leaves: list[int]


_MAIN: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from audit.replay import serve
serve(sys.stdin.buffer, sys.stdout.buffer)
"""
_ANSWERS: Final = msgspec.msgpack.Decoder(list[Replayed])


def replay(reader: LogReader, task: Task, leaves: Collection[int] = ()) -> Generator[Replayed]:
    """Yield what each bundle of the log came to, in order; in several processes where the log is long.

    Args:
        reader: gives the log's files.
        task: what to look at.
        leaves: bundles of which the leaf hashes are wanted.
    """
    bundles = -(-task.size // TILE_WIDTH)
    here = Replay(reader, task)
    first = min(bundles, _SERIAL_BUNDLES)
    requests = (
        _Request(start, stop, [index for index in leaves if start <= index < stop])
        for start in range(first, bundles, _BUNDLES_AT_ONCE)
        for stop in [min(start + _BUNDLES_AT_ONCE, bundles)]
    )
    with ExitStack() as resources:
        workers: list[_Worker] = []
        for index in range(first):
            # Not before it is seen that there is something at all; then they start while this goes on.
            if index == _BUNDLES_AT_ONCE and bundles >= 2 * _SERIAL_BUNDLES:
                workers = _start(resources, reader, task)
            yield here.bundle(index, leaves=index in leaves)
        for request, answer in _spread(requests, workers):
            if answer is not None:
                yield from answer
                continue
            for index in range(request.start, request.stop):
                yield here.bundle(index, leaves=index in request.leaves)


def _spread(
    requests: Iterator[_Request], workers: Sequence["_Worker"]
) -> Iterator[tuple[_Request, list[Replayed] | None]]:
    """Yield every request with its answer, in order; without one where nobody could give it."""
    asked: deque[tuple[_Request, _Worker | None]] = deque()
    turns = cycle(workers or [None])
    for request in requests:
        worker = next(turns)
        if worker is not None:
            worker.ask(request)
        asked.append((request, worker))
        if len(asked) > len(workers) * _REQUESTS_AHEAD:
            done, by = asked.popleft()
            yield done, by.answer() if by is not None else None
    for done, by in asked:
        yield done, by.answer() if by is not None else None


class _Worker:
    """A process that verifies bundles. Once it has failed, it is not asked again."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._failed = False

    def ask(self, request: "_Request | bytes") -> None:
        data = request if isinstance(request, bytes) else msgspec.msgpack.encode(request)
        try:
            _put(self._process.stdin, data)
        except OSError:
            self._failed = True

    def answer(self) -> list[Replayed] | None:
        """Return its oldest answer that was not fetched yet; None if none will come."""
        try:
            data = None if self._failed else _take(self._process.stdout)
        except OSError:
            data = None
        self._failed = data is None
        return None if data is None else _ANSWERS.decode(data)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def _start(resources: ExitStack, reader: LogReader, task: Task) -> list[_Worker]:
    """Start a process for every core; none where they could not read the log, or where there is one core."""
    count = min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    if count < 2 or not sys.executable:
        return []
    try:
        setup = pickle.dumps((reader, msgspec.msgpack.encode(task)))
    except (pickle.PicklingError, TypeError, AttributeError):
        return []  # it holds something that is this process's alone
    workers: list[_Worker] = []
    for _ in range(count):
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _MAIN, json.dumps(_import_path())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError:
            return workers  # no more processes are allowed: fewer do
        workers.append(_Worker(process))
        resources.callback(workers[-1].stop)
        workers[-1].ask(setup)
    return workers


def _import_path() -> list[str]:
    """Return where this process imports from, without the folder that it happens to stand in.

    That one may be a bundle; `-I` keeps a worker from importing anything from there before it has this path.
    """
    return [str(Path(__file__).parents[1]), *(place for place in sys.path if Path(place).is_absolute())]


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more: all that a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    reader, task = pickle.loads(_take(requests) or b"")  # noqa: S301  # from the process that started this one
    here = Replay(reader, msgspec.msgpack.decode(task, type=Task))
    decoder = msgspec.msgpack.Decoder(_Request)
    try:
        while (data := _take(requests)) is not None:
            request = decoder.decode(data)
            done = [
                here.bundle(index, leaves=index in request.leaves)
                for index in range(request.start, request.stop)
            ]
            _put(answers, msgspec.msgpack.encode(done))
    except BrokenPipeError:
        return  # the other side had enough


def _put(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    pipe.write(len(data).to_bytes(8, "big"))
    pipe.write(data)
    pipe.flush()


def _take(pipe: IO[bytes] | None) -> bytes | None:
    """Return the next message, None where there are no more."""
    assert pipe is not None
    length = int.from_bytes(pipe.read(8), "big")
    data = pipe.read(length) if length else b""
    return data if data and len(data) == length else None
