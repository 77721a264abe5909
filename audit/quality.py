"""Was the dataset of an admitted job as good as the policy asked? Judged again from the record it cited.

The record's digest stands in the admission, and so in everybody's journal. Its shares are of the whole
dataset; with the thresholds of the policy in force then, they decide as they decided at the node.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from policies.model import Dataset, Rule
from policies.quality import CODE, shortfalls, thresholds_of
from protocols.errors import DecodeError
from protocols.quality import KeyCounts, QualityCounts, Shares, age_in_days, shares_of
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import Fields, InputSummary, parse_utc

MET: Final = "datasets that met their thresholds"


def check_record(
    record: Mapping[str, Any],
    summary: InputSummary,
    dataset: Dataset,
    rule: Rule,
    *,
    created: datetime,
    admitted: datetime,
) -> Iterator[tuple[str, str]]:
    """Yield code and sentence of what is off with a quality record.

    (1) Where the policy sets thresholds, the record says shares, and for which moment. (2) That moment lies
    between the job and its admission. (3) Where counts stand beside the shares, these follow from them.
    (4) Every threshold is met that the rule does not accept to be missed.

    Args:
        record: as it was cited, decoded.
        summary: what the admission says of the input.
        dataset: as the policy in force opens it.
        rule: that allowed the job.
        created: when the job was written.
        admitted: when its admission was journaled.
    """
    thresholds = thresholds_of(dataset, rule)
    # (1)
    if "preflight" not in record:
        if thresholds:
            yield "no-quality", "the policy asks for quality, and the record says none"
        return
    try:
        plain = record["preflight"]
        f = Fields(plain, "preflight")
        moment, shares = f.time("as_of"), Shares.from_json(f.take("shares", dict))
        key = KeyCounts.from_json(f.take("key", dict)) if "key" in plain else None
        # Of some tables nobody can say when they were written.
        known = f.take("written", bool) if "written" in plain else True
        age = age_in_days(parse_utc(summary.snapshot), moment) if known else None
    except DecodeError as error:
        yield error.code, f"the record's figures of quality: {error.message}"
        return
    # (2)
    if not created - CLOCK_TOLERANCE <= moment <= admitted + CLOCK_TOLERANCE:
        yield "judged-elsewhen", "the dataset was judged for a moment before the job or after its admission"
    # (3)
    if key is not None:
        counted = shares_of(QualityCounts(key.rows, {}, key), summary.catalogue_keys)
        if replace(shares, completeness={}) != counted:
            yield "wrong-figure", "the shares of quality do not follow from the counts beside them"
    # (4)
    for missed in shortfalls(thresholds, shares, age):
        yield CODE, f"the dataset was not as good as the policy asked: {missed.words()[0]}"
