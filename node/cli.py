"""`minshu-node`: a department's node. Each command is a page: parse, call, print."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from node.catalogue_cli import add_catalogue_commands
from node.dataset_cli import add_dataset_commands
from node.mapping_cli import add_mapping_commands
from node.page import OK, ask_node, home_of, print_result, shown, utc_now, whole_number
from node.quality_cli import add_quality_command
from protocols.errors import InputError, MinshuError

if TYPE_CHECKING:
    from node.activation import InForce
    from node.approvals import Case, Given
    from node.home import Home
    from node.state import StoredOutput, StoredRun

PROGRAM: Final = "minshu-node"
REFUSED: Final = 1
INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 refused or failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.call(arguments))
    except MinshuError as error:
        print(shown(f"{PROGRAM}: error: {error}"), file=sys.stderr)
        if error.hint:
            print(shown(f"hint: {error.hint}"), file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        # Whoever read our output has closed it; what they wanted they have.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Version(argparse.Action):
    """`--version`; the metadata is read only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('minshu')}")
        parser.exit(OK)


def _parser() -> argparse.ArgumentParser:
    # After the command an option that is not given must not undo one that stands before it.
    common = _common(argparse.SUPPRESS)
    parser = argparse.ArgumentParser(PROGRAM, description="A department's node.", parents=[_common(None)])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        group: Any, name: str, call: Callable[[argparse.Namespace], int], about: str
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(
            name, help=about, description=about, parents=[common]
        )
        made.set_defaults(call=call)
        return made

    def group(name: str, about: str) -> Any:
        made = commands.add_parser(name, help=about, description=about)
        return made.add_subparsers(metavar="COMMAND", required=True)

    init = command(commands, "init", _init, "make a new node with its own keys")
    init.add_argument("--name", required=True, metavar="ORG/NODE", help="police.gz.example/node-a")
    init.add_argument("--suite", type=int, default=1, help="sealing suite of the collaboration (default 1)")
    enrol = command(commands, "enrol", _enrol, "turn a one-time token into a certificate")
    enrol.add_argument("token", metavar="TOKEN")
    enrol.add_argument("--roots", required=True, metavar="sha256:…", help="fingerprint of the root keys")
    add_dataset_commands(group("dataset", "register the department's datasets"), command)
    add_quality_command(commands, command)
    add_mapping_commands(group("mapping", "how local values become standard codes"), command)
    add_catalogue_commands(group("catalogue", "what others can read about the datasets"), command)
    policy = group("policy", "the department's policy")
    activate = command(policy, "activate", _policy_activate, "put a signed policy into force")
    activate.add_argument("file", type=Path, metavar="policy.dsse")
    command(policy, "show", _policy_show, "explain the policy in force")
    pin = command(policy, "pin", _policy_pin, "pin who signs policies for this node; once")
    pin.add_argument("--dpo", required=True, type=Path, metavar="DPO.pub")
    pin.add_argument("--owner", required=True, type=Path, metavar="OWNER.pub")
    recipe = group("recipe", "recipes of training that are installed here")
    command(recipe, "list", _recipe_list, "show each, and what a policy writes to allow it")
    key = group("key", "this node's keys")
    command(key, "show", _key_show, "print which keys this node has, and the next identity key")
    command(key, "rotate", _key_rotate, "make the next identity key and announce it")
    journal = group("journal", "this node's journal")
    successor = command(
        journal, "successor", _journal_successor, "begin a new journal after a restored backup"
    )
    successor.add_argument("--reason", required=True, metavar="CODE", help="for example restored-backup")
    successor.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="the newest one of the old journal that others kept"
    )
    successor.add_argument("--yes", action="store_true", help="do not ask again")
    run = command(commands, "run", _run, "run the node until it is stopped")
    run.add_argument(
        "--record-bodies", type=Path, metavar="DIR", help="demonstrations only: keep messages unsealed"
    )
    command(commands, "status", _status, "show what this node knows and waits for")
    command(commands, "doctor", _doctor, "find what keeps this node from working")
    stop = command(commands, "stop", _stop, "apply a signed stop: what it names ends now")
    stop.add_argument("file", type=Path, metavar="stop.dsse")
    show = command(commands, "show", _show_job, "show what a job asks, without signing anything")
    show.add_argument("job", metavar="JOB")
    budget = command(
        commands, "budget", _budget, "show what each budget and quota has left, and what spent the rest"
    )
    budget.add_argument(
        "--report", action="store_true", help="say what was spent of privacy budgets as ε, in three ways"
    )
    budget.add_argument(
        "--delta",
        type=_delta,
        metavar="δ",
        help="with --report: the δ for budgets whose policy names none (default 1e-9)",
    )
    approve = command(commands, "approve", _approve, "read what a job asks, and sign a yes")
    approve.add_argument("job", metavar="JOB")
    way = approve.add_mutually_exclusive_group()
    way.add_argument("--key", metavar="KEY.pem|URI", help="the approver's key: a file, or pkcs11:…")
    way.add_argument("--draft", type=Path, metavar="FILE", help="write what is to be signed elsewhere; new")
    way.add_argument("--signed", type=Path, metavar="FILE", help="record the draft, signed in FILE.sig")
    approve.add_argument("--by", type=Path, metavar="KEY.pub", help="whose signature FILE.sig is")
    approve.add_argument("--yes", action="store_true", help="do not ask again")
    reject = command(commands, "reject", _reject, "refuse a job that waits for approval")
    reject.add_argument("job", metavar="JOB")
    reject.add_argument("--reason", required=True, help="one sentence that the requester will read")
    outcome = command(commands, "outcome", _outcome, "file what verification of a received list found")
    outcome.add_argument("job", metavar="JOB")
    outcome.add_argument("--checked", type=whole_number, metavar="N", help="how many persons were checked")
    outcome.add_argument(
        "--confirmed", type=whole_number, metavar="M", help="how many of them were confirmed"
    )
    outcome.add_argument("--note", default="", metavar="TEXT", help="one sentence that names nobody")
    lookup = command(
        commands,
        "lookup",
        _lookup,
        "ask about a person, or a list, in a session that is open here; or: lookup sessions | close | rotate",
    )
    lookup.add_argument("what", metavar="JOB|sessions|close|rotate", help="whose session, or what to do")
    lookup.add_argument(
        "name", nargs="?", metavar="JOB|DATASET", help="of close: the job; of rotate: the dataset"
    )
    lookup.add_argument(
        "--batch", metavar="FILE|-", help="ask about a list: one a line, or CSV with --column"
    )
    lookup.add_argument("--column", default="", metavar="NAME", help="of the list: where the identifiers are")
    lookup.add_argument(
        "--out", type=Path, metavar="FILE", help="of a list: where what is found goes, CSV; new"
    )
    lookup.add_argument(
        "--field", action="append", default=[], metavar="NAME", help="ask for this field only"
    )
    lookup.add_argument(
        "--reason-file", default="", metavar="FILE|-", help="the case, one line; the journal keeps its digest"
    )
    release = group("release", "lists that were sealed to this node")
    opened = command(release, "open", _release_open, "open a list for the duty officer")
    opened.add_argument("release", metavar="RELEASE|JOB")
    opened.add_argument("--out", required=True, type=Path, metavar="FILE", help=".csv or .arrow; new")
    return parser


