"""The ristretto255 group (RFC 9496), many points at a time, through libsodium.

The only importer of `rbcl`, which unpacks libsodium's shared object into the temporary directory at import
and leaves it there; here it is loaded at first use and its file unlinked at once.

Points are n x 32 bytes of encodings, scalars 32 little-endian bytes below the group order. Calls go to
libsodium by address, one per point, from `WORKERS` threads: ctypes releases the interpreter lock for each,
and `map` over address ranges leaves less than a microsecond of Python per point.
"""

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from threading import Lock
from traceback import walk_tb
from types import TracebackType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError, ProtocolAborted
from protocols.party import Rand

POINT_BYTES: Final = 32
SCALAR_BYTES: Final = 32
UNIFORM_BYTES: Final = 64

ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""The prime order of the group."""

BASE: Final = bytes.fromhex("e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76")
"""Encoding of the generator."""

WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
"""Threads per call; set it before the first call to use fewer cores than the process may."""

_SMALL: Final = 64
"""Fewer points than this are not worth a thread."""

Points: TypeAlias = npt.NDArray[np.uint8]
"""n x 32 bytes, contiguous: encodings of points."""

_Call: TypeAlias = Callable[..., int]


@dataclass(frozen=True, slots=True)
class _Sodium:
    scalarmult: _Call  # (out, scalar, point) -> 0, or -1 if the point is no valid encoding or the identity
    from_hash: _Call  # (out, uniform) -> 0
    scalar_invert: _Call  # (out, scalar) -> 0
    scalar_mul: _Call  # (out, left, right)
    scalar_add: _Call  # (out, left, right)
    scalar_sub: _Call  # (out, left, right)
    base: _Call  # (out, scalar) -> 0, or -1 if the result is the identity
    add: _Call  # (out, left, right) -> 0, or -1 if either is no valid encoding
    subtract: _Call  # (out, left, right) -> the same


_loading = Lock()


@cache
def _loaded() -> _Sodium:
    try:
        from rbcl import _sodium as package  # the module that unpacks, loads and initialises
    except OSError as error:
        _unlink_leftover(error.__traceback__)
        raise InputError(
            f"libsodium did not load from the temporary directory ({type(error).__name__})",
            code="temp-not-executable",
            hint="point TMPDIR to a directory with 1 MB of space on a file system not mounted noexec",
        ) from error
    from rbcl._sodium import lib_path

    # Mapped pages stay valid without the name. Only this import's file: others belong to other processes.
    os.unlink(lib_path)  # noqa: PTH108  # a plain string path from rbcl

    def call(name: str, arguments: int, result: Any = ctypes.c_int) -> _Call:
        function = package[name]  # a new object, so that rbcl's own keeps its argument types
        function.argtypes = [ctypes.c_void_p] * arguments
        function.restype = result
        return function  # type: ignore[no-any-return]  # ctypes has no types for foreign functions

    return _Sodium(
        scalarmult=call("crypto_scalarmult_ristretto255", 3),
        from_hash=call("crypto_core_ristretto255_from_hash", 2),
        scalar_invert=call("crypto_core_ristretto255_scalar_invert", 2),
        scalar_mul=call("crypto_core_ristretto255_scalar_mul", 3, None),
        scalar_add=call("crypto_core_ristretto255_scalar_add", 3, None),
        scalar_sub=call("crypto_core_ristretto255_scalar_sub", 3, None),
        base=call("crypto_scalarmult_ristretto255_base", 2),
        add=call("crypto_core_ristretto255_add", 3),
        subtract=call("crypto_core_ristretto255_sub", 3),
    )


def _unlink_leftover(trace: TracebackType | None) -> None:
    """Unlink the file a failed import left; its name stands only in that module's frame."""
    for frame, _ in walk_tb(trace):
        path = frame.f_globals.get("lib_path")
        if frame.f_globals.get("__name__") == "rbcl._sodium" and path is not None:
            try:
                os.unlink(path)  # noqa: PTH108  # a plain string path from rbcl
            except FileNotFoundError:
                pass  # it could not even be written


