"""The frames between a node's party and the worker process that trains for it.

A party imports nothing heavy; Flower, PyTorch and the recipe live in the worker, which reaches nothing but
its party: two pipes, no network. The party sends a frame and waits for the one that answers it:

    party                              worker
    Begin ───────────────────────────▶            role "contribute"
          ◀─────────────────────────── Ready
    Handle(exchange, message) ───────▶            a message of the lead, as it came out of its sealed frame
          ◀─────────────────────────── Update     a receipt for the lead, the words of the secure sum, state
    …
    Begin ───────────────────────────▶            role "lead"
          ◀─────────────────────────── Ready
    Go ──────────────────────────────▶
          ◀─────────────────────────── Ask        messages to nodes
    Answer ──────────────────────────▶            their receipts or codes, the total of the secure sum, rows
          ◀─────────────────────────── Ask | Done
    end of the stream ───────────────▶            the worker ends

`Failed` may take the place of every answer; the worker has then ended. It carries a code, never a text: what
an exception says may hold values of rows.

A frame on a pipe is u32 length ‖ MessagePack of the frame, big-endian. What the two say to each other never
leaves the node; only `Update.receipt` and the messages of `Ask` do, sealed, and the total. An exchange is one
`Ask` and what comes of it: counted from 1 over everything that the lead of one attempt asks.
"""

from typing import Annotated, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

from protocols.errors import DecodeError, MinshuError

MAX_FRAME_BYTES: Final = 64 << 20
"""Longest frame on a pipe. A lead's question holds its message once for each source."""

MAX_NODES: Final = 50

LEAD: Final = 1
"""The number of the worker that leads; Flower's word for it is the SuperLink's node."""

TOTAL: Final = 0
"""Whom the total of a secure sum is from, among the replies to the lead. No node bears this number."""

NUMBER_OF_FIRST_SOURCE: Final = 2
"""Number of `source-1`; the others follow."""

_Code = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}\Z")]
_Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9._-]{0,62}\Z")]
_Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Turn = Annotated[str, Meta(pattern=r"^(train|evaluate)(\.[a-z][a-z0-9_]{0,30})?\Z")]
_Node = Annotated[int, Meta(ge=NUMBER_OF_FIRST_SOURCE, lt=NUMBER_OF_FIRST_SOURCE + MAX_NODES)]


Whole = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern=r"^[1-9][0-9]{18,77}\Z")]
"""A whole number: as decimal text where MessagePack has no room for it, from 2^63. `int` reads both."""


def whole(number: int) -> Whole:
    """Return a number as it goes into a frame."""
    return number if number < 1 << 63 else str(number)


class WorkerGone(MinshuError):
    """The worker ended, was ended for its time or memory, or could not be understood."""

    default_code = "worker-gone"


class RecipeFailed(MinshuError):
    """The worker ended with a code of its own."""

    default_code = "recipe-failed"


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe by name, and the distribution it comes from by content.

    Attributes:
        name: entry point in the group `minshu.recipes`.
        distribution: name of the installed distribution.
        version: its version, for people; `digest` decides.
        digest: `sha256:…` over its files, see `node.trainer.recipes`.
    """

    name: _Name
    distribution: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,98}\Z")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.!+_-]{1,40}\Z")]
    digest: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one column lies in the rows that a worker shares with its party.

    Attributes:
        name: slot of the job's params.
        dtype: little-endian numpy type, such as `<f4`.
        rows: length.
        at: offset in bytes, a multiple of 64.
    """

    name: str
    dtype: Annotated[str, Meta(pattern=r"^[<|][fiub][1248]\Z")]
    rows: int
    at: int


class Begin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="begin"):
    """The first frame a worker gets.

    Attributes:
        role: whether it leads (Flower's ServerApp) or contributes (ClientApp).
        recipe: what to load: one of ours by name, another by its pin.
        settings: the job's params for the recipe, canonical JSON.
        run: the same 63-bit number at all nodes and in every attempt, from the job.
        node: its own number.
        nodes: numbers of all contributors, ascending.
        seed: 32 bytes, public, the same at all nodes: initial weights and orders, never noise or masks.
        columns: the rows: those of a node that contributes, or of a lead's public test set.
        state: what it handed over with its last `Update`; empty in the first round.
        deadline_s: seconds that the job gives for each later frame, where the node gives no fewer; 0: it does
            not say.
    """

    role: Literal["lead", "contribute"]
    recipe: _Name | Pin
    settings: bytes
    run: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    node: int
    nodes: tuple[_Node, ...]
    seed: Annotated[bytes, Meta(min_length=32, max_length=32)]
    columns: tuple[Column, ...] = ()
    state: bytes = b""
    deadline_s: Annotated[int, Meta(ge=0, le=86_400)] = 0


