"""What a secure sum costs beyond the calls it cannot do without: 20 nodes, 1e6 cells, both modes.

One process plays every node in turn, so seconds are those of one core; divided by 20 they are a node's share,
in which the aggregator's and the key-holder's work is spread over all. The peers do nothing but the library
calls: with BFV, encrypt, write, read, add and decrypt as many ciphertexts through TenSEAL, from lists that
are there already; in mask mode, as many AES-CTR streams and numpy additions. Every run is checked against
the plain sum.
"""

import secrets
import time
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bench.rig.turns import take_turns
from bench.rows import Results, Row
from protocols.ids import Role
from protocols.party import Party, Sent, run
from protocols.sums import bfv
from protocols.sums.parties import Aggregator, Contributor
from protocols.sums.plan import CHECKS, Mode, Sums

CELLS: Final = 1_000_000
NODES: Final = 20
BOUND: Final = 1 << 33
"""Of a count of persons in 20 departments, about: one limb."""

TURNS: Final = 3

_SOURCES: Final = tuple(Role(f"source-{number}") for number in range(1, NODES + 1))
_AGGREGATOR: Final = Role("aggregator")


def measure(results: Results, *, long: bool) -> None:
    """Measure both modes in seconds and megabytes per node."""
    turns = TURNS if not long else 3 * TURNS
    vector = cells(CELLS)
    modes_: tuple[tuple[str, Mode], ...] = (("he", "bfv"), ("mask", "mask"))
    for word, mode in modes_:
        sent: list[int] = []
        raw_calls = raw_he if mode == "bfv" else raw_mask
        ours, raw = take_turns(partial(path, mode, vector, sent), partial(raw_calls, vector), turns)
        peer = "the same TenSEAL calls" if mode == "bfv" else "as much AES-CTR and numpy addition"
        results.add(Row(f"{word} 1e6 x {NODES}", ours / NODES, "s/node", peer, raw / NODES))
        results.add(Row(f"{word} 1e6 x {NODES}, sent", sent[0] / NODES / 1e6, "MB/node"))


def cells(count: int) -> npt.NDArray[np.int64]:
    """Return a table of counts."""
    return np.random.Generator(np.random.Philox(1)).integers(0, 10_000, count)


def path(mode: Mode, vector: npt.NDArray[np.int64], sent: list[int]) -> float:
    """Play the whole protocol and return its seconds; put the bytes of all messages into `sent`.

    Raises:
        SystemExit: the total is not the plain sum.
    """
    plan = Sums(_SOURCES, _AGGREGATOR, _SOURCES[0], len(vector), BOUND, mode, bytes(32))
    total_bytes = 0

    def count(message: Sent) -> None:
        nonlocal total_bytes
        total_bytes += len(message.body)

    started = time.perf_counter()
    parties: dict[Role, Party] = {
        source: Contributor(plan, source, vector, secrets.token_bytes) for source in _SOURCES
    }
    parties[_AGGREGATOR] = Aggregator(plan)
    totals = run(parties, observe=count)[plan.key_holder]
    seconds = time.perf_counter() - started
    if not np.array_equal(totals, NODES * vector):
        raise SystemExit("the totals are not the plain sums")
    sent[:] = [total_bytes]
    return seconds


def raw_he(vector: npt.NDArray[np.int64]) -> float:
    """Return the seconds of the TenSEAL calls that a sum needs, and of nothing else.

    Masked words take every value below the modulus, so these do, too.
    """
    library = bfv._library()  # noqa: SLF001  # the calls themselves
    context = bfv._fresh()  # noqa: SLF001
    secret = context.secret_key()
    step = bfv.DEGREE - CHECKS
    drawn = np.random.Generator(np.random.Philox(2))
    blocks = [drawn.integers(0, bfv.PRIME, bfv.DEGREE).tolist() for _ in range(0, len(vector), step)]
    started = time.perf_counter()
    sums: list[object] = [None] * len(blocks)
    for _ in range(NODES):
        for place, block in enumerate(blocks):
            written = library.BFVVector(context, block).serialize()
            read = library.BFVVector(context, written)
            sums[place] = read if sums[place] is None else sums[place].add_(read)  # type: ignore[attr-defined]
    for total in sums:
        library.BFVVector(context, total.serialize()).decrypt(secret)  # type: ignore[attr-defined]
    return time.perf_counter() - started


def raw_mask(vector: npt.NDArray[np.int64]) -> float:
    """Return the seconds of the AES-CTR streams and additions that a sum needs, and of nothing else.

    Of each node one stream for each other node and one for the key-holder, and one more of each node at the
    key-holder; an addition for each stream, and one of each node's vector at the aggregator.
    """
    words = vector.view(np.uint64).copy()
    step = 1 << 14  # words that stay in the cache
    zeros, block = bytes(8 * step), bytearray(8 * step + 15)
    stream = np.frombuffer(block, dtype=np.uint64, count=step)
    cipher = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    starts = range(0, len(words), step)
    started = time.perf_counter()
    for _ in range(NODES):
        for start in starts:
            piece = words[start : start + step]
            for _ in range(NODES + 1):
                cipher.update_into(zeros[: 8 * len(piece)] if len(piece) < step else zeros, block)
                np.add(piece, stream[: len(piece)], out=piece)
            np.add(piece, stream[: len(piece)], out=piece)
    return time.perf_counter() - started
