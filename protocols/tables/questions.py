"""What a table or a release asks of one dataset, as the differencing guard compares it."""

from collections.abc import Mapping, Sequence
from typing import Any

from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import InputError
from protocols.statistics.differencing import Between, Query
from protocols.tables.layout import Filter, Layout
from protocols.wire import JobInput


def check_filters(layout: Layout, inputs: Sequence[JobInput]) -> None:
    """Refuse two filters that are on one column of a dataset: a query says once what is kept of each column.

    Raises:
        InputError: `filters-on-one-column`.
    """
    for given in inputs:
        columns = [given.columns[each.slot] for each in layout.filters]
        if len(set(columns)) != len(columns):
            raise InputError(
                f"two filters are on one column of the dataset of {given.role}",
                code="filters-on-one-column",
                hint="write one filter of what both would keep",
            )


def query_of(
    layout: Layout, given: JobInput, asks: Mapping[str, Any], *, noisy: bool = False, amounts: bool = False
) -> Query:
    """Return what a job selects of one dataset.

    What it asks is there as a digest: a table may list a million values, and is only ever compared.

    Args:
        layout: the cells, filters and measures.
        given: the dataset, once `check_filters` has passed it.
        asks: plain JSON of everything else that makes it another question.
        noisy: see `Query`.
        amounts: see `Query`.
    """
    plain = {**asks, "layout": layout.to_json(), "filters": sorted(map(_plain, layout.filters), key=_slot)}
    return Query(
        sha256_digest(canonical_json(plain)),
        {given.columns[each.slot]: _kept(each) for each in layout.filters},
        noisy,
        amounts,
    )


def _plain(each: Filter) -> dict[str, Any]:
    # The same filter in whatever order its values are listed.
    return {**each.to_json(), "values": sorted(each.values)}


def _slot(plain: Mapping[str, Any]) -> str:
    return str(plain["slot"])


def _kept(each: Filter) -> frozenset[str] | Between:
    return frozenset(each.values) if each.values else Between(each.low, each.high, each.months)