def _common(default: str | None) -> argparse.ArgumentParser:
    """Return the options that every command takes; they may stand before or after its name."""
    json_default = default if default is not None else False
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--home", type=Path, metavar="DIR", default=default, help="the node's folder, or MINSHU_HOME"
    )
    common.add_argument("--json", action="store_true", default=json_default, help="print the result as JSON")
    common.add_argument("--version", action=_Version, nargs=0, help="print the version")
    return common


def _delta(text: str) -> Fraction:
    try:
        delta = Decimal(text)
        # Decimals compare as they stand; a fraction of 1e-999999 would be a number of a million digits.
        if Decimal("1e-15") <= delta < 1:
            return Fraction(delta)
    except ArithmeticError:
        pass
    raise argparse.ArgumentTypeError("expected a number from 1e-15 to below 1, for example 1e-9")


# -- a new node --------------------------------------------------------------------------------------------


def _init(arguments: argparse.Namespace) -> int:
    from node.home import init_home
    from node.journal import open_journal
    from node.state import open_state
    from policies.keyfile import fingerprint
    from protocols.envelope import key_id

    home = init_home(home_of(arguments).path, arguments.name, arguments.suite)
    state = open_state(open_journal(home, utc_now), home.database)
    vkey = state.journal.vkey
    state.close()
    key = home.signer.public_key
    return print_result(
        arguments,
        {"node": home.name, "identity": key_id(key), "fingerprint": fingerprint(key), "vkey": vkey},
        f"{home.name} is ready in {home.path}",
        "Identity fingerprint, to compare with the roster's signers by another way:",
        f"  {fingerprint(key)}",
        "Next: minshu-node enrol TOKEN --roots sha256:…",
    )


