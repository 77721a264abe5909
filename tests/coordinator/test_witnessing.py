"""The coordinator's journal before witnesses: nodes cosign it, and a restored backup goes no further."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from collaboration import HEALTH, INSURANCE, NODES, POLICE, STATISTICS, cosigner, signer
from loopback import LiveBureau

from audit.folder import COSIGNED
from audit.note import ED25519, Checkpoint, Note, VerifierKey, sign_note, verify_note
from coordinator.cli import main
from coordinator.home import Home
from coordinator.service import Coordinator
from coordinator.store import Entry
from coordinator.witnessing import ANSWER_S, contradicts, journal_status
from minshu.v1 import audit_pb2
from protocols.encoding import sha256_digest
from protocols.errors import MinshuError
from protocols.wire import RosterCoordinator, organisation_of

pytestmark = pytest.mark.alone  # a whole coordinator each time, 11 s together

ROOT = Path(__file__).parents[2]
SEEN = Entry("job.refused", {"code": "no-rule"}, job=sha256_digest(b"job"))


def say(live: LiveBureau, number: int = 1) -> None:
    """Have the journal say so many things more."""
    for at in range(number):
        live.coordinator.store.add_entry(replace(SEEN, job=sha256_digest(b"job %d" % at)))
    live.until(lambda: not live.coordinator.store.due_entries())


def covered(live: LiveBureau) -> bool:
    cosigner, journal = live.coordinator.witnessing.cosigner, live.coordinator._journal
    return not live.coordinator.store.due_entries() and cosigner.covered == journal.size


# -- cosignatures ------------------------------------------------------------------------------------


def test_the_journal_is_cosigned_by_a_quorum_of_the_other_organisations(live, capsys):
    live.start()
    live.until(lambda: covered(live))
    note = Note.decode((live.home.journal / COSIGNED).read_bytes())
    keys = [vkey for node in NODES for vkey in cosigner(node).vkeys]
    _, signers = verify_note(note.encode(), keys)
    assert len({organisation_of(key.name) for key in signers}) >= 3
    status = journal_status(live.home, live.roster)
    assert status.size == status.cosigned == live.coordinator._journal.size
    assert (status.witnesses.quorum, len(status.witnesses.organisations)) == (3, 4)
    assert main(["status", "--home", str(live.home.path)]) == 0
    running, journal, witnesses = capsys.readouterr().out.splitlines()
    assert running.startswith(f"listening: public {live.coordinator.public_address}")
    assert journal.endswith(f"{status.size} entries, {status.size} of them cosigned")
    assert witnesses.startswith("witnesses 3 of 4 organisations are needed; last: ")


def test_without_its_quorum_the_journal_goes_on_and_the_status_says_so(live):
    live.start(POLICE, HEALTH)
    say(live)
    live.until(lambda: live.nodes[HEALTH].seen.notes)
    assert live.coordinator.witnessing.cosigner.covered == 0
    status = journal_status(live.home, live.roster)
    assert (status.cosigned, status.size) == (0, live.coordinator._journal.size)
    assert "none of them cosigned" in status.lines()[0]
    live.start(INSURANCE)
    live.until(lambda: covered(live))


def test_a_node_of_the_coordinators_own_organisation_has_no_vote(live):
    roster = live.roster
    own = organisation_of(live.home.config.name)
    assert own not in journal_status(live.home, roster).witnesses.organisations
    there = replace(roster, nodes=(*roster.nodes, replace(roster.nodes[0], name=f"{own}/node-a")))
    witnesses = journal_status(live.home, there).witnesses
    assert set(witnesses.nodes) == set(NODES)


def test_what_a_witness_cannot_prove_ends_nothing(live):
    """It names a size that nobody has reached, and hands over other logs' and strangers' checkpoints."""
    origin, own = live.home.journal_origin, live.coordinator._journal.checkpoint()

    def note(name: str, by: str) -> bytes:
        text = Checkpoint(name, 10**6, bytes(32)).encode()
        return sign_note(text, VerifierKey(name, ED25519, signer(by).public_key), signer(by).sign).encode()

    lies = iter([note(origin, POLICE), note(f"{POLICE}/journal/1", POLICE), own[:-9], b"no note", b"", own])
    node = live.nodes[POLICE]
    node.witness["add_checkpoint"] = lambda _: {"cosigned": audit_pb2.Cosigned(status=409, body=b"1000000\n")}
    told = []

    def lie(asked):
        told.append(next(lies, own))
        statement = live.world.head(POLICE, asked.nonce, asked.log).statement
        return {"head": audit_pb2.HeadSaid(statement=statement, checkpoint=told[-1])}

    node.witness["ask_head"] = lie
    live.start(HEALTH, INSURANCE, STATISTICS)
    while len(told) < 6:
        number = len(told)
        live.start(POLICE)
        live.until(lambda number=number: len(told) > number)
        live.loop.run(node.stop())
    live.until(lambda: covered(live))
    assert live.coordinator.error is None
    assert not live.coordinator.failed.is_set()


def test_a_node_that_comes_back_is_asked_anew_though_an_answer_is_still_due(live):
    """A question that went to a connection which has ended would be waited for in vain."""
    asked, node = [], live.nodes[POLICE]
    node.witness["ask_head"] = lambda question: asked.append(question.nonce)
    for number in range(1, 3):
        live.start(POLICE)
        live.until(lambda number=number: len(asked) == number, seconds=ANSWER_S / 2)
        live.loop.run(node.stop())
    assert len(set(asked)) == 2


# -- an older copy -----------------------------------------------------------------------------------


def copy(home: Home, to: Path) -> None:
    """A backup: journal, its database, the store."""
    to.mkdir()
    for name in ("journal.db", "store.db", "journal"):
        found = home.path / name
        (shutil.copytree if found.is_dir() else shutil.copy)(found, to / name)


def restore(home: Home, backup: Path) -> None:
    for left in home.path.glob("*.db*"):
        left.unlink()
    shutil.rmtree(home.journal)
    shutil.copytree(backup, home.path, dirs_exist_ok=True)


def test_a_restored_backup_ends_the_coordinator_and_a_successor_goes_on(live, tmp_path, capsys):
    live.start()
    live.until(lambda: covered(live))
    live.stop_nodes()
    live.restart(lambda: copy(live.home, tmp_path / "backup"))
    live.start()
    say(live, 3)
    live.until(lambda: covered(live))
    seen = live.coordinator._journal.size
    live.stop_nodes()
    live.halt()
    restore(live.home, tmp_path / "backup")

    # The program itself: the nodes come back, and it ends with the reason.
    program = "import sys; from coordinator.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", "--home", str(live.home.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("listening")
    for node in live.nodes.values():
        live.loop.run(node.start())
    _, told = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "minshu-coordinator: error: " in told
    assert "minshu-coordinator journal successor" in told
    live.stop_nodes()

    # Its operator begins the next generation, from what a witness keeps.
    checkpoint = tmp_path / "seen"
    checkpoint.write_bytes(live.nodes[POLICE].seen.get(live.home.journal_origin))
    home = str(live.home.path)
    assert (
        main(
            [
                "journal",
                "successor",
                "--home",
                home,
                "--reason",
                "restored-backup",
                "--checkpoint",
                str(checkpoint),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert f"journal/2 follows {live.home.config.name}/journal/1, which had {seen} entries" in said
    assert (live.home.path / "journal.1" / "checkpoint").exists()
    live.boot()
    journal = live.coordinator._journal
    assert journal.origin == f"{live.home.config.name}/journal/2"
    live.until(lambda: not live.coordinator.store.due_entries())
    kinds = [(entry.kind, entry.body.get("code")) for entry in journal.entries()]
    assert kinds[:3] == [
        ("log.open", None),
        ("log.successor", "restored-backup"),
        ("roster.published", "carried-over"),
    ]
    assert journal.get_object(sha256_digest(live.coordinator.registry.roster_envelope))

    # Nobody cosigns it before a roster lists it; then everybody does.
    assert main(["status", "--home", home]) == 0
    assert "none before a roster lists this journal" in capsys.readouterr().out
    live.world.coordinator = RosterCoordinator(live.home.config.name, live.home.journal_vkey)
    live.roster = live.publish()
    live.start()
    live.until(lambda: covered(live))


def test_another_history_of_the_same_length_is_proof_and_an_earlier_state_is_none(live):
    live.start(POLICE)
    journal = live.coordinator._journal
    early = journal.checkpoint()
    say(live)
    key = VerifierKey.parse(journal.vkey)

    def signed(size: int, root: bytes) -> bytes:
        return sign_note(
            Checkpoint(journal.origin, size, root).encode(), key, live.home.signer().sign
        ).encode()

    assert not contradicts(journal, early)
    assert not contradicts(journal, journal.checkpoint())
    assert not contradicts(journal, signed(0, bytes(32)))
    assert contradicts(journal, signed(journal.size, bytes(32)))
    assert contradicts(journal, signed(2, bytes(32)))
    assert contradicts(journal, signed(journal.size + 1, bytes(32)))
    with pytest.raises(MinshuError):
        contradicts(journal, early[:-9])


# -- every entry once --------------------------------------------------------------------------------


@pytest.fixture
def stopped(live):
    """A home whose coordinator does not run."""
    live.halt()
    yield live
    live.boot()


def entries(home: Home) -> list[tuple[str, str]]:
    coordinator = Coordinator(home)
    try:
        coordinator.record_due()
        return [(entry.kind, entry.job) for entry in coordinator._journal.entries()]
    finally:
        coordinator.close()


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_crash_around_the_journals_commit_writes_no_entry_twice_and_loses_none(stopped, monkeypatch, after):
    before = entries(stopped.home)
    coordinator = Coordinator(stopped.home)
    due = [replace(SEEN, job=sha256_digest(b"job %d" % at), objects=(b"object %d" % at,)) for at in range(3)]
    for entry in due:
        coordinator.store.add_entry(entry)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    target, name = (coordinator.store, "recorded") if after else (coordinator._journal, "append")
    with monkeypatch.context() as patch:
        patch.setattr(target, name, crash)
        with pytest.raises(KeyboardInterrupt):
            coordinator.record_due()
    coordinator.store.close()
    coordinator._journal.close()
    assert entries(stopped.home) == before + [(entry.kind, entry.job) for entry in due]
    assert entries(stopped.home) == before + [(entry.kind, entry.job) for entry in due]


def test_an_entry_says_which_objects_it_rests_on_and_they_are_there(live):
    journal = live.coordinator._journal
    live.until(lambda: not live.coordinator.store.due_entries())
    (published,) = [entry for entry in journal.entries() if entry.kind == "roster.published"]
    envelope = live.coordinator.registry.roster_envelope
    assert published.refs == (sha256_digest(envelope),)
    assert journal.get_object(published.body["envelope_sha256"]) == envelope
