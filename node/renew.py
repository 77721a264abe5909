"""Renewal of this node's TLS certificate: in time, checked, and without a break in what is running.

The roster binds the SPKI of the TLS key, so a renewal asks for a new leaf for the *same* key. The key changes
only by enrolling again and with the next roster, which the root keys sign. A leaf is due at a third of its
life; after a failure it is tried again in growing, jittered waits, each a fraction of the life that is left.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from node.home import Home, read_private, write_durably
from node.link import Credentials
from node.logs import Log
from protocols.errors import InputError, MinshuError, SignatureInvalid
from protocols.ids import NodeName
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import utc_text

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

MAX_LIFE: Final = timedelta(days=30)
MAX_LEAF_BYTES: Final = 16 << 10
LOOK_S: Final = 3600.0
"""Longest time between two looks at the leaf: a wall clock may jump, and a machine may sleep."""

LINK_S: Final = 1.0
RETRY_SHORTEST_S: Final = 300.0
RETRY_LONGEST_S: Final = 3600.0
_RETRY_FLOOR_S: Final = 1.0
_URI: Final = "minshu:node:"
_ENROL_AGAIN: Final = (
    "ask for a new token and run minshu-node enrol TOKEN --roots …, then start the node again; "
    "if this machine's clock is wrong, set it first"
)


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate holds."""

    begins: datetime
    ends: datetime

    @property
    def due(self) -> datetime:
        """When its renewal is due: at a third of its life."""
        return self.begins + (self.ends - self.begins) / 3

    def wait_s(self, now: datetime) -> float:
        """Return in how many seconds the renewal is due, 0 for now.

        Raises:
            InputError: it has expired.
        """
        self.check_not_expired(now)
        return max(0.0, (self.due - now).total_seconds())

    def retry_s(self, now: datetime, failures: int, draw: float) -> float:
        """Return how long to wait after so many failures in a row, in seconds; `draw` is uniform in [0, 1).

        The waits double, are cut by up to a half at random, and never take more than a quarter of the life
        that is left.
        """
        longest = min(RETRY_LONGEST_S, RETRY_SHORTEST_S * 2.0 ** min(failures - 1, 30))
        left = (self.ends - now).total_seconds()
        if left > 0:
            longest = max(_RETRY_FLOOR_S, min(longest, left / 4))
        return float(longest * (1 - draw / 2))

    def check_not_expired(self, now: datetime) -> None:
        """Check that a link can be opened with it.

        Raises:
            InputError: it has expired.
        """
        if now >= self.ends:
            raise InputError(
                f"the TLS certificate expired {utc_text(self.ends)}, by this machine's clock",
                code="certificate-expired",
                hint=_ENROL_AGAIN,
            )


