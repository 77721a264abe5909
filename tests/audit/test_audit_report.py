"""The audit's report: what stands on the page, that a hostile log cannot write on it, and that it prints."""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import report
from audit.cross import Crossed
from audit.entries import KINDS_BY_VERSION, Entry, PolicyRef, format_time
from audit.facts import Facts
from audit.findings import CHECKLIST, Checks, Finding
from audit.heads import Head
from audit.note import COSIGNATURE, ED25519, Checkpoint, Note, VerifierKey
from audit.report_words import KINDS, STYLE, TEXTS
from audit.review import Review
from audit.trust import Trust
from audit.verify import Problem, Verdict
from protocols.errors import InputError

ORIGIN = "health.gz.example/node-b/journal/1"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
VKEY = VerifierKey(ORIGIN, ED25519, KEY.public_key().public_bytes_raw())
WITNESS = VerifierKey("police.gz.example/node-a/witness/1", COSIGNATURE, bytes(range(32)))
BEGIN = datetime(2026, 12, 1, 1, tzinfo=UTC)
POLICY = PolicyRef(3, "sha256:" + "5a" * 32, "R1")
RELEASE = "0123456789abcdef" * 2


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def said(
    kind: str, body: dict[str, Any], *, at: timedelta, job: str = "", attempt: int = 0
) -> dict[str, Any]:
    return {"kind": kind, "body": body, "time": format_time(BEGIN + at), "job": job, "attempt": attempt}


def told() -> Iterator[dict[str, Any]]:
    """A node's week: two jobs answered, one refused, one failed, something deleted."""
    hour = timedelta(hours=1)
    yield said("log.open", {"vkey": str(VKEY)}, at=0 * hour)
    yield said("policy.activate", {"version": 3, "sha256": POLICY.sha256}, at=1 * hour)
    for number, day in enumerate((0, 2, 2, 5)):
        job, at = digest(0xABC << 240 | number), timedelta(days=day, hours=3)
        facts = {"requester": "population.gz.example", "job_type": "crosscheck/1", "purpose": "疑似漏登核查",
                 "legal_basis": "basis-17", "recipients": ["police.gz.example"]}  # fmt: skip
        yield said("job.received", facts, at=at, job=job)
        if number == 1:
            yield said("job.refused", {"code": "approval-missing", "needed": 2}, at=at + hour, job=job)
            continue
        yield said(
            "approval.recorded", {"approver": digest(7), "approval_sha256": digest(8)}, at=at + hour, job=job
        )
        yield said("job.admitted", {"admission_sha256": digest(9)}, at=at + 2 * hour, job=job, attempt=1)
        if number == 2:
            yield said("job.failed", {"code": "peer-gone"}, at=at + 3 * hour, job=job, attempt=1)
            continue
        charge = {"budget": "rows-a-month", "cost": "20000", "spent": f"{20000 * (1 + number // 2)}",
                  "limit": "60000", "notion": "rows", "purpose": "疑似漏登核查"}  # fmt: skip
        yield said("budget.charged", charge, at=at + 3 * hour, job=job, attempt=1)
        release = {"release": RELEASE[:31] + str(number), "class": "B", "sha256": digest(10), "rows": 5718}
        yield said("output.commit", release, at=at + 4 * hour, job=job, attempt=1)
        if number == 0:
            left = {"release": release["release"], "sha256": digest(10), "recipient": "police.gz.example"}
            yield said("output.released", left, at=at + 5 * hour, job=job, attempt=1)
    yield said("deletion.receipt", {"what": "release", "sha256": digest(10)}, at=timedelta(days=6))


def entries() -> list[Entry]:
    return [
        Entry(log=ORIGIN, seq=seq, policy=POLICY if each["job"] else None, actor="", refs=(), **each)
        for seq, each in enumerate(told())
    ]


def head(file: str = "checkpoint", origin: str = ORIGIN, **other: Any) -> Head:
    text = Checkpoint(origin, 27, bytes(32)).encode()
    facts = {
        "cosigned": ((WITNESS.label, 1_796_169_600),), "votes": ("police.gz.example",), "needed": 1,
        "satisfied": True,
    } | other  # fmt: skip
    return Head(file, origin, 27, bytes(32), Note(text, ()), **facts)