def _enrol(arguments: argparse.Namespace) -> int:
    from node.enrol import enrol

    home = home_of(arguments)
    enrolled = enrol(home, arguments.token, arguments.roots)
    return print_result(
        arguments,
        {"node": home.name, "collaboration": enrolled.collaboration, "coordinator": enrolled.address},
        f"{home.name} is enrolled in {enrolled.collaboration}; it dials {enrolled.address}",
        "Next: minshu-node policy pin, policy activate, dataset add; then minshu-node run",
    )


# -- recipes --------------------------------------------------------------------------------------------


def _recipe_list(arguments: argparse.Namespace) -> int:
    from msgspec.structs import asdict

    from node.trainer.recipes import installed, pin
    from protocols.training.params import BUILT_IN

    plain: list[dict[str, str]] = [{"name": name, "policy": name} for name in BUILT_IN]
    lines = [f"{name}  comes with this program" for name in BUILT_IN]
    for name, distribution in installed():
        try:
            found = pin(name, distribution)
        except InputError as error:
            plain.append({"name": name, "distribution": distribution, "error": error.code})
            lines.append(f"{name}  {distribution}  cannot be used: {error}")
            continue
        plain.append({**asdict(found), "policy": found.digest})
        lines.append(f"{name}  {distribution} {found.version}  {found.digest}")
    return print_result(arguments, {"recipes": plain}, *lines)


# -- policy ------------------------------------------------------------------------------------------------


def _policy_activate(arguments: argparse.Namespace) -> int:
    from node.desk import encoded
    from protocols.envelope import MAX_ENVELOPE_BYTES

    home = home_of(arguments)
    envelope = _read(arguments.file, MAX_ENVELOPE_BYTES)
    done = ask_node(home, "policy", {"envelope": encoded(envelope)})
    return print_result(
        arguments, done, f"policy version {done['version']} is in force at {home.name}", f"  {done['sha256']}"
    )


def _policy_show(arguments: argparse.Namespace) -> int:
    from node.activation import InForce
    from node.state import read_state
    from policies.explain import explain_policy
    from policies.parse import parse_policy
    from protocols.envelope import decode_envelope

    home = home_of(arguments)
    with read_state(home.database) as reader:
        stored = reader.policy()
        active = InForce.load(reader, home.name, home.signer.public_key).policy
    if stored is None or active is None:
        return print_result(arguments, {"version": None}, "no policy is in force: every job is refused")
    text = decode_envelope(stored.envelope).payload
    parsed = parse_policy(text)
    return print_result(
        arguments,
        {"version": stored.version, "sha256": stored.digest, "policy": text.decode("utf-8")},
        explain_policy(parsed, "zh"),
        explain_policy(parsed, "en"),
    )


def _policy_pin(arguments: argparse.Namespace) -> int:
    from node.desk import encoded
    from policies.keyfile import fingerprint, load_public

    home = home_of(arguments)
    dpo, owner = load_public(arguments.dpo), load_public(arguments.owner)
    ask_node(home, "pin", {"dpo": encoded(dpo), "owner": encoded(owner)})
    return print_result(
        arguments,
        {"dpo": fingerprint(dpo), "owner": fingerprint(owner)},
        f"policies of {home.name} are signed by",
        f"  dpo    {fingerprint(dpo)}",
        f"  owner  {fingerprint(owner)}",
    )


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", code="file-missing") from None
    if len(data) > limit:
        raise InputError(f"{path.name} is longer than {limit} bytes", code="too-long")
    return data


# -- the identity key --------------------------------------------------------------------------------------


def _key_show(arguments: argparse.Namespace) -> int:
    from audit.note import ED25519, VerifierKey
    from node.activation import own_keys
    from node.rotation import under_way
    from node.state import read_state
    from policies.keyfile import fingerprint
    from protocols.encoding import sha256_digest

    home = home_of(arguments)
    present, others = home.signer.public_key, own_keys(home)
    journal, recipient = VerifierKey(home.origin, ED25519, present), sha256_digest(others.recipient_key)
    with read_state(home.database) as reader:
        announced = under_way(reader, present)
    plain: dict[str, Any] = {
        "node": home.name,
        "fingerprint": fingerprint(present),
        "next": None,
        "journal_vkey": str(journal),
        "witness_vkeys": list(others.witness_vkeys),
        "recipient_key": recipient,
    }
    lines = [f"{home.name}", f"  identity  {fingerprint(present)}", f"  journal   {journal.label}"]
    lines += [f"  witness   {VerifierKey.parse(line).label}" for line in others.witness_vkeys]
    lines += [f"  recipient {recipient}"]
    if announced is not None:
        following = fingerprint(announced.rotation.next_key)
        plain |= {"next": following, "stored": announced.stored}
        waits = "the coordinator has it" if announced.stored else "not yet at the coordinator"
        lines.append(f"  next      {following}  ({waits})")
    return print_result(arguments, plain, *lines)


