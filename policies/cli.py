"""`minshu-policy`: make keys, fill, check, explain, compare and sign policies, and stop what must stop.

Exit 0: yes, 1: no, 2: could not be asked.
"""

import argparse
import json
import os
import re
import secrets
import sys
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

from policies.decide import decide
from policies.decision import Refuse
from policies.diff import WORDS, diff, overall, summary
from policies.explain import (
    Language,
    decision_json,
    explain_decision,
    explain_policy,
    explain_stop,
    suppose,
)
from policies.fill import fill
from policies.jobfile import suppose_job
from policies.keyfile import ask_new_passphrase, fingerprint, load_public, new_key, public_path
from policies.model import STOP_SCHEMA
from policies.parse import (
    MAX_POLICY_BYTES,
    ParsedPolicy,
    cautions,
    parse_policy,
    parse_stop,
)
from policies.sign import SIGNATURES, sign_policy, sign_stop
from policies.signers import open_signer
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import JOB, MAX_ENVELOPE_BYTES, POLICY, decode_envelope, key_id, pae
from protocols.errors import InputError, MinshuError, PolicyInvalid
from protocols.ids import NodeName, Organisation
from protocols.wire import MAX_JOB_BYTES, JobSpec, parse_utc, utc_text

_NEXT: Final = {
    "dpo": "pin it on the node, and list the id under [approvers.dpo] if this person approves jobs",
    "owner": "pin it on the node, and list the id under [approvers.owner] if this person approves jobs",
    "analyst": "have it entered in the roster, and the id under [requesters] of each policy",
    "freshness": "name it in the roster: minshu-coordinator roster draft --freshness; keep it away from the "
    "coordinator's machine",
    "root": "hand it to every node's operator out of band; keep the private half offline",
}
"""What to do with the public half of a new key, by role."""

_NOTHING_SPENT: Final = (
    "Reckoned as if nothing had been spent yet: the node knows what is left, see minshu-node budget.",
    "以上按尚未用掉任何额度计算; 实际剩余以节点为准, 见 minshu-node budget。",
)


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
        prog="minshu-policy",
        description="Make keys; fill in, check, explain, compare and sign a department's policy; stop jobs.",
    )
    parser.add_argument("--version", action="version", version=f"minshu-policy {version('minshu')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    key = commands.add_parser("key", help="make a signing key, or show one's id").add_subparsers(
        required=True, metavar="new|id"
    )
    new = key.add_parser(
        "new", parents=[common], help="make an Ed25519 key in FILE, its public half in FILE.pub"
    )
    new.add_argument("--role", required=True, choices=sorted(_NEXT), help="whose key it is")
    new.add_argument("--encrypt", action="store_true", help="ask for a passphrase that opens it")
    new.add_argument("file", type=Path, metavar="FILE")
    new.set_defaults(command=_key_new)
    show = key.add_parser("id", parents=[common], help="show the id and fingerprint of a key")
    show.add_argument("file", metavar="FILE", help="public or private key, or a pkcs11: URI")
    show.set_defaults(command=_key_id)

    filling = commands.add_parser(
        "fill", parents=[common], help="put key ids and dates into a template of a policy"
    )
    filling.add_argument("file", type=Path, metavar="TEMPLATE")
    filling.add_argument(
        "--set",
        dest="values",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="analyst=, dpo=, owner= an id or a public key file; not_before=, expires=, valid_until= a day, "
        "today, or +90d",
    )
    filling.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    filling.set_defaults(command=_fill)

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
    check.add_argument(
        "--lang", choices=("zh", "en"), help="language of the answer; default: zh with --job, else en"
    )
    check.set_defaults(command=_check)

    explain = commands.add_parser("explain", parents=[common], help="say what a policy allows")
    explain.add_argument("file", type=Path, metavar="FILE", help="policy.toml")
    explain.add_argument("--lang", choices=("zh", "en"), default="zh", help="language")
    explain.set_defaults(command=_explain)

    compare = commands.add_parser("diff", parents=[common], help="say what a new version changes")
    compare.add_argument("old", type=Path, metavar="OLD", help="policy.toml or policy.dsse")
    compare.add_argument("new", type=Path, metavar="NEW", help="policy.toml or policy.dsse")
    compare.add_argument("--lang", choices=("zh", "en"), default="zh", help="language")
    compare.set_defaults(command=_diff)

    sign = commands.add_parser("sign", parents=[common], help="add a signature to policy.dsse")
    sign.add_argument("file", type=Path, metavar="FILE", help="policy.toml")
    sign.add_argument(
        "--key", required=True, metavar="KEY", help="private key of who signs: a file or a pkcs11: URI"
    )
    sign.add_argument("--out", type=Path, metavar="FILE", help="envelope; default: policy.dsse beside FILE")
    sign.add_argument("--pae", type=Path, metavar="FILE", help="also write the signed bytes, for openssl")
    sign.add_argument("--sig", type=Path, metavar="FILE", help="also write this signature alone, for openssl")
    sign.set_defaults(command=_sign)

    stop = commands.add_parser("stop", parents=[common], help="sign a stop: one officer is enough")
    stop.add_argument("--node", required=True, metavar="NAME", help="the node's full name")
    stop.add_argument("--scope", required=True, choices=("all", "requester", "purpose", "dataset", "job"))
    stop.add_argument("--value", metavar="VALUE", help="which requester, purpose, dataset or job")
    stop.add_argument("--reason", required=True, metavar="TEXT")
    stop.add_argument("--key", required=True, metavar="KEY", help="private key: a file or a pkcs11: URI")
    stop.add_argument(
        "--out", type=Path, default=Path("stop.dsse"), metavar="FILE", help="default: stop.dsse"
    )
    stop.add_argument("--policy", type=Path, metavar="FILE", help="refuse a value this policy does not know")
    stop.add_argument("--lang", choices=("zh", "en"), default="zh", help="language")
    stop.set_defaults(command=_stop)
    return parser