def validity_of(leaf: bytes) -> Validity:
    """Return the validity of a leaf, PEM.

    Raises:
        InputError: it is no certificate.
    """
    certificate = _load(leaf)
    return Validity(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def read_credentials(home: Home) -> Credentials:
    """Return what the node in this home proves itself with and trusts.

    Raises:
        InputError: a file is missing, damaged, or the key can be read by others.
    """
    try:
        leaf = home.leaf_pem.read_bytes()
        credentials = Credentials(home.authority_pem.read_bytes(), leaf, read_private(home.tls_pem))
    except OSError as error:
        raise InputError(
            f"the TLS certificate cannot be read ({error.strerror})", code="not-enrolled", hint="enrol again"
        ) from None
    for certificate in (leaf, credentials.authority):
        _load(certificate)
    return credentials


def make_csr(name: NodeName, key: bytes) -> bytes:
    """Return a certificate request (PKCS#10, PEM) for the node's TLS key, PEM.

    Raises:
        InputError: it is no P-256 key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(_load_key(key), SHA256()).public_bytes(Encoding.PEM)


def check_leaf(answer: bytes, name: NodeName, credentials: Credentials, now: datetime) -> bytes:
    """Return a new leaf, PEM, after checking that the link can do with it what it does with the present one.

    (1) One certificate, bounded. (2) It is for this node's own TLS key. (3) It names this node and nothing
    else. (4) The authority that this node pinned at enrolment issued it, for clients. (5) It holds now,
    give or take CLOCK_TOLERANCE, lives for at most MAX_LIFE, and is not due for renewal itself.

    Args:
        answer: what the coordinator sent.
        name: this node.
        credentials: what the link uses now.
        now: this machine's time.

    Raises:
        InputError, SignatureInvalid: which of them does not hold; the present leaf stays.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

    # (1)
    leaf = _load(answer)
    # (2)
    if leaf.public_key() != _load_key(credentials.key).public_key():
        raise SignatureInvalid(
            "the new certificate is for another key than this node's", code="wrong-certificate", hint=_TELL
        )
    # (3)
    try:
        names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound):
        names = []
    if names != [x509.UniformResourceIdentifier(_URI + name)]:
        raise SignatureInvalid(
            "the new certificate does not name this node alone", code="wrong-certificate", hint=_TELL
        )
    # (4)
    held = Validity(leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    pinned = Store([x509.load_pem_x509_certificate(credentials.authority)])
    # Whether the leaf holds now is asked in (5), with the clock's tolerance.
    verifier = PolicyBuilder().store(pinned).time(min(max(now, held.begins), held.ends))
    try:
        verifier.build_client_verifier().verify(leaf, [])
    except VerificationError:
        raise SignatureInvalid(
            "the new certificate is not one that this node's authority issues to nodes",
            code="wrong-certificate",
            hint=_TELL,
        ) from None
    # (5)
    if held.begins > now + CLOCK_TOLERANCE or held.ends <= now:
        raise InputError(
            f"the new certificate holds from {utc_text(held.begins)} to {utc_text(held.ends)}, "
            f"and by this machine's clock it is {utc_text(now)}",
            code="certificate-window",
            hint="compare this machine's clock with the coordinator's",
        )
    if held.ends - held.begins > MAX_LIFE or held.due <= now:
        raise InputError(
            f"the new certificate holds from {utc_text(held.begins)} to {utc_text(held.ends)}, "
            f"expected at most {MAX_LIFE.days} days of which less than a third are over",
            code="certificate-window",
            hint=_TELL,
        )
    return leaf.public_bytes(Encoding.PEM)


_TELL: Final = "tell the coordinator's operator; the present certificate stays in use"


def _load(pem: bytes) -> "x509.Certificate":
    from cryptography import x509

    try:
        [certificate] = x509.load_pem_x509_certificates(pem[: MAX_LEAF_BYTES + 1])
    except ValueError:
        raise InputError("not one certificate in PEM", code="bad-certificate", hint="enrol again") from None
    return certificate


def _load_key(pem: bytes) -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("keys/tls.pem is no P-256 key", code="bad-key", hint="make a new node")
    return key


class RenewableLink(Protocol):
    """What renewal needs of a link."""

    @property
    def up(self) -> bool:
        """Whether the coordinator can be asked."""
        ...

    async def renew(self, csr: bytes) -> bytes:
        """Return the coordinator's answer to a certificate request.

        Raises:
            Unreachable: it gave none.
        """
        ...

    async def adopt(self, credentials: Credentials) -> None:
        """Use these from now on.

        Raises:
            Unreachable: the coordinator was not reached with them; the old ones stay in use.
        """
        ...


class Renewal:
    """Keeps the certificate of one running node young."""

    def __init__(
        self,
        home: Home,
        link: RenewableLink,
        credentials: Credentials,
        *,
        now: Callable[[], datetime],
        draw: Callable[[], float],
        log: Log,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Renew what is in `home`; `link` uses `credentials` now; `draw` is uniform in [0, 1)."""
        self._home = home
        self._link = link
        self._used = credentials
        self._now = now
        self._draw = draw
        self._log = log
        self._sleep = sleep

    async def run(self) -> None:
        """Renew until cancelled. What fails is logged and tried again; the link goes on meanwhile."""
        failures = 0
        while True:
            try:
                wait_s = await self.look()
                failures = 0
            except MinshuError as error:
                failures += 1
                self._log.failure(error.code, sentence=error.message)
                wait_s = validity_of(self._used.leaf).retry_s(self._now(), failures, self._draw())
            await self._sleep(wait_s)

    async def look(self) -> float:
        """Do what is due, and return after how many seconds to look again.

        Raises:
            MinshuError: it could not be done, or the certificate has expired.
        """
        stored = read_credentials(self._home)
        if stored != self._used:
            # Renewed here, or by enrolling again while the node runs.
            await self._link.adopt(stored)
            self._used = stored
            self._log.info("certificate-adopted", until=utc_text(validity_of(stored.leaf).ends))
        wait_s = validity_of(stored.leaf).wait_s(self._now())
        if wait_s > 0:
            return min(wait_s, LOOK_S)
        if not self._link.up:
            return LINK_S
        await self._renew(stored)
        return 0.0

    async def _renew(self, present: Credentials) -> None:
        answer = await self._link.renew(make_csr(self._home.name, present.key))
        leaf = check_leaf(answer, self._home.name, present, self._now())
        try:
            write_durably(self._home.leaf_pem, leaf)
        except OSError as error:
            raise InputError(
                f"the new certificate cannot be written ({error.strerror})",
                code="home-unwritable",
                hint="free space on the disk; the present certificate stays in use",
            ) from None
        self._log.info("certificate-renewed", until=utc_text(validity_of(leaf).ends))
