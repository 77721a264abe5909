"""What a started attempt uses, from what its nodes signed, and how it is shown.

- Rows: the input rows of all admissions. They are read again by every attempt, so every attempt counts.
- Records: the most records about persons that may leave. All participants keep to the strictest limit that
  any admission names, so a release of class B holds at most its `max_rows`, and no more than the other nodes
  read. That counts once for each such release: it names every person once, whichever source lends the record.
- ρ: the zCDP cost, summed over datasets. A verdict names one cost for each budget; those of one verdict are
  of one dataset and one attempt, so the largest counts. It is what the node set aside: what it charged under
  everybody's constraints may be less, never more.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fractions import Fraction
from typing import Final

from coordinator.lifecycle import Job
from coordinator.store import Meter, Usage
from protocols.dp.cost import UNIT, decimal_up
from protocols.envelope import decode_envelope
from protocols.wire import Admission, JobSpec, Verdict, strictest, utc_text

_LOSS: Final = "zcdp"


def measure(job: Job, envelope: bytes, now: datetime) -> Meter:
    """Return what the attempt that is being started uses; `envelope` is the signed job."""
    admissions = [Admission.decode(decode_envelope(run.admission).payload) for run in job.runs]
    verdicts = (Verdict.decode(decode_envelope(run.verdict).payload) for run in job.runs if run.verdict)
    return Meter(
        job=job.id,
        attempt=job.attempt,
        rows=_rows(admissions),
        records=_records(JobSpec.decode(decode_envelope(envelope).payload), admissions),
        rho=sum(_rho(verdict) for verdict in verdicts),
        started=now,
    )


def _rows(admissions: Iterable[Admission]) -> int:
    return sum(summary.rows for admission in admissions for summary in admission.inputs.values())


def _records(spec: JobSpec, admissions: Sequence[Admission]) -> int:
    from protocols.jobs import job_type
    from protocols.jobs.job_type import OutputClass

    limit = strictest(admission.constraints for admission in admissions).max_rows
    records = 0
    for planned in job_type(spec.job_type).releases(spec):
        if planned.output_class is OutputClass.DIRECTED:
            maker = spec.roles[planned.made_by]
            lent = _rows(admission for admission in admissions if admission.node != maker)
            records += lent if limit is None else min(lent, limit)
    return records


def _rho(verdict: Verdict) -> int:
    costs = (Fraction(line.cost) * UNIT for line in verdict.costs if line.notion == _LOSS)
    largest = max(costs, default=Fraction(0))
    return -(-largest.numerator // largest.denominator)


def rho_text(usage: Usage) -> str:
    """Return ρ as decimal text, rounded up."""
    return decimal_up(Fraction(usage.rho, UNIT), 15)


def usage_json(usage: Iterable[Usage]) -> list[dict[str, str | int]]:
    """Return the rows as plain JSON."""
    return [
        {
            "organisation": row.organisation,
            "purpose": row.purpose,
            "jobs": row.jobs,
            "succeeded": row.succeeded,
            "refused": row.refused,
            "rows": row.rows,
            "records": row.records,
            "rho": rho_text(row),
            "last": utc_text(row.last),
        }
        for row in usage
    ]


def usage_lines(rows: Sequence[Mapping[str, str | int]], *, organisations: bool) -> list[str]:
    """Return the rows of `usage_json` as a table; `organisations` tells whether it names them."""
    if not rows:
        return ["no jobs yet"]
    names = [
        *(["organisation"] if organisations else []),
        *("purpose", "jobs", "succeeded", "refused", "rows", "records", "rho", "last"),
    ]
    table = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    numbers = {"jobs", "succeeded", "refused", "rows", "records", "rho"}
    lines = [
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(names, line, widths, strict=True)
        ).rstrip()
        for line in table
    ]
    return [
        *lines,
        "rows: read by all nodes in all attempts; records: the most about persons that may have left;",
        "rho: zCDP cost set aside, summed over datasets",
    ]


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value
