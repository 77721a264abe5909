"""Who is who: enrolment, the roster in force, and what is checked before anybody is believed.

Nothing here trusts the coordinator's own word either: a roster counts through the root keys, a job or request
through the analyst's key in the roster, a node's message through its identity key there, and a connection
through the SHA-256 of its TLS key there.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from audit.entries import format_time
from audit.note import COSIGNATURE, ED25519, ML_DSA_44, VerifierKey
from coordinator.handout import PEM
from coordinator.requests import MAX_AGE, MAX_REQUEST_BYTES, NONCE_MEMORY, Request
from coordinator.store import Enrolment, Entry, Store, StoredRoster, StoredRotation, Token
from protocols import succession
from protocols.catalogue import read_catalogue
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import (
    ADMISSION,
    CATALOGUE,
    ENROLMENT,
    EXPLAIN,
    JOB,
    OUTCOME,
    RECEIPT,
    RELEASE,
    REQUEST,
    ROTATION,
    VERDICT,
    Envelope,
    decode_envelope,
    key_id,
    verify,
    verify_signature,
)
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid, StateConflict
from protocols.ids import Digest, JobId, KeyId, NodeName
from protocols.roots import Roots
from protocols.succession import CLOCK_TOLERANCE, Trusted
from protocols.wire import (
    MAX_WITNESS_VKEYS,
    Admission,
    Fields,
    Freshness,
    JobSpec,
    Outcome,
    Receipt,
    ReleaseNote,
    Roster,
    RosterAnalyst,
    RosterNode,
    Rotation,
    Verdict,
    organisation_of,
)

if TYPE_CHECKING:
    from coordinator.authority import Authority

TOKEN_LIFE: Final = timedelta(minutes=15)
MAX_ENROLMENT_BYTES: Final = 32 << 10
MAX_CATALOGUE_BYTES: Final = 1 << 20
"""166 datasets of 35 fully described columns take 900 KiB in base64. Hello fits into one message."""
MAX_JOB_ENVELOPE_BYTES: Final = 512 << 10
MAX_OUTCOME_BYTES: Final = 8 << 10
MAX_ROTATION_BYTES: Final = 8 << 10
MAX_RECEIPT_BYTES: Final = 16 << 10
MAX_BETWEEN_BYTES: Final = 1 << 20
"""Rosters in between that one answer carries; who lacks more asks again."""

MAX_REFUSED_ROTATIONS: Final = 4
"""Announcements kept beside the one that stands; more are refused without a trace."""

ENROLMENT_SCHEMA: Final = "minshu-enrolment/2"

_VKEY: Final = re.compile(r"[^\s+]{1,200}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{4,1800}={0,2}")
_PROOF: Final = re.compile(r"(?:[0-9a-f]{2}){64,2420}")
_GENERATION: Final = re.compile(r"[1-9][0-9]{0,5}")
_WITNESS_TYPES: Final = (COSIGNATURE, ML_DSA_44)

NODE_NAME: Final = re.compile(
    r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
)


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    r"""What a node says of itself when it enrols. `minshu-enrolment/2`.

    `witness_proofs` are signatures by the keys of `witness_vkeys`, in their order, over `proven`:
    `minshu-enrolment/2\0` ‖ SHA-256(the canonical payload without them).
    """

    node: NodeName
    csr: str
    identity_key: bytes
    journal_vkey: str
    recipient_key: bytes
    suite: int
    token_sha256_prefix: str
    witness_vkeys: tuple[str, ...]
    witness_proofs: tuple[bytes, ...]
    proven: bytes

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read the payload strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        plain = decode_json(payload, limit=MAX_ENROLMENT_BYTES)
        f = Fields(plain, "enrolment")
        f.schema(ENROLMENT_SCHEMA)
        stated = canonical_json({name: value for name, value in plain.items() if name != "witness_proofs"})
        result = cls(
            node=NodeName(f.text("node", NODE_NAME)),
            csr=f.text("csr", PEM, limit=8192),
            identity_key=bytes.fromhex(f.text("identity_key", re.compile(r"[0-9a-f]{64}"))),
            journal_vkey=f.text("journal_vkey"),
            recipient_key=bytes.fromhex(f.text("recipient_key", re.compile(r"(?:[0-9a-f]{2})*"), limit=8192)),
            suite=f.count("suite", minimum=1, maximum=255),
            token_sha256_prefix=f.text("token_sha256_prefix", re.compile(r"[0-9a-f]{8}")),
            witness_vkeys=_witness_lines(f, "witness_vkeys", _VKEY),
            witness_proofs=tuple(map(bytes.fromhex, _witness_lines(f, "witness_proofs", _PROOF))),
            proven=f"{ENROLMENT_SCHEMA}\0".encode() + hashlib.sha256(stated).digest(),
        )
        f.finish()
        return result


def _witness_lines(f: Fields, name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    lines = f.items(name, maximum=MAX_WITNESS_VKEYS)
    if not lines or not all(isinstance(line, str) and pattern.fullmatch(line) for line in lines):
        raise DecodeError(
            f"enrolment.{name} is not a list of 1 or {MAX_WITNESS_VKEYS} lines of the expected form",
            code="bad-field",
        )
    return tuple(lines)


class Registry:
    """Members and their keys, as the newest published roster has them."""

    def __init__(self, store: Store, roots: Roots, suite: int, now: Callable[[], datetime]) -> None:
        """Read the chain of published rosters from `store`.

        Args:
            store: what was published and who enrolled.
            roots: the root keys that were pinned when this coordinator was made.
            suite: the collaboration's sealing suite.
            now: the clock.

        Raises:
            StateConflict: see `refresh`.
        """
        self._store = store
        self._suite = suite
        self._now = now
        self._trusted = Trusted(roots)
        self._roster: Roster | None = None
        self._envelope = b""
        self._freshness = b""
        self.refresh()

    @property
    def roots(self) -> Roots:
        """The root keys in force: those pinned here, or those that a roster handed over to."""
        return self._trusted.roots

    @property
    def trusted(self) -> Trusted:
        """What the published rosters and freshness statements add up to."""
        return self._trusted

    @property
    def roster(self) -> Roster | None:
        """The newest published roster."""
        return self._roster

    @property
    def roster_envelope(self) -> bytes:
        """Its envelope, empty before the first."""
        return self._envelope

    @property
    def freshness_envelope(self) -> bytes:
        """The newest statement that it still holds, empty for none."""
        return self._freshness

    def before(self) -> Roster | None:
        """Return the roster that was published before the newest one, None for none."""
        chain = self._store.rosters_after(max(self._trusted.version - 2, 0))
        return _content(chain[-2]) if len(chain) > 1 else None

    def rosters_after(self, version: int) -> list[bytes]:
        """Return the envelopes that bring a reader from `version` to the newest, oldest first.

        One that has none gets the newest alone, or the chain from the first hand-over to other root keys on:
        which of them it pinned is not known here.
        """
        stored = self._store.rosters_after(version)
        if version:
            return [one.envelope for one in stored]
        begin = next((at for at, one in enumerate(stored) if _content(one).roots), max(len(stored) - 1, 0))
        return [one.envelope for one in stored[begin:]]

    def between(self, version: int) -> list[bytes]:
        """Return the first of those before the newest, as many as one answer carries, at least one."""
        between: list[bytes] = []
        for envelope in self.rosters_after(version)[:-1]:
            if between and len(envelope) + sum(map(len, between)) > MAX_BETWEEN_BYTES:
                break
            between.append(envelope)
        return between

    def refresh(self) -> None:
        """Read what was published since: the command that publishes is another process.

        Raises:
            StateConflict: `roster-changed`: the store holds something that could not have been published.
        """
        trusted, envelope = self._trusted, self._envelope
        newest = self._store.roster()
        try:
            if newest is not None and newest.version > trusted.version:
                chain = self._store.rosters_after(trusted.version)
                trusted, envelope = (
                    succession.restore(trusted, [one.envelope for one in chain]),
                    chain[-1].envelope,
                )
            freshness = self._store.freshness(trusted.version)
            if freshness and freshness != self._freshness:
                trusted = succession.restore(trusted, [], freshness)
        except MinshuError as error:
            raise StateConflict(
                f"the rosters in the store are not those that were published ({error.code})",
                code="roster-changed",
                hint="stop and keep the store as evidence",
            ) from error
        self._trusted, self._roster = trusted, trusted.roster
        self._envelope, self._freshness = envelope, freshness

    def publish(self, envelope: bytes) -> Roster:
        """Check a signed roster and make it the current one.

        (1) It continues the chain, see `succession.advance`. (2) It is in force. (3) Its suite is this
        collaboration's.

        Raises:
            SignatureInvalid, DecodeError, InputError, StateConflict, Refused: which of them does not hold.
        """
        self.refresh()
        before, now = self._trusted, self._now()
        # (1)
        after = succession.advance(before, envelope, now)
        if after is before:
            raise StateConflict(
                f"roster version {before.version} is published already",
                code="already-published",
                hint="minshu-coordinator roster show prints it",
            )
        # (2)
        roster = succession.in_force(after.roster, now)
        # (3)
        if roster.suite != self._suite:
            raise InputError(
                f"the roster names suite {roster.suite}, this collaboration uses {self._suite}",
                code="wrong-suite",
                hint="draft it again here: the suite comes from coordinator.toml",
            )
        body = {
            "version": roster.version,
            "sha256": roster.digest,
            "signers": list(succession.signers(before, envelope)),
            "envelope_sha256": sha256_digest(envelope),
        }
        if roster.previous is not None:
            body["previous"] = roster.previous
        self._store.publish(
            StoredRoster(roster.version, roster.digest, envelope),
            roster.previous,
            [Entry("roster.published", body, objects=(envelope,))],
        )
        self.refresh()
        return roster

    def publish_freshness(self, envelope: bytes) -> Freshness:
        """Check a freshness statement about the newest roster and hand it out from now on.

        Raises:
            SignatureInvalid, DecodeError, InputError, StateConflict: see `succession.freshen`;
                `already-published`: one as new is handed out already.
        """
        self.refresh()
        before = self._trusted
        after = succession.freshen(before, envelope, self._now())
        roster, statement = after.roster, after.freshness
        assert roster is not None
        if after is before or statement is None:
            raise _as_new(roster)
        body = {
            "version": statement.version,
            "sha256": statement.sha256,
            "signers": list(succession.confirmers(roster, envelope)),
            "created": format_time(statement.issued),
            "expires": format_time(succession.fresh_until(roster, statement)),
        }
        if not self._store.put_freshness(
            statement.version, statement.issued, envelope, [Entry("roster.fresh", body, objects=(envelope,))]
        ):
            raise _as_new(roster)
        self.refresh()
        return statement

    # -- enrolment ---------------------------------------------------------------------------------

    def new_token(self, node: str, secret: bytes) -> NodeName:
        """Remember the SHA-256 of a 16-byte secret as a token for `node`, good for 15 minutes.

        Raises:
            InputError: `node` is no node's full name.
        """
        if not NODE_NAME.fullmatch(node):
            raise InputError(
                "the node's name does not have the form organisation/node",
                code="bad-name",
                hint="for example police.gz.example/node-a",
            )
        hashed = hashlib.sha256(secret).digest()
        now = self._now()
        self._store.add_token(Token(hashed, NodeName(node), now, now + TOKEN_LIFE))
        return NodeName(node)

    def enrol(self, request: bytes, mac: bytes, authority: "Authority") -> bytes:
        """Return a TLS leaf (PEM) for the node that made `request`.

        (1) Bounded, and an enrolment. (2) The token is known, this node's, and keyed the mac over the very
        bytes received. (3) The identity key signed them. (4) The TLS key signed its certificate request.
        (5) Journal and recipient keys fit. (6) The witness keys are the node's, apart from its identity key,
        and each made its proof. (7) The token is unused: the store uses it up and keeps the keys in one
        transaction.

        Raises:
            DecodeError, Refused, SignatureInvalid, InputError: which of them does not hold.
        """
        from coordinator.authority import read_csr, spki_digest
        from protocols.channel import suites

        # (1)
        if len(request) > MAX_ENROLMENT_BYTES:
            raise DecodeError(f"an enrolment has at most {MAX_ENROLMENT_BYTES} bytes", code="too-long")
        document = decode_envelope(request)
        if document.payload_type != ENROLMENT:
            raise SignatureInvalid("the document is no enrolment", code="wrong-payload-type")
        asked = EnrolmentRequest.decode(document.payload)
        # (2)
        digest = hashlib.sha256(request).digest()
        token = next(
            (
                token
                for token in self._store.tokens(asked.token_sha256_prefix)
                if hmac.compare_digest(hmac.digest(token.secret_sha256, digest, "sha256"), mac)
            ),
            None,
        )
        if token is None or token.node != asked.node:
            raise Refused(
                "the token is unknown, or another node's",
                code="token-unknown",
                hint="ask the coordinator's operator for a new one: minshu-coordinator token NODE",
            )
        # (3)
        verify(document, ENROLMENT, {key_id(asked.identity_key): asked.identity_key})
        # (4)
        key = read_csr(asked.csr)
        # (5)
        _check_journal_key(asked)
        if asked.suite != self._suite:
            raise InputError(
                f"the node was made for suite {asked.suite}, this collaboration uses {self._suite}",
                code="wrong-suite",
                hint=f"run minshu-node init --suite {self._suite} in a new home",
            )
        suites.seal(
            asked.suite, asked.recipient_key, b"minshu/enrolment/1\0", b""
        )  # it is a key of the suite
        # (6)
        _check_witness_keys(asked)
        # (7)
        now = self._now()
        leaf = authority.node_leaf(asked.node, key, now)
        enrolment = Enrolment(
            node=asked.node,
            identity_key=asked.identity_key,
            tls_spki_sha256=spki_digest(key),
            journal_vkey=asked.journal_vkey,
            recipient_key=asked.recipient_key,
            suite=asked.suite,
            certificate_sha256=sha256_digest(leaf),
            enrolled=now,
            witness_vkeys=asked.witness_vkeys,
        )
        entry = Entry(
            "node.enrolled",
            {
                "node": asked.node,
                "organisation": organisation_of(asked.node),
                "identity": key_id(asked.identity_key),
                "spki_sha256": enrolment.tls_spki_sha256,
                "vkey": asked.journal_vkey,
                "request_sha256": sha256_digest(request),
                "certificate_sha256": enrolment.certificate_sha256,
            },
        )
        self._store.enrol(token.secret_sha256, enrolment, [entry])
        return leaf

    # -- nodes -------------------------------------------------------------------------------------

    def check_peer(self, name: str, spki: Digest) -> NodeName:
        """Return the node whose TLS key the connection proved.

        Raises:
            SignatureInvalid: no member of that name, or a member with another key.
        """
        self.refresh()
        node = NodeName(name)
        if self._roster is not None:
            member = self._roster.node(node)
            expected = None if member is None else member.tls_spki_sha256
        else:
            enrolled = self._store.enrolment(node)
            expected = None if enrolled is None else enrolled.tls_spki_sha256
        if expected is None:
            raise SignatureInvalid(
                "the roster does not list this node",
                code="not-in-roster",
                hint="wait for the next roster, or ask the coordinator's operator to draft one",
            )
        if not hmac.compare_digest(expected, spki):
            raise SignatureInvalid(
                "the TLS key is not the one the roster names for this node",
                code="wrong-tls-key",
                hint="enrol again and have the new key put in the roster",
            )
        return node

    def member(self, node: NodeName) -> RosterNode:
        """Return a node of the roster.

        Raises:
            SignatureInvalid: it is not listed.
        """
        member = None if self._roster is None else self._roster.node(node)
        if member is None:
            raise SignatureInvalid("the roster does not list this node", code="not-in-roster")
        return member

    def _signed_by(self, node: NodeName, kind: str, envelope: bytes, limit: int) -> Envelope:
        if len(envelope) > limit:
            raise DecodeError(f"document of {len(envelope)} bytes, at most {limit} accepted", code="too-long")
        document = decode_envelope(envelope)
        key = self.member(node).identity_key
        verify(document, kind, {key_id(key): key})
        return document

    def verdict(self, node: NodeName, job: JobId, attempt: int, envelope: bytes) -> Verdict:
        """Return a node's verdict on an attempt.

        Raises:
            DecodeError, SignatureInvalid: not signed by the node, or about something else.
        """
        verdict = Verdict.decode(self._signed_by(node, VERDICT, envelope, 128 << 10).payload)
        _same((verdict.node, verdict.job, verdict.attempt), (node, job, attempt), "verdict")
        return verdict

    def admission(self, node: NodeName, job: JobId, attempt: int, envelope: bytes) -> Admission:
        """Return a node's admission to an attempt.

        Raises:
            DecodeError, SignatureInvalid: not signed by the node, or about something else.
        """
        admission = Admission.decode(self._signed_by(node, ADMISSION, envelope, 512 << 10).payload)
        _same((admission.node, admission.job, admission.attempt), (node, job, attempt), "admission")
        return admission

    def release_note(self, node: NodeName, job: JobId, attempt: int, envelope: bytes) -> ReleaseNote:
        """Return a node's note on a release.

        Raises:
            DecodeError, SignatureInvalid: not signed by the node, or about something else.
        """
        note = ReleaseNote.decode(self._signed_by(node, RELEASE, envelope, 32 << 10).payload)
        _same((note.node, note.job, note.attempt), (node, job, attempt), "release note")
        return note

    def catalogue(self, node: NodeName, envelope: bytes) -> None:
        """Check that a catalogue is the node's own, and that everybody can read it.

        Raises:
            DecodeError, SignatureInvalid: it is not, names another node, or has a further signature.
        """
        document = self._signed_by(node, CATALOGUE, envelope, MAX_CATALOGUE_BYTES)
        if len(document.signatures) != 1:
            raise SignatureInvalid("the catalogue has several signatures", code="several-signers")
        if read_catalogue(document.payload).name != node:
            raise SignatureInvalid("the catalogue is another node's", code="wrong-subject")

    def former_catalogue(self, node: NodeName, envelope: bytes, version: int) -> bool:
        """Return whether a catalogue was the node's own under an earlier roster, where it had another key."""
        chain = self._store.rosters_after(version - 1) if 0 < version < self._trusted.version else ()
        member = _content(chain[0]).node(node) if chain else None
        if member is None:
            return False
        try:
            verify(decode_envelope(envelope), CATALOGUE, {key_id(member.identity_key): member.identity_key})
        except SignatureInvalid:
            return False
        return True

    def catalogues(self) -> list[bytes]:
        """Return the members' catalogues.

        Left out is one under a key that the roster no longer names, and what an earlier release kept unread.
        """
        held = []
        for node, envelope in self._store.catalogues().items():
            with suppress(SignatureInvalid, DecodeError):
                self.catalogue(node, envelope)
                held.append(envelope)
        return held

    def announce_rotation(self, node: NodeName, envelope: bytes) -> Digest:
        """Keep the announcement of a node's next identity key, and return the digest of its payload.

        It changes nothing before the root key holders have signed a roster with that key.

        (1) Signed by the node's key in the roster, and by the next key. (2) From the one to the other, in
        this node's name. (3) Not issued in the future. (4) The next key is nobody's yet. (5) No other
        announcement away from this key stands, that is, has arrived since the roster in force was issued:
        one of the two may be a thief's. The draft of the next roster shows both; once that roster is in force
        and still lists the present key, neither stands, and the node's own is taken when it comes again.

        Raises:
            DecodeError, SignatureInvalid, StateConflict: which of them does not hold.
        """
        # (1)
        document = self._signed_by(node, ROTATION, envelope, MAX_ROTATION_BYTES)
        rotation = Rotation.decode(document.payload)
        both = {key_id(key): key for key in (rotation.previous_key, rotation.next_key)}
        verify(document, ROTATION, both, threshold=2)
        # (2)
        if (rotation.node, rotation.previous_key) != (node, self.member(node).identity_key):
            raise SignatureInvalid(
                "the announcement is another node's, or away from another key", code="wrong-subject"
            )
        # (3)
        if rotation.issued > self._now() + CLOCK_TOLERANCE:
            raise StateConflict("the announcement is dated in the future", code="rotation-not-valid")
        # (4)
        used = {one.previous_key for one in self._store.rotations()}
        if self._roster is None or rotation.next_key in used | succession.signing_keys(self._roster):
            raise StateConflict("the next key is or was somebody's already", code="key-in-use")
        # (5)
        since = self._roster.issued
        away = [
            one
            for one in self._store.rotations()
            if (one.node, one.previous_key) == (node, rotation.previous_key)
        ]
        taken = {decode_envelope(one.envelope).payload_digest for one in away if not one.refused}
        if document.payload_digest in taken:
            return document.payload_digest
        refused = any(one.arrived > since for one in away if not one.refused)
        others = {one.next_key for one in away if one.refused and one.arrived > since}
        body = {
            "peer": node,
            "sha256": document.payload_digest,
            "envelope_sha256": sha256_digest(envelope),
            "kind": "rotation",
        }
        if refused:
            body["code"] = "other-announcement"
        if not refused or (rotation.next_key not in others and len(others) < MAX_REFUSED_ROTATIONS):
            self._store.put_rotation(
                StoredRotation(
                    node, rotation.previous_key, rotation.next_key, self._now(), envelope, refused=refused
                ),
                [Entry("peer.receipt", body)],
            )
        if refused:
            raise StateConflict(
                "another announcement of the next identity key, away from the same key, came before",
                code="other-announcement",
                hint="if it is not yours, tell the coordinator's operator at once: roster draft --keep-key",
            )
        return document.payload_digest

    def receipt(self, node: NodeName, envelope: bytes) -> Receipt:
        """Return what a node says of a release of its own.

        Raises:
            DecodeError, SignatureInvalid: not signed by the node, or about another's.
        """
        receipt = Receipt.decode(self._signed_by(node, RECEIPT, envelope, MAX_RECEIPT_BYTES).payload)
        origin, _, generation = receipt.log.rpartition("/journal/")
        if receipt.node != node or origin != node or not _GENERATION.fullmatch(generation):
            raise SignatureInvalid("the receipt is about another node's release", code="wrong-subject")
        return receipt

    def node_outcome(self, node: NodeName, envelope: bytes) -> Outcome:
        """Return an outcome that a node files.

        Raises:
            DecodeError, SignatureInvalid: not signed by the node, or in another's name.
        """
        outcome = Outcome.decode(self._signed_by(node, OUTCOME, envelope, MAX_OUTCOME_BYTES).payload)
        if outcome.by != node:
            raise SignatureInvalid("the outcome is not signed by whom it names", code="wrong-subject")
        return outcome

    # -- analysts ----------------------------------------------------------------------------------

    def request(self, method: str, envelope: bytes) -> tuple[RosterAnalyst, Request]:
        """Return who asks for what.

        (1) Bounded. (2) Signed by the one roster analyst it names. (3) For this method. (4) Made within five
        minutes of now. (5) Not seen before.

        Raises:
            DecodeError, SignatureInvalid, Refused, StateConflict: which of them does not hold.
        """
        # (1)
        if len(envelope) > MAX_REQUEST_BYTES:
            raise DecodeError(f"a request has at most {MAX_REQUEST_BYTES} bytes", code="too-long")
        document = decode_envelope(envelope)
        # (2) The key id says whom to look up, so that a stranger's request costs one signature check.
        self.refresh()
        claimed = document.signatures[0].keyid if len(document.signatures) == 1 else ""
        analyst = None if self._roster is None else self._roster.analyst(KeyId(claimed))
        if analyst is None:
            raise _stranger()
        verify(document, REQUEST, {key_id(analyst.key): analyst.key})
        request = Request.decode(document.payload)
        # (3)
        if request.method != method:
            raise SignatureInvalid("the request was signed for another method", code="wrong-method")
        # (4)
        now = self._now()
        if abs(now - request.time) > MAX_AGE:
            raise _stale()
        # (5)
        if not self._store.use_nonce(request.nonce, now + NONCE_MEMORY):
            raise StateConflict("the request was seen before", code="request-replayed")
        return analyst, request

    def still_listed(self, analyst: RosterAnalyst) -> RosterAnalyst:
        """Return an analyst as the roster in force lists the key.

        Raises:
            SignatureInvalid: `unknown-analyst`: it does not.
        """
        found = None if self._roster is None else self._roster.analyst(KeyId(key_id(analyst.key)))
        if found is None:
            raise _stranger()
        return found

    def question(self, envelope: bytes) -> tuple[JobSpec, RosterAnalyst]:
        """Return the job that is asked about, and who asks: signed as a question, which is no job.

        Checked as a job is, and made within five minutes of now and not seen before, so that nobody who has
        come by a question gets the nodes' answers to it.

        Raises:
            DecodeError, SignatureInvalid, InputError, StateConflict, Refused: what does not hold.
        """
        spec, analyst, _ = self.job(envelope, EXPLAIN)
        now = self._now()
        if abs(now - spec.created) > MAX_AGE:
            raise _stale()
        if not self._store.use_nonce(spec.nonce, now + NONCE_MEMORY):
            raise StateConflict("the question was seen before", code="request-replayed")
        return spec, analyst

    def outcome(self, envelope: bytes) -> tuple[Outcome, RosterAnalyst]:
        """Return an outcome that an analyst files.

        Raises:
            DecodeError, SignatureInvalid: not signed by the analyst it names.
        """
        if len(envelope) > MAX_OUTCOME_BYTES:
            raise DecodeError(f"an outcome has at most {MAX_OUTCOME_BYTES} bytes", code="too-long")
        document = decode_envelope(envelope)
        self.refresh()
        claimed = KeyId(document.signatures[0].keyid if len(document.signatures) == 1 else "")
        analyst = None if self._roster is None else self._roster.analyst(claimed)
        if analyst is None:
            raise _stranger()
        verify(document, OUTCOME, {claimed: analyst.key})
        outcome = Outcome.decode(document.payload)
        if outcome.by != claimed:
            raise SignatureInvalid("the outcome is not signed by whom it names", code="wrong-subject")
        return outcome, analyst

    def job(self, envelope: bytes, kind: str = JOB) -> tuple[JobSpec, RosterAnalyst, JobId]:
        """Return what a submitted job asks, whose it is, and its id; `kind` is the type it must be signed as.

        (1) Bounded before it is parsed. (2) Signed by the requester it names, an analyst of the roster.
        (3) For this collaboration and the newest roster, which has not expired. (4) Neither over nor valid
        for more than 30 days. (5) Every node is a member. (6) The job type allows it.

        Raises:
            DecodeError, SignatureInvalid, InputError, StateConflict, Refused: which of them does not hold.
        """
        from policies.decide import MAX_JOB_LIFETIME
        from protocols.jobs import job_type

        # (1)
        if len(envelope) > MAX_JOB_ENVELOPE_BYTES:
            raise DecodeError(
                f"a job envelope of {len(envelope)} bytes, at most {MAX_JOB_ENVELOPE_BYTES} accepted",
                code="too-long",
                hint="a job names datasets and columns, it carries no data",
            )
        document = decode_envelope(envelope)
        # (2) The key id says whom to look up; the payload is parsed once that analyst's key holds.
        self.refresh()
        claimed = KeyId(document.signatures[0].keyid if len(document.signatures) == 1 else "")
        analyst = None if self._roster is None else self._roster.analyst(claimed)
        if analyst is None or self._roster is None:
            raise _stranger()
        verify(document, kind, {key_id(analyst.key): analyst.key})
        spec = JobSpec.decode(document.payload)
        if spec.requester != claimed:
            raise SignatureInvalid("the job is not signed by the requester it names", code="wrong-requester")
        # (3)
        if spec.collaboration != self._roster.collaboration:
            raise InputError("the job is for another collaboration", code="wrong-collaboration")
        if spec.roster_digest != self._roster.digest:
            raise StateConflict(
                f"the job names another roster than the one in force, version {self._roster.version}",
                code="roster-outdated",
                hint="fetch the roster and sign the job again",
            )
        now = self._now()
        succession.in_force(self._roster, now)
        # (4)
        if spec.expires <= now or spec.expires - now > MAX_JOB_LIFETIME:
            raise InputError(
                "the job has expired, or is valid for more than 30 days",
                code="bad-expiry",
                hint="set `expires` or `valid_hours` to at most 30 days from now",
            )
        # (5)
        for node in spec.roles.values():
            if self._roster.node(node) is None:
                raise InputError(
                    f"the job names {node}, which the roster does not list",
                    code="unknown-node",
                    hint="minshu catalogue shows the members",
                )
        # (6)
        job_type(spec.job_type).check(spec)
        return spec, analyst, JobId(document.payload_digest)


