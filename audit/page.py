"""What `minshu-audit` prints for a person: a page per command, and how far a long one has come."""

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from audit.cross import QUESTIONS, Crossed
from audit.entries import Entry
from audit.findings import CHECKLIST, Answer, Check, Question
from audit.heads import Head
from audit.note import VerifierKey
from audit.review import Review
from audit.verify import Verdict
from protocols.encoding import b64encode
from protocols.wire import utc_text

WIDTH: Final = 100
LONG: Final = 50_000
"""Entries from which on a command says how far it is."""

_OK: Final = "OK: the signature holds; entries, tiles and root agree"
_SAID: Final = {Answer.HOLDS: "holds", Answer.FAILS: "FAILS", Answer.NOT_CHECKABLE: "open"}
_NONE: Final = "none"
_MARGIN: Final = 10


def plain(text: str) -> str:
    """Return text that a stranger chose so that it cannot turn the page around."""
    return text if text.isprintable() else ascii(text)


def plain_json(text: str) -> str:
    """Return a JSON text that says the same and in which every character can be printed.

    What cannot stands within strings only, where an escape is the same character.
    """
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def count(number: int, noun: str) -> str:
    """Return `1 problem`, `2 problems`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def review(found: Review) -> Iterator[str]:
    """Yield the lines of one bundle's review."""
    verdict = found.verdict
    yield from _log(verdict)
    for head in found.heads:
        yield from _seen(head, verdict)
    if found.trust.newest is not None:
        newest = found.trust.newest
        yield _line("roster", f"version {newest.version}, issued {utc_text(newest.issued)}")
    if verdict.kinds:
        yield from _wrapped("kinds", ", ".join(f"{n} {kind}" for kind, n in sorted(verdict.kinds.items())))
    yield from _checks(CHECKLIST, {check.question: check for check in found.checks})
    yield from _notices(found.notices)
    if not found.ok:
        yield "NOT OK"
        return
    open_ = sum(bool(check.missing) for check in found.checks)
    if open_:
        yield f"{count(open_, 'question')} could not be answered in full; each says what to bring"
    yield _OK


def crossed(found: Crossed) -> Iterator[str]:
    """Yield the lines of a comparison."""
    for side in found.sides:
        verdict = side.verdict
        whole = verdict is not None and verdict.ok
        last = verdict.last if verdict and verdict.last else "never"
        state = "verifies" if whole else "DOES NOT VERIFY"
        yield f"{side.label}: {plain(side.origin) or 'no log'}, {side.size:,} entries until {last}, {state}"
        if verdict is not None and not whole:
            problem = verdict.problems[0]
            yield _line("problem", f"{problem.where}: {problem.what} [{problem.code}]")
    yield from _checks(QUESTIONS, found.checks)
    yield from _notices([f"{each.where}: {each.what} [{each.code}]" for each in found.notices])
    yield "OK: the logs agree" if found.ok else "NOT OK"


def _log(verdict: Verdict) -> Iterator[str]:
    if not verdict.origin:
        return
    yield _line("log", plain(verdict.origin))
    times = f", from {verdict.first} to {verdict.last}" if verdict.first else ""
    yield _line("entries", f"{verdict.size}{times}")
    yield _line("root", b64encode(verdict.root))
    if len(verdict.keys) > 1:
        yield _line("keys", ", then ".join(VerifierKey.parse(key).label for key in verdict.keys))
    yield _line("signed", ", ".join(map(plain, verdict.signed_by)))


def _seen(head: Head, verdict: Verdict) -> Iterator[str]:
    if not head.cosigned:
        return
    needed = f" of {head.needed} needed" if head.needed else ""
    reached = {True: ", a quorum", False: ", no quorum", None: ""}[head.satisfied]
    who = f": {', '.join(head.votes)}" if head.votes else ""
    until = "" if head.size == verdict.size else f", the first {head.size} entries,"
    votes = f"by {count(len(head.votes), 'vote')}{needed}{reached}{who}"
    yield from _wrapped("seen", f"{head.file}{until} {votes}")


def _checks(questions: Sequence[Question], checks: Mapping[str, Check]) -> Iterator[str]:
    for question in questions:
        check = checks[question.id]
        idle = not check.looked_at and not check.missing
        yield _line(_NONE if idle else _SAID[check.answer], f"{question.en}{_shown(check)}")
        for finding in check.findings:
            yield _line("problem", f"{plain(finding.where)}: {plain(finding.what)} [{finding.code}]")
        more = check.count - len(check.findings)
        if more:
            yield _line("", f"and {more} more")
        for missing in check.missing:
            yield from _wrapped("", f"bring {plain(missing)}")


def _shown(check: Check) -> str:
    """Return what shows an answer, briefly: how many were looked at, and the first of them."""
    held = check.looked_at - check.count
    if held <= 0:
        return ""
    entries = [place.removeprefix("entry ") for place in check.evidence if place.startswith("entry ")]
    others = [place for place in check.evidence if not place.startswith("entry ")]
    first = [*others, *([f"entry {', '.join(entries)}"] if entries else [])]
    places = plain(", ".join(first))
    if len(places) > 40:
        places = f"{places[:40].rstrip(' ,')} …"
    return f" ({held:,}: {places})"


def _notices(notices: Sequence[str]) -> Iterator[str]:
    for notice in notices:
        yield from _wrapped("note", plain(notice))


def _line(name: str, text: str) -> str:
    return f"{name:<{_MARGIN}}{text}".rstrip()


def _wrapped(name: str, text: str) -> Iterator[str]:
    for at, part in enumerate(textwrap.wrap(text, WIDTH - _MARGIN, break_on_hyphens=False) or [""]):
        yield _line("" if at else name, part)


def entry(shown: Entry) -> str:
    """Return one entry: digests cut to twelve digits, a key that is over to its name and id."""
    said: dict[str, Any] = {}
    if shown.job:
        said["job"] = shown.job
    if shown.attempt:
        said["attempt"] = shown.attempt
    if shown.policy:
        said["policy"] = f"v{shown.policy.version}"
        said["rule"] = shown.policy.rule or "none"
    if shown.actor:
        said["actor"] = shown.actor
    said |= shown.body
    if "previous_vkey" in said:
        said["previous_vkey"] = VerifierKey.parse(said["previous_vkey"]).label
    if shown.refs:
        said["refs"] = list(shown.refs)
    return f"{shown.seq:>6}  {shown.time}  {shown.kind:<18}" + "".join(
        f"  {key}={_short(value)}" for key, value in said.items()
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = plain(str(value))
    return text.removeprefix("sha256:")[:12] if text.startswith("sha256:") else text


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that tells how far a reading is: a bar in a terminal, now and then a line elsewhere.

    Nothing is said of a log that is read at once anyway.
    """
    if not sys.stderr.isatty():
        told = 0

        def lines(done: int, total: int) -> None:
            nonlocal told
            if total >= LONG and done - told >= total // 10:
                told = done
                print(f"{label}: {done:,} of {total:,} entries", file=sys.stderr, flush=True)

        yield lines
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = None

        def bar(done: int, total: int) -> None:
            nonlocal task
            if task is None and total >= LONG:
                task = bars.add_task(label, total=total)
            if task is not None:
                bars.update(task, completed=done)

        yield bar
