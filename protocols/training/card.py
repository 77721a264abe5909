"""The card of a model: what it was made for, of whose data, how exactly, and what it must not be used for.

A card is canonical JSON. Nothing in it is about single persons: figures are noisy, or of a public test set,
or withheld where they are of too few rows.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isfinite, sqrt
from typing import Annotated, Final, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
from msgspec import Meta

from protocols.dp.cost import Cost, decimal_up
from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, InputError
from protocols.freetext import UNREADABLE
from protocols.ids import Role
from protocols.training.schema import Amount, Binned, Coded, Floats, Schema
from protocols.training.scores import (
    HELD_OUT,
    WITHIN,
    auc,
    auc_deviation,
    auc_error,
    calibration,
    errors,
    log_loss,
    membership,
)
from protocols.training.work import Pin
from protocols.wire import Constraints, InputSummary, JobSpec

SCHEMA: Final = "minshu-model/1"

DELTA: Final = Fraction(1, 100_000)
"""The δ at which ε is stated where a job gives its budget as ρ."""

FEWEST: Final = 50
"""Rows of a label that a group has at least, for its errors to be stated."""

_DEVIATIONS: Final = 10
"""So many standard deviations of its noise a number of rows is above zero, for a share of it to be stated."""

_DIGITS: Final = 6
_MOST_LOSS: Final = 1000.0

_READABLE: Final = f"^[^{UNREADABLE.pattern.removeprefix('[')}*\\Z"
_Text = Annotated[str, Meta(max_length=512, pattern=_READABLE)]
_Sentence = Annotated[str, Meta(max_length=2048, pattern=_READABLE)]
_Slot = Annotated[str, Meta(pattern=r"^[^\W\d]\w{0,62}\Z")]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9._/-]{0,198}[a-z0-9])?\Z")]
_Recipe = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9._-]{0,62}\Z")]
_Decimal = Annotated[str, Meta(max_length=40, pattern=r"^-?[0-9]+(?:\.[0-9]+|/0*[1-9][0-9]*)?\Z")]
_Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Codes = Annotated[tuple[_Text, ...], Meta(max_length=4096)]
_Rounds = Annotated[dict[_Name, _Count], Meta(max_length=64)]
_Loss = Annotated[str, Meta(max_length=64, pattern=r"^(?:[0-9]+(?:\.[0-9]+)?)?\Z")]

# Where msgspec says it is; what it says of the value may hold any text of the file.
_PATH: Final = re.compile(r"`(\$[a-z0-9_.\[\]]*)`\Z")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Part of a card."""


class Feature(_Part, frozen=True):
    """A column that the model looks at, as the job names it: codes, edges of bins, or two bounds.

    Attributes:
        slot: name of the column in the job.
        source: role of the department that has it, where departments have different columns.
        codes: in order; others count as one more, the last.
        edges: ascending, numbers as texts.
        missing: `yes` where a bin may be empty.
        low: number as text, becomes 0.
        high: number as text, becomes 1.
    """

    slot: _Slot
    source: _Name | None = None
    codes: _Codes | None = None
    edges: Annotated[tuple[_Decimal, ...], Meta(max_length=4096)] | None = None
    missing: Literal["yes", "no"] | None = None
    low: _Decimal | None = None
    high: _Decimal | None = None

    @property
    def name(self) -> str:
        """What its column is called in rows that are to be scored."""
        return self.slot if self.source is None else f"{self.source}.{self.slot}"

    def column(self) -> Coded | Binned | Amount:
        """Return what it is to a recipe.

        Raises:
            DecodeError: `bad-card`: not one of the three.
        """
        match self.codes, self.edges, self.missing, self.low, self.high:
            case (tuple() as codes, None, None, None, None):
                return Coded(self.name, codes)
            case (None, tuple() as edges, missing, None, None):
                return Binned(self.name, tuple(map(_number, edges)), missing == "yes")
            case (None, None, None, str() as low, str() as high):
                return Amount(self.name, _number(low), _number(high))
        raise _bad(f"feature {self.name} has neither codes, edges nor bounds, or several of them")


class Label(_Part, frozen=True):
    """What counts as 1: one of the codes, or a number that is large enough."""

    slot: _Slot
    source: _Name | None = None
    positive: _Codes | None = None
    at_least: _Decimal | None = None


class Group(_Part, frozen=True):
    """What rows were told apart by when errors were counted."""

    slot: _Slot
    codes: _Codes
    source: _Name | None = None


class Dataset(_Part, frozen=True):
    """What one department brought.

    Attributes:
        rows: as its catalogue publishes them, not as they were counted for this job.
    """

    role: _Name
    organisation: _Name
    dataset: _Name
    snapshot: _Text
    rows: _Count
    rule_version: _Text


