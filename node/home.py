"""A node's folder: where everything lies, who may open it, and the keys in it.

node.toml                     settings
keys/identity.pem             Ed25519: admissions, frames, verdicts, journal
keys/identity.next.pem        the next one, while it is announced and no roster lists it yet
keys/tls.pem                  P-256: the link
keys/witness.pem              Ed25519: cosignatures on the logs of others
keys/witness-mldsa.pem        ML-DSA-44: a second cosignature beside each
keys/witness.1.pem …          those of a journal that could not be continued, and its number
keys/recipient.key            HPKE private key of the suite, for class-B lists sealed to this node
keys/reasons.salt             of digests that stand for what look-ups are for, from the first session on
tls/leaf.pem authority.pem    from enrolment
enrolment.json                coordinator address and pinned roots, from enrolment
node.db                       state and journal, one database
journal/                      tiles and checkpoint, for auditors
journal.1/ …                  journals that could not be continued, as they were
journal.generation            the number of the present one, from the second on
releases/                     class-B lists, sealed
outbox/                       releases on their way to the coordinator, sealed
shelf/                        what job types keep from job to job: keys and tables of look-ups
scratch/                      unnamed encrypted files, for lists that do not fit into memory
lookup.sock                   where people at this node ask, only while a session is open
node.log                      plain lines with codes
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.config import Config, load_config, node_name, write_config
from protocols.errors import InputError
from protocols.ids import NodeName

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    from audit.witness import CosignerKeys
    from protocols.envelope import KeySigner
    from protocols.roots import Roots

ENROLMENT_SCHEMA: Final = "minshu-node-enrolment/1"
_GENERATION: Final = re.compile(rb"[1-9][0-9]{0,8}\n")


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
    def witness_pem(self) -> Path:
        """The Ed25519 key of this node's cosignatures."""
        return self.path / "keys" / "witness.pem"

    @property
    def witness_mldsa_pem(self) -> Path:
        """The ML-DSA-44 key of this node's cosignatures."""
        return self.path / "keys" / "witness-mldsa.pem"

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
    def scratch(self) -> Path:
        """Where files without a name lie, encrypted, while attempts need them."""
        return self.path / "scratch"

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
        """The name of the journal.

        Raises:
            InputError: see `generation`.
        """
        return f"{self.name}/journal/{self.generation}"

    @property
    def generation_file(self) -> Path:
        """The number of the present journal; there is none for the first."""
        return self.path / "journal.generation"

    @property
    def generation(self) -> int:
        """The number of the present journal, 1 for the first; see `node.generation`.

        Raises:
            InputError: the file is damaged.
        """
        try:
            text = self.generation_file.read_bytes()
        except FileNotFoundError:
            return 1
        except OSError:
            text = b""
        if not _GENERATION.fullmatch(text):
            raise InputError(
                f"{self.generation_file.name} cannot be read, or holds no number",
                code="bad-home",
                hint="write into it the number that ends the first line of journal/checkpoint",
            )
        return int(text)

    def journal_of(self, origin: str) -> Path:
        """Return the folder of this node's present journal, or of an earlier one that was kept."""
        return self.journal if origin == self.origin else self.path / f"journal.{origin.rpartition('/')[2]}"

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

    @cached_property
    def cosigner(self) -> "CosignerKeys":
        """The keys that this node cosigns other logs with; made here where a home of before has none.

        Raises:
            InputError: one cannot be written, read, or is no such key.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

        from audit.witness import CosignerKeys
        from node.witness import MlDsaSigner
        from protocols.envelope import KeySigner

        ed25519 = _witness_key(self.witness_pem, Ed25519PrivateKey.generate)
        mldsa = _witness_key(self.witness_mldsa_pem, MLDSA44PrivateKey.generate)
        if not isinstance(ed25519, Ed25519PrivateKey) or not isinstance(mldsa, MLDSA44PrivateKey):
            raise _wrong_key()
        return CosignerKeys(f"{self.name}/witness/1", KeySigner(ed25519), MlDsaSigner(mldsa))

    def retire_cosigner(self, generation: int) -> None:
        """Lay the cosigning keys aside under the number of the journal that they belong to; make others.

        Done once for a number, however often it is asked for.

        Raises:
            InputError: a file cannot be renamed or written.
        """
        try:
            for present in (self.witness_pem, self.witness_mldsa_pem):
                aside = present.with_name(f"{present.stem}.{generation}.pem")
                if present.exists() and not aside.exists():
                    present.rename(aside)
            flush_folder(self.witness_pem.parent)
        except OSError as error:
            raise InputError(
                f"the cosigning keys cannot be laid aside ({error.strerror})",
                code="home-unwritable",
                hint="check the folder keys/ of this node's home, then run the same command again",
            ) from None
        self.__dict__.pop("cosigner", None)
        _ = self.cosigner

    @property
    def witness_vkeys(self) -> tuple[str, ...]:
        """The lines that cosignatures of this node verify with, Ed25519 first.

        Raises:
            InputError: see `cosigner`.
        """
        return tuple(map(str, self.cosigner.vkeys))

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


def _witness_key(path: Path, generate: "Callable[[], Ed25519PrivateKey | MLDSA44PrivateKey]") -> object:
    """Return the private key in a file; make it where there is none."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    if not path.exists():
        made = generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            write_durably(path, pem)
        except OSError as error:
            raise InputError(
                f"{path.name} cannot be written ({error.strerror})", code="home-unwritable"
            ) from None
        return made
    try:
        return load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError):
        raise _wrong_key() from None


def _wrong_key() -> InputError:
    return InputError(
        "keys/witness.pem or keys/witness-mldsa.pem is not the key it should be",
        code="bad-key",
        hint="put the file back; with another key this node has to be enrolled again",
    )


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
    _ = home.cosigner
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
