"""What a job of type `train/1` asks, read from its params and refused in words where it cannot be meant.

recipe   = "logistic"                              # or "mlp", "boost"; or a pin of another one
settings = { clip = "2", step = "2" }              # the recipe's own names; numbers as texts
features = [
  { slot = "street", codes = ["S1", "S2"] },
  { slot = "age", edges = ["20", "40"], missing = "yes" },
  { slot = "income", low = "0", high = "100000" },
]
label    = { slot = "vaccinated", positive = ["1"] }   # or { slot = "doses", at_least = "2" }
group    = { slot = "sex", codes = ["1", "2"] }    # errors are told by group, too
filters  = [{ slot = "year", low = "2020" }]
rounds   = 60
holdout  = 5                                       # every fifth person is never trained on
evaluate = { every = 20, bins = 32, rho = "0.002" }    # rho of each evaluation
rho      = "0.03"                                  # of the whole run; or epsilon and delta; or noise = "none"
test     = "aggregator"                            # in the place of holdout: a public data set

Policies have a use of columns for this, `train`: of features and of the label. The group is a `group`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec
import numpy as np

from protocols.dp.cost import Cost
from protocols.dp.mechanism import Budget
from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, InputError
from protocols.identifiers.areas import AREA_TABLES
from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, ColumnNeed, Domain, Turns
from protocols.jobs.sources import RECENT, sources_of
from protocols.releases.params import check_budget
from protocols.sums.plan import MIN_SOURCES
from protocols.tables import layout as tables
from protocols.tables.layout import (
    MAX_TEXT,
    MAX_UNIT_ROWS,
    NUMBER_TYPES,
    TEXT_TYPES,
    Filter,
    Reader,
    bad,
    check_slots,
    decimal_text,
    fraction,
    read_filters,
    read_slot,
)
from protocols.training.accounting import rho_for
from protocols.training.boost import Boost
from protocols.training.logistic import Logistic
from protocols.training.mlp import Mlp, Perceptron
from protocols.training.plan import MAX_WORDS
from protocols.training.recipe import Layout, Recipe
from protocols.training.schema import MAX_CODES, Amount, Binned, Coded, Schema
from protocols.training.scores import MAX_BINS, Bins
from protocols.training.work import Pin
from protocols.wire import JobSpec

JOB_TYPE: Final = "train/1"

TRAIN: Final = "train"
EVALUATE: Final = "evaluate"
"""Turns: what rounds are for."""

HISTOGRAM: Final = "histogram"
"""The curve in which a lead hands over the last evaluation's counts, see `protocols.training.scores`."""

SHOWN_DELTA: Final = Fraction(1, 100_000)
"""The δ at which ε is shown where the job names none."""

MIN_EXACT: Final = 3
"""Fewest departments that train without noise: of two, each would have the other's sums."""

MAX_FEATURES: Final = 256
MAX_ROUNDS: Final = 10_000
MAX_DELTA: Final = Fraction(1, 1000)
"""Largest δ that ε may be stated at."""

MAX_SETTINGS: Final = 32
MAX_GROUPS: Final = 64

MAX_ASK_BYTES: Final = 56 << 20
"""What a model takes once for each source: a lead's worker asks all of them in one frame of 64 MiB."""

MAX_TOTALS_BYTES: Final = 1 << 31
"""What the totals of a whole run take: the lead's node keeps all of them until it has the model."""

_BINS: Final = 32
_SETTING: Final = re.compile(r"[^\W\d]\w{0,62}")
_MAX_BYTES: Final = 512 << 10
"""Longest settings of a worker: twice a job's."""

Feature: TypeAlias = Coded | Binned | Amount
BuiltIn: TypeAlias = Logistic | Mlp | Boost