def load() -> None:
    """Load libsodium if that has not happened yet. `doctor` calls this as its check.

    Raises:
        InputError: `temp-not-executable`, the temporary directory is full, read-only or mounted noexec.
    """
    _sodium()


def _sodium() -> _Sodium:
    with _loading:
        return _loaded()


def _spans(count: int) -> Iterator[tuple[int, int]]:
    workers = WORKERS if count >= _SMALL else 1
    step = -(-count // workers) if count else 0
    for start in range(0, count, step or 1):
        yield start, min(start + step, count)


def _each(work: Callable[[int, int], int], count: int) -> int:
    """Run `work(start, stop)` over all of `count`, on all cores, and add up what it returns."""
    spans = list(_spans(count))
    if len(spans) == 1:
        return work(*spans[0])
    if not spans:
        return 0
    with ThreadPoolExecutor(len(spans)) as pool:
        return sum(pool.map(lambda span: work(*span), spans))


def points(body: bytes) -> Points:
    """Return the points in a message body, not yet checked beyond its length; `power` checks each.

    Raises:
        ProtocolAborted: not a whole number of points, or none.
    """
    if not body or len(body) % POINT_BYTES:
        raise ProtocolAborted(
            f"body of {len(body)} bytes, expected one point or more of {POINT_BYTES} bytes", code="bad-length"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(-1, POINT_BYTES)


def power(base: Points, scalar: bytes) -> Points:
    """Return each point raised to `scalar`. Strict: this is where every received point is decoded.

    libsodium refuses field elements that are negative or not below p, encodings that decode to no point, and
    results that are the identity, which for a scalar between 0 and the order means that the point was the
    identity. Release 1.0.18 ignores the top bit, which RFC 9496 wants to be zero, so that is checked here.
    Constant time per point.

    Args:
        base: n x 32.
        scalar: 32 bytes, not zero modulo the order.

    Raises:
        ProtocolAborted: `bad-point`, a point is invalid or the identity.
    """
    exponent = np.frombuffer(scalar, dtype=np.uint8)
    if exponent.size != SCALAR_BYTES:
        raise ValueError(f"scalar of {exponent.size} bytes, expected {SCALAR_BYTES}")
    return _powers(base, exponent, 0)


def power_each(base: Points, scalars: npt.NDArray[np.uint8]) -> Points:
    """Return each point raised to a scalar of its own; else as `power`.

    Args:
        base: n x 32.
        scalars: n x 32, none zero modulo the order.

    Raises:
        ProtocolAborted: `bad-point`, a point is invalid or the identity.
    """
    if scalars.shape != (len(base), SCALAR_BYTES):
        raise ValueError(f"scalars of shape {scalars.shape}, expected one of 32 bytes for each point")
    return _powers(base, np.ascontiguousarray(scalars), SCALAR_BYTES)


def _powers(base: Points, scalars: npt.NDArray[np.uint8], stride: int) -> Points:
    multiply = _sodium().scalarmult
    source = np.ascontiguousarray(base)
    result = np.empty_like(source)
    at, to, by = source.ctypes.data, result.ctypes.data, scalars.ctypes.data

    def work(start: int, stop: int) -> int:
        first, end = start * POINT_BYTES, stop * POINT_BYTES
        return sum(
            map(
                multiply,
                range(to + first, to + end, POINT_BYTES),
                range(by + start * stride, by + stop * stride, stride) if stride else repeat(by),
                range(at + first, at + end, POINT_BYTES),
            )
        )

    if bool((source[:, -1] & 0x80).any()) or _each(work, len(source)):
        raise bad_point()
    return result


def base_power(scalars: npt.NDArray[np.uint8]) -> Points:
    """Return the generator raised to each of n x 32 bytes of scalars, none zero modulo the order."""
    raise_base = _sodium().base
    source = np.ascontiguousarray(scalars)
    result = np.empty((len(source), POINT_BYTES), dtype=np.uint8)
    at, to = source.ctypes.data, result.ctypes.data

    def work(start: int, stop: int) -> int:
        first, end = start * POINT_BYTES, stop * POINT_BYTES
        return sum(
            map(
                raise_base,
                range(to + first, to + end, POINT_BYTES),
                range(at + first, at + end, POINT_BYTES),
            )
        )

    if _each(work, len(source)):
        raise ValueError("a scalar is zero modulo the order")
    return result


def add(left: Points, right: Points) -> Points:
    """Return the sum of each pair of points (n x 32 each); the identity is a possible result.

    Raises:
        ProtocolAborted: `bad-point`, a point is no canonical encoding.
    """
    return _pairs(_sodium().add, left, right)


def subtract(left: Points, right: Points) -> Points:
    """Return the difference of each pair of points (n x 32 each); the identity is a possible result.

    Raises:
        ProtocolAborted: `bad-point`, a point is no canonical encoding.
    """
    return _pairs(_sodium().subtract, left, right)


def _pairs(call: _Call, left: Points, right: Points) -> Points:
    if left.shape != right.shape:
        raise ValueError(f"{len(left)} and {len(right)} points, expected as many")
    first, second = np.ascontiguousarray(left), np.ascontiguousarray(right)
    result = np.empty_like(first)
    a, b, to = first.ctypes.data, second.ctypes.data, result.ctypes.data

    def work(start: int, stop: int) -> int:
        span = start * POINT_BYTES, stop * POINT_BYTES
        return sum(map(call, *(range(where + span[0], where + span[1], POINT_BYTES) for where in (to, a, b))))

    if bool(((first[:, -1] | second[:, -1]) & 0x80).any()) or _each(work, len(first)):
        raise bad_point()
    return result


def bad_point() -> ProtocolAborted:
    """Return the error of a point that is none, or the identity."""
    # One for each time: an exception keeps the frames that it passed, which hold scalars.
    return ProtocolAborted(
        "a received point is not the canonical encoding of a group element, or is the identity",
        code="bad-point",
        hint="the sender runs another version, or the message was altered before it was sealed",
    )


def from_uniform(uniform: npt.NDArray[np.uint8]) -> Points:
    """Return the point of each 64 uniform bytes: the element derivation of RFC 9496, section 4.3.4."""
    derive = _sodium().from_hash
    source = np.ascontiguousarray(uniform)
    result = np.empty((len(source), POINT_BYTES), dtype=np.uint8)
    _each(_derive(derive, source.ctypes.data, result.ctypes.data), len(source))
    return result


def _derive(derive: _Call, at: int, to: int) -> Callable[[int, int], int]:
    def work(start: int, stop: int) -> int:
        return sum(
            map(
                derive,
                range(to + start * POINT_BYTES, to + stop * POINT_BYTES, POINT_BYTES),
                range(at + start * UNIFORM_BYTES, at + stop * UNIFORM_BYTES, UNIFORM_BYTES),
            )
        )

    return work


def hash_to_group(items: Sequence[bytes], dst: bytes) -> Points:
    """Return the group element of each item: HashToGroup of RFC 9497, section 4.1 (ristretto255-SHA512).

    The discrete logarithm of each to any other is unknown. expand_message_xmd of RFC 9380, section 5.3.1,
    with SHA-512 and 64 bytes out is two hash calls; its first 128-byte block is zero and is absorbed once.

    Args:
        items: any byte strings.
        dst: domain separation tag; longer than 255 bytes it is hashed first, as section 5.3.3 says.

    Raises:
        ValueError: an empty tag.
    """
    if not dst:
        raise ValueError("domain separation tag is empty")
    if len(dst) > 255:
        dst = hashlib.sha512(b"H2C-OVERSIZE-DST-" + dst).digest()
    derive = _sodium().from_hash
    dst_prime = dst + bytes([len(dst)])
    result = np.empty((len(items), POINT_BYTES), dtype=np.uint8)
    to = result.ctypes.data

    def work(start: int, stop: int) -> int:
        uniform = b"".join(expand(items[start:stop], dst_prime))
        at = np.frombuffer(uniform, dtype=np.uint8).ctypes.data
        return _derive(derive, at, to + start * POINT_BYTES)(0, stop - start)

    _each(work, len(items))
    return result


def expand(items: Iterable[bytes], dst_prime: bytes) -> Iterator[bytes]:
    """Yield 64 uniform bytes for each item: expand_message_xmd of RFC 9380, section 5.3.1, with SHA-512.

    SHA-512(SHA-512(Z_pad ‖ item ‖ 64 ‖ 0 ‖ DST') ‖ 1 ‖ DST').

    Args:
        items: any byte strings.
        dst_prime: DST': the domain separation tag, at most 255 bytes, and its length as one byte.
    """
    sha512 = hashlib.sha512
    absorbed = sha512(bytes(128))
    tail, second = UNIFORM_BYTES.to_bytes(2, "big") + b"\0" + dst_prime, b"\1" + dst_prime
    for item in items:
        first = absorbed.copy()
        first.update(item + tail)
        yield sha512(first.digest() + second).digest()


def random_scalar(rand: Rand) -> bytes:
    """Return a scalar uniform in 1..order-1, up to 2^-259 of bias."""
    while True:
        value = int.from_bytes(rand(UNIFORM_BYTES), "little") % ORDER
        if value:
            return value.to_bytes(SCALAR_BYTES, "little")


def invert(scalar: bytes) -> bytes:
    """Return 1/scalar modulo the order, in constant time.

    Raises:
        ValueError: the scalar is zero.
    """
    out = ctypes.create_string_buffer(SCALAR_BYTES)
    source = ctypes.create_string_buffer(scalar, SCALAR_BYTES)
    if _sodium().scalar_invert(ctypes.addressof(out), ctypes.addressof(source)):
        raise ValueError("zero has no inverse")
    return out.raw


def multiply(left: bytes, right: bytes) -> bytes:
    """Return left x right modulo the order, in constant time."""
    return _scalars(_sodium().scalar_mul, left, right)


def scalar_sum(left: bytes, right: bytes) -> bytes:
    """Return left + right modulo the order, in constant time."""
    return _scalars(_sodium().scalar_add, left, right)


def scalar_difference(left: bytes, right: bytes) -> bytes:
    """Return left - right modulo the order, in constant time."""
    return _scalars(_sodium().scalar_sub, left, right)


def _scalars(call: _Call, left: bytes, right: bytes) -> bytes:
    out = ctypes.create_string_buffer(SCALAR_BYTES)
    a = ctypes.create_string_buffer(left, SCALAR_BYTES)
    b = ctypes.create_string_buffer(right, SCALAR_BYTES)
    call(ctypes.addressof(out), ctypes.addressof(a), ctypes.addressof(b))
    return out.raw


def permutation(count: int, rand: Rand) -> npt.NDArray[np.uint32]:
    """Return a uniformly random order of 0..count-1.

    Sorts `count` random 64-bit words and draws them all again if two are equal (probability below
    count^2/2^65): given that all differ, every order is exactly equally likely.

    Raises:
        ValueError: more than 2^32 items.
    """
    if count > 1 << 32:
        raise ValueError(f"{count} items, at most 2^32")
    while True:
        words = np.frombuffer(rand(8 * count), dtype=np.uint64)
        order = np.argsort(words, kind="stable")
        drawn = words[order]
        if count < 2 or bool((drawn[1:] != drawn[:-1]).all()):
            return order.astype(np.uint32)