def reviewed(*, checks: Checks | None = None, problems: tuple[Problem, ...] = (), **other: Any) -> Review:
    facts, log = Facts(), entries()
    for entry in log:
        facts.visit(entry)
    origin = other.pop("origin", ORIGIN)
    verdict = Verdict(
        origin=origin, size=len(log), root=bytes(32), keys=(str(VKEY),), signed_by=(VKEY.label,),
        kinds=Counter(entry.kind for entry in log), first=log[0].time, last=log[-1].time,
        problems=problems, problem_count=len(problems),
    )  # fmt: skip
    if checks is None:
        checks = Checks()
        for check in checks:
            check.saw("entry 4", 12)
    named: dict[str, Any] = {
        "label": "health", "verdict": verdict, "checks": checks, "heads": (head(),), "witnessed": (),
        "facts": facts, "notices": (), "trust": Trust(keys=(VKEY, WITNESS)),
    } | other  # fmt: skip
    return Review(**named)


class Page(HTMLParser):
    """The page's tags, checked to close in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


# ---------------------------------------------------------------- what stands on it


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_says_what_was_audited_by_which_keys_and_what_came_of_it(lang):
    page = Page(report.render([reviewed()], lang=lang, made=BEGIN))
    for words in (ORIGIN, VKEY.label, WITNESS.label, "2026-12-01 01:00:00", "2026-12-02 00:00:00",
                  {"en": "✓ Verified", "zh": "✓ 核验通过"}[lang]):  # fmt: skip
        assert words in page.text
    assert "Not verified" not in page.text
    assert "核验未通过" not in page.text


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_each_of_the_questions_is_answered_with_evidence_findings_and_what_is_missing(lang):
    checks = Checks()
    checks["signed"].saw("entry 0", 27)
    checks["budgets"].saw("entry 9")
    checks["budgets"].found("overspent", "entry 17", "60,001 of 60,000")
    checks["disclosure"].lacks("the release of entry 18 (--release)")
    checks["inputs"].figures["rows"] = 40_321
    checks["inputs"].saw("entry 8")
    page = Page(report.render([reviewed(checks=checks)], lang=lang))
    for question in CHECKLIST:
        assert getattr(question, lang) in page.text
    for words in (
        "overspent",
        "entry 17: 60,001 of 60,000",
        "the release of entry 18 (--release)",
        "rows: 40,321",
    ):
        assert words in page.text
    said = TEXTS["holds"], TEXTS["fails"], TEXTS["not checkable"]
    table = page.text.partition(TEXTS["checklist"][lang == "zh"])[2].partition(
        TEXTS["timeline"][lang == "zh"]
    )[0]
    counts = [table.count(f"{sign} {words[lang == 'zh']}") for sign, words in zip("✓✗–", said, strict=True)]
    assert counts == [2, 1, 1]
    assert table.count({"en": "none There is nothing", "zh": "无 该日志中无"}[lang]) == len(CHECKLIST) - 4
    assert {"en": "✗ Not verified", "zh": "✗ 核验未通过"}[lang] in page.text


def test_budgets_releases_refusals_jobs_and_deletions_are_listed():
    text = Page(report.render([reviewed()])).text
    assert re.search(r"rows-a-month 疑似漏登核查 40000 rows \(2 ×; entries 5 … 17\)", text)
    assert "40000 / 60000" in text
    assert re.search(r"012345678\w+  ?B 5,718", text)
    assert "still here" in text
    assert re.search(r"refused approval-missing 1", text)
    assert re.search(r"failed peer-gone 1", text)
    assert re.search(
        r"received 2 · approved 3 · admitted 4 · cost charged 5 · output final 6 · output left 7", text
    )
    assert "deleted release" in text


def test_what_is_wrong_with_the_files_comes_before_everything_else_of_the_log():
    page = Page(report.render([reviewed(problems=(Problem("tile-mismatch", "tile/0/000", "other hashes"),))]))
    log = page.text.rpartition("Bundle")[2]
    assert log.index("tile-mismatch") < log.index("The checklist")
    assert "Keep the bundles as they are" in page.text


def test_what_could_not_be_asked_is_said_on_the_first_page():
    checks = Checks()
    checks["signed"].saw("entry 0")
    checks["disclosure"].lacks("opened releases")
    page = Page(report.render([reviewed(checks=checks)]))
    assert "Some questions could not be answered in full" in page.text
    whole = Page(report.render([reviewed()]))
    assert "Some questions could not be answered in full" not in whole.text


def test_comparing_logs_is_part_of_the_verdict():
    crossed = Crossed(())
    crossed.checks["receipts"].found("one-sided", "police: the whole log", "no receipt of release 0123")
    crossed.notices.append(Finding("under-way", "police", "it ends before"))
    page = Page(report.render([reviewed()], crossed))
    assert "✗ Not verified" in page.text
    assert "✗ the logs contradict each other" in page.text
    assert "no receipt of release 0123" in page.text
    assert "police: it ends before [under-way]" in page.text


def test_who_saw_what_when_is_listed_and_a_quorum_not_reached_yet_is_named():
    heads = (
        head(),
        head("checkpoint.old", needed=3, satisfied=False),
        head("checkpoint.cosigned", satisfied=None),
    )
    others = (head("witnessed/00", "police.gz.example/node-a/journal/1"),)
    text = Page(report.render([reviewed(heads=heads, witnessed=others)])).text
    assert f"{WITNESS.label}, 2026-12-02 00:00:00" in text
    assert "1 (needed: 3) police.gz.example – not yet" in text
    assert "not told" in text
    assert "police.gz.example/node-a/journal/1 27" in text


def test_evidence_is_brief_entries_of_one_log_stand_together():
    checks = Checks()
    for place in (
        "police.zip: entry 14",
        "health.zip: entry 10",
        "police.zip: entry 15",
        "police.zip: entry 14",
    ):
        checks["outputs"].saw(place)
    checks["identifiers"].saw(f"objects/sha256/ab/ab{'0' * 62}", 3)
    text = Page(report.render([reviewed(checks=checks)])).text
    assert "police.zip: entry 14, 15; health.zip: entry 10 " in text
    assert "objects/sha256/ab/ab0000000000; … " in text
    assert "There is nothing of the kind in this log." in text


def test_an_empty_folder_makes_a_page_too():
    verdict = Verdict("", 0, b"", (), (), {}, "", "", (Problem("no-checkpoint", "checkpoint", "none"),), 1)
    page = Page(report.render([reviewed(verdict=verdict, facts=Facts(), heads=(), checks=Checks())]))
    assert "no-checkpoint" in page.text
    assert "✗ Not verified" in page.text


@pytest.mark.parametrize("arguments", [([],), ([None], None, "fr")])
def test_nothing_to_report_on_and_another_language_are_the_callers_mistake(arguments):
    with pytest.raises(InputError):
        report.render(*arguments)


def test_every_text_and_every_kind_has_both_languages():
    assert all(zh and (en or key == "findings-en") for key, (en, zh) in TEXTS.items())
    used = Path(report.__file__).read_text("utf-8")
    named = set(re.findall(r"""["']([a-z0-9 -]+)["']""", used)) | {f"cannot-{number}" for number in (1, 2, 3)}
    assert set(TEXTS) <= named
    assert set(KINDS) == {kind for kinds in KINDS_BY_VERSION.values() for kind in kinds}
    assert all(len(names) == 2 and all(names) for names in KINDS.values())


# ---------------------------------------------------------------- a page that runs and loads nothing

HOSTILE = '"><script>alert(1)</script><img src=x onerror=y>'


def test_a_hostile_log_writes_nothing_on_the_page_but_text():
    checks = Checks()
    checks["keys"].found(HOSTILE, HOSTILE, HOSTILE)
    checks["time"].lacks(HOSTILE)
    checks["inputs"].saw(HOSTILE)
    checks["inputs"].figures[HOSTILE] = HOSTILE
    facts = Facts()
    facts.jobs[HOSTILE] = report.JobFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,))
    facts.jobs[HOSTILE].add(report.Step(1, "2026-12-01T00:00:00.000Z", HOSTILE, 1, HOSTILE, HOSTILE))
    facts.budgets[HOSTILE, HOSTILE] = report.BudgetFacts(
        HOSTILE, HOSTILE, HOSTILE, spent=HOSTILE, limit=HOSTILE
    )
    facts.refusals[HOSTILE] = Counter([HOSTILE])
    facts.releases[HOSTILE] = report.ReleaseFacts(1, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1, HOSTILE)
    facts.governance.append(report.Step(1, HOSTILE, HOSTILE, 1, HOSTILE, HOSTILE))
    hostile_head = head(HOSTILE, HOSTILE, cosigned=((HOSTILE, 1 << 63),), votes=(HOSTILE,))
    review = reviewed(
        checks=checks, facts=facts, heads=(hostile_head,), witnessed=(hostile_head,), label=HOSTILE,
        origin=HOSTILE, notices=(HOSTILE,), problems=(Problem(HOSTILE, HOSTILE, HOSTILE),),
    )  # fmt: skip
    crossed = Crossed(())
    crossed.notices.append(Finding(HOSTILE, HOSTILE, HOSTILE))
    for lang in ("en", "zh"):
        page = Page(report.render([review], crossed, lang))
        assert page.text.count(HOSTILE) > 20
        assert {"script", "img", "link", "iframe", "object", "form", "input", "base"}.isdisjoint(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]


