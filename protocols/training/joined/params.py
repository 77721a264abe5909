"""What a job of type `train-joined/1` asks, read from its params.

columns = [
  { source = "source-1", slot = "limit", edges = ["50000", "200000"] },
  { source = "source-2", slot = "status", codes = ["on-time", "late"] },
]
label   = { source = "source-1", slot = "default", positive = ["1"] }    # or at_least = "1"
method  = "gd"                       # or "adassp": one round
rounds  = 40
step    = "1"
rho     = "0.03"                     # of the whole run; or epsilon and delta; or noise = "none"
holdout = 5                          # every person is held out with a chance of one in five; 0: nobody
evaluate = { bins = 32, rho = "0.002" }
model   = "assembled"                # or "split": each source has its own weights, and nobody asks for them
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import isfinite
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import Budget, Vector, calibrate
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import ColumnNeed
from protocols.joined import bits
from protocols.joined.field import WIDE
from protocols.joined.lists import STREET, JoinedList
from protocols.joined.params import HELPER, MATCHER, Lists, check_slots, owners_of, read_lists
from protocols.joined.parties import Joining
from protocols.party import MAX_BODY_BYTES
from protocols.psi.tagging import TAG_BYTES
from protocols.releases.params import check_budget
from protocols.tables.layout import Reader, bad, decimal_text, read_slot
from protocols.training.joined.columns import MAX_SCORED, Coding, Ints, one_hot
from protocols.training.joined.cubic import BOUNDS, MAX_BITS, REACH, Cubic
from protocols.training.joined.descent import Descent, OneShot
from protocols.training.joined.plan import Column, Noises, Plan
from protocols.training.params import read_privacy
from protocols.training.schema import MAX_CODES, Schema
from protocols.wire import JobSpec

JOB_TYPE: Final = "train-joined/1"

FEWEST: Final = 100
"""Fewest joined persons of whom a model is made."""

MAX_FEATURES: Final = 128
MAX_ROUNDS: Final = 1000
MAX_WEIGHTS: Final = 1 << 12
MAX_AT_ONCE: Final = 1 << 10
"""Weights of `adassp`, whose second moments are opened."""
MAX_PRODUCT: Final = 1 << 21
"""Weights times rounds: words of what the dealer gives for the matrix."""
MAX_BINS: Final = 64

_COUNT: Final = Fraction(1, 50)
"""Part of what evaluation leaves that the noise on the number of persons takes."""


@dataclass(frozen=True)
class Params:
    """What a job of this type asks.

    Attributes:
        lists: of all sources, codes as amounts: features in the job's order, then the label.
        features: in the job's order.
        label: whose it is, and what counts as 1.
        method: gradients, or one release of second moments.
        rounds: T; 1 for `adassp`.
        step, momentum: of the descent.
        ridge: λ beside the mean loss.
        scores: B, the largest magnitude of a score.
        budget: ρ of the whole run, evaluation included; None where it is exact.
        holdout: see `Plan`.
        bins: of counts of held-out rows.
        evaluation: ρ of these counts; 0 where nothing is noisy or held out.
        split: whether each source is given its own weights, and whoever asks none.
    """

    lists: Lists
    features: tuple[Coding, ...]
    label: Coding
    method: str
    rounds: int
    step: Fraction
    momentum: Fraction
    ridge: Fraction
    scores: int
    budget: Budget | None
    holdout: int
    bins: int
    evaluation: Fraction
    split: bool

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Sources, a matcher, a helper and a dealer. (2) Columns and label. (3) How weights come about. (4)
        Noise, and who is held out. (5) Columns of two sources or more; sizes that can be reckoned with.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        owners = owners_of(spec, dealer=True)
        # (2)
        reader = Reader(spec.params, JOB_TYPE)
        lists = read_lists(reader, owners)
        split = reader.choice("model", ("assembled", "split"), "assembled") == "split"
        # What each keeps is there to be scored with: no more columns, and no names, than a score can have.
        most = MAX_SCORED if split else MAX_FEATURES
        features = tuple(_read_feature(table, owners) for table in reader.tables("columns", most, least=2))
        label = _read_label(reader.table("label"), owners)
        amounts = tuple(each.amount for each in (*features, label))
        lists = replace(lists, amounts=amounts)
        check_slots(lists, (STREET,) if split else ())
        # (3)
        method = reader.choice("method", ("gd", "adassp"), "gd")
        by_steps = method == "gd"
        rounds = reader.number("rounds", 1, MAX_ROUNDS) if by_steps else 1
        step = (
            _between(reader, "step", Fraction(1), Fraction(1, 1000), Fraction(64))
            if by_steps
            else Fraction(1)
        )
        momentum = (
            _between(reader, "momentum", Fraction(9, 10), Fraction(0), Fraction(99, 100))
            if by_steps
            else Fraction(0)
        )
        ridge = _between(reader, "ridge", Fraction(0), Fraction(0), Fraction(1))
        scores = reader.number("scores", min(BOUNDS), max(BOUNDS), 8)
        # (4)
        budget = _read_budget(reader)
        holdout = reader.number("holdout", 0, 100, 5)
        bins, evaluation = _read_evaluation(reader, holdout=holdout, noisy=budget is not None)
        reader.finish()
        found = cls(
            lists,
            features,
            label,
            method,
            rounds,
            step,
            momentum,
            ridge,
            scores,
            budget,
            holdout,
            bins,
            evaluation,
            split,
        )
        # (5)
        found._check()
        return found

    def _check(self) -> None:
        if len({each.source for each in (*self.features, self.label)}) == 1:
            raise bad(
                "all columns are of one source, which can train on them without a join",
                "name columns of two sources or more",
            )
        if self.holdout == 1:
            raise bad("everybody is held out", "write holdout = 5")
        if self.scores not in BOUNDS:
            raise bad(f"scores within ±{self.scores}", f"choose from {', '.join(map(str, BOUNDS))}")
        size = self.schema.size
        most = MAX_WEIGHTS if self.method == "gd" else MAX_AT_ONCE
        words = max(sum(each.words for each in self.codings(owner)) for owner in self.lists.owners)
        if size > most or size * self.rounds > MAX_PRODUCT or TAG_BYTES + 8 * words > MAX_BODY_BYTES:
            raise InputError(
                f"{size} weights in {self.rounds} rounds, at most {most} and {MAX_PRODUCT // size} are "
                "reckoned with",
                code="too-many-words",
                hint="list fewer codes or edges, or ask for fewer rounds",
            )
        if self.budget is not None:
            left = self.budget.amount - self.evaluation
            if left <= 0:
                raise InputError(
                    "the evaluation takes all of the run's privacy loss",
                    code="bad-privacy",
                    hint="evaluate with a smaller rho, or give the run more",
                )
            check_budget(Budget("zcdp", left * _COUNT))

    @cached_property
    def schema(self) -> Schema:
        """What the model sees of a row.

        Raises:
            InputError: `bad-features`.
        """
        return Schema(tuple(each.feature for each in self.features))

    def codings(self, owner: Role) -> tuple[Coding, ...]:
        """Return what a source's list holds of each row, in order."""
        return tuple(each for each in (*self.features, self.label) if each.source == owner)

    def needs(self, role: Role) -> tuple[ColumnNeed, ...]:
        """Return every column that the dataset of a source has to offer, once for each use."""
        if role not in self.lists.owners:
            return ()
        key, *others = replace(self.lists, amounts=()).needs(role)
        return (key, *(each.need for each in self.codings(role)), *others)

    # -- noise -----------------------------------------------------------------------------------------------

    def cubic(self, rows: int) -> Cubic:
        """Return the finest cubic for which no total of so many rows, with its noise, leaves its word.

        Raises:
            ProtocolAborted: `guard-overflow`.
        """
        rho = None
        if self.budget is not None and self.method == "gd":
            rho = (self.budget.amount - self.evaluation) * (1 - _COUNT) / self.rounds
        found = _finest(self.schema, self.scores, rows, rho)
        if found is None:
            raise ProtocolAborted(
                f"gradients of {rows} rows, with their noise, do not fit words of 61 bits",
                code="guard-overflow",
                hint="declare smaller scores, spend more of the budget, or ask of fewer persons",
            )
        return found

    def model(self, rows: int) -> Descent | OneShot:
        """Return how weights come about from so many rows."""
        return self._model(self.cubic(rows))

    def _model(self, cubic: Cubic) -> Descent | OneShot:
        if self.method == "adassp":
            return OneShot(self.schema, cubic, float(self.ridge))
        return Descent(
            self.schema,
            cubic,
            rounds=self.rounds,
            step=float(self.step),
            momentum=float(self.momentum),
            ridge=float(self.ridge),
        )

    def noises(self, model: Descent | OneShot) -> Noises | None:
        """Return the noise that hides one joined person in all that is opened; None where it is exact.

        One person is one joined row, or none; it is trained on, or held out, but is charged for both.
        """
        if self.budget is None:
            return None
        left = self.budget.amount - self.evaluation
        rounds = left * (1 - _COUNT)
        vectors = [Vector("count", 1, 1, 1, left * _COUNT)]
        if isinstance(model, Descent):
            vectors += [replace(model.vector, weight=rounds / self.rounds)] * self.rounds
        else:
            vectors += [replace(each, weight=rounds / 2) for each in (model.moments, model.cross)]
        if self.holdout:
            vectors.append(Vector("histogram", 2 * self.bins, 1, 1, self.evaluation))
        found, cost = calibrate(vectors, self.budget, honest=1, contributors=2)
        opened = found[1:-1] if self.holdout else found[1:]
        histogram = found[-1] if self.holdout else None
        by_round = opened[:1] if isinstance(model, Descent) else opened
        return Noises(replace(found[0], contributors=1), by_round, histogram, cost)

    @property
    def cost(self) -> Cost:
        """What one attempt costs each list."""
        return Cost(queries=1) + (NOTHING if self.budget is None else Cost.zcdp(self.budget.amount))

    # -- the attempt -----------------------------------------------------------------------------------------

    def plan(self, counts: Sequence[int], ctx: bytes, least: int, *, fewest: int = bits.FEWEST) -> Plan:
        """Return what is computed of lists of so many keys.

        Args:
            counts: of each source's list.
            ctx: 32 bytes, binds masks and streams to all admissions.
            least: smallest group of persons of whom anything exact is told.
            fewest: see `bits.Plan`.

        Raises:
            ProtocolAborted: `guard-overflow`.
        """
        owners = self.lists.owners
        joining = Joining.of(
            owners,
            self.lists.key_holders,
            counts,
            ctx,
            matcher=MATCHER,
            helper=HELPER,
            field=WIDE,
            widths=[sum(each.words for each in self.codings(owner)) for owner in owners],
        )
        model = self.model(joining.rows)
        at = dict.fromkeys(owners, 0)
        columns = []
        for each in self.features:
            columns.append(Column(owners.index(each.source), at[each.source], each.words))
            at[each.source] += each.words
        label = owners.index(self.label.source), at[self.label.source]
        return Plan(
            joining,
            tuple(columns),
            label,
            model,
            self.holdout,
            self.bins,
            least,
            self.noises(model),
            fewest,
        )

    def words(self, prepared: JoinedList, rows: npt.NDArray[np.uint32]) -> Ints:
        """Return the words of these rows of a source's list, zeros of persons who do not count."""
        return one_hot(prepared, self.codings(prepared.wanted.source), rows)

    def asks(self) -> dict[str, Any]:
        """Return as plain JSON what else than lists makes it another question."""
        return {
            "job_type": JOB_TYPE,
            "columns": [{"source": each.source, **each.to_json()} for each in self.features],
            "label": {"source": self.label.source, **self.label.to_json()},
            "method": self.method,
            "rounds": self.rounds,
            "step": decimal_text(self.step),
            "momentum": decimal_text(self.momentum),
            "ridge": decimal_text(self.ridge),
            "scores": self.scores,
            "holdout": self.holdout,
            "bins": self.bins,
        }


