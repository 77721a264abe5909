"""A monitor that follows logs: silent while they go on, loud at the first thing that does not fit."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from journals import signer
from several import ROOTS, START, Collaboration, key

from audit.log import Journal
from audit.note import Checkpoint, Note, VerifierKey, sign_note
from audit.quorum import TrustPolicy
from audit.trust import Trust, quorum_of
from audit.watch import Kept, watch
from protocols.encoding import sha256_digest
from protocols.envelope import ROTATION, sign
from protocols.errors import DecodeError, InputError
from protocols.ids import Digest, NodeName
from protocols.wire import Rotation

JOB = "sha256:" + "ab" * 32


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


class Watching:
    """A monitor over some folders, look by look."""

    def __init__(self, city: Collaboration, *paths: Path, trust: Trust | None = None) -> None:
        self.city = city
        self.paths = paths
        self.trust = trust or city.trust
        self.state = city.home / "state"
        self.lines: list[str] = []

    def look(self) -> bool:
        self.lines.clear()
        return watch(self.paths, self.trust, self.state, tell=self.lines.append, every_s=None)

    def evidence(self) -> dict[str, str]:
        (folder,) = (self.state / "evidence").iterdir()
        return {path.name: path.read_text() for path in folder.iterdir()}

    def code(self) -> str:
        """Look, see that it fails, and return why; and see that it fails again."""
        assert not self.look()
        (said,) = (line for line in self.lines if "INCONSISTENT" in line)
        assert not self.look()
        assert "move it away" in self.lines[0]
        return said.rpartition("[")[2].rstrip("]")

    def clear(self) -> None:
        shutil.rmtree(self.state / "evidence")


@pytest.fixture
def police(city: Collaboration) -> Watching:
    city["police"].refuse(3)
    return Watching(city, city["police"].directory)


def test_a_log_that_grows_is_followed_and_every_step_is_told(city, police):
    origin = city["police"].journal.origin
    assert police.look()
    assert police.lines == [f"{origin}: first look: 4 entries, until {START:%Y-%m-%dT%H:%M:%S}.070Z"]
    assert police.look()
    assert police.lines == []
    for count in (1, 250, 3, 600):
        city["police"].refuse(count)
        assert police.look()
        assert len(police.lines) == 1
        new = "1 new entry" if count == 1 else f"{count} new entries"
        assert f" {new}, now " in police.lines[0]
    assert police.look()
    assert police.lines == []


def test_a_quorum_is_told_when_it_has_seen_more(city):
    city.sign_roster()
    watching = Watching(city, city["police"].directory, trust=Trust(roots=ROOTS))
    city.witnessed("police")
    assert watching.look()
    assert watching.lines[-1].endswith("a quorum has seen 2 entries: health.gz.example, housing.gz.example")
    city["police"].refuse(2)
    assert watching.look()
    assert not any("quorum" in line for line in watching.lines)
    city.witnessed("police")
    assert watching.look()
    assert watching.lines[-1].endswith("a quorum has seen 4 entries: health.gz.example, housing.gz.example")


def test_a_quorum_that_the_auditor_asks_for_is_told_too(city, police):
    enough = quorum_of(None, city.roster(), city["police"].journal.origin)
    policy = TrustPolicy.of([city["police"].vkey], enough)
    police.trust = replace(city.trust, quorum=policy)
    assert police.look()
    city.witnessed("police")
    assert police.look()
    assert "a quorum has seen 4 entries" in police.lines[-1]


def test_a_log_that_is_cut_or_put_back_is_loud_and_both_checkpoints_are_kept(city, police):
    shutil.copytree(city["police"].directory, city.home / "backup")
    before = (city["police"].directory / "checkpoint").read_text()
    city["police"].refuse(2)
    assert police.look()
    after = (city["police"].directory / "checkpoint").read_text()
    police.paths = (city.home / "backup",)
    assert police.code() == "shortened"
    evidence = police.evidence()
    assert (evidence["kept"], evidence["shown"]) == (after, before)
    assert "it shows 4 entries, 6 were seen before" in evidence["what"]


@pytest.mark.parametrize("more", [2, 5])
def test_a_fork_is_loud_at_the_same_size_and_at_a_larger_one(city, police, more):
    twin = city.forked("police")
    city["police"].refuse(2)
    assert police.look()
    twin.refuse(more)
    police.paths = (twin.directory,)
    assert police.code() == ("split-view" if more == 2 else "rewritten")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data.replace(b"no-rule", b"no-fule"), "tile-mismatch"),
        (lambda data: data.replace(b'"seq":', b'"seq": '), "trailing-bytes"),
        (lambda data: data.replace(b"job.refused", b"job.forgott"), "unknown-kind"),
        (lambda data: data[:-1], None),
    ],
)
def test_new_entries_are_held_to_the_same_rules_as_ever(city, police, change, code):
    assert police.look()
    city["police"].refuse(2)
    path = city["police"].directory / "tile/entries/000.p/6"
    data = path.read_bytes()
    at = data.rindex(b'{"actor"')
    path.write_bytes(data[:at] + change(data[at:]))
    found = police.code()
    assert code is None or found == code


@pytest.mark.parametrize("name", ["tile/0/000.p/6", "tile/entries/000.p/6"])
def test_a_tile_that_is_gone_or_changed_is_loud(city, police, name):
    assert police.look()
    city["police"].refuse(2)
    path = city["police"].directory / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    police.code()
    police.clear()
    path.unlink()
    assert police.code() == "missing"


def test_what_was_found_wrong_is_never_taken_over_and_is_not_forgotten_when_it_is_put_right(city, police):
    assert police.look()
    city["police"].refuse(2)
    path = city["police"].directory / "tile/0/000.p/6"
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    police.code()
    path.write_bytes(data)
    assert not police.look()
    assert police.evidence()["what"].startswith(city["police"].journal.origin)
    police.clear()
    assert police.look()
    assert "2 new entries" in police.lines[0]


def test_a_key_that_changes_with_proof_is_followed_and_without_it_is_loud(city, police):
    assert police.look()
    journal = city["police"].journal
    before, after = key(city["police"].name), signer(7)
    facts = Rotation(
        NodeName(city["police"].name),
        before.public_key,
        after.public_key,
        journal.size,
        Digest("sha256:" + journal.root().hex()),
        START,
    )
    journal.rotate(after, sign(ROTATION, facts.encode(), [before, after]).encode())
    shutil.copytree(city["police"].directory, city.home / "without")
    assert police.look()
    assert len(Kept.decode(next(police.state.glob("*.json")).read_bytes()).keys) == 2
    city["police"].journal.close()
    journal = city["police"].journal = Journal.open(
        city["police"].directory,
        database=city.home / "police.sqlite",
        origin=journal.origin,
        signer=after.sign,
        public_key=after.public_key,
        now=city.clock,
    )
    city["police"].refuse()
    assert police.look()
    shutil.rmtree(city.home / "without" / "objects")
    shutil.rmtree(police.state)
    police.paths = (city.home / "without",)
    assert police.code() == "missing-statement"


def test_a_checkpoint_signed_by_another_key_is_loud(city, police):
    assert police.look()
    city["police"].refuse()
    path = city["police"].directory / "checkpoint"
    text = Note.decode(path.read_bytes()).text
    other = replace(city["police"].vkey, public_key=signer(9).public_key)
    path.write_bytes(sign_note(text, other, signer(9).sign).encode())
    assert police.code() == "no-known-signature"


def test_a_cosignature_of_a_known_witness_that_does_not_hold_is_loud(city, police):
    city.witnessed("police")
    assert police.look()
    path = city["police"].directory / "checkpoint.cosigned"
    note = Note.decode(path.read_bytes())
    lines = [replace(line, signature=line.signature[:-1] + b"\0") for line in note.signatures]
    path.write_bytes(replace(note, signatures=tuple(lines)).encode())
    assert police.code() == "bad-signature"


# -- several logs ------------------------------------------------------------------------------------------


def test_what_one_witnessed_of_another_has_to_fit(city):
    city["police"].refuse()
    twin = city.forked("police")
    city["police"].refuse()
    city.witnessed("police", by=["health"])
    twin.refuse(2)
    watching = Watching(city, twin.directory, city["health"].directory)
    assert watching.code() == "split-view"
    shown = Checkpoint.decode(Note.decode(watching.evidence()["shown"].encode()).text)
    assert shown.root == city["police"].journal.root_at(shown.size)


def conflict(city: Collaboration, notes: list[bytes], code: str = "split-view") -> None:
    """Health journals that these two checkpoints of the police do not go together."""
    digests = [city["health"].journal.put_object(note) for note in notes]
    size = Checkpoint.decode(Note.decode(notes[0]).text).size
    body = {"log": city["police"].journal.origin, "size": size, "code": code}
    names = dict(zip(("checkpoint_sha256", "conflicting_sha256"), digests, strict=True))
    city["health"].record("witness.conflict", body | names)


def test_evidence_that_a_witness_kept_is_believed_if_the_log_signed_it(city):
    watching = Watching(city, city["health"].directory)
    assert watching.look()
    city["police"].refuse()
    twin = city.forked("police")
    city["police"].refuse()
    twin.refuse()
    conflict(city, [city["police"].journal.checkpoint(), twin.journal.checkpoint()])
    assert not watching.look()
    assert watching.evidence()["kept"].encode() == city["police"].journal.checkpoint()
    assert watching.evidence()["shown"].encode() == twin.journal.checkpoint()


def test_a_witness_cannot_accuse_a_log_of_what_it_never_signed(city):
    watching = Watching(city, city["health"].directory, city["police"].directory)
    assert watching.look()
    city["police"].refuse()
    note = city["police"].journal.checkpoint()
    forged = note.replace(note.split(b"\n")[2], b"A" * 43 + b"=")
    conflict(city, [note, forged])
    assert watching.look()
    assert any("what is here does not show them" in line for line in watching.lines)


def test_two_sizes_of_different_histories_are_shown_by_the_log_itself(city):
    city["police"].refuse()
    twin = city.forked("police")
    city["police"].refuse(2)
    twin.refuse(5)
    watching = Watching(city, city["health"].directory, twin.directory)
    assert watching.look()
    conflict(city, [city["police"].journal.checkpoint(), twin.journal.checkpoint()], "no-consistency-proof")
    assert watching.code() == "split-view"


def test_a_new_generation_may_not_leave_out_what_was_seen_of_the_old_one(city, police):
    assert police.look()
    seen = Checkpoint.decode(Note.decode(city["police"].journal.checkpoint()).text)
    origin = seen.origin[:-1] + "2"
    after = key(city["police"].name)
    for size, root, good in (
        (seen.size - 1, bytes(32), False),
        (seen.size, bytes(32), False),
        (seen.size, seen.root, True),
    ):
        folder = city.home / f"next-{size}-{good}"
        if folder.exists():
            shutil.rmtree(folder)
            (city.home / "next.sqlite").unlink()
        with Journal.open(
            folder,
            database=city.home / "next.sqlite",
            origin=origin,
            signer=after.sign,
            public_key=after.public_key,
            now=city.clock,
        ) as journal:
            journal.record(
                "log.successor",
                {
                    "checkpoint_sha256": sha256_digest(b""),
                    "log": seen.origin,
                    "size": size,
                    "root": "sha256:" + root.hex(),
                },
            )
            vkey = replace(city["police"].vkey, name=origin)
        police.paths = (folder,)
        police.trust = Trust(keys=(vkey,))
        assert police.look() == good
        if not good:
            police.clear()
        for path in city.home.glob("next.sqlite*"):
            path.unlink()


def test_a_witness_cannot_make_up_a_checkpoint_of_another_log_for_a_monitor(city):
    city["police"].refuse()
    city.witnessed("police", by=["health"])
    (path,) = (city["health"].directory / "witnessed").iterdir()
    text = Note.decode(path.read_bytes()).text.split(b"\n")
    made_up = b"\n".join([*text[:2], b"A" * 43 + b"=", b""])
    lines = city["health"].witness.sign(made_up, int(city.clock.at.timestamp()))
    path.write_bytes(Note(made_up, tuple(lines)).encode())
    watching = Watching(city, city["police"].directory, city["health"].directory)
    assert watching.look()


def test_a_proof_that_was_spoiled_accuses_no_log_that_has_both_trees(city):
    watching = Watching(city, city["health"].directory, city["police"].directory)
    assert watching.look()
    first = city["police"].journal.checkpoint()
    city["police"].refuse()
    conflict(city, [first, city["police"].journal.checkpoint()], "no-consistency-proof")
    assert watching.look()
    assert not any("two views" in line for line in watching.lines)


def test_a_witness_that_lies_about_the_time_is_named_once_and_fails_no_other_log(city, police):
    city.sign_roster()
    police.trust = Trust(keys=city.trust.keys, roots=ROOTS)
    text = Note.decode(city["police"].journal.checkpoint()).text
    lines = city["health"].witness.sign(text, 1000)
    city["police"].journal.add_cosignatures(text, lines, quorum=False)
    assert police.look()
    assert any("health.gz.example/node-a/witness/1" in line for line in police.lines)


# -- whose log it is ---------------------------------------------------------------------------------------


def test_another_log_in_a_folder_that_was_followed_is_loud(city, police):
    assert police.look()
    before = (city["police"].directory / "checkpoint").read_text()
    shutil.rmtree(city["police"].directory)
    shutil.copytree(city["health"].directory, city["police"].directory)
    assert police.code() == "another-log"
    assert police.evidence()["kept"] == before
    assert police.evidence()["what"].startswith(city["police"].journal.origin)


def test_what_is_kept_of_a_followed_log_cannot_be_lost_unnoticed(city, police):
    assert police.look()
    (kept,) = police.state.glob("*.json")
    kept.unlink()
    with pytest.raises(InputError) as caught:
        police.look()
    assert caught.value.code == "bad-watch-state"


@pytest.mark.parametrize(
    ("generation", "says", "good"), [(2, True, True), (2, False, False), (3, True, False), (1, True, False)]
)
def test_only_the_next_generation_that_says_so_takes_a_logs_place(city, police, generation, says, good):
    assert police.look()
    seen = Checkpoint.decode(Note.decode(city["police"].journal.checkpoint()).text)
    node = city["police"].name if generation > 1 else city["health"].name
    origin, after = f"{node}/journal/{generation}", key(city["police"].name)
    shutil.rmtree(city["police"].directory)
    with Journal.open(
        city["police"].directory,
        database=city.home / "next.sqlite",
        origin=origin,
        signer=after.sign,
        public_key=after.public_key,
        now=city.clock,
    ) as journal:
        body = {
            "checkpoint_sha256": sha256_digest(b""),
            "log": seen.origin,
            "size": seen.size,
            "root": "sha256:" + seen.root.hex(),
        }
        if not says:
            body["log"] = city["health"].journal.origin
        journal.record("log.successor", body)
        police.trust = Trust(keys=(*city.trust.keys, VerifierKey.parse(journal.vkey)))
    if good:
        assert police.look()
        assert police.look()
        assert police.lines == []
    else:
        assert police.code() == "another-log"


@pytest.mark.parametrize("how", ["empty", "destroyed", "gone"])
def test_one_look_that_could_not_follow_every_log_is_no_success(city, police, how):
    city["health"].refuse()
    police.paths = (*police.paths, city["health"].directory)
    if how != "empty":
        assert police.look()
    checkpoint = city["police"].directory / "checkpoint"
    if how == "destroyed":
        checkpoint.write_text("gone")
    elif how == "gone":
        checkpoint.unlink()
    else:
        shutil.rmtree(city["police"].directory)
        city["police"].directory.mkdir()
    assert not police.look()
    assert any("police: cannot be followed: " in line for line in police.lines)
    assert not (police.state / "evidence").exists()


def test_a_log_that_breaks_the_look_at_it_is_kept_as_evidence(city, police, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr("audit.watch.verify_directory", broken)
    assert police.code() == "unreviewable"


# -- the monitor itself ------------------------------------------------------------------------------------


def test_it_goes_on_until_interrupted_and_all_was_well_then(city, police):
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        assert seconds == 5
        looks += 1
        if looks == 4:
            raise KeyboardInterrupt
        city["police"].refuse()

    assert watch(police.paths, police.trust, police.state, tell=police.lines.append, every_s=5, sleep=sleep)
    assert [line.partition(": ")[2].partition(",")[0] for line in police.lines] == [
        "first look: 4 entries", "1 new entry", "1 new entry", "1 new entry",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "checkpoint"])
def test_a_log_that_cannot_be_read_for_a_while_is_told_once_and_followed_again(city, police, name):
    assert police.look()
    path = city["police"].directory / name
    away = city.home / "elsewhere"
    told: list[str] = []
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            path.rename(away)
        if looks == 4:
            away.rename(path)
            city["police"].refuse()
        if looks == 6:
            raise KeyboardInterrupt

    assert watch(police.paths, police.trust, police.state, tell=told.append, every_s=1, sleep=sleep)
    gone, back = told
    assert gone.startswith("police: cannot be followed: ")
    assert "1 new entry" in back


def test_a_folder_that_is_not_there_at_first_is_a_mistake_of_whoever_asks(city, police):
    police.paths = (city.home / "nowhere",)
    with pytest.raises(InputError) as caught:
        police.look()
    assert caught.value.code == "no-folder"


def test_two_monitors_do_not_share_a_state_and_a_damaged_one_is_refused(city, police):
    def second(_: float) -> None:
        with pytest.raises(InputError) as caught:
            watch(police.paths, police.trust, police.state, tell=print, every_s=None)
        assert caught.value.code == "state-locked"
        raise KeyboardInterrupt

    watch(police.paths, police.trust, police.state, tell=police.lines.append, every_s=1, sleep=second)
    (state,) = police.state.glob("*.json")
    good = json.loads(state.read_bytes())
    damages: list[Callable[[dict], object]] = [
        lambda d: d | {"origin": "x"}, lambda d: d | {"schema": "y"}, lambda d: d | {"checkpoint": "z"},
    ]  # fmt: skip
    for damage in damages:
        state.write_text(json.dumps(damage(good), sort_keys=True, separators=(",", ":")))
        with pytest.raises(InputError) as caught:
            police.look()
        assert caught.value.code == "bad-watch-state"
    with pytest.raises(DecodeError):
        Kept.decode(b"{}")


def test_a_log_that_no_trusted_key_is_of_is_never_taken_over(city, police):
    police.trust = Trust(keys=(city["health"].vkey,))
    assert police.code() == "no-known-signature"
    assert not list(police.state.glob("*.json"))
