"""One-line hand-outs: the token a node enrols with, the invitation an analyst connects with.

A line is a prefix that names kind and version, and base64url without padding over canonical JSON. It goes to
its receiver by another way than the network, and tells where to dial and whom to expect there.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final, Self

from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError
from protocols.ids import NodeName
from protocols.roots import Roots
from protocols.wire import Fields

TOKEN: Final = "minshu-token-1."  # noqa: S105  # a prefix, no secret
INVITE: Final = "minshu-invite-1."
MAX_LINE: Final = 16 << 10

COLLABORATION: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
PEM: Final = re.compile(r"[\x20-\x7e\n]+")
ADDRESS: Final = re.compile(r"[a-zA-Z0-9.\[\]:-]{1,250}:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class NodeToken:
    """What `minshu-node enrol` needs; `secret` is 32 hex digits, good once."""

    address: str
    authority: str
    node: NodeName
    secret: str

    def encode(self) -> str:
        """Return the line."""
        return _line(
            TOKEN,
            {
                "address": self.address,
                "authority": self.authority,
                "node": self.node,
                "secret": self.secret,
            },
        )


@dataclass(frozen=True, slots=True)
class Invite:
    """What `minshu connect` needs; nothing in it is secret."""

    address: str
    authority: str
    roots: Roots

    def encode(self) -> str:
        """Return the line."""
        return _line(
            INVITE,
            {
                "address": self.address,
                "authority": self.authority,
                "roots": decode_json(self.roots.encode()),
            },
        )

    @classmethod
    def decode(cls, line: str) -> Self:
        """Read a line strictly.

        Raises:
            DecodeError: not an invitation.
        """
        f = Fields(_read(INVITE, line), "invitation")
        result = cls(
            address=f.text("address", ADDRESS),
            authority=f.text("authority", PEM, limit=8192),
            roots=Roots.decode(canonical_json(f.mapping("roots"))),
        )
        f.finish()
        return result


def _line(prefix: str, value: dict[str, Any]) -> str:
    return prefix + base64.urlsafe_b64encode(canonical_json(value)).rstrip(b"=").decode("ascii")


def _read(prefix: str, line: str) -> Any:
    line = line.strip()
    wrong = DecodeError(
        f"not one whole line that begins with {prefix}",
        code="bad-handout",
        hint="copy the line as it was printed, without blanks or line breaks",
    )
    if not line.startswith(prefix) or len(line) > MAX_LINE:
        raise wrong
    body = line.removeprefix(prefix)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", body):
        raise wrong
    try:
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except binascii.Error:
        raise wrong from None
    return decode_json(data, limit=MAX_LINE)
