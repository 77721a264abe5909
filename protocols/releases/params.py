"""What a job of type `release/1` asks, read from its params and refused in words where it cannot be meant."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final, Literal, Self, TypeVar

from protocols.dp.mechanism import Budget
from protocols.dp.unknown_keys import MAX_DELTA
from protocols.errors import InputError
from protocols.identifiers.areas import AREA_TABLES
from protocols.ids import Role
from protocols.jobs.job_type import ColumnNeed, Domain, source
from protocols.jobs.sources import RECENT, sources_of
from protocols.sums.plan import MODES, Mode
from protocols.tables.layout import (
    MAX_UNIT_ROWS,
    NUMBER_TYPES,
    TEXT_TYPES,
    Axis,
    Layout,
    Reader,
    bad,
    check_slots,
    decimal_text,
    read_axes,
    read_filters,
    read_measure,
    read_slot,
)
from protocols.wire import JobSpec

JOB_TYPE: Final = "release/1"

Statistic = Literal["count", "histogram", "sum", "mean", "quantile", "tree", "keys"]
STATISTICS: Final[tuple[Statistic, ...]] = ("count", "histogram", "sum", "mean", "quantile", "tree", "keys")

MAX_BINS: Final = 1 << 12
MAX_QUANTILES: Final = 20
MAX_LEVELS: Final = 6
MAX_PREFIX: Final = 32

LEAST_PRIVACY: Final = Fraction(1, 10**6)
"""Least ρ or ε of a release. Its noise is 700 times, or a million times, what one person changes."""

Word = TypeVar("Word", bound=str)


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    Attributes:
        statistic: what is computed.
        layout: the cells of every source's vectors; a quantile's bins are its one axis.
        budget: the privacy loss of the whole job.
        delta: δ of unknown keys; 0 for everything else.
        sources: how many departments give data.
        key_holder: the source that turns totals into the table; None where there is one source.
        mode: of the secure sum.
        areas: name of the area table that identifiers are read with.
        persons_in: in how many of the departments one person may be.
        colluding: how many contributors besides the key-holder may tell it their noise without harm.
        levels: of a tree, ascending lengths of the prefixes between the whole and the values.
        at: which quantiles.
        end: where the last bin of a quantile ends.
        keys: the slot whose own values are the cells, for unknown keys.
    """

    statistic: Statistic
    layout: Layout
    budget: Budget
    delta: Fraction
    sources: int
    key_holder: Role | None
    mode: Mode
    areas: str
    persons_in: int
    colluding: int
    levels: tuple[int, ...] = ()
    at: tuple[Fraction, ...] = ()
    end: Fraction = Fraction(0)
    keys: str = ""

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Roles: sources numbered from 1, and with two or more an aggregator. (2) What every release says.
        (3) What its statistic asks. (4) Nothing else.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        owners = sources_of(spec)
        sources = len(owners)
        # (2)
        given = dict(spec.params)
        # Lengths are numbers, all else that is a list holds texts or tables.
        levels = given.pop("levels", None)
        reader = Reader(given, JOB_TYPE)
        statistic = _word(reader, "statistic", STATISTICS)
        budget = read_budget(reader)
        key_holder, mode, colluding = None, MODES[0], 0
        if sources > 1:
            key_holder = Role(reader.choice("key_holder", owners))
            mode = _word(reader, "mode", MODES, MODES[0])
            colluding = reader.number("colluding", 0, sources - 2, 0)
        persons_in = reader.number("persons_in", 1, sources, sources)
        unit_rows = reader.number("unit_rows", 1, MAX_UNIT_ROWS, 1)
        areas = reader.choice("areas", tuple(AREA_TABLES), "national")
        # (3)
        asked = _asked(reader, statistic, sources, levels)
        layout = Layout(asked.pop("axes", ()), read_filters(reader), asked.pop("measures", ()), unit_rows)
        # (4)
        reader.finish()
        found = cls(
            statistic,
            layout,
            budget,
            asked.pop("delta", Fraction(0)),
            sources,
            key_holder,
            mode,
            areas,
            persons_in,
            colluding,
            **asked,
        )
        check_slots(layout)
        return found

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a dataset: the sources in order."""
        return tuple(source(i + 1) for i in range(self.sources))

    @property
    def most_rows(self) -> int:
        """Most rows of one person that count, in all departments together."""
        return self.layout.unit_rows * self.persons_in

    @property
    def honest(self) -> int:
        """Contributors whose noise nobody who sees the totals can subtract: h.

        The key-holder subtracts its own share, and `colluding` others may tell it theirs. Someone alone adds
        the whole noise.
        """
        return self.sources - 1 - self.colluding if self.sources > 1 else 1

    @property
    def columns(self) -> tuple[ColumnNeed, ...]:
        """What each source's dataset has to offer; a slot may come more than once."""
        needs: tuple[ColumnNeed, ...]
        if self.statistic == "quantile":
            (axis,) = self.layout.axes
            kept = (each.need for each in self.layout.filters)
            domain = Domain(bins=axis.bins)
            needs = (ColumnNeed(axis.slot, "quantile", NUMBER_TYPES, domain=domain), *kept)
        else:
            needs = self.layout.needs(covering=False)
        if self.keys:
            needs = (ColumnNeed(self.keys, "group", TEXT_TYPES), *needs)
        return (*needs, RECENT)


def _word(reader: Reader, name: str, words: tuple[Word, ...], default: Word | None = None) -> Word:
    chosen = reader.choice(name, words, default)
    return next(word for word in words if word == chosen)


