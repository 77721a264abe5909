"""`minshu plan`: what each amount of privacy loss would buy, reckoned without asking anybody."""

import io
import json
import re
import socket
from dataclasses import replace
from fractions import Fraction
from math import sqrt
from pathlib import Path

import pytest
from rich.console import Console

import minshu
from coordinator.client.cli import main
from coordinator.client.plan import AMOUNTS, DELTA, MAX_AMOUNTS, Plan, plan
from protocols.dp.cost import Cost
from protocols.errors import InputError
from protocols.ids import Role
from protocols.jobs import job_type
from protocols.wire import Constraints

HEAD = """job_type = "release/1"
purpose = "P-2026-014"
legal_basis = "DPIA-2026-031"
expected_use = "school places of next year"
collaboration = "gz.example"
"""
HISTOGRAM = """
[params]
statistic = "histogram"
rho = "0.1"
axes = [{ slot = "street", values = ["440103001", "440103002", "440104001"] }]
"""
TREE = """
[params]
statistic = "tree"
rho = "0.2"
levels = [6]
axes = [{ slot = "street", values = ["440103001", "440103002", "440104001"] }]
"""
DEPARTMENTS = ("education", "health", "housing")


def job(tmp_path: Path, params: str = HISTOGRAM, *, sources: int = 1) -> Path:
    """Write a job.toml of so many departments."""
    roles = [f'source-{n + 1} = "{name}.gz.example/node-a"' for n, name in enumerate(DEPARTMENTS[:sources])]
    joint = sources > 1
    if joint:
        params += 'key_holder = "source-1"\n'
        roles.append('aggregator = "statistics.gz.example/node-a"')
    inputs = [
        f'[[inputs]]\nrole = "source-{n + 1}"\ndataset = "people"\ncolumns = {{ street = "street" }}\n'
        for n in range(sources)
    ]
    path = tmp_path / "job.toml"
    path.write_text("\n".join([HEAD, params, "[roles]", *roles, *inputs]), "utf-8")
    return path


def widths(found: Plan) -> list[float]:
    return [figure.within for choice in found.choices for figure in choice.figures]


# --- the reckoning


