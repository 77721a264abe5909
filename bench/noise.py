"""How fast a node draws its noise: a million exact integers, beside numpy's rounded floats of the same width.

Every time counts from nothing: the tables are made again, too. The peer is no noise anyone may publish:
rounded floats have another distribution, and its generator is not a cryptographic one.
"""

import secrets
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.rows import Results, Row
from protocols.dp import exact, noise
from protocols.dp.mechanism import Budget, Noise, Vector, calibrate

VALUES: Final = 1_000_000
TURNS: Final = 5

RHO: Final = Budget("zcdp", Fraction(1, 100))
EPSILON: Final = Budget("pure-dp", Fraction(1, 10))


Draw = Callable[[Noise], npt.NDArray[np.int64]]


def measure(results: Results, *, long: bool) -> None:
    turns = TURNS * 5 if long else TURNS
    cells: list[tuple[str, Noise, str | None, Draw | None]] = [
        ("exact 1e6", _noise(VALUES, 1, RHO, 1), "numpy normal, rounded", _normal),
        ("laplace 1e6", _noise(VALUES, 1, EPSILON, 1), "numpy Laplace, rounded", _laplace),
        ("polya 1e6", _noise(VALUES, 1, EPSILON, 9), None, None),
        ("polya wide 1e6", _noise(VALUES, 10**6, EPSILON, 9), None, None),
        (f"opendp {exact.SMALL}", _noise(exact.SMALL, 1, RHO, 1), None, None),
    ]
    for what, ours, peer, other in cells:
        if not results.has(what):
            value = timed(ours, lambda noise: noise.draw(secrets.token_bytes), turns)
            results.add(Row(what, value, "s", peer, timed(ours, other, turns) if other else None))


def timed(ours: Noise, draw: Draw, turns: int) -> float:
    """Return the median seconds of a draw, its tables included, and check how wide it is."""
    seconds = []
    for _ in range(turns):
        for table in (noise.discrete_gaussian, noise.discrete_laplace, noise.polya, noise.poisson):
            table.cache_clear()
        started = time.perf_counter()
        values = draw(ours)
        seconds.append(time.perf_counter() - started)
        wanted = ours.variance * ours.scale**2 / ours.contributors
        # A variance of 16,384 values is within 15 % but once in thousands of millions of times.
        if values.shape != (ours.size,) or not 0.85 < values.var() / wanted < 1.15:
            raise SystemExit(f"{values.size} values of variance {values.var()}, not {ours.size} of {wanted}")
    return statistics.median(seconds)


def _noise(size: int, sensitivity: int, budget: Budget, honest: int) -> Noise:
    vector = Vector("cells", size, sensitivity, sensitivity**2)
    (noise,), _ = calibrate([vector], budget, honest=honest, contributors=honest)
    return noise


def _normal(ours: Noise) -> npt.NDArray[np.int64]:
    generator = np.random.default_rng()
    return np.rint(generator.normal(0, float(ours.spread) ** 0.5, ours.size)).astype(np.int64)


def _laplace(ours: Noise) -> npt.NDArray[np.int64]:
    generator = np.random.default_rng()
    return np.rint(generator.laplace(0, float(ours.spread), ours.size)).astype(np.int64)
