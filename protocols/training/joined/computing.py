"""What matcher and helper reckon together, step by step, from aligned shares to weights and counts.

One generator is both sides (talk.py): of M, who opens totals, adds its noise to the helper's and makes the
weights, and of H, who sends shares with its own noise and is told the weights of each round.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.dp.mechanism import Noise
from protocols.errors import ProtocolAborted
from protocols.joined.field import NARROW, WIDE, Field, Words
from protocols.joined.triples import COIN_BYTES, Multiplier
from protocols.party import Rand
from protocols.training.joined import gradient
from protocols.training.joined.descent import Descent, Mask, OneShot
from protocols.training.joined.masking import coin_of, masked
from protocols.training.joined.plan import Plan
from protocols.training.joined.rare import withheld
from protocols.training.joined.talk import Need, Part, Say, both, opened
from protocols.training.schema import Ints

_MATRIX: Final = 0
"""Number of the dealer's batch for the matrix; those of powers follow."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What M has at the end.

    Attributes:
        weights: d whole numbers of 2^-bits: of all codes in the job's order, and the constant.
        counts: 2 labels x bins of held-out rows, noise of both included; None where nobody is held out.
        slopes: of each round the norm of the mean gradient that was opened; none where it was exact.
        withheld: how many codes have no weight, as it would tell of fewer persons than the smallest group.
    """

    weights: Ints
    counts: npt.NDArray[np.int64] | None
    slopes: tuple[float, ...] = ()
    withheld: int = 0


@dataclass(slots=True)
class Side:
    """One side's inputs.

    Attributes:
        plan: public.
        aligned: own shares of the aligned rows of every list: trained on, held out, padding. Let go of.
        trained: how many rows are trained on.
        held: how many are held out.
        seed: 32 bytes from the dealer.
        rand: draws coins and noise.
        first: M's.
        persons: of M alone: rows that are trained on, as a noisy number where there is noise.
        done: rounds that are over, for the progress.
        weights: of the newest round, known to both.
    """

    plan: Plan
    aligned: list[Words]
    trained: int
    held: int
    seed: bytes
    rand: Rand
    first: bool
    persons: float = 0.0
    done: int = field(default=0, init=False)
    weights: Ints = field(default_factory=lambda: np.zeros(0, np.int64), init=False)

    def play(self) -> Part[Trained | None]:
        """Play it whole; M's result is what was trained, H's is None.

        Raises:
            ProtocolAborted: `bad-triple`, `bad-weights`, `bad-word`; `guard-few-labels`.
        """
        plan = self.plan
        x, y = self._rows(0, self.trained, plan.rows)
        histogram = plan.histogram
        held = self._rows(self.trained, self.held, plan.held_rows()) if histogram else None
        self.aligned = []
        if isinstance(plan.model, Descent):
            found = yield from self._descended(plan.model, x, y)
        else:
            found = yield from self._at_once(plan.model, x, y)
        if histogram is None or held is None:
            return found
        counted = yield from histogram.counted(
            gradient.scores(held[0], WIDE.encode(self.weights)),
            held[1],
            min(self.held, histogram.rows),
            self.seed,
            self.rand,
            1 + len(plan.cubes),
            first=self.first,
        )
        noise = None if plan.noises is None else plan.noises.histogram
        total = yield from self._total(NARROW, counted, noise)
        if found is None or total is None:
            return None
        return Trained(found.weights, total.reshape(2, -1), found.slopes, found.withheld)

    def _rows(self, start: int, count: int, places: int) -> tuple[Words, Words]:
        """Return own shares of features, places x d, and of labels: those rows, then zeros.

        The last feature is the constant. As many rows are moved however many count.
        """
        plan = self.plan
        here = np.minimum(np.arange(start, start + places), plan.rows - 1)
        x = np.empty((places, plan.size), dtype=WIDE.dtype)
        at = 0
        for column in plan.columns:
            of_owner = self.aligned[column.owner]
            x[:, at : at + column.width] = of_owner[here, column.start : column.start + column.width]
            at += column.width
        x[:, -1] = int(self.first)
        owner, word = plan.label
        y: Words = self.aligned[owner][here, word]
        x[count:], y[count:] = 0, 0
        return x, y

    # -- saying ----------------------------------------------------------------------------------------------

    def _total(self, words: Field, own: Words, noise: Noise | None) -> Part[Ints | None]:
        """Return at M what both shares add up to, with the noise of both; at H nothing."""
        if noise is not None:
            own = words.add(own, words.encode(noise.draw(self.rand)))
        theirs = yield from self._to_matcher(words.to_bytes(own), own.nbytes)
        if theirs is None:
            return None
        return words.decode(words.add(own, words.read(theirs, 1)[:, 0]))

    def _to_matcher(self, body: bytes, size: int) -> Part[bytes | None]:
        if self.first:
            return (yield Say(b"", size))
        yield Say(body, 0)
        return None

    def _told_weights(self, weights: Ints | None) -> Part[Ints]:
        """Tell the helper the next weights; it looks whether they are such that the noise is enough."""
        plan = self.plan
        if weights is not None:
            yield Say(weights.astype("<i8").tobytes(), 0)
            return weights
        body = yield Say(b"", 8 * plan.size)
        found: Ints = np.frombuffer(body, dtype="<i8").astype(np.int64)
        if not plan.model.within(found):
            raise ProtocolAborted(
                f"the matcher's weights give scores beyond ±{plan.model.cubic.bound}",
                code="bad-weights",
                hint="the matcher runs another version, or not this job; compare versions and journals",
            )
        return found

    # -- without noise ---------------------------------------------------------------------------------------

    def _counts(self, x: Words, y: Words) -> Part[Ints | None]:
        """Return at M, without noise, how many rows have each code, the last of all rows; with noise nothing.

        Raises:
            ProtocolAborted: `guard-few-labels`.
        """
        if self.plan.noises is not None:
            return None
        counts, positives = (WIDE.sums(each, np.zeros(1, np.int64))[0] for each in (x, y[:, None]))
        total = yield from self._total(WIDE, np.concatenate((counts, positives)), None)
        if total is None:
            return None
        n, positive, least = int(total[-2]), int(total[-1]), self.plan.least
        # All of one label, or all but a few: everybody hears the code, and no more than this.
        if min(positive, n - positive) < least:
            raise ProtocolAborted(
                f"fewer than {least} of the persons that would be trained on have one of the two labels",
                code="guard-few-labels",
                hint="declare what counts as 1 so that both labels occur often enough, or train with noise: "
                'rho = "0.03"',
            )
        return total[:-1]

    def _withheld(self, counts: Ints, positives: Ints) -> Mask:
        """Return at M, without noise, which codes get no weight."""
        widths = [column.width for column in self.plan.columns]
        return withheld(widths, counts, positives, self.plan.least)

    # -- gradients -------------------------------------------------------------------------------------------

    def _descended(self, model: Descent, x: Words, y: Words) -> Part[Trained | None]:
        plan, first = self.plan, self.first
        counts = yield from self._counts(x, y)
        corrections = None if first else (yield Need(_MATRIX))
        held = yield from masked(
            plan.matrix, plan.bound(b"matrix"), self.seed, corrections, self.rand(COIN_BYTES), x
        )
        noise = None if plan.noises is None else plan.noises.round[0]
        state = model.start()
        self.weights = model.weights(state)
        slopes: list[float] = []
        rare: Mask | None = None
        for number, (rounds, cubes) in enumerate(plan.cubes, start=1 + _MATRIX):
            corrections = None if first else (yield Need(number))
            powers = yield from cubes.checked(self.seed, corrections, self.rand(COIN_BYTES))
            for at in range(rounds):
                of_round = powers[:, at * plan.rows : (at + 1) * plan.rows]
                score = gradient.scores(held.rows, WIDE.encode(self.weights))
                e = yield from opened(WIDE, WIDE.subtract(score, of_round[0]))
                rest = gradient.residuals(model.cubic, score, y, e, of_round, first=first)
                masked_rest = yield from opened(
                    WIDE, WIDE.subtract(rest, np.ascontiguousarray(held.factors[:, self.done]))
                )
                base = np.ascontiguousarray(held.bases[:, self.done])
                share = gradient.gradient(held.rows, masked_rest, base)
                total = yield from self._total(WIDE, share, noise)
                if total is not None:
                    if self.done == 0 and counts is not None:
                        rare = self._withheld(counts, model.positives(total, counts))
                    state = model.advance(state, total.astype(np.float64), self.persons, rare)
                    mean = total / (float(model.cubic.unit) * max(self.persons, 1.0))
                    slopes.append(float(np.sqrt(mean @ mean)))
                self.weights = yield from self._told_weights(model.weights(state) if first else None)
                self.done += 1
        if not first:
            return None
        return Trained(
            self.weights,
            None,
            tuple(slopes) if noise is not None else (),
            0 if rare is None else int(rare.sum()),
        )

    # -- moments ---------------------------------------------------------------------------------------------

    def _at_once(self, model: OneShot, x: Words, y: Words) -> Part[Trained | None]:
        plan, first, shape = self.plan, self.first, self.plan.matrix
        counts = yield from self._counts(x, y)
        corrections = None if first else (yield Need(_MATRIX))
        multiplier = Multiplier(shape, self.seed, plan.bound(b"matrix"), first=first, corrections=corrections)
        multiplier.challenge((yield from coin_of(self.rand(COIN_BYTES), first=first)))
        # ±1: twice the label less the constant, which is 0 where there is no row.
        signed = WIDE.subtract(WIDE.add(y, y), np.ascontiguousarray(x[:, -1]))
        for start in range(0, shape.rows, shape.block_rows):
            here = slice(start, start + shape.block_rows)
            rows = np.concatenate((x[here], signed[here, None]), axis=1)
            multiplier.take((yield from both(multiplier.open(rows))))
        multiplier.verify((yield from both(multiplier.check_share())))
        product = multiplier.result()
        upper = np.triu_indices(model.size)
        noises = (None, None) if plan.noises is None else plan.noises.round
        moments = yield from self._total(WIDE, product[:-1, :-1][upper], noises[0])
        cross = yield from self._total(WIDE, np.ascontiguousarray(product[:-1, -1]), noises[1])
        weights, rare = None, None
        if moments is not None and cross is not None:
            if counts is not None:
                # Labels are ±1 here.
                rare = self._withheld(counts, (cross + counts) // 2)
            square = np.zeros((model.size, model.size), dtype=np.int64)
            square[upper] = moments
            square.T[upper] = moments
            variance = 0.0 if noises[0] is None else noises[0].variance
            weights = model.fit(square, cross, self.persons, variance=variance, withheld=rare)
        self.weights = yield from self._told_weights(weights)
        self.done += 1
        if not first:
            return None
        return Trained(self.weights, None, (), 0 if rare is None else int(rare.sum()))
