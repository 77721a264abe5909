"""The parties of a secure sum: sources that add, an aggregator that cannot read. SPEC.md, section 4.

    lower source  -- SEED -->  higher source          a 32-byte seed for each pair
    key-holder    -- PUBLIC_KEY -->  other sources    mode bfv
    source        -- READY -->  every other source    "I have it all; this is what we add"
    source        -- MASKED -->  aggregator           data: only after every other source's READY
    aggregator    -- TOTALS -->  key-holder           once every source's vector is in

Whoever is missing is missing before data leaves, or the attempt fails: masks of another set do not cancel.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.party import Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.sums import bfv
from protocols.sums.masks import RING, SEED_BYTES, Masks, stream_key
from protocols.sums.plan import CHECKS, CIPHERTEXTS, LIMB_BITS, Sums

SEED: Final = 0x2000
"""Round: lower → higher source, the 32-byte seed of the pair."""
PUBLIC_KEY: Final = 0x2100
"""Round: key-holder → other sources, a serialised public key."""
READY: Final = 0x2200
"""Round: source → every other source, the digest of the plan."""
MASKED: Final = 0x2300
"""Round: source → aggregator, the masked vector, block by block."""
TOTALS: Final = 0x2400
"""Round: aggregator → key-holder, the sums of what came, block by block."""

_CANCEL: Final = b"cancel"
_COVER: Final = b"cover"
_LOW: Final = np.uint64((1 << LIMB_BITS) - 1)

Totals = npt.NDArray[np.int64]


class Contributor:
    """A source. Its output is `()`; the key-holder's, the totals (int64) or what `publish` makes of them."""

    def __init__(
        self,
        plan: Sums,
        role: Role,
        vector: npt.NDArray[np.int64],
        rand: Rand,
        *,
        publish: Callable[[Totals], Any] | None = None,
    ) -> None:
        """Take the own vector: `plan.words` words, none beyond `plan.share`.

        Args:
            plan: what is added.
            role: one of its sources.
            vector: what this source adds, int64.
            rand: draws the seeds, and a key-holder's own cover in mask mode. BFV draws for itself.
            publish: makes the key-holder's output of the totals; called once, when all are known.

        Raises:
            InputError: `bad-vector` where its length is not the plan's; `sum-too-large` where a word is
                beyond the share of one source, so that totals could wrap.
        """
        self._plan, self._parameters, self._role = plan, plan.parameters, role
        self._check(vector)
        self._vector, self._publish = vector, publish
        self._others = tuple(other for other in plan.sources if other != role)
        place = plan.sources.index(role)
        self._lower, self._higher = plan.sources[:place], plan.sources[place + 1 :]
        self._seeds: dict[Role, bytes] = {other: rand(SEED_BYTES) for other in self._higher}
        self._own_seed = rand(SEED_BYTES)
        self._holds_key = role == plan.key_holder
        self._secret: bfv.SecretKey | None = None
        self._key: bfv.PublicKey | None = None
        if plan.mode == "bfv" and self._holds_key:
            self._secret = bfv.SecretKey()
            self._key = bfv.PublicKey(self._secret.public())
        self._digest = plan.digest()
        self._ready = False
        self._ready_others: set[Role] = set()
        self._totals: _Totals | None = None

    def _check(self, vector: npt.NDArray[np.int64]) -> None:
        if vector.dtype != np.int64 or vector.shape != (self._plan.words,):
            raise InputError(
                f"a vector of {vector.size} words, expected {self._plan.words}",
                code="bad-vector",
                hint="every source makes its vector from the same job; compare versions",
            )
        # Not np.abs: the least int64 has no positive counterpart.
        if max(int(vector.max()), -int(vector.min())) > self._plan.share:
            raise InputError(
                f"a word of the own vector is beyond {self._plan.share}, one source's share of the bound",
                code="sum-too-large",
                hint="the data contradict the bounds that the job declares: look at both",
            )

    def start(self) -> Step:
        """Send seeds, and the key-holder its public key."""
        first = [Outgoing(other, SEED, self._seeds[other]) for other in self._higher]
        if self._secret is not None:
            first += [Outgoing(other, PUBLIC_KEY, self._secret.public()) for other in self._others]
        return Waiting((*first, *self._say_ready()), Progress("preparing", 0, len(self._others)))

    def _say_ready(self) -> tuple[Outgoing, ...]:
        """Say it once, when nothing is missing to send the own vector."""
        complete = len(self._seeds) == len(self._others) and (self._plan.mode == "mask" or self._key)
        if self._ready or not complete:
            return ()
        self._ready = True
        return tuple(Outgoing(other, READY, self._digest) for other in self._others)

    def receive(self, message: Incoming) -> Step:
        """Take a seed, the public key, a READY; the last of them sends the data. Then totals.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; totals that cannot be.
        """
        if self._totals is not None:
            return self._take_totals(message, self._totals)
        if message.sender not in self._others or not message.last:
            raise _unexpected(message)
        if message.round == SEED:
            self._take_seed(message)
        elif message.round == PUBLIC_KEY:
            self._take_key(message)
        elif message.round == READY:
            self._take_ready(message)
        else:
            raise _unexpected(message)
        outgoing = self._say_ready()
        if not self._ready or len(self._ready_others) < len(self._others):
            progress = Progress("preparing", len(self._ready_others), len(self._others))
            return Waiting(outgoing, progress)
        return self._send(outgoing)

    def _take_seed(self, message: Incoming) -> None:
        if message.sender not in self._lower or message.sender in self._seeds:
            raise _unexpected(message)
        if len(message.body) != SEED_BYTES:
            raise ProtocolAborted(
                f"seed of {len(message.body)} bytes, expected {SEED_BYTES}", code="bad-length"
            )
        self._seeds[message.sender] = message.body

    def _take_key(self, message: Incoming) -> None:
        if message.sender != self._plan.key_holder or self._plan.mode != "bfv" or self._key is not None:
            raise _unexpected(message)
        self._key = bfv.PublicKey(message.body)

    def _take_ready(self, message: Incoming) -> None:
        if message.sender in self._ready_others:
            raise _unexpected(message)
        if message.body != self._digest:
            raise ProtocolAborted(
                f"{message.sender} is ready for another sum: other sources, bounds, cells or version",
                code="plans-differ",
                hint="bring all nodes to one version; they read the same job",
            )
        self._ready_others.add(message.sender)

    def _send(self, outgoing: tuple[Outgoing, ...]) -> Step:
        """Send the masked vector: from here on others could make an answer out of it."""
        masked = _chained(outgoing, self._masked())
        if not self._holds_key:
            return Finished(masked, ())
        self._totals = _Totals(self._plan, self._secret, self._cover())
        return Waiting(masked, self._totals.progress(), answering=True)

    def _masked(self) -> Iterator[Outgoing]:
        keys = {other: self._pair_key(other, _CANCEL) for other in self._others}
        added = [keys[other] for other in self._higher] + self._cover_keys()
        masks = Masks(added, (keys[other] for other in self._lower), self._parameters.modulus)
        bodies = self._ciphertexts(masks) if self._plan.mode == "bfv" else self._words(masks)
        yield from _stream(self._plan.aggregator, MASKED, bodies, self._plan)

    def _words(self, masks: Masks) -> Iterator[bytes]:
        for block in range(self._plan.blocks):
            yield _little(self._block(block, masks))

    def _ciphertexts(self, masks: Masks) -> Iterator[bytes]:
        if self._key is None:
            raise RuntimeError("data is sent only once the public key is there")
        for block in range(self._plan.blocks):
            words = self._block(block, masks)
            if self._parameters.limbs == 1:
                yield self._key.encrypt(words % bfv.PRIME)
            else:
                ring = words.view(np.uint64)
                yield self._key.encrypt((ring & _LOW).view(np.int64))
                yield self._key.encrypt((ring >> np.uint64(LIMB_BITS)).view(np.int64))

    def _block(self, block: int, masks: Masks) -> npt.NDArray[np.int64]:
        """Return a block with its checks, masked: what the masks are reduced by is left to the caller."""
        start = block * self._parameters.block
        piece = self._vector[start : start + self._parameters.block]
        words = np.zeros(self._plan.size(block), dtype=np.int64)
        words[:CHECKS] = 1
        words[CHECKS : CHECKS + len(piece)] = piece
        masks.add_to(words)
        return words

    def _pair_key(self, other: Role, label: bytes) -> bytes:
        lower, higher = (other, self._role) if other in self._lower else (self._role, other)
        return stream_key(self._seeds[other], self._plan.ctx, lower, higher, label)

    def _cover_keys(self) -> list[bytes]:
        """Return what keeps sums from the aggregator in mask mode: only the key-holder has everybody's."""
        if self._plan.mode == "bfv":
            return []
        if self._holds_key:
            return [stream_key(self._own_seed, self._plan.ctx, self._role, self._role, _COVER)]
        return [self._pair_key(self._plan.key_holder, _COVER)]

    def _cover(self) -> Masks:
        """Return what the key-holder takes off the totals: every source's cover."""
        if self._plan.mode == "bfv":
            return Masks((), (), RING)
        keys = [self._pair_key(other, _COVER) for other in self._others]
        return Masks((), keys + self._cover_keys(), RING)

    def _take_totals(self, message: Incoming, totals: "_Totals") -> Step:
        if message.sender != self._plan.aggregator or message.round != TOTALS:
            raise _unexpected(message)
        totals.take(message)
        if not message.last:
            return Waiting((), totals.progress())
        return Finished((), totals.words if self._publish is None else self._publish(totals.words))