def _key_rotate(arguments: argparse.Namespace) -> int:
    from policies.keyfile import fingerprint

    home = home_of(arguments)
    done = ask_node(home, "rotate", {})
    following = fingerprint(bytes.fromhex(done["next_key"]))
    return print_result(
        arguments,
        {"node": home.name, **done, "fingerprint": following},
        f"the next identity key of {home.name} is made and announced; the present one still signs",
        "Its fingerprint, to compare with the roster's signers by another way:",
        f"  {following}",
        "Next: they sign a roster that lists it; this node then goes over to it by itself",
    )


# -- running -----------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from node.run import run_node

    home = home_of(arguments)
    if arguments.record_bodies is not None:
        from node.record import WARNING

        print(f"{PROGRAM}: warning: {WARNING}", file=sys.stderr)
    run_node(home, arguments.record_bodies, lambda line: print(line, flush=True))
    return OK


def _status(arguments: argparse.Namespace) -> int:
    from audit.note import ED25519, VerifierKey
    from node.activation import InForce
    from node.approvals import approvals_of
    from node.cosigning import Standing
    from node.state import read_state
    from node.stops import for_a_gap, in_force

    home = home_of(arguments)
    with read_state(home.database) as reader:
        force = InForce.load(reader, home.name, home.signer.public_key)
        runs, outputs, datasets = reader.runs(), reader.outputs(), reader.datasets()
        given = {run.attempt.job: approvals_of(reader, force, run.attempt.job, utc_now()) for run in runs}
        held = in_force(reader, home.signer.public_key)
        standing = Standing.of(home.journal, reader, force)
    roster = force.roster.version if force.roster else None
    holds = "none yet" if force.roster is None else f"version {roster}, {_counts(force)}"
    policy = force.policy.policy.version if force.policy else None
    plain = {
        "node": home.name,
        "vkey": str(VerifierKey(home.origin, ED25519, home.signer.public_key)),
        "roster": roster,
        "policy": policy,
        "datasets": [dataset.name for dataset in datasets],
        "cosigned": standing.to_json(),
        "stops": [*held],
        "runs": [_run_json(run, given[run.attempt.job]) for run in runs],
        "releases": [_output_json(output) for output in outputs],
    }
    lines = [
        f"{home.name}",
        f"  roster   {holds}",
        f"  policy   {f'version {policy}' if policy else 'none: every job is refused'}",
        f"  datasets {', '.join(dataset.name for dataset in datasets) or 'none'}",
        f"  cosigned {standing.line()}",
    ]
    own = " (by this node itself, for a gap in its history)"
    lines += [f"  stopped  by {digest}{own if for_a_gap(stops) else ''}" for digest, stops in held.items()]
    for run in runs:
        by = ", ".join(sorted(one.approver for one in given[run.attempt.job] if one.counts or one.used))
        approvals = f"  approvals {run.given} of {run.needed}{f' ({by})' if by else ''}" if run.needed else ""
        why = f"  {run.code}" if run.code and run.code != "permitted" else ""
        lines.append(f"  {run.attempt.job} attempt {run.attempt.number}  {run.state}{approvals}{why}")
    lines += [f"  release {o.release}  {o.name} (class {o.output_class})" for o in outputs]
    return print_result(arguments, plain, *lines)


def _counts(force: "InForce") -> str:
    """Say until when the roster counts, or why it does not."""
    from protocols.errors import Refused
    from protocols.succession import fresh_until
    from protocols.wire import utc_text

    try:
        roster = force.fresh(utc_now())
    except Refused as error:
        return f"refused: {error.message}"
    return f"fresh until {utc_text(min(roster.expires, fresh_until(roster, force.freshness)))}"


def _run_json(run: "StoredRun", given: "Sequence[Given]") -> dict[str, Any]:
    return {
        "job": run.attempt.job,
        "attempt": run.attempt.number,
        "state": run.state.value,
        "code": run.code,
        "sentence": run.sentence,
        "hint": run.hint,
        "approvals_needed": run.needed,
        "approvals_given": run.given,
        "approvals": [one.to_json() for one in given],
    }


