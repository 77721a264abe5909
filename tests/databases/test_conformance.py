"""The same suite as for files, on tables of real servers."""

from pathlib import Path

import pyarrow as pa
import pytest
from conformance.check_source import ALL, BATCH_ROWS, Drop, Tells, check_source
from databases.servers import Server
from databases.tables import create, quoted, source_of

from node.sources import Source

pytestmark = pytest.mark.alone

NO_FLAGS = Tells(ALL.types - {"boolean"})
"""MariaDB stores a boolean as a small number, and so it is read."""


@pytest.mark.parametrize(("kind", "tells"), [("postgres", ALL), ("mariadb", NO_FLAGS)])
def test_every_database_conforms(
    kind: str, tells: Tells, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)

    def make(folder: Path, table: pa.Table) -> tuple[Source, Drop]:
        name = str(folder.relative_to(tmp_path))
        create(server, name, table)
        source = source_of(server, tmp_path, name, batch_rows=BATCH_ROWS)
        return source, lambda: server.run(f"DROP TABLE {quoted(server, name)}") and None

    check_source(make, tmp_path / kind, tells)
