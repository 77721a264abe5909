"""What is said of coalitions: the same keys for the same things in all three job types, those of SPEC.md."""

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pytest
from joined_moments_case import moments_spec
from joined_rule_case import rule_spec
from joined_table_case import MONTHS, OVERPAID, REGISTERED, RESIDENT, joined_spec

import protocols
from protocols.ids import Role
from protocols.jobs import job_type
from protocols.jobs.job_type import COORDINATOR, REQUESTER, Statement
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.wire import JobSpec

SPECS = {
    "table": joined_spec(axes=[REGISTERED]),
    "open table": joined_spec(3, axes=[{**RESIDENT, "open": "yes"}, REGISTERED]),
    "table of products": joined_spec(measures=[OVERPAID, MONTHS]),
    "noisy table": joined_spec(axes=[REGISTERED], rho="0.1"),
    "moments": moments_spec(),
    "noisy moments": moments_spec(rho="0.1"),
    "rule": rule_spec(),
    "rule for a seat": rule_spec(recipient="recipient"),
    "rule, one list on": rule_spec(
        join={"source-1": "on", "source-2": "may", "source-3": "may", "source-4": "not"},
        recipient="recipient",
    ),
}
COMMON = {
    *("list-sizes", "traffic", "venn", "joined-size", "helpers-noise", "one-noise", "payloads"),
    *("joined-words", "joined-records", "own-rows-elsewhere", "own-rows-joined", "dictionary"),
}
"""What all job types tell; all else is what one of them alone opens or releases."""


def said(spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
    return job_type(spec.job_type).learns(spec)


def documented() -> set[str]:
    """Return the keys in the last column of the specification's tables of coalitions."""
    text = (Path(protocols.__path__[0]) / "joined" / "SPEC.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| coalition \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    cells = [row.split("|")[3] for table in tables for row in table.splitlines()]
    return {key.strip() for cell in cells for key in cell.split(",") if key.strip()}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_every_joined_job_tells_has_one_key_in_all_of_them(spec: JobSpec) -> None:
    owners = [role for role in spec.roles if role.startswith("source-")]
    noisy = "rho" in spec.params
    expected = {
        frozenset({Role(COORDINATOR)}): {"list-sizes", "traffic"},
        frozenset({MATCHER}): {"list-sizes", "venn"} | ({"helpers-noise"} if noisy else set()),
        frozenset({HELPER}): {"list-sizes", "joined-size"},
        frozenset({MATCHER, HELPER}): {"payloads"},
        frozenset({MATCHER, *owners[:2]}): {"dictionary"},
    }
    if noisy:
        expected[frozenset({Role(REQUESTER), HELPER})] = {"one-noise"}
    three = [role for role in (MATCHER, HELPER, DEALER) if role in spec.roles]
    if DEALER in three:
        expected[frozenset({DEALER})] = {"list-sizes"}
        expected |= {frozenset({role, DEALER}): {"joined-words"} for role in (MATCHER, HELPER)}
    for owner in owners:
        expected[frozenset({owner})] = {"list-sizes"}
        expected[frozenset({MATCHER, owner})] = {"own-rows-elsewhere"}
        expected[frozenset({HELPER, owner})] = {"own-rows-joined"}
        expected |= {frozenset({*two, owner}): {"joined-records"} for two in combinations(three, 2)}
    found = {
        members: {each.key for each in statements} & COMMON for members, statements in said(spec).items()
    }
    sizes = {"list-sizes"} if "recipient" in spec.roles else set()
    assert found.pop(frozenset({Role("recipient")}), sizes) == sizes
    assert {members: keys for members, keys in found.items() if keys} == expected


def test_the_keys_of_all_three_are_those_of_the_document() -> None:
    keys = {each.key for spec in SPECS.values() for statements in said(spec).values() for each in statements}
    assert keys == documented()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_key_is_one_sentence_but_for_whose_rows_it_is_about(spec: JobSpec) -> None:
    sentences: dict[str, set[str]] = {}
    for statements in said(spec).values():
        assert len({each.key for each in statements}) == len(statements)
        for each in statements:
            sentences.setdefault(each.key, set()).add(re.sub(r"source-\d", "source", each.en))
    several = {key for key, found in sentences.items() if len(found) > 1}
    # Of open axes an owner is told those of others.
    assert several <= {"own-rows-elsewhere", "own-rows-joined"}