def _output_json(output: "StoredOutput") -> dict[str, Any]:
    return {
        "release": output.release,
        "job": output.attempt.job,
        "attempt": output.attempt.number,
        "name": output.name,
        "class": output.output_class,
        "recipient": output.recipient,
        "sha256": output.sha256,
    }


def _doctor(arguments: argparse.Namespace) -> int:
    from node.doctor import examine

    findings = list(examine(home_of(arguments), utc_now()))
    plain = [{"what": f.what, "state": f.state, "found": f.found, "hint": f.hint} for f in findings]
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8}{finding.what}: {finding.found}")
        if finding.hint:
            lines.append(f"{'':8}hint: {finding.hint}")
    print_result(arguments, {"findings": plain}, *lines)
    return REFUSED if any(f.state == "error" for f in findings) else OK


# -- people ------------------------------------------------------------------------------------------------


def _approve(arguments: argparse.Namespace) -> int:
    import secrets

    from node.approvals import draft_approval, make_approval
    from policies.decision import Ask, Refuse
    from policies.signers import open_signer
    from protocols.errors import Refused

    home = home_of(arguments)
    if arguments.signed is not None:
        return _record_signed(arguments, home)
    signer = None if arguments.key is None else open_signer(arguments.key)
    case = _case(home, arguments.job)
    decision = case.decision
    if signer is None and arguments.draft is None:
        if arguments.json:
            return print_result(arguments, case.to_json())
        raise InputError(
            "nobody is named who approves",
            code="no-key",
            hint="give --key, or --draft to sign elsewhere; to read only: minshu-node show",
        )
    if isinstance(decision, Refuse):
        raise Refused(decision.sentence, code=decision.code, hint=decision.hint)
    if not isinstance(decision, Ask) or decision.missing == 0:
        raise Refused("the job needs no more approvals here", code="not-waiting")
    if not arguments.json:
        print(case.page())
    if signer is None:
        draft = draft_approval(case.spec, decision, case.active, now=utc_now(), rand=secrets.token_bytes)
        return _write_draft(arguments, draft)
    if not arguments.yes:
        _confirm()
    envelope = make_approval(
        case.spec, decision, case.active, signer=signer, now=utc_now(), rand=secrets.token_bytes
    )
    return _record(arguments, home, case, envelope, signer.public_key)


def _case(home: "Home", given: str) -> "Case":
    """Return a job as an officer is shown it, decided now."""
    from node.activation import InForce
    from node.approvals import Case, find_job, given_approvals
    from node.gate import authentic, judge
    from node.state import read_state
    from protocols.errors import Refused

    with read_state(home.database) as reader:
        force = InForce.load(reader, home.name, home.signer.public_key)
        job = find_job(reader, given)
        data = reader.job(job)
        if data is None:
            raise InputError(
                "the job's text was deleted when its time was over",
                code="job-deleted",
                hint="the journal has what was asked, decided and done",
            )
        if force.policy is None or force.roster is None:
            raise Refused("no policy or roster is in force, so every job is refused", code="no-policy")
        spec, now = authentic(force, job, data), utc_now()
        decision = judge(reader, force, spec, reader.runs(job)[0].attempt, now)
        approvals = given_approvals(reader, force, spec, now)
        states = tuple(
            f"{run.attempt.number}: {run.state.value} {run.code}".rstrip() for run in reader.runs(job)
        )
    return Case(spec, decision, force.policy, force.roster, approvals, states)


def _write_draft(arguments: argparse.Namespace, draft: bytes) -> int:
    from node.approvals import signature_path, to_sign, to_sign_path
    from node.home import write_private

    path: Path = arguments.draft
    write_private(path, draft)
    write_private(to_sign_path(path), to_sign(draft))
    pae, sig = to_sign_path(path), signature_path(path)
    return print_result(
        arguments,
        {"draft": str(path), "to_sign": str(pae), "signature": str(sig)},
        "",
        f"草稿已写入 draft written: {path}",
        "请在本人机器上签署 · sign on your own machine:",
        f"  openssl pkeyutl -sign -rawin -inkey KEY.pem -in {pae.name} -out {sig.name}",
        "然后 · then, here:",
        f"  minshu-node approve {arguments.job} --signed {path.name} --by KEY.pub",
    )


