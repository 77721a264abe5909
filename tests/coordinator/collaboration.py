"""A small collaboration for these tests: three root keys, four nodes, analysts of two organisations."""

import hashlib
import hmac
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pyarrow as pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from audit.note import COSIGNATURE, ED25519, ML_DSA_44, Checkpoint, Note, VerifierKey
from audit.witness import CosignerKeys
from coordinator.requests import Request
from minshu.v1 import audit_pb2
from protocols.channel import suites
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import (
    ADMISSION,
    CATALOGUE,
    ENROLMENT,
    EXPLAIN,
    FRESHNESS,
    HEAD,
    JOB,
    OUTCOME,
    RECEIPT,
    RELEASE,
    ROSTER,
    ROTATION,
    VERDICT,
    KeySigner,
    key_id,
    sign,
)
from protocols.ids import DatasetName, Digest, JobId, NodeName, Organisation, Role
from protocols.roots import Roots
from protocols.wire import (
    Admission,
    Constraints,
    Freshness,
    Head,
    JobInput,
    JobSpec,
    Outcome,
    Receipt,
    ReleaseNote,
    Roster,
    RosterAnalyst,
    RosterCoordinator,
    RosterNode,
    RosterOrganisation,
    Rotation,
    Verdict,
    organisation_of,
)

NOW = datetime(2026, 12, 2, 8, 0, 0, tzinfo=UTC)
SUITE = 2  # the smaller keys; which suite it is makes no difference to the coordinator
POLICE, INSURANCE, HEALTH, STATISTICS = (
    NodeName(f"{name}.gz.example/node-a") for name in ("police", "human-resources", "health", "statistics")
)
SEATS = {
    Role("register"): POLICE,
    Role("source-1"): INSURANCE,
    Role("source-2"): HEALTH,
    Role("matcher"): STATISTICS,
}
NODES = tuple(SEATS.values())
ROLE_OF = {node: role for role, node in SEATS.items()}
BUREAU = Organisation("bureau.gz.example")
STREETS = {"street": ["东街", "西街"], "flagged": [25, 40]}


