"""Both sides of the matching figure work on the same lists, and a wrong answer is no figure."""

import ast
import os
import socket
import sys
import threading
import time
import tomllib
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.csv as pa_csv
import pytest

from bench import match
from bench.peers import RR22, pair, play
from bench.peers.pair import PARTY, Peer
from bench.rig.lists import COLUMN, MAX_PERSONS, write_lists
from bench.rig.usage import Sample, Sampler
from bench.rig.wire import Wire
from demo.collaboration import policy_text
from policies.jobfile import load_job
from policies.parse import parse_policy
from protocols.identifiers import demo_area_table, normalise
from protocols.jobs import job_type

ZERO = "sha256:" + "0" * 64

PLAIN = """
import json, sys, time
_, _, rank, table, out, _, _ = sys.argv[1:]
print(json.dumps({"ready": True}), flush=True)
sys.stdin.readline()
%s
now = time.monotonic()
folder, _, _ = table.rpartition("/")
texts = [open(f"{folder}/{name}-60.csv").read() for name in ("receiver", "sender")]
both = [set(text.split()[1:]) for text in texts]
if rank == "0":
    open(out, "w").write("id\\n" + "".join(f"{key}\\n" for key in both[0] & both[1]))
used = {"started": now, "connected": now, "ended": now + 2, "cpu_s": 1.5, "rss_mb": 30.0 + int(rank)}
print(json.dumps(used | {"found": -1, "sent": 500_000}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path, 60)


def stand_in(monkeypatch, tmp_path, line=""):
    """Have a program that compares in the clear take the place of a peer's party."""
    party = tmp_path / "plain.py"
    party.write_text(PLAIN % line)
    monkeypatch.setattr(pair, "PARTY", party)
    monkeypatch.setattr(pair, "interpreter", lambda: Path(sys.executable))


def test_half_of_each_list_is_in_common_and_every_number_is_valid(tmp_path):
    made = write_lists(tmp_path, 50_000)
    as_text = pa_csv.ConvertOptions(column_types={COLUMN: "string"})
    tables = [pa_csv.read_csv(file, convert_options=as_text) for file in (made.receiver, made.sender)]
    columns = [table[COLUMN] for table in tables]
    sets = [set(column.to_pylist()) for column in columns]
    assert [len(each) for each in sets] == [50_000, 50_000]
    assert len(sets[0] & sets[1]) == made.common == 25_000
    for column in columns:
        found = normalise(column, "resident-id", as_of=date(2026, 11, 1), areas=demo_area_table())
        assert len(found.keys) == 50_000


@pytest.mark.parametrize("size", [61, MAX_PERSONS])
def test_lists_that_cannot_be_halved_or_filled_are_not_written(tmp_path, size):
    with pytest.raises(ValueError, match="persons"):
        write_lists(tmp_path, size)


def test_a_peers_figures_are_those_of_both_its_parties(lists, tmp_path, monkeypatch):
    stand_in(monkeypatch, tmp_path)
    used = play(RR22, lists)
    assert used.wall_s == pytest.approx(2, abs=1)
    assert (used.cpu_s, used.rss_mb, used.wire_mb) == (3.0, 31.0, 1.0)


def test_a_peers_wrong_answer_is_no_figure(lists, tmp_path, monkeypatch):
    stand_in(monkeypatch, tmp_path)
    with pytest.raises(RuntimeError, match="30 in common, 31 expected"):
        play(RR22, replace(lists, common=31))


def test_a_peer_that_ends_says_why(lists, tmp_path, monkeypatch):
    stand_in(monkeypatch, tmp_path, 'if rank == "1": sys.exit("out of memory")')
    with pytest.raises(RuntimeError, match="out of memory"):
        play(Peer("spu", "KKRT"), lists)


def test_a_peers_party_imports_nothing_that_its_environment_lacks():
    tree = ast.parse(PARTY.read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_the_wire_counts_every_byte_each_way_and_waits_for_who_listens_later():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Wire() as wire, socket.create_connection(("127.0.0.1", wire.before(port))) as dialled:
        dialled.sendall(b"x" * 300_000)

        def serve():
            with socket.create_server(("127.0.0.1", port)) as listening:
                taken, _ = listening.accept()
                with taken:
                    left = 300_000
                    while left:
                        left -= len(taken.recv(1 << 16))
                    taken.sendall(b"y" * 70_000)

        server = threading.Thread(target=serve)
        server.start()
        received = 0
        while piece := dialled.recv(1 << 16):
            received += len(piece)
        server.join()
    assert (received, wire.up, wire.down, wire.total) == (70_000, 300_000, 70_000, 370_000)


def test_what_a_process_used_is_known_for_any_moment():
    with Sampler([os.getpid()], lambda: 7) as sampler:
        began = time.time()
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        ended = time.time()
    before, after = sampler.at(began), sampler.at(ended)
    assert after.cpu_s - before.cpu_s == pytest.approx(0.1, abs=0.06)
    assert after.counted == 7
    sampler._samples = [Sample(10.0, 1.0, 0.0), Sample(20.0, 3.0, 50.0)]
    assert sampler.at(15.0) == Sample(15.0, 2.0, 25.0)
    assert sampler.at(5.0) == Sample(10.0, 1.0, 0.0)


@pytest.mark.parametrize("department", [match.RECEIVER, match.SENDER])
def test_the_policies_of_the_measurement_are_policies_that_open_every_list(department):
    analyst, dpo, owner = (f"sha256:{letter * 64}" for letter in "012")
    template = match.policy_text(department, ["1e4", "1e7"])
    text = policy_text(template, analyst=analyst, dpo=dpo, owner=owner, now=datetime.now(UTC))
    policy = parse_policy(text.encode()).policy
    assert set(policy.datasets) == set(tomllib.loads(text)["datasets"]) == {"list-1e4", "list-1e7"}


def test_the_job_of_the_measurement_is_a_match_of_two_lists_of_that_size():
    spec = load_job(
        match.job_text("1e6"), requester=ZERO, roster_digest=ZERO, now=datetime.now(UTC), nonce="0" * 32
    )
    job_type(spec.job_type).check(spec)
    assert spec.params["receiver_keys"] == 1_000_000
    assert {given.dataset for given in spec.inputs} == {"list-1e6"}


@pytest.mark.long  # nine processes; `python -m bench match` does the same at size
def test_real_nodes_match_two_lists_and_bytes_are_counted(tmp_path):
    lists = {"1e3": write_lists(tmp_path, 1000)}
    with match.running(tmp_path / "ours", lists) as rig:
        first = rig.run("1e3")
        rig.count_wire()
        second = rig.run("1e3")
    assert first.wire_mb == 0
    assert second.wire_mb > 0.03
    assert sum(first.steps) == pytest.approx(first.wall_s)