def _record_signed(arguments: argparse.Namespace, home: "Home") -> int:
    from node.approvals import SIGNATURE_BYTES, assemble, signature_path
    from policies.keyfile import load_public

    if arguments.by is None:
        raise InputError("nobody is named who signed", code="no-key", hint="give --by KEY.pub")
    key = load_public(arguments.by)
    draft = _read(arguments.signed, 16 << 10)
    signature = _read(signature_path(arguments.signed), SIGNATURE_BYTES)
    envelope = assemble(draft, signature, key)
    return _record(arguments, home, _case(home, arguments.job), envelope, key)


def _record(arguments: argparse.Namespace, home: "Home", case: "Case", envelope: bytes, key: bytes) -> int:
    from node.desk import encoded

    job = case.spec.job_id
    done = ask_node(home, "approve", {"job": job, "envelope": encoded(envelope), "key": encoded(key)})
    return print_result(
        arguments,
        {**done, "case": case.to_json()},
        f"approved as {done['approver']}: {done['given']} of {done['needed']} approvals",
    )


def _show_job(arguments: argparse.Namespace) -> int:
    from node.state import read_state

    home = home_of(arguments)
    case = _case(home, arguments.job)
    with read_state(home.database) as reader:
        read = reader.input_counts(case.spec.job_id)
    lines = [
        f"attempt {number} read: " + " ".join(f"{name}={count}" for name, count in counts.items())
        for number, counts in read.items()
    ]
    plain = {**case.to_json(), **({"read": read} if read else {})}
    return print_result(arguments, plain, case.page(), *lines)


def _budget(arguments: argparse.Namespace) -> int:
    from node.activation import InForce
    from node.budgets import DELTA, accounts, page, report_page, statements
    from node.state import read_state

    if arguments.delta is not None and not arguments.report:
        raise InputError(
            "--delta is for a report", code="bad-usage", hint="minshu-node budget --report --delta …"
        )
    home = home_of(arguments)
    with read_state(home.database) as reader:
        active = InForce.load(reader, home.name, home.signer.public_key).policy
        if active is None:
            return print_result(arguments, {"accounts": []}, "no policy is in force: every job is refused")
        found = accounts(active, reader.ledger(), utc_now())
    if arguments.report:
        made = statements(found, arguments.delta or DELTA)
        stated = [statement.to_json() for statement in made]
        return print_result(
            arguments,
            {"policy": active.policy.version, "statements": stated},
            *report_page(made, active.policy),
        )
    plain = {"policy": active.policy.version, "accounts": [account.to_json() for account in found]}
    return print_result(arguments, plain, *page(found, active.policy))


def _journal_successor(arguments: argparse.Namespace) -> int:
    from audit.note import MAX_NOTE_BYTES
    from node.generation import begin

    home = home_of(arguments)
    known = None if arguments.checkpoint is None else _read(arguments.checkpoint, MAX_NOTE_BYTES)
    if not arguments.yes:
        _confirm_successor(home)
    begun = begin(home, arguments.reason, utc_now, known=known)
    copy = "" if begun.here is None else f"; this copy has {begun.here}"
    return print_result(
        arguments,
        {
            "generation": begun.generation,
            "vkey": begun.vkey,
            "previous": {"log": begun.before.origin, "size": begun.before.size, "here": begun.here},
            "archive": begun.archive.name,
            "stop": begun.stop,
        },
        f"{home.name}/journal/{begun.generation} begins, after {begun.before.origin}",
        f"  the old one was last seen with {begun.before.size} entries{copy}",
        f"  it is kept in {begun.archive.name}/",
        f"  its key, for the roster: {begun.vkey}",
        f"  everything is stopped by {begun.stop}",
        "Next: minshu-node enrol with a new token, and a roster that lists this and the new witness keys;",
        "  then a policy, signed by both officers, with this stop under lifted_stops",
    )


def _confirm_successor(home: "Home") -> None:
    """Say what a new journal means, and go on only if somebody types yes."""
    from protocols.errors import Refused

    origin, following = home.origin, f"{home.name}/journal/{home.generation + 1}"
    page = f"""\
{origin} ends where it was last seen; {following} begins. 旧日志到此为止, 新日志开始。
  For a node that was restored from a backup: its old journal cannot go on. 仅用于从备份恢复的节点。
  The old journal stays in journal.{home.generation}/; auditors read both. 旧日志保留, 供审计查阅。
  Every job is refused, until a roster lists the new journal's key, and a policy signed by both officers
  lifts the stop that this node now makes. 须先由名册登记新日志密钥, 再由两人签署的新策略解除停止令。
  This cannot be undone. 此操作不可撤销。"""
    print(page, file=sys.stderr)
    if not sys.stdin.isatty():
        raise InputError(
            "nobody is there to answer", code="no-terminal", hint="read the page above, then add --yes"
        )
    print("输入 yes 继续 · type yes to go on: ", end="", file=sys.stderr, flush=True)
    if input().strip() != "yes":
        raise Refused("nothing was changed", code="not-confirmed")