class Training(_Part, frozen=True):
    """How it was trained.

    Attributes:
        rounds: that were held, by turn, over all attempts.
        most_rounds: that were reserved, by turn.
        sources: organisations that gave updates.
        honest: of them, whose noise a coalition is sure not to know; 0 without noise.
        persons_in: in how many sources one person may be.
        unit_rows: rows of one person in one source that count.
        holdout: every so-manyth person was never trained on; 0 for none.
    """

    rounds: _Rounds
    most_rounds: _Rounds
    sources: Annotated[int, Meta(ge=1, le=64)]
    honest: Annotated[int, Meta(ge=0, le=64)]
    persons_in: Annotated[int, Meta(ge=1, le=64)]
    unit_rows: Annotated[int, Meta(ge=1, le=1 << 20)]
    holdout: Annotated[int, Meta(ge=0, le=1 << 20)]


class Privacy(_Part, frozen=True):
    """What the whole run, evaluation included, costs a person, as it was reserved before round one.

    Attributes:
        notion: in which the job named its budget; `none` without noise, and then all else is empty.
        rho: of zero-concentrated differential privacy, decimal, rounded up.
        epsilon: at `delta`, decimal, rounded up.
        delta: decimal.
        spent_epsilon: the same of the rounds that were held.
    """

    notion: Literal["zcdp", "approximate-dp", "none"]
    rho: _Loss = ""
    epsilon: _Loss = ""
    delta: _Loss = ""
    spent_epsilon: _Loss = ""


class Bin(_Part, frozen=True):
    """Of rows whose chances lie together: what the model says on average, and the part that is positive."""

    said: _Share
    found: _Share


class GroupErrors(_Part, frozen=True):
    """Errors of one group at a chance of one half; None where the group has too few rows of that label.

    Attributes:
        code: of the group; empty for unlisted ones.
        false_alarms: part of its negatives that is taken for positive.
        misses: part of its positives that is taken for negative.
    """

    code: _Text
    false_alarms: _Share | None = None
    misses: _Share | None = None


class Metrics(_Part, frozen=True):
    """How good the model is.

    Attributes:
        on: rows that it was measured on: held out and measured with noise, held out, or a public test set.
        auc: area under the ROC curve.
        auc_low: of the interval that holds, with 95 %, what noise and bins change of it.
        auc_high: the same.
        loss: mean logarithmic loss.
        calibration: by bins of the chance, ascending.
        calibration_error: mean distance of the two, by rows.
        groups: errors by group.
        membership_auc: how well who goes by losses tells rows that were trained on from those held out; one
            half is best.
        membership_low: as `auc_low`.
        membership_high: as `auc_high`.
    """

    on: Literal["held-out, noisy", "held-out", "public test set"]
    auc: _Share | None = None
    auc_low: _Share | None = None
    auc_high: _Share | None = None
    loss: Annotated[float, Meta(ge=0, le=_MOST_LOSS)] | None = None
    calibration: Annotated[tuple[Bin, ...], Meta(max_length=4096)] = ()
    calibration_error: _Share | None = None
    groups: Annotated[tuple[GroupErrors, ...], Meta(max_length=4096)] = ()
    membership_auc: _Share | None = None
    membership_low: _Share | None = None
    membership_high: _Share | None = None


class Limits(_Part, frozen=True):
    """What to know before it is used, sentence by sentence."""

    en: Annotated[tuple[_Sentence, ...], Meta(max_length=32)]
    zh: Annotated[tuple[_Sentence, ...], Meta(max_length=32)]


