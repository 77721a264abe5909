"""KKRT without messages: values agree where items do, and look random everywhere else.

Statistical tests fix their seed; each says how often it would fail if the numbers were uniform.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError, ProtocolAborted
from protocols.match import kkrt
from protocols.match.hashing import Joint, Permutation, Stream, room
from protocols.match.kkrt import Awaited, Masks, ReceiverUnits, SenderUnits
from protocols.match.shape import COLUMNS, Shape, Sizing

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/kkrt.json").read_text())
SMALL = Sizing(dh_below=0, least=256, receiver_mean=64, sender_most=200, message=4096)
SALTS = bytes.fromhex(VECTORS["receiver_salt"]), bytes.fromhex(VECTORS["sender_salt"])


def joint(ctx=CTX):
    return Joint(ctx, *SALTS)


def key_list(numbers):
    return np.array([b"RIC:%018d" % each for each in numbers], dtype="S22")


class Both:
    """Both sides with keys of 512 transfers that somebody trusted has handed out."""

    def __init__(self, receiver, sender, sizing=SMALL, seed=0):
        """Take (key number, mark) of the receiver, and (key number, marks) of the sender."""
        keys, marks = (np.array(column) for column in zip(*receiver, strict=True))
        theirs, entries = (np.array(column) for column in zip(*sender, strict=True))
        self.shape = Shape.of(len(keys), len(theirs), entries.shape[1], sizing)
        drawn = np.random.default_rng(seed)
        self.choices = drawn.integers(0, 2, COLUMNS).astype(bool)
        self.pairs = drawn.integers(0, 256, (COLUMNS, 2, 16), dtype=np.uint8)
        self.receiver = ReceiverUnits(
            self.shape, joint(), key_list(keys), marks.astype(np.uint8), seeded(f"r{seed}")
        )
        self.sender = SenderUnits(
            self.shape, joint(), key_list(theirs), entries.astype(np.uint8), seeded(f"s{seed}")
        )
        self.receiver.hold(self.pairs)
        self.sender.choose(self.choices, self.pairs[np.arange(COLUMNS), self.choices.astype(int)])
        self.bodies: list[list[bytes]] = []
        self.awaited: list[Awaited] = []
        self.masks: list[Masks] = []

    def play(self):
        found: set[int] = set()
        for unit in range(self.shape.units):
            self.bodies.append(list(self.receiver.messages(unit, self.awaited.append)))
            ended = [self.sender.take(body) for body in self.bodies[-1]]
            assert ended == [False] * (len(ended) - 1) + [True]
            self.masks.append(self.sender.masks(unit))
            found |= set(self.awaited[-1].found(self.masks[-1]).tolist())
        return found


LISTS = st.dictionaries(st.integers(0, 400), st.integers(0, 3), min_size=1, max_size=150)


def check(mine, theirs, values, seed):
    sender = {key: [(mark + k) % 4 for k in range(values)] for key, mark in theirs.items()}
    both = Both(list(mine.items()), list(sender.items()), seed=seed)
    wanted = {at for at, (key, mark) in enumerate(mine.items()) if mark in sender.get(key, ())}
    assert both.play() == wanted


@settings(max_examples=12, deadline=None)
@given(LISTS, LISTS, st.integers(1, 3), st.integers(0, 9))
def test_the_receiver_finds_its_items_that_the_sender_has_with_their_mark(mine, theirs, values, seed):
    check(mine, theirs, values, seed)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(LISTS, LISTS, st.integers(1, 3), st.integers(0, 9))
def test_the_receiver_finds_them_many_times(mine, theirs, values, seed):
    check(mine, theirs, values, seed)


def test_every_unit_has_the_same_number_of_masks_and_bytes_whatever_the_lists():
    one = Both([(n, 0) for n in range(300)], [(n, [0]) for n in range(250)])
    other = Both([(n, 0) for n in range(300)], [(n, [0]) for n in range(10**6, 10**6 + 250)])
    assert len(one.play()) == 250
    assert not other.play()
    for both in (one, other):
        assert {len(masks.prefixes) for masks in both.masks} == {both.shape.masks}
        cut = [columns * both.shape.column_bytes for columns in both.shape.matrix_cut]
        assert len(cut) > 1
        assert all([len(body) for body in bodies] == cut for bodies in both.bodies)
    assert one.shape == other.shape


# -- statistics ----------------------------------------------------------------------------------------------

LARGE = Sizing(dh_below=0, least=4096, receiver_mean=4096, sender_most=8192)


@pytest.fixture(scope="module")
def apart():
    """Two lists of 4096 with nothing in common."""
    both = Both([(n, 0) for n in range(4096)], [(n, [0]) for n in range(5000, 9096)], LARGE)
    assert both.play() == set()
    return both


def score(ones, count):
    """How many standard deviations counts of ones are from half of `count` fair bits, at most."""
    return float(np.abs((np.asarray(ones) - count / 2) / np.sqrt(count / 4)).max())


def bits_of(words):
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1), axis=1)


def test_masks_of_persons_the_receiver_does_not_have_look_uniform(apart):
    # 12,288 masks of 8 bytes; 64 places and 2016 pairs of places. A false alarm: 2080 · 3.8e-8 = 8e-5.
    bits = bits_of(np.concatenate([masks.prefixes for masks in apart.masks]).reshape(-1, 1)).astype(np.int32)
    assert score(bits.sum(axis=0), len(bits)) < 5.5
    signs = 2 * bits - 1
    pairs = signs.T @ signs
    np.fill_diagonal(pairs, 0)
    assert float(np.abs(pairs).max()) / np.sqrt(len(bits)) < 5.5
    assert len(np.unique(np.concatenate([masks.prefixes for masks in apart.masks]))) == len(bits)


def test_rows_of_dummies_look_like_all_others_to_the_sender(apart):
    # What the sender sees of a row is 512 bits of the matrix, and what it makes of them. Rows with an item
    # and rows with none of three units, 512 places, two views: a false alarm: 6144 · 3.8e-8 = 2.3e-4.
    for unit, (bodies, slots) in enumerate(zip(apart.bodies, apart.receiver._slots, strict=True)):
        seen = matrix_rows(b"".join(bodies))
        corrected = apart.choices.reshape(1, -1) & seen
        for view in (seen, corrected ^ drawn_rows(apart, unit)):
            for group in (slots >= 0, slots < 0):
                assert score(view[group].sum(axis=0), int(group.sum())) < 5.5
        assert (slots < 0).sum() > 100


def matrix_rows(body):
    columns = np.frombuffer(body, dtype=np.uint8).reshape(COLUMNS, -1)
    return np.unpackbits(columns, axis=1, bitorder="little").T


def drawn_rows(both, unit):
    """What the sender draws for the rows of a unit, bit by bit."""
    return drawn_rows_of(both, both.choices.astype(int), unit)


def drawn_rows_of(both, sides, unit):
    """The streams of one side of each pair, or all of one side, for the rows of a unit."""
    size = both.shape.segment // 8
    columns = []
    for pair, side in zip(both.pairs, np.broadcast_to(sides, COLUMNS), strict=True):
        out = bytearray((unit + 1) * size + 16)
        Stream(pair[side].tobytes()).fill(memoryview(bytes((unit + 1) * size)), memoryview(out))
        columns.append(np.frombuffer(bytes(out[unit * size : (unit + 1) * size]), dtype=np.uint8))
    return np.unpackbits(np.stack(columns), axis=1, bitorder="little").T


# -- a receiver that departs from the protocol ---------------------------------------------------------------


def bits_of_codes(made, entries, hashed):
    """The code of each entry under a hash, bit by bit: n x 512."""
    out, blocks = room(len(entries)), []
    for permutation in made.codes[hashed]:
        permutation.apply(np.ascontiguousarray(entries).reshape(-1), out)
        blocks.append(out[:-2].reshape(-1, 2).copy())
    return np.unpackbits(np.concatenate(blocks, axis=1).view(np.uint8), axis=1, bitorder="little")


def masks_of_rows(both, bits, rows, unit):
    """The mask of each row of 512 bits, as the sender makes it in that row."""
    chain = kkrt._Chain.of(joint().rows, len(bits))
    chain.begin(np.ascontiguousarray(rows), unit * both.shape.segment)
    blocks = np.packbits(bits, axis=1, bitorder="little").view("<u8").reshape(len(bits), 4, 2)
    for plane in range(4):
        chain.absorb(plane, np.ascontiguousarray(blocks[:, plane]).reshape(-1))
    made = kkrt._masks(chain.state[: 2 * len(bits)].reshape(-1, 2), both.shape)
    return list(zip(made.prefixes.tolist(), made.rests.tolist(), strict=True))


def test_a_receiver_that_sends_other_codes_reads_the_senders_whole_list():
    """What SPEC.md, section 8, and the statement `crafted-list` admit, and why there is another form.

    It was admitted with 80 keys, knows that these are on the sender's list, and learns 8 bits with each.
    """
    made, width, everybody = joint(), 8, np.arange(2000)
    theirs = np.concatenate([np.arange(80), np.arange(101, 2000, 3)])
    sizing = Sizing(dh_below=0, least=512, receiver_mean=1000, sender_most=1000, message=4096)
    both = Both([(n, 0) for n in range(80)], [(n, [0]) for n in theirs], sizing)
    hashes = made.hashes(key_list(everybody))
    rows = made.positions(hashes, both.shape.segment)
    entries = made.marked(hashes, np.zeros(len(everybody), dtype=np.uint8))
    secret, tried = np.full(COLUMNS, -1), np.arange(1 << width)
    options = (tried[:, None] >> np.arange(width)) & 1
    for unit in range(both.shape.units):
        codes, sent = bits_of_codes(made, entries, unit), np.zeros((both.shape.segment, COLUMNS), np.uint8)
        # Every key that it knows, in a row of its own, with 8 other bits flipped than the next one's.
        used = {int(rows[unit, n]): n for n in range(80)}
        places = dict(zip(used, range(0, COLUMNS, width), strict=False))
        for row, place in places.items():
            sent[row] = codes[used[row]]
            sent[row, place : place + width] ^= 1
        own, other = (drawn_rows_of(both, side, unit) for side in range(2))
        body = np.packbits((own ^ other ^ sent).T, axis=1, bitorder="little")
        for column in body:
            both.sender.take(column.tobytes())
        masks = both.sender.masks(unit)
        seen = set(zip(masks.prefixes.tolist(), masks.rests.tolist(), strict=True))
        for row, place in places.items():
            guesses = np.repeat(own[row : row + 1], len(tried), axis=0)
            guesses[:, place : place + width] ^= options.astype(np.uint8)
            found = masks_of_rows(both, guesses, np.full(len(tried), row), unit)
            [hit] = [at for at, mask in enumerate(found) if mask in seen]
            secret[place : place + width] = options[hit]
    assert (secret == both.choices).all()
    # With the secret it tests everybody, in the last unit alone, offline.
    at = rows[unit]
    evaluated = own[at] ^ (sent[at] ^ codes) & secret.astype(np.uint8)
    listed = [n for n, mask in enumerate(masks_of_rows(both, evaluated, at, unit)) if mask in seen]
    assert listed == theirs.tolist()


# -- labels and row numbers ----------------------------------------------------------------------------------


def test_no_row_number_is_hashed_twice_over_all_buckets(monkeypatch):
    numbers: dict[str, list[np.ndarray]] = {"receiver": [], "sender": []}
    begin = kkrt._Chain.begin

    def begun(self, rows, first):
        begin(self, rows, first)
        side = "receiver" if self is both.receiver._chain else "sender"
        numbers[side].append(self.state[: 2 * len(rows)].reshape(-1, 2).copy())

    both = Both([(n, 0) for n in range(300)], [(n, [0]) for n in range(200, 500)])
    monkeypatch.setattr(kkrt._Chain, "begin", begun)
    both.play()
    assert both.shape.buckets > 2
    mine = np.concatenate(numbers["receiver"])
    assert mine.tolist() == [[n, 0] for n in range(both.shape.units * both.shape.segment)]
    # The sender's entries of one unit may meet in a row; no row of one unit is one of another.
    owners = [Counter((batch[:, 0] // both.shape.segment).tolist()) for batch in numbers["sender"]]
    assert [list(each) for each in owners] == [[unit] for unit in range(both.shape.units)]


def test_keys_are_bound_to_ctx_and_to_both_salts():
    entry = np.arange(2, dtype=np.uint64)

    def images(made):
        blocks = []
        for permutation in (made._item, made._place, *made.rows, *(p for codes in made.codes for p in codes)):
            out = room(1)
            permutation.apply(entry, out)
            blocks.append(out[:2].tobytes())
        return blocks

    one, two = bytes(32), bytes([1]) * 32
    made = [
        images(joint()),
        images(joint(bytes(32))),
        images(Joint(CTX, one, two)),
        images(Joint(CTX, two, one)),
    ]
    flat = [block for each in made for block in each]
    assert len(set(flat)) == len(flat) == 4 * 18


def test_one_item_has_other_codes_and_places_under_each_hash():
    made, hashes = joint(), joint().hashes(key_list(range(50)))
    rows = made.positions(hashes, 1 << 20)
    assert len({tuple(each) for each in rows.T.tolist()}) == 50
    codes = set()
    for permutations in made.codes:
        for permutation in permutations:
            out = room(50)
            permutation.apply(hashes.reshape(-1), out)
            codes |= {each.tobytes() for each in out[:-2].reshape(-1, 2)}
    assert len(codes) == 12 * 50


# -- vectors -------------------------------------------------------------------------------------------------


def test_hashes_places_codes_and_row_hashes_are_those_of_the_vectors():
    made = joint(bytes.fromhex(VECTORS["ctx"]))
    for each in VECTORS["hashes"]:
        for width in {len(each["key"]), 32}:
            hashes = made.hashes(np.array([each["key"].encode()], dtype=f"S{width}"))
            assert hashes.tobytes().hex() == each["block"]
        marked = made.marked(hashes, np.array([each["mark"]], dtype=np.uint8))
        assert marked.tobytes().hex() == each["marked"]
        assert made.buckets(hashes, 8).tolist() == [each["bucket_of_8"]]
        assert made.positions(hashes, 54144)[:, 0].tolist() == each["rows_of_54144"]
    for each in VECTORS["codes"]:
        entry = np.frombuffer(bytes.fromhex(each["entry"]), dtype=np.uint64)
        out, code = room(1), b""
        for permutation in made.codes[each["hash"]]:
            permutation.apply(entry, out)
            code += out[:2].tobytes()
        assert code.hex() == each["code"]
    for each in VECTORS["row_hash"]:
        chain = kkrt._Chain.of(made.rows, 1)
        chain.begin(np.array([each["index"]]), 0)
        for plane, block in enumerate(
            np.frombuffer(bytes.fromhex(each["row"]), dtype=np.uint64).reshape(4, 2)
        ):
            chain.absorb(plane, block)
        assert chain.state[:2].tobytes().hex() == each["value"]


def test_public_numbers_are_those_of_the_vectors():
    for each in VECTORS["shapes"]:
        sizes = {name: each.pop(name) for name in ("receiver_items", "sender_items", "values")}
        shape = Shape.of(*sizes.values(), Sizing())
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in each.items()}
        assert {name: getattr(shape, name) for name in each} == given


def test_the_transfers_of_the_vectors_give_their_keys():
    from protocols.match.base_ot import _keys

    given = VECTORS["base_ot"]
    for each in given["transfers"]:
        from protocols.match import base_ot
        from protocols.psi import group

        # Placed at its index among transfers that do not matter.
        count, ctx = each["index"] + 1, bytes.fromhex(VECTORS["ctx"])
        points = np.zeros((count, 2, 32), dtype=np.uint8)
        points[:] = np.frombuffer(group.BASE, dtype=np.uint8)
        points[-1] = [list(bytes.fromhex(point)) for point in each["points"]]
        scalar, reply = bytes.fromhex(given["answering_scalar"]), bytes.fromhex(given["reply"])
        for side in range(2):
            sides = np.full(count, side, dtype=np.intp)
            public = group.add(points[-1:, side], base_ot._shift(points[:, 1 - side], sides, ctx)[-1:])
            shared = np.repeat(group.power(public, scalar), count, axis=0)
            assert _keys(points, sides, shared, reply, ctx)[-1].tobytes().hex() == each["keys"][side]


# -- masks ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 16),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), min_size=1, max_size=60),
)
def test_masks_are_sorted_whatever_repeats_and_come_out_of_messages_as_they_went_in(size, words):
    low = (1 << 8 * (size - 8)) - 1
    prefixes = np.array([word for word, _ in words], dtype=np.uint64)
    rests = np.array([rest & low for _, rest in words], dtype=np.uint64)
    masks = Masks(prefixes, rests).sorted()
    ordered = list(zip(masks.prefixes.tolist(), masks.rests.tolist(), strict=True))
    assert ordered == sorted((word, rest & low) for word, rest in words)
    half = len(words) // 2
    bodies = [masks.body(0, half, size), masks.body(half, len(words), size)]
    assert len(b"".join(bodies)) == size * len(words)
    joined = Masks.joined([Masks.of(body, size) for body in bodies])
    assert (joined.prefixes == masks.prefixes).all()
    assert (joined.rests == masks.rests).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20),
)
def test_a_mask_is_found_only_as_a_whole_also_where_many_begin_alike(mine, theirs):
    def masks(pairs):
        columns = np.array(pairs, dtype=np.uint64).T.copy()
        return Masks(columns[0], columns[1])

    awaited = Awaited(masks(mine), np.arange(len(mine), dtype=np.uint32))
    found = awaited.found(masks(theirs).sorted())
    assert sorted(found.tolist()) == [at for at, mask in enumerate(mine) if mask in set(theirs)]


def test_masks_out_of_order_are_refused():
    awaited = Awaited(Masks(np.zeros(1, np.uint64), np.zeros(1, np.uint64)), np.zeros(1, np.uint32))
    with pytest.raises(ProtocolAborted) as refused:
        awaited.found(Masks(np.array([2, 1], np.uint64), np.zeros(2, np.uint64)))
    assert refused.value.code == "not-ascending"


def test_many_masks_that_begin_alike_are_not_walked_along():
    mine = Masks(np.array([5], np.uint64), np.array([7], np.uint64))
    awaited = Awaited(mine, np.zeros(1, np.uint32))

    def theirs(count, rest):
        return Masks(np.full(count, 5, np.uint64), np.full(count, rest, np.uint64))

    assert awaited.found(theirs(64, 0)).tolist() == []
    assert awaited.found(theirs(64, 7)).tolist() == [0]
    for rest in (0, 7):
        with pytest.raises(ProtocolAborted) as refused:
            awaited.found(theirs(65, rest))
        assert refused.value.code == "not-ascending"


# -- lists that do not fit -----------------------------------------------------------------------------------


def test_keys_longer_than_what_is_hashed_are_refused():
    with pytest.raises(InputError) as refused:
        joint().hashes(np.zeros(1, dtype="S33"))
    assert refused.value.code == "key-too-long"


def test_a_list_that_crowds_into_one_bucket_is_refused():
    made = joint()
    with pytest.raises(ProtocolAborted) as refused:
        kkrt.Bucketed(np.repeat(key_list([1]), 400), made, 4, 150)
    assert refused.value.code == "bucket-overflow"
    with pytest.raises(ProtocolAborted) as refused:
        Both([(1, 0)] * 4, [(1, [0])]).play()
    assert refused.value.code == "cuckoo-full"


def test_permutations_are_aes_128():
    # FIPS 197, appendix C.1.
    out = room(1)
    Permutation(bytes(range(16))).apply(
        np.frombuffer(bytes.fromhex("00112233445566778899aabbccddeeff"), dtype=np.uint64), out
    )
    assert out[:2].tobytes().hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"
