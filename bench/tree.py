"""How far off a geography's counts are once made consistent: England and Wales, 43,112 areas on four levels.

ρ = 0.1 in equal parts over the levels, exact noise, the mean of three fixed seeds. Three seeds are but three
draws of the total and 525 of the districts, so these figures scatter. Beside each stands what the estimate by
least squares is off on average, √(2/π) times its standard deviation, and the mean over many seeds.
"""

import csv
import gzip
import hashlib
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from math import pi, sqrt
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.rows import ROOT, Results, Row
from protocols.dp.mechanism import Budget, Noise, Vector, calibrate
from protocols.dp.noise import discrete_gaussian
from protocols.dp.tree import Estimate, Tree, estimate, totals

DATA: Final = ROOT.parent / "shared" / "data"
LEVELS: Final = ("total", "utla", "msoa", "lsoa")
RHO: Final = Budget("zcdp", Fraction(1, 10))
SEEDS: Final = range(1, 4)
MANY: Final = range(1, 101)

Ints = npt.NDArray[np.int64]


def measure(results: Results, *, long: bool) -> None:
    """Measure the mean absolute error at each level, and the time of one estimate."""
    tree, true = geography(DATA)
    noises = levels(tree)
    off, seconds = errors(tree, true, noises, SEEDS)
    many, _ = errors(tree, true, noises, range(1, 10 * len(MANY) + 1) if long else MANY)
    expected = [
        sqrt(2 / pi) * float(np.sqrt(each).mean()) for each in _estimate(tree, true, noises).variances
    ]
    for name, value, mean in zip(LEVELS, off.mean(0), expected, strict=True):
        results.add(Row(f"mae {name}", float(value), "persons", "expected of least squares", mean))
    for name, value, mean in zip(LEVELS, many.mean(0), expected, strict=True):
        what = f"mae {name}, {len(many)} seeds"
        results.add(Row(what, float(value), "persons", "expected of least squares", mean))
    results.add(Row("seconds", statistics.median(seconds), "s"))


def geography(data: Path) -> tuple[Tree, tuple[Ints, ...]]:
    """Return all → UTLA → MSOA (an LSOA's name without its last letter) → LSOA, and how many live in each.

    Raises:
        SystemExit: the files are not there.
    """
    if not data.is_dir():
        raise SystemExit(f"the geography is not there: {data}")
    with (data / "lsoa_population.csv").open(encoding="utf-8-sig", newline="") as file:
        population = {row["lsoacd"]: int(row["population"]) for row in csv.DictReader(file)}
    with gzip.open(data / "lsoa21_to_utla23.csv.gz", "rt", encoding="utf-8-sig", newline="") as file:
        areas = [(row["UTLA23CD"], row["LSOA21NM"][:-1], row["LSOA21CD"]) for row in csv.DictReader(file)]
    areas.sort()
    paths: list[tuple[str, ...]] = [()]
    parents = []
    for depth in (1, 2, 3):
        place = {path: number for number, path in enumerate(paths)}
        paths = sorted({area[:depth] for area in areas})
        parents.append(np.array([place[path[:-1]] for path in paths], np.int64))
    tree = Tree(tuple(parents))
    return tree, totals(tree, np.array([population[path[-1]] for path in paths], np.int64))


def levels(tree: Tree) -> tuple[Noise, ...]:
    """Return the noise of each level: one person is in one area of each."""
    vectors = [Vector(name, size, 1, 1) for name, size in zip(LEVELS, tree.sizes, strict=True)]
    noises, _ = calibrate(vectors, RHO, honest=1, contributors=1)
    return noises


def errors(
    tree: Tree, true: tuple[Ints, ...], noises: tuple[Noise, ...], seeds: range
) -> tuple[npt.NDArray[np.float64], list[float]]:
    """Return the mean absolute error by seed and level, and the seconds of each estimate.

    Raises:
        SystemExit: a table that does not add up, or has a count below zero.
    """
    off, seconds = [], []
    for seed in seeds:
        rand = _seeded(seed)
        noisy = tuple(
            level + discrete_gaussian(noise.spread).draw(noise.size, rand)
            for level, noise in zip(true, noises, strict=True)
        )
        started = time.perf_counter()
        counts = _estimate(tree, noisy, noises).counts
        seconds.append(time.perf_counter() - started)
        consistent = zip(counts, totals(tree, counts[-1]), strict=True)
        if min(level.min() for level in counts) < 0 or not all(np.array_equal(*each) for each in consistent):
            raise SystemExit("the table does not add up")
        off.append([np.abs(level - t).mean() for level, t in zip(counts, true, strict=True)])
    return np.array(off), seconds


def _estimate(tree: Tree, noisy: tuple[Ints, ...], noises: tuple[Noise, ...]) -> Estimate:
    return estimate(tree, noisy, [noise.variance for noise in noises])


def _seeded(seed: int) -> Callable[[int], bytes]:
    """Return random bytes that are the same in every run."""
    calls = iter(range(1 << 30))
    return lambda count: hashlib.shake_256(b"tree/%d/%d" % (seed, next(calls))).digest(count)
