"""What an auditor brings: read strictly, and nothing of it ever taken from a bundle."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from several import NODES, QUORUM, ROOT_KEYS, ROOTS, START, Collaboration, key
from witnessing import keys_of

from audit.bundle import export, open_bundle
from audit.note import VerifierKey
from audit.quorum import TrustPolicy
from audit.trust import Trust, logs_of, quorum_of, read_trust, witnesses_in
from policies.keyfile import new_key, public_path
from protocols.envelope import ROSTER, key_id, sign
from protocols.errors import InputError
from protocols.ids import Organisation
from protocols.wire import NextRoots


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


# -- files -------------------------------------------------------------------------------------------------


def test_keys_are_read_from_files_and_folders_each_once(city, tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    for each in city.nodes:
        (folder / each.short).write_text(f"# {each.name}\n{each.vkey}\n\n")
        (folder / f"{each.short}.witness").write_text(
            "".join(f"{k}\n" for k in keys_of(each.name, mldsa=True).vkeys)
        )
    (folder / ".hidden").write_text("not a key")
    trust = read_trust(keys=[folder, folder / "police"])
    assert trust.log_keys == tuple(each.vkey for each in sorted(city.nodes, key=lambda node: node.short))
    assert [k.type for k in trust.witness_keys] == [4, 6] * 3
    assert len(trust.keys) == 9


def test_officers_are_named_by_public_key_or_by_key_id(tmp_path):
    public = new_key(tmp_path / "dpo.pem")
    (tmp_path / "owners").write_text(f"# the owner\n{key_id(key('owner').public_key)}\n")
    trust = read_trust(officers=[public_path(tmp_path / "dpo.pem"), tmp_path / "owners"])
    assert trust.officers == {key_id(public), key_id(key("owner").public_key)}


def test_a_quorum_file_brings_its_keys_along(city, tmp_path):
    policy = TrustPolicy.of(
        [city["police"].vkey], quorum_of(None, city.roster(), city["police"].journal.origin)
    )
    (tmp_path / "quorum").write_bytes(policy.encode())
    trust = read_trust(quorum=tmp_path / "quorum")
    assert trust.log_keys == (city["police"].vkey,)
    assert {k.name for k in trust.witness_keys} == {
        "health.gz.example/node-a/witness/1",
        "housing.gz.example/node-a/witness/1",
    }


@pytest.mark.parametrize(
    ("what", "content", "code"),
    [
        ("keys", b"", "bad-vkey-file"),
        ("keys", b"# only a remark\n", "bad-vkey-file"),
        ("keys", b"no key\n", "bad-vkey"),
        ("keys", b"\xff\xfe", "unreadable"),
        ("keys", b"x" * (2 << 20), "unreadable"),
        ("officers", b"somebody\n", "bad-officers-file"),
        ("officers", b"", "bad-officers-file"),
        ("officers", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", None),
        ("roots", b"{}", "bad-roots"),
        ("roots", b"sha256:" + b"0" * 64, "bad-roots"),
        ("quorum", b"quorum of-nobody\n", "bad-tlog-policy"),
        ("quorum", b"", "bad-tlog-policy"),
    ],
)
def test_a_file_that_does_not_say_what_it_should_is_refused_by_name(tmp_path, what, content, code):
    path = tmp_path / "given"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trust(**{what: [path] if what in ("keys", "officers") else path})
    assert code is None or caught.value.code == code
    assert caught.value.hint
    assert "given" in caught.value.message or code == "bad-vkey-file"


def test_pipes_devices_and_files_that_are_not_there_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for path in (
        tmp_path / "pipe",
        Path("/dev/zero"),
        tmp_path / "nowhere",
        tmp_path / "empty",
        Path("a\0b"),
    ):
        with pytest.raises(InputError):
            read_trust(keys=[path])


# -- rosters -----------------------------------------------------------------------------------------------


def test_rosters_in_a_bundle_are_believed_as_far_as_the_root_keys_signed_them(city, tmp_path):
    first = city.roster()
    city.sign_roster(first)
    city.clock.wait(days=1)
    analysts = city.roster()
    city.sign_roster(analysts)
    export(city["police"].directory, tmp_path / "out.zip")
    with open_bundle(tmp_path / "out.zip") as bundle:
        trust, wrong = Trust(roots=ROOTS).of(bundle)
        assert (wrong, [roster.version for roster in trust.rosters]) == ([], [1, 2])
        assert set(trust.log_keys) == {each.vkey for each in city.departments.values()}
        assert set(trust.witness_keys) == {k for node in city.nodes for k in node.witness.vkeys}
        assert trust.newest == analysts
        assert trust.roster(first.digest) == first
        assert trust.roster("sha256:" + "0" * 64) is None
        assert trust.roster_at(START) == first
        assert trust.roster_at(city.clock.at) == analysts
        assert trust.roster_at(START - timedelta(days=1)) is None
        # Without root keys, and with others, nothing is believed; with others, that is said of each.
        assert Trust().of(bundle) == (Trust(), [])
        others = Trust(roots=replace(ROOTS, keys=tuple(sorted(key(f"o{n}").public_key for n in range(3)))))
        trust, wrong = others.of(bundle)
        assert (trust, [finding.code for finding in wrong]) == (others, ["other-roots"] * 2)


@pytest.mark.parametrize("broken", ["one signature", "skipped", "forged"])
def test_a_roster_that_does_not_follow_ends_what_is_believed(city, broken):
    envelopes = [city.sign_roster(by=ROOT_KEYS[1:])]
    city.clock.wait(days=1)
    if broken == "one signature":
        envelopes.append(city.sign_roster(by=ROOT_KEYS[:1]))
    elif broken == "skipped":
        city.sign_roster()
        envelopes.append(city.sign_roster())
    else:
        envelopes.append(city.sign_roster(replace(city.roster(), previous="sha256:" + "0" * 64)))
    trust, wrong = Trust(roots=ROOTS).with_rosters(envelopes)
    assert [roster.version for roster in trust.rosters] == [1]
    (finding,) = wrong
    assert finding.code == {
        "one signature": "too-few-signatures", "skipped": "roster-fast-forward", "forged": "roster-forked",
    }[broken]  # fmt: skip
    assert finding.what.startswith("after version 1: ")


def test_a_chain_is_taken_up_where_the_auditors_root_keys_begin(city):
    following = [key(f"next {n}") for n in range(3)]
    to = NextRoots(2, tuple(sorted(each.public_key for each in following)))
    envelopes = [
        city.sign_roster(replace(city.roster(), roots=to), by=[*ROOT_KEYS[:2], *following[:2]]),
        city.sign_roster(by=following[:2]),
    ]
    trust, wrong = Trust(roots=ROOTS).with_rosters(envelopes)
    assert (wrong, len(trust.rosters)) == ([], 2)
    # Whoever pinned the next keys does not need to know those before.
    later = replace(ROOTS, keys=to.keys)
    trust, wrong = Trust(roots=later).with_rosters(envelopes)
    assert wrong == []
    assert trust.newest is not None
    assert trust.newest.version == 2


def test_rosters_of_earlier_root_keys_are_passed_over_only_where_they_led_to_the_auditors(city):
    following = [key(f"next {n}") for n in range(3)]
    to = NextRoots(2, tuple(sorted(each.public_key for each in following)))
    forged = sign(ROSTER, replace(city.roster(), nodes=()).encode(), [key("forger"), key("other")]).encode()
    before = city.sign_roster()
    handed = city.sign_roster(replace(city.roster(), roots=to), by=[*ROOT_KEYS[:2], *following[:2]])
    later = Trust(roots=replace(ROOTS, keys=to.keys))
    trust, wrong = later.with_rosters([before, handed])
    assert (wrong, [roster.version for roster in trust.rosters]) == ([], [2])
    trust, wrong = later.with_rosters([forged, before, handed])
    assert [finding.code for finding in wrong] == ["other-roots"]
    assert [roster.version for roster in trust.rosters] == [2]
    assert [finding.code for finding in later.with_rosters([before])[1]] == ["other-roots"]


def test_a_log_is_held_to_the_key_that_the_newest_roster_lists(city):
    """Whoever stole the key before could branch the log off before it changed."""
    stolen = city["police"].vkey
    city.sign_roster()
    newer = VerifierKey(stolen.name, 1, key("newer").public_key)
    roster = city.roster()
    nodes = (replace(roster.nodes[0], journal_vkey=str(newer)), *roster.nodes[1:])
    trust, _ = Trust(roots=ROOTS).with_rosters(
        [city.rosters[0], city.sign_roster(replace(roster, nodes=nodes))]
    )
    assert newer in trust.log_keys
    assert stolen not in trust.log_keys
    assert {newer, stolen} <= set(trust.log_keys_ever)


def test_a_witness_counts_while_a_roster_lists_it(city):
    city.sign_roster()
    police = city["police"].witness.vkeys[0]
    roster = city.roster()
    without = replace(roster, nodes=tuple(node for node in roster.nodes if node.name != NODES[0]))
    trust, wrong = Trust(roots=ROOTS).with_rosters([city.rosters[0], city.sign_roster(without)])
    assert wrong == []
    assert trust.was_witness(police, int(START.timestamp()))
    assert trust.was_witness(police, int((START + timedelta(days=89)).timestamp()))
    assert not trust.was_witness(police, int((START + timedelta(days=91)).timestamp()))
    assert not trust.was_witness(police, int((START - timedelta(days=1)).timestamp()))
    assert not trust.was_witness(police, 1 << 62)
    assert not trust.was_witness(keys_of("stranger.example/node").vkeys[0], int(START.timestamp()))
    assert trust.house(police) == Organisation("police.gz.example")
    # One that was handed over is believed at any time, but a log's key never is a witness's.
    handed = Trust(keys=(police, city["police"].vkey))
    assert handed.was_witness(police, 1)
    assert not handed.was_witness(city["police"].vkey, 1)


def test_the_quorum_of_a_roster_leaves_the_logs_own_organisation_out(city):
    roster = city.roster()
    quorum = quorum_of(None, roster, city["police"].journal.origin)
    assert set(quorum.vkeys) == {"health.gz.example", "housing.gz.example"}
    assert quorum.needed == QUORUM
    assert len(quorum_of(None, roster, city.bureau.journal.origin).vkeys) == 3
    assert {k.name for k in logs_of(roster)} == {each.journal.origin for each in city.departments.values()}
    assert len(witnesses_in(roster)) == 3