@lru_cache(maxsize=64)
def _finest(schema: Schema, bound: int, rows: int, rho: Fraction | None) -> Cubic | None:
    """Return the finest cubic for so many rows; `rho` of a gradient, None without noise on it."""
    for grid in range(MAX_BITS, 3, -1):
        cubic = Cubic(bound, grid)
        reach = cubic.largest * rows
        if rho is not None:
            try:
                (noise,), _ = calibrate(
                    [Descent(schema, cubic).vector], Budget("zcdp", rho), honest=1, contributors=2
                )
            except InputError:
                continue  # this noise is larger than any word
            reach += noise.reach
        if reach <= REACH:
            return cubic
    return None


# -- reading -------------------------------------------------------------------------------------------------


def _read_feature(table: Reader, owners: Sequence[Role]) -> Coding:
    owner, slot = Role(table.choice("source", owners)), read_slot(table)
    if table.has("codes"):
        found = Coding(owner, slot, codes=table.texts("codes", MAX_CODES - 1))
    else:
        edges = table.fractions("edges", MAX_CODES - 2)
        missing = table.choice("missing", ("no", "yes"), "no") == "yes"
        found = Coding(owner, slot, edges=edges, missing=missing)
        _check_edges(edges)
    table.finish()
    return found


def _read_label(table: Reader, owners: Sequence[Role]) -> Coding:
    owner, slot = Role(table.choice("source", owners)), read_slot(table)
    if table.has("at_least"):
        found = Coding(owner, slot, edges=(table.fraction("at_least"),), label=True)
        _check_edges(found.edges)
    else:
        found = Coding(owner, slot, codes=table.texts("positive", MAX_CODES - 1), label=True)
    table.finish()
    return found


