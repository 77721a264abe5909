"""Small joined tables for tests: specs of every form, lists, all parties, and the plaintext table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import joined_cases
import numpy as np
from crosscheck_case import CTX
from joined_cases import PERSON, S1, S2, S3, SEATS, Case, Row, columns_of
from joined_cases import amount as measure
from sources_case import spec_of

from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, Content, source
from protocols.jobs.joined_table import JoinedTable, Params
from protocols.joined.lists import JoinedList
from protocols.joined.params import DEALER
from protocols.wire import Constraints, JobSpec

__all__ = ["PERSON", "S1", "S2", "S3", "SEATS", "Case", "Row", "measure"]

JOINED: Final = JoinedTable()
OPEN: Final = Constraints(min_group_size=1)


def axis(number: int, slot: str, values: Sequence[str], *, open: bool = False) -> dict[str, Any]:  # noqa: A002  # the param's name
    """Return an axis with values."""
    return {"source": source(number), "slot": slot, "values": [*values], "open": "yes" if open else "no"}


def banded(number: int, slot: str, bins: Sequence[str], *, open: bool = False) -> dict[str, Any]:  # noqa: A002  # the param's name
    """Return an axis with bins."""
    return {"source": source(number), "slot": slot, "bins": [*bins], "open": "yes" if open else "no"}


STREETS: Final = ("s1", "s2", "s3")
REGISTERED: Final = axis(1, "registered", STREETS)
RESIDENT: Final = axis(2, "resident", STREETS)
PAID: Final = measure(1, "paid", "0", "500", decimals=1, of=["sum", "mean"])
MONTHS: Final = measure(2, "months", "0", "60")
OVERPAID: Final = measure(1, "paid", "0", "500", decimals=1, times="months")


def joined_spec(sources: int = 2, *, dealer: bool | None = None, **params: Any) -> JobSpec:
    """Return a spec; the dealer sits where the form needs one, unless that is said otherwise.

    Each source brings the slots that are its own; params of None are left out.
    """
    filled = {"areas": "demo-city", **params}
    spec = spec_of(JOINED, sources, filled, {})
    inputs = tuple(
        replace(given, columns=columns_of(spec.params, given.role, "axes", "measures", "filters"))
        for given in spec.inputs
    )
    roles = {role: node for role, node in spec.roles.items() if role != AGGREGATOR}
    blocks = {
        part["source"]
        for name in ("axes", "measures")
        for part in spec.params.get(name) or ()
        if isinstance(part, Mapping) and part.get("open") != "yes"
    }
    wanted = len(blocks) == 2 if dealer is None else dealer
    seats = {role: node for role, node in SEATS.items() if wanted or role != DEALER}
    return replace(spec, roles={**roles, **seats}, inputs=inputs)


def listed(spec: JobSpec, role: Role, rows: Sequence[Row]) -> JoinedList:
    """Return rows as the node of that source would prepare them."""
    return joined_cases.listed(JOINED, spec, role, rows)


def joined_case(
    spec: JobSpec,
    lists: Sequence[Sequence[Row]],
    *,
    constraints: Constraints = OPEN,
    seed: object = 0,
    ctx: bytes = CTX,
) -> Case:
    """Return a table of these rows, one list for each source."""
    JOINED.check(spec)
    ready = {source(i): listed(spec, source(i), rows) for i, rows in enumerate(lists, start=1)}
    return joined_cases.case_of(JOINED, spec, ready, constraints=constraints, seed=seed, ctx=ctx)


def plaintext(spec: JobSpec, lists: Sequence[Sequence[Row]]) -> tuple[np.ndarray, ...]:
    """Return the cells of each total by looking at everybody's rows, in plain Python.

    One row of a person on each list; values have to be on the axes, within bounds and filters, to count.
    """
    params = Params.of(spec)
    wholes = params.lists.wholes
    people = [
        {row["who"]: row for row in rows if _counts(whole, row)}
        for whole, rows in zip(wholes, lists, strict=True)
    ]
    shape = tuple(each.size for each in params.layout.axes)
    cells = [np.zeros(shape, dtype=object) for _ in params.totals]
    for who in set.intersection(*(set(each) for each in people)):
        joined: dict[str, Any] = {}
        for each in people:
            joined |= each[who]
        at = tuple(_place(each, joined[each.slot]) for each in params.layout.axes)
        decimals = {each.amount.slot: each.amount.decimals for each in params.lists.amounts}
        bounds = {each.amount.slot: (each.amount.low, each.amount.high) for each in params.lists.amounts}
        for into, total in zip(cells, params.totals, strict=True):
            adds = 1
            for slot in total.slots:
                low, high = bounds[slot]
                adds *= min(max(round(Fraction(joined[slot]) * 10 ** decimals[slot]), low), high)
            into[at] += adds - total.centre
    return tuple(cells)


def _counts(whole: Any, row: Row) -> bool:
    on = all(_place(each, row.get(each.slot)) is not None for each in (*whole.open, *whole.hidden))
    kept = all(
        row.get(each.slot) in each.values
        if each.values
        else (each.low is None or row[each.slot] >= each.low)
        and (each.high is None or row[each.slot] <= each.high)
        for each in whole.filters
    )
    return on and kept and all(row.get(each.slot) is not None for each in whole.amounts)


def _place(axis: Any, value: Any) -> int | None:
    if axis.values:
        return axis.values.index(value) if value in axis.values else None
    found = sum(bound <= value for bound in axis.bins) - 1
    return found if found >= 0 else None


def crowd(people: Sequence[int], **values: Sequence[Any]) -> list[Row]:
    """Return one row for each of these persons; each slot's values come round by the person's number."""
    return [{"who": who} | {slot: each[who % len(each)] for slot, each in values.items()} for who in people]


def cells_of(content: Content) -> dict[tuple[str, ...], float]:
    """Return labels and measure → value of what is not withheld."""
    names = [name for name in content.table.columns if name not in ("value", "low", "high", "withheld")]
    columns = content.table.columns
    rows = zip(*(columns[name] for name in names), columns["value"], columns["withheld"], strict=True)
    return {tuple(labels): value for *labels, value, hidden in rows if not hidden}
