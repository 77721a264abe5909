"""Whose cosignatures make a checkpoint one that others have seen.

`Quorum` counts organisations: each has one vote, however many witnesses it runs. `TrustPolicy` is the same in
the form that any C2SP tool reads, tlog-policy: logs, witnesses, groups of them, and one quorum.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from audit.note import COSIGNATURE, Checkpoint, Note, VerifierKey, cosigned_at, keys_among
from audit.proof import is_log_key
from protocols.errors import DecodeError, PolicyInvalid
from protocols.ids import NodeName, Organisation
from protocols.wire import organisation_of

CLOCK_AHEAD: Final = timedelta(minutes=10)
"""A cosignature may be that much ahead of the reader's clock; beyond, it does not count yet."""

MAX_POLICY_BYTES: Final = 1 << 20
MAX_ITEMS: Final = 1024
"""Most logs, witnesses and groups, each, in one tlog-policy; the specification asks for at least 32."""

NONE: Final = "none"
"""The quorum that needs nobody."""

_ALLOWED = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*")
_ITEMS = re.compile(rb"[^ \t]+")
_THRESHOLD = re.compile(r"[1-9][0-9]{0,3}")


def cosigners(note: Note, keys: Iterable[VerifierKey], now: datetime | None = None) -> frozenset[VerifierKey]:
    """Return which of `keys` cosigned the note. A line that does not hold counts as little as none.

    Args:
        note: of which only the text is taken as given.
        keys: witnesses' keys.
        now: the reader's time; cosignatures more than `CLOCK_AHEAD` after it do not count. None: any time.
    """
    candidates: dict[tuple[str, bytes], list[VerifierKey]] = {}
    for key in keys:
        if key.cosigns:
            candidates.setdefault((key.name, key.key_id), []).append(key)
    latest = None if now is None else int((now + CLOCK_AHEAD).timestamp())
    found: set[VerifierKey] = set()
    for line in note.signatures:
        for key in candidates.get((line.name, line.key_id), ()):
            if (
                key not in found
                and key.holds(note.text, line.signature)
                and (latest is None or cosigned_at(line.signature) <= latest)
            ):
                found.add(key)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many organisations have to cosign.

    An organisation votes by a valid Ed25519 cosignature (type 4) of any of its witnesses; one of ML-DSA-44 is
    additional. A key that two organisations claim votes for neither.

    Attributes:
        vkeys: each organisation's witness keys.
        needed: votes that it takes.
    """

    vkeys: Mapping[Organisation, tuple[VerifierKey, ...]]
    needed: int

    @classmethod
    def of_nodes(cls, nodes: Mapping[NodeName, Sequence[str]], needed: int) -> "Quorum":
        """Return the quorum of these nodes' organisations, as `policies.witnesses` and the roster name them.

        Args:
            nodes: each node's vkey lines. A line that is none adds no vote.
            needed: votes that it takes.
        """
        vkeys: dict[Organisation, tuple[VerifierKey, ...]] = {}
        for node, lines in nodes.items():
            house = organisation_of(node)
            vkeys[house] = (*vkeys.get(house, ()), *cosigner_keys(lines))
        return cls(vkeys, needed)

    @property
    def voters(self) -> Mapping[VerifierKey, Organisation]:
        """Whose vote each key is."""
        owners: dict[bytes, set[Organisation]] = {}
        for house, keys in self.vkeys.items():
            for key in keys:
                owners.setdefault(key.public_key, set()).add(house)
        return {
            key: house
            for house, keys in self.vkeys.items()
            for key in keys
            if key.type == COSIGNATURE and len(owners[key.public_key]) == 1
        }

    @property
    def possible(self) -> bool:
        """Whether enough organisations have a vote."""
        return len(set(self.voters.values())) >= self.needed

    def votes(self, note: Note, now: datetime | None = None) -> frozenset[Organisation]:
        """Return the organisations that cosigned `note`; see `cosigners`."""
        voters = self.voters
        return frozenset(voters[key] for key in cosigners(note, voters, now))

    def reached(self, note: Note, now: datetime | None = None) -> bool:
        """Tell whether enough organisations cosigned `note`."""
        return len(self.votes(note, now)) >= self.needed


def cosigner_keys(lines: Iterable[str]) -> tuple[VerifierKey, ...]:
    """Return the witness keys among vkey lines; what is none is left out."""
    return tuple(key for key in keys_among(lines) if key.cosigns)


@dataclass(frozen=True, slots=True)
class Group:
    """Witnesses, or groups of them, of which so many have to cosign."""

    needed: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """A trust policy as C2SP tlog-policy defines it.

    Attributes:
        logs: keys of the logs that are accepted. Empty: which log it is, the caller knows.
        witnesses: names, that mean something in this file alone, to keys.
        groups: names to groups, each after those it names.
        quorum: a witness's name, a group's, or `none`.
    """

    logs: tuple[VerifierKey, ...]
    witnesses: Mapping[str, VerifierKey]
    groups: Mapping[str, Group]
    quorum: str

    @classmethod
    def of(cls, logs: Iterable[VerifierKey], quorum: Quorum) -> "TrustPolicy":
        """Return the policy that accepts exactly what `quorum` accepts of `logs`.

        Raises:
            PolicyInvalid: `quorum` is not possible, or a log is named twice.
        """
        witnesses: dict[str, VerifierKey] = {}
        houses: dict[str, list[str]] = {}
        for number, (key, house) in enumerate(quorum.voters.items(), 1):
            witnesses[f"witness-{number}"] = key
            houses.setdefault(f"of:{house}", []).append(f"witness-{number}")
        if not quorum.possible:
            raise _invalid(f"{quorum.needed} votes are needed, {len(houses)} organisations have one")
        groups = {name: Group(1, tuple(members)) for name, members in houses.items()}
        if quorum.needed:
            groups["enough"] = Group(quorum.needed, tuple(houses))
        policy = cls(tuple(logs), witnesses, groups, "enough" if quorum.needed else NONE)
        return cls.parse(policy.encode())

    @classmethod
    def parse(cls, data: bytes) -> "TrustPolicy":
        """Read a tlog-policy file. URLs are allowed and left aside: nothing here goes out to a witness.

        Raises:
            PolicyInvalid: with the line that is wrong.
        """
        if len(data) > MAX_POLICY_BYTES:
            raise _invalid(f"{len(data)} bytes, at most {MAX_POLICY_BYTES} accepted")
        reading = _Reading()
        for number, line in enumerate(data.split(b"\n"), 1):
            if not _ALLOWED.fullmatch(line):
                raise _invalid("a control character other than tab and newline", number)
            items = _ITEMS.findall(line)
            if items and not items[0].startswith(b"#"):
                # Names are octets: what is no UTF-8 stays what it is, and different octets stay different.
                reading.take([item.decode("utf-8", "surrogateescape") for item in items], number)
        if reading.quorum is None:
            raise _invalid("it has no quorum line")
        return cls(tuple(reading.logs.values()), reading.witnesses, reading.groups, reading.quorum)

    def encode(self) -> bytes:
        """Return the policy file."""
        lines = [f"log {key}" for key in self.logs]
        lines += [f"witness {name} {key}" for name, key in self.witnesses.items()]
        lines += [
            f"group {name} {group.needed} {' '.join(group.members)}" for name, group in self.groups.items()
        ]
        lines.append(f"quorum {self.quorum}")
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")

    def satisfied(self, note: Note, now: datetime | None = None) -> bool:
        """Tell whether a listed log signed the checkpoint, and the quorum cosigned it; see `cosigners`.

        Where no log is listed, the caller has to have verified the log's signature.

        Raises:
            DecodeError: the note is no checkpoint.
        """
        checkpoint = Checkpoint.decode(note.text)
        if self.logs and not any(
            line.name == key.name and line.key_id == key.key_id and key.holds(note.text, line.signature)
            for key in self.logs
            if is_log_key(key, checkpoint)
            for line in note.signatures
        ):
            return False
        signed = cosigners(note, self.witnesses.values(), now)
        saw = {NONE, *(name for name, key in self.witnesses.items() if key in signed)}
        for name, group in self.groups.items():
            if len(saw.intersection(group.members)) >= group.needed:
                saw.add(name)
        return self.quorum in saw


class _Reading:
    """A policy file while it is read: what stands in the lines so far."""

    def __init__(self) -> None:
        self.logs: dict[bytes, VerifierKey] = {}
        self.witnesses: dict[str, VerifierKey] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._keys: set[bytes] = set()
        self._grouped: set[str] = set()

    def take(self, items: Sequence[str], line: int) -> None:
        """Read one line's items."""
        match items:
            case ["log", vkey] | ["log", vkey, _]:
                key = _vkey(vkey, line, cosigns=False)
                if key.public_key in self.logs:
                    raise _invalid("this log's key stands in an earlier line", line)
                self.logs[key.public_key] = key
            case ["witness", name, vkey] | ["witness", name, vkey, _]:
                key = _vkey(vkey, line, cosigns=True)
                if key.public_key in self._keys:
                    raise _invalid("this witness's key stands in an earlier line", line)
                self._keys.add(key.public_key)
                self._define(name, line)
                self.witnesses[name] = key
            case ["group", name, needed, *members]:
                self._define(name, line)
                self.groups[name] = self._group(needed, members, line)
            case ["quorum", name]:
                if self.quorum is not None:
                    raise _invalid("a second quorum line", line)
                if name != NONE:
                    self._require(name, line)
                self.quorum = name
            case _:
                raise _invalid(
                    "expected log VKEY [URL], witness NAME VKEY [URL], group NAME K|all|any NAME..., "
                    "or quorum NAME",
                    line,
                )
        if max(len(self.logs), len(self.witnesses), len(self.groups)) > MAX_ITEMS:
            raise _invalid(f"more than {MAX_ITEMS} of a kind", line)

    def _group(self, needed: str, members: Sequence[str], line: int) -> Group:
        for member in members:
            self._require(member, line)
            if member in self._grouped:
                raise _invalid("a member of a group is named a second time", line)
            self._grouped.add(member)
        count = {"all": len(members), "any": 1}.get(needed, 0)
        if _THRESHOLD.fullmatch(needed):
            count = int(needed)
        if not 1 <= count <= len(members):
            raise _invalid(f"a group of {len(members)} needs all, any, or 1 to {len(members)}", line)
        return Group(count, tuple(members))

    def _define(self, name: str, line: int) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise _invalid("this name is taken", line)

    def _require(self, name: str, line: int) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise _invalid("no earlier line defines this name", line)


def _vkey(text: str, line: int, *, cosigns: bool) -> VerifierKey:
    try:
        text.encode()  # a key's name is UTF-8, unlike the names of this file
        key = VerifierKey.parse(text)
    except (DecodeError, UnicodeEncodeError):
        raise _invalid("not a verifier key of type 1, 4 or 6", line) from None
    if key.cosigns != cosigns:
        raise _invalid(f"a key of type {key.type} is {'a log' if cosigns else 'a witness'}'s", line)
    return key


def _invalid(what: str, line: int = 0) -> PolicyInvalid:
    return PolicyInvalid(
        f"not a tlog-policy: {what}",
        code="bad-tlog-policy",
        hint="see C2SP tlog-policy; items are separated by spaces or tabs, comments have lines of their own",
        line=line,
    )
