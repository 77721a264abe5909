"""What the demo's command refuses, and that a refused run leaves everything as it was."""

import fcntl
import json
import subprocess
import sys

import pytest

from demo.cli import main
from demo.processes import Child, Children
from demo.run import Summary, _shortened_explanation, _shortened_prompt
from protocols.errors import Unreachable


def tree(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def said(capsys) -> tuple[str, str]:
    """Return the sentence and the hint on stderr; nothing else is there."""
    out, err = capsys.readouterr()
    assert out == ""
    sentence, hint = err.splitlines()
    assert sentence.startswith("minshu-demo: error: ")
    assert hint.startswith("hint: ")
    return sentence, hint


def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    assert main(["run", "--profile", "ci", "--out", str(out)]) == 1
    assert "exists and is no earlier demo's folder" in said(capsys)[0]
    assert tree(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused_and_untouched(tmp_path, capsys):
    out = tmp_path / "mine"
    out.write_text("years of work")
    assert main(["run", "--profile", "ci", "--out", str(out)]) == 1
    assert "exists and is no earlier demo's folder" in said(capsys)[0]
    assert out.read_text() == "years of work"


def test_while_another_demo_holds_the_lock_nothing_is_touched(tmp_path, capsys):
    with (tmp_path / ".out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        theirs = tmp_path / ".out.work-theirs"
        theirs.mkdir()
        assert main(["run", "--profile", "ci", "--out", str(tmp_path / "out")]) == 1
        assert "another demo is writing" in said(capsys)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", ".out.work-theirs"]


def test_a_failed_run_leaves_the_earlier_result_and_no_work_folder(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text("{}")
    assert main(["run", "--profile", "atlantis", "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert "no profile is called 'atlantis'" in err
    assert "hint: " in err
    assert tree(out) == {(out / "summary.json").relative_to(out): b"{}"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_times_in_the_summary_are_rounded_and_chinese_stays_readable():
    summary = Summary(refused=[{"case": "未签名", "reason": "x"}], seconds={"total": 1.23456})
    text = summary.to_json()
    assert "未签名" in text
    assert json.loads(text)["seconds"] == {"total": 1.23}


def test_what_is_quoted_in_part_says_so_and_keeps_what_counts():
    page = [
        "crosscheck/1",
        "",
        "n (matcher): refused",
        "  rule: R1",
        "  reason: no",
        "  cost: one",
        "",
        "next: wait",
    ]
    assert _shortened_explanation(page) == [
        "crosscheck/1", "n (matcher): refused", "  cost: one", "next: wait",
        "… and with each answer its rule, its reason and what to do",
    ]  # fmt: skip
    prompt = "job\n\n待审批\n  只有违规串通:\n    a\n    b\n    c\n    d\n\nAsks for approval\n  …"
    assert _shortened_prompt(prompt) == [
        "job", "", "待审批", "  只有违规串通:", "    a", "    b", "… 2 more such lines, and all in English",
    ]  # fmt: skip


def test_a_child_that_ends_by_itself_is_reported_with_its_last_words(tmp_path):
    with Children() as children:
        child: Child = children.start(
            "node", ["minshu-node", "run", "--home", str(tmp_path)], tmp_path / "log"
        )
        assert child.process.wait(20) == 1
        with pytest.raises(
            Unreachable, match=r"node ended with code 1: minshu-node: error: .* / hint: "
        ) as error:
            children.check()
    assert error.value.code == "process-ended"
    assert str(tmp_path / "log") in error.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_no_command_starts_in_a_child_whose_parent_is_gone(tmp_path):
    # Process 1 is not the parent of what this test starts.
    orphan = subprocess.run(
        [sys.executable, "-m", "demo.child", "1", "minshu-node", "init", "--home", str(tmp_path / "home"),
         "--name", "police.gz.example/node-a"],
        capture_output=True, timeout=30,
    )  # fmt: skip
    assert orphan.returncode == 1
    assert not (tmp_path / "home").exists()
