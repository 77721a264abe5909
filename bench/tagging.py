"""How fast lists are tagged through all nodes, beside a bare loop of the same libsodium calls.

The path is scenario 1's: five list owners, two of them key-holders, each a process of its own that plays the
protocol's `Tagging` over sealed frames, TLS and the coordinator's relay; from the first blinded chunk to the
last list back. The bare loop hashes as many keys to the group and raises as many points, one thread per core,
nothing else. They take turns; the turn of median ratio counts.
"""

import hashlib
import secrets
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.rig.nodes import Nodes, running
from bench.rig.turns import take_turns
from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS
from protocols.ids import Role
from protocols.party import Finished, Incoming, Party, Step, Waiting
from protocols.psi import group
from protocols.psi.tagging import CHUNK_POINTS, Plan, Tagging

KEYS: Final = 4 * CHUNK_POINTS
"""Keys of each list."""

TURNS: Final = 5

OWNERS: Final = (Role("register"), *(Role(f"source-{n}") for n in range(1, 5)))
KEY_HOLDERS: Final = OWNERS[:2]
POWERS: Final = sum(3 if owner in KEY_HOLDERS else 4 for owner in OWNERS)
"""Exponentiations for a key of each list: blind, raise, raise, unblind; a key-holder's own skips one."""

_SEATS: Final = dict(zip(OWNERS, DEPARTMENTS, strict=False))
_PAD: Final = bytes(40)
"""As long as what HashToGroup adds to an item, about."""


def measure(results: Results, *, long: bool) -> None:
    """Measure `path` in exponentiations per second."""
    if results.has("path"):
        return
    keys = KEYS * 8 if long else KEYS
    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
        ours, bare = compare(Path(folder), keys, TURNS)
    peer = f"bare loop of the same libsodium calls, {group.WORKERS} threads"
    results.add(Row("path", ours, "exponentiations/s", peer, bare))


def compare(folder: Path, keys: int, turns: int) -> tuple[float, float]:
    """Return exponentiations per second through the nodes and bare."""
    with running(folder, tuple(_SEATS.values())) as (nodes, _):
        _path(nodes, 1)  # opens every connection
        return take_turns(lambda: _path(nodes, keys), lambda: bare_rate(keys), turns)


def _path(nodes: Nodes, keys: int) -> float:
    played = nodes.play(_SEATS, f"{__name__}:party", {"keys": keys}).values()
    return POWERS * keys / (max(p.ended for p in played) - min(p.started for p in played))


def party(role: Role, params: dict[str, Any]) -> Party:
    """Return a list owner; half of each list is on the lists of its neighbours, too."""
    return ListOwner(role, params["keys"])


def keys_of(role: Role, count: int) -> npt.NDArray[np.bytes_]:
    """Return distinct typed keys, resident IDs by their form."""
    first = OWNERS.index(role) * count // 2
    return np.array([b"RIC:990101%012d" % number for number in range(first, first + count)])


class ListOwner:
    """Has its own list tagged and serves as key-holder; done when nothing is left to do."""

    def __init__(self, role: Role, keys: int) -> None:
        """Bring that many keys; so does everyone."""
        plan = Plan(OWNERS, KEY_HOLDERS, (keys,) * len(OWNERS), bytes(32))
        self.tagging = Tagging(plan, role, keys_of(role, keys), secrets.token_bytes)

    def start(self) -> Step:
        """Send the first window."""
        return Waiting(self.tagging.start())

    def receive(self, message: Incoming) -> Step:
        """Take a chunk and send what follows."""
        following = self.tagging.receive(message)
        if self.tagging.tagged is None or self.tagging.serving:
            return Waiting(following)
        return Finished(following, (self.tagging.tagged,))


# -- the peer ---------------------------------------------------------------------------------------------


def bare_rate(keys: int) -> float:
    """Return exponentiations per second of a loop that does a path's group operations and nothing else."""
    group.load()
    lists = [keys_of(owner, keys).tolist() for owner in OWNERS]
    share = -(-keys // group.WORKERS)

    def part(start: int) -> int:
        return sum(
            _raised(items[start : start + share], 3 if owner in KEY_HOLDERS else 4)
            for owner, items in zip(OWNERS, lists, strict=True)
        )

    started = time.perf_counter()
    with ThreadPoolExecutor(group.WORKERS) as threads:
        powers = sum(threads.map(part, range(0, keys, share)))
    return powers / (time.perf_counter() - started)


def _raised(items: list[bytes], times: int) -> int:
    """Hash items to the group, raise all points so many times, and return the exponentiations done."""
    sodium = group._sodium()  # noqa: SLF001  # the functions themselves, without what `group` does around them
    sha512, count = hashlib.sha512, len(items)
    uniform = np.frombuffer(
        b"".join(sha512(sha512(_PAD + item).digest() + _PAD).digest() for item in items), dtype=np.uint8
    )
    points = np.empty((2, count, group.POINT_BYTES), dtype=np.uint8)
    scalar = np.frombuffer(group.random_scalar(secrets.token_bytes), dtype=np.uint8)
    here, there = (
        range(at, at + count * group.POINT_BYTES, group.POINT_BYTES)
        for at in (points[0].ctypes.data, points[1].ctypes.data)
    )
    source = range(
        uniform.ctypes.data, uniform.ctypes.data + count * group.UNIFORM_BYTES, group.UNIFORM_BYTES
    )
    failed = sum(map(sodium.from_hash, here, source))
    for _ in range(times):
        failed += sum(map(sodium.scalarmult, there, repeat(scalar.ctypes.data), here))
        here, there = there, here
    if failed:
        raise RuntimeError(f"{failed} points were refused")
    return times * count
