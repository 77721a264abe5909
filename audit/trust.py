"""What an auditor brings: keys, root keys, officers' key ids, a quorum, roots of time stamps.

Verifier key lines are believed as they are. From the root keys on, the rosters that lie in a bundle are
verified one by one, and each says which logs, witnesses and analysts there were while it was the newest; a
bundle can only withhold rosters, not make one. One that carries keys or roots of its own convinces nobody.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from audit.bundle import Bundle, object_name
from audit.entries import Entry
from audit.findings import Finding
from audit.force import led_to
from audit.merkle import ENTRIES, TILE_WIDTH, decode_bundle, tile_at
from audit.note import Checkpoint, Note, VerifierKey, keys_among
from audit.quorum import MAX_POLICY_BYTES, Quorum, TrustPolicy, cosigner_keys
from policies.keyfile import load_public
from policies.model import Policy
from policies.witnesses import witnesses_of
from protocols.encoding import digest_bytes
from protocols.envelope import MAX_ENVELOPE_BYTES, ROSTER, decode_envelope, key_id
from protocols.errors import DecodeError, InputError, MinshuError, PolicyInvalid
from protocols.ids import Digest, KeyId, NodeName, Organisation
from protocols.roots import MAX_ROOTS_BYTES, Roots
from protocols.succession import CLOCK_TOLERANCE, Trusted, restore
from protocols.wire import Roster, organisation_of

MAX_KEYS: Final = 4096
"""Most verifier keys, or officers' keys, that are read."""

_MAX_KEY_FILE_BYTES: Final = 1 << 20
_MAX_PEM_BYTES: Final = 1 << 20
_ROSTER_TYPE: Final = ROSTER.encode()
_ROSTER_KINDS: Final = (b'"kind":"roster.activate"', b'"kind":"roster.published"')


