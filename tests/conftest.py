"""Settings for every test: two shared cores make wall-clock deadlines of generated cases meaningless."""

import pytest
from hypothesis import settings

settings.register_profile("minshu", deadline=None)
settings.load_profile("minshu")

TOWNS = ("end_to_end",)
PAGES = ("transcripts", "docs", "faults")
"""Folders of slow tests, most of which start processes."""


@pytest.hookimpl(trylast=True)  # once the long ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each of two workers begin with slow tests: each has half of the list, then takes the other's last.

    So what is left to the end is quick, and a town that is set up once for many tests stays with one worker.
    """
    towns, pages, others = [], [], []
    for item in items:
        parts = item.path.parts
        slow = (
            towns if any(f in parts for f in TOWNS) else pages if any(f in parts for f in PAGES) else others
        )
        slow.append(item)
    before = max(len(items) // 2 - len(towns), 0)
    items[:] = [*towns, *others[:before], *pages, *others[before:]]