class Card(_Part, frozen=True):
    """A model's card. Facts of the job are as its requester signed them.

    Attributes:
        model_sha256: digest of `model.safetensors`.
        recipe: name of a built-in one, or the pin of another.
        settings: of the recipe, as the job gives them.
        versions: distribution → version of what computed.
    """

    schema: Literal["minshu-model/1"]
    model_sha256: _Digest
    job: _Digest
    job_type: _Name
    purpose: _Text
    legal_basis: _Text
    expected_use: _Text
    recipe: _Recipe | Pin
    settings: Annotated[dict[_Slot, _Text], Meta(max_length=64)]
    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=4096)]
    label: Label
    datasets: Annotated[tuple[Dataset, ...], Meta(min_length=1, max_length=64)]
    training: Training
    privacy: Privacy
    versions: Annotated[dict[_Text, _Text], Meta(max_length=64)]
    limits: Limits
    group: Group | None = None
    metrics: Metrics | None = None

    def encode(self) -> bytes:
        """Return the file."""
        return canonical_json(msgspec.to_builtins(self))

    @classmethod
    def decode(cls, data: bytes) -> "Card":
        """Read a card strictly.

        Raises:
            DecodeError: not canonical JSON, `unknown-schema`, or `bad-card`: a field that is unknown, missing
                or beyond what it may be.
        """
        plain = decode_json(data)
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            raise DecodeError(
                f"the card is not of the schema {SCHEMA}",
                code="unknown-schema",
                hint="use the release of this software that wrote it",
            )
        try:
            card = msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise _unfit(error) from None
        card.table()
        loss = card.privacy
        stated = {each != "" for each in (loss.rho, loss.epsilon, loss.delta, loss.spent_epsilon)}
        if stated != {loss.notion != "none"}:
            raise _bad("what it says of noise and what that costs contradict each other")
        if len(card.limits.en) != len(card.limits.zh):
            raise _bad("what to know before use is not the same in both languages")
        return card

    def table(self) -> Schema:
        """Return the features as recipes see them.

        Raises:
            DecodeError: `bad-card`: features that are none.
        """
        columns = [feature.column() for feature in self.features]
        try:
            return Schema(
                tuple(each for each in columns if not isinstance(each, Amount)),
                tuple(each for each in columns if isinstance(each, Amount)),
            )
        except InputError as error:
            raise _bad(error.message) from None

    @property
    def recipe_name(self) -> str:
        """The recipe's name, whoever it is from."""
        return self.recipe if isinstance(self.recipe, str) else self.recipe.name


class Plan(msgspec.Struct, frozen=True):
    """Numbers of a run that its job type works out of the job.

    Attributes:
        most_rounds: reserved, by turn.
        sources: organisations that give updates.
        honest: as in `Training`.
        persons_in: as in `Training`.
        unit_rows: as in `Training`.
        holdout: as in `Training`.
        cost: what the whole run costs one person in all departments together, without counts.
    """

    most_rounds: Mapping[str, int]
    sources: int
    honest: int
    persons_in: int
    unit_rows: int
    holdout: int
    cost: Cost


@runtime_checkable
class MakesModels(Protocol):
    """A job type whose release is a model with a card."""

    def run_plan(self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints) -> Plan:
        """Return the numbers of the run that its card states.

        Args:
            spec: the job.
            inputs: as all admissions state them.
            constraints: what the run has to keep to.

        Raises:
            InputError, ProtocolAborted: no such run can be.
        """
        ...


class Asked(_Part, frozen=True):
    """What of a card the job decides alone."""

    recipe: str | Pin
    settings: dict[str, str]
    features: tuple[Feature, ...]
    label: Label
    group: Group | None


_JOINED_SETTINGS: Final = ("method", "step", "momentum", "ridge", "scores")


def asked(spec: JobSpec) -> Asked:
    """Return what a job of `train/1` or `train-joined/1` says of its model.

    Raises:
        DecodeError: `bad-card`: it is no such job.
    """
    params = dict(spec.params)
    if "columns" in params:
        settings = {name: str(params[name]) for name in _JOINED_SETTINGS if name in params}
        params |= {"recipe": "logistic", "settings": settings, "features": params["columns"]}
    plain = {name: params.get(name) for name in ("recipe", "settings", "features", "label", "group")}
    if plain["settings"] is None:
        plain["settings"] = {}
    try:
        return msgspec.convert(plain, Asked)
    except msgspec.ValidationError as error:
        raise _unfit(error) from None


def differences(card: Card, spec: JobSpec) -> list[str]:
    """Return the fields of a card that are not what its job says, by name; none for the card of this job.

    Raises:
        DecodeError: `bad-card`: the job is of a type that makes no model.
    """
    wanted = asked(spec)
    expected = {
        "job": spec.job_id,
        "job_type": spec.job_type,
        "purpose": spec.purpose,
        "legal_basis": spec.legal_basis,
        "expected_use": spec.expected_use,
        **{name: getattr(wanted, name) for name in Asked.__struct_fields__},
    }
    wrong = [name for name, value in expected.items() if getattr(card, name) != value]
    brought = [(each.role, each.organisation, each.dataset) for each in spec.inputs]
    if [(each.role, each.organisation, each.dataset) for each in card.datasets] != brought:
        wrong.append("datasets")
    if (card.privacy.notion == "none") != (spec.params.get("noise") == "none"):
        wrong.append("privacy")
    return wrong


def datasets(spec: JobSpec, inputs: Mapping[Role, InputSummary]) -> tuple[Dataset, ...]:
    """Return what departments brought to a job, in the order of the job."""
    return tuple(
        Dataset(
            each.role,
            each.organisation,
            each.dataset,
            inputs[each.role].snapshot,
            inputs[each.role].catalogue_keys,
            inputs[each.role].rule_version,
        )
        for each in spec.inputs
    )