@dataclass(frozen=True, slots=True)
class Trust:
    """What everything in a bundle is held against.

    Attributes:
        keys: verifier keys of logs and witnesses, as the auditor was handed them.
        roots: the collaboration's root keys, None if the auditor brought none.
        officers: key ids of those who may sign policies.
        quorum: whose cosignatures a checkpoint needs, None: what rosters and policies ask for.
        tsa_roots: root certificates of time-stamping authorities, PEM, one after the other; empty: none.
        rosters: what the root keys signed, oldest first; see `with_rosters`.
    """

    keys: tuple[VerifierKey, ...] = ()
    roots: Roots | None = None
    officers: frozenset[KeyId] = frozenset()
    quorum: TrustPolicy | None = None
    tsa_roots: bytes = b""
    rosters: tuple[Roster, ...] = ()

    @property
    def log_keys(self) -> tuple[VerifierKey, ...]:
        """Keys of logs: those handed over, and of each log the one that the newest roster on it lists.

        Not the older ones: who steals a key that was given up can branch a log off before its rotation.
        """
        listed = {key.name: key for roster in self.rosters for key in logs_of(roster)}
        return tuple(dict.fromkeys([*(key for key in self.keys if not key.cosigns), *listed.values()]))

    @property
    def witness_keys(self) -> tuple[VerifierKey, ...]:
        """Keys of witnesses: those handed over, and all that any roster lists."""
        listed = (key for roster in self.rosters for key in witnesses_in(roster))
        return tuple(dict.fromkeys([*(key for key in self.keys if key.cosigns), *listed]))

    @property
    def newest(self) -> Roster | None:
        """The newest roster known, None without one."""
        return self.rosters[-1] if self.rosters else None

    def roster(self, digest: str) -> Roster | None:
        """Return the roster with that digest, None if the root keys signed none such."""
        return next((roster for roster in self.rosters if roster.digest == digest), None)

    def roster_at(self, moment: datetime) -> Roster | None:
        """Return the newest roster that had been issued by then, None if there was none."""
        issued = [roster for roster in self.rosters if roster.issued <= moment]
        return issued[-1] if issued else None

    @property
    def log_keys_ever(self) -> tuple[VerifierKey, ...]:
        """Keys of logs that any roster lists, too: for what others kept from before a log's key changed."""
        listed = (key for roster in self.rosters for key in logs_of(roster))
        return tuple(dict.fromkeys([*self.log_keys, *listed]))

    def house(self, key: VerifierKey) -> Organisation:
        """Return whose witness key it is: by the newest roster that lists it, else by its name."""
        for roster in reversed(self.rosters):
            for node in roster.nodes:
                if str(key) in node.witness_vkeys:
                    return organisation_of(node.name)
        return organisation_of(NodeName(key.name))

    def was_witness(self, key: VerifierKey, time_s: int) -> bool:
        """Tell whether it was a witness's key at that time, in seconds since 1970.

        A key that was handed over is believed at any time, one of a roster from its issue to its expiry.
        """
        if key in self.keys:
            return key.cosigns
        try:
            moment = datetime.fromtimestamp(time_s, UTC)
        except (ValueError, OverflowError, OSError):
            return False
        return any(
            roster.issued - CLOCK_TOLERANCE <= moment < roster.expires and key in witnesses_in(roster)
            for roster in self.rosters
        )

    def with_rosters(self, envelopes: Iterable[bytes]) -> "tuple[Trust, list[Finding]]":
        """Return what is trusted once rosters are known, oldest first, and what the roots did not sign.

        Those that root keys before the auditor's signed are passed over, where the first that the auditor's
        signed says that it follows them. The clock is not asked.
        """
        if self.roots is None:
            return self, []
        trusted = Trusted(self.roots)
        rosters: list[Roster] = []
        others: list[bytes] = []
        for envelope in envelopes:
            try:
                after = restore(trusted, [envelope])
            except MinshuError as error:
                if trusted.roster is None and error.code == "too-few-signatures":
                    others.append(envelope)
                    continue
                return replace(self, rosters=tuple(rosters)), [
                    *_not_led_to(rosters, others),
                    Finding(error.code, "rosters", f"after version {trusted.version}: {error.message}"),
                ]
            if after is not trusted and after.roster is not None:
                rosters.append(after.roster)
            trusted = after
        return replace(self, rosters=tuple(rosters)), _not_led_to(rosters, others)

    def of(self, bundle: Bundle) -> "tuple[Trust, list[Finding]]":
        """Return what is trusted about one bundle, by the rosters in it; see `with_rosters`.

        They are found by the entries that name them. Where those lead to no key of this log, as damaged ones
        do, all objects are looked through: a roster is by its own signatures, or nobody believes it.
        """
        if self.roots is None:
            return self, []
        envelopes, odd = rosters_of(bundle)
        trust, wrong = self.with_rosters(envelopes)
        origin = _origin(bundle)
        if origin and not any(key.name == origin for key in trust.log_keys):
            trust, wrong = self.with_rosters(_rosters_among_objects(bundle))
        return trust, [*odd, *wrong]


def _not_led_to(rosters: Sequence[Roster], others: Sequence[bytes]) -> list[Finding]:
    """Return a finding for each roster of other root keys that does not lead to what the auditor's signed."""
    read: list[Roster] = []
    odd: list[Finding] = []
    for envelope in others:
        try:
            read.append(Roster.decode(decode_envelope(envelope).payload))
        except DecodeError as error:
            odd.append(Finding(error.code, "rosters", error.message))
    chain = led_to(rosters[0], read) if rosters else frozenset()
    what = "a roster that neither the root keys you brought signed nor any before them"
    return [
        *odd,
        *(
            Finding("other-roots", "rosters", f"version {roster.version}: {what}")
            for roster in read
            if roster.digest not in chain
        ),
    ]


def logs_of(roster: Roster) -> tuple[VerifierKey, ...]:
    """Return the keys of the logs that a roster lists; what is no log's key is left out."""
    lines = [node.journal_vkey for node in roster.nodes]
    if roster.coordinator is not None:
        lines.append(roster.coordinator.journal_vkey)
    return tuple(key for key in keys_among(lines) if not key.cosigns)


def witnesses_in(roster: Roster) -> tuple[VerifierKey, ...]:
    """Return the keys that a roster lists for cosignatures."""
    return cosigner_keys(line for node in roster.nodes for line in node.witness_vkeys)