def test_nobody_is_asked_and_no_home_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def connect(*_: object) -> None:
        raise AssertionError("a plan connects to nobody")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.delenv("MINSHU_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    path = job(tmp_path)
    assert main(["plan", str(path)]) == 0
    assert "仅在本机推算" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


def test_more_privacy_loss_buys_narrower_intervals(tmp_path: Path):
    found = plan(job(tmp_path), rho=["1", "0.01", "0.1"])
    assert [choice.amount for choice in found.choices] == [Fraction(1, 100), Fraction(1, 10), Fraction(1)]
    assert widths(found) == sorted(widths(found), reverse=True)
    # One count of sensitivity 1 under ρ = 1/100: σ² = 1/2ρ = 50, and 1.96 σ is 13.9; whole numbers reach 14.
    assert widths(found)[0] == pytest.approx(1.96 * sqrt(50), abs=1)


def test_of_several_departments_the_noise_of_all_counts(tmp_path: Path):
    """Of three the key-holder can subtract its own share, so each adds half of what one alone would.

    One person may be in all three, so a count changes by up to 3: 3²/2ρ shared by two, times three.
    """
    (joint,) = widths(plan(job(tmp_path, sources=3), rho=["0.001"]))
    assert joint == pytest.approx(1.96 * sqrt(3 / 2 * 9 / (2 * 0.001)), rel=0.02)


@pytest.mark.parametrize("sources", [1, 3])
@pytest.mark.parametrize("param", ["rho", "epsilon"])
def test_what_is_planned_is_what_is_charged(tmp_path: Path, sources: int, param: str):
    found = plan(job(tmp_path, sources=sources), **{param: ["0.25", "1"]})
    for choice in found.choices:
        params = {k: v for k, v in found.spec.params.items() if k not in AMOUNTS}
        spec = replace(found.spec, params={**params, param: str(choice.amount)})
        known = job_type("release/1")
        known.check(spec)
        assert choice.cost == known.cost(spec, Role("source-1"), Constraints())
        amount = choice.cost.amount("zcdp" if param == "rho" else "pure-dp")
        assert amount == choice.amount


def test_every_level_of_a_tree_has_its_line(tmp_path: Path):
    found = plan(job(tmp_path, TREE), rho=["0.1"])
    (choice,) = found.choices
    assert len(choice.figures) >= 3
    assert len({each.what for each in choice.figures}) == len(choice.figures)
    for language, names in (
        ("en", [f.what for f in choice.figures]),
        ("zh", [f.what_zh for f in choice.figures]),
    ):
        lines = found.lines(language)
        assert [line.split(":")[0].strip() for line in lines[-len(names) :]] == names


# --- which amounts


def test_without_amounts_a_few_usual_ones_and_the_jobs_own_are_shown(tmp_path: Path):
    found = plan(job(tmp_path, TREE))
    usual = [Fraction(text) for text in AMOUNTS["rho"]]
    assert [choice.amount for choice in found.choices] == sorted([*usual, Fraction("0.2")])
    assert [choice.amount for choice in found.choices if choice.own] == [Fraction("0.2")]
    # One that is usual anyway stands there once.
    assert len(plan(job(tmp_path)).choices) == len(usual)


def test_a_job_with_one_measure_can_be_planned_with_the_other(tmp_path: Path):
    found = plan(job(tmp_path), epsilon=[Fraction(1, 2), 1, 0.3, "2"])
    assert found.param == "epsilon"
    assert [str(choice.amount) for choice in found.choices] == ["3/10", "1/2", "1", "2"]
    assert not any(choice.own for choice in found.choices)
    assert "rho" not in found.spec.params
    own = plan(job(tmp_path, HISTOGRAM.replace('rho = "0.1"', 'epsilon = "0.7"')))
    assert (own.param, [str(c.amount) for c in own.choices if c.own]) == ("epsilon", ["7/10"])


def test_a_job_that_does_not_say_how_much_yet_can_be_planned(tmp_path: Path):
    found = plan(job(tmp_path, HISTOGRAM.replace('rho = "0.1"\n', "")))
    assert [choice.amount for choice in found.choices] == [Fraction(text) for text in AMOUNTS["rho"]]
    assert not any(choice.own for choice in found.choices)


@pytest.mark.parametrize(
    ("amounts", "code"),
    [
        ({"rho": ["0"]}, "bad-privacy"),
        ({"rho": ["17"]}, "bad-privacy"),
        ({"epsilon": ["1000000"]}, "bad-privacy"),
        ({"rho": ["-1"]}, "bad-privacy"),
        ({"rho": ["a lot"]}, "bad-params"),
        ({"rho": [""]}, "bad-params"),
        ({"rho": ["1"], "epsilon": ["1"]}, "bad-privacy"),
        ({"rho": [str(n) for n in range(1, MAX_AMOUNTS + 2)]}, "bad-privacy"),
    ],
)
def test_amounts_that_cannot_be_meant_are_refused_in_words(tmp_path: Path, amounts: dict, code: str):
    with pytest.raises(InputError) as caught:
        plan(job(tmp_path), **amounts)
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize("name", ["crosscheck/1", "table/1"])
def test_an_exact_job_has_nothing_to_plan(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    path = job(tmp_path)
    path.write_text(path.read_text("utf-8").replace("release/1", name), "utf-8")
    assert main(["plan", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{name} adds no noise" in said
    assert "hint: minshu explain" in said


def test_a_file_that_is_no_job_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = job(tmp_path)
    path.write_text(path.read_text("utf-8").replace("purpose =", "porpoise ="), "utf-8")
    assert main(["plan", str(path)]) == 1
    assert "line 2" in capsys.readouterr().err
    path.write_bytes(b'job_type = "\xff"')
    assert main(["plan", str(path)]) == 1
    assert main(["plan", str(tmp_path / "none.toml")]) == 1


# --- what is printed


def test_plain_lines_say_amount_cost_and_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = job(tmp_path, sources=3)
    assert main(["plan", str(path), "--rho", "0.01, 0.1", "--lang", "en"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "release/1, P-2026-014: what each rho would buy"
    assert "3 departments" in lines[2]
    priced = [line for line in lines if line.startswith("rho = ")]
    # ε at δ = 1e-9 of a ρ of 0.01: by Canonne, Kamath and Steinke, over the ledger's orders.
    at = Cost.zcdp(Fraction(1, 100)).amount("approximate-dp", DELTA)
    assert at is not None
    assert priced[0].startswith("rho = 0.01: costs ρ = 0.01, ε = ")
    shown = re.search(r"ε = ([0-9.]+) \(δ = 1e-9\)", priced[0])
    assert shown is not None
    assert 0 <= Fraction(shown.group(1)) - at < Fraction(1, 1000)
    assert priced[1].startswith("rho = 0.1 (the job's own): costs ρ = 0.1")
    figures = [line for line in lines if line.startswith("  ") and "with 95 %" in line]
    assert len(figures) == len(priced)
    assert all(re.fullmatch(r"  .+: within ±[0-9,.]+ with 95 %", line) for line in figures)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_in_a_terminal_it_is_a_table_of_the_same_numbers(tmp_path: Path, language: str):
    found, screen = plan(job(tmp_path, TREE)), io.StringIO()
    found.show(Console(file=screen, force_terminal=True, width=120), language)
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert found.head(language) == text.splitlines()[:3]
    for choice in found.choices:
        (row,) = (line for line in text.splitlines() if line.strip().startswith(f"{float(choice.amount):g} "))
        assert all(cost in row for cost in choice.costs.values() if cost is not None)
        assert (("the job's own" if language == "en" else "任务文件所写") in row) == choice.own
    assert text.count("±") == len(widths(found))


def test_as_json_it_holds_the_exact_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(job(tmp_path)), "--epsilon", "1,2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["param"], said["sources"], said["delta"]) == ("epsilon", 1, "0.000000001")
    for choice, epsilon in zip(said["choices"], (1, 2), strict=True):
        assert Cost.decode(choice["cost"]).amount("pure-dp") == epsilon
        assert choice["costs"]["pure-dp"] == str(epsilon)
        assert all(figure["within"] > 0 for figure in choice["figures"])


def test_one_measure_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        main(["plan", str(job(tmp_path)), "--rho", "1", "--epsilon", "1"])
    assert leaving.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_analysts_have_it_in_notebooks(tmp_path: Path):
    found = minshu.plan(job(tmp_path), rho=[0.1])
    assert isinstance(found, minshu.Plan)
    assert str(found).splitlines() == found.lines("en")