def _stop(arguments: argparse.Namespace) -> int:
    from node.desk import encoded
    from policies.explain import explain_stop
    from policies.parse import parse_stop
    from protocols.envelope import MAX_ENVELOPE_BYTES, decode_envelope

    home = home_of(arguments)
    envelope = _read(arguments.file, MAX_ENVELOPE_BYTES)
    done = ask_node(home, "stop", {"envelope": encoded(envelope)})
    # Only now: what the node accepted is a stop that a pinned key signed.
    stops = parse_stop(decode_envelope(envelope).payload).stops
    by = done["signed_by"]
    return print_result(
        arguments,
        done,
        f"{home.name}: 停止令生效, 签署 {by} · a stop is in force, signed by {by}",
        explain_stop(stops, "zh"),
        explain_stop(stops, "en"),
        f"  {done['sha256']}",
    )


def _confirm() -> None:
    from protocols.errors import Refused

    if not sys.stdin.isatty():
        raise InputError(
            "nobody is there to answer", code="no-terminal", hint="read the page above, then add --yes"
        )
    print("同意并签名请输入 yes · type yes to sign: ", end="", file=sys.stderr, flush=True)
    if input().strip() != "yes":
        raise Refused("not approved, nothing was signed", code="not-approved")


def _reject(arguments: argparse.Namespace) -> int:
    from node.approvals import check_reason, find_job
    from node.state import read_state

    home = home_of(arguments)
    reason = check_reason(arguments.reason)
    with read_state(home.database) as reader:
        job = find_job(reader, arguments.job)
    done = ask_node(home, "reject", {"job": job, "reason": reason})
    return print_result(arguments, done, f"refused {job}")


def _outcome(arguments: argparse.Namespace) -> int:
    """File an outcome; without figures, show what was filed."""
    from node.approvals import find_job
    from node.outcomes import outcome_json, outcome_line
    from node.state import read_state

    home = home_of(arguments)
    with read_state(home.database) as reader:
        job = find_job(reader, arguments.job)
        known = [outcome_json(stored) for stored in reader.outcomes(job)]
    if arguments.checked is None and arguments.confirmed is None:
        lines = [outcome_line(one) for one in known] or ["no outcome was filed here for this job"]
        return print_result(arguments, {"job": job, "outcomes": known}, *lines)
    if arguments.checked is None or arguments.confirmed is None:
        raise InputError(
            "only one of the two figures is given",
            code="bad-outcome",
            hint="give --checked N and --confirmed M; without both, what was filed is shown",
        )
    figures = {"checked": arguments.checked, "confirmed": arguments.confirmed}
    done = ask_node(home, "outcome", {"job": job, **figures, "note": arguments.note})
    return print_result(arguments, done, f"filed for {job}", outcome_line(done))


def _lookup(arguments: argparse.Namespace) -> int:
    home, what = home_of(arguments), arguments.what
    asks = what not in ("sessions", "close", "rotate")
    named = arguments.name is not None
    if named is (asks or what == "sessions"):
        raise InputError(
            # Not repeated: somebody may have typed an identifier.
            "there is one name too many" if named else "a name is missing",
            code="bad-usage",
            hint="minshu-node lookup JOB | sessions | close JOB | rotate DATASET; no identifier goes here",
        )
    match what:
        case "sessions":
            return _lookup_sessions(arguments, home)
        case "close":
            return _lookup_close(arguments, home)
        case "rotate":
            return _lookup_rotate(arguments, home)
    return _lookup_list(arguments, home) if arguments.batch is not None else _lookup_one(arguments, home)


def _lookup_one(arguments: argparse.Namespace, home: "Home") -> int:
    from node.asking import Wish, ask_one, read_one, read_reason
    from node.counter import Caller

    with Caller(home) as caller:
        reason = read_reason(arguments.reason_file, sys.stdin)
        wish = Wish(arguments.what, tuple(arguments.field), reason)
        answer = ask_one(caller, wish, read_one(sys.stdin))
    if answer["found"]:
        lines = [
            "有记录 · there is a record",
            *(f"  {name}  {text}" for name, text in answer["fields"].items()),
        ]
    else:
        lines = ["本范围内无此人记录 · no record of this person in this scope"]
    return print_result(arguments, answer, *lines, answer["statement"])


