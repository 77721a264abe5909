"""Released overlaps looked at again: regions, intervals and facts, as job and admitted lists make them.

A number without its noise looks like one that has it: what was drawn, no table tells. What the table may
promise, its job decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audit.disclosure import Problem
from audit.disclosure_tables import NUMBERS, Rows
from protocols.errors import InputError
from protocols.ids import Role
from protocols.jobs.overlap import Params, released
from protocols.wire import JobSpec


def examine_overlap(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any], spec: JobSpec, keys: Mapping[Role, int]
) -> list[Problem]:
    """Return what is wrong with a table of `overlap/1`.

    (1) It has the regions of the job, each once and in order, and none is withheld. (2) What stands beside it
    is what the job makes of it, no more and no less: one fact more could be the exact number. (3) All are
    whole numbers from zero to the shortest list of their region. (4) The intervals are those of the noise
    that the job paid for. Where a value was cut, by how much is not known: the end of its interval on the
    other side may lie closer to it.

    Args:
        columns: as the release has them.
        facts: what is stated beside the table; empty for none.
        spec: the job that asked for it.
        keys: the distinct keys of each list, as admitted.
    """
    try:
        params = Params.of(spec)
        counts = [keys[owner] for owner in params.owners]
        regions = (1 << params.sources) - 1 if params.matched else 1
        # Of numbers beyond any list, what is left is the largest that there can be.
        largest = released(params, spec, counts, np.full(regions, 2 * max(counts, default=0)))
        texts = {name: each for name, each in largest.table.columns.items() if name not in NUMBERS}
        rows = Rows.of(columns, texts, intervals=True)  # (1)
    except InputError as error:
        return [Problem(error.code, error.message)]
    if rows.withheld.any():
        return [Problem("bad-table", "a number is withheld, but every region is released with its noise")]
    # (2)
    wrong = [key for key, fact in largest.facts.items() if facts.get(key) != fact] if facts else []
    problems = [Problem("wrong-facts", f"its {key} is not what the job makes it") for key in wrong]
    if facts.keys() - largest.facts.keys():
        problems.append(Problem("wrong-facts", "more is stated beside it than the job makes"))
    # (3)
    most = largest.table.columns["value"]
    numbers = np.stack([rows.value, rows.low, rows.high])
    if ((numbers < 0) | (numbers > most) | (numbers != np.rint(numbers))).any():
        problems.append(Problem("bad-table", "a number is none that noise on the admitted lists makes"))
        return problems
    # (4)
    made = released(params, spec, counts, rows.value.astype(np.int64)).table.columns
    fits = (rows.low == made["low"]) | ((rows.value == most) & (made["low"] <= rows.low))
    fits &= (rows.high == made["high"]) | ((rows.value == 0) & (rows.high <= made["high"]))
    if not (fits & (rows.low <= rows.value) & (rows.value <= rows.high)).all():
        what = "an interval is not the one of the noise that the job's budget pays for"
        problems.append(Problem("wrong-interval", what))
    return problems
