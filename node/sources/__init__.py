"""Where a department's tables lie, and how a job reads the columns it declares."""

from node.sources.connections import Connection
from node.sources.place import FilePlace, Place, TablePlace, place_from_json
from node.sources.source import (
    DEFAULT_ACCESS,
    Access,
    ReadLimits,
    Source,
    SourceColumn,
    check_columns,
    check_unchanged,
    open_source,
)

__all__ = [
    "DEFAULT_ACCESS",
    "Access",
    "Connection",
    "FilePlace",
    "Place",
    "ReadLimits",
    "Source",
    "SourceColumn",
    "TablePlace",
    "check_columns",
    "check_unchanged",
    "open_source",
    "place_from_json",
]
