"""Names that are not interchangeable, although each is a string."""

from typing import NewType

Role = NewType("Role", str)
"""What a node is in a job: `register`, `source-1`, `matcher`. Names one seat, so sources are numbered."""

NodeName = NewType("NodeName", str)
"""A node's full name: `police.gz.example/node-a`."""

Organisation = NewType("Organisation", str)
"""An organisation's name: `police.gz.example`."""

JobId = NewType("JobId", str)
"""`sha256:` + 64 hex digits of the job payload."""

KeyId = NewType("KeyId", str)
"""`sha256:` + 64 hex digits of the raw 32-byte Ed25519 public key."""

Digest = NewType("Digest", str)
"""`sha256:` + 64 hex digits."""

DatasetName = NewType("DatasetName", str)
"""A catalogue name, never a path."""
