"""Typed keys: identifiers of persons and organisations in one canonical, checked form. See SPEC.md."""

from protocols.identifiers.areas import AreaTable, area_table, demo_area_table, province_area_table
from protocols.identifiers.codes import MARITAL, SEX, Coded, marital_code, sex_code
from protocols.identifiers.names import normalise_name, normalise_names
from protocols.identifiers.reasons import Reason
from protocols.identifiers.resident import check_digit, resident_id, resident_id_check_digits
from protocols.identifiers.typed_keys import (
    RULES,
    WEAK_TYPES,
    TypedKeys,
    normalise,
    normalise_mixed,
    rule_version,
    type_tag,
)

__all__ = [
    "MARITAL",
    "RULES",
    "SEX",
    "WEAK_TYPES",
    "AreaTable",
    "Coded",
    "Reason",
    "TypedKeys",
    "area_table",
    "check_digit",
    "demo_area_table",
    "marital_code",
    "normalise",
    "normalise_mixed",
    "normalise_name",
    "normalise_names",
    "province_area_table",
    "resident_id",
    "resident_id_check_digits",
    "rule_version",
    "sex_code",
    "type_tag",
]
