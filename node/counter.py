"""The counter: where people at this node ask in a session that its party keeps open.

While such a session is open, and only then, the node listens on a UNIX socket in its home, `lookup.sock`,
which its own account alone can open; on no network does it ever listen. Each line is one JSON object,
answered by one line with the same `id`:

    {"do": "ask", "id": 1, "job": "0c4f…", "keys": ["…"], "fields": ["street"], "reason": "2026-17"}
    {"do": "sessions", "id": 2}    {"do": "close", "id": 3, "job": "0c4f…"}

What is asked and answered goes to whoever asked, and nowhere else: not to the log, not into an error, and of
the journal only how many keys, see `lookup.asked`. What a look-up is for stands there as a salted digest.
"""

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import socket
import stat
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Self

import msgspec

from node.exchange import Close, Exchange, Question
from node.home import Home, read_private, write_durably
from node.logs import Log
from node.rpc import Attempt
from protocols.errors import InputError, MinshuError, Refused, StateConflict, Unreachable
from protocols.ids import Digest, Role
from protocols.jobs.job_type import SUSPECTED
from protocols.party import UNDER_WAY, Answer

MAX_LINE_BYTES: Final = 512 << 10
MAX_KEYS: Final = 512
"""Most keys of one question: whoever comes to the window waits for a few questions of others at most."""
MAX_KEY_CHARACTERS: Final = 256
MAX_REASON_CHARACTERS: Final = 200
MAX_CONNECTIONS: Final = 64
MAX_AT_ONCE: Final = 4
"""Questions of one connection under way at once; the next line is read when one is answered."""
MAX_WAITING: Final = 256
"""Questions of one session that wait or are under way."""
MAX_ANSWER_BYTES: Final = 64 << 20
DIAL_S: Final = 5.0
IDLE_S: Final = 600.0
"""After how long a connection ends on which nothing is asked, or no answer is taken."""
ANSWER_S: Final = 600.0
"""How long a person's command waits for one answer."""

_SALT_BYTES: Final = 32
_MAX_SOCKET_PATH: Final = 100
"""The system takes 107 bytes at most, some others 103."""

_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_CHARACTERS)]
_Field = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class Ask(msgspec.Struct, tag_field="do", tag="ask", forbid_unknown_fields=True, frozen=True):
    """One question: each of `keys`, of which `fields` are wanted; None for all that the session hands out."""

    id: int
    job: str
    keys: Annotated[tuple[_Key, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]
    fields: Annotated[tuple[_Field, ...], msgspec.Meta(max_length=64)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)] = ""


class Sessions(msgspec.Struct, tag_field="do", tag="sessions", forbid_unknown_fields=True, frozen=True):
    """Which sessions are open."""

    id: int


class CloseSession(msgspec.Struct, tag_field="do", tag="close", forbid_unknown_fields=True, frozen=True):
    """End a session in good order."""

    id: int
    job: str


Request = Ask | Sessions | CloseSession
_REQUESTS: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)


def socket_path(home: Home) -> Path:
    """Return where the counter listens."""
    return home.path / "lookup.sock"


# -- a session, on the loop and in the party's thread --------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Put:
    """A question of somebody: what to hand over, and where its answer is awaited."""

    question: Question
    who: object
    reason: Digest | None
    answer: "asyncio.Future[Mapping[str, Any]]"


