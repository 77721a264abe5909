"""Where a department's tables lie, and how a job reads the columns it declares."""

from node.sources.source import ReadLimits, Source, SourceColumn, check_columns, open_source

__all__ = ["ReadLimits", "Source", "SourceColumn", "check_columns", "open_source"]
