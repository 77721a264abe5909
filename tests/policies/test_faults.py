"""What is wrong with a job is said in Chinese, too: of every code there is, not in general."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.decide import decide
from policies.decision import Refuse
from policies.faults import FAULTS, said_in_chinese
from protocols.errors import InputError
from protocols.jobs import JOB_TYPES

PROTOCOLS = Path(__file__).parents[2] / "protocols"
READ_BY_CHECK = (
    *sorted((PROTOCOLS / "jobs").glob("*.py")),
    *sorted((PROTOCOLS / "releases").glob("*.py")),
    *sorted((PROTOCOLS / "dp").glob("*.py")),
    PROTOCOLS / "identifiers" / "areas.py",
    PROTOCOLS / "joined" / "params.py",
    PROTOCOLS / "sums" / "plan.py",
    PROTOCOLS / "tables" / "layout.py",
    *(PROTOCOLS / "training" / f"{name}.py" for name in ("params", "schema", "logistic", "mlp", "boost")),
)
"""Where a job type's `check` is, and all that it calls and that refuses."""

LATER = {
    "bad-area-table",  # of a release of this program
    "bad-confidence",
    "bad-cost",
    "bad-keys",
    "bad-quantile",
    "bad-bins",
    "count-too-large",
    "no-dataset",
    # Of rows, or of what lies on a shelf.
    "missing-column",
    "not-a-number",
    "no-rows",
    "bad-labels",
    "more-rows-than-published",
    "no-part",
    "part-too-large",
}
"""Codes of what is refused only when a job runs, or never of a job."""


def raised() -> Iterator[tuple[str, str]]:
    """Yield each code of an `InputError` with the file that raises it."""
    for path in READ_BY_CHECK:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "InputError"
            ):
                (code,) = (word.value for word in node.keywords if word.arg == "code")
                assert isinstance(code, ast.Constant), (
                    f"{path.name}:{node.lineno}: a code that is not spelt out"
                )
                yield str(code.value), path.name


def test_every_code_that_a_job_may_be_refused_with_has_its_chinese():
    found = list(raised())
    assert {
        "crosscheck.py",
        "table.py",
        "release.py",
        "params.py",
        "layout.py",
        "plan.py",
        "mechanism.py",
    } <= {name for _, name in found}
    codes = {code for code, _ in found}
    assert codes >= LATER
    assert codes - LATER == set(FAULTS)


def test_each_fault_is_said_in_chinese_with_what_to_do():
    sentences = set()
    for code in FAULTS:
        for text in said_in_chinese(code):
            assert sum("\u4e00" <= character <= "\u9fff" for character in text) >= 4, code
            assert 0 < len(text) < 100
            assert text.isprintable()
            assert not text.endswith((".", "。"))
        sentences.add(said_in_chinese(code)[0])
    assert len(sentences) >= len(FAULTS) - 2
    assert said_in_chinese("no-such-code") not in FAULTS.values()


def test_a_job_that_is_not_well_formed_is_refused_in_both_languages(world: Any):
    spec = world.spec(params={"present_in": "at_least", "k": 9, "key_holder": "source-1"})
    (crosscheck,) = (known for known in JOB_TYPES if known.name == spec.job_type)
    with pytest.raises(InputError) as caught:
        crosscheck.check(spec)
    decision = decide(
        world.active(), spec, node=world.node("human-resources"), roster=world.roster, now=world.now
    )
    assert isinstance(decision, Refuse)
    assert decision.code == caught.value.code == "bad-params"
    what, what_to_do = FAULTS["bad-params"]
    assert decision.zh == f"任务内容不符合 crosscheck/1 的规定: {what} (bad-params)。"
    assert decision.hint_zh == what_to_do
    assert caught.value.message in decision.sentence