@dataclass
class Clock:
    """Stands still until it is moved."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **span: float) -> None:
        self.now += timedelta(**span)


def signer(name: str) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


@cache
def tls_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()[:31]), ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def spki(name: str) -> Digest:
    public = tls_key(name).public_key()
    return sha256_digest(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def recipient(name: str) -> bytes:
    return suites.new_private_key(SUITE, lambda n: hashlib.shake_256(name.encode()).digest(n))


def recipient_public(name: str) -> bytes:
    return suites.public_key(SUITE, recipient(name))


def vkey(node: str) -> str:
    return str(VerifierKey(f"{node}/journal/1", ED25519, signer(node).public_key))


@cache
def witness_keys(node: str) -> tuple[Ed25519PrivateKey, MLDSA44PrivateKey]:
    seed = hashlib.sha256(f"{node} witness".encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(seed), MLDSA44PrivateKey.from_seed_bytes(seed)


@dataclass(frozen=True)
class MlDsaSigner:
    """An ML-DSA-44 key as a cosigner has it."""

    key: MLDSA44PrivateKey

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


def cosigner(node: str) -> CosignerKeys:
    ed25519, mldsa = witness_keys(node)
    return CosignerKeys(f"{node}/witness/1", KeySigner(ed25519), MlDsaSigner(mldsa))


@cache
def witness_vkeys(node: str, by: str = "") -> tuple[str, ...]:
    """What `node` lists: its own keys, or those of `by` under its name."""
    types = (COSIGNATURE, ML_DSA_44)
    keys = (key.public_key().public_bytes_raw() for key in witness_keys(by or node))
    return tuple(
        str(VerifierKey(f"{node}/witness/1", kind, key)) for kind, key in zip(types, keys, strict=True)
    )


def csr(node: str, key: Any = None) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, node[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    return request.sign(key or tls_key(node), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass
class Collaboration:
    now: Callable[[], datetime]
    nonces: int = 0
    coordinator: RosterCoordinator | None = None
    roots_signers: tuple[KeySigner, ...] = field(
        default_factory=lambda: tuple(signer(f"root {i}") for i in range(3))
    )

    @property
    def roots(self) -> Roots:
        return Roots.of("gz.example", 2, [one.public_key for one in self.roots_signers])

    def roster(self, version: int = 1, previous: Roster | None = None, **changes: Any) -> Roster:
        roster = Roster(
            collaboration="gz.example",
            version=version,
            previous=previous.digest if previous else None,
            suite=SUITE,
            issued=self.now() - timedelta(hours=1),
            expires=self.now() + timedelta(days=60),
            organisations=tuple(
                RosterOrganisation(name, name) for name in sorted({BUREAU, *map(organisation_of, NODES)})
            ),
            nodes=tuple(
                RosterNode(
                    node,
                    signer(node).public_key,
                    spki(node),
                    vkey(node),
                    recipient_public(node),
                    witness_vkeys(node),
                )
                for node in sorted(NODES)
            ),
            analysts=tuple(
                RosterAnalyst(name, organisation, signer(name).public_key, recipient_public(name))
                for name, organisation in (
                    ("li", BUREAU),
                    ("zhao", BUREAU),
                    ("wang", organisation_of(POLICE)),
                )
            ),
            freshness_keys=(signer("freshness").public_key,),
            coordinator=self.coordinator,
        )
        return replace(roster, **changes)

    def signed(self, roster: Roster, signatures: int = 2) -> bytes:
        return sign(ROSTER, roster.encode(), self.roots_signers[:signatures]).encode()

    def freshness(self, roster: Roster, by: str = "freshness", **changes: Any) -> bytes:
        """A statement, as of now, that a roster is the newest."""
        said = Freshness(roster.collaboration, roster.version, roster.digest, self.now())
        return sign(FRESHNESS, replace(said, **changes).encode(), [signer(by)]).encode()

    def rotation(self, of: str, to: str, by: tuple[str, ...] = (), **changes: Any) -> bytes:
        """A node's announcement of its next identity key, which is that of the name `to`."""
        said = Rotation(
            node=NodeName(of),
            previous_key=signer(of).public_key,
            next_key=signer(to).public_key,
            journal_size=1,
            journal_root=sha256_digest(b"journal"),
            issued=self.now(),
        )
        both = [signer(name) for name in by or (of, to)]
        return sign(ROTATION, replace(said, **changes).encode(), both).encode()

    def spec(self, roster: Roster | None = None, **changes: Any) -> JobSpec:
        self.nonces += 1
        columns = {"key": "resident_id", "street": "street"}
        spec = JobSpec(
            job_type="crosscheck/1",
            params={"present_in": "at_least", "k": 2, "key_holder": "source-1"},
            inputs=tuple(
                JobInput(
                    role,
                    organisation_of(node),
                    DatasetName("people"),
                    columns if role != "register" else {"key": "resident_id"},
                )
                for role, node in SEATS.items()
                if role != "matcher"
            ),
            roles=SEATS,
            purpose="P-2026-001",
            legal_basis="DPIA-2026-001",
            expected_use="核实名单并补登",
            recipients=(organisation_of(POLICE),),
            requester=key_id(signer("li").public_key),
            collaboration="gz.example",
            roster_digest=(roster or self.roster()).digest,
            created=self.now().replace(microsecond=0),
            expires=self.now().replace(microsecond=0) + timedelta(days=3),
            nonce=f"{self.nonces:032x}",
        )
        return replace(spec, **changes)

    def job(self, roster: Roster | None = None, by: str = "li", **changes: Any) -> bytes:
        return sign(JOB, self.spec(roster, **changes).encode(), [signer(by)]).encode()

    def question(self, spec: JobSpec, by: str = "li") -> bytes:
        return sign(EXPLAIN, spec.encode(), [signer(by)]).encode()

    def outcome(self, job: str, by: str = POLICE, signed_by: str | None = None, **changes: Any) -> bytes:
        """An outcome by a node, or by an analyst."""
        name = by if "/" in by else key_id(signer(by).public_key)
        outcome = Outcome(JobId(job), name, 5718, 3351, "按户核实", self.now().replace(microsecond=0))
        return sign(OUTCOME, replace(outcome, **changes).encode(), [signer(signed_by or by)]).encode()

    def request(self, method: str, subject: str = "", by: str = "li", **changes: Any) -> bytes:
        self.nonces += 1
        request = Request(method, subject, self.now(), f"{self.nonces:032x}")
        return replace(request, **changes).signed(signer(by))

    def enrolment(
        self, node: str, secret: bytes, by: str | None = None, *, keys: int = 2, **changes: Any
    ) -> tuple[bytes, bytes]:
        """What `node` hands in, proven by its first `keys` witness keys."""
        stated = {
            "schema": "minshu-enrolment/2",
            "node": node,
            "csr": csr(node),
            "identity_key": signer(node).public_key.hex(),
            "journal_vkey": vkey(node),
            "recipient_key": recipient_public(node).hex(),
            "suite": SUITE,
            "token_sha256_prefix": hashlib.sha256(secret).hexdigest()[:8],
            "witness_vkeys": list(witness_vkeys(node)),
        } | changes
        proofs = stated.pop("witness_proofs", None)
        if proofs is None:
            message = b"minshu-enrolment/2\0" + hashlib.sha256(canonical_json(stated)).digest()
            proofs = [key.sign(message).hex() for key in witness_keys(node)[:keys]]
        payload = stated | {"witness_proofs": proofs}
        request = sign(ENROLMENT, canonical_json(payload), [signer(by or node)]).encode()
        key = hashlib.sha256(secret).digest()
        return request, hmac.digest(key, hashlib.sha256(request).digest(), "sha256")

    # -- what nodes sign -----------------------------------------------------------------------------

    def verdict(
        self, node: str, job: str, attempt: int, answer: str, by: str | None = None, **changes: Any
    ) -> bytes:
        code = {"refuse": "no-rule", "ask": "needs-approval"}.get(answer, "")
        verdict = Verdict(JobId(job), attempt, NodeName(node), answer, "R1", code, f"it says {answer}", "")
        return sign(VERDICT, replace(verdict, **changes).encode(), [signer(by or node)]).encode()

    def admission(self, node: str, job: str, attempt: int, by: str | None = None, **changes: Any) -> bytes:
        admission = Admission(
            job=JobId(job),
            attempt=attempt,
            node=NodeName(node),
            suite=SUITE,
            key=recipient_public(f"{node} {attempt}"),
            roster_digest=self.roster().digest,
            participants=SEATS,
            policy_version=1,
            policy_digest=sha256_digest(b"policy"),
            rule="R1",
            constraints=Constraints(max_runtime_s=600),
            inputs={},
            not_after=self.now() + timedelta(hours=1),
        )
        return sign(ADMISSION, replace(admission, **changes).encode(), [signer(by or node)]).encode()

    def release(
        self,
        job: str,
        attempt: int,
        node: str = POLICE,
        by: str | None = None,
        *,
        analyst: str = "li",
        public: bytes | None = None,
        **changes: Any,
    ) -> tuple[bytes, bytes, str]:
        """A street table as its node seals it: note, sealed bytes, release id."""
        identifier = hashlib.sha256(f"{node} {job} {attempt}".encode()).hexdigest()[:32]
        about = {
            "name": "street-table",
            "facts": {"suppressed": 3},
            "salt": "5a" * 16,
            "statement": "统计结果",
        }
        table = pa.table(STREETS).replace_schema_metadata({b"minshu": canonical_json(about)})
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        info = b"minshu/release/1\0" + identifier.encode() + b"\0" + job.encode()
        public = public or recipient_public(analyst)
        sealed = suites.seal(SUITE, public, info, content)
        note = ReleaseNote(
            release=identifier,
            job=JobId(job),
            attempt=attempt,
            node=NodeName(node),
            name="street-table",
            output_class="A",
            recipient=BUREAU,
            sealed_to=sha256_digest(public),
            suite=SUITE,
            sha256=sha256_digest(sealed),
            content_sha256=sha256_digest(content),
            statement="统计结果",
            created=self.now().replace(microsecond=0),
            expires=self.now().replace(microsecond=0) + timedelta(days=30),
        )
        note = replace(note, **changes)
        return sign(RELEASE, note.encode(), [signer(by or node)]).encode(), sealed, note.release

    def head(self, node: str, nonce: bytes, log: str, checkpoint: bytes = b"") -> Any:
        """What a witness saw last of a log."""
        seen = Checkpoint.decode(Note.decode(checkpoint).text) if checkpoint else None
        said = Head(
            nonce=nonce,
            log=log,
            size=seen.size if seen else 0,
            root=Digest(f"sha256:{seen.root.hex()}") if seen else None,
            witness=NodeName(node),
            issued=self.now().replace(microsecond=0),
        )
        statement = sign(HEAD, said.encode(), [signer(node)]).encode()
        return audit_pb2.HeadSaid(statement=statement, checkpoint=checkpoint)

    def receipt(
        self, job: str, attempt: int, node: str = POLICE, by: str | None = None, **changes: Any
    ) -> bytes:
        """A node says that a release of its own is final."""
        said = Receipt(
            job=JobId(job),
            attempt=attempt,
            node=NodeName(node),
            kind="output.commit",
            release=hashlib.sha256(f"{node} {job} {attempt}".encode()).hexdigest()[:32],
            sha256=sha256_digest(b"sealed"),
            note_sha256=sha256_digest(b"note"),
            log=f"{node}/journal/1",
            seq=7,
            issued=self.now().replace(microsecond=0),
        )
        return sign(RECEIPT, replace(said, **changes).encode(), [signer(by or node)]).encode()

    def catalogue(self, node: str, by: str | None = None, **changes: Any) -> bytes:
        payload = {
            "schema": "minshu-catalogue/1",
            "node": node,
            "issued": "2026-12-01T00:00:00Z",
            "datasets": [
                {
                    "name": "people",
                    "title": "人口",
                    "key": "resident_id",
                    "columns": [{"name": "resident_id", "type": "text"}, {"name": "street", "type": "text"}],
                    "rows": 1200,
                    "distinct_keys": 1190,
                    "snapshot": "2026-12-01T00:00:00Z",
                }
            ],
        } | changes
        return sign(CATALOGUE, canonical_json(payload), [signer(by or node)]).encode()
