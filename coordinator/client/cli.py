"""`minshu`: an analyst of the bureau asks, watches and receives."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator import command
from coordinator.client.catalogue_cli import add_catalogue_commands, unreadable_json, unreadable_lines

if TYPE_CHECKING:
    from coordinator.client.model import Kept
    from coordinator.client.release import Release
    from coordinator.client.sdk import Bureau
    from coordinator.client.view import View


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return command.run(_parser(), argv, lambda arguments: int(arguments.call(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("minshu", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make a home: keys and the card for the roster")
    init.add_argument("--name", required=True, help="such as analyst-1")
    init.add_argument("--organisation", required=True, help="such as bureau.gz.example")
    init.add_argument("--suite", type=int, default=1, help="sealing suite of the collaboration (1)")
    init.set_defaults(call=_init)

    connect = commands.add_parser("connect", help="pin root keys and coordinator")
    connect.add_argument("invite", metavar="INVITE", help="the line that minshu-coordinator invite printed")
    connect.add_argument(
        "--roots", required=True, metavar="sha256:…", help="fingerprint, from the root key holders"
    )
    connect.set_defaults(call=_connect)

    explain = commands.add_parser("explain", help="ask every node what it would answer; nothing runs")
    explain.add_argument("file", type=Path, metavar="job.toml")
    explain.add_argument("--lang", choices=("zh", "en"), default="zh", help="language (zh)")
    explain.set_defaults(call=_explain)

    plan = commands.add_parser("plan", help="show how exact a job with noise would be, for which budget")
    plan.add_argument("file", type=Path, metavar="job.toml")
    amounts = plan.add_mutually_exclusive_group()
    amounts.add_argument("--rho", type=_amounts, default=(), metavar="0.01,0.1", help="amounts to try")
    amounts.add_argument("--epsilon", type=_amounts, default=(), metavar="0.1,1", help="amounts to try")
    plan.add_argument("--lang", choices=("zh", "en"), default="zh", help="language (zh)")
    plan.set_defaults(call=_plan)

    submit = commands.add_parser("submit", help="sign and submit a job")
    submit.add_argument("file", type=Path, metavar="job.toml")
    submit.add_argument("--wait", action="store_true", help="watch it to its end")
    submit.set_defaults(call=_submit)

    watch = commands.add_parser("watch", help="show how a job goes, to its end")
    show = commands.add_parser("show", help="show a job as it stands")
    cancel = commands.add_parser("cancel", help="withdraw a job")
    fetch = commands.add_parser("fetch", help="fetch, check and open a job's releases")
    for each, call in ((watch, _watch), (show, _show), (cancel, _cancel), (fetch, _fetch)):
        each.add_argument("job", metavar="JOB", help="job id, or its first digits")
        each.set_defaults(call=call)
    fetch.add_argument("--out", type=Path, metavar="DIR", help="default: releases/ in the home")

    outcome = commands.add_parser("outcome", help="file what became of a table you received")
    outcome.add_argument("job", metavar="JOB", help="job id, or its first digits")
    outcome.add_argument("--checked", type=_count, required=True, metavar="N", help="how many were verified")
    outcome.add_argument("--confirmed", type=_count, required=True, metavar="M", help="how many were right")
    outcome.add_argument("--note", default="", metavar="TEXT", help="one sentence that names nobody")
    outcome.set_defaults(call=_outcome)

    model = commands.add_parser("model", help="show, use or export a model that was fetched")
    models = model.add_subparsers(required=True, metavar="COMMAND")
    about = models.add_parser("show", help="show its card, and whose signature it has")
    about.add_argument("--lang", choices=("zh", "en"), default="zh", help="language (zh)")
    score = models.add_parser("score", help="score rows; scores of individuals are suspicions (class B)")
    score.add_argument("--in", dest="rows", type=Path, required=True, metavar="rows.csv", help="by feature")
    score.add_argument("--out", type=Path, required=True, metavar="scores.csv", help="a new file")
    score.add_argument(
        "--keep", action="append", default=[], metavar="COLUMN", help="copy this column beside the score"
    )
    export = models.add_parser("export", help="write a logistic or mlp model for other programs")
    export.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="a new file")
    scoring = models.add_parser("job", help="print what a job of score-joined/1 needs of a joined model")
    for each, call in (
        (about, _model_show),
        (score, _model_score),
        (export, _model_export),
        (scoring, _model_job),
    ):
        each.add_argument("folder", type=Path, metavar="FOLDER", help="that minshu fetch wrote")
        each.set_defaults(call=call)

    usage = commands.add_parser("usage", help="show what your organisation has asked and spent")
    usage.set_defaults(call=_usage)
    listing = commands.add_parser("list", help="list your organisation's newest jobs")
    listing.set_defaults(call=_list)
    catalogue = commands.add_parser("catalogue", help="show what the members offer")
    catalogue.set_defaults(call=_catalogue)
    asked = add_catalogue_commands(catalogue)

    command.options(
        parser,
        init,
        connect,
        explain,
        plan,
        submit,
        watch,
        show,
        cancel,
        fetch,
        outcome,
        about,
        score,
        export,
        scoring,
        usage,
        listing,
        catalogue,
        *asked,
    )
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError("expected a whole number")
    return int(text)


def _amounts(text: str) -> list[str]:
    return [amount.strip() for amount in text.split(",")]


def _bureau(arguments: argparse.Namespace) -> "Bureau":
    from coordinator.client.sdk import Bureau

    return Bureau.connect(command.home_of(arguments))


def _init(arguments: argparse.Namespace) -> int:
    from coordinator.client.home import create
    from policies.keyfile import fingerprint

    path = command.home_of(arguments)
    card = create(path, name=arguments.name, organisation=arguments.organisation, suite=arguments.suite)
    file = path / "analyst.card.json"
    command.show(
        arguments,
        {
            "name": card.name,
            "organisation": card.organisation,
            "key": fingerprint(card.key),
            "card": str(file),
        },
        [
            f"{card.name} of {card.organisation} is ready in {path}",
            f"key   {fingerprint(card.key)}",
            f"card  {file}: hand it to the coordinator's operator",
        ],
    )
    return command.OK


def _connect(arguments: argparse.Namespace) -> int:
    from coordinator.client.home import AnalystHome, connect

    home = AnalystHome(command.home_of(arguments))
    roots = connect(home, arguments.invite, arguments.roots)
    address = AnalystHome(home.path).config.address
    command.show(
        arguments,
        {"collaboration": roots.collaboration, "address": address, "roots": roots.fingerprint},
        [f"connected to {roots.collaboration} at {address}", f"roots  {roots.fingerprint}, pinned"],
    )
    return command.OK


def _submit(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        job = bureau.submit(arguments.file)
        command.show(arguments, {"job": job.id}, [job.id])
        if not arguments.wait:
            return command.OK
        return _ended(arguments, job.wait(progress=not arguments.json))


def _explain(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        explanation = bureau.explain(arguments.file)
    command.show(arguments, explanation.to_json(), explanation.lines(arguments.lang))
    return command.REFUSED if explanation.refused else command.OK


def _plan(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from coordinator.client.plan import plan

    found = plan(arguments.file, rho=arguments.rho, epsilon=arguments.epsilon)
    console = Console()
    if console.is_terminal and not arguments.json:
        found.show(console, arguments.lang)
    else:
        command.show(arguments, found.to_json(), found.lines(arguments.lang))
    return command.OK


def _outcome(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        job = bureau.job(arguments.job)
        view = job.file(arguments.checked, arguments.confirmed, arguments.note)
    command.show(arguments, _plain(view), [f"filed for {view.job}", *_filed(view)])
    return command.OK


def _kept_model(arguments: argparse.Namespace) -> "Kept":
    """Return the model of a folder; say on stderr where nobody knows whose it is."""
    from coordinator.client.home import AnalystHome
    from coordinator.client.model import read_folder

    named = arguments.home is not None or "MINSHU_HOME" in os.environ
    kept = read_folder(arguments.folder, AnalystHome(command.home_of(arguments)) if named else None)
    if kept.roster is None:
        print("signature not checked, as no home is named", file=sys.stderr)
        print("hint: name the home of an analyst with --home", file=sys.stderr)
    return kept


def _model_show(arguments: argparse.Namespace) -> int:
    from coordinator.client.model import signature
    from protocols.encoding import decode_json
    from protocols.freetext import printable

    kept = _kept_model(arguments)
    title, *lines = kept.model.describe(arguments.lang)
    command.show(
        arguments,
        {
            "card": decode_json(kept.model.card.encode()),
            "curves": kept.model.curves,
            "made_by": kept.note.node,
            "roster": kept.roster,
        },
        [*map(printable, (title, signature(kept)[arguments.lang], *lines))],
    )
    return command.OK


def _model_score(arguments: argparse.Namespace) -> int:
    from coordinator.client.model import score_file
    from protocols.jobs.job_type import SUSPECTED

    rows = score_file(_kept_model(arguments).model, arguments.rows, arguments.out, arguments.keep)
    command.show(
        arguments,
        {"rows": rows, "out": str(arguments.out), "statement": SUSPECTED},
        [f"{rows} rows scored, {arguments.out}", SUSPECTED],
    )
    return command.OK


def _model_export(arguments: argparse.Namespace) -> int:
    from coordinator.files import write_new

    made = _kept_model(arguments).model.to_onnx()
    write_new(arguments.onnx, made, 0o600)
    command.show(
        arguments, {"out": str(arguments.onnx), "bytes": len(made)}, [f"{len(made)} bytes, {arguments.onnx}"]
    )
    return command.OK


def _model_job(arguments: argparse.Namespace) -> int:
    from coordinator.client.model import score_params

    found = score_params(_kept_model(arguments).model)
    command.show(arguments, found.to_json(), found.lines())
    return command.OK


def _usage(arguments: argparse.Namespace) -> int:
    from coordinator.metering import usage_lines

    with _bureau(arguments) as bureau:
        rows = bureau.usage()
    command.show(arguments, {"usage": rows}, usage_lines(rows, organisations=False))
    return command.OK


def _watch(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        job = bureau.job(arguments.job)
        if arguments.json:
            view = job.wait(progress=lambda view: command.show(arguments, _plain(view), []))
            return command.OK if view.succeeded else command.REFUSED
        return _ended(arguments, job.wait())


def _ended(arguments: argparse.Namespace, view: "View") -> int:
    command.show(arguments, _plain(view), _lines(view))
    if not view.succeeded and view.hint:
        print(f"hint: {view.hint}", file=sys.stderr)
    return command.OK if view.succeeded else command.REFUSED


def _show(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        view = bureau.job(arguments.job).view()
    command.show(arguments, _plain(view), _lines(view))
    return command.OK


def _cancel(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        view = bureau.job(arguments.job).cancel()
    command.show(arguments, _plain(view), [f"{view.job}  {view.state}"])
    return command.OK


def _list(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        views = bureau.jobs()
    command.show(
        arguments,
        {"jobs": [_plain(view) for view in views]},
        [f"{v.submitted}  {v.job}  {v.state:<18}{v.job_type}  {v.purpose}" for v in views] or ["no jobs yet"],
    )
    return command.OK


def _fetch(arguments: argparse.Namespace) -> int:
    with _bureau(arguments) as bureau:
        job = bureau.job(arguments.job)
        releases = job.releases()
        folder = arguments.out or bureau.home.releases / job.id.removeprefix("sha256:")[:16]
    files = [release.save(folder) for release in releases.values()]
    command.show(
        arguments,
        {
            "releases": {
                name: [str(path) for path in paths] for name, paths in zip(releases, files, strict=True)
            }
        },
        [
            f"{name}: {_size(release)}, {paths[0]}"
            for (name, release), paths in zip(releases.items(), files, strict=True)
        ]
        or ["the job has no releases for the requester"],
    )
    return command.OK


def _size(release: "Release") -> str:
    return f"{release.to_arrow().num_rows} {'files' if release.is_model else 'rows'}"


def _catalogue(arguments: argparse.Namespace) -> int:
    from protocols.wire import utc_text

    with _bureau(arguments) as bureau:
        catalogues = bureau.catalogue()
    lines: list[str] = []
    for catalogue in catalogues:
        lines.append(f"{catalogue.node}  issued {utc_text(catalogue.issued)}")
        lines += [f"  {line}" for dataset in catalogue.datasets for line in dataset.lines()]
    command.show(
        arguments,
        {
            "catalogues": {one.node: dict(one.content) for one in catalogues},
            "unreadable": unreadable_json(catalogues),
        },
        [*(lines or ["no member has published a catalogue"]), *unreadable_lines(catalogues)],
    )
    return command.OK


def _lines(view: "View") -> list[str]:
    from coordinator.client.progress import says

    return [
        f"{view.job}",
        f"{view.job_type}, {view.purpose}: {view.state}, attempt {view.attempt}, submitted {view.submitted}",
        f"  legal basis: {view.legal_basis}",
        f"  expected use: {view.expected_use}",
        *([f"  {view.sentence}"] if view.sentence else []),
        *([f"  hint: {view.hint}"] if view.hint else []),
        *(f"  {run.node} ({run.role}): {says(run)}" for run in view.runs),
        *(
            f"  release {release.name}: {release.size} bytes from {release.node}, until {release.expires}"
            for release in view.releases
        ),
        *_filed(view),
    ]


def _filed(view: "View") -> list[str]:
    doubtful = f"  {view.doubtful} outcome(s) not shown: no key in the roster vouches for them"
    return [*(f"  outcome: {outcome}" for outcome in view.outcomes), *([doubtful] if view.doubtful else [])]


def _plain(view: "View") -> dict[str, Any]:
    from dataclasses import asdict

    from protocols.wire import utc_text

    plain = asdict(view)
    for run in plain["runs"]:
        # The envelope is for programs: it is shown as the text it is.
        run["verdict"] = run["verdict"].decode("utf-8", "replace")
    for outcome in plain["outcomes"]:
        outcome["filed"] = utc_text(outcome["filed"])
    return plain
