"""Histogram gradient boosting over sums of gradients, second derivatives and counts.

`greedy`: trees grow level by level; a round sums, for each node and each code of each feature, the rows'
gradients, second derivatives and number, and the best split is found from the sums (Chen and Guestrin 2016,
"XGBoost", KDD). `random`: splits are drawn from a public seed before any data is looked at, and a round
sums what reaches the leaves of a batch of trees (Maddock, Cormode, Wang, Maple and Jha 2022, "Federated
Boosted Decision Trees with Differential Privacy", CCS, arXiv:2210.02910: totally random splits, features in
turn, batches). Only `random` is fit for noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import isqrt
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.training.recipe import (
    CHUNK,
    GRID_BITS,
    UNBOUNDED,
    Arrays,
    Layout,
    bad_state,
    checked,
    expect,
    gaussian,
    sigmoid,
    within,
)
from protocols.training.schema import Floats, Ints, Rows, Schema

LEAF_BITS: Final = 20
"""Leaves are whole numbers of 2^-20, so that scores are exact sums."""

CURVE_WEIGHT: Final = 3.25
"""Second derivatives count so much in a vector without lengthening it: g² + (c·h)² ≤ 1 for c ≤ 3.33.

With p the chance and y = 0, g = p and h = p(1 - p): p² + c²p²(1 - p)² ≤ 1 for all p if c² is at most
(1 + p)/(p²(1 - p)), which is least at p = (√5 - 1)/2: (11 + 5√5)/2 = 3.33². With y = 1 it is the same for
1 - p.
"""

_UNIT: Final = 1 << GRID_BITS
_DOMAIN: Final = b"minshu/train-boost/1"

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Trees:
    """State of `Boost`: t trees of depth D, each a complete binary tree in the order of a heap.

    Attributes:
        round: rounds so far.
        features: t × (2^D - 1), the feature that a node looks at; -1 where all go left.
        right: t × (2^D - 1) × widest feature: which codes go right.
        leaves: t × 2^D whole numbers of 2^-`LEAF_BITS`.
        parents: k × codes × 3, what the growing tree's last level summed up for each of its k nodes, in real
            units: gradients, second derivatives and rows; k is 0 where the next round begins a tree.
        level: of the growing tree that the next round is about.
    """

    round: int
    features: npt.NDArray[np.int16]
    right: Right
    leaves: Ints
    parents: Floats
    level: int


@dataclass(frozen=True)
class Boost:
    """The recipe `boost`.

    Attributes:
        schema: coded features only.
        mode: `greedy` without noise, `random` with or without.
        trees: how many.
        depth: D, splits from root to leaf.
        step: part of a leaf's value that counts.
        ridge: λ, added to a leaf's second derivatives.
        largest_leaf: a leaf's value is cut to it before `step`.
        fewest: rows that each side of a split has at least (`greedy`).
        batch: trees of one round, which all look at the same gradients (`random`); their mean counts.
        per_tree: features that a random tree chooses splits among: 1 takes them in turn, 0 means all.
        rows_per_unit: rows one unit has at most.
        seed: of random splits, public.

    Raises:
        InputError: `bad-params`.
    """

    schema: Schema
    mode: Literal["greedy", "random"] = "greedy"
    trees: int = 60
    depth: int = 4
    step: float = 0.2
    ridge: float = 1.0
    largest_leaf: float = 4.0
    fewest: int = 20
    batch: int = 1
    per_tree: int = 1
    rows_per_unit: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.schema.amounts or not (
            self.mode in ("greedy", "random")
            and 1 <= self.trees <= 10_000
            and 1 <= self.depth <= 8
            and 0 < self.step <= 64
            and 0 <= self.ridge <= 1 << 20
            and 0 < self.largest_leaf <= 64
            and 1 <= self.fewest <= 1 << 20
            and 1 <= self.batch <= (1 if self.mode == "greedy" else 256)
            and self.trees % self.batch == 0
            and 0 <= self.per_tree <= 1
            and 1 <= self.rows_per_unit <= 1 << 10
        ):
            raise InputError(
                "amounts among the features, or trees, depth, step, ridge, leaves or batches that cannot be",
                code="bad-params",
                hint="cut amounts into bins; give whole batches of trees, of 1 tree in greedy mode",
            )

    @cached_property
    def rounds(self) -> int:
        """Rounds: one for each batch, or for each level of each tree."""
        return self.trees // self.batch if self.mode == "random" else self.trees * self.depth

    @cached_property
    def _codes(self) -> int:
        return int(self.schema.offsets[-1])

    @cached_property
    def _widest(self) -> int:
        return max(self.schema.widths)

    def start(self) -> Trees:
        """Return the state before the first round: no tree."""
        nodes = (1 << self.depth) - 1
        return Trees(
            0,
            np.zeros((0, nodes), np.int16),
            np.zeros((0, nodes, self._widest), np.bool_),
            np.zeros((0, nodes + 1), np.int64),
            self._none,
            0,
        )

    def layout(self, state: Trees) -> Layout | None:
        """Return what the next round's vector is."""
        if state.round >= self.rounds:
            return None
        if self.mode == "random":
            # A row is in one leaf of each tree: its part of the vector is (g, c·h) once for each tree.
            bound = isqrt(self.batch * _UNIT**2 - 1) + 1
            return Layout(gaussian(self.batch * 2 << self.depth, bound, self.rows_per_unit), _UNIT)
        # At the root all rows count; below, the left child of each node, since right is the rest.
        nodes = 1 << max(state.level - 1, 0)
        bound = (isqrt(2 * len(self.schema.coded) - 1) + 1) * _UNIT
        return Layout(gaussian(nodes * self._codes * 3, bound, self.rows_per_unit), _UNIT)

    def contribute(self, state: Trees, rows: Rows) -> Ints:
        """Return sums over rows: leaf by leaf (`random`), or node by node and code by code (`greedy`)."""
        margins = self.scores(state, rows)
        drawn = self._drawn(state.round) if self.mode == "random" else []
        nodes = 1 << max(state.level - 1, 0)
        leaves = np.zeros((len(drawn), 2, 1 << self.depth), np.int64)
        found = np.zeros((3, nodes, self._codes), np.int64)
        for span, some in rows.padded(CHUNK):
            counts = np.arange(CHUNK) < span.stop - span.start
            scored = np.zeros(CHUNK)
            scored[counts] = margins[span]
            first, second = _derivatives(scored, some.labels)
            if self.mode == "random":
                for sums, (features, right) in zip(leaves, drawn, strict=True):
                    leaf = self._reached(features, right, some, self.depth)
                    for part, values in enumerate((first, second)):
                        sums[part] += _sums(leaf, values * counts, 1 << self.depth)
                continue
            reached = np.zeros(CHUNK, np.int64)
            if state.level:
                reached = self._reached(state.features[-1], state.right[-1], some, state.level)
                counts &= reached % 2 == 0
                reached //= 2
            for column, (begin, width) in enumerate(
                zip(self.schema.offsets[:-1].tolist(), self.schema.widths, strict=True)
            ):
                cells = reached * width + some.codes[:, column]
                for part, values in enumerate((first, second, np.full(CHUNK, _UNIT))):
                    sums = _sums(cells, values * counts, nodes * width)
                    found[part, :, begin : begin + width] += sums.reshape(nodes, width)
        return (leaves if self.mode == "random" else found).reshape(-1)

    def advance(self, state: Trees, total: Floats, rows: int) -> Trees:  # noqa: ARG002  # leaves count
        """Return the next state: a batch of trees more, or a level more of the growing one."""
        layout = self.layout(state)
        assert layout is not None
        total = checked(total, layout.vector.size)
        return self._batch(state, total) if self.mode == "random" else self._level(state, total)

    def scores(self, state: Trees, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row, of finished trees."""
        done = len(state.leaves) - (state.level > 0)
        trees = state.features[:done], state.right[:done], state.leaves[:done]
        known = rows.memo.get("boost")
        total, first = np.zeros(len(rows), np.int64), 0
        if known and all(map(_begins, trees, known[0])):
            total, first = known[1].copy(), len(known[0][2])
        for span, some in rows.padded(CHUNK):
            for features, right, leaves in zip(*(part[first:] for part in trees), strict=True):
                more = leaves[self._reached(features, right, some, self.depth)]
                total[span] += more[: span.stop - span.start]
        rows.memo["boost"] = trees, total
        exact: Floats = total / (1 << LEAF_BITS)
        return exact

    def arrays(self, state: Trees) -> Arrays:
        """Return the state as named arrays."""
        return {
            "round": np.array([state.round, state.level], np.int64),
            "features": state.features,
            "right": state.right,
            "leaves": state.leaves,
            "parents": state.parents,
        }

    def restore(self, arrays: Arrays) -> Trees:
        """Return the state that `arrays` was made of.

        Raises:
            DecodeError: `bad-state`.
        """
        # (1) The round says how many trees there are and at which level the last one is.
        numbers = arrays.get("round", np.zeros(0))
        if numbers.shape != (2,) or numbers.dtype != np.int64 or not 0 <= numbers[0] <= self.rounds:
            raise bad_state("a state of a round that no run has")
        whole = int(numbers[0])
        done, level = (whole * self.batch, 0) if self.mode == "random" else divmod(whole, self.depth)
        count, nodes = done + (level > 0), (1 << self.depth) - 1
        expect(
            arrays,
            {
                "round": ((2,), "int64"),
                "features": ((count, nodes), "int16"),
                "right": ((count, nodes, self._widest), "bool"),
                "leaves": ((count, nodes + 1), "int64"),
                "parents": (((1 << level) >> 1, self._codes, 3), "float64"),
            },
        )
        features, right, leaves = arrays["features"], arrays["right"], arrays["leaves"]
        # (2) Numbers are such as `advance` makes: a node looks at a feature there is, or lets all go left.
        most = self.step * self.largest_leaf / self.batch * (1 << LEAF_BITS) + 1
        if not (
            numbers[1] == level
            and (not count or (int(features.min()) >= -1 and int(features.max()) < len(self.schema.coded)))
            and not right[features < 0].any()
            and within(leaves, most)
            and not leaves[done:].any()
            and within(arrays["parents"], UNBOUNDED)
        ):
            raise bad_state("trees with splits, leaves or sums that no run comes to")
        return Trees(whole, features, right, leaves, arrays["parents"], level)

    # -- paths

    def _reached(self, features: npt.NDArray[np.int16], right: Right, rows: Rows, levels: int) -> Ints:
        """Return which node of that level each row reaches, counted from the left."""
        place = np.zeros(len(rows), np.int64)
        span = np.arange(len(rows))
        for level in range(levels):
            node = place + ((1 << level) - 1)
            column = np.maximum(features[node], 0)
            place = 2 * place + right[node, rows.codes[span, column]]
        return place

    # -- random trees

    def _batch(self, state: Trees, total: Floats) -> Trees:
        leaves = 1 << self.depth
        drawn = self._drawn(state.round)
        values = []
        for first, second in total.reshape(self.batch, 2, leaves) / _UNIT:
            curve = np.maximum(second / CURVE_WEIGHT, 0) + self.ridge
            values.append(self._leaf(first, curve) / self.batch)
        return Trees(
            state.round + 1,
            np.concatenate((state.features, [features for features, _ in drawn])),
            np.concatenate((state.right, [right for _, right in drawn])),
            np.concatenate((state.leaves, np.rint(np.array(values) * (1 << LEAF_BITS)).astype(np.int64))),
            state.parents,
            0,
        )

    def _drawn(self, number: int) -> list[tuple[npt.NDArray[np.int16], Right]]:
        """Return the splits of a round's trees, which anybody draws alike from the seed."""
        return [self._random_tree(number * self.batch + tree) for tree in range(self.batch)]

    def _random_tree(self, tree: int) -> tuple[npt.NDArray[np.int16], Right]:
        nodes = (1 << self.depth) - 1
        features = np.full(nodes, -1, np.int16)
        right = np.zeros((nodes, self._widest), np.bool_)
        draw = _Draw(self.seed, tree)
        count = len(self.schema.coded)
        # What can still reach a node, feature by feature: a split of what cannot would be none.
        open_codes: list[list[list[int]]] = [[[*range(width)] for width in self.schema.widths]]
        for node in range(nodes):
            codes = open_codes[node]
            feature = tree % count if self.per_tree else draw.below(count)
            here = codes[feature]
            goes: list[int] = []
            if len(here) > 1:
                if self.schema.coded[feature].ordered:
                    goes = here[1 + draw.below(len(here) - 1) :]
                else:
                    goes = draw.part(here)
                features[node] = feature
                right[node, goes] = True
            stays = [code for code in here if code not in goes]
            open_codes.extend([*codes[:feature], side, *codes[feature + 1 :]] for side in (stays, goes))
        return features, right

    # -- grown trees

    def _level(self, state: Trees, total: Floats) -> Trees:
        features, right, leaves = state.features.copy(), state.right.copy(), state.leaves
        here = total.reshape(3, -1, self._codes).transpose(1, 2, 0) / (_UNIT, CURVE_WEIGHT * _UNIT, _UNIT)
        if state.level:
            # (1) Left children were summed; the right ones are what is left of their parents.
            here = np.stack((here, state.parents - here), axis=1).reshape(-1, self._codes, 3)
        else:
            features = np.concatenate((features, np.full((1, features.shape[1]), -1, np.int16)))
            right = np.concatenate((right, np.zeros((1, *right.shape[1:]), np.bool_)))
            leaves = np.concatenate((leaves, np.zeros((1, leaves.shape[1]), np.int64)))
        sides = np.zeros((len(here), 2, 3))
        for node, histogram in enumerate(here, start=len(here) - 1):
            # (2) Every row has one code of the first feature.
            whole = histogram[: self.schema.widths[0]].sum(axis=0)
            feature, goes = self._best(histogram, whole)
            gone = np.zeros(3)
            if feature >= 0:
                gone = histogram[self.schema.offsets[feature] + goes].sum(axis=0)
                features[-1, node], right[-1, node, goes] = feature, True
            sides[node - len(here) + 1] = whole - gone, gone
        if state.level + 1 < self.depth:
            return Trees(state.round + 1, features, right, leaves, here, state.level + 1)
        first, curve, _ = sides.reshape(-1, 3).T
        leaves[-1] = np.rint(self._leaf(first, curve + self.ridge) * (1 << LEAF_BITS)).astype(np.int64)
        return Trees(state.round + 1, features, right, leaves, self._none, 0)

    def _best(self, histogram: Floats, whole: Floats) -> tuple[int, Ints]:
        """Return the feature of the best split and the codes that go right; -1 where none is good."""
        best, feature, goes = 0.0, -1, np.zeros(0, np.int64)
        before = _gain(whole, self.ridge)
        for column, each in enumerate(self.schema.coded):
            begin = int(self.schema.offsets[column])
            codes = histogram[begin : begin + each.width]
            order = np.arange(each.width)
            if not each.ordered:
                # The best cut of codes without an order is one in the order of their means (Fisher 1958).
                order = np.argsort(codes[:, 0] / (codes[:, 1] + max(self.ridge, 1e-9)), kind="stable")
            left = np.cumsum(codes[order], axis=0)[:-1]
            rest = whole - left
            gains = _gain(left, self.ridge) + _gain(rest, self.ridge) - before
            gains[(np.minimum(left[:, 2], rest[:, 2]) < self.fewest)] = 0
            cut = int(np.argmax(gains)) if gains.size else 0
            if gains.size and gains[cut] > best:
                best, feature, goes = float(gains[cut]), column, order[cut + 1 :]
        return feature, goes

    def _leaf(self, first: Floats, curve: Floats) -> Floats:
        """Return the values of leaves: a step of Newton's, cut, times the learning rate."""
        values = -first / np.maximum(curve, 1e-12)
        return self.step * np.clip(values, -self.largest_leaf, self.largest_leaf)

    @property
    def _none(self) -> Floats:
        return np.zeros((0, self._codes, 3))


class _Draw:
    """Fair draws from a public seed, the same everywhere: the digits of one hash after another."""

    def __init__(self, seed: int, tree: int) -> None:
        self._key = _DOMAIN + seed.to_bytes(8, "big") + tree.to_bytes(8, "big")
        self._count = 0

    def below(self, limit: int) -> int:
        """Return a number from 0 to limit - 1, fair to within 2^-64."""
        self._count += 1
        digest = sha256(self._key + self._count.to_bytes(8, "big")).digest()
        return int.from_bytes(digest[:16], "big") * limit >> 128

    def part(self, codes: Sequence[int]) -> list[int]:
        """Return a random half of some codes, in their order; at least one of them and not all."""
        chosen = sorted(codes, key=lambda _: self.below(1 << 64))[: len(codes) // 2]
        return sorted(chosen)


def _derivatives(margins: Floats, labels: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Return each row's gradient, and its second derivative times `CURVE_WEIGHT`, in units of the grid.

    On whole numbers the squares of the two are at most the square of a unit together.
    """
    chances = sigmoid(margins)
    first = np.trunc((chances - labels) * _UNIT).astype(np.int64)
    np.clip(first, -_UNIT, _UNIT, out=first)
    second = np.trunc(chances * (1 - chances) * (CURVE_WEIGHT * _UNIT)).astype(np.int64)
    # A root of a whole number up to 2^32 is off by less than 2^-30 as a float, so its floor is exact.
    room = np.floor(np.sqrt((_UNIT**2 - first * first).astype(np.float64))).astype(np.int64)
    return first, np.minimum(second, room)


def _gain(sums: Floats, ridge: float) -> Floats:
    """Return G²/(H + λ) of sums whose last axis is gradients, second derivatives, rows."""
    gains: Floats = sums[..., 0] ** 2 / np.maximum(sums[..., 1] + ridge, 1e-9)
    return gains


def _sums(cells: Ints, values: Ints, count: int) -> Ints:
    """Return exact sums of values that share a cell: numbers up to 2^18 of up to 2^26 rows, below 2^53."""
    return np.bincount(cells, values.astype(np.float64), count).astype(np.int64)


def _begins(whole: npt.NDArray[np.generic], known: npt.NDArray[np.generic]) -> bool:
    return bool(np.array_equal(whole[: len(known)], known))