def test_text_that_would_turn_a_line_around_is_spelt_out():
    page = report.render([reviewed(origin="police\u202eexe.example/journal/1", label="a\x00b\ud800")])
    assert "\u202e" not in page
    assert "police\\u202eexe.example" in page
    assert "a\\x00b\\ud800" in page
    assert page.encode("utf-8")


def test_a_very_long_text_is_cut():
    page = report.render([reviewed(label="long" * 5000)])
    assert len(page) < 100_000
    assert "longlong…" in page


def test_the_page_loads_nothing():
    page = report.render([reviewed()])
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert "://" not in page
    links = {value for name, value in Page(page).attributes if name == "href"}
    assert links == {"#log-1"}
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_drawings_are_well_formed_and_say_the_same_without_colour():
    page = report.render([reviewed()])
    drawings = re.findall(r"(?s)<svg .*?</svg>", page)
    assert len(drawings) >= 4
    for drawing in drawings:
        drawn = ET.fromstring(drawing)
        assert drawn.get("aria-label") or drawn.get("aria-hidden")
        paints = {each.get(name) for each in drawn.iter() for name in ("fill", "stroke")} - {None, "none"}
        assert paints <= {"#111", "#d5d5d5", "#ddd", "#fff"}  # black, two greys, white
    marks = page.rpartition("Jobs over time")[2].partition("</p>")[0]
    assert all(sign in marks for sign in "○|●◆▶✗")