def _check_edges(edges: Sequence[Fraction]) -> None:
    """Refuse an edge that a model's file could not hold: there it is a double."""
    for edge in edges:
        try:
            value = float(edge)
        except OverflowError:
            value = float("inf")
        if not isfinite(value) or Fraction(repr(value)) != edge:
            raise bad(
                "an edge has more digits than are kept",
                "write a decimal number of at most 15 digits",
            )


def _between(reader: Reader, name: str, default: Fraction, least: Fraction, most: Fraction) -> Fraction:
    found = reader.fraction(name) if reader.has(name) else default
    if not least <= found <= most:
        raise bad(f"params.{name} is not between {least} and {most}", f'write {name} = "{float(default):g}"')
    return found


def _read_budget(reader: Reader) -> Budget | None:
    """Return ρ of the whole run; None without noise. See `read_privacy`."""
    privacy = read_privacy(reader)
    return None if privacy is None else check_budget(Budget("zcdp", privacy.rho))


def _read_evaluation(reader: Reader, *, holdout: int, noisy: bool) -> tuple[int, Fraction]:
    """Return bins and ρ of the counts of held-out rows.

    Raises:
        InputError: `bad-params`, `bad-privacy`.
    """
    given = reader.has("evaluate")
    if not holdout:
        if given:
            raise bad("an evaluation, but nobody is held out", "write holdout = 5, or leave evaluate out")
        return 2, Fraction(0)
    if not given and not noisy:
        return 32, Fraction(0)
    table = reader.table("evaluate")
    if table.has("rho") != noisy:
        raise InputError(
            "evaluate.rho is missing, or stands where counts are exact",
            code="bad-privacy",
            hint='with noise write evaluate = { rho = "0.002" }; without, leave rho out',
        )
    rho = check_budget(Budget("zcdp", table.fraction("rho"))).amount if noisy else Fraction(0)
    bins = table.number("bins", 2, MAX_BINS, 32 if noisy else None)
    table.finish()
    if bins % 2:
        raise bad("an odd number of bins, of which none begins at one half", "write bins = 32")
    return bins, rho
