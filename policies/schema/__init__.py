"""JSON Schema of policy.toml, for editors that check and complete while a policy is written.

`policy.schema.json` is what `python -m policies.schema` prints, generated from `policies.model`. It says form
and range; `minshu-policy check` says the rest.
"""

import json
from fractions import Fraction
from typing import Any

import msgspec

from policies.model import Policy
from policies.strict import DECIMAL


def render() -> str:
    """Return the schema as it stands in policy.schema.json."""
    schema = msgspec.json.schema(Policy, schema_hook=_decimal)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "minshu-policy/1", **schema}
    # Python writes the end of a text as \Z, JSON Schema as $.
    text = json.dumps(schema, ensure_ascii=False, indent=2, sort_keys=True).replace(r"\\Z", "$")
    return text + "\n"


def _decimal(kind: type) -> dict[str, Any]:
    if kind is not Fraction:
        raise NotImplementedError(kind)
    return {
        "anyOf": [{"type": "string", "pattern": f"^(?:{DECIMAL.pattern})$"}, {"type": "integer"}],
        "description": 'a decimal as text, such as "0.30"',
    }