@dataclass(slots=True, eq=False)
class Session:
    """A session that people at this node ask in.

    Questions go to the party in turn, one of each connection that has some, `UNDER_WAY` of them at a time: a
    flow that returns. One place is always left to another connection, so that whoever asks about one person
    does not wait for somebody's list.

    Attributes:
        attempt: of which run.
        role: this node's in it.
        closes: when it ends by itself, in seconds of the clock `monotonic`.
        per_minute: most keys a minute, None for as many as come.
        fields: what is handed out of a person who is found.
    """

    attempt: Attempt
    role: Role
    exchange: Exchange
    closes: float
    monotonic: Callable[[], float]
    per_minute: int | None = None
    fields: tuple[str, ...] = ()
    asked: int = 0
    closing: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _waiting: dict[object, deque[_Put]] = field(default_factory=dict)
    _under_way: dict[int, _Put] = field(default_factory=dict)

    # -- the loop --------------------------------------------------------------------------------------------

    def ask(
        self, body: Mapping[str, Any], reason: Digest | None, who: object
    ) -> "asyncio.Future[Mapping[str, Any]]":
        """Put a question of the connection `who`; the answer's body comes as the future's result.

        Raises:
            Refused: `counter-busy`.
            StateConflict: `session-over`.
        """
        if self.closing:
            raise session_over()
        if sum(map(len, self._waiting.values())) + len(self._under_way) >= MAX_WAITING:
            raise Refused(
                f"{MAX_WAITING} questions wait in this session already",
                code="counter-busy",
                hint="try again in a moment",
            )
        self.asked += 1
        put = _Put(Question(self.asked, body), who, reason, self._loop.create_future())
        self._waiting.setdefault(who, deque()).append(put)
        self._hand_over()
        return put.answer

    def close(self) -> None:
        """End the session in good order: what is under way is answered, what waits is not. Once."""
        if not self.closing:
            self.closing = True
            self.exchange.ask(Close())
            self._fail_waiting(session_over())

    def over(self, why: MinshuError) -> None:
        """The party is done, or was stopped: whoever still waits is told why."""
        self.closing = True
        self._fail_waiting(why)
        for put in self._under_way.values():
            _fail(put, why)
        self._under_way.clear()

    def _hand_over(self) -> None:
        while len(self._under_way) < UNDER_WAY and (put := self._next()) is not None:
            self._under_way[put.question.number] = put
            if not self.exchange.ask(put.question):
                return  # the party was stopped; `over` comes

    def _next(self) -> _Put | None:
        """Take the next question of whoever's turn it is, None where nobody's."""
        for who, puts in self._waiting.items():
            if sum(put.who is who for put in self._under_way.values()) < UNDER_WAY - 1:
                del self._waiting[who]
                put = puts.popleft()
                if puts:
                    self._waiting[who] = puts  # behind everybody else
                return put
        return None

    def _fail_waiting(self, why: MinshuError) -> None:
        for puts in self._waiting.values():
            for put in puts:
                _fail(put, why)
        self._waiting.clear()

    def _settle(self, number: int, found: Mapping[str, Any] | MinshuError) -> None:
        put = self._under_way.pop(number, None)
        if put is not None and not put.answer.done():
            if isinstance(found, MinshuError):
                put.answer.set_exception(found)
            else:
                put.answer.set_result(found)
        self._hand_over()

    # -- the party's thread ----------------------------------------------------------------------------------

    def reason(self, answers: Sequence[Answer]) -> Digest | None:
        """Return what the one question that is answered is for; None where nobody said, or it is several."""
        put = self._under_way.get(answers[0].number) if len(answers) == 1 else None
        return None if put is None else put.reason

    def answered(self, answers: Sequence[Answer]) -> None:
        """Hand answers to those who asked."""
        for answer in answers:
            self._loop.call_soon_threadsafe(self._settle, answer.number, answer.body)

    def refused(self, number: int, error: MinshuError) -> None:
        """Tell the one who asked that the question cannot be put."""
        self._loop.call_soon_threadsafe(self._settle, number, error)


def _fail(put: _Put, why: MinshuError) -> None:
    if not put.answer.done():
        put.answer.set_exception(why)
        put.answer.exception()  # seen: whoever asked may have gone


def session_over() -> StateConflict:
    """Return why nothing can be asked any more."""
    return StateConflict(
        "the session has ended",
        code="session-over",
        hint="have a new one opened: the same question, submitted again as a new job",
    )


# -- the socket ----------------------------------------------------------------------------------------------


