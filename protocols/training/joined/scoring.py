"""Scores of joined persons by a linear model whose columns several departments have. SPEC.md, section 7.

A row's score is one weight for each of its codes, added up over all owners: whole numbers of 2^-bits. Of who
scores high enough one recipient is told which public step the score reaches, never the score: with the
model, which may be public, an exact sum of few columns would say what the columns are.

The parties are in scoring_parties.py.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Context, Decimal
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.ids import JobId, Organisation, Role
from protocols.jobs.job_type import ColumnNeed, Content, Domain
from protocols.joined import bits
from protocols.joined.align import Way
from protocols.joined.lists import Amount, JoinedList
from protocols.joined.rules import MAX_WIDTH, Clause, Column, Ints, Question, Rule
from protocols.psi.envelopes import Opened, records
from protocols.tables.layout import NUMBER_TYPES, TEXT_TYPES, decimal_text
from protocols.training.joined.columns import placed
from protocols.training.model import pack, unpack

MAX_STEPS: Final = 128
"""Most steps that a score may reach."""

_DOMAIN: Final = b"minshu/score-joined/1"
_LOGIT: Final = Context(prec=60)
"""Logarithms are rounded correctly, so every party has the same whole steps."""


# -- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of one list that a score counts on, as one of a few codes.

    Attributes:
        owner: place of its list.
        slot: the job's word for it.
        codes: texts, in order; empty for a column of numbers.
        edges: ascending; code k is [edge k-1, edge k), so there is one more code than edges.
        missing: whether a row without a listed text, or without a number, has a code of its own, the last;
            else it does not count.
    """

    owner: int
    slot: str
    codes: tuple[str, ...] = ()
    edges: tuple[Fraction, ...] = ()
    missing: bool = False

    @property
    def width(self) -> int:
        """How many codes there are."""
        return (len(self.codes) or len(self.edges) + 1) + self.missing

    @property
    def amount(self) -> Amount:
        """The code, as a list holds it."""
        return Amount(self.slot, 0, self.width - 1)

    @property
    def need(self) -> ColumnNeed:
        """The column it takes: it says who is received, so it has to be one that may filter."""
        if self.codes:
            # Rows with other texts count where these have a code, too.
            domain = Domain(named=self.codes) if self.missing else Domain(values=self.codes)
            return ColumnNeed(self.slot, "filter", TEXT_TYPES, domain=domain)
        return ColumnNeed(self.slot, "filter", NUMBER_TYPES, domain=Domain(bins=self.edges))

    def placed(self, column: Any) -> Any:
        """Return each row's code; see `columns.placed`.

        Raises:
            InputError: `not-text`, `not-a-number`: a column of another type.
        """
        return placed(column, self.slot, self.codes, self.edges, missing=self.missing)

    @property
    def coding(self) -> bytes:
        """32 bytes that say what its codes mean, whatever the column is called."""
        plain = {name: value for name, value in self.to_json().items() if name != "slot"}
        return hashlib.sha256(_DOMAIN + canonical_json(plain)).digest()

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form, without its owner."""
        return {
            "slot": self.slot,
            "codes": [*self.codes],
            "edges": [str(edge) for edge in self.edges],
            "missing": self.missing,
        }


# -- model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One owner's weights.

    Attributes:
        weights: of each of its features, in their order, one for each code.
        constant: what it adds to every row.
    """

    weights: tuple[tuple[int, ...], ...]
    constant: int = 0

    @property
    def span(self) -> tuple[int, int]:
        """Least and greatest sum that a row can have."""
        low, high = (self.constant + sum(map(end, self.weights)) for end in (min, max))
        return low, high

    def on(self, listed: JoinedList) -> JoinedList:
        """Return the list with each row's own part of its score in the place of its codes, n x 1."""
        total = np.full(len(listed.amounts), self.constant, dtype=np.int64)
        for place, weights in enumerate(self.weights):
            total += np.array(weights, dtype=np.int64)[listed.amounts[:, place]]
        return replace(listed, amounts=total[:, np.newaxis])


def part_name(job: JobId) -> str:
    """Return what the part that a training job left at a node is called on the shelf of `train-joined/1`."""
    return f"{job.removeprefix('sha256:')}-part"


def model_digest(job: JobId, features: Iterable[tuple[Organisation, Feature]]) -> bytes:
    """Return 32 bytes that say which model a part is of: who has which columns, and what their codes mean.

    Args:
        job: which trained it.
        features: all of the model, each with whose it is, in any order.
    """
    columns = sorted([owner, each.slot, each.coding.hex()] for owner, each in features)
    return hashlib.sha256(_DOMAIN + canonical_json({"job": job, "columns": columns})).digest()


