"""The objects beside a log, read on demand: each one once, and what is not there is accounted for.

An object that an entry names is there, or a later entry says that retention deleted it, where it is something
that retention deletes. Which of the two, only the end of the log tells, so what was missed on the way is
judged in `finish`.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from audit.findings import Checks
from protocols.envelope import MAX_ENVELOPE_BYTES
from protocols.errors import DecodeError, MinshuError

T = TypeVar("T")

MAX_KEPT: Final = 512
"""Decoded objects kept in memory."""

DELETED: Final = "job texts, approvals or quality records that retention has deleted, with a receipt"


class Objects(Protocol):
    """Where objects are read from: a bundle, or a live journal's folder."""

    def read_object(self, digest: str, limit: int = ...) -> bytes | None:
        """Return the object with that digest, None if it is not there."""
        ...


@dataclass(slots=True)
class Evidence:
    """A log's objects.

    Attributes:
        source: where they are read from.
        checks: where what is off is said.
    """

    source: Objects
    checks: Checks
    _missed: dict[tuple[str, str], str] = field(default_factory=dict)
    _deleted: dict[str, str] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)
    _decoded: OrderedDict[tuple[Callable[[bytes], Any], str], Any] = field(default_factory=OrderedDict)

    def read(self, digest: str, question: str, where: str) -> bytes | None:
        """Return an object that an entry names, None where it is not there or cannot be read.

        Args:
            digest: its name.
            question: the check that needs it.
            where: the entry that names it.
        """
        # Named once more, so it was put there once more.
        self._deleted.pop(digest, None)
        self._excused.discard(digest)
        try:
            data = self.source.read_object(digest, MAX_ENVELOPE_BYTES)
        except DecodeError as error:
            self.checks[question].found(error.code, where, f"the object it names: {error.message}")
            return None
        except OSError as error:
            self.checks[question].found("unreadable", where, error.strerror or "an object cannot be read")
            return None
        if data is None:
            self._missed.setdefault((digest, question), where)
        return data

    def document(self, digest: str, decode: Callable[[bytes], T], question: str, where: str) -> T | None:
        """Return what `decode` makes of an object that an entry names, None where it makes nothing of it."""
        key = (decode, digest)
        if key in self._decoded:
            self._decoded.move_to_end(key)
            found: T = self._decoded[key]
            return found
        data = self.read(digest, question, where)
        if data is None:
            return None
        try:
            value = decode(data)
        except MinshuError as error:
            self.checks[question].found(error.code, where, f"the object it names: {error.message}")
            return None
        self._decoded[key] = value
        if len(self._decoded) > MAX_KEPT:
            self._decoded.popitem(last=False)
        return value

    def deleted(self, digest: str, where: str, *, excuses: bool) -> None:
        """Take note of a receipt: that object is no longer there, which `excuses` that it is missing."""
        self._deleted[digest] = where
        if excuses:
            self._excused.add(digest)

    def finish(self) -> None:
        """Say what was missing without a receipt, and what is there in spite of one."""
        for (digest, question), where in self._missed.items():
            if digest in self._excused:
                self.checks[question].lacks(DELETED)
            else:
                self.checks[question].found(
                    "missing-object",
                    where,
                    "an object that it names is not there, and no receipt may say why",
                )
        check = self.checks["deletions"]
        for digest, where in self._deleted.items():
            try:
                there = self.source.read_object(digest, MAX_ENVELOPE_BYTES) is not None
            except (DecodeError, OSError):
                there = True
            if there:
                check.found("deleted-but-there", where, "what it says was deleted lies among the objects")
            else:
                check.saw(where)