class Handle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="handle"):
    """A message of the lead. A message that names another exchange is refused."""

    exchange: Annotated[int, Meta(ge=1)]
    message: bytes


class Go(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="go"):
    """The lead may begin: all nodes are ready."""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="answer"):
    """What became of an `Ask`.

    Attributes:
        receipts: node → its receipt.
        failed: node → code.
        total: the secure sum of those with a receipt, noise included, in units of their words: little-endian
            float64; None where there is none.
        rows: of those in the total, a public number; 0 where there is no total.
    """

    receipts: tuple[tuple[_Node, bytes], ...]
    failed: tuple[tuple[_Node, _Code], ...]
    total: bytes | None
    rows: Annotated[int, Meta(ge=0)]


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ready"):
    """The recipe is loaded.

    Attributes:
        words: turn → most words of a vector that such a message is answered with.
        versions: distribution → version of what computes, for the model card.
        fence: layers of its fence that hold; SPEC 4.
    """

    words: dict[_Turn, Annotated[int, Meta(ge=1)]]
    versions: dict[str, str]
    fence: tuple[_Code, ...] = ()


class Update(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="update"):
    """What a message led to. All but the words follows from the message and the job, whatever the rows are.

    Attributes:
        receipt: Flower's reply to the lead. It holds the exchange and nothing of the rows.
        turn: the message's type, which says what the words are.
        digest: of what the message says, as in `Ask`; the same for all nodes of an exchange.
        words: the sum of what each of the node's rows adds, little-endian int64; not masked or noised yet.
        largest: of the magnitudes that one row adds to any word.
        l1: what one unit changes the words by at most, in ℓ1 norm, if it has all its rows at this node.
        l2_squared: the same in ℓ2 norm, squared.
        state: what the recipe wants back after a restart.
    """

    receipt: bytes
    turn: _Turn
    digest: _Digest
    words: bytes
    largest: Annotated[int, Meta(ge=0)]
    l1: Whole
    l2_squared: Whole
    state: bytes


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ask"):
    """Messages for nodes, one each.

    Attributes:
        exchange: its number.
        turn: the type that all messages have.
        messages: node → Flower message.
        digest: SHA-256 of what they all say, without times, numbers and nodes of messages; so a replay can be
            compared, and nodes can tell that they were asked the same.
        facts: what may be shown while it runs: noisy figures, or those of a public test set.
    """

    exchange: Annotated[int, Meta(ge=1)]
    turn: _Turn
    messages: tuple[tuple[int, bytes], ...]
    digest: _Digest
    facts: dict[str, float] = {}


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="done"):
    """The lead is finished.

    Attributes:
        model: the arrays of the recipe's last state, a safetensors file.
        facts: name → figure of the finished model.
        curves: name → figure at each point of the run; all of one length.
    """

    model: bytes
    facts: dict[str, float] = {}
    curves: dict[str, list[float]] = {}


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="failed"):
    """The worker ends, with a code."""

    code: _Code


FromParty = Begin | Go | Handle | Answer
FromWorker = Ready | Update | Ask | Done | Failed

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_of_party: msgspec.msgpack.Decoder[FromParty] = msgspec.msgpack.Decoder(FromParty)
_of_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(frame: FromParty | FromWorker) -> bytes:
    """Return the frame's bytes without its length.

    Raises:
        DecodeError: it is longer than the other side would take.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise DecodeError(f"frame of {len(body)} bytes, at most {MAX_FRAME_BYTES} accepted", code="too-long")
    return body


def decode_of_party(body: bytes) -> FromParty:
    """Return a frame that a party sent.

    Raises:
        DecodeError: it is none.
    """
    return _decoded(_of_party, body)


def decode_of_worker(body: bytes) -> FromWorker:
    """Return a frame that a worker sent.

    Raises:
        DecodeError: it is none.
    """
    return _decoded(_of_worker, body)


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DecodeError("not a frame between a party and its worker", code="bad-encoding") from None


class Worker(Protocol):
    """A process that trains, or in tests something that acts like one."""

    def step(self, frame: FromParty) -> FromWorker:
        """Send a frame and return its answer; never a `Failed`.

        Raises:
            WorkerGone: it ended, or did not answer in time.
            RecipeFailed: it answered with a code.
        """
        ...

    def close(self) -> None:
        """End it, whatever it does."""
        ...
