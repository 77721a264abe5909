"""A node's folder: where everything lies, who may open it, and the keys in it.

node.toml                     settings
keys/identity.pem             Ed25519: admissions, frames, verdicts, journal
keys/identity.next.pem        the next one, while it is announced and no roster lists it yet
keys/tls.pem                  P-256: the link
keys/recipient.key            HPKE private key of the suite, for class-B lists sealed to this node
tls/leaf.pem authority.pem    from enrolment
enrolment.json                coordinator address and pinned roots, from enrolment
node.db                       state and journal, one database
journal/                      tiles and checkpoint, for auditors
releases/                     class-B lists, sealed
outbox/                       releases on their way to the coordinator, sealed
node.log                      plain lines with codes
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.config import Config, load_config, node_name, write_config
from protocols.errors import InputError
from protocols.ids import NodeName

if TYPE_CHECKING:
    from protocols.envelope import KeySigner
    from protocols.roots import Roots

ENROLMENT_SCHEMA: Final = "minshu-node-enrolment/1"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What enrolment left: where to dial, and the root keys that this node pinned.

    `roots` are raw Ed25519 keys; `threshold` of them sign every roster.
    """

    address: str
    collaboration: str
    threshold: int
    roots: tuple[bytes, ...]

    @property
    def pinned(self) -> "Roots":
        """The root keys as rosters are judged by them."""
        from protocols.roots import Roots

        return Roots(self.collaboration, self.threshold, self.roots)


@dataclass(frozen=True)
class Home:
    """A node's folder. Paths only; nothing is opened before it is asked for."""

    path: Path

    @property
    def identity_pem(self) -> Path:
        """The Ed25519 identity key."""
        return self.path / "keys" / "identity.pem"

    @property
    def next_identity_pem(self) -> Path:
        """The identity key that the next roster may list; there is none unless one was announced."""
        return self.path / "keys" / "identity.next.pem"

    @property
    def tls_pem(self) -> Path:
        """The P-256 key of the link."""
        return self.path / "keys" / "tls.pem"

    @property
    def recipient_path(self) -> Path:
        """The HPKE key that class-B lists are sealed to."""
        return self.path / "keys" / "recipient.key"

    @property
    def leaf_pem(self) -> Path:
        """The TLS certificate of this node."""
        return self.path / "tls" / "leaf.pem"

    @property
    def authority_pem(self) -> Path:
        """The CA that the coordinator's certificate chains to."""
        return self.path / "tls" / "authority.pem"

    @property
    def database(self) -> Path:
        """State and journal."""
        return self.path / "node.db"

    @property
    def journal(self) -> Path:
        """Tiles and checkpoint."""
        return self.path / "journal"

    @property
    def releases(self) -> Path:
        """Class-B lists, sealed to this node."""
        return self.path / "releases"

    @property
    def outbox(self) -> Path:
        """Sealed releases that the coordinator has not confirmed yet."""
        return self.path / "outbox"

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path / "node.log"

    @property
    def enrolment(self) -> Path:
        """What enrolment left."""
        return self.path / "enrolment.json"

    @cached_property
    def config(self) -> Config:
        """The settings.

        Raises:
            InputError: see `load_config`.
        """
        return load_config(self.path / "node.toml")

    @property
    def name(self) -> NodeName:
        """The node's full name."""
        return self.config.name

    @property
    def origin(self) -> str:
        """The name of the journal."""
        return f"{self.name}/journal/1"

    @cached_property
    def signer(self) -> "KeySigner":
        """The identity key.

        Raises:
            InputError: missing, unreadable or no Ed25519 key.
        """
        from policies.keyfile import load_signer

        return load_signer(self.identity_pem)

    def next_signer(self) -> "KeySigner | None":
        """Return the next identity key, None where none was made.

        Raises:
            InputError: it is unreadable or no Ed25519 key.
        """
        from policies.keyfile import load_signer

        return load_signer(self.next_identity_pem) if self.next_identity_pem.exists() else None

    def make_next_identity(self) -> "KeySigner":
        """Return the next identity key; make it where there is none.

        Raises:
            InputError: it cannot be written, or the present key is encrypted: then the next one must be too,
                and only its owner can make that.
        """
        from policies.keyfile import new_key, public_path

        found = self.next_signer()
        if found is not None:
            return found
        # Of a key that a crash kept from being, or that is the present one by now.
        public_path(self.next_identity_pem).unlink(missing_ok=True)
        if b"ENCRYPTED" in read_private(self.identity_pem):
            raise InputError(
                "this node's identity key is encrypted, so its next one may not lie there in the clear",
                code="no-next-key",
                hint=f"make keys/{self.next_identity_pem.name} yourself: minshu-policy key new",
            )
        new_key(self.next_identity_pem)
        made = self.next_signer()
        assert made is not None
        return made

    def adopt_next_identity(self) -> None:
        """Put the next identity key in the present one's place; the present one ends.

        Only once the checkpoint that both keys sign is out: nothing asks for the old one after that. A crash
        anywhere leaves a home where this begins again, or has only the public half beside it to lose: never
        that of another key, which would keep an encrypted one from being opened.

        Raises:
            InputError: a file cannot be written.
        """
        from policies.keyfile import public_path

        try:
            public = public_path(self.next_identity_pem)
            public_path(self.identity_pem).unlink(missing_ok=True)
            flush_folder(self.identity_pem.parent)
            self.next_identity_pem.replace(self.identity_pem)
            flush_folder(self.identity_pem.parent)
            if public.exists():
                public.replace(public_path(self.identity_pem))
            self.__dict__.pop("signer", None)
            flush_folder(self.identity_pem.parent)
        except OSError as error:
            raise InputError(
                f"the identity key cannot be replaced ({error.strerror})",
                code="home-unwritable",
                hint="check the folder keys/ of this node's home; it is tried again",
            ) from None

    def recipient_private(self) -> bytes:
        """Return the HPKE private key.

        Raises:
            InputError: missing, or others can read it.
        """
        return read_private(self.recipient_path)

    def enrolled(self) -> Enrolled | None:
        """Return what enrolment left, None before it.

        Raises:
            InputError: the file is damaged.
        """
        from protocols.encoding import decode_json
        from protocols.errors import DecodeError
        from protocols.wire import Fields

        try:
            data = self.enrolment.read_bytes()
        except FileNotFoundError:
            return None
        try:
            f = Fields(decode_json(data), "enrolment")
            f.schema(ENROLMENT_SCHEMA)
            address = f.text("address")
            roots = f.mapping("roots")
            f.finish()
            return read_roots(address, roots)
        except DecodeError as error:
            raise InputError(
                f"{self.enrolment.name} is damaged: {error.message}",
                code="bad-home",
                hint="enrol again with a new token",
            ) from None


