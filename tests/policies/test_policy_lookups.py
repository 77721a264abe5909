"""Rules for look-ups say how many and how fast, or are refused."""

from pathlib import Path

import pytest

from policies.parse import parse_policy
from protocols.errors import PolicyInvalid

EXAMPLE = (Path(__file__).parents[2] / "policies/examples/lookup.toml").read_text()


def without(text: str, start: str) -> str:
    """Return the policy without the lines that begin so."""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(start)]
    assert len(kept) == len(lines) - 1
    return "".join(kept)


def test_the_example_is_a_policy():
    parse_policy(EXAMPLE.encode())


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (without(EXAMPLE, "max_per_minute"), "max_per_minute"),
        (without(EXAMPLE, 'quotas = ["lookups"'), "quota of rows"),
        (EXAMPLE.replace('quotas = ["lookups", "sessions"]', 'quotas = ["sessions"]'), "quota of rows"),
        (EXAMPLE.replace('counts = "rows"', 'counts = "queries"'), "quota of rows"),
    ],
)
def test_a_rule_for_look_ups_without_a_rate_or_a_number_is_refused(text, missing):
    with pytest.raises(PolicyInvalid) as refused:
        parse_policy(text.encode())
    assert refused.value.code == "missing-guard"
    assert missing in str(refused.value)
    assert refused.value.hint


def test_whoever_only_receives_needs_neither():
    text = EXAMPLE.replace('roles = ["source"]                        # the owner', 'roles = ["recipient"]')
    for start in (
        "max_per_minute",
        'quotas = ["lookups"',
        'datasets = ["marriages"]',
        "columns = [",
        "only =",
    ):
        text = without(text, start)
    parse_policy(text.encode())