def write_part(part: Part, features: Sequence[Feature], scale: int, model: bytes) -> bytes:
    """Return an owner's part as its node keeps it: safetensors.

    Of each feature an array `weights:` ‖ slot of one i64 for each code, and `coding:` ‖ slot, the 32 bytes of
    `Feature.coding`; `constant` and `bits`, an i64 each; `model`, 32 bytes.

    Args:
        part: the weights.
        features: of that owner, in the same order.
        scale: weights are whole numbers of 2^-scale.
        model: what it is a part of, see `model_digest`.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "bits": np.array([scale], dtype=np.int64),
        "constant": np.array([part.constant], dtype=np.int64),
        "model": np.frombuffer(model, dtype=np.uint8),
    }
    for feature, weights in zip(features, part.weights, strict=True):
        arrays[f"weights:{feature.slot}"] = np.array(weights, dtype=np.int64)
        arrays[f"coding:{feature.slot}"] = np.frombuffer(feature.coding, dtype=np.uint8)
    return pack(arrays)


def read_part(data: bytes, features: Sequence[Feature], scale: int, model: bytes) -> Part:
    """Return the part of an owner as `write_part` wrote it.

    Args:
        data: the file.
        features: of that owner, as the job asks for them.
        scale: as the job says.
        model: of all features that the job asks for, see `model_digest`.

    Raises:
        InputError: `wrong-part`: it has other features or codes, or another scale; or it is a part of another
            model, of which the job leaves something out.
        DecodeError: `bad-model`: it is no such file.
    """
    arrays = unpack(data)
    slots = [feature.slot for feature in features]
    names = {
        "bits",
        "constant",
        "model",
        *(f"{kind}:{slot}" for kind in ("weights", "coding") for slot in slots),
    }
    if (
        arrays.keys() != names
        or any(
            each.dtype != (np.uint8 if name.startswith(("coding:", "model")) else np.int64) or each.ndim != 1
            for name, each in arrays.items()
        )
        or arrays["bits"].tolist() != [scale]
        or arrays["constant"].shape != (1,)
        or arrays["model"].tobytes() != model
        or any(
            len(arrays[f"weights:{each.slot}"]) != each.width
            or arrays[f"coding:{each.slot}"].tobytes() != each.coding
            for each in features
        )
    ):
        raise InputError(
            "the part of the model that is kept here has other columns, codes or bits than the job asks for, "
            "or is of a model with other columns elsewhere",
            code="wrong-part",
            hint="write the columns of all departments, codes, edges and bits as the training job had them",
        )
    weights = tuple(tuple(arrays[f"weights:{slot}"].tolist()) for slot in slots)
    return Part(weights, int(arrays["constant"][0]))


@dataclass(frozen=True, slots=True)
class Steps:
    """Public steps of a score: the first is what has to be reached to be received at all.

    Attributes:
        bits: a score is a whole number of 2^-bits.
        at_least: the first.
        step: from one to the next.
        chance: whether steps are of the logistic function of the score, between 0 and 1; else of the score.
    """

    bits: int
    at_least: Fraction
    step: Fraction
    chance: bool = True

    def up_to(self, greatest: int) -> tuple[Fraction, ...]:
        """Return the steps up to a greatest score; the first in any case.

        Raises:
            InputError: `bad-params`, more than `MAX_STEPS`, or one alone.
        """
        found = [self.at_least]
        while (following := found[-1] + self.step) < 1 or not self.chance:
            if self.whole(following) > greatest:
                break
            found.append(following)
            if len(found) > MAX_STEPS:
                raise InputError(
                    f"more than {MAX_STEPS} steps from at_least to the highest score",
                    code="bad-params",
                    hint='write a larger step, such as step = "0.05"',
                )
        if len(found) == 1:
            raise InputError(
                "no row can score a step above at_least, so a score would tell nothing",
                code="bad-params",
                hint="write a smaller step or at_least; who passes a threshold is what joined-rule/1 tells",
            )
        return tuple(found)

    def whole(self, value: Fraction) -> int:
        """Return the least score that reaches a step."""
        if not self.chance:
            return ceil(value * (1 << self.bits))
        odds = value / (1 - value)
        logit = _LOGIT.subtract(_LOGIT.ln(Decimal(odds.numerator)), _LOGIT.ln(Decimal(odds.denominator)))
        return ceil(_LOGIT.multiply(logit, Decimal(1 << self.bits)))


@dataclass(frozen=True)
class Scoring:
    """How scores are added up and told; all public.

    Attributes:
        ways: how each list is joined.
        spans: of each list with features its place, and the least and greatest part of a score.
        constant: what is added to every sum of parts.
        steps: what is told.

    Raises:
        InputError: `overflow`, scores of more than 62 bits; `bad-params`, a first step that everybody
            reaches, and see `Steps.up_to`.
    """

    ways: tuple[Way, ...]
    spans: tuple[tuple[int, tuple[int, int]], ...]
    constant: int
    steps: Steps

    def __post_init__(self) -> None:
        """Check the sizes, and that the first step leaves somebody out."""
        _ = self.rule, self.width
        if self.thresholds[0] <= self._span[0] - self.constant:
            raise InputError(
                "every row that can be reaches the first step: a list of everybody's score is not this job",
                code="bad-params",
                hint="write a larger at_least, above the lowest score that the weights allow",
            )

    @cached_property
    def told(self) -> tuple[Fraction, ...]:
        """What a score may be said to have reached, ascending."""
        return self.steps.up_to(self._span[1])

    @cached_property
    def thresholds(self) -> tuple[int, ...]:
        """For each of `told` the least sum of parts that reaches it."""
        return tuple(self.steps.whole(each) - self.constant for each in self.told)

    @property
    def _span(self) -> tuple[int, int]:
        low, high = (self.constant + sum(span[end] for _, span in self.spans) for end in (0, 1))
        return low, high

    @cached_property
    def rule(self) -> Rule:
        """Whose score reaches the first step, as a rule over one column of each owner: its part."""
        columns = tuple(Column(f"part({owner})", owner, low, high) for owner, (low, high) in self.spans)
        weights = tuple((column.slot, 1) for column in columns)
        return Rule(self.ways, columns, (Clause(weights, "at_least", Fraction(self.thresholds[0])),))

    @cached_property
    def width(self) -> int:
        """Bits of a sum less a threshold, whichever."""
        low, high = (end - self.constant for end in self._span)
        ends = low - self.thresholds[-1], high - self.thresholds[0]
        width = 1 + max(1, *((end if end >= 0 else ~end).bit_length() for end in ends))
        if width > MAX_WIDTH:
            raise InputError(
                f"scores take {width} bits, at most {MAX_WIDTH} are compared",
                code="overflow",
                hint="use fewer bits, or smaller weights",
            )
        return width

    def reached(self, above: npt.NDArray[np.bool_]) -> list[str]:
        """Return what each person's score reaches, as text.

        Args:
            above: n x the steps but the first: whether the score reaches each.
        """
        labels = [decimal_text(each) for each in self.told]
        return [labels[count] for count in above.sum(axis=1).tolist()]


@dataclass(frozen=True, kw_only=True)
class Asked(Question):
    """What is computed in one attempt: whose score reaches the first step, and which others those reach.

    Attributes:
        scoring: how scores are added up and told.
    """

    scoring: Scoring

    @classmethod
    def put(cls, question: Question, scoring: Scoring) -> Self:
        """Return the question by whose rule rows are received, with what is told of them."""
        return cls(**{each.name: getattr(question, each.name) for each in fields(Question)}, scoring=scoring)

    @property
    def further(self) -> tuple[int, ...]:
        """How far each further threshold is above the first."""
        first, *others = self.scoring.thresholds
        return tuple(each - first for each in others)

    @property
    def compared(self) -> int:
        """How many comparisons with further steps there are: of every row that may be received with each."""
        return self.room * len(self.further)

    @cached_property
    def climb(self) -> "Climb":
        """What is asked next, of received rows."""
        return Climb.put(self, self.scoring)


class Climb(Asked):
    """The question whether each received row reaches each further step: one bit of each, steps fastest."""

    @cached_property
    def plan(self) -> bits.Plan:
        """How bits are computed, with streams, challenges and digests of its own."""
        ctx = hashlib.sha256(_DOMAIN + self.joining.ctx + b"steps").digest()
        circuit = bits.Circuit((self.scoring.width,), 0)
        return bits.Plan(circuit, max(1, self.compared), ctx, self.fewest)

    def values(self, batch: bits.Batch, received: Ints, *, first: bool) -> bits.Words:
        """Return one holder's shares of a batch's values: score less threshold, a word for each.

        Args:
            batch: of the plan.
            received: its shares of the scores of received rows, less the first threshold, padded to `room`.
            first: whether this is the first holder, who takes thresholds off.
        """
        steps = np.array(self.further, dtype=np.uint64)
        start, count = batch.start * bits.WORD_BITS, batch.words * bits.WORD_BITS
        places = np.arange(start, min(start + count, self.compared))
        found = np.zeros(count, dtype=np.uint64)
        found[: len(places)] = received.view(np.uint64)[places // len(steps)]
        if first:
            found[: len(places)] -= steps[places % len(steps)]
        return found


def scored(
    opened: Opened, owners: Mapping[int, tuple[Role, Organisation]], reached: Sequence[str]
) -> Content:
    """Return the class-B release: what `records` has, and with each person the step that the score reaches.

    Args:
        opened: the envelopes' contents.
        owners: see `records`.
        reached: of each envelope, in their order.
    """
    content = records(opened, owners)
    ordered = np.array(reached, dtype=np.str_)[np.argsort(opened.keys)]
    table = replace(content.table, columns={**content.table.columns, "score": ordered})
    return replace(content, table=table)