def _key_new(options: argparse.Namespace) -> int:
    public = new_key(options.file, ask_new_passphrase() if options.encrypt else None)
    public_file, identifier = public_path(options.file), key_id(public)
    if options.json:
        _print_json(
            {"role": options.role, "id": identifier, "private": str(options.file), "public": str(public_file)}
        )
        return 0
    locked = "; it opens with your passphrase only" if options.encrypt else ""
    print(f"private key: {options.file} (keep it to yourself{locked})")
    print(f"public key:  {public_file}")
    print(f"id:          {identifier}")
    print(f"fingerprint: {fingerprint(public)}")
    print(f"next:        {_NEXT[options.role]}")
    return 0


def _key_id(options: argparse.Namespace) -> int:
    public = _public_key(options.file)
    if options.json:
        _print_json({"id": key_id(public), "fingerprint": fingerprint(public)})
        return 0
    print(f"id:          {key_id(public)}")
    print(f"fingerprint: {fingerprint(public)}")
    return 0


def _public_key(where: str) -> bytes:
    """Return the raw public key of a public or private key file, or of a key in a token."""
    if not where.lower().startswith("pkcs11:"):
        try:
            return load_public(Path(where))
        except InputError as error:
            if error.code != "bad-key":
                raise
    # Not a public half: whatever opens it shows the public one.
    return open_signer(where).public_key


def _fill(options: argparse.Namespace) -> int:
    template = _read(options.file, MAX_POLICY_BYTES)
    filled = fill(template, options.values, now=datetime.now(UTC), read_key=_public_key)
    if options.out is not None:
        if options.out.exists():
            raise InputError(
                f"{options.out} exists already",
                code="file-exists",
                hint="choose another name, or remove the old file",
            )
        _write(options.out, filled.data)
    for name in filled.unused:
        print(f"minshu-policy: note: {options.file.name} has no place for {name}", file=sys.stderr)
    if options.json:
        _print_json(
            {
                "digest": sha256_digest(filled.data),
                "unused": list(filled.unused),
                **({"out": str(options.out)} if options.out else {"text": filled.data.decode("utf-8")}),
            }
        )
    elif options.out is None:
        print(filled.data.decode("utf-8"), end="")
    else:
        print(f"{options.out}: filled in from {options.file.name}")
        print("next: read it, change what is yours to change, then minshu-policy explain and sign")
    return 0


def _check(options: argparse.Namespace) -> int:
    parsed = parse_policy(_read(options.file, MAX_POLICY_BYTES))
    if options.job is not None:
        return _check_job(options, parsed)
    if options.json:
        _print_json(
            {
                "policy_id": parsed.policy.policy_id,
                "version": parsed.policy.version,
                "digest": parsed.digest,
                "cautions": [{"line": c.line, "en": c.en, "zh": c.zh} for c in cautions(parsed)],
            }
        )
        return 0
    print(f"{options.file.name}: well-formed, {len(parsed.policy.rules)} rule(s)")
    print(f"policy_id {parsed.policy.policy_id}, version {parsed.policy.version}")
    print(f"digest    {parsed.digest}")
    for caution in cautions(parsed):
        print(f"note, line {caution.line}: {caution.zh if options.lang == 'zh' else caution.en}")
    return 0


def _check_job(options: argparse.Namespace, parsed: ParsedPolicy) -> int:
    now = _moment(options.at)
    spec = _job(options.job, now)
    alias = options.requester or _asking(parsed, spec)
    organisation = Organisation(options.organisation) if options.organisation else None
    active, spec, roster = suppose(parsed, spec, alias, organisation)
    decision = decide(active, spec, node=NodeName(parsed.policy.policy_id), roster=roster, now=now)
    if options.json:
        _print_json(decision_json(decision, spec) | {"history": "none"})
    else:
        language: Language = options.lang or "zh"
        zone = zoneinfo.ZoneInfo(parsed.policy.timezone)
        print(explain_decision(decision, spec, language, zone=zone), end="")
        if not isinstance(decision, Refuse):
            print(_NOTHING_SPENT[language == "zh"])
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
        return suppose_job(_read(path, MAX_JOB_BYTES), now)
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


