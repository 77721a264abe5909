"""What an analyst signs to ask the coordinator for something. `minshu-request/1`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from protocols.encoding import canonical_json, decode_json
from protocols.envelope import REQUEST, Signer, sign
from protocols.errors import DecodeError
from protocols.wire import Fields, utc_text

MAX_REQUEST_BYTES: Final = 4 << 10
"""Longest request, envelope included."""

MAX_AGE: Final = timedelta(seconds=300)
NONCE_MEMORY: Final = 2 * MAX_AGE
"""A nonce is remembered for as long as its request could be accepted."""

SUBJECTS: Final[Mapping[str, str]] = {
    "Watch": "job",
    "Show": "job",
    "Cancel": "job",
    "Fetch": "release",
    "List": "",
    "Catalogue": "",
    "Roster": "version",
    "Usage": "",
}
"""Each method, and what it is about; nothing else is answered."""

_FORMS: Final = {
    "job": re.compile(r"sha256:[0-9a-f]{64}"),
    "release": re.compile(r"[0-9a-f]{32}"),
    "version": re.compile(r"|[1-9][0-9]{0,8}"),
}
_NONCE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Request:
    """One call: `subject` is the job or release id, or the version of the roster at hand; may be empty."""

    method: str
    subject: str
    time: datetime
    nonce: str

    def encode(self) -> bytes:
        """Return the canonical payload."""
        about = SUBJECTS[self.method]
        return canonical_json(
            {
                "schema": "minshu-request/1",
                "method": self.method,
                **({about: self.subject} if about else {}),
                "time": utc_text(self.time),
                "nonce": self.nonce,
            }
        )

    def signed(self, signer: Signer) -> bytes:
        """Return the envelope."""
        return sign(REQUEST, self.encode(), [signer]).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload strictly.

        Raises:
            DecodeError: unknown method or field, or a field without its form.
        """
        f = Fields(decode_json(payload, limit=MAX_REQUEST_BYTES), "request")
        f.schema("minshu-request/1")
        method = f.text("method", limit=32)
        about = SUBJECTS.get(method)
        if about is None:
            raise DecodeError("the request names no method of this version", code="unknown-method")
        result = cls(
            method=method,
            subject=f.text(about, _FORMS[about]) if about else "",
            time=f.time("time"),
            nonce=f.text("nonce", _NONCE),
        )
        f.finish()
        return result
