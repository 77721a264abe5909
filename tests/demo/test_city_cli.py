"""`minshu-demo city` as somebody new to it sees it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.cli import main


def test_a_city_is_built_and_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["city", "--profile", "ci", "--seed", "3", "--workers", "1", str(tmp_path / "city")]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "City of 10,000 people, profile ci, seed 3, extracts of 2025-12-31."
    assert "police/population                     10,859       9,200" in lines
    inflated = "uncancelled_per_mille, low_income_per_mille, owners_per_cent"
    assert f"Inflated here, so that few people show them: {inflated}." in lines
    assert "In 2 sources or more and not on the police's list: 571; of these 334 truly unregistered." in lines
    assert shown.err.splitlines() == [f"city ci: {part} %" for part in (25, 50, 75, 100)]


def test_json_carries_the_manifest_and_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["city", "--profile", "ci", "--json", str(tmp_path / "city")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["manifest"] == json.loads((tmp_path / "city/manifest.json").read_bytes())
    assert answer["expected"] == json.loads((tmp_path / "city/expected/scenario-1.json").read_bytes())
    assert answer["seconds"] > 0


def test_an_unknown_profile_is_answered_with_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["city", "--profile", "metropolis", str(tmp_path / "city")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "minshu-demo: error: no profile is called 'metropolis'; there are ci, demo, bench, city",
        "hint: choose demo for a first look, ci for tests",
    ]
    assert not (tmp_path / "city").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["city", "--seed", "one", "OUT"], "argument --seed: invalid int value: 'one'"),
        (["city"], "the following arguments are required: OUT"),
        (["town", "OUT"], "argument COMMAND: invalid choice: 'town'"),
    ],
)
def test_wrong_usage_is_an_error_and_a_hint(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"minshu-demo: error: {message}")
    assert second.startswith("hint: see minshu-demo")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_halfway_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "demo.cli", "city", "--profile", "bench", str(tmp_path / "city")]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 20
        while not any(tmp_path.glob(".city.*.partial/registers/*/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert any(tmp_path.iterdir())
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.splitlines()[-1] == "minshu-demo: error: interrupted"
    assert list(tmp_path.iterdir()) == []
