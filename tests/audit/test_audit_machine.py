"""Random histories of appends, crashes and cosignatures, beside a Merkle tree that others wrote.

pymerkle hashes as RFC 6962 does and shares no code with this project. After every step the journal's roots
are its roots, its inclusion proofs the same hashes in the same order, and each one's consistency proofs hold
for the other's roots.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from journals import ORIGIN, Place, signer
from pymerkle import InmemoryTree
from pymerkle import verify_consistency as accepted
from test_audit_cosigned_journal import NAMES, Witness

from audit import log
from audit.folder import Folder
from audit.merkle import leaf_hash, verify_consistency
from audit.note import Checkpoint, Note, VerifierKey, verify_note
from audit.verify import verify_directory
from protocols.errors import StateConflict

WITNESSES = [Witness(number) for number in range(3)]


def outcome(call: Callable[[], None]) -> str:
    try:
        call()
    except StateConflict as error:
        return error.code
    return "done"


class Breaking(Folder):
    """A folder whose disk fails at write number `at`, before or after persisting it."""

    at = -1
    after = False

    def write(self, path: str, data: bytes) -> None:
        Breaking.at -= 1
        if Breaking.at == 0 and not Breaking.after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(path, data)
        if Breaking.at == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Histories(RuleBasedStateMachine):
    """One journal, its oracle, and what of its checkpoints had a quorum."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.place = Place(self.root / "0")
        self.lives = 0
        self.key = 0
        self.cosigned = 0
        self.oracle = InmemoryTree(algorithm="sha256")
        self.texts: dict[int, bytes] = {}
        self.hot = log._HOT_BUNDLES, log._PACKED_AT_ONCE
        log._HOT_BUNDLES, log._PACKED_AT_ONCE = 0, 1

    @initialize()
    def start(self) -> None:
        Breaking.at = -1
        self.journal = self.place.open_with(signer(0), folder=Breaking)

    def teardown(self) -> None:
        self.journal.close()
        log._HOT_BUNDLES, log._PACKED_AT_ONCE = self.hot
        shutil.rmtree(self.root)

    @rule(count=st.sampled_from([1, 1, 2, 3, 100, 255, 256]))
    def append(self, count: int) -> None:
        self.place.fill(self.journal, count)

    @rule()
    def roll_back(self) -> None:
        with pytest.raises(ZeroDivisionError):
            self.place.fill_and_fail(self.journal)

    @rule()
    def rotate(self) -> None:
        self.place.rotate(self.journal, signer(self.key), signer(self.key + 1))
        self.key += 1

    @rule(data=st.data(), quorum=st.booleans())
    def cosign(self, data: st.DataObject, quorum: bool) -> None:
        size = data.draw(st.sampled_from(sorted(self.texts)[-3:]))
        by = data.draw(st.sets(st.sampled_from(range(3)), min_size=1))
        text = self.texts[size]
        lines = [WITNESSES[number].line(text) for number in sorted(by)]
        done = outcome(lambda: self.journal.add_cosignatures(text, lines, quorum=quorum))
        assert done in ("done", "journal-key-rotated")
        if quorum and done == "done":
            self.cosigned = max(self.cosigned, size)

    @rule(at=st.integers(1, 6), after=st.booleans(), count=st.sampled_from([1, 2, 255]))
    def fail_while_publishing(self, at: int, after: bool, count: int) -> None:
        Breaking.at, Breaking.after = at, after
        done = outcome(lambda: self.place.fill(self.journal, count))
        assert done in ("done", "journal-unpublished")
        Breaking.at = -1
        self.journal.publish()

    @rule(at=st.integers(1, 3), after=st.booleans())
    def fail_while_cosigning(self, at: int, after: bool) -> None:
        Breaking.at, Breaking.after = at, after
        text = self.texts[self.journal.published]
        lines = [WITNESSES[0].line(text)]
        done = outcome(lambda: self.journal.add_cosignatures(text, lines, quorum=True))
        assert done in ("done", "journal-write-failed")
        Breaking.at = -1
        self.journal.add_cosignatures(text, lines, quorum=True)
        self.cosigned = self.journal.published

    @rule(at=st.integers(0, 6), after=st.booleans())
    def crash(self, at: int, after: bool) -> None:
        """Leave everything as it lies on disk in this moment, and start again from there."""
        Breaking.at, Breaking.after = at, after
        assert outcome(lambda: self.place.fill(self.journal, 2)) in ("done", "journal-unpublished")
        Breaking.at = -1
        self.lives += 1
        fresh = Place(self.root / str(self.lives), clock=self.place.clock)
        shutil.copytree(self.place.home, fresh.home)
        self.journal.close()
        shutil.rmtree(self.place.home)
        self.place = fresh
        self.journal = fresh.open_with(signer(self.key), folder=Breaking)

    @invariant()
    def everything_agrees(self) -> None:
        self.the_tree_is_the_one_that_others_compute()
        self.the_folder_tells_one_story()

    def the_tree_is_the_one_that_others_compute(self) -> None:
        size, known = self.journal.size, self.oracle.get_size()
        for entry in self.journal.entries(known):
            self.oracle.append_entry(entry.encode())
        assert self.journal.published == size == self.oracle.get_size()
        self.texts[size] = Note.decode(self.journal.checkpoint()).text
        root = self.oracle.get_root(size)
        assert self.journal.root() == root == Checkpoint.decode(self.texts[size]).root
        for at in {1, known or 1, size // 2 or 1, size}:
            assert self.journal.root_at(at) == self.oracle.get_root(at)
            leaf, *siblings = self.oracle.prove_inclusion(at, size).path  # counted from one
            assert siblings == self.journal.inclusion_proof(at - 1, size)
            assert leaf == leaf_hash(next(self.journal.entries(at - 1)).encode())
            # Theirs has another form than RFC 6962's: each is held against the other's roots.
            accepted(self.journal.root_at(at), root, self.oracle.prove_consistency(at, size))
            proof = self.journal.consistency_proof(at, size)
            verify_consistency(at, self.oracle.get_root(at), size, self.oracle.get_root(size), proof)

    def the_folder_tells_one_story(self) -> None:
        keys = [VerifierKey(ORIGIN, 1, signer(number).public_key) for number in range(self.key + 1)]
        verdict = verify_directory(self.place.directory, keys)
        assert (verdict.problems, verdict.size) == ((), self.journal.size)
        sizes = []
        for name in NAMES:
            path = self.place.directory / name
            if not path.exists():
                sizes.append(0)
                continue
            checkpoint = Checkpoint.decode(verify_note(path.read_bytes(), keys)[0].text)
            assert checkpoint.root == self.oracle.get_root(checkpoint.size)
            sizes.append(checkpoint.size)
        newest, cosigned, old = sizes
        assert newest == self.journal.size
        assert cosigned == self.cosigned == self.journal.cosigned_size
        assert old < newest
        if 0 < cosigned < newest:
            assert old == cosigned


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_random_histories_give_the_roots_and_proofs_of_another_implementation():
    machine = seed(20261201)(Histories)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=6, stateful_step_count=10, database=None, **QUIET)
    )


@pytest.mark.long
@pytest.mark.parametrize("number", range(4))
def test_many_random_histories_do(number):
    """Seeds 1 to 4."""
    machine = seed(number + 1)(Histories)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=20, database=None, **QUIET)
    )
