"""Settings for every test: two shared cores make wall-clock deadlines of generated cases meaningless."""

import pytest
from hypothesis import settings

settings.register_profile("minshu", deadline=None)
settings.load_profile("minshu")

SLOW = ("end_to_end", "transcripts", "docs", "faults")
"""Folders whose tests start processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest first: what is left to the end, and goes from one worker to another, is quick then."""
    items.sort(key=lambda item: not any(folder in item.path.parts for folder in SLOW))
