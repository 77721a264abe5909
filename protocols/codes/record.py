"""The record of a dataset's mapping: for each mapped column, the digest of all that decides its codes.

It lies beside a node's journal, whose entries name its digest: an auditor, and the differencing guard, can
then tell codes of one mapping from those of another without seeing a local value.
"""

from collections.abc import Mapping
from typing import Final

from protocols.encoding import canonical_json, decode_json, digest_bytes
from protocols.errors import DecodeError
from protocols.ids import Digest
from protocols.wire import is_column

SCHEMA: Final = "minshu-mapping/1"
MAX_RECORD: Final = 256 << 10
MAX_MAPPED: Final = 1024


def encode_record(columns: Mapping[str, Digest]) -> bytes:
    """Return the record of these columns; empty without any."""
    return canonical_json({"schema": SCHEMA, "columns": dict(columns)}) if columns else b""


def decode_record(data: bytes) -> dict[str, Digest]:
    """Read a record strictly: column → digest.

    Raises:
        DecodeError: another form.
    """
    match decode_json(data, limit=MAX_RECORD):
        case {"schema": "minshu-mapping/1", "columns": dict(columns), **rest} if not rest:
            if 0 < len(columns) <= MAX_MAPPED and all(map(is_column, columns)):
                for digest in columns.values():
                    if not isinstance(digest, str):
                        break
                    digest_bytes(digest)
                else:
                    return {name: Digest(digest) for name, digest in columns.items()}
    raise DecodeError("not the record of a mapping", code="bad-mapping-record")