def _lookup_list(arguments: argparse.Namespace, home: "Home") -> int:
    from node.asking import Wish, ask_list, read_list, read_reason
    from node.counter import Caller

    out = arguments.out
    if out is None:
        raise InputError("nobody said where the answers go", code="no-out", hint="give --out FILE.csv")
    if arguments.batch == arguments.reason_file == "-":
        raise InputError(
            "list and reason both come by standard input",
            code="bad-usage",
            hint="give one of them as a file",
        )
    reason = read_reason(arguments.reason_file, sys.stdin)
    keys = read_list(arguments.batch, arguments.column, sys.stdin)
    with Caller(home) as caller:
        wish = Wish(arguments.what, tuple(arguments.field), reason)
        done = ask_list(caller, wish, keys, out, quiet=arguments.json)
    asked, found = done["asked"], done["found"]
    return print_result(
        arguments,
        {**done, "out": str(out)},
        f"查询 {asked} 人, 有记录 {found} 人 · asked about {asked}, found {found}",
        f"  {out}",
        done["statement"],
    )


def _lookup_sessions(arguments: argparse.Namespace, home: "Home") -> int:
    from node.counter import Caller
    from protocols.errors import Unreachable

    sessions = []
    try:
        with Caller(home) as caller:
            sessions = caller.call({"do": "sessions"})["sessions"]
    except Unreachable:
        pass  # the node listens only while a session is open
    lines = [
        f"{s['job']}  {s['asked']} 次查询 questions  "
        + ("正在关闭 closing" if s["closing"] else f"剩余 closes in {s['closes_in_s']} s")
        for s in sessions
    ]
    return print_result(
        arguments, {"sessions": sessions}, *(lines or ["没有开放的会话 · no session is open at this node"])
    )


def _lookup_close(arguments: argparse.Namespace, home: "Home") -> int:
    from node.counter import Caller

    with Caller(home) as caller:
        done = caller.call({"do": "close", "job": arguments.name})
    return print_result(arguments, done, f"会话正在关闭 · the session of {done['job']} is closing")


def _lookup_rotate(arguments: argparse.Namespace, home: "Home") -> int:
    from node.desk import ask

    done = ask(home, "lookup-rotate", {"dataset": arguments.name}, signer=home.signer, now=utc_now)
    return print_result(
        arguments,
        done,
        f"{done['dataset']}: {done['tables']} 张表, 下一会话起使用新密钥并重发全表",
        f"  {done['tables']} tables: sessions that begin from now on use a new key and send the whole table",
        "  one that is open goes on with the old key: end it with minshu-node stop if that key may be known",
    )


def _release_open(arguments: argparse.Namespace) -> int:
    from node.releases import kept, mark_records, open_release, write_table
    from node.retention import check_kept
    from node.state import read_state
    from protocols.envelope import decode_envelope
    from protocols.wire import ReleaseNote

    home = home_of(arguments)
    if arguments.out.exists():
        raise InputError(
            f"{arguments.out.name} exists already", code="file-exists", hint="choose another --out"
        )
    with read_state(home.database) as reader:
        output = _find_release(reader.outputs(), arguments.release)
    check_kept(output, utc_now())
    note = ReleaseNote.decode(decode_envelope(output.note).payload)
    table, about = open_release(kept(home.releases, output), note, home.recipient_private())
    # Journaled before a row is readable outside: P1.
    ask_node(home, "open", {"release": output.release})
    write_table(mark_records(table, note.statement), arguments.out)
    return print_result(
        arguments,
        {"release": output.release, "job": note.job, "rows": table.num_rows, "about": dict(about)},
        f"{table.num_rows} records written to {arguments.out}",
        f"{note.statement}",
    )


def _find_release(outputs: "Sequence[StoredOutput]", given: str) -> "StoredOutput":
    here = [o for o in outputs if o.output_class == "B"]
    found = [o for o in here if given in (o.release, o.attempt.job, o.attempt.job.removeprefix("sha256:"))]
    if not found and len(given) >= 4:
        found = [o for o in here if o.attempt.job.removeprefix("sha256:").startswith(given)]
    if len(found) != 1:
        raise InputError(
            "no list of that release or job is kept here" if not found else "more than one list fits",
            code="unknown-release",
            hint="minshu-node status names the releases",
        )
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
