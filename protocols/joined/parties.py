"""Sums and products over joined rows that nobody sees: list owners, matcher, helper and dealer. SPEC.md.

    lists are tagged (protocols/psi), then

    list owner  -- SEED -->    helper      what its masks come from
    list owner  -- ROWS -->    matcher     tags, open codes and masked words, by tag
    dealer      -- DEAL -->    both        seeds of one product's triple; the helper's correction
    matcher     -- ALIGN -->   helper      which rows belong together, padded
    matcher     -- GROUPS -->  helper      how many rows each open group has
    matcher    <-- COIN -->    helper      halves of the challenge of the check
    helper      -- DEALT -->   dealer      that its part has come, and rows, too
    matcher    <-- BLOCK -->   helper      one product's openings, block by block
    matcher    <-- CHECK -->   helper      what has to cancel if the dealer was right
    helper      -- FINAL -->   matcher     its shares of all sums, noise added

The matcher and the helper each hold a share of every aligned row: the matcher what came, the helper what was
taken off, which it expands from the seed. What the two send each other is as long for every number of joined
rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Final, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import Content
from protocols.joined.align import (
    ABSENT,
    Alignment,
    Way,
    align,
    check_positions,
    check_sizes,
    cleared,
    filled,
    spread,
)
from protocols.joined.field import Field, Modulus, Words
from protocols.joined.triples import COIN_BYTES, Multiplier, Shape, corrections_bytes, deal
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
from protocols.psi.keyed_list import WAITING
from protocols.psi.owner import ListOwner, plan_of
from protocols.psi.streams import Stream, bad_length, check_ascending, messages, single, unexpected
from protocols.psi.tagging import TAG_BYTES, Plan, Tagged
from protocols.sums.masks import SEED_BYTES, stream_key

SEED: Final = 0x2000
"""Round: list owner → helper, 32 bytes."""
ROWS: Final = 0x2100
"""Round: list owner → matcher, for each row tag ‖ open codes, u16 little-endian ‖ masked words."""
DEAL: Final = 0x2200
"""Round: dealer → matcher, a seed; dealer → helper, a seed and the correction."""
ALIGN: Final = 0x2300
"""Round: matcher → helper, for each aligned row its u32 place in every list, little-endian."""
GROUPS: Final = 0x2400
"""Round: matcher → helper, u32 little-endian, the size of every open group; only where there are some."""
COIN: Final = 0x2500
"""Round: both ways, 16 bytes."""
BLOCK: Final = 0x2600
"""Round: both ways, a block of openings; the helper's comes when the matcher's has."""
CHECK: Final = 0x2700
"""Round: both ways, the share of what must be zero."""
FINAL: Final = 0x2800
"""Round: helper → matcher, its shares of the sums, then of the product, as words."""

DEALT: Final = 0x2900
"""Round: helper → dealer, empty: rows have come, too, and a batch of what was dealt is taken up."""

AHEAD: Final = 2
"""Batches that a dealer sends before the helper says anything."""

CHUNK_ROWS: Final = 1 << 15
"""Rows of a message at most; fewer where they would not fit."""

MAX_ROOM: Final = 8 << 30
"""Bytes that an attempt may take at the matcher: `Joining.check_room`."""

_STAND_IN: Final = b"minshu/joined-list/1/"
_ROWS_LABEL: Final = b"joined-rows"

Keys = npt.NDArray[np.bytes_]
Ints = npt.NDArray[np.int64]
Noise = Callable[[Rand], tuple[Ints, Ints | None]]
"""Draws what one of the two adds: groups x words, and left x right where there is a product."""


_Modulus = TypeVar("_Modulus", bound=Modulus)


@dataclass(frozen=True, slots=True)
class Joining(Generic[_Modulus]):
    """What is computed in one attempt; all public. Sums and products take words of a `Field`.

    Attributes:
        tags: who tags what, from `plan_of`.
        matcher: who compares tags, and holds masked words.
        helper: who holds the masks.
        dealer: who makes the product's triple; None: there is no product.
        field: what words are.
        widths: words of a row of each list.
        open_sizes: of each list, how many codes each of its open axes has.
        rows: what aligned rows are padded to: the size of the shortest list, or 1.
        product: of all words with all words ("gram"), or of the words of one list with another's; None.
        ctx: 32 bytes, binds masks and triple to all admissions.
    """

    tags: Plan
    matcher: Role
    helper: Role
    dealer: Role | None
    field: _Modulus
    widths: tuple[int, ...]
    open_sizes: tuple[tuple[int, ...], ...]
    rows: int
    product: Literal["gram"] | tuple[int, int] | None
    ctx: bytes

    @classmethod
    def of(
        cls,
        owners: Sequence[Role],
        key_holders: Sequence[Role],
        counts: Sequence[int],
        ctx: bytes,
        *,
        matcher: Role,
        helper: Role,
        field: _Modulus,
        widths: Sequence[int],
        dealer: Role | None = None,
        open_sizes: Sequence[Sequence[int]] = (),
        product: Literal["gram"] | tuple[int, int] | None = None,
    ) -> Self:
        """Return the joining of lists with these numbers of admitted distinct keys.

        Raises:
            ValueError: widths or open axes of another number of lists; a product without a dealer, or a
                dealer without a product.
        """
        sizes = tuple(tuple(each) for each in open_sizes) or ((),) * len(owners)
        if not len(owners) == len(widths) == len(sizes):
            raise ValueError(f"{len(widths)} widths and {len(sizes)} axes for {len(owners)} lists")
        if (product is None) != (dealer is None):
            raise ValueError("a product has a dealer, and a dealer a product")
        tags = plan_of(owners, key_holders, counts, ctx)
        rows = max(1, min(counts))
        return cls(tags, matcher, helper, dealer, field, tuple(widths), sizes, rows, product, ctx)

    @property
    def ways(self) -> tuple[Way, ...]:
        """How the lists are asked: a person is joined who is on all of them."""
        return tuple("on" for _ in self.widths)

    @property
    def groups(self) -> int:
        """How many open groups: every combination of the codes of all open axes, the last fastest."""
        return prod(size for sizes in self.open_sizes for size in sizes)

    @property
    def grouped(self) -> bool:
        """Whether there is an open axis."""
        return any(self.open_sizes)

    @property
    def width(self) -> int:
        """Words of an aligned row: all lists' side by side."""
        return sum(self.widths)

    @property
    def shape(self: "Joining[Field]") -> Shape | None:
        """The product's shape."""
        if self.product is None:
            return None
        if self.product == "gram":
            return Shape(self.rows, self.width, None, self.field)
        left, right = self.product
        return Shape(self.rows, self.widths[left], self.widths[right], self.field)

    @property
    def product_size(self: "Joining[Field]") -> tuple[int, int]:
        """Left and right words of the product; (0, 0) where there is none."""
        shape = self.shape
        if shape is None:
            return (0, 0)
        return shape.left, shape.left if shape.right is None else shape.right

    def row_bytes(self, index: int) -> int:
        """Return how long a row of a list is."""
        return TAG_BYTES + 2 * len(self.open_sizes[index]) + self.field.bytes * self.widths[index]

    def row_chunk(self, index: int) -> int:
        """Return how many rows of a list a message has."""
        return min(CHUNK_ROWS, MAX_BODY_BYTES // self.row_bytes(index))

    @property
    def align_chunk(self) -> int:
        """Aligned rows of a message."""
        return min(CHUNK_ROWS, MAX_BODY_BYTES // (4 * len(self.widths)))

    @property
    def final_words(self: "Joining[Field]") -> int:
        """Words of the helper's shares of all sums."""
        left, right = self.product_size
        return self.groups * self.width + left * right

    @property
    def room(self) -> int:
        """Bytes that the matcher holds, nobody more: lists, aligned rows, sums, and the running product."""
        word, lists = self.field.bytes, len(self.widths)
        held = sum(count * self.row_bytes(index) for index, count in enumerate(self.tags.counts))
        held += self.rows * (word * self.width + 4 * lists) + self.groups * self.width * word
        if self.product is None:
            return held
        factors = (self.width,) * 2 if self.product == "gram" else [self.widths[at] for at in self.product]
        return held + 9 * word * prod(factors)

    def check_room(self) -> None:
        """Refuse what no node has memory for, once admissions say how long the lists are.

        Raises:
            ProtocolAborted: `guard-too-large`.
        """
        if self.room > MAX_ROOM:
            raise ProtocolAborted(
                f"lists of these sizes and {self.width} words a joined row take {self.room >> 20} MiB at the "
                f"matcher, more than {MAX_ROOM >> 20}",
                code="guard-too-large",
                hint="ask for fewer cells or columns, or of a dataset with fewer persons",
            )

    def check_reach(self: "Joining[Field]", largest: int) -> None:
        """Refuse sums that words cannot tell apart, once admissions say how long the lists are.

        Args:
            largest: absolute value of any opened number that so many rows and the noise could make.

        Raises:
            ProtocolAborted: `guard-overflow`.
        """
        if largest > self.field.reach:
            raise ProtocolAborted(
                f"over {self.rows} persons a sum with its noise could be {largest}, words hold "
                f"{self.field.reach}",
                code="guard-overflow",
                hint="declare closer bounds or fewer decimals, or ask of a dataset with fewer persons",
            )

    def mask_key(self, seed: bytes, owner: Role) -> bytes:
        """Return the key of the stream that a list's words are masked with."""
        return stream_key(seed, self.ctx, owner, self.helper, _ROWS_LABEL)

    def told(self, alignment: Alignment) -> Iterator[Outgoing]:
        """Yield what the matcher tells the helper of the alignment, as long for any number of persons."""

        def places_of(start: int, stop: int) -> npt.NDArray[np.uint32]:
            rows = np.full((stop - start, len(self.widths)), ABSENT, dtype="<u4")
            here = alignment.positions[start : min(stop, alignment.n)]
            rows[: len(here)] = here
            return rows

        return messages(self.helper, ALIGN, self.rows, self.align_chunk, places_of)

    def placed(self, positions: npt.NDArray[np.uint32], seeds: Mapping[Role, bytes]) -> list[Words]:
        """Return the helper's shares of the aligned rows of every list: masks, where the alignment has them.

        Args:
            positions: rows x lists, as `check_positions` has found them right.
            seeds: of every list's masks.
        """
        shares = []
        for index, (owner, width) in enumerate(zip(self.tags.owners, self.widths, strict=True)):
            aligned: Words = np.zeros((self.rows, width), dtype=self.field.dtype)
            if width:
                stream = self.field.stream(self.mask_key(seeds[owner], owner))
                spread(positions[:, index], self.tags.counts[index], stream, aligned)
            shares.append(aligned)
        return shares


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """What the matcher has at the end.

    Attributes:
        n: joined persons, exactly.
        group_sizes: of each open group, exactly; one group where there is none.
        sums: groups x words of all lists, noise of both included.
        products: left x right, noise of both included; None where there is no product.
    """

    n: int
    group_sizes: Ints
    sums: Ints
    products: Ints | None


class Holder(ListOwner):
    """A list owner: its rows go to the matcher, masked, and the masks' seed to the helper. Output `()`."""

    def __init__(  # noqa: PLR0917  # a list: whose, its keys, what belongs to them
        self,
        joining: Joining[_Modulus],
        role: Role,
        keys: Keys,
        words: Callable[[npt.NDArray[np.uint32]], Ints],
        codes: npt.NDArray[np.uint16],
        rand: Rand,
    ) -> None:
        """Take a list of distinct typed keys, in any order.

        Args:
            joining: what is computed.
            role: whose list it is.
            keys: distinct typed keys, n; those of persons who do not count are keys of no other list.
            words: returns the words of the rows with these places, k x width, as signed values.
            codes: n x open axes, the group of each row, below the axis's size. In the place of those of a
                person who waits go the codes of one who counts, drawn anew.
            rand: draws scalars, orders and the seed.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        self._joining, self._role, self._words, self._codes = joining, role, words, codes
        self._index = joining.tags.owners.index(role)
        self._seed = rand(SEED_BYTES)
        self._waits, self._draw = np.strings.startswith(keys, WAITING), rand
        super().__init__(joining.tags, role, keys, rand, stand_in=_STAND_IN, answer=self._rows)

    def _rows(self, tagged: Tagged) -> Iterator[Outgoing]:
        joining, index = self._joining, self._index
        axes, width = len(joining.open_sizes[index]), joining.widths[index]
        stream = joining.field.stream(joining.mask_key(self._seed, self._role))
        stand_in = len(tagged.order) - 1
        shown = _drawn(self._codes, self._waits, self._draw) if axes else self._codes

        def rows(start: int, stop: int) -> npt.NDArray[np.uint8]:
            places = tagged.order[start:stop]
            own = places != stand_in
            codes = np.zeros((len(places), axes), dtype="<u2")
            codes[own] = shown[places[own]]
            values = np.zeros((len(places), width), dtype=np.int64)
            values[own] = self._words(places[own])
            body = np.empty((len(places), joining.row_bytes(index)), dtype=np.uint8)
            body[:, :TAG_BYTES] = _as_bytes(tagged.tags[start:stop], len(places))
            body[:, TAG_BYTES : TAG_BYTES + 2 * axes] = _as_bytes(codes, len(places))
            if width:
                masked = joining.field.subtract(joining.field.encode(values), stream.take(len(places), width))
                raw = np.frombuffer(joining.field.to_bytes(masked), dtype=np.uint8)
                body[:, TAG_BYTES + 2 * axes :] = raw.reshape(len(places), -1)
            return body

        yield Outgoing(joining.helper, SEED, self._seed)
        yield from messages(joining.matcher, ROWS, len(tagged.order), joining.row_chunk(index), rows)


class Dealing(ABC):
    """Deals batch by batch, a few ahead, until the helper has said of each that it is taken up. Output `()`.

    Whoever finishes has answered, and takes part in no further attempt of a job. So a dealer does not finish
    by dealing, before any row is there: an attempt that ends until then can be made again.
    """

    def __init__(self, helper: Role, batches: int) -> None:
        """Deal to `helper`, at least one batch."""
        self._helper, self._batches = helper, batches
        self._sent = min(AHEAD, batches)
        self._used = 0

    @abstractmethod
    def deal(self, number: int) -> Iterator[Outgoing]:
        """Yield what batch `number` takes, counted from 0."""

    def start(self) -> Step:
        """Deal the first batches."""
        return Waiting(chain.from_iterable(map(self.deal, range(self._sent))), self._progress())

    def _progress(self) -> Progress:
        return Progress("dealing", self._used, self._batches)

    def receive(self, message: Incoming) -> Step:
        """Deal the next batch, if there is one; be done with the last.

        Raises:
            ProtocolAborted: a message that is not due.
        """
        if message.round != DEALT or message.sender != self._helper:
            raise unexpected(message)
        if message.body or message.last != (self._used + 1 == self._batches):
            raise bad_length(message)
        self._used += 1
        if self._used == self._batches:
            return Finished((), ())
        if self._sent == self._batches:
            return Waiting((), self._progress())
        self._sent += 1
        return Waiting(self.deal(self._sent - 1), self._progress())


class Dealer(Dealing):
    """Makes the product's triple of nothing but public sizes, in one batch."""

    def __init__(self, joining: Joining[Field], rand: Rand) -> None:
        """Draw the seeds.

        Raises:
            ValueError: there is no product.
        """
        if joining.shape is None:
            raise ValueError("a dealer without a product")
        super().__init__(joining.helper, 1)
        self._joining, self._shape = joining, joining.shape
        self._seeds = rand(SEED_BYTES), rand(SEED_BYTES)

    def deal(self, number: int) -> Iterator[Outgoing]:  # noqa: ARG002  # there is one batch
        """Yield both seeds and the correction."""
        joining, (first, second) = self._joining, self._seeds
        yield Outgoing(joining.matcher, DEAL, first)
        body = second + deal(self._shape, first, second, joining.ctx)
        yield from messages(
            joining.helper, DEAL, len(body), MAX_BODY_BYTES, lambda start, stop: body[start:stop]
        )


class Matcher:
    """Aligns rows and opens sums; outputs what `publish` makes of them once the dealer's check holds."""

    def __init__(
        self,
        joining: Joining[Field],
        rand: Rand,
        *,
        admit: Callable[[int], None],
        noise: Noise | None,
        publish: Callable[[Totals], tuple[Content, ...]],
    ) -> None:
        """Wait for every list.

        Args:
            joining: what is computed.
            rand: draws orders, the coin, and noise.
            admit: given the number of joined persons before anything of it leaves; raises `ProtocolAborted`
                where that must not be.
            noise: what is added here; None: nothing is.
            publish: called once.
        """
        self._joining, self._rand = joining, rand
        self._admit, self._noise, self._publish = admit, noise, publish
        self._lists = [MaskedRows(joining, index) for index in range(len(joining.widths))]
        self._total = sum(joining.tags.counts)
        self._side: _Side | None = None
        self._seed: bytes | None = None
        self._coin: bytes | None = None
        self._other: bytes | None = None
        self._final: Stream | None = None

    def start(self) -> Step:
        """Wait for rows."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        if self._side is not None:
            return self._side.progress()
        return Progress("collecting", sum(each.stream.seen for each in self._lists), self._total)

    def receive(self, message: Incoming) -> Step:
        """Take rows, the dealer's seed, and what the helper sends.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-triple`; whatever
                `admit` raises.
        """
        joining = self._joining
        if message.round == ROWS and message.sender in joining.tags.owners:
            return self._take_rows(joining.tags.owners.index(message.sender), message)
        if message.round == DEAL and message.sender == joining.dealer and self._seed is None:
            self._seed = single(message, SEED_BYTES)
            return self._toss()
        side = self._side
        if message.sender != joining.helper or side is None:
            raise unexpected(message)
        if message.round == COIN and self._coin is not None and self._other is None:
            self._other = single(message, COIN_BYTES)
            return self._multiply(self._coin + self._other)
        if message.round == BLOCK and side.multiplying:
            side.take(message)
            return Waiting(self._opened(1), side.progress())
        if message.round == CHECK and side.checking:
            side.verify(message)
            return Waiting((), side.progress())
        if message.round == FINAL and side.done:
            return self._take_final(message, side)
        raise unexpected(message)

    def _take_rows(self, index: int, message: Incoming) -> Step:
        self._lists[index].take(message)
        if not all(each.stream.complete for each in self._lists):
            return Waiting((), self._progress())
        alignment = self._aligned()
        self._admit(alignment.n)
        shares = []
        for place, each in enumerate(self._lists):
            shares.append(each.shares(alignment.positions[:, place], self._joining.rows))
        self._side = _Side(self._joining, shares, alignment.sizes)
        step = self._toss()
        return Waiting(chain(self._tell(alignment), step.outgoing), step.progress)

    def _aligned(self) -> Alignment:
        joining = self._joining
        codes = [each.codes for each in self._lists]

        def group_of(places: npt.NDArray[np.uint32]) -> Ints:
            found = np.zeros(len(places), dtype=np.int64)
            for index, sizes in enumerate(joining.open_sizes):
                for axis, size in enumerate(sizes):
                    found *= size
                    # Rows that are not joined have no place on some list: any group does.
                    found += codes[index][:, axis].take(places[:, index], mode="clip")
            return found

        lists = [each.tags for each in self._lists]
        return align(
            lists,
            joining.ways,
            self._rand,
            groups=joining.groups,
            group_of=group_of if joining.grouped else None,
        )

    def _tell(self, alignment: Alignment) -> Iterator[Outgoing]:
        """Yield the alignment, as long for any number of persons, and the groups' sizes."""
        joining = self._joining
        yield from joining.told(alignment)
        if joining.grouped:
            sizes = alignment.sizes.astype("<u4")
            yield from messages(
                joining.helper, GROUPS, len(sizes), MAX_BODY_BYTES // 4, lambda start, stop: sizes[start:stop]
            )

    def _toss(self) -> Waiting:
        """Draw the own half of the challenge, once the dealer's seed is in: it cannot depend on it."""
        if self._side is None or self._seed is None:
            return Waiting((), self._progress())
        self._coin = self._rand(COIN_BYTES)
        return Waiting((Outgoing(self._joining.helper, COIN, self._coin),), self._progress())

    def _multiply(self, coin: bytes) -> Waiting:
        """Begin with the product."""
        assert self._side is not None
        assert self._seed is not None
        multiplier = Multiplier(self._side.shape, self._seed, self._joining.ctx, first=True, corrections=None)
        multiplier.challenge(coin)
        self._side.begin(multiplier)
        return Waiting(self._opened(UNDER_WAY), self._side.progress())

    def _opened(self, most: int) -> Iterator[Outgoing]:
        """Yield the next own blocks; once all of the helper's are in, the share of the check."""
        assert self._side is not None
        return self._side.opened(self._joining.helper, most)

    def _take_final(self, message: Incoming, side: "_Side") -> Step:
        joining = self._joining
        if self._final is None:
            self._final = _final_stream(joining)
        self._final.keep(self._final.take(message))
        if not self._final.complete:
            return Waiting((), side.progress())
        theirs = joining.field.read(self._final.raw().tobytes(), 1).reshape(-1)
        own = side.finish(self._noise, self._rand)
        opened = joining.field.decode(joining.field.add(own, theirs))
        left, right = joining.product_size
        cut = joining.groups * joining.width
        totals = Totals(
            int(side.sizes.sum()),
            side.sizes,
            opened[:cut].reshape(joining.groups, joining.width),
            None if joining.product is None else opened[cut:].reshape(left, right),
        )
        return Finished((), self._publish(totals))


class Helper:
    """Holds masks in the order of the alignment; sees no tag and no word. Its output is `()`."""

    def __init__(self, joining: Joining[Field], rand: Rand, *, noise: Noise | None) -> None:
        """Wait for seeds, the alignment, and the dealer's part.

        Args:
            joining: what is computed.
            rand: draws the coin, and noise.
            noise: what is added here; None: nothing is.
        """
        self._joining, self._rand, self._noise = joining, rand, noise
        self._seeds: dict[Role, bytes] = {}
        lists = len(joining.widths)
        self._align = Stream(ALIGN, joining.rows, 4 * lists, joining.align_chunk)
        self._groups = Stream(GROUPS, joining.groups, 4, MAX_BODY_BYTES // 4)
        shape = joining.shape
        dealt = 0 if shape is None else SEED_BYTES + corrections_bytes(shape)
        self._deal = Stream(DEAL, dealt, 1, MAX_BODY_BYTES)
        self._coin: bytes | None = None
        self._side: _Side | None = None

    def start(self) -> Step:
        """Wait for seeds."""
        return Waiting((), self._progress())

    def _progress(self) -> Progress:
        if self._side is not None:
            return self._side.progress()
        return Progress("collecting", self._align.seen, self._joining.rows)

    def receive(self, message: Incoming) -> Step:
        """Take a seed, the alignment, the dealer's part, and what the matcher sends.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be; `bad-alignment`,
                `bad-groups`, `bad-triple`.
        """
        joining = self._joining
        if message.sender in joining.tags.owners:
            return self._take_seed(message)
        if message.sender == joining.dealer:
            if message.round != DEAL:
                raise unexpected(message)
            self._deal.keep(self._deal.take(message))
            return self._ready()
        if message.sender != joining.matcher:
            raise unexpected(message)
        side = self._side
        if message.round == ALIGN:
            self._align.keep(self._align.take(message))
            return self._ready()
        if message.round == GROUPS and joining.grouped:
            self._groups.keep(self._groups.take(message))
            return self._ready()
        if message.round == COIN and joining.product is not None and self._coin is None:
            self._coin = single(message, COIN_BYTES)
            return self._ready()
        if message.round == BLOCK and side is not None and side.multiplying:
            # The own block is open before the matcher's is taken in.
            outgoing = tuple(side.opened(joining.matcher, 1))
            side.take(message)
            return Waiting(chain(outgoing, side.opened(joining.matcher, 0)), side.progress())
        if message.round == CHECK and side is not None and side.checking:
            side.verify(message)
            return Finished(self._finals(side), ())
        raise unexpected(message)

    def _take_seed(self, message: Incoming) -> Step:
        if message.round != SEED or message.sender in self._seeds:
            raise unexpected(message)
        self._seeds[message.sender] = single(message, SEED_BYTES)
        return self._ready()

    def _ready(self) -> Step:
        """Expand the masks once the alignment is known, then multiply, or be done where nothing is to be."""
        joining = self._joining
        aligned = self._align.complete and (self._groups.complete or not joining.grouped)
        if self._side is None and aligned and len(self._seeds) == len(joining.widths):
            self._side = self._expanded()
            if joining.product is None:
                return Finished(self._finals(self._side), ())
        if self._side is None or self._coin is None or not self._deal.complete:
            return Waiting((), self._progress())
        dealt, own = self._deal.raw().tobytes(), self._rand(COIN_BYTES)
        multiplier = Multiplier(
            self._side.shape,
            dealt[:SEED_BYTES],
            joining.ctx,
            first=False,
            corrections=dealt[SEED_BYTES:],
        )
        # The own half is drawn when the dealer's part is whole: nothing of it can depend on the challenge.
        multiplier.challenge(self._coin + own)
        self._side.begin(multiplier)
        assert joining.dealer is not None
        said = Outgoing(joining.matcher, COIN, own), Outgoing(joining.dealer, DEALT, b"")
        return Waiting(said, self._side.progress())

    def _expanded(self) -> "_Side":
        joining = self._joining
        lists = len(joining.widths)
        positions = self._align.raw().reshape(-1).view("<u4").reshape(joining.rows, lists)
        n = check_positions(positions, joining.tags.counts, joining.ways)
        sizes = np.array([n], dtype=np.int64)
        if joining.grouped:
            sizes = self._groups.raw().reshape(-1).view("<u4").astype(np.int64)
            check_sizes(sizes, n)
        return _Side(joining, joining.placed(positions, self._seeds), sizes)

    def _finals(self, side: "_Side") -> Iterator[Outgoing]:
        field = self._joining.field
        words = side.finish(self._noise, self._rand)
        return messages(
            self._joining.matcher,
            FINAL,
            len(words),
            MAX_BODY_BYTES // field.bytes,
            lambda start, stop: field.to_bytes(words[start:stop]),
        )


class MaskedRows:
    """One list as it comes in: tags, open codes and masked words, each into the one array that stays."""

    def __init__(self, joining: Joining[_Modulus], index: int) -> None:
        """Expect the rows of a list."""
        count, self._field, self._width = joining.tags.counts[index], joining.field, joining.widths[index]
        self._sizes = np.array(joining.open_sizes[index], dtype=np.uint32)
        self.stream = Stream(ROWS, count, joining.row_bytes(index), joining.row_chunk(index))
        self.tags = np.empty(count, dtype=f"S{TAG_BYTES}")
        self.codes = np.empty((count, len(self._sizes)), dtype=np.uint16)
        self._words = np.empty((count, self._width), dtype=joining.field.dtype)

    def take(self, message: Incoming) -> None:
        """Take the next rows.

        Raises:
            ProtocolAborted: `bad-code`, `bad-tags`, or a message that is not what it has to be.
        """
        start = self.stream.seen
        rows = self.stream.take(message)
        stop, axes = self.stream.seen, len(self._sizes)
        cut = TAG_BYTES + 2 * axes
        self.tags[start:stop] = np.ascontiguousarray(rows[:, :TAG_BYTES]).view(self.tags.dtype)[:, 0]
        if axes:
            codes = np.ascontiguousarray(rows[:, TAG_BYTES:cut]).view("<u2")
            if bool((codes >= self._sizes).any()):
                raise ProtocolAborted("a row has a code that its open axis does not have", code="bad-code")
            self.codes[start:stop] = codes
        if self._width:
            self._words[start:stop] = self._field.read(rows[:, cut:].tobytes(), self._width)
        if self.stream.complete:
            check_ascending(self.tags)

    def shares(self, places: npt.NDArray[np.uint32], rows: int) -> Words:
        """Return the words of the aligned rows, zeros below them, and let go of all else."""
        column = np.full(rows, ABSENT, dtype=np.uint32)
        column[: len(places)] = places
        aligned = np.empty((rows, self._width), dtype=self._words.dtype)
        # With mode "raise", `take` would write to a copy first. Places come of the list itself.
        np.take(self._words, filled(column, len(self._words)), axis=0, out=aligned, mode="clip")
        cleared(column, aligned)
        self.tags, self.codes, self._words = (
            self.tags[:0].copy(),
            self.codes[:0].copy(),
            self._words[:0].copy(),
        )
        return aligned


class _Side:
    """What matcher and helper have in common: aligned shares, their sums, and a part in one product."""

    def __init__(self, joining: Joining[Field], shares: list[Words], sizes: Ints) -> None:
        self._joining, self._shares, self.sizes = joining, shares, sizes
        # Padding is zeros on both sides, so it may stand in the last group: the work is that of any n.
        starts = np.cumsum(sizes) - sizes
        self._sums = np.zeros((len(sizes), joining.width), dtype=joining.field.dtype)
        at = 0
        for each in shares:
            if each.shape[1]:
                self._sums[:, at : at + each.shape[1]] = joining.field.sums(each, starts)
            at += each.shape[1]
        if joining.product is None:
            self._shares = []
        self._multiplier: Multiplier | None = None
        self._opened = self._taken = 0
        self._said = self.done = joining.product is None

    @property
    def shape(self) -> Shape:
        shape = self._joining.shape
        assert shape is not None
        return shape

    @property
    def multiplying(self) -> bool:
        """Whether a block of the other is due."""
        return self._multiplier is not None and self._taken < self._multiplier.blocks

    @property
    def checking(self) -> bool:
        """Whether the other's share of the check is due."""
        return self._multiplier is not None and not self.multiplying and not self.done

    def progress(self) -> Progress:
        if self._multiplier is None or self.done:
            return Progress("opening", 0, 1)
        return Progress("multiplying", self._taken, self._multiplier.blocks)

    def begin(self, multiplier: Multiplier) -> None:
        self._multiplier = multiplier

    def opened(self, to: Role, most: int) -> Iterator[Outgoing]:
        """Yield up to `most` own blocks, and once all of the other's are in, the share of the check."""
        multiplier = self._multiplier
        assert multiplier is not None
        for _ in range(most):
            if self._opened == multiplier.blocks:
                break
            start = self._opened * multiplier.block_rows
            self._opened += 1
            yield Outgoing(
                to,
                BLOCK,
                multiplier.open(*self._operands(start, start + multiplier.block_rows)),
                last=self._opened == multiplier.blocks,
            )
        if self._taken == multiplier.blocks and not self._said:
            self._said = True
            self._shares = []
            yield Outgoing(to, CHECK, multiplier.check_share())

    def _operands(self, start: int, stop: int) -> tuple[Words, Words | None]:
        product = self._joining.product
        if isinstance(product, tuple):
            left, right = product
            return self._shares[left][start:stop], self._shares[right][start:stop]
        return np.concatenate([each[start:stop] for each in self._shares], axis=1), None

    def take(self, message: Incoming) -> None:
        """Take the other's next block.

        Raises:
            ProtocolAborted: one that is not right.
        """
        multiplier = self._multiplier
        assert multiplier is not None
        if message.last != (self._taken + 1 == multiplier.blocks):
            code = "too-few-items" if message.last else "too-many-items"
            raise ProtocolAborted("the blocks of a product do not end with the last one", code=code)
        multiplier.take(message.body)
        self._taken += 1

    def verify(self, message: Incoming) -> None:
        """Check what has to cancel.

        Raises:
            ProtocolAborted: `bad-triple`.
        """
        assert self._multiplier is not None
        if not message.last:
            raise unexpected(message)
        self._multiplier.verify(message.body)
        self.done = True

    def finish(self, noise: Noise | None, rand: Rand) -> Words:
        """Return the own shares of all sums, then of the product, with the own noise."""
        field, parts = self._joining.field, [self._sums]
        if self._multiplier is not None:
            parts.append(self._multiplier.result())
        if noise is not None:
            for at, extra in enumerate(noise(rand)):
                if extra is not None:
                    parts[at] = field.add(parts[at], field.encode(extra))
        return np.concatenate([part.reshape(-1) for part in parts])


def _final_stream(joining: Joining[Field]) -> Stream:
    return Stream(FINAL, joining.final_words, joining.field.bytes, MAX_BODY_BYTES // joining.field.bytes)


def _drawn(codes: npt.NDArray[np.uint16], waits: npt.NDArray[np.bool_], rand: Rand) -> npt.NDArray[np.uint16]:
    """Return codes of rows, each row of who waits with those of somebody who counts, if anybody does.

    With codes of its own, such as zeros, the matcher would see how many wait.
    """
    counting = np.flatnonzero(~waits)
    if not len(counting):
        return codes
    found = codes.copy()
    drawn = np.frombuffer(rand(8 * int(waits.sum())), dtype="<u8") % np.uint64(len(counting))
    found[waits] = codes[counting[drawn]]
    return found


def _as_bytes(items: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(items.tobytes(), dtype=np.uint8).reshape(count, -1)
