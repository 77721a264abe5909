"""Workers and their party touch no network: the kernel's own record of a whole training says so."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `train` is not installed")

ROOT = Path(__file__).resolve().parents[3]

TRAINING = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from trainer_case import Town, install, logistic, tables
folder = Path(sys.argv[1])
install(folder, logistic())
with Town(folder, tables(2), rounds=2) as town:
    town.play()
print("trained")
"""


@pytest.mark.alone
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_process_of_a_training_makes_a_socket(tmp_path):
    log = tmp_path / "calls"
    command = ["strace", "-f", "-qq", "-e", "trace=%network", "-o", log, sys.executable, "-c", TRAINING]
    ran = subprocess.run(
        [*command, tmp_path, ROOT / "tests"], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    if "Operation not permitted" in ran.stderr and "trained" not in ran.stdout:
        pytest.skip("processes cannot be traced here")
    assert ran.stdout == "trained\n", ran.stderr
    calls = [
        line for line in log.read_text().splitlines() if not re.search(r"exited with|killed by|SIG", line)
    ]
    assert calls == []


def test_the_environment_of_a_worker_holds_nothing_of_the_nodes(tmp_path, monkeypatch):
    from trainer_case import Town, install, logistic, tables

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MINSHU_SECRET", "s3cret")
    install(tmp_path, logistic())
    with Town(tmp_path, tables(1)) as town:
        town.begin(2)
        (worker,) = town.started[2]
        # A worker cannot be traced, so only root may look at it.
        if os.geteuid() == 0:
            own = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
            assert not [each for each in own if b"s3cret" in each]
            assert {b"FLWR_TELEMETRY_ENABLED=0", b"FLWR_DISABLE_UPDATE_CHECK=1"} <= set(own)