def read_roots(address: str, value: Any) -> Enrolled:
    """Return pinned roots from the plain form of roots.json.

    Raises:
        DecodeError: unknown schema or field, no key, a key twice, or a threshold that cannot be met.
    """
    from protocols.encoding import canonical_json
    from protocols.roots import Roots

    roots = Roots.decode(canonical_json(value))
    return Enrolled(address, roots.collaboration, roots.threshold, roots.keys)


def init_home(path: Path, name: str, suite: int) -> Home:
    """Make a new node: settings and its own keys, none of which ever leaves.

    Raises:
        InputError: the name is none, the suite unknown, or the folder holds a node already.
    """
    import secrets

    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from policies.keyfile import new_key
    from protocols.channel.suites import new_private_key

    full = node_name(name)
    recipient = new_private_key(suite, secrets.token_bytes)
    home = Home(path)
    try:
        for folder in (path, path / "keys", path / "tls", home.releases, home.outbox):
            folder.mkdir(mode=0o700, parents=folder is path, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder cannot be made ({error.strerror})", code="home-unwritable", hint="check --home"
        ) from None
    write_config(path / "node.toml", full, suite)
    new_key(home.identity_pem)
    tls = ec.generate_private_key(ec.SECP256R1())
    write_private(home.tls_pem, tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_private(home.recipient_path, recipient)
    return home


def read_private(path: Path) -> bytes:
    """Return the bytes of a private key file.

    Raises:
        InputError: it cannot be read, or others than its owner can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(64 << 10)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror})", code="no-key") from None
    if mode & 0o077:
        raise InputError(
            f"{path.name} can be read by others on this machine",
            code="key-exposed",
            hint=f"run chmod 600 on {path.name}; if others had access, make a new node",
        )
    return data


def write_private(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600, durably.

    Raises:
        InputError: it exists or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be written ({error.strerror})", code="home-unwritable"
        ) from None


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` in one step that survives a power cut: temporary file, flush, rename, flush.

    Raises:
        OSError: it could not be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make a folder's names durable.

    Raises:
        OSError: the disk failed.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