class Counter:
    """Listens while a session is open. Every method is called on the event loop."""

    def __init__(self, home: Home, log: Log) -> None:
        """Nobody is listening yet."""
        self._home, self._log = home, log
        self._sessions: dict[Attempt, Session] = {}
        self._server: asyncio.Server | None = None
        self._connections = 0
        self._salt = b""

    async def open(self, session: Session) -> None:
        """Let people ask in a session.

        Raises:
            StateConflict: `counter-unavailable`: the socket, or the salt of reasons, cannot be had.
        """
        if not self._salt:
            self._salt = reason_salt(self._home)
        if self._server is None:
            path = socket_path(self._home)
            try:
                listening = _bound(path)
                self._server = await asyncio.start_unix_server(
                    self._serve, sock=listening, limit=MAX_LINE_BYTES
                )
            except OSError as error:
                raise StateConflict(
                    f"{path.name} cannot be opened in this node's home ({error.strerror})",
                    code="counter-unavailable",
                    hint="its file system has to allow UNIX sockets, and nothing else may bear that name",
                ) from None
        self._sessions[session.attempt] = session
        self._log.info("session-open", job=session.attempt.job, attempt=session.attempt.number)

    def close(self, session: Session, why: MinshuError) -> None:
        """A session is over; with the last one the counter closes."""
        session.over(why)
        if self._sessions.pop(session.attempt, None) is None:
            return
        self._log.info("session-over", job=session.attempt.job, asked=session.asked)
        if not self._sessions and self._server is not None:
            self._server.close()
            self._server = None
            with suppress(OSError):
                socket_path(self._home).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: answer its lines, a few at once, until it ends."""
        under_way: set[asyncio.Task[None]] = set()
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                _say(writer, 0, _error(Refused("too many people ask at once", code="counter-busy")))
                return
            while (line := await self._line(reader, under_way)) is not None:
                while len(under_way) >= MAX_AT_ONCE:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._answer(line, writer))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)
        except InputError as error:
            _say(writer, 0, _error(error))
        except OSError:
            pass  # whoever asked has gone
        except asyncio.CancelledError:
            pass  # the node ends; asyncio's own callback trips over a cancelled connection
        finally:
            self._connections -= 1
            for task in under_way:
                task.cancel()
            await _taken(writer)
            writer.close()

    async def _line(self, reader: asyncio.StreamReader, under_way: set[asyncio.Task[None]]) -> bytes | None:
        """Return the next line, None at the end.

        Raises:
            InputError: see `_line`; `counter-idle`: none came for IDLE_S, and nothing is under way.
        """
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    return await _line(reader)
            except TimeoutError:
                if not under_way:
                    raise InputError(
                        f"nothing was asked for {IDLE_S:g} seconds", code="counter-idle", hint="connect again"
                    ) from None

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            request = _read(line)
            number = request.id
            said = await self._carry_out(request, writer)
        except MinshuError as error:
            said = _error(error)
        _say(writer, number, said)
        await _taken(writer)

    async def _carry_out(self, request: Request, who: object) -> Mapping[str, Any]:
        match request:
            case Ask():
                session = self._session(request.job)
                reason = self._reason(session, request.reason)
                wanted = {} if request.fields is None else {"fields": list(request.fields)}
                found = await session.ask({"keys": list(request.keys), **wanted}, reason, who)
                about = {} if reason is None else {"reason_sha256": reason}
                return {**found, "statement": SUSPECTED, "job": session.attempt.job, **about}
            case Sessions():
                return {"sessions": [_session_json(one) for one in self._sessions.values()]}
            case CloseSession():
                session = self._session(request.job)
                session.close()
                return {"job": session.attempt.job}

    def _session(self, given: str) -> Session:
        """Return the open session of a job that is given by its id, or by the first four digits or more."""
        digits = given.removeprefix("sha256:")
        found = [
            session
            for session in self._sessions.values()
            if len(digits) >= 4 and session.attempt.job.removeprefix("sha256:").startswith(digits)
        ]
        if len(found) != 1:
            raise no_session(several=bool(found))
        return found[0]

    def _reason(self, session: Session, text: str) -> Digest | None:
        plain = unicodedata.normalize("NFC", text).strip()
        return reason_digest(self._salt, session.attempt, plain) if plain else None


def _session_json(session: Session) -> dict[str, Any]:
    return {
        "job": session.attempt.job,
        "attempt": session.attempt.number,
        "role": session.role,
        "closes_in_s": max(0, int(session.closes - session.monotonic())),
        "asked": session.asked,
        "per_minute": session.per_minute,
        "fields": list(session.fields),
        "closing": session.closing,
    }


def reason_salt(home: Home) -> bytes:
    """Return the salt of reasons, keys/reasons.salt; make it where there is none. Auditors may be shown it.

    Raises:
        StateConflict: `counter-unavailable`: it cannot be read or written.
    """
    path = home.path / "keys" / "reasons.salt"
    try:
        if not path.exists():
            write_durably(path, secrets.token_bytes(_SALT_BYTES))
        salt = read_private(path)
    except (OSError, InputError) as error:
        what = error.strerror if isinstance(error, OSError) else error.message
        raise StateConflict(
            f"keys/{path.name} cannot be had ({what})",
            code="counter-unavailable",
            hint="check the folder keys/",
        ) from None
    if len(salt) != _SALT_BYTES:
        raise StateConflict(
            f"keys/{path.name} has {len(salt)} bytes, expected {_SALT_BYTES}",
            code="counter-unavailable",
            hint="put the file back, or remove it: then what earlier digests stand for cannot be shown",
        )
    return salt


def reason_digest(salt: bytes, attempt: Attempt, reason: str) -> Digest:
    """Return what the journal says of a reason: HMAC-SHA256(salt, job ‖ 0 ‖ text), text in NFC.

    Case numbers are few: an unsalted digest could be guessed, and would tell which look-ups are of one case
    across jobs.
    """
    text = attempt.job.encode("ascii") + b"\0" + reason.encode("utf-8")
    return Digest("sha256:" + hmac.new(salt, text, hashlib.sha256).hexdigest())


def _bound(path: Path) -> socket.socket:
    """Return a socket bound to `path` that its owner alone can open; nobody is heard before that holds."""
    with suppress(FileNotFoundError):
        # Left by a crash: this process alone may run the node, so nobody listens there.
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(None, "something else bears its name")
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            made.bind(name)
        path.chmod(0o600)
    except BaseException:
        made.close()
        raise
    return made


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for `path` that a socket address has room for, however deep the folder lies."""
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next line, None at the end.

    Raises:
        InputError: it is too long; the connection cannot go on.
    """
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        raise InputError(
            f"a request is longer than {MAX_LINE_BYTES} bytes",
            code="too-long",
            hint=f"ask about at most {MAX_KEYS} at a time",
        ) from None


async def _taken(writer: asyncio.StreamWriter) -> None:
    """Wait until there is room for another answer; hang up on who takes none for IDLE_S."""
    try:
        async with asyncio.timeout(IDLE_S):
            await writer.drain()
    except TimeoutError:
        writer.transport.abort()
    except OSError:
        pass  # whoever asked has gone


def _read(line: bytes) -> Request:
    try:
        return _REQUESTS.decode(line)
    except (msgspec.DecodeError, RecursionError):
        # What was sent is not repeated: it may hold an identifier.
        raise InputError(
            "the counter does not understand this request",
            code="bad-request",
            hint=f"1 to {MAX_KEYS} keys of at most {MAX_KEY_CHARACTERS} characters, a reason of at most "
            f"{MAX_REASON_CHARACTERS}",
        ) from None


def _say(writer: asyncio.StreamWriter, number: int, said: Mapping[str, Any]) -> None:
    line = json.dumps({"id": number, **said}).encode("ascii") + b"\n"
    if not writer.is_closing():
        writer.write(line)


def _error(error: MinshuError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def no_session(*, several: bool) -> InputError:
    """Return why a job's session cannot be told."""
    return InputError(
        "more than one open session fits" if several else "no session of that job is open here",
        code="no-session",
        hint="minshu-node lookup sessions names those that are open",
    )


