"""The audit's report: one HTML page that opens anywhere, prints on A4 in black and white, and runs nothing.

It draws what `audit.review` found of each log: whether it holds together, the checklist with each answer's
evidence, who has seen the log, what was asked, spent, released, refused and deleted. The page loads nothing
and has no script; charts are SVG in it. Everything that a log says is text to it: tags are built by `_tag`,
which escapes whatever is not a tag itself. Each table ends at `MAX_ROWS`, and says what it left out.
"""

import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from unicodedata import east_asian_width

from audit.entries import parse_time
from audit.facts import ROUND, BudgetFacts, Facts, JobFacts, ReleaseFacts, Step
from audit.findings import CHECKLIST, Answer, Check, Question
from audit.note import VerifierKey
from audit.report_words import KINDS, STYLE, TEXTS
from protocols.encoding import b64encode
from protocols.errors import InputError

if TYPE_CHECKING:
    from audit.cross import Crossed
    from audit.heads import Head
    from audit.review import Review
    from audit.verify import Verdict

Lang: TypeAlias = Literal["en", "zh"]

MAX_ROWS: Final = 200
"""Most rows of one table, and most findings shown of one question."""

MAX_LANES: Final = 40
"""Most jobs drawn on one timeline."""

_SOURCES: Final = "default-src 'none'; style-src 'unsafe-inline'"
_BINS: Final = 62
_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{12})[0-9a-f]{52}")
_SHORT: Final = 12
_CUT: Final = 1000

_ENDINGS: Final = ("job.refused", "job.failed", "job.aborted", "job.cancelled", "job.expired")

_MARKS: Final = {
    "job.submitted": "○", "job.received": "○", "approval.recorded": "|",
    "job.accepted": "●", "job.started": "●", "job.admitted": "●",
    "output.commit": "◆", "output.released": "▶", "job.done": "▶",
    **dict.fromkeys(_ENDINGS, "✗"), "approval.rejected": "✗",
}  # fmt: skip
_LEGEND: Final = (
    ("○", "job.received"), ("|", "approval.recorded"), ("●", "job.admitted"),
    ("◆", "output.commit"), ("▶", "output.released"), ("✗", "job.refused"),
)  # fmt: skip
_NUMBERS: Final = frozenset({"entries", "size", "count", "rows", "seq", "holds", "fails", "not checkable"})
"""Columns that stand to the right."""
_SIGN: Final = {Answer.HOLDS: "✓", Answer.FAILS: "✗", Answer.NOT_CHECKABLE: "–"}


class _Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _escape(text: str) -> _Html:
    """Return `text` as HTML. What would turn a line around, or is no character at all, is spelt out."""
    if not text.isprintable():
        text = ascii(text)[1:-1]
    if len(text) > _CUT:
        text = f"{text[:_CUT]}…"
    return _Html(html.escape(text, quote=True))