def _diff(options: argparse.Namespace) -> int:
    old, new = (parse_policy(_policy_text(path)) for path in (options.old, options.new))
    follows = new.policy.previous == old.digest and new.policy.version > old.policy.version
    changes = diff(old.policy, new.policy, follows=follows)
    if options.json:
        _print_json(
            {
                "old": {"version": old.policy.version, "digest": old.digest},
                "new": {"version": new.policy.version, "digest": new.digest},
                "follows": follows,
                "effect": WORDS[overall(changes)][0],
                "changes": [
                    {"clause": c.clause, "effect": WORDS[c.effect][0], "en": c.en, "zh": c.zh}
                    for c in changes
                ],
            }
        )
        return 0
    chinese = options.lang == "zh"
    print(
        f"{new.policy.policy_id}: 第 {old.policy.version} 版 → 第 {new.policy.version} 版"
        if chinese
        else f"{new.policy.policy_id}: version {old.policy.version} → version {new.policy.version}"
    )
    print(summary(changes, options.lang))
    for effect, (en, zh) in WORDS.items():
        for change in changes:
            if change.effect == effect:
                print(f"  {zh:　<4} {change.zh}" if chinese else f"  {en:7} {change.en}")
    if old.digest == new.digest:
        print("两个文件逐字节相同。" if chinese else "The two files are the same, byte by byte.")
    elif not changes:
        print("仅注释或排版不同。" if chinese else "Only comments or layout differ.")
    if not follows and old.digest != new.digest:
        print(
            f"注意: 新版本未写明其前一版本为 {old.digest}; 正在执行旧版本的节点不会启用。"
            if chinese
            else f"Note: the new version does not follow the old one, whose digest is {old.digest}; "
            "a node where the old one is in force would not activate it."
        )
    return 0


def _policy_text(path: Path) -> bytes:
    """Read policy.toml, or the text that people signed in policy.dsse; no signature is checked."""
    data = _read(path, MAX_ENVELOPE_BYTES)
    if not data.startswith(b"{"):
        return data
    envelope = decode_envelope(data)
    if envelope.payload_type != POLICY:
        raise InputError(
            "the envelope holds no policy", code="wrong-payload-type", hint="give policy.toml or policy.dsse"
        )
    return envelope.payload


def _stop(options: argparse.Namespace) -> int:
    now = datetime.now(UTC).replace(microsecond=0)
    data = _stop_text(options, now)
    try:
        document = parse_stop(data)
    except PolicyInvalid as error:
        # Nobody wrote the lines of this document.
        message = re.sub(r"^line \d+: (?:stops\[0\](?:\.|: ))?", "", error.message)
        raise InputError(message, code=error.code, hint=error.hint) from None
    if options.policy is not None:
        _known_to(parse_policy(_policy_text(options.policy)), options)
    signer = open_signer(options.key)
    envelope = sign_stop(data, signer)
    language: Language = options.lang
    if not options.json:
        print(f"{options.node}:")
        print(explain_stop(document.stops, language), end="")
    _write(options.out, envelope.encode())
    if options.json:
        _print_json(
            {
                "digest": envelope.payload_digest,
                "signed_by": key_id(signer.public_key),
                "out": str(options.out),
            }
        )
        return 0
    print(f"signed by {key_id(signer.public_key)}")
    print(f"{options.out}: {envelope.payload_digest}")
    print(f"next: minshu-node stop {options.out}, on the node, within seven days")
    return 0


def _stop_text(options: argparse.Namespace, now: datetime) -> bytes:
    """Return a stop document as TOML; JSON's strings are TOML's, too."""
    lines = [
        f'schema = "{STOP_SCHEMA}"',
        f"policy_id = {_quoted(options.node)}",
        f"issued = {utc_text(now)}",
        "",
        "[[stops]]",
        f"scope = {_quoted(options.scope)}",
        *([f"value = {_quoted(options.value)}"] if options.value is not None else []),
        f"reason = {_quoted(options.reason)}",
    ]
    try:
        return ("\n".join(lines) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("an argument is not UTF-8 text", code="not-utf8", hint="type it again") from None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _known_to(parsed: ParsedPolicy, options: argparse.Namespace) -> None:
    """Refuse a stop that would halt nothing under this policy."""
    policy = parsed.policy
    known: dict[str, Sequence[str]] = {
        "requester": sorted(policy.requesters),
        "purpose": sorted(policy.purposes),
        "dataset": sorted(policy.datasets),
    }
    if policy.policy_id != options.node:
        raise InputError(
            f"the policy is for {policy.policy_id}",
            code="policy-of-another-node",
            hint=f"give --node {policy.policy_id}, or the policy of {options.node}",
        )
    if options.scope in known and options.value not in known[options.scope]:
        raise InputError(
            f"the policy has no {options.scope} of that name, so the stop would halt nothing",
            code=f"unknown-{options.scope}",
            hint=f"known: {', '.join(known[options.scope]) or 'none'}",
        )


def _sign(options: argparse.Namespace) -> int:
    data = _read(options.file, MAX_POLICY_BYTES)
    out: Path = options.out or options.file.with_name("policy.dsse")
    before = decode_envelope(_read(out, MAX_ENVELOPE_BYTES)) if out.exists() else None
    signer = open_signer(options.key)
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