# -- the other end: a person's command -----------------------------------------------------------------------


class Caller:
    """A connection to the counter of a node that runs on this machine."""

    def __init__(self, home: Home) -> None:
        """Connect.

        Raises:
            Unreachable: `no-session`: the node is off, or no session is open there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(DIAL_S)
        path = socket_path(home)
        try:
            with _short(path) as name:
                self._socket.connect(name)
        except OSError as error:
            self._socket.close()
            if isinstance(error, PermissionError):
                raise InputError(
                    f"{path.name} may not be opened by this account",
                    code="not-yours",
                    hint="run the command as the account that runs the node",
                ) from None
            raise Unreachable(
                "no session is open at this node, or the node is off",
                code="no-session",
                hint="minshu-node status shows what runs; a session opens when its job has started",
            ) from None
        self._socket.settimeout(ANSWER_S)
        self._lines = self._socket.makefile("rb")
        self._next = 0

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def put(self, request: Mapping[str, Any]) -> int:
        """Send a request; return its number, which its answer carries.

        Raises:
            Unreachable: `session-lost`.
        """
        self._next += 1
        line = json.dumps({**request, "id": self._next}).encode("ascii") + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"a request is longer than {MAX_LINE_BYTES} bytes", code="too-long")
        try:
            self._socket.sendall(line)
        except OSError:
            raise _lost() from None
        return self._next

    def take(self) -> tuple[int, dict[str, Any]]:
        """Return the next answer and the number of what it answers; answers may come in another order.

        Raises:
            MinshuError: what the node answered.
            Unreachable: `session-lost`.
        """
        try:
            line = self._lines.readline(MAX_ANSWER_BYTES)
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise _lost()
        said: dict[str, Any] = json.loads(line)
        number = int(said.pop("id"))
        if "error" in said:
            error = said["error"]
            raise MinshuError(error["message"], code=error["code"], hint=error["hint"])
        return number, said

    def call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            MinshuError: see `take`.
        """
        self.put(request)
        return self.take()[1]


def _lost() -> Unreachable:
    return Unreachable(
        "the node went away before it answered",
        code="session-lost",
        hint="minshu-node status shows how the run ended; a question may have been counted all the same",
    )