class _Totals:
    """Totals as they come in, opened and checked block by block."""

    def __init__(self, plan: Sums, secret: bfv.SecretKey | None, cover: Masks) -> None:
        self._plan, self._parameters = plan, plan.parameters
        self._secret, self._cover = secret, cover
        self._received = _Places(plan)
        self._low: npt.NDArray[np.int64] | None = None
        self._block = 0
        self.words = np.empty(plan.words, dtype=np.int64)

    def progress(self) -> Progress:
        return Progress("opening", self._received.count, self._plan.places)

    def take(self, message: Incoming) -> None:
        if self._secret is None:
            words = _from_little(self._received.words(message)).copy()
            self._cover.add_to(words)
            self._keep(words)
            return
        for ciphertext in self._received.ciphertexts(message):
            opened = self._secret.decrypt(ciphertext)
            if self._parameters.limbs == 1:
                self._keep(np.where(opened > bfv.PRIME // 2, opened - bfv.PRIME, opened))
            elif self._low is None:
                self._low = self._half(opened)
            else:
                ring = self._low.view(np.uint64) + (
                    self._half(opened).view(np.uint64) << np.uint64(LIMB_BITS)
                )
                self._low = None
                self._keep(ring.view(np.int64))

    def _half(self, opened: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if int(opened.max()) > len(self._plan.sources) * int(_LOW):
            raise _not_a_sum()
        return opened

    def _keep(self, words: npt.NDArray[np.int64]) -> None:
        """Check a block and keep its words."""
        start = self._block * self._parameters.block
        piece = words[CHECKS:][: self._plan.words - start]
        bound = self._plan.bound
        if (
            bool((words[:CHECKS] != len(self._plan.sources)).any())
            or int(piece.max()) > bound
            or int(piece.min()) < -bound
            or bool(words[CHECKS + len(piece) :].any())
        ):
            raise _not_a_sum()
        self.words[start : start + len(piece)] = piece
        self._block += 1


class Aggregator:
    """Adds up what every source sends, place by place, and passes on nothing but sums. Its output is `()`.

    It holds one running sum, however many sources there are, and sends when all of them are done: the
    key-holder is a source, too, and takes totals only when it has sent its own vector.
    """

    def __init__(self, plan: Sums) -> None:
        self._plan = plan
        self._received = {source: _Places(plan) for source in plan.sources}
        self._ciphertexts = bfv.Adder(plan.places) if plan.mode == "bfv" else None
        blocks = plan.blocks if plan.mode == "mask" else 0
        self._words = [np.zeros(plan.size(block), dtype=np.uint64) for block in range(blocks)]

    def start(self) -> Step:
        """Wait for masked vectors."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        received = sum(places.count for places in self._received.values())
        return Progress("adding", received, self._plan.places * len(self._received))

    def receive(self, message: Incoming) -> Step:
        """Add a piece of a source's vector; the last of all leads to the totals.

        Raises:
            ProtocolAborted: not a piece that is due, or not of the right form.
        """
        places = self._received.get(message.sender)
        if places is None or message.round != MASKED:
            raise _unexpected(message)
        at = places.count
        if self._ciphertexts is not None:
            for place, ciphertext in enumerate(places.ciphertexts(message), at):
                self._ciphertexts.add(place, ciphertext)
        else:
            sums = self._words[at]
            np.add(sums, np.frombuffer(places.words(message), dtype="<u8"), out=sums)
        if any(each.count < self._plan.places for each in self._received.values()):
            return Waiting((), self._progress())
        return Finished(_stream(self._plan.key_holder, TOTALS, self._sums(), self._plan), ())

    def _sums(self) -> Iterator[bytes]:
        for place in range(self._plan.places):
            if self._ciphertexts is not None:
                yield self._ciphertexts.take(place)
            else:
                yield _little(self._words[place].view(np.int64))


class _Places:
    """One stream of blocks or ciphertexts: how many have come, and whether a message is due."""

    def __init__(self, plan: Sums) -> None:
        self._plan = plan
        self.count = 0

    def ciphertexts(self, message: Incoming) -> list[bytes]:
        """Return the ciphertexts of a message of mode bfv."""
        left = self._plan.places - self.count
        found = bfv.unpack(message.body, min(CIPHERTEXTS, left)) if left else []
        self._move(message, len(found))
        return found

    def words(self, message: Incoming) -> bytes:
        """Return the words of a message of mode mask."""
        if self.count < self._plan.places and len(message.body) != self._plan.body_bytes(self.count):
            raise ProtocolAborted(
                f"block of {len(message.body)} bytes, expected {self._plan.body_bytes(self.count)}",
                code="bad-length",
            )
        self._move(message, 1)
        return message.body

    def _move(self, message: Incoming, found: int) -> None:
        left = self._plan.places - self.count
        if found > left or not left:
            raise ProtocolAborted("a stream goes on after its last block", code="too-many-items")
        if message.last != (found == left):
            code = "too-few-items" if message.last else "too-many-items"
            raise ProtocolAborted(f"a stream ends with {left - found} block(s) to come", code=code)
        self.count += found


def _stream(to: Role, number: int, pieces: Iterator[bytes], plan: Sums) -> Iterator[Outgoing]:
    """Yield blocks, or ciphertexts several to a message."""
    step = CIPHERTEXTS if plan.mode == "bfv" else 1
    for start in range(0, plan.places, step):
        stop = min(start + step, plan.places)
        group = [next(pieces) for _ in range(start, stop)]
        body = bfv.packed(group) if plan.mode == "bfv" else group[0]
        yield Outgoing(to, number, body, last=stop == plan.places)


def _chained(first: tuple[Outgoing, ...], then: Iterator[Outgoing]) -> Iterator[Outgoing]:
    yield from first
    yield from then


def _little(words: npt.NDArray[np.int64]) -> bytes:
    return words.astype("<i8", copy=False).tobytes()


def _from_little(body: bytes) -> npt.NDArray[np.int64]:
    return np.frombuffer(body, dtype="<i8").astype(np.int64, copy=False)


def _unexpected(message: Incoming) -> ProtocolAborted:
    return ProtocolAborted(f"round {message.round} from {message.sender}: not due", code="unexpected-message")


def _not_a_sum() -> ProtocolAborted:
    return ProtocolAborted(
        "the totals are not the sum of every source's vector",
        code="not-a-sum",
        hint="a source encrypted under another key or masked with another seed, or the aggregator left one "
        "out; start another attempt, and compare the nodes' versions if it happens again",
    )
