import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end.town import flushed_folder

from demo.processes import Children


@pytest.fixture(scope="module")
def ground() -> Iterator[tuple[Path, Children]]:
    """A folder for a town and somebody who stops its processes afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="minshu-town-", dir=flushed_folder()) as folder,
        Children() as children,
    ):
        yield Path(folder) / "town", children
