"""The analyst's home folder: keys, what `connect` pinned, the newest roster, what was asked and received."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from coordinator.drafting import ANALYST_NAME, Card
from coordinator.files import read_bounded, replace_file, write_new
from coordinator.handout import COLLABORATION, Invite
from protocols import succession
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import MAX_ENVELOPE_BYTES, decode_envelope
from protocols.errors import DecodeError, InputError, SignatureInvalid, StateConflict
from protocols.ids import JobId, NodeName, Organisation
from protocols.roots import MAX_ROOTS_BYTES, Roots
from protocols.succession import Trusted
from protocols.wire import JobSpec, Roster, parse_utc, utc_text

if TYPE_CHECKING:
    from protocols.envelope import KeySigner

CONFIG: Final = "analyst.toml"
_ROOTS: Final = "roots.json"
_MAX_CONFIG_BYTES: Final = 64 << 10
_MAX_KEY_BYTES: Final = 4 << 10
_CATALOGUES: Final = "catalogues.json"
_MAX_SEEN_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class AnalystConfig:
    """What analyst.toml says; `address` (host:port) is empty before `minshu connect`."""

    name: str
    organisation: Organisation
    suite: int = 1
    address: str = ""
    timeout_s: int = 30

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Read the file.

        Raises:
            InputError: not TOML, an unknown or missing key, or a value of another type.
        """
        try:
            found: dict[str, Any] = tomllib.loads(text.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _bad(f"it is not TOML: {error}") from None
        kinds = {f.name: int if f.name in ("suite", "timeout_s") else str for f in fields(cls)}
        for name, value in found.items():
            if type(value) is not kinds.get(name):
                raise _bad(f"{name} is unknown, or not of its type")
        if not {"name", "organisation"} <= set(found):
            raise _bad("name or organisation is missing")
        return cls(**found)

    def encode(self) -> bytes:
        """Return the file. Names and addresses hold neither quotes nor backslashes."""
        return (
            f'name = "{self.name}"\norganisation = "{self.organisation}"\nsuite = {self.suite}\n'
            f'address = "{self.address}"\ntimeout_s = {self.timeout_s}\n'
        ).encode()


def _bad(why: str) -> InputError:
    return InputError(f"{CONFIG}: {why}", code="bad-config", hint=f"correct {CONFIG} in the home folder")


@dataclass(frozen=True)
class AnalystHome:
    """Paths and what is read from them."""

    path: Path

    @property
    def authority(self) -> Path:
        """The CA that the coordinator's certificate chains to."""
        return self.path / "tls" / "authority.pem"

    @property
    def rosters(self) -> Path:
        """The rosters that lead from the pinned root keys to the newest seen, and what confirms them."""
        return self.path / "rosters"

    def chain(self) -> Trusted:
        """Return what the rosters kept here add up to.

        Raises:
            StateConflict: `roster-changed`: they are not those that were kept.
            InputError: not connected yet, or a file cannot be read.
        """
        kept = sorted(self.rosters.glob("*.dsse"))
        statement = kept[-1].with_suffix(".fresh") if kept else None
        trusted = Trusted(self.roots())
        try:
            return succession.restore(
                trusted,
                [read_bounded(path, MAX_ENVELOPE_BYTES) for path in kept],
                read_bounded(statement, MAX_ENVELOPE_BYTES) if statement and statement.exists() else b"",
            )
        except (DecodeError, SignatureInvalid, StateConflict) as error:
            raise StateConflict(
                f"the rosters in this home are not those that were kept ({error.code})",
                code="roster-changed",
                hint="keep the folder rosters/ as evidence, move it away and try again",
            ) from error

    def keep_roster(self, version: int, envelope: bytes) -> None:
        """Add the next roster to the chain.

        Raises:
            InputError: it cannot be written.
        """
        self.rosters.mkdir(mode=0o700, exist_ok=True)
        replace_file(self.rosters / f"{version:08d}.dsse", envelope)

    def keep_freshness(self, version: int, envelope: bytes) -> None:
        """Keep a statement that a roster still holds in place of an earlier one.

        Raises:
            InputError: it cannot be written.
        """
        replace_file(self.rosters / f"{version:08d}.fresh", envelope)

    def rosters_since(self, digest: str) -> list[Roster]:
        """Return the chain from the roster of that digest on, newest first; empty if it is none of them."""
        since: list[Roster] = []
        for path in sorted(self.rosters.glob("*.dsse"), reverse=True):
            envelope = decode_envelope(read_bounded(path, MAX_ENVELOPE_BYTES))
            since.append(Roster.decode(envelope.payload))
            if envelope.payload_digest == digest:
                return since
        return []

    def catalogues_seen(self) -> dict[NodeName, datetime]:
        """Return when the newest catalogue was signed that was seen of each node.

        Raises:
            DecodeError: what was kept is not what it was.
        """
        path = self.path / _CATALOGUES
        if not path.exists():
            return {}
        plain = decode_json(read_bounded(path, _MAX_SEEN_BYTES), limit=_MAX_SEEN_BYTES)
        if not isinstance(plain, dict) or not all(isinstance(text, str) for text in plain.values()):
            raise DecodeError(
                f"{_CATALOGUES} is not what was kept", code="bad-field", hint=f"delete {_CATALOGUES}"
            )
        return {NodeName(node): parse_utc(text) for node, text in plain.items()}

    def keep_catalogues_seen(self, seen: Mapping[NodeName, datetime]) -> None:
        """Remember when the newest catalogues were signed: an older one is not taken for the newest again."""
        data = canonical_json({node: utc_text(moment) for node, moment in seen.items()})
        path = self.path / _CATALOGUES
        if not path.exists() or read_bounded(path, _MAX_SEEN_BYTES) != data:
            replace_file(path, data)

    @property
    def releases(self) -> Path:
        """Where fetched releases go."""
        return self.path / "releases"

    def job(self, job: JobId) -> Path:
        """Return where the signed job lies, for those submitted from here."""
        return self.path / "jobs" / f"{job.removeprefix('sha256:')}.dsse"

    def asked(self, job: JobId) -> JobSpec | None:
        """Return what was asked, None for a job submitted from elsewhere.

        Raises:
            StateConflict: `wrong-subject`: what is kept under this id is another job.
        """
        try:
            envelope = self.job(job).read_bytes()
        except FileNotFoundError:
            return None
        payload = decode_envelope(envelope).payload
        if JobId(sha256_digest(payload)) != job:
            raise StateConflict("the kept job is not the one of this id", code="wrong-subject")
        return JobSpec.decode(payload)

    def vouching(self, roster: Roster, job: JobId) -> Roster:
        """Return the roster in force with the keys its nodes have had since a job was submitted.

        A node may have changed its key since it signed a verdict, release or outcome. One that has left
        vouches for nothing, and one that was taken in again for nothing that it signed before.
        """
        spec = self.asked(job)
        chain = [] if spec is None else self.rosters_since(spec.roster_digest)
        nodes = list(roster.nodes)
        for node in (node for earlier in chain for node in earlier.nodes):
            if node not in nodes and all(each.node(node.name) for each in (roster, *chain)):
                nodes.append(node)
        return replace(roster, nodes=tuple(nodes))

    @cached_property
    def config(self) -> AnalystConfig:
        """The configuration.

        Raises:
            InputError: missing or wrong.
        """
        try:
            return AnalystConfig.decode(read_bounded(self.path / CONFIG, _MAX_CONFIG_BYTES))
        except InputError as error:
            if error.code != "file-unreadable":
                raise
            raise InputError(
                f"{self.path} is not an analyst's home",
                code="no-home",
                hint="run minshu init, or name the right folder with --home",
            ) from None

    def roots(self) -> Roots:
        """Return the pinned root keys.

        Raises:
            InputError: not connected yet.
        """
        if not self.config.address:
            raise InputError(
                "this home is not connected to a coordinator",
                code="not-connected",
                hint="run minshu connect INVITE --roots sha256:…",
            )
        return Roots.decode(read_bounded(self.path / _ROOTS, MAX_ROOTS_BYTES))

    def signer(self) -> "KeySigner":
        """Return the analyst's signing key.

        Raises:
            InputError: missing, or others can read it.
        """
        from policies.keyfile import load_signer

        return load_signer(self.path / "keys" / "analyst.pem")

    def recipient_private(self) -> bytes:
        """Return the HPKE key that releases are sealed to.

        Raises:
            InputError: missing.
        """
        return read_bounded(self.path / "keys" / "recipient.key", _MAX_KEY_BYTES)


def create(path: Path, *, name: str, organisation: str, suite: int) -> Card:
    """Make a home and return the analyst's card, which is also written into it.

    Raises:
        InputError: a name or suite that cannot be used.
        StateConflict: there is a home already.
    """
    import secrets

    from policies.keyfile import new_key
    from protocols.channel import suites

    if not ANALYST_NAME.fullmatch(name) or not COLLABORATION.fullmatch(organisation):
        raise InputError(
            "a name has characters other than a-z 0-9 . _ @ -",
            code="bad-name",
            hint="for example --name analyst-1 --organisation bureau.gz.example",
        )
    if (path / CONFIG).exists():
        raise StateConflict(
            f"{path} is an analyst's home already",
            code="home-exists",
            hint="choose another folder with --home",
        )
    private = suites.new_private_key(suite, secrets.token_bytes)
    for folder in (path, path / "keys", path / "tls", path / "jobs", path / "releases"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = new_key(path / "keys" / "analyst.pem")
    write_new(path / "keys" / "recipient.key", private, 0o600)
    card = Card(name, Organisation(organisation), key, suites.public_key(suite, private))
    write_new(path / "analyst.card.json", card.encode(), 0o644)
    # Last: a home with a configuration is a whole one.
    write_new(path / CONFIG, AnalystConfig(name, Organisation(organisation), suite).encode(), 0o600)
    return card


def connect(home: AnalystHome, line: str, fingerprint: str) -> Roots:
    """Pin the collaboration's roots and remember where its coordinator is.

    A later invitation may tell a new address; other roots are refused, but for those that a roster of the
    pinned ones handed over to.

    Raises:
        DecodeError: not an invitation.
        SignatureInvalid: its roots are not the ones that `fingerprint` names.
        StateConflict: this home has pinned other roots.
    """
    invite = Invite.decode(line)
    roots = invite.roots.pinned(fingerprint)
    config = home.config
    if config.address and roots not in (home.roots(), home.chain().roots):
        raise StateConflict(
            "this home has pinned other root keys",
            code="roots-pinned",
            hint="make a new home for another collaboration: minshu init --home DIR",
        )
    replace_file(home.authority, invite.authority.encode())
    if not config.address:
        replace_file(home.path / _ROOTS, roots.encode())
    replace_file(home.path / CONFIG, replace(config, address=invite.address).encode(), 0o600)
    return roots
