"""Who is who: enrolment, the roster in force, and what is checked before anybody is believed.

Nothing here trusts the coordinator's own word either: a roster counts through the root keys, a job or request
through the analyst's key in the roster, a node's message through its identity key there, and a connection
through the SHA-256 of its TLS key there.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from audit.note import ED25519, VerifierKey
from coordinator.handout import PEM
from coordinator.requests import MAX_AGE, MAX_REQUEST_BYTES, NONCE_MEMORY, Request
from coordinator.roots import follows, open_roster
from coordinator.store import Enrolment, Entry, Store, StoredRoster, Token
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import (
    ADMISSION,
    CATALOGUE,
    ENROLMENT,
    JOB,
    RELEASE,
    REQUEST,
    ROSTER,
    VERDICT,
    Envelope,
    decode_envelope,
    key_id,
    verify,
)
from protocols.errors import DecodeError, InputError, Refused, SignatureInvalid, StateConflict
from protocols.ids import Digest, JobId, KeyId, NodeName
from protocols.roots import Roots
from protocols.wire import (
    Admission,
    Fields,
    JobSpec,
    ReleaseNote,
    Roster,
    RosterAnalyst,
    RosterNode,
    Verdict,
    organisation_of,
)

if TYPE_CHECKING:
    from coordinator.authority import Authority

TOKEN_LIFE: Final = timedelta(minutes=15)
MAX_ENROLMENT_BYTES: Final = 32 << 10
MAX_CATALOGUE_BYTES: Final = 512 << 10
MAX_JOB_ENVELOPE_BYTES: Final = 512 << 10
MAX_JOB_LIFE: Final = timedelta(days=30)

NODE_NAME: Final = re.compile(
    r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
)


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """What a node says of itself when it enrols. `minshu-enrolment/1`."""

    node: NodeName
    csr: str
    identity_key: bytes
    journal_vkey: str
    recipient_key: bytes
    suite: int
    token_sha256_prefix: str

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read the payload strictly.

        Raises:
            DecodeError: with the field that is wrong.
        """
        f = Fields(decode_json(payload, limit=MAX_ENROLMENT_BYTES), "enrolment")
        f.schema("minshu-enrolment/1")
        result = cls(
            node=NodeName(f.text("node", NODE_NAME)),
            csr=f.text("csr", PEM, limit=8192),
            identity_key=bytes.fromhex(f.text("identity_key", re.compile(r"[0-9a-f]{64}"))),
            journal_vkey=f.text("journal_vkey"),
            recipient_key=bytes.fromhex(f.text("recipient_key", re.compile(r"(?:[0-9a-f]{2})*"), limit=8192)),
            suite=f.count("suite", minimum=1, maximum=255),
            token_sha256_prefix=f.text("token_sha256_prefix", re.compile(r"[0-9a-f]{8}")),
        )
        f.finish()
        return result


