"""Cross-checks with all rows in memory; long, again with a handful in memory and the rest spilled."""

from collections.abc import Iterator

import crosscheck_case
import pytest


@pytest.fixture(
    scope="module", params=[None, pytest.param(5, marks=pytest.mark.long)], ids=["held", "spilled"]
)
def path(request: pytest.FixtureRequest) -> Iterator[int | None]:
    """Have parties hold all rows, or so many."""
    crosscheck_case.HELD_ROWS = request.param
    yield request.param
    crosscheck_case.HELD_ROWS = None
