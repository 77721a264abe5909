"""job.toml, as an analyst writes it → `JobSpec`, as it is signed.

```toml
job_type = "crosscheck/1"
purpose = "P-2026-014"
legal_basis = "DPIA-2026-031"
expected_use = "派出所逐户上门核实后补登居住证"
collaboration = "gz.example"
recipients = ["police.gz.example"]   # left out where all that comes out is for whoever asks
valid_hours = 72                     # or: expires = 2026-12-04T08:00:00+08:00

[params]
present_in = "at_least"
k = 2

[roles]
register = "police.gz.example/node-a"
source-1 = "health.gz.example/node-a"

[[inputs]]
role = "register"
dataset = "register"
columns = { key = "person_id" }
```
"""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from policies.decide import MAX_JOB_LIFETIME
from policies.model import Alias, ColumnName, JobTypeName, Moment, NodeId, OrganisationName, Text
from policies.strict import Document, build, read_toml
from protocols.encoding import sha256_digest
from protocols.errors import DecodeError, InputError, PolicyInvalid
from protocols.ids import DatasetName, Digest, KeyId, NodeName, Organisation, Role
from protocols.wire import MAX_JOB_BYTES, JobInput, JobSpec, organisation_of

DEFAULT_VALID_HOURS: Final = 168

_MAX_HOURS: Final = int(MAX_JOB_LIFETIME / timedelta(hours=1))

RoleName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?\Z",
        description="a role such as register or source-1",
    ),
]


class _Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one role brings; `columns` maps the job type's slot to the dataset's column."""

    role: RoleName
    dataset: Alias
    columns: dict[ColumnName, ColumnName]
    organisation: OrganisationName | None = None


class _JobFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of job.toml."""

    schema: Literal["minshu-job/2"] = "minshu-job/2"
    job_type: JobTypeName
    purpose: Text
    legal_basis: Text
    expected_use: Text
    collaboration: OrganisationName
    recipients: tuple[OrganisationName, ...] = ()
    roles: dict[RoleName, NodeId]
    params: dict[str, Any] = {}
    inputs: tuple[_Input, ...] = ()
    valid_hours: (
        Annotated[int, Meta(ge=1, le=_MAX_HOURS, description=f"hours, from 1 to {_MAX_HOURS}")] | None
    ) = None
    expires: Moment | None = None


def load_job(
    text: str | bytes, *, requester: KeyId, roster_digest: Digest, now: datetime, nonce: str
) -> JobSpec:
    """Return the job spec that a job.toml asks for; whether its type allows it is the type's to say.

    Args:
        text: the file, at most 256 KiB; longer ones are refused before they are parsed.
        requester: id of the key that will sign the job.
        roster_digest: digest of the roster the analyst relies on.
        now: becomes `created`, cut to seconds.
        nonce: 32 lower-case hex digits, fresh for every job.

    Raises:
        InputError: with the 1-based line, what was found and what was expected.
    """
    try:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        document = read_toml(data, limit=MAX_JOB_BYTES, what="job.toml")
        if "expected_use" not in document.root:
            document.fail(
                (),
                "the key expected_use is missing: the officers who approve read what the answer is for",
                code="missing-key",
                hint='say it in one sentence, for example expected_use = "officers visit each address, and '
                'register who lives there"',
            )
        job: _JobFile = build(document, _JobFile, document.root, ())
        _check(document, job)
    except PolicyInvalid as error:
        code = "job-invalid" if error.code == PolicyInvalid.default_code else error.code
        raise InputError(error.message, code=code, hint=error.hint) from None
    created = now.astimezone(UTC).replace(microsecond=0)
    hours = job.valid_hours if job.valid_hours is not None else DEFAULT_VALID_HOURS
    roles = {Role(role): NodeName(node) for role, node in job.roles.items()}
    spec = JobSpec(
        job_type=job.job_type,
        params=job.params,
        inputs=tuple(
            JobInput(
                Role(given.role),
                organisation_of(roles[Role(given.role)]),
                DatasetName(given.dataset),
                dict(given.columns),
            )
            for given in job.inputs
        ),
        roles=roles,
        purpose=job.purpose,
        legal_basis=job.legal_basis,
        expected_use=job.expected_use,
        recipients=tuple(Organisation(name) for name in job.recipients),
        requester=requester,
        collaboration=job.collaboration,
        roster_digest=roster_digest,
        created=created,
        expires=job.expires if job.expires is not None else created + timedelta(hours=hours),
        nonce=nonce,
    )
    try:
        # Past this line the spec is exactly what every node will decode from the signed bytes.
        return JobSpec.decode(spec.encode())
    except DecodeError as error:
        raise InputError(
            f"job.toml makes no valid job: {error.message}", code=error.code, hint=error.hint
        ) from None


def suppose_job(data: bytes, now: datetime) -> JobSpec:
    """Return the job that a job.toml asks for as if nobody's key had signed it, under nobody's roster.

    What such a job asks can be looked at by anybody; no node answers it.

    Raises:
        InputError: see `load_job`.
    """
    nobody = sha256_digest(b"minshu/nobody/1")
    return load_job(data, requester=KeyId(nobody), roster_digest=nobody, now=now, nonce=secrets.token_hex(16))


def _check(document: Document, job: _JobFile) -> None:
    """Check what spans several places, where the line is still known.

    (1) One validity. (2) Every node has one role. (3) Every input belongs to a role, once, and to the
    organisation of its node.
    """
    # (1)
    if job.valid_hours is not None and job.expires is not None:
        document.fail(("expires",), "valid_hours is given, too", code="bad-time", hint="write one of the two")
    # (2)
    seen: dict[str, str] = {}
    for role, node in job.roles.items():
        if node in seen:
            document.fail(
                ("roles", role),
                f"the node is {seen[node]} already",
                code="bad-roles",
                hint="give each role a node of its own",
            )
        seen[node] = role
    # (3)
    brought: set[str] = set()
    for index, given in enumerate(job.inputs):
        path = ("inputs", index)
        if given.role not in job.roles:
            document.fail(
                (*path, "role"),
                "no such role under [roles]",
                code="bad-inputs",
                hint=f"roles: {', '.join(sorted(job.roles))}",
            )
        if given.role in brought:
            document.fail(
                (*path, "role"),
                "the role brings two datasets",
                code="bad-inputs",
                hint="give the second dataset a role of its own",
            )
        brought.add(given.role)
        if given.organisation is not None and given.organisation != organisation_of(
            NodeName(job.roles[given.role])
        ):
            document.fail(
                (*path, "organisation"),
                "not the organisation of the role's node",
                code="bad-inputs",
                hint="leave it out: it follows from the node",
            )
