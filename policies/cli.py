"""`minshu-policy`: make keys, check, explain and sign a policy. Exit 0: yes, 1: no, 2: could not be asked."""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

from policies.decide import Refuse, decide
from policies.explain import Language, decision_json, explain_decision, explain_policy, suppose
from policies.jobfile import load_job
from policies.keyfile import fingerprint, load_signer, new_key, public_path
from policies.parse import MAX_POLICY_BYTES, ParsedPolicy, parse_policy, unsupported_clauses
from policies.sign import SIGNATURES, sign_policy
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import JOB, MAX_ENVELOPE_BYTES, decode_envelope, key_id, pae
from protocols.errors import InputError, MinshuError, PolicyInvalid
from protocols.ids import KeyId, NodeName, Organisation
from protocols.wire import MAX_JOB_BYTES, JobSpec, parse_utc

_NEXT: Final = {
    "dpo": "pin it on the node, and list the id under [approvers.dpo] if this person approves jobs",
    "owner": "pin it on the node, and list the id under [approvers.owner] if this person approves jobs",
    "analyst": "have it entered in the roster, and the id under [requesters] of each policy",
    "root": "hand it to every node's operator out of band; keep the private half offline",
}
"""What to do with the public half of a new key, by role."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except MinshuError as error:
        if options.json:
            line = error.line if isinstance(error, PolicyInvalid) else 0
            _print_json(
                {
                    "error": {
                        "code": error.code,
                        "message": error.message,
                        "hint": error.hint,
                        **({"line": line} if line else {}),
                    }
                }
            )
        print(f"minshu-policy: error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1 if isinstance(error, PolicyInvalid) else 2
    except BrokenPipeError:
        # The reader of our output has gone; what it did not read, nobody wants.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as every other error is said."""

    def error(self, message: str) -> NoReturn:
        """Print the error and where to read on, and leave with 2."""
        print(f"minshu-policy: error: {message}", file=sys.stderr)
        print(f"hint: {self.prog} --help lists what is known", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    parser = _Parser(
        prog="minshu-policy", description="Make keys for, check, explain and sign a department's policy."
    )
    parser.add_argument("--version", action="version", version=f"minshu-policy {version('minshu')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    key = commands.add_parser("key", help="make a signing key").add_subparsers(required=True, metavar="new")
    new = key.add_parser(
        "new", parents=[common], help="make an Ed25519 key in FILE, its public half in FILE.pub"
    )
    new.add_argument("--role", required=True, choices=sorted(_NEXT), help="whose key it is")
    new.add_argument("file", type=Path, metavar="FILE")
    new.set_defaults(command=_key_new)

    check = commands.add_parser("check", parents=[common], help="check a policy, or what it answers to a job")
    check.add_argument("file", type=Path, metavar="FILE", help="policy.toml")
    check.add_argument(
        "--job", type=Path, metavar="JOB", help="job.toml, a job payload or its envelope (.json)"
    )
    check.add_argument("--requester", metavar="ALIAS", help="who is supposed to ask, as named in the policy")
    check.add_argument(
        "--organisation", metavar="NAME", help="the requester's, where the policy does not say"
    )
    check.add_argument("--at", metavar="TIME", help="decide at this time, such as 2026-12-01T00:00:00Z")
    check.add_argument("--lang", choices=("zh", "en"), default="zh", help="language of the answer")
    check.set_defaults(command=_check)

    explain = commands.add_parser("explain", parents=[common], help="say what a policy allows")
    explain.add_argument("file", type=Path, metavar="FILE", help="policy.toml")
    explain.add_argument("--lang", choices=("zh", "en"), default="zh", help="language")
    explain.set_defaults(command=_explain)

    sign = commands.add_parser("sign", parents=[common], help="add a signature to policy.dsse")
    sign.add_argument("file", type=Path, metavar="FILE", help="policy.toml")
    sign.add_argument("--key", type=Path, required=True, metavar="KEY", help="private key of who signs")
    sign.add_argument("--out", type=Path, metavar="FILE", help="envelope; default: policy.dsse beside FILE")
    sign.add_argument("--pae", type=Path, metavar="FILE", help="also write the signed bytes, for openssl")
    sign.add_argument("--sig", type=Path, metavar="FILE", help="also write this signature alone, for openssl")
    sign.set_defaults(command=_sign)
    return parser


def _key_new(options: argparse.Namespace) -> int:
    public = new_key(options.file)
    public_file, identifier = public_path(options.file), key_id(public)
    if options.json:
        _print_json(
            {"role": options.role, "id": identifier, "private": str(options.file), "public": str(public_file)}
        )
        return 0
    print(f"private key: {options.file} (keep it to yourself)")
    print(f"public key:  {public_file}")
    print(f"id:          {identifier}")
    print(f"fingerprint: {fingerprint(public)}")
    print(f"next:        {_NEXT[options.role]}")
    return 0


def _check(options: argparse.Namespace) -> int:
    parsed = parse_policy(_read(options.file, MAX_POLICY_BYTES))
    if options.job is not None:
        return _check_job(options, parsed)
    unsupported = unsupported_clauses(parsed)
    if options.json:
        _print_json(
            {
                "policy_id": parsed.policy.policy_id,
                "version": parsed.policy.version,
                "digest": parsed.digest,
                "unsupported": [{"line": line, "clause": clause} for line, clause in unsupported],
            }
        )
        return 0
    print(f"{options.file.name}: well-formed, {len(parsed.policy.rules)} rule(s)")
    print(f"policy_id {parsed.policy.policy_id}, version {parsed.policy.version}")
    print(f"digest    {parsed.digest}")
    for line, clause in unsupported:
        print(f"line {line}: {clause} is not honoured by this version, so no node will activate the policy")
    return 0


def _check_job(options: argparse.Namespace, parsed: ParsedPolicy) -> int:
    now = _moment(options.at)
    spec = _job(options.job, now)
    alias = options.requester or _asking(parsed, spec)
    organisation = Organisation(options.organisation) if options.organisation else None
    active, spec, roster = suppose(parsed, spec, alias, organisation)
    decision = decide(active, spec, node=NodeName(parsed.policy.policy_id), roster=roster, now=now)
    if options.json:
        _print_json(decision_json(decision))
    else:
        language: Language = options.lang
        print(explain_decision(decision, spec, language), end="")
    return 1 if isinstance(decision, Refuse) else 0


def _asking(parsed: ParsedPolicy, spec: JobSpec) -> str:
    """Return the alias that signed the job or, for a file nobody signed, the only one there is."""
    requesters = parsed.policy.requesters
    for alias, who in requesters.items():
        if spec.requester in who.keys or len(requesters) == 1:
            return alias
    raise InputError(
        f"the policy has {len(requesters)} requesters and the job says none of them asks",
        code="unknown-requester",
        hint=f"say who asks with --requester; known: {', '.join(sorted(requesters)) or 'none'}",
    )


def _job(path: Path, now: datetime) -> JobSpec:
    """Read a job.toml as an unsigned job, or a payload or envelope as what it is; no signature is checked."""
    if path.suffix != ".json":
        try:
            text = _read(path, MAX_JOB_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{path.name} is not UTF-8 text", code="not-utf8", hint="save the file as UTF-8"
            ) from None
        nobody = sha256_digest(b"minshu/nobody/1")
        return load_job(
            text, requester=KeyId(nobody), roster_digest=nobody, now=now, nonce=secrets.token_hex(16)
        )
    data = _read(path, MAX_ENVELOPE_BYTES).rstrip(b"\n")
    if "payloadType" in decode_json(data, limit=MAX_ENVELOPE_BYTES):
        envelope = decode_envelope(data)
        if envelope.payload_type != JOB:
            raise InputError(
                "the envelope holds no job", code="wrong-payload-type", hint="give the job's envelope"
            )
        data = envelope.payload
    return JobSpec.decode(data)


def _moment(text: str | None) -> datetime:
    return parse_utc(text) if text else datetime.now(UTC)


def _explain(options: argparse.Namespace) -> int:
    parsed = parse_policy(_read(options.file, MAX_POLICY_BYTES))
    text = explain_policy(parsed, options.lang)
    if options.json:
        _print_json({"digest": parsed.digest, "language": options.lang, "text": text})
    else:
        print(text, end="")
    return 0


def _sign(options: argparse.Namespace) -> int:
    data = _read(options.file, MAX_POLICY_BYTES)
    out: Path = options.out or options.file.with_name("policy.dsse")
    before = decode_envelope(_read(out, MAX_ENVELOPE_BYTES)) if out.exists() else None
    signer = load_signer(options.key)
    envelope = sign_policy(data, signer, before)
    _write(out, envelope.encode())
    if options.pae is not None:
        _write(options.pae, pae(envelope.payload_type, envelope.payload))
    if options.sig is not None:
        _write(options.sig, envelope.signatures[-1].sig)
    missing = SIGNATURES - len(envelope.signatures)
    if options.json:
        _print_json(
            {"digest": envelope.payload_digest, "signatures": len(envelope.signatures), "out": str(out)}
        )
        return 0
    print(f"signed by {key_id(signer.public_key)}")
    print(f"{out}: {len(envelope.signatures)} signature(s) over {envelope.payload_digest}")
    if missing > 0:
        print(f"next: {missing} more signature(s), by somebody of another role")
    return 0


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", code="file-unreadable", hint="check the path"
        ) from None
    if len(data) > limit:
        raise InputError(
            f"{path.name} is longer than {limit} bytes", code="too-long", hint="leave out what is not needed"
        )
    return data


def _write(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, so that a crash leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error.strerror})",
            code="file-unwritable",
            hint="check the folder and the space left",
        ) from None


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, sort_keys=True))


if __name__ == "__main__":
    sys.exit(main())