def rosters_of(bundle: Bundle) -> tuple[list[bytes], list[Finding]]:
    """Return the signed rosters that a log's entries name, in their order, and what of them cannot be read.

    Nothing of the log is verified.
    """
    envelopes: dict[str, bytes] = {}
    odd: list[Finding] = []
    size = _size(bundle)
    for index in range(-(-size // TILE_WIDTH)):
        tile = tile_at(size, ENTRIES, index)
        where = tile.path
        try:
            stored = bundle.read_tile(tile)
            if stored is None:
                break  # verification says so; and a size is only a claim
            # Most bundles of entries name no roster, and need not be taken apart.
            if not any(kind in stored for kind in _ROSTER_KINDS):
                continue
            for entry in decode_bundle(stored, tile.width):
                digest = _names_roster(entry)
                if digest is not None and digest not in envelopes:
                    where = object_name(digest)
                    envelope = bundle.read_object(digest, MAX_ENVELOPE_BYTES)
                    if envelope is None:
                        odd.append(
                            Finding("missing-object", where, "a roster that the log names is not there")
                        )
                    else:
                        envelopes[digest] = envelope
                    where = tile.path
        except DecodeError as error:
            odd.append(Finding(error.code, where, error.message))
        except OSError as error:
            odd.append(Finding("unreadable", where, error.strerror or "it cannot be read"))
    return list(envelopes.values()), odd


def _names_roster(data: bytes) -> str | None:
    """Return the digest of the roster that an entry names, None for another entry or a damaged one."""
    if not any(kind in data for kind in _ROSTER_KINDS):
        return None
    try:
        found: str | None = Entry.decode(data).body.get("envelope_sha256")
    except DecodeError:
        return None  # verification says so
    return found


def _rosters_among_objects(bundle: Bundle) -> list[bytes]:
    """Return everything among the objects that looks like a roster, in the order of its version."""
    found: list[tuple[int, bytes]] = []
    try:
        for each in bundle.files("objects/"):
            if not each.regular or each.size > MAX_ENVELOPE_BYTES:
                continue
            try:
                envelope = bundle.read(each.name, MAX_ENVELOPE_BYTES) or b""
                if _ROSTER_TYPE in envelope:
                    roster = Roster.decode(decode_envelope(envelope).payload)
                    found.append((roster.version, envelope))
            except (DecodeError, OSError):
                continue  # verification says so
    except (DecodeError, OSError):
        pass  # the folder cannot be listed, which is said as well
    return [envelope for _, envelope in sorted(found)]


def _origin(bundle: Bundle) -> str:
    checkpoint = _checkpoint(bundle)
    return checkpoint.origin if checkpoint else ""


def _size(bundle: Bundle) -> int:
    checkpoint = _checkpoint(bundle)
    return checkpoint.size if checkpoint else 0


def _checkpoint(bundle: Bundle) -> Checkpoint | None:
    try:
        return Checkpoint.decode(Note.decode(bundle.read_checkpoint() or b"").text)
    except (DecodeError, OSError):
        return None


# -- what an auditor names on the command line ------------------------------------------------------------


def read_trust(
    *,
    keys: Sequence[Path] = (),
    roots: Path | None = None,
    officers: Sequence[Path] = (),
    quorum: Path | None = None,
    tsa_roots: Sequence[Path] = (),
) -> Trust:
    """Return what the auditor brings, out of these files.

    Args:
        keys: files of verifier key lines of type 1, 4 or 6, or folders of such files.
        roots: the roots document; its fingerprint is for people to compare.
        officers: files with a public key in PEM or with key ids, one to a line, or folders of such files.
        quorum: a C2SP tlog-policy.
        tsa_roots: PEM files.

    Raises:
        InputError: one of them cannot be read, or does not say what it should.
    """
    enough = None if quorum is None else _read_quorum(quorum)
    named = [key for path in keys for key in read_keys(path)]
    if enough is not None:
        named += [*enough.logs, *enough.witnesses.values()]
    return Trust(
        keys=tuple(dict.fromkeys(named)),
        roots=None if roots is None else _read_roots(roots),
        officers=frozenset(officer for path in officers for officer in _read_officers(path)),
        quorum=enough,
        tsa_roots=b"\n".join(read_input(path, _MAX_PEM_BYTES, "certificate file") for path in tsa_roots),
    )


def read_input(path: Path, limit: int, what: str) -> bytes:
    """Return the bytes of a file that a person named.

    Raises:
        InputError: it cannot be read, is no regular file or longer than `limit`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = file.read(limit + 1) if regular else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name cannot be one"
        raise _unreadable(what, path, reason or "no reason given") from None
    if not regular:
        raise _unreadable(what, path, "it is not a regular file")
    if len(data) > limit:
        raise _unreadable(what, path, f"it is longer than {limit} bytes")
    return data


def read_keys(path: Path) -> list[VerifierKey]:
    """Return the verifier keys in a file, one to a line, or in the files of a folder.

    Empty lines and those that begin with # say nothing.

    Raises:
        InputError: it cannot be read, holds no key, or a line is none.
    """
    return [key for file in read_files(path, "key file") for key in _keys_in(file)]


def _keys_in(path: Path) -> list[VerifierKey]:
    lines = _lines(path, "key file")
    if not lines:
        raise InputError("the key file is empty", code="bad-vkey-file", hint="it holds one key per line")
    try:
        return [VerifierKey.parse(line) for line in lines]
    except DecodeError as error:
        raise InputError(f"{path.name}: {error.message}", code=error.code, hint=error.hint) from None


def _read_officers(path: Path) -> list[KeyId]:
    return [officer for file in read_files(path, "officers' key file") for officer in _officers_in(file)]


def _officers_in(path: Path) -> list[KeyId]:
    if read_input(path, _MAX_KEY_FILE_BYTES, "officers' key file").lstrip().startswith(b"-----BEGIN"):
        return [key_id(load_public(path))]
    lines = _lines(path, "officers' key file")
    try:
        for line in lines:
            digest_bytes(line)
    except DecodeError:
        lines = []
    if not lines:
        raise InputError(
            f"{path.name} holds neither a public key in PEM nor key ids",
            code="bad-officers-file",
            hint="give what minshu-policy key new wrote as .pub, or lines of sha256: and 64 hex digits",
        )
    return [KeyId(Digest(line)) for line in lines]


def _read_roots(path: Path) -> Roots:
    try:
        return Roots.decode(read_input(path, MAX_ROOTS_BYTES, "roots document").rstrip(b"\n"))
    except DecodeError as error:
        raise InputError(
            f"{path.name} is no roots document: {error.message}",
            code="bad-roots",
            hint="give the minshu-roots/1 file whose fingerprint the root key holders confirm",
        ) from None


def _read_quorum(path: Path) -> TrustPolicy:
    try:
        return TrustPolicy.parse(read_input(path, MAX_POLICY_BYTES, "quorum file"))
    except PolicyInvalid as error:
        raise InputError(f"{path.name}: {error.message}", code=error.code, hint=error.hint) from None


def read_files(path: Path, what: str) -> list[Path]:
    """Return the file, or the files right in the folder, hidden ones left out."""
    if not path.is_dir():
        return [path]
    try:
        found = sorted(each for each in path.iterdir() if not each.name.startswith(".") and not each.is_dir())
    except OSError as error:
        raise _unreadable(what, path, error.strerror or "no reason given") from None
    if not 0 < len(found) <= MAX_KEYS:
        raise InputError(
            f"{len(found)} files in the folder {path.name}, expected 1 to {MAX_KEYS}",
            code="bad-vkey-file",
            hint="give the folder with the verifier key lines",
        )
    return found


def _lines(path: Path, what: str) -> list[str]:
    try:
        text = read_input(path, _MAX_KEY_FILE_BYTES, what).decode("utf-8")
    except UnicodeDecodeError:
        raise _unreadable(what, path, "it is not UTF-8 text") from None
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if len(lines) > MAX_KEYS:
        raise _unreadable(what, path, f"it has more than {MAX_KEYS} lines")
    return lines


def _unreadable(what: str, path: Path, reason: str) -> InputError:
    return InputError(
        f"the {what} {path.name} cannot be read: {reason}",
        code="unreadable",
        hint="check the path and its permissions",
    )


# -- who has to have seen a log ---------------------------------------------------------------------------


def quorum_of(policy: Policy | None, roster: Roster, origin: str) -> Quorum:
    """Return whose cosignatures a checkpoint of that log needs, by its node's policy and a roster.

    An organisation has one vote and the log's own has none; see `policies.witnesses`.
    """
    asked = witnesses_of(policy, roster, organisation_of(NodeName(origin)))
    return Quorum.of_nodes(asked.nodes, asked.quorum)