def _check_journal_key(asked: EnrolmentRequest) -> None:
    """Check that the journal's key is the identity key, in any generation of the node's log."""
    origin = asked.journal_vkey.partition("+")[0]
    name, _, generation = origin.rpartition("/journal/")
    if (
        name != asked.node
        or not _GENERATION.fullmatch(generation)
        or asked.journal_vkey != str(VerifierKey(origin, ED25519, asked.identity_key))
    ):
        raise InputError("the journal key is not the node's identity key", code="bad-vkey")


def _check_witness_keys(asked: EnrolmentRequest) -> None:
    keys = [VerifierKey.parse(line) for line in asked.witness_vkeys]
    if [(key.name, key.type) for key in keys] != [
        (f"{asked.node}/witness/1", kind) for kind in _WITNESS_TYPES[: len(keys)]
    ] or keys[0].public_key == asked.identity_key:
        raise InputError(
            f"the witness keys are not those of {asked.node}/witness/1, an Ed25519 key and then perhaps an"
            " ML-DSA-44 one, apart from the identity key",
            code="bad-vkey",
        )
    if len(keys) != len(asked.witness_proofs) or not all(
        _made(key, proof, asked.proven) for key, proof in zip(keys, asked.witness_proofs, strict=True)
    ):
        raise SignatureInvalid(
            "a witness key did not sign the enrolment", code="no-proof-of-possession", hint="enrol again"
        )


def _made(key: VerifierKey, proof: bytes, message: bytes) -> bool:
    if key.type == COSIGNATURE:
        return verify_signature(key.public_key, proof, message)
    try:
        MLDSA44PublicKey.from_public_bytes(key.public_key).verify(proof, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _content(stored: StoredRoster) -> Roster:
    return Roster.decode(decode_envelope(stored.envelope).payload)


def _same(found: tuple[str, str, int], expected: tuple[str, str, int], what: str) -> None:
    if found != expected:
        raise SignatureInvalid(
            f"the {what} is about another node, job or attempt than the message it came in",
            code="wrong-subject",
        )


def _as_new(roster: Roster) -> StateConflict:
    return StateConflict(
        f"a statement as new as this one, on roster version {roster.version}, is published already",
        code="already-published",
        hint="make a new one: minshu-coordinator roster freshen",
    )


def _stale() -> Refused:
    return Refused(
        "the request's time is more than five minutes from the coordinator's",
        code="request-stale",
        hint="check this machine's clock",
    )


def _stranger() -> SignatureInvalid:
    return SignatureInvalid(
        "the signing key is no analyst's in the roster in force",
        code="unknown-analyst",
        hint="ask the coordinator's operator to put your analyst card in the next roster",
    )