def test_on_paper_each_log_begins_a_page_and_heads_of_tables_come_again():
    printed = STYLE.partition("@media print")[2]
    assert "section.log { break-before: page; }" in printed
    assert "thead { display: table-header-group; }" in printed
    assert "@page { size: A4" in STYLE
    assert report.render([reviewed(), reviewed()]).count('<section class="log">') == 2


# ---------------------------------------------------------------- a log of a million entries


def test_the_page_of_a_very_long_log_stays_small_and_says_what_it_leaves_out():
    facts, log = Facts(), entries()
    job = next(entry for entry in log if entry.kind == "job.received")
    release = next(entry for entry in log if entry.kind == "output.commit")
    for number in range(6000):
        time = format_time(BEGIN + timedelta(hours=number))
        for entry, more in ((job, {}), (release, {"release": f"{number:032x}"})):
            facts.visit(
                Entry(log=ORIGIN, seq=2 * number, time=time, kind=entry.kind, job=digest(number), attempt=0,
                      policy=None, actor="", body=dict(entry.body) | more, refs=())
            )  # fmt: skip
    checks = Checks()
    for number in range(5000):
        checks["overlaps"].found("overlap", f"entry {number}", "the same people again")
    page = report.render([reviewed(facts=facts, checks=checks)])
    assert len(page) < 400_000
    text = Page(page).text
    assert "40 the newest jobs, of 2000" in text
    assert "5,800 more are not shown here" in text
    assert "more 4,900" in text
    assert len(re.findall("<rect", page)) < 3 * 62 + 900


def test_a_log_whose_clock_lies_by_thousands_of_years_is_drawn_all_the_same():
    facts = Facts()
    body = {"requester": "a", "job_type": "b"}
    for seq, year in enumerate(("0001", "2026", "9999")):
        time = f"{year}-12-31T23:59:59.999Z"
        facts.visit(
            Entry(log=ORIGIN, seq=seq, time=time, kind="job.received", job=digest(1), attempt=0, policy=None,
                  actor="", body=body, refs=())
        )  # fmt: skip
    page = report.render([reviewed(facts=facts)])
    assert len(re.findall("<rect", page)) < 200
    assert "9999" in page