def privacy(spec: JobSpec, cost: Cost, spent: Cost | None = None) -> Privacy:
    """Return what a run costs as its card says it.

    Args:
        spec: names the budget.
        cost: of the whole run.
        spent: of the rounds held; None where that is the same.
    """
    params = spec.params
    if params.get("noise") == "none":
        return Privacy("none")
    delta = Fraction(params["delta"]) if "delta" in params else DELTA
    return Privacy(
        "approximate-dp" if "epsilon" in params else "zcdp",
        decimal_up(cost.rho),
        _epsilon(cost, delta),
        decimal_up(delta, 15),
        _epsilon(cost if spent is None else spent, delta),
    )


def training(plan: Plan, rounds: Mapping[str, int]) -> Training:
    """Return how a model was trained as its card says it."""
    return Training(
        dict(rounds),
        dict(plan.most_rounds),
        plan.sources,
        plan.honest,
        plan.persons_in,
        plan.unit_rows,
        plan.holdout,
    )


def _epsilon(cost: Cost, delta: Fraction) -> str:
    found = cost.amount("approximate-dp", delta)
    return "" if found is None else decimal_up(found)


# -- figures -------------------------------------------------------------------------------------------------


def measure(
    tables: Floats,
    edges: tuple[float, ...],
    on: Literal["held-out, noisy", "held-out", "public test set"],
    *,
    variance: float = 0.0,
    codes: Sequence[str] = (),
) -> Metrics:
    """Return the figures that histograms of chances make, see `protocols.training.scores`.

    A figure of fewer rows than `FEWEST`, or of so few that their noise may make it, is left out.

    Args:
        tables: `Bins.tables` of the sum over all departments: 2 sides × groups × 2 labels × bins, with its
            noise; of a public test set all rows are held out.
        edges: of the bins.
        on: which rows were held out.
        variance: of the noise on each count.
        codes: of the groups; the last group is that of unlisted codes. Empty: one group of all.
    """
    held, groups = tables[HELD_OUT], tables.shape[1]
    whole, noise = held.sum(axis=0), variance * groups
    fewest = fewest_rows(noise, whole.shape[1])
    area, low, high = _area(whole, noise)
    said, found, error = calibration(whole, edges, 2 * fewest)
    loss = log_loss(whole, edges)
    of_members = _NOT_STATED if on == "public test set" else _area(membership(tables), 2 * noise)
    return Metrics(
        on,
        auc=area,
        auc_low=low,
        auc_high=high,
        loss=round(loss, _DIGITS) if area is not None and 0 <= loss <= _MOST_LOSS else None,
        calibration=tuple(
            Bin(_share(a), _share(b)) for a, b in zip(said.tolist(), found.tolist(), strict=True)
        ),
        calibration_error=_share(error) if isfinite(error) else None,
        groups=tuple(
            _errors(code, counts, edges, variance)
            for code, counts in zip((*codes, "") if codes else (), held, strict=False)
        ),
        membership_auc=of_members[0],
        membership_low=of_members[1],
        membership_high=of_members[2],
    )


def fewest_rows(variance: float, counts: int) -> float:
    """Return the fewest rows of which a figure is stated, their number being the sum of so many counts."""
    return max(float(FEWEST), _DEVIATIONS * sqrt(variance * counts))


_Area: TypeAlias = tuple[float | None, float | None, float | None]
"""An AUC, and the ends of its interval."""

_NOT_STATED: Final[_Area] = (None, None, None)


def _area(table: Floats, variance: float) -> _Area:
    """Return the AUC of 2 × bins counts with its interval, of noise and of bins; None of too few rows."""
    if table.sum(axis=1).min() < fewest_rows(variance, table.shape[1]):
        return _NOT_STATED
    area, half = auc(table), WITHIN * auc_deviation(table, variance) + auc_error(table)
    return _share(area), _share(area - half), _share(area + half)


def _errors(code: str, counts: Floats, edges: tuple[float, ...], variance: float) -> GroupErrors:
    fewest = fewest_rows(variance, counts.shape[1])
    negatives, positives = counts.sum(axis=1)
    alarms, misses = errors(counts, edges, 0.5)
    return GroupErrors(
        code, _share(alarms) if negatives >= fewest else None, _share(misses) if positives >= fewest else None
    )


def _number(text: str) -> float:
    return float(Fraction(text))


def _share(value: float) -> float:
    return round(float(np.clip(value, 0, 1)), _DIGITS)


def _unfit(error: msgspec.ValidationError) -> DecodeError:
    """Return where a value is unfit, and nothing of the value."""
    found = _PATH.search(str(error))
    where = found.group(1) if found else "$"
    return _bad(f"a field at {where} is unknown, missing, or not of its form")


def _bad(why: str) -> DecodeError:
    return DecodeError(
        f"the card cannot be used: {why}", code="bad-card", hint="fetch the release again: minshu fetch JOB"
    )