def _tag(name: str, *children: str, **attributes: str | float) -> _Html:
    """Return an element. Children and attributes are text, unless they are `_Html`. `class_` is `class`."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(str(value))}"' for key, value in attributes.items()
    )
    inner = "".join(child if isinstance(child, _Html) else _escape(child) for child in children)
    return _Html(f"<{name}{said}>{inner}</{name}>")


def _join(parts: Iterable[str], between: str = "") -> _Html:
    return _Html(_escape(between).join(part if isinstance(part, _Html) else _escape(part) for part in parts))


def render(
    reviews: "Sequence[Review]",
    cross: "Crossed | None" = None,
    lang: Lang = "en",
    *,
    made: datetime | None = None,
) -> str:
    """Return the report of these reviews as one HTML page.

    Args:
        reviews: one of each log, in the order in which they are to stand; at least one.
        cross: what comparing the logs with each other found; None where nobody compared them.
        lang: language of the page. Findings' sentences are English in both; their codes are the same.
        made: the moment that the page says it was made, with a zone; None to leave it out.

    Raises:
        InputError: no review, or another language.
    """
    if not reviews:
        raise InputError("there is nothing to report on", code="no-bundle", hint="give at least one bundle")
    if lang not in ("en", "zh"):
        raise InputError("no such language", code="bad-language", hint="give en or zh")
    return _Page(lang).document(reviews, cross, made)


@dataclass(frozen=True, slots=True)
class _Page:
    """Writes in one language."""

    lang: Lang

    def t(self, key: str) -> str:
        """Return a fixed text."""
        return TEXTS[key][self.lang == "zh"]

    def kind(self, kind: str) -> str:
        """Return what an entry kind is called."""
        names = KINDS.get(kind)
        return names[self.lang == "zh"] if names else kind

    def document(self, reviews: "Sequence[Review]", cross: "Crossed | None", made: datetime | None) -> str:
        body = [self.head(reviews, cross, made)]
        if cross is not None:
            body.append(self.crossing(cross))
        body += [self.log(review, number) for number, review in enumerate(reviews, 1)]
        body.append(self.limits())
        title = _tag("title", self.t("title"))
        meta = _Html(
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_SOURCES}">'
        )
        style = _Html(f"<style>{STYLE}</style>")
        head = _tag("head", meta, title, style)
        language = "zh-Hans" if self.lang == "zh" else "en"
        return f"<!DOCTYPE html>\n{_tag('html', head, _tag('body', *body), lang=language)}\n"

    # -- the first page --------------------------------------------------------------------------------------

    def head(self, reviews: "Sequence[Review]", cross: "Crossed | None", made: datetime | None) -> _Html:
        ok = all(review.ok for review in reviews) and (cross is None or cross.ok)
        open_ = any(_state(check) == Answer.NOT_CHECKABLE for review in reviews for check in review.checks)
        sentence = self.t(("some-open" if open_ else "all-hold") if ok else "some-fail")
        sign = _SIGN[Answer.HOLDS if ok else Answer.FAILS]
        word = f"{sign} {self.t('verified' if ok else 'not-verified')}"
        parts = [_tag("p", "Minshu 民数", class_="brand"), _tag("h1", self.t("title"))]
        if made is not None:
            moment = _moment(made.astimezone(UTC).isoformat())
            parts.append(_tag("p", f"{self.t('made')}: {moment}", class_="soft"))
        parts += [
            _tag("div", _tag("b", word), _tag("p", sentence), class_="verdict" if ok else "verdict bad"),
            _tag("h3", self.t("audited")),
            self.overview(reviews),
            self.held_against(reviews),
            _tag("p", self.t("reading"), class_="soft"),
        ]
        return _tag("header", *parts)

    def overview(self, reviews: "Sequence[Review]") -> _Html:
        rows = []
        for number, review in enumerate(reviews, 1):
            verdict = review.verdict
            answers = Counter(map(_state, review.checks))
            rows.append([
                _tag("a", verdict.origin or review.label, href=f"#log-{number}"),
                _number(verdict.size),
                _span(verdict.first, verdict.last),
                *(_number(answers[answer]) for answer in Answer),
                self.votes(_best(review.heads)),
                self.answered(ok=review.ok, yes="verified", no="not-verified"),
            ])  # fmt: skip
        heads = ("log", "entries", "period", "holds", "fails", "not checkable", "witnesses-short", "result")
        return self.table(heads, rows)

    def held_against(self, reviews: "Sequence[Review]") -> _Html:
        """Say which keys the auditor brought, once: it is the same for all bundles, rosters apart."""
        trust = reviews[0].trust
        rosters = {
            f"{self.t('version')} {newest.version}, {newest.digest[7 : 7 + _SHORT]},"
            f" {self.t('issued')} {newest.issued.date()}": None
            for newest in (review.trust.newest for review in reviews)
            if newest is not None
        }
        yes_no = (self.t("not-given"), self.t("given"))
        said = {
            "root-keys": yes_no[0] if trust.roots is None else _code(trust.roots.fingerprint),
            "roster": "; ".join(rosters) or yes_no[0],
            "given-keys": self.list([key.label for key in trust.keys]) or yes_no[0],
            "officers": ", ".join(sorted(map(_brief, trust.officers))) or yes_no[0],
            "quorum": yes_no[trust.quorum is not None],
            "tsa": yes_no[bool(trust.tsa_roots)],
        }
        return _join([
            _tag("h3", self.t("against")),
            _tag("p", self.t("against-says"), class_="soft"),
            self.facts((self.t(key), value) for key, value in said.items()),
        ])  # fmt: skip

    def limits(self) -> _Html:
        items = [_tag("li", self.t(f"cannot-{number}")) for number in (1, 2, 3)]
        return _tag("section", _tag("h2", self.t("cannot")), _tag("ul", *items))

    def crossing(self, cross: "Crossed") -> _Html:
        from audit.cross import QUESTIONS

        parts = [
            _tag("h2", self.t("cross")),
            self.answered(ok=cross.ok, yes="agree", no="disagree"),
            self.checklist(QUESTIONS, cross.checks),
        ]
        if cross.notices:
            told = [f"{each.where}: {each.what} [{each.code}]" for each in cross.notices]
            parts += [_tag("h3", self.t("notices")), self.list(told)]
        return _tag("section", *parts)

    # -- one log ---------------------------------------------------------------------------------------------

    def log(self, review: "Review", number: int) -> _Html:
        verdict, facts = review.verdict, review.facts
        said = {
            "bundle": review.label,
            "entries": _number(verdict.size),
            "period": _span(verdict.first, verdict.last),
            "root": _code(b64encode(verdict.root)),
            "keys": ", ".join(VerifierKey.parse(key).label for key in verdict.keys),
            "signed": ", ".join(verdict.signed_by),
        }
        answers = {check.question: check for check in review.checks}
        step = ("seq", "time", "what", "about", "code")
        parts = [
            _tag("h2", verdict.origin or review.label, id=f"log-{number}"),
            self.answered(ok=review.ok, yes="verified", no="not-verified"),
            self.facts((self.t(key), value) for key, value in said.items() if value),
            self.problems(verdict),
            _tag("h3", self.t("checklist")),
            self.checklist(CHECKLIST, answers),
            self.timeline(facts),
            self.part(
                "budgets", ("budget", "purpose", "charges", "spent"),
                map(self.budget, facts.budgets.values()), facts.left_out["budgets"],
            ),
            self.part(
                "releases", ("release", "class", "rows", "recipient", "job", "time", "left"),
                map(self.release, facts.releases.values()), facts.left_out["releases"],
            ),
            self.part("refusals", ("what", "code", "count", ""), self.refusals(facts)),
            self.part(
                "jobs", ("job", "type", "purpose", "requester", "way"),
                map(self.job, facts.jobs.values()), facts.left_out["job steps"],
            ),
            self.part("governance", step, map(self.step, facts.governance), facts.left_out["governance"]),
            self.part(
                "witnesses", ("file", "size", "cosigned", "votes", "quorum"), map(self.witness, review.heads)
            ),
            self.part(
                "witnessed", ("log", "size", "cosigned"),
                ([head.origin, _number(head.size), self.cosigned(head)] for head in review.witnessed),
            ),
            self.part("deletions", step, map(self.step, facts.deletions), facts.left_out["deletions"]),
            self.part("kinds", ("what", "code", "count"), self.kinds(verdict.kinds)),
        ]  # fmt: skip
        if review.notices:
            parts += [_tag("h3", self.t("notices")), self.list(review.notices)]
        return _tag("section", *parts, class_="log")

    def problems(self, verdict: "Verdict") -> _Html:
        if not verdict.problem_count:
            return _Html("")
        rows = [[_code(each.code), each.where, each.what] for each in verdict.problems]
        return self.part("problems", ("code", "about", "what"), rows, verdict.problem_count - len(rows))

    def checklist(self, questions: Sequence[Question], checks: Mapping[str, Check]) -> _Html:
        rows = [self.question(number, each, checks[each.id]) for number, each in enumerate(questions, 1)]
        heads = ("", self.t("question"), self.t("answer"), self.t("shown-by"))
        head = _tag("thead", _tag("tr", *(_tag("th", text) for text in heads)))
        table = _tag("table", head, _tag("tbody", *rows), class_="checklist")
        in_english = self.lang == "zh" and any(check.count or check.missing for check in checks.values())
        return _join([table, *([_tag("p", self.t("findings-en"), class_="soft")] if in_english else [])])

    def question(self, number: int, question: Question, check: Check) -> _Html:
        shown = []
        if check.looked_at:
            figures = [
                f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}"
                for name, value in check.figures.items()
            ]
            shown.append(_tag("div", "; ".join([f"{self.t('looked-at')} {check.looked_at:,}", *figures])))
        if check.evidence:
            shown.append(
                _tag("div", self.evidence(check.evidence, check.looked_at - check.count), class_="soft")
            )
        if check.count:
            found = [
                _tag("li", _code(each.code), f" {each.where}: {each.what}")
                for each in check.findings[:MAX_ROWS]
            ]
            more = check.count - len(found)
            if more > 0:
                found.append(_tag("li", f"{self.t('more-findings')} {more:,}"))
            shown.append(_tag("ul", *found))
        if check.missing:
            shown += [_tag("div", f"{self.t('to-answer')}:"), self.list(check.missing)]
        if not shown:
            shown.append(_tag("div", self.t("nothing-there"), class_="soft"))
        name = question.zh if self.lang == "zh" else question.en
        state = _state(check)
        answer = _tag("span", self.t("not-there"), class_="soft") if state is None else self.answer(state)
        cells = (str(number), name, answer, _join(shown))
        return _tag(
            "tr", *(_tag("td", cell) for cell in cells), **({"class_": "fails"} if check.count else {})
        )

    def evidence(self, places: Sequence[str], of: int) -> str:
        """Return where it shows, entries of one log together: `checkpoint; entry 3, 17; …`."""
        said: dict[str, dict[str, None]] = {}
        for place in places:
            where, entry, seq = place.rpartition("entry ")
            said.setdefault(f"{where}{self.t('entry')} " if entry else "", {})[
                seq if entry else _brief(place)
            ] = None
        groups = [f"{where}{', '.join(seen)}" for where, seen in said.items()]
        return "; ".join(groups) + ("; …" if of > len(places) else "")

    # -- rows ------------------------------------------------------------------------------------------------

    def budget(self, facts: BudgetFacts) -> list[str]:
        first, last = facts.entries
        places = (
            f"{self.t('entry')} {first}" if first == last else f"{self.t('entries-word')} {first} … {last}"
        )
        charged = f"{facts.charged} {facts.notion} ({facts.charges:,} ×; {places})"
        told = f"{facts.spent or '?'} / {facts.limit or '?'}"
        return [
            facts.budget,
            _brief(facts.purpose),
            charged,
            _join([_bar(_decimal(facts.spent), _decimal(facts.limit)), _tag("span", told)]),
        ]

    def release(self, facts: ReleaseFacts) -> list[str]:
        left = self.t("not-left") if facts.left is None else f"{self.t('entry')} {facts.left}"
        rows = "" if facts.rows is None else _number(facts.rows)
        return [
            _code(facts.release[:_SHORT]), facts.output_class, rows, facts.recipient, _digest(facts.job),
            f"{_moment(facts.time)} ({self.t('entry')} {facts.seq})", left,
        ]  # fmt: skip

    def job(self, facts: JobFacts) -> list[str]:
        about = _join(
            [
                _brief(facts.purpose),
                *([_tag("div", facts.legal_basis, class_="soft")] if facts.legal_basis else []),
            ]
        )
        asked = f"{_brief(facts.requester) or '?'} → {', '.join(facts.recipients) or '?'}"
        return [_digest(facts.job), facts.job_type, about, asked, self.way(facts)]

    def way(self, facts: JobFacts) -> str:
        """Return a job's steps, each with its entries: `received 12 · admitted 15 · refused 19 (no-rule)`."""
        said: dict[tuple[str, str], list[str]] = {}
        for step in facts.steps:
            said.setdefault((step.kind, step.code), []).append(str(step.seq))
        steps = [
            f"{self.kind(kind)} {', '.join(places)}{f' ({code})' if code else ''}"
            f"{f' … (× {facts.rounds})' if kind == ROUND and facts.rounds > 1 else ''}"
            for (kind, code), places in said.items()
        ]
        return " · ".join(steps) + (f" · +{facts.more}" if facts.more else "")

    def refusals(self, facts: Facts) -> Iterator[list[str]]:
        """Yield a row for each code, the most frequent first."""
        told = [(n, kind, code) for kind, codes in facts.refusals.items() for code, n in codes.items()]
        told.sort(key=lambda each: (-each[0], each[1:]))
        for n, kind, code in told:
            yield [self.kind(kind), _code(code), _number(n), _bar(n, told[0][0])]

    def kinds(self, kinds: Mapping[str, int]) -> Iterator[list[str]]:
        for kind, n in sorted(kinds.items(), key=lambda each: (-each[1], each[0])):
            yield [self.kind(kind), _code(kind), _number(n)]

    def step(self, step: Step) -> list[str]:
        return [
            _number(step.seq),
            _moment(step.time),
            self.kind(step.kind),
            _brief(step.what),
            _code(step.code),
        ]

    def witness(self, head: "Head") -> list[str]:
        quorum = self.t("needed-unknown")
        if head.satisfied is not None:
            # The newest checkpoint is often still under way to its witnesses: that is no failure.
            reached = Answer.HOLDS if head.satisfied else Answer.NOT_CHECKABLE
            quorum = self.answer(reached, "reached" if head.satisfied else "missed")
        voted = _join([self.votes(head), self.list(head.votes)])
        return [head.file, _number(head.size), self.cosigned(head), voted, quorum]

    def votes(self, head: "Head | None") -> str:
        """Return how many organisations' votes a checkpoint has, and how many it needs."""
        if head is None:
            return ""
        return (
            f"{len(head.votes)} ({self.t('needed')} {head.needed})" if head.needed else str(len(head.votes))
        )

    def cosigned(self, head: "Head") -> _Html:
        return self.list([f"{label}, {_since_1970(time_s)}" for label, time_s in head.cosigned])

    # -- charts ----------------------------------------------------------------------------------------------

    def timeline(self, facts: Facts) -> _Html:
        """Draw entries over the days, where there are some, and the newest jobs' ways."""
        parts = [_tag("h3", self.t("timeline"))]
        if len(facts.days) > 2:
            parts += [self.histogram(facts.days), _tag("p", self.t("per-day"), class_="soft")]
        drawn = list(facts.jobs.values())[-MAX_LANES:]
        if drawn:
            legend = "; ".join(f"{sign} {self.kind(kind)}" for sign, kind in _LEGEND)
            few = len(drawn) < len(facts.jobs)
            of = f" ({len(drawn)} {self.t('newest-jobs')} {len(facts.jobs)})" if few else ""
            parts += [self.lanes(drawn), _tag("p", f"{self.t('lanes')}{of}. {legend}", class_="soft")]
        return _join(parts if len(parts) > 1 else [])

    def histogram(self, days: Mapping[str, Counter[str]]) -> _Html:
        first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
        width = -(-((last - first).days + 1) // _BINS)
        count = -(-((last - first).days + 1) // width)
        every, ended = [0] * count, [0] * count
        for day, kinds in days.items():
            place = (date.fromisoformat(day) - first).days // width
            every[place] += kinds.total()
            ended[place] += sum(kinds[kind] for kind in _ENDINGS)
        most, step = max(every), 940 / count
        drawn = [_tag("text", f"{most:,}", x=0, y=14, class_="s")]
        for place, heights in enumerate(zip(every, ended, strict=True)):
            x, wide = round(50 + place * step, 1), round(max(step - 2, 1), 1)
            for value, fill in zip(heights, ("#d5d5d5", "#111"), strict=True):
                height = round(max(110 * value / most, 1), 1) if value else 0
                drawn.append(_tag("rect", x=x, y=120 - height, width=wide, height=height, fill=fill))
        drawn.append(_tag("path", d="M50 120.5H990", stroke="#111", fill="none"))
        for place in sorted({0, count // 2, count - 1}):
            anchor = "end" if place == count - 1 > 0 else "start"
            text = (last if anchor == "end" else first + timedelta(days=place * width)).isoformat()
            x = round(50 + (place + (anchor == "end")) * step, 1)
            drawn.append(_tag("text", text, x=x, y=137, text_anchor=anchor, class_="s"))
        return _svg(142, self.t("per-day"), drawn)

    def lanes(self, jobs: Sequence[JobFacts]) -> _Html:
        times = [parse_time(step.time) for job in jobs for step in job.steps]
        first, last = min(times), max(times)
        span = max((last - first).total_seconds(), 1.0)

        def x(moment: datetime) -> float:
            return round(260 + 720 * (moment - first).total_seconds() / span, 1)

        height = 30 + 22 * len(jobs)
        drawn = []
        for moment, label in _ticks(first, span):
            drawn += [
                _tag("path", d=f"M{x(moment)} 22V{height}", stroke="#ddd"),
                _tag("text", label, x=x(moment), y=14, text_anchor="middle", class_="s"),
            ]
        for row, job in enumerate(jobs):
            y = 38 + 22 * row
            name = _fit(f"{job.job[7 : 7 + 8]}  {job.purpose or job.job_type}", 31)
            drawn.append(_tag("text", name, x=0, y=y + 5))
            ends = [x(parse_time(job.steps[place].time)) for place in (0, -1)]
            drawn.append(_tag("path", d=f"M{ends[0]} {y}H{ends[1]}", stroke="#111", stroke_width=1.2))
            shown = {
                (x(parse_time(step.time)), _MARKS[step.kind]) for step in job.steps if step.kind in _MARKS
            }
            drawn += [_mark(sign, at, y) for at, sign in sorted(shown)]
        return _svg(height, self.t("lanes"), drawn)

    # -- pieces ----------------------------------------------------------------------------------------------

    def part(
        self, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], left_out: int = 0
    ) -> _Html:
        """Return a titled table of at most `MAX_ROWS`, and how many more there are."""
        whole = list(rows)
        parts = [_tag("h3", self.t(title))]
        parts.append(
            self.table(heads, whole[:MAX_ROWS]) if whole else _tag("p", self.t("none"), class_="soft")
        )
        if more := left_out + max(len(whole) - MAX_ROWS, 0):
            parts.append(_tag("p", f"{_number(more)} {self.t('not-shown')}", class_="soft"))
        return _join(parts)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> _Html:
        looks: list[dict[str, str | float]] = [{"class_": "n"} if name in _NUMBERS else {} for name in heads]
        names = [self.t(name) if name else "" for name in heads]
        head = _tag("tr", *(_tag("th", name, **look) for name, look in zip(names, looks, strict=True)))
        body = [
            _tag("tr", *(_tag("td", text, **look) for text, look in zip(row, looks, strict=True)))
            for row in rows
        ]
        return _tag("table", _tag("thead", head), _tag("tbody", *body))

    def facts(self, said: Iterable[tuple[str, str]]) -> _Html:
        rows = [_tag("tr", _tag("th", name, scope="row"), _tag("td", value)) for name, value in said]
        return _tag("table", _tag("tbody", *rows), class_="facts")

    def list(self, items: Sequence[str]) -> _Html:
        more = [f"{len(items) - MAX_ROWS:,} {self.t('not-shown')}"] if len(items) > MAX_ROWS else []
        return _tag("ul", *(_tag("li", item) for item in [*items[:MAX_ROWS], *more])) if items else _Html("")

    def answered(self, *, ok: bool, yes: str, no: str) -> _Html:
        return self.answer(Answer.HOLDS if ok else Answer.FAILS, yes if ok else no)

    def answer(self, answer: Answer, text: str = "") -> _Html:
        """Return a mark and a word, so that it reads in black and white."""
        look = {Answer.HOLDS: "answer", Answer.FAILS: "answer fails", Answer.NOT_CHECKABLE: "answer open"}[
            answer
        ]
        return _tag("span", f"{_SIGN[answer]} {self.t(text or answer.value)}", class_=look)


# ---------------------------------------------------------------- pieces that need no language


def _state(check: Check) -> Answer | None:
    """Return a question's answer, None where the log has nothing that it could be asked of."""
    return check.answer if check.looked_at or check.missing else None


def _best(heads: "Sequence[Head]") -> "Head | None":
    """Return the checkpoint that most organisations have seen, of those the largest."""
    return max(heads, key=lambda head: (len(head.votes), head.size), default=None)


def _number(value: int) -> str:
    return f"{value:,}"


def _code(text: str) -> _Html:
    return _tag("span", text, class_="mono") if text else _Html("")


def _digest(text: str) -> _Html:
    return _code(_brief(text))


def _brief(text: str) -> str:
    """Return `text` with its digests cut to twelve digits."""
    return _DIGEST.sub(lambda found: found[1], text)


def _moment(time: str) -> str:
    """Return an RFC 3339 time as a person reads it, to the second."""
    return time[:19].replace("T", " ")


def _span(first: str, last: str) -> str:
    return f"{_moment(first)} – {_moment(last)}" if first else ""


def _since_1970(seconds: int) -> str:
    try:
        return _moment(datetime.fromtimestamp(seconds, UTC).isoformat())
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal(0)


def _fit(text: str, width: int) -> str:
    """Return as much of `text` as fits into `width` Latin letters; a Chinese one is as wide as two."""
    wide = [1 + (east_asian_width(each) in "WF") for each in text]
    if sum(wide) <= width:
        return text
    return text[: sum(total < width for total in accumulate(wide))] + "…"


def _bar(value: Decimal | int, whole: Decimal | int) -> _Html:
    """Return how much of `whole` is gone: a frame of 120 units, filled from the left."""
    share = 0.0 if whole <= 0 else min(float(value / whole), 1.0)
    frame = _tag("rect", x=0.5, y=0.5, width=119, height=8, fill="none", stroke="#111")
    filled = _tag("rect", x=0.5, y=0.5, width=round(119 * share, 1), height=8, fill="#111")
    return _tag("svg", frame, filled, viewBox="0 0 120 9", class_="bar", aria_hidden="true")


def _svg(height: float, label: str, drawn: Sequence[_Html]) -> _Html:
    return _tag("svg", *drawn, viewBox=f"0 0 1000 {height}", role="img", aria_label=label)


def _mark(sign: str, x: float, y: float) -> _Html:
    """Return one of the legend's signs, drawn."""
    match sign:
        case "○":
            return _tag("circle", cx=x, cy=y, r=3.6, fill="#fff", stroke="#111", stroke_width=1.3)
        case "●":
            return _tag("circle", cx=x, cy=y, r=4, fill="#111")
        case "|":
            return _tag("path", d=f"M{x} {y - 5}v10", stroke="#111", stroke_width=2.2)
        case "◆":
            return _tag("path", d=f"M{x - 5} {y}l5 -5l5 5l-5 5z", fill="#111")
        case "▶":
            return _tag("path", d=f"M{x - 3.5} {y - 5}l9 5l-9 5z", fill="#111")
        case _:
            return _tag("path", d=f"M{x - 4} {y - 4}l8 8m0 -8l-8 8", stroke="#111", stroke_width=2.2)


_STEPS: Final = (
    1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 91 * 86400, 366 * 86400,
)  # fmt: skip


def _ticks(first: datetime, span: float) -> list[tuple[datetime, str]]:
    """Return at most eight moments on an axis of `span` seconds, with what to write there."""
    step = next((each for each in _STEPS if span / each <= 7), math.ceil(span / 7))
    at = math.ceil(first.timestamp() / step) * step - first.timestamp()
    found = []
    while at <= span:
        moment = first + timedelta(seconds=at)
        text = (
            f"{moment:%H:%M:%S}"
            if step < 60
            else f"{moment:%m-%d %H:%M}"
            if step < 86400
            else f"{moment:%Y-%m-%d}"
        )
        found.append((moment, text))
        at += step
    return found