def read_budget(reader: Reader) -> Budget:
    """Read exactly one of `rho` and `epsilon`.

    Raises:
        InputError: `bad-privacy`: both, neither, or an amount that is none.
    """
    if reader.has("rho") == reader.has("epsilon"):
        found = "both rho and epsilon" if reader.has("rho") else "neither rho nor epsilon"
        raise InputError(
            f"params name {found}, a release has one of them",
            code="bad-privacy",
            hint='write rho = "0.1" for Gaussian noise, or epsilon = "1" for a pure bound',
        )
    if reader.has("rho"):
        return check_budget(Budget("zcdp", reader.fraction("rho")))
    return check_budget(Budget("pure-dp", reader.fraction("epsilon")))


def loss_text(budget: Budget, delta: Fraction = Fraction(0)) -> str:
    """Return a privacy loss as statements say it: `ρ = 0.1`, `ε = 1, δ = 0.00001`."""
    letter = "ρ" if budget.notion == "zcdp" else "ε"
    said = f", δ = {decimal_text(delta)}" if delta else ""
    return f"{letter} = {decimal_text(budget.amount)}{said}"


def check_budget(budget: Budget) -> Budget:
    """Return the budget of a release, if anything could be told for it.

    Raises:
        InputError: `bad-privacy`: less than `LEAST_PRIVACY`.
    """
    if budget.amount < LEAST_PRIVACY:
        letter = "ρ" if budget.notion == "zcdp" else "ε"
        raise InputError(
            f"{letter} is below {decimal_text(LEAST_PRIVACY)}, so little that noise drowns every number",
            code="bad-privacy",
            hint="0.1 to 1 are usual",
        )
    return budget


def _asked(reader: Reader, statistic: Statistic, sources: int, levels: object) -> dict[str, Any]:
    """Read what one statistic asks, by the names of `Params` and `Layout`."""
    if statistic != "tree" and levels is not None:
        raise InputError(
            "params.levels, but only a tree has levels",
            code="unknown-param",
            hint='remove it, or write statistic = "tree"',
        )
    match statistic:
        case "count":
            return {}
        case "histogram":
            return {"axes": read_axes(reader, least=1)}
        case "sum" | "mean":
            measure = read_measure(reader.table("measure"), (statistic,))
            return {"axes": read_axes(reader), "measures": (measure,)}
        case "quantile":
            return _quantile(reader)
        case "tree":
            axes = read_axes(reader, least=1)
            return {"axes": axes, "levels": _levels(axes, levels)}
        case "keys":
            return _keys(reader, sources)


def _quantile(reader: Reader) -> dict[str, Any]:
    table = reader.table("measure")
    slot = read_slot(table)
    if not table.has("bins"):
        raise bad(
            "a quantile without bins: they say in public how fine the answer is",
            'write measure = { slot = "age", bins = ["0", "18", "60"], end = "120" }',
        )
    bins, end = table.fractions("bins", MAX_BINS), table.fraction("end")
    table.finish()
    if len(bins) < 2 or end <= bins[-1]:
        raise bad(
            "the bins of a quantile are fewer than two, or end before the last one begins",
            "list ascending lower bounds, and as end a number above them",
        )
    at = reader.fractions("at", MAX_QUANTILES)
    if at[0] <= 0 or at[-1] >= 1:
        raise bad(
            "params.at is not between 0 and 1: least and greatest value belong to single persons",
            'write at = ["0.5"] for the median',
        )
    return {"axes": (Axis(slot, bins=bins),), "at": at, "end": end}


def _levels(axes: tuple[Axis, ...], levels: object) -> tuple[int, ...]:
    """Return the lengths of prefixes, once every value is sure to have one place at each level."""
    if len(axes) != 1 or not axes[0].values:
        raise bad("a tree has one axis, with values", "list the codes of the smallest areas as its values")
    if (
        not isinstance(levels, list | tuple)
        or not 1 <= len(levels) <= MAX_LEVELS
        or not all(type(level) is int and 1 <= level <= MAX_PREFIX for level in levels)
        or list(levels) != sorted(set(levels))
    ):
        raise InputError(
            f"params.levels is no ascending list of 1 to {MAX_LEVELS} lengths of prefixes",
            code="bad-levels",
            hint="write levels = [6] for districts between the city and streets of nine digits",
        )
    values = sorted(axes[0].values)
    # A value that is not longer would be an area and a part of one at once; so would one that begins another.
    short = sum(len(value) <= levels[-1] for value in values)
    within = sum(b.startswith(a) for a, b in pairwise(values))
    if short or within:
        raise InputError(
            f"{short} value(s) are not longer than the last level of the tree, {within} begin(s) another "
            "value, expected smallest areas alone",
            code="bad-levels",
            hint="list codes of one kind, longer than every level: prefixes are what the levels are made of",
        )
    return tuple(levels)


def _keys(reader: Reader, sources: int) -> dict[str, Any]:
    if sources > 1:
        raise InputError(
            f"unknown keys of {sources} departments: they can only be added up where each knows the cells",
            code="keys-jointly",
            hint="ask one department for its keys, then all of them for a histogram of those",
        )
    slot, delta = read_slot(reader), reader.fraction("delta")
    if not 0 < delta <= MAX_DELTA:
        raise InputError(
            f"delta is not above 0 and at most {MAX_DELTA}: it is the chance that a person's own key shows",
            code="bad-privacy",
            hint='write for example delta = "1e-9" as "1/1000000000"',
        )
    return {"keys": slot, "delta": delta}
