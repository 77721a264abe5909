"""The coordinator's home folder: where everything lies."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.config import Config, new_config
from coordinator.files import read_bounded, write_new
from protocols.errors import InputError, StateConflict
from protocols.roots import MAX_ROOTS_BYTES, Roots

if TYPE_CHECKING:
    from audit.generations import Succession
    from coordinator.authority import Authority
    from protocols.envelope import KeySigner

_ROOTS: Final = "roots.json"
_KEPT: Final = re.compile(r"journal\.([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Home:
    """Paths and what is read from them."""

    path: Path

    @property
    def database(self) -> Path:
        """Jobs, rosters, enrolments."""
        return self.path / "store.db"

    @property
    def journal_database(self) -> Path:
        """The journal's entries."""
        return self.path / "journal.db"

    @property
    def journal(self) -> Path:
        """Tiles and checkpoint, as auditors get them."""
        return self.path / "journal"

    @property
    def releases(self) -> Path:
        """Sealed releases."""
        return self.path / "releases"

    @property
    def addresses(self) -> Path:
        """Where the running coordinator listens."""
        return self.path / "addresses.json"

    @property
    def identity(self) -> Path:
        """The key that signs the journal's checkpoints."""
        return self.path / "keys" / "identity.pem"

    @property
    def tls_key(self) -> Path:
        """The server's TLS key."""
        return self.path / "keys" / "tls.pem"

    @property
    def authority_key(self) -> Path:
        """The CA's key."""
        return self.path / "keys" / "ca.pem"

    @property
    def authority_certificate(self) -> Path:
        """The CA's certificate."""
        return self.path / "tls" / "ca.crt.pem"

    @property
    def leaf(self) -> Path:
        """The server's certificate in use."""
        return self.path / "tls" / "leaf.pem"

    @cached_property
    def config(self) -> Config:
        """The configuration.

        Raises:
            InputError: see `Config.load`.
        """
        return Config.load(self.path)

    def roots(self) -> Roots:
        """Return the root keys that were pinned when this home was made; rosters may have handed over since.

        Raises:
            InputError, DecodeError: missing or damaged.
        """
        return Roots.decode(read_bounded(self.path / _ROOTS, MAX_ROOTS_BYTES))

    def signer(self) -> "KeySigner":
        """Return the coordinator's identity key.

        Raises:
            InputError: missing, or others can read it.
        """
        from policies.keyfile import load_signer

        return load_signer(self.identity)

    @property
    def journal_generation(self) -> int:
        """The number of the present journal: those before it are kept beside it, as `journal.<number>`."""
        kept = (_KEPT.fullmatch(path.name) for path in self.path.glob("journal.*") if path.is_dir())
        return 1 + max((int(found[1]) for found in kept if found), default=0)

    @property
    def journal_origin(self) -> str:
        """The journal's name."""
        return self._origin(self.journal_generation)

    def _origin(self, generation: int) -> str:
        return f"{self.config.name}/journal/{generation}"

    @property
    def journal_vkey(self) -> str:
        """The line an auditor verifies the journal with."""
        from audit.note import ED25519, VerifierKey

        return str(VerifierKey(self.journal_origin, ED25519, self.signer().public_key))

    def succeed_journal(
        self, reason: str, now: Callable[[], datetime], known: bytes | None = None
    ) -> "Succession":
        """Begin the journal's next generation; no coordinator may be running.

        Args:
            reason: a kebab-case code.
            now: the clock.
            known: a newer checkpoint of the present journal than the home has, as a witness keeps it.

        Raises:
            MinshuError: see `audit.generations.succeed`.
        """
        from audit.generations import succeed

        signer, generation = self.signer(), self.journal_generation
        return succeed(
            self.journal,
            self.journal_database,
            origin_before=self._origin(generation),
            origin_after=self._origin(generation + 1),
            signer=signer.sign,
            public_key=signer.public_key,
            now=now,
            reason=reason,
            known_checkpoint=known,
        )

    def authority(self) -> "Authority":
        """Return the CA.

        Raises:
            InputError: missing or damaged.
        """
        from coordinator.authority import Authority

        return Authority.load(self.authority_key, self.authority_certificate)

    def listening(self) -> dict[str, Any]:
        """Return what addresses.json says.

        Raises:
            InputError: the coordinator is not running.
        """
        try:
            found: dict[str, Any] = json.loads(self.addresses.read_bytes())
            # A killed coordinator leaves the file behind.
            os.kill(found["pid"], 0)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            raise InputError(
                "the coordinator is not running, so its addresses are not known",
                code="not-running",
                hint="start it: minshu-coordinator run",
            ) from None
        except PermissionError:
            pass  # it runs as another user
        return found


def create(
    path: Path,
    *,
    name: str,
    collaboration: str,
    roots: Sequence[bytes],
    threshold: int,
    suite: int,
    now: datetime,
) -> Home:
    """Make a home: configuration, identity key, TLS key, CA, pinned roots, empty store.

    Raises:
        InputError: a name, root key or suite that cannot be used.
        StateConflict: there is a home already.
    """
    from coordinator.authority import Authority, new_tls_key, private_pem
    from coordinator.handout import COLLABORATION
    from coordinator.registry import NODE_NAME
    from coordinator.store.sql import SqlStore
    from policies.keyfile import new_key
    from protocols.channel import suites
    from protocols.ids import NodeName

    if not NODE_NAME.fullmatch(name):
        raise InputError(
            "the coordinator's name does not have the form organisation/name",
            code="bad-name",
            hint="for example bureau.gz.example/coordinator",
        )
    if not COLLABORATION.fullmatch(collaboration):
        raise InputError(
            "the collaboration's name has characters other than a-z 0-9 . _ -",
            code="bad-name",
            hint="for example gz.example",
        )
    suites.overhead(suite)  # refuses an unknown suite
    pinned = Roots.of(collaboration, threshold, roots)
    home = Home(path)
    if (path / "coordinator.toml").exists():
        raise StateConflict(
            f"{path} is a coordinator's home already",
            code="home-exists",
            hint="choose another folder with --home",
        )
    for folder in (path, path / "keys", path / "tls", home.releases):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new_key(home.identity)
    write_new(home.tls_key, private_pem(new_tls_key()), 0o600)
    Authority.create(NodeName(name), now, home.authority_key, home.authority_certificate)
    write_new(path / _ROOTS, pinned.encode(), 0o644)
    SqlStore(home.database).close()
    # Last: a home with a configuration is a whole one.
    new_config(path, NodeName(name), collaboration, suite)
    return home