class Registry:
    """Members and their keys, as the newest published roster has them."""

    def __init__(self, store: Store, roots: Roots, suite: int, now: Callable[[], datetime]) -> None:
        """Read the roster in force from `store`; `suite` is the collaboration's sealing suite."""
        self._store = store
        self._roots = roots
        self._suite = suite
        self._now = now
        self._roster: Roster | None = None
        self._envelope = b""
        self.refresh()

    @property
    def roster(self) -> Roster | None:
        """The newest published roster."""
        return self._roster

    @property
    def roster_envelope(self) -> bytes:
        """Its envelope, empty before the first."""
        return self._envelope

    def rosters_after(self, version: int) -> list[bytes]:
        """Return the envelopes that bring a node from `version` to the newest, oldest first.

        A node that has none gets the newest alone.
        """
        if version == 0:
            return [self._envelope] if self._envelope else []
        return [stored.envelope for stored in self._store.rosters_after(version)]

    def refresh(self) -> None:
        """Read the newest roster again: the command that publishes one is another process."""
        stored = self._store.roster()
        if stored is None or (self._roster is not None and stored.version == self._roster.version):
            return
        self._roster = Roster.decode(decode_envelope(stored.envelope).payload)
        self._envelope = stored.envelope

    def publish(self, envelope: bytes) -> Roster:
        """Check a signed roster and make it the current one.

        (1) Root keys, collaboration, validity. (2) It follows the current one. (3) Its suite is this
        collaboration's.

        Raises:
            SignatureInvalid, DecodeError, InputError, StateConflict: which of them does not hold.
        """
        # (1)
        roster = open_roster(self._roots, envelope, self._now())
        # (2)
        follows(roster, self._roster)
        # (3)
        if roster.suite != self._suite:
            raise InputError(
                f"the roster names suite {roster.suite}, this collaboration uses {self._suite}",
                code="wrong-suite",
                hint="draft it again here: the suite comes from coordinator.toml",
            )
        document = decode_envelope(envelope)
        keys = {key_id(key): key for key in self._roots.keys}
        signers = sorted(verify(document, ROSTER, keys, self._roots.threshold))
        body = {"version": roster.version, "sha256": roster.digest, "signers": signers}
        if roster.previous is not None:
            body["previous"] = roster.previous
        self._store.publish(
            StoredRoster(roster.version, roster.digest, envelope),
            roster.previous,
            [Entry("roster.published", body)],
        )
        self.refresh()
        return roster

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
        self._store.add_token(Token(hashed, NodeName(node), self._now() + TOKEN_LIFE))
        return NodeName(node)

    def enrol(self, request: bytes, mac: bytes, authority: "Authority") -> bytes:
        """Return a TLS leaf (PEM) for the node that made `request`.

        (1) Bounded, and an enrolment. (2) The token is known, this node's, and keyed the mac over the very
        bytes received. (3) The identity key signed them. (4) The TLS key signed its certificate request.
        (5) Journal and recipient keys fit. (6) The token is unused: the store uses it up and keeps the keys
        in one transaction.

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
        if asked.journal_vkey != str(VerifierKey(f"{asked.node}/journal/1", ED25519, asked.identity_key)):
            raise InputError("the journal key is not the node's identity key", code="bad-vkey")
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
        """Check that a catalogue is the node's own.

        Raises:
            DecodeError, SignatureInvalid: it is not.
        """
        self._signed_by(node, CATALOGUE, envelope, MAX_CATALOGUE_BYTES)

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
            raise Refused(
                "the request's time is more than five minutes from the coordinator's",
                code="request-stale",
                hint="check this machine's clock",
            )
        # (5)
        if not self._store.use_nonce(request.nonce, now + NONCE_MEMORY):
            raise StateConflict("the request was seen before", code="request-replayed")
        return analyst, request

    def job(self, envelope: bytes) -> tuple[JobSpec, RosterAnalyst, JobId]:
        """Return what a submitted job asks, whose it is, and its id.

        (1) Bounded before it is parsed. (2) Signed by the requester it names, an analyst of the roster.
        (3) For this collaboration and the roster in force. (4) Neither over nor valid for more than 30 days.
        (5) Every node is a member. (6) The job type allows it.

        Raises:
            DecodeError, SignatureInvalid, InputError, StateConflict, Refused: which of them does not hold.
        """
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
        verify(document, JOB, {key_id(analyst.key): analyst.key})
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
        # (4)
        now = self._now()
        if spec.expires <= now or spec.expires - now > MAX_JOB_LIFE:
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


def _same(found: tuple[str, str, int], expected: tuple[str, str, int], what: str) -> None:
    if found != expected:
        raise SignatureInvalid(
            f"the {what} is about another node, job or attempt than the message it came in",
            code="wrong-subject",
        )


def _stranger() -> SignatureInvalid:
    return SignatureInvalid(
        "the signing key is no analyst's in the roster in force",
        code="unknown-analyst",
        hint="ask the coordinator's operator to put your analyst card in the next roster",
    )
