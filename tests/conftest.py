"""Settings for every test: two shared cores make wall-clock deadlines of generated cases meaningless."""

import gc
import os

import pytest
from hypothesis import settings

settings.register_profile("minshu", deadline=None)
settings.load_profile("minshu")

TOWNS = ("end_to_end",)
PAGES = ("transcripts", "docs", "faults")
"""Folders of slow tests, most of which start processes."""


@pytest.hookimpl(trylast=True)  # once the long ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let two workers begin with slow tests: each has a part of the list, then takes the others' last.

    So what is left to the end is quick, and a town that is set up once for many tests stays with one worker.
    """
    towns, pages, others = [], [], []
    for item in items:
        parts = item.path.parts
        slow = (
            towns if any(f in parts for f in TOWNS) else pages if any(f in parts for f in PAGES) else others
        )
        slow.append(item)
    part = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    before = max(part - len(towns), 0)
    items[:] = [*towns, *others[:before], *pages, *others[before:]]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through thousands of tests and their modules again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Give it all back: libraries report what is left at the end."""
    gc.unfreeze()
