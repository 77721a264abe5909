"""The auditor's look at a quality record: decided as the node had to, and lies in it are found."""

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from simulator import START

from audit.quality import check_record
from policies.parse import parse_policy
from protocols.ids import Digest
from protocols.wire import InputSummary, utc_text

EXAMPLE = (Path(__file__).parents[2] / "policies" / "examples" / "health.toml").read_text("utf-8")
POLICY = parse_policy(EXAMPLE.encode()).policy
NOTHING = Digest("sha256:" + "0" * 64)
WRITTEN = START - timedelta(days=7)
SUMMARY = InputSummary(
    rows=1000,
    distinct_keys=850,
    catalogue_keys=850,
    commitment=NOTHING,
    snapshot=utc_text(WRITTEN),
    quality_sha256=NOTHING,
    rule_version="identifiers/1",
)
RECORD: dict[str, Any] = {
    "preflight": {
        "as_of": utc_text(START),
        "measured": utc_text(START),
        "shares": {"completeness": {"resident_id": 1000}, "valid_keys": 990, "repeated": 142, "drift": 0},
        "key": {
            "rows": 1000,
            "missing": 0,
            "valid": 990,
            "distinct": 850,
            "rejected": {"bad-check-digit": 10},
        },
        "record_sha256": NOTHING,
    }
}


def off(record: dict[str, Any], summary: InputSummary = SUMMARY, rule: Any = POLICY.rules[0]) -> list[str]:
    return [
        code
        for code, _ in check_record(
            record,
            summary,
            POLICY.datasets["patients"],
            rule,
            created=START - timedelta(hours=1),
            admitted=START + timedelta(hours=1),
        )
    ]


def test_a_record_that_meets_the_policy_is_found_to():
    assert off(RECORD) == []


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda looked: looked.update(fields)


def share(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def put(looked: dict[str, Any]) -> None:
        looked["shares"].update(fields)
        looked.pop("key")

    return put


@pytest.mark.parametrize(
    ("lie", "codes"),
    [
        (share(valid_keys=989), ["quality-too-low"]),
        (change(written=True), []),
        (change(written=False), ["quality-too-low"]),
        (change(written=0), ["bad-field"]),
        (share(drift=21, completeness={"resident_id": 989}), ["quality-too-low", "quality-too-low"]),
        (share(completeness={}), ["quality-too-low"]),
        (change(as_of=utc_text(START + timedelta(minutes=1))), ["quality-too-low"]),  # the eighth day
        (change(as_of=utc_text(START + timedelta(days=1))), ["judged-elsewhen", "quality-too-low"]),
        (change(as_of=utc_text(START - timedelta(days=2))), ["judged-elsewhen"]),
        (lambda looked: looked["key"].update(valid=980), ["wrong-figure"]),
        (lambda looked: looked["key"].pop("distinct"), ["bad-field"]),
        (change(shares={"completeness": {"resident_id": 1000.5}}), ["bad-field"]),
        (change(as_of="yesterday"), ["bad-time"]),
        (lambda looked: looked.pop("shares"), ["missing-field"]),
    ],
)
def test_a_lie_in_a_record_is_found(lie: Callable[[dict[str, Any]], Any], codes: list[str]):
    record = deepcopy(RECORD)
    lie(record["preflight"])
    assert off(record) == codes


def test_a_policy_that_asks_is_not_answered_by_a_record_that_says_nothing():
    assert off({}) == ["no-quality"]


def test_where_the_policy_asks_nothing_no_record_has_to_say_anything():
    import msgspec

    accepting = msgspec.structs.replace(
        POLICY.rules[0], accepts_quality=("completeness", "valid-keys", "age", "drift")
    )
    assert off({}, rule=accepting) == []