@dataclass(frozen=True, slots=True)
class Label:
    """What makes a row a 1: one of some texts, or a number from a least one on.

    Attributes:
        slot: the job's word for the column.
        positive: the texts; empty for numbers.
        at_least: the number; None for texts.
    """

    slot: str
    positive: tuple[str, ...] = ()
    at_least: Fraction | None = None

    @property
    def need(self) -> ColumnNeed:
        """The column it takes."""
        if self.at_least is None:
            return ColumnNeed(self.slot, "train", TEXT_TYPES, domain=Domain(named=self.positive))
        return ColumnNeed(self.slot, "train", NUMBER_TYPES, domain=Domain(bins=(self.at_least,)))

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        if self.at_least is None:
            return {"slot": self.slot, "positive": [*self.positive]}
        return {"slot": self.slot, "at_least": decimal_text(self.at_least)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How it is found out how good the model is.

    Attributes:
        every: after so many rounds of training, and once at the end.
        bins: of the chance that the model gives, of equal width.
        rho: of the noise on each histogram; 0 where the counts are exact.
    """

    every: int
    bins: int
    rho: Fraction


@dataclass(frozen=True, slots=True)
class Stop:
    """When training ends early: after so many evaluations in a row that did not better the AUC by so much."""

    patience: int
    least: Fraction


@dataclass(frozen=True, slots=True)
class Privacy:
    """What the whole run may tell of one person.

    Attributes:
        notion: `zcdp`: ρ; `approximate-dp`: ε at δ.
        amount: as the job says it.
        delta: 0 for ρ.
        rho: of the whole run, evaluations included.
    """

    notion: Literal["zcdp", "approximate-dp"]
    amount: Fraction
    delta: Fraction
    rho: Fraction


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    Attributes:
        recipe: one of Minshu's own by name, or the pin of another.
        settings: of the recipe, as the job writes them.
        features: in order, what a model sees of a row.
        label: what it is to foresee.
        group: by what errors are told apart; None where all rows are one group.
        filters: which rows count.
        rounds: of training, at most.
        holdout: one person in so many is never trained on; 0 for none.
        evaluate: how good the model is.
        privacy: None without noise.
        sources: how many departments give data.
        quorum: fewest of them whose updates make a round.
        colluding: sources besides the one who looks that may tell it their noise without harm.
        persons_in: in how many of the departments one person may be.
        unit_rows: rows of one person that count, the latest first.
        areas: name of the area table that identifiers are read with.
        deadline_s: seconds that a source has for one update.
        stop: when training ends early; None: never.
        test: whether the aggregator brings a public data set that the model is measured on.
    """

    recipe: str | Pin
    settings: Mapping[str, str]
    features: tuple[Feature, ...]
    label: Label
    group: Coded | None
    filters: tuple[Filter, ...]
    rounds: int
    holdout: int
    evaluate: Evaluation
    privacy: Privacy | None
    sources: int
    quorum: int
    colluding: int
    persons_in: int
    unit_rows: int
    areas: str
    deadline_s: int
    stop: Stop | None
    test: bool

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Roles: two or more sources, numbered from 1, and an aggregator. (2) The recipe, and what it sees.
        (3) Rounds, and what is held out. (4) Noise. (5) Who has to take part. (6) Nothing else; the recipe
        takes its settings.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        owners = sources_of(spec)
        sources = len(owners)
        if sources < MIN_SOURCES:
            raise InputError(
                "one source alone, but a department needs no protocol to train on its own rows",
                code="bad-roles",
                hint="name two or more departments, and an aggregator beside them",
            )
        # (2)
        given = dict(spec.params)
        # A text or a table; and a table of texts by names that are the recipe's.
        recipe = _read_recipe(given.pop("recipe", None))
        settings = _read_settings(given.pop("settings")) if "settings" in given else {}
        reader = Reader(given, JOB_TYPE)
        features = _read_features(reader)
        label = _read_label(reader.table("label"))
        group = _read_group(reader.table("group")) if reader.has("group") else None
        filters = read_filters(reader)
        # (3)
        rounds = reader.number("rounds", 1, MAX_ROUNDS)
        test = reader.has("test") and reader.choice("test", (AGGREGATOR,)) == AGGREGATOR
        holdout = reader.number("holdout", 0, 100, 0 if test else 5)
        if (holdout == 0) != test or holdout == 1:
            raise bad(
                "the model is measured on nothing, on everybody, or on two kinds of rows",
                'write holdout = 5, or test = "aggregator" without holdout',
            )
        # (4)
        privacy = read_privacy(reader)
        evaluate = _read_evaluation(reader, rounds, noisy=privacy is not None and not test)
        stop = _read_stop(reader.table("stop")) if reader.has("stop") else None
        # (5)
        quorum = reader.number("quorum", 2, sources, sources)
        found = cls(
            recipe,
            settings,
            features,
            label,
            group,
            filters,
            rounds,
            holdout,
            evaluate,
            privacy,
            sources,
            quorum,
            reader.number("colluding", 0, max(quorum - 2, 0), 0),
            reader.number("persons_in", 1, sources, sources),
            reader.number("unit_rows", 1, MAX_UNIT_ROWS, 1),
            reader.choice("areas", tuple(AREA_TABLES), "national"),
            reader.number("deadline_s", 1, 86_400, 600),
            stop,
            test,
        )
        # (6)
        reader.finish()
        _check(found)
        return found

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who is trained on: the sources in order."""
        return tuple(Role(f"source-{number + 1}") for number in range(self.sources))

    @property
    def givers(self) -> tuple[Role, ...]:
        """Who brings a dataset: the sources, and the aggregator of a public one."""
        return (*self.owners, AGGREGATOR) if self.test else self.owners

    @property
    def schema(self) -> Schema:
        """What a model sees of a row."""
        return schema_of(self.features)

    @property
    def recipe_name(self) -> str:
        """What a rule names: one of Minshu's own by its name, another one by its digest."""
        return self.recipe if isinstance(self.recipe, str) else self.recipe.digest

    @property
    def turns(self) -> dict[str, int]:
        """Most rounds of each kind in which sources add up something; none evaluate for a public test set."""
        if self.test:
            return {TRAIN: self.rounds}
        return {TRAIN: self.rounds, EVALUATE: -(-self.rounds // self.evaluate.every)}

    @property
    def honest(self) -> int:
        """Contributors whose noise nobody who sees the model of each round can subtract: h.

        Every source sees it and can take off its own share, and `colluding` others may tell it theirs.
        """
        return self.quorum - 1 - self.colluding

    def budget_of(self, turn: str) -> Budget | None:
        """Return ρ of one round; training shares what evaluations leave. None without noise."""
        if self.privacy is None:
            return None
        if turn == EVALUATE:
            return Budget("zcdp", self.evaluate.rho)
        return Budget("zcdp", (self.privacy.rho - self.evaluated) / self.rounds)

    @property
    def evaluated(self) -> Fraction:
        """What all evaluations cost in ρ."""
        return self.turns.get(EVALUATE, 0) * self.evaluate.rho

    def cost_of(self, rounds: Turns) -> Cost:
        """Return what so many rounds cost one dataset, without the question that the job is."""
        budgets = ((self.budget_of(turn), count) for turn, count in rounds.items())
        return Cost.zcdp(sum((budget.amount * count for budget, count in budgets if budget), Fraction(0)))

    def made(self, seed: int = 0) -> BuiltIn | None:
        """Return Minshu's own recipe with all of its numbers; None for one from elsewhere."""
        if not isinstance(self.recipe, str):
            return None
        return made_recipe(
            self.recipe,
            self.settings,
            self.schema,
            rounds=self.rounds,
            unit_rows=self.unit_rows,
            noisy=self.privacy is not None,
            seed=seed,
        )

    def layouts(self) -> Iterator[tuple[Budget, Layout]]:
        """Yield what the first round of each turn adds up, where it carries noise and is known beforehand."""
        made = self.made()
        first = {
            TRAIN: None if made is None else _first_layout(made),
            EVALUATE: self.bins.layout(self.unit_rows),
        }
        for turn in self.turns:
            budget, layout = self.budget_of(turn), first[turn]
            if budget is not None and layout is not None:
                yield budget, layout

    @property
    def bins(self) -> Bins:
        """The cells of an evaluation; the last group is that of unlisted and missing codes."""
        return Bins.even(self.evaluate.bins, 1 if self.group is None else self.group.width)

    @property
    def columns(self) -> tuple[ColumnNeed, ...]:
        """What each dataset has to offer; a slot may come more than once."""
        return (
            *map(_need, self.features),
            self.label.need,
            *(_group_need(each) for each in (self.group,) if each),
            *(each.need for each in self.filters),
            RECENT,
        )

    @property
    def filtered(self) -> tables.Layout:
        """The filters, as tables have them."""
        return tables.Layout(filters=self.filters, unit_rows=self.unit_rows)

    def asks(self) -> dict[str, Any]:
        """Return as plain JSON what is trained, and on which part of a row; see also `settings_bytes`."""
        return {
            "recipe": self.recipe if isinstance(self.recipe, str) else msgspec.structs.asdict(self.recipe),
            "settings": dict(self.settings),
            "features": [feature_json(each) for each in self.features],
            "label": self.label.to_json(),
            "group": None if self.group is None else feature_json(self.group),
            "rounds": self.rounds,
            "holdout": self.holdout,
            "evaluate": {
                "every": self.evaluate.every,
                "bins": self.evaluate.bins,
                "test": self.test,
            },
            "stop": None
            if self.stop is None
            else {"patience": self.stop.patience, "least": decimal_text(self.stop.least)},
            "unit_rows": self.unit_rows,
            "noisy": self.privacy is not None,
        }

    def settings_bytes(self) -> bytes:
        """Return what workers are told of the job, the same at all nodes: canonical JSON of `asks`."""
        return canonical_json(self.asks())


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker reads of `Params.settings_bytes`.

    Attributes:
        recipe: one of Minshu's own by name, or the pin of another.
        settings: of the recipe, as the job writes them.
        schema: what it sees of a row; a row's columns are named `f:` and the feature's slot.
        groups: how many groups rows are told apart by; the last is of unlisted and missing codes.
        rounds: of training, at most.
        holdout: one person in so many is held out.
        every: rounds of training between two evaluations.
        bins: of an evaluation.
        test: whether the lead has a public test set, and sources evaluate nothing.
        patience: evaluations without betterment after which training ends; 0: never.
        least: of the AUC, that counts as betterment.
        unit_rows: rows one person has at most.
        noisy: whether totals carry noise.
    """

    recipe: str | Pin
    settings: Mapping[str, str]
    schema: Schema
    groups: int
    rounds: int
    holdout: int
    every: int
    bins: int
    test: bool
    patience: int
    least: float
    unit_rows: int
    noisy: bool

    @classmethod
    def decode(cls, settings: bytes) -> Self:
        """Read the settings of `Begin`.

        Raises:
            DecodeError: `bad-settings`: not of the form that `Params.settings_bytes` has.
        """
        plain = decode_json(settings, limit=_MAX_BYTES)
        try:
            recipe, stop, group = plain["recipe"], plain["stop"], plain["group"]
            return cls(
                recipe=recipe if isinstance(recipe, str) else msgspec.convert(recipe, Pin),
                settings=plain["settings"],
                schema=schema_of(tuple(map(feature_of, plain["features"]))),
                groups=1 if group is None else len(group["codes"]) + 1,
                rounds=plain["rounds"],
                holdout=plain["holdout"],
                every=plain["evaluate"]["every"],
                bins=plain["evaluate"]["bins"],
                test=plain["evaluate"]["test"],
                patience=0 if stop is None else stop["patience"],
                least=0.0 if stop is None else float(Fraction(stop["least"])),
                unit_rows=plain["unit_rows"],
                noisy=plain["noisy"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError):
            raise DecodeError(
                "settings of a worker that are not of the form this version writes",
                code="bad-settings",
                hint="run the same release on every node",
            ) from None

    def made(self, seed: int) -> BuiltIn:
        """Return Minshu's own recipe with all of its numbers; see `made_recipe`."""
        if not isinstance(self.recipe, str):
            raise TypeError("a recipe from elsewhere is made by its own distribution")
        return made_recipe(
            self.recipe,
            self.settings,
            self.schema,
            rounds=self.rounds,
            unit_rows=self.unit_rows,
            noisy=self.noisy,
            seed=seed,
        )


# -- recipes -------------------------------------------------------------------------------------------------


def _decimal(text: str, where: str) -> float:
    return float(fraction(text, where))


def _whole(text: str, where: str) -> int:
    number = fraction(text, where)
    if number.denominator != 1:
        raise bad(f"{where} is no whole number", 'write it in quotation marks, such as "4"')
    return int(number)


def _word(text: str, where: str) -> str:  # noqa: ARG001  # the recipe knows its words
    return text


_Read: TypeAlias = Callable[[str, str], float | int | str]

_SETTINGS: Final[Mapping[str, Mapping[str, _Read]]] = {
    "logistic": {
        "clip": _decimal,
        "step": _decimal,
        "momentum": _decimal,
        "ridge": _decimal,
        "radius": _decimal,
    },
    "mlp": {"hidden": _whole, "clip": _decimal, "step": _decimal, "decay": _decimal},
    "boost": {
        "mode": _word,
        "depth": _whole,
        "step": _decimal,
        "ridge": _decimal,
        "largest_leaf": _decimal,
        "fewest": _whole,
        "batch": _whole,
        "per_tree": _whole,
    },
}
"""Settings that a job may make of each of Minshu's own recipes; what it leaves out is as the recipe says."""

BUILT_IN: Final = tuple(_SETTINGS)
"""Minshu's own recipes."""


def made_recipe(
    name: str,
    settings: Mapping[str, str],
    schema: Schema,
    *,
    rounds: int,
    unit_rows: int,
    noisy: bool,
    seed: int = 0,
) -> BuiltIn:
    """Return one of Minshu's own recipes with all of its numbers.

    Args:
        name: of `BUILT_IN`.
        settings: as the job writes them.
        schema: what it sees of a row.
        rounds: of training; those of `boost` are levels of trees, or with random splits batches of trees.
        unit_rows: rows one person has at most.
        noisy: whether totals carry noise: then `boost` draws its splits.
        seed: public, below 2^64; of first weights and random splits.

    Raises:
        InputError: `bad-settings`: names that the recipe does not know; `bad-params`: numbers that cannot be.
    """
    known = _SETTINGS[name]
    if strange := set(settings) - set(known):
        raise InputError(
            f"{len(strange)} setting(s) that the recipe {name} does not have",
            code="bad-settings",
            hint=f"it has: {', '.join(known)}",
        )
    read: dict[str, Any] = {each: known[each](text, f"settings.{each}") for each, text in settings.items()}
    match name:
        case "logistic":
            return Logistic(schema, rounds, rows_per_unit=unit_rows, **read)
        case "mlp":
            return Mlp(schema, rounds=rounds, rows_per_unit=unit_rows, seed=seed, **read)
    read.setdefault("mode", "random" if noisy else "greedy")
    if noisy and read["mode"] != "random":
        raise InputError(
            "boost with noise and splits that are looked for: each of them would take noise of its own",
            code="bad-settings",
            hint='write mode = "random", or leave it out',
        )
    shape = Boost(schema, trees=read.get("batch", 1), **read)
    trees = rounds * shape.batch if shape.mode == "random" else rounds // shape.depth
    if shape.mode == "greedy" and rounds % shape.depth:
        raise bad(
            f"{rounds} rounds are no whole number of trees of depth {shape.depth}",
            f"write rounds = {max(rounds // shape.depth, 1) * shape.depth}: a tree takes one for each level",
        )
    return Boost(schema, trees=trees, rows_per_unit=unit_rows, seed=seed, **read)


# -- features ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def schema_of(features: tuple[Feature, ...]) -> Schema:
    """Return the features as recipes take them: coded ones first, then amounts, each in the job's order.

    Raises:
        InputError: `bad-features`.
    """
    return Schema(
        tuple(each for each in features if not isinstance(each, Amount)),
        tuple(each for each in features if isinstance(each, Amount)),
    )


def feature_json(feature: Feature) -> dict[str, Any]:
    """Return the plain JSON form of a feature: as the job says it, numbers as texts."""
    match feature:
        case Coded(name, codes):
            return {"slot": name, "codes": [*codes]}
        case Binned(name, edges, missing):
            return {"slot": name, "edges": [*map(_text, edges)], "missing": missing}
        case Amount(name, low, high):
            return {"slot": name, "low": _text(low), "high": _text(high)}


def _text(value: float) -> str:
    return decimal_text(_exactly(value))


def feature_of(plain: Any) -> Feature:
    """Return the feature that `feature_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: another form.
    """
    if "codes" in plain:
        return Coded(plain["slot"], tuple(plain["codes"]))
    if "edges" in plain:
        return Binned(plain["slot"], tuple(map(float, plain["edges"])), plain["missing"])
    return Amount(plain["slot"], float(plain["low"]), float(plain["high"]))


def _need(feature: Feature) -> ColumnNeed:
    match feature:
        case Coded(name, codes):
            return ColumnNeed(name, "train", TEXT_TYPES, domain=Domain(named=codes))
        case Binned(name, edges):
            domain = Domain(bins=tuple(map(_exactly, edges)))
            return ColumnNeed(name, "train", NUMBER_TYPES, domain=domain)
        case Amount(name, low, high):
            domain = Domain(bounds=(_exactly(low), _exactly(high)))
            return ColumnNeed(name, "train", NUMBER_TYPES, domain=domain)


def _group_need(group: Coded) -> ColumnNeed:
    return ColumnNeed(group.name, "group", TEXT_TYPES, domain=Domain(named=group.codes))


# -- reading -------------------------------------------------------------------------------------------------


def _read_recipe(plain: object) -> str | Pin:
    if isinstance(plain, str) and plain in BUILT_IN:
        return plain
    try:
        return msgspec.convert(plain, Pin)
    except msgspec.ValidationError:
        raise bad(
            f"params.recipe is none of {', '.join(BUILT_IN)}, and no pin of another recipe",
            'write recipe = "logistic", or { name = …, distribution = …, version = …, digest = "sha256:…" }',
        ) from None


def _read_settings(plain: object) -> Mapping[str, str]:
    if (
        not isinstance(plain, Mapping)
        or not 1 <= len(plain) <= MAX_SETTINGS
        or not all(isinstance(name, str) and _SETTING.fullmatch(name) for name in plain)
        or not all(isinstance(text, str) and 1 <= len(text) <= MAX_TEXT for text in plain.values())
    ):
        raise bad(
            f"params.settings is no table of 1 to {MAX_SETTINGS} names and texts",
            'write settings = { clip = "2", step = "2" }, numbers in quotation marks, or leave it out',
        )
    return dict(plain)


def _read_features(reader: Reader) -> tuple[Feature, ...]:
    found = []
    for table in reader.tables("features", MAX_FEATURES, least=1):
        found.append(_read_feature(table))
        table.finish()
    return tuple(found)


def _read_feature(table: Reader) -> Feature:
    slot = read_slot(table)
    if table.has("codes"):
        return Coded(slot, table.texts("codes", MAX_CODES - 1))
    if table.has("edges"):
        edges = tuple(map(_double, table.fractions("edges", MAX_CODES - 2)))
        return Binned(slot, edges, table.choice("missing", ("no", "yes"), "no") == "yes")
    low, high = _double(table.fraction("low")), _double(table.fraction("high"))
    if low >= high:
        raise bad("low and high of a feature are not in order", 'write low = "0", high = "100000"')
    return Amount(slot, low, high)


def _double(number: Fraction) -> float:
    """Return a number as recipes and files of models have it."""
    value = float(number)
    if Fraction(repr(value)) != number:
        raise bad(
            "an edge or a bound of a feature has more digits than are kept",
            "write a decimal number of at most 15 digits",
        )
    return value


def _exactly(value: float) -> Fraction:
    return Fraction(repr(value))


def _read_label(table: Reader) -> Label:
    slot = read_slot(table)
    if table.has("at_least"):
        found = Label(slot, at_least=table.fraction("at_least"))
    else:
        found = Label(slot, table.texts("positive", MAX_CODES))
    table.finish()
    return found


def _read_group(table: Reader) -> Coded:
    found = Coded(read_slot(table), table.texts("codes", MAX_GROUPS))
    table.finish()
    return found


def read_privacy(reader: Reader) -> Privacy | None:
    """Read exactly one of `rho`, `epsilon` with `delta`, and `noise = "none"`; None for no noise.

    Raises:
        InputError: `bad-privacy`.
    """
    ways = [name for name in ("rho", "epsilon", "noise") if reader.has(name)]
    if len(ways) != 1:
        raise InputError(
            f"params name {' and '.join(ways) or 'no noise'}, a run has one of rho, epsilon and noise",
            code="bad-privacy",
            hint='write rho = "0.03", or epsilon = "1" with delta = "0.00001", or noise = "none"',
        )
    if ways == ["noise"]:
        reader.choice("noise", ("none",))
        return None
    if ways == ["rho"]:
        rho = check_budget(Budget("zcdp", reader.fraction("rho"))).amount
        return Privacy("zcdp", rho, Fraction(0), rho)
    epsilon = check_budget(Budget("pure-dp", reader.fraction("epsilon"))).amount
    delta = reader.fraction("delta")
    if not 0 < delta <= MAX_DELTA:
        raise InputError(
            f"delta is not above 0 and at most {MAX_DELTA}",
            code="bad-privacy",
            hint='write delta = "0.00001": far below one over the number of persons',
        )
    return Privacy("approximate-dp", epsilon, delta, _rho(epsilon, delta))


@lru_cache(maxsize=64)
def _rho(epsilon: Fraction, delta: Fraction) -> Fraction:
    """Return the ρ of a run that keeps to ε at δ, as the ledger converts them."""
    return rho_for(epsilon, delta, 1)


def _read_evaluation(reader: Reader, rounds: int, *, noisy: bool) -> Evaluation:
    if not noisy and not reader.has("evaluate"):
        return Evaluation(rounds, _BINS, Fraction(0))
    table = reader.table("evaluate")
    if not noisy and not any(map(table.has, ("rho", "every", "bins"))):
        raise bad("params.evaluate says nothing", "write evaluate = { every = 20 }, or leave it out")
    if table.has("rho") != noisy:
        raise InputError(
            "evaluate.rho is missing, or stands where counts are exact",
            code="bad-privacy",
            hint='with noise write evaluate = { rho = "0.002" }; without, or on a test set, leave rho out',
        )
    rho = check_budget(Budget("zcdp", table.fraction("rho"))).amount if noisy else Fraction(0)
    every, bins = table.number("every", 1, rounds, rounds), table.number("bins", 2, MAX_BINS, _BINS)
    found = Evaluation(every, bins, rho)
    table.finish()
    if found.bins % 2:
        raise bad("evaluate.bins is odd, so no bin ends at a chance of one half", "write bins = 32")
    return found


def _read_stop(table: Reader) -> Stop:
    found = Stop(table.number("patience", 1, 100), table.fraction("least"))
    table.finish()
    if not 0 <= found.least < 1:
        raise bad("stop.least is no difference of two AUCs", 'write stop = { patience = 2, least = "0.002" }')
    return found


def _check(params: Params) -> None:
    """Refuse params whose parts do not go together.

    (1) A slot stands for one thing. (2) Without noise nobody is missing, and nobody has another's sums. (3)
    Evaluations leave something to train with. (4) The recipe takes its settings, its sums can be made, and
    every node has room for its model, and the lead's for the totals of the run.

    Raises:
        InputError: what is wrong.
    """
    # (1)
    slots = [each.name for each in params.features]
    if params.label.slot in slots or (params.group is not None and params.group.name == params.label.slot):
        raise bad(
            "the label is a feature or the group, too",
            "leave it out there: a model that sees its label foresees nothing",
        )
    check_slots(params.filtered)
    params.schema  # noqa: B018  # refuses features that are none
    # (2)
    if params.privacy is None and params.sources < MIN_EXACT:
        raise InputError(
            f"{params.sources} departments without noise: each would have the other's sums exactly",
            code="too-few-organisations",
            hint=f'name {MIN_EXACT} or more, or train with noise: rho = "0.03"',
        )
    if params.privacy is None and (params.quorum, params.colluding) != (params.sources, 0):
        raise bad(
            "a quorum or colluding departments in a job without noise",
            "leave both out: sums of other sets of departments would tell of those that come and go",
        )
    # (3)
    if params.privacy is not None:
        left = params.privacy.rho - params.evaluated
        if left <= 0:
            raise InputError(
                f"{params.turns.get(EVALUATE, 0)} evaluations take all of the run's privacy loss",
                code="bad-privacy",
                hint="evaluate less often, with a smaller rho, or give the run more",
            )
        check_budget(Budget("zcdp", left / params.rounds))
    # (4)
    made = params.made()
    if made is not None and (words := most_words(made)) > MAX_WORDS:
        raise InputError(
            f"sums of {words} words a round, at most {MAX_WORDS} are added up",
            code="too-many-words",
            hint="list fewer codes, or ask for fewer hidden units or shallower trees",
        )
    if made is not None and (size := params.sources * state_bytes(made)) > MAX_ASK_BYTES:
        raise bad(
            f"a model that takes {size >> 20} MiB, once for each of {params.sources} departments, at most "
            f"{MAX_ASK_BYTES >> 20} are sent in a round",
            "list fewer codes, or ask for fewer hidden units, or for fewer or shallower trees",
        )
    kept = 8 * params.bins.size * params.turns.get(EVALUATE, 0)
    kept += 0 if made is None else 8 * most_words(made) * params.rounds
    if kept > MAX_TOTALS_BYTES:
        raise bad(
            f"totals of {kept >> 20} MiB over the whole run, at most {MAX_TOTALS_BYTES >> 20} are kept",
            "ask for fewer rounds, a smaller model, or fewer evaluations",
        )


def _first_layout(recipe: Recipe[Any]) -> Layout:
    """Return what the first round adds up. No first weights are drawn for that: there may be millions."""
    none = np.zeros(0)
    state = Perceptron(0, none, none, none) if isinstance(recipe, Mlp) else recipe.start()
    layout = recipe.layout(state)
    assert layout is not None  # there is at least one round
    return layout


def state_bytes(recipe: BuiltIn) -> int:
    """Return how many bytes the numbers of a recipe's state take at most, on the way and at the end."""
    match recipe:
        case Mlp():
            return 3 * 8 * recipe.size
        case Boost(depth=depth, trees=trees):
            nodes, codes = (1 << depth) - 1, int(recipe.schema.offsets[-1])
            growing = 0 if recipe.mode == "random" else ((1 << depth) >> 2) * codes * 3 * 8
            return trees * (nodes * (2 + max(recipe.schema.widths)) + (nodes + 1) * 8) + growing
        case _:
            return 2 * 8 * recipe.schema.size


def most_words(recipe: Recipe[Any]) -> int:
    """Return the most words that a round of training adds up."""
    words = _first_layout(recipe).vector.size
    # Trees that grow add up the left half of each level's nodes.
    if isinstance(recipe, Boost) and recipe.mode == "greedy":
        return words << max(recipe.depth - 2, 0)
    return words
