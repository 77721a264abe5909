"""Every byte of every file of a small bundle, changed in turn: found out, with the file named.

A signature line by a key that the auditor did not bring says nothing, as C2SP has it, and so do its bytes;
with the keys at hand, no byte is without meaning.
"""

import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from journals import signer
from several import ROOTS, Clock, Collaboration, key

from audit import timestamps
from audit.bundle import export, open_bundle
from audit.merkle import decode_bundle, encode_bundle
from audit.note import Note, VerifierKey, cosign
from audit.review import Review, review
from audit.trust import Trust
from protocols.envelope import ROTATION, sign
from protocols.ids import Digest, NodeName
from protocols.wire import Rotation

SAMPLE = 100
"""Bytes changed in the normal run; all of them in the long one."""


class Authority:
    """A time-stamping authority, by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        self.openssl(f"req -x509 {curve} -keyout root.key -out root.pem -subj /CN=Root -days 9")
        self.openssl(f"req -new {curve} -keyout tsa.key -out tsa.csr -subj /CN=Stamps")
        (folder / "ext").write_text("extendedKeyUsage = critical, timeStamping\n")
        self.openssl(
            "x509 -req -in tsa.csr -CA root.pem -CAkey root.key -CAcreateserial"
            " -days 9 -extfile ext -out tsa.pem"
        )
        (folder / "serial").write_text("01\n")
        (folder / "tsa.cnf").write_text(
            "[tsa]\ndefault_tsa = t\n[t]\nserial = serial\nsigner_cert = tsa.pem\nsigner_key = tsa.key\n"
            "signer_digest = sha256\ndefault_policy = 1.3.6.1.4.1.99999.1\ndigests = sha256\n"
            "certs = root.pem\ness_cert_id_alg = sha256\n"
        )

    def openssl(self, command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=self.folder, check=True, capture_output=True)

    @property
    def root(self) -> bytes:
        return (self.folder / "root.pem").read_bytes()

    def stamp(self, checkpoint: bytes) -> bytes:
        (self.folder / "q.tsq").write_bytes(timestamps.request(checkpoint))
        self.openssl("ts -reply -queryfile q.tsq -config tsa.cnf -out r.tsr")
        return (self.folder / "r.tsr").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trust]]:
    """A bundle with everything that a bundle may hold, and what an auditor brings for it."""
    home = tmp_path_factory.mktemp("flips")
    city = Collaboration(home, clock=Clock(datetime.now(UTC) - timedelta(days=1)), mldsa=("health",))
    city.sign_roster()
    police = city["police"]
    evidence = police.journal.put_object(b"a document")
    police.record("job.refused", {"code": "no-rule"}, job="sha256:" + "ab" * 32, refs=[evidence])
    city.witnessed()
    tsa = home / "tsa"
    tsa.mkdir()
    authority = Authority(tsa)
    checkpoint = police.journal.checkpoint()
    timestamps.attach(police.directory, checkpoint, authority.stamp(checkpoint))
    police.refuse(2)
    city.witnessed("police", "health", by=["health", "housing", "police"])
    export(police.directory, home / "out")
    yield home / "out", replace(city.trust, roots=ROOTS, tsa_roots=authority.root)
    city.close()


@pytest.fixture
def bundle(made: tuple[Path, Trust], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def trust(made: tuple[Path, Trust]) -> Trust:
    return made[1]


def reviewed(path: Path, trust: Trust) -> Review:
    with open_bundle(path) as bundle:
        return review(bundle, trust)


def findings(found: Review) -> list[tuple[str, str, str]]:
    return [(each.code, each.where, each.what) for check in found.checks for each in check.findings]


def files(path: Path) -> list[str]:
    return sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())


def test_the_bundle_as_it_was_made_has_nothing_wrong_and_holds_every_kind_of_file(bundle, trust):
    found = reviewed(bundle, trust)
    # The entries are made up: what does not follow from a policy is for other tests.
    assert {code for code, _, _ in findings(found)} == set()
    assert found.ok
    assert {name.partition("/")[0] for name in files(bundle)} == {
        "checkpoint", "checkpoint.cosigned", "checkpoint.old", "objects", "tile", "timestamps", "witnessed",
    }  # fmt: skip
    head = found.heads[0]
    assert (head.votes, len(head.cosigned)) == (("health.gz.example", "housing.gz.example"), 3)


def every_byte(path: Path) -> list[tuple[str, int]]:
    return [(name, at) for name in files(path) for at in range((path / name).stat().st_size)]


def check_flips(bundle: Path, trust: Trust, places: list[tuple[str, int]], draw: random.Random) -> None:
    for name, at in places:
        path = bundle / name
        data = path.read_bytes()
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        found = reviewed(bundle, trust)
        path.write_bytes(data)
        said = findings(found)
        assert not found.ok, f"byte {at} of {name} was changed unnoticed"
        named = any(name in where or name in what for _, where, what in said)
        # In a bundle of entries, what is wrong is said of the entry.
        named |= name.startswith("tile/entries/") and any(where.startswith("entry ") for _, where, _ in said)
        assert named, f"byte {at} of {name}: {said[:3]}"


def test_a_sample_of_bytes_of_every_file_changed_is_found_out_with_the_file(bundle, trust):
    draw = random.Random(20261201)
    places = draw.sample(every_byte(bundle), SAMPLE)
    # Every file is among them, and the ends of each.
    places += [(name, at) for name in files(bundle) for at in (0, (bundle / name).stat().st_size - 1)]
    check_flips(bundle, trust, places, draw)


@pytest.mark.long
def test_every_byte_of_every_file_changed_is_found_out_with_the_file(bundle, trust):
    check_flips(bundle, trust, every_byte(bundle), random.Random(1))


def test_every_file_cut_short_lengthened_emptied_or_gone_is_found_out(bundle, trust):
    whole = files(bundle)
    optional = {"checkpoint.cosigned", "checkpoint.old"} | {n for n in whole if n.startswith("witnessed/")}
    for name in whole:
        path = bundle / name
        data = path.read_bytes()
        for changed in (data[:-1], data[: len(data) // 2], b"", data + b"\0", data + data[-40:]):
            path.write_bytes(changed)
            assert not reviewed(bundle, trust).ok, name
        path.unlink()
        found = reviewed(bundle, trust)
        # Nobody owes a second checkpoint, nor a time stamp.
        assert found.ok == (name in optional or name.endswith(".tsr")), (name, findings(found))
        path.write_bytes(data)


def test_a_line_by_an_unknown_key_says_nothing_and_is_pointed_out(bundle, trust):
    note = Note.decode((bundle / "checkpoint").read_bytes())
    stranger = key("stranger")
    vkey = VerifierKey("stranger.example/witness/1", 4, stranger.public_key)
    more = note.with_lines([cosign(note.text, vkey, stranger.sign, 1)])
    (bundle / "checkpoint").write_bytes(more.encode())
    found = reviewed(bundle, trust)
    assert found.ok
    assert found.notices == (
        "checkpoint: one signature line is by keys that you did not bring; they say nothing",
    )


@pytest.mark.parametrize("what", ["name", "id", "signature", "time"])
def test_a_cosignature_by_a_known_key_must_hold_and_bear_its_name(bundle, trust, what):
    note = Note.decode((bundle / "checkpoint").read_bytes())
    (at, line) = next((n, line) for n, line in enumerate(note.signatures) if "health" in line.name)
    changed: dict[str, Any] = {
        "name": {"name": line.name.replace("health", "wealth")},
        "id": {"key_id": bytes(4)},
        "signature": {"signature": line.signature[:-1] + b"\0"},
        "time": {"signature": bytes(8) + line.signature[8:]},
    }[what]
    lines = list(note.signatures)
    lines[at] = replace(line, **changed)
    (bundle / "checkpoint").write_bytes(replace(note, signatures=tuple(lines)).encode())
    code = "bad-signature" if what in ("signature", "time") else "mislabelled-signature"
    assert (code, "checkpoint") in {(found, where) for found, where, _ in findings(reviewed(bundle, trust))}


# -- histories ---------------------------------------------------------------------------------------------


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


def test_entries_in_another_order_are_found_out(bundle, trust):
    path = bundle / "tile/entries/000.p/5"
    entries = decode_bundle(path.read_bytes(), 5)
    path.write_bytes(encode_bundle([*entries[:3], entries[4], entries[3]]))
    codes = {code for code, _, _ in findings(reviewed(bundle, trust))}
    assert {"wrong-seq", "tile-mismatch", "root-mismatch"} <= codes


def test_parts_of_another_logs_bundle_do_not_pass_for_this_logs(city):
    for short in ("police", "health"):
        city[short].refuse(2)
        export(city[short].directory, city.home / f"{short}.out")
    police, health = city.home / "police.out", city.home / "health.out"
    for name in ("checkpoint", "tile/entries/000.p/3", "tile/0/000.p/3", "checkpoint.old"):
        mine = (police / name).read_bytes()
        (police / name).write_bytes((health / name).read_bytes())
        assert not reviewed(police, city.trust).ok, name
        (police / name).write_bytes(mine)
    assert reviewed(police, city.trust).ok
    # A whole bundle in the place of another is that other log's, and says so.
    assert reviewed(health, city.trust).verdict.origin == city["health"].journal.origin
    only = Trust(keys=(city["police"].vkey,))
    assert {code for code, _, _ in findings(reviewed(health, only))} >= {"no-known-signature"}


def test_an_older_checkpoint_of_another_history_is_found_out_in_the_bundle_itself(city):
    """A fork: the folder goes on from one branch, and still shows a checkpoint of the other."""
    city["police"].refuse()
    twin = city.forked("police")
    city["police"].refuse()
    branch = city["police"].journal.checkpoint()
    twin.refuse(3)
    export(twin.directory, city.home / "out")
    (city.home / "out" / "checkpoint.old").write_bytes(branch)
    assert ("rewritten", "checkpoint.old") in {
        (code, where) for code, where, _ in findings(reviewed(city.home / "out", city.trust))
    }


def test_a_restored_backup_shows_against_the_checkpoint_that_was_kept(city):
    city["police"].refuse()
    shutil.copytree(city["police"].directory, city.home / "backup")
    city["police"].refuse()
    kept = city["police"].journal.checkpoint()
    with open_bundle(city.home / "backup") as bundle:
        assert review(bundle, city.trust).ok
        found = review(bundle, city.trust, earlier=kept)
    assert {code for code, _, _ in findings(found)} == {"shortened"}


def test_a_key_that_changed_is_followed_through_all_checkpoints(city):
    police = city["police"]
    police.refuse()
    city.witnessed("police")
    before, after = key(police.name), signer(7)
    size, root = police.journal.size, police.journal.root()
    facts = Rotation(
        NodeName("police.gz.example/node-a"),
        before.public_key,
        after.public_key,
        size,
        Digest("sha256:" + root.hex()),
        datetime(2026, 12, 1, tzinfo=UTC),
    )
    police.journal.rotate(after, sign(ROTATION, facts.encode(), [before, after]).encode())
    export(police.directory, city.home / "out")
    found = reviewed(city.home / "out", city.trust)
    assert found.ok
    assert [len(head.signed_by) for head in found.heads if head.file == "checkpoint"] == [2]


def test_a_checkpoint_file_of_another_log_is_named(city):
    for short in ("police", "health"):
        city[short].refuse(2)
        city.witnessed(short)
    export(city["police"].directory, city.home / "out")
    shutil.copy(city["health"].directory / "checkpoint.cosigned", city.home / "out" / "checkpoint.cosigned")
    assert ("wrong-origin", "checkpoint.cosigned") in {
        (code, where) for code, where, _ in findings(reviewed(city.home / "out", city.trust))
    }


def test_a_bundle_that_brings_keys_and_roots_of_its_own_convinces_nobody(city):
    """The operator opens a second log under the same name, with keys, roots and a roster that fit it."""
    city.sign_roster()
    city["police"].refuse()
    export(city["police"].directory, city.home / "out")
    out = city.home / "out"
    (out / "keys").write_text(f"{city['police'].vkey}\n")
    (out / "roots.json").write_bytes(ROOTS.encode())
    others = Trust(roots=replace(ROOTS, keys=tuple(sorted(key(f"other {n}").public_key for n in range(3)))))
    for trust in (Trust(), Trust(keys=(city["health"].vkey,)), others):
        found = reviewed(out, trust)
        assert not found.ok
        assert "no-known-signature" in {code for code, _, _ in findings(found)}
        assert not found.trust.rosters
    assert {where for code, where, _ in findings(found) if code == "unknown-file"} == {"keys", "roots.json"}
