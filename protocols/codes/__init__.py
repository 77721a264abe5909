"""Code tables: which codes a column may hold, since when and until when, and what each of them means."""

from protocols.codes.areas import LEVELS, Address, Areas, area_code, at_level, level_of, parent_of
from protocols.codes.definitions import DEFINITIONS, cited
from protocols.codes.national import DEMO_AREAS, GBT2260_PROVINCES, GBT2261_1, GBT2261_2, NATIONAL
from protocols.codes.table import Code, CodeTable, CodeTables, normalise_value, read_code_table

__all__ = [
    "DEFINITIONS",
    "DEMO_AREAS",
    "GBT2260_PROVINCES",
    "GBT2261_1",
    "GBT2261_2",
    "LEVELS",
    "NATIONAL",
    "Address",
    "Areas",
    "Code",
    "CodeTable",
    "CodeTables",
    "area_code",
    "at_level",
    "cited",
    "level_of",
    "normalise_value",
    "parent_of",
    "read_code_table",
]
