"""Who counts, how many it takes, and the policy file that says so to any C2SP tool."""

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witnessing import LOG_VKEY, START, Clock, Witness, branch, keys_of, signed

from audit.note import Note, NoteSignature, VerifierKey
from audit.quorum import MAX_ITEMS, MAX_POLICY_BYTES, Group, Quorum, TrustPolicy, cosigners
from protocols.errors import DecodeError, PolicyInvalid

NODES = [
    "health.gz.example/node-b", "health.gz.example/node-c", "housing.gz.example/node-d",
    "statistics.gz.example/node-e", "education.gz.example/node-f",
]  # fmt: skip
WITNESSES = {name: Witness(name, mldsa=name == NODES[0]) for name in NODES}
VKEYS = {name: witness.vkeys for name, witness in WITNESSES.items()}
KEYS = [WITNESSES[name].keys.vkeys[0] for name in NODES]
MLDSA_KEY = WITNESSES[NODES[0]].keys.vkeys[1]
OTHER_LOG = VerifierKey("elsewhere.example/log", 1, LOG_VKEY.public_key)
NOTE = Note.decode(signed(branch("a", 7)))
LINES = {name: witness.sign(NOTE.text) for name, witness in WITNESSES.items()}


def cosigned(*names: str, lines=LINES) -> Note:
    return NOTE.with_lines(line for name in names for line in lines[name])


def houses(*names: str) -> set[str]:
    return {name.split("/")[0] for name in names}


@pytest.mark.parametrize(
    "names", [names for n in range(6) for names in itertools.combinations(NODES, n)], ids=len
)
def test_each_organisation_has_one_vote_however_many_witnesses_it_runs(names):
    note = cosigned(*names)
    for needed in range(6):
        quorum = Quorum.of_nodes(VKEYS, needed)
        assert quorum.votes(note) == houses(*names)
        assert quorum.reached(note) == (len(houses(*names)) >= needed)
        assert quorum.possible == (needed <= 4)


def test_an_ml_dsa_cosignature_alone_is_no_vote():
    only = NOTE.with_lines(LINES[NODES[0]][1:])
    assert cosigners(only, [MLDSA_KEY, KEYS[0]]) == {MLDSA_KEY}
    assert Quorum.of_nodes(VKEYS, 1).votes(only) == frozenset()


def test_a_key_that_two_organisations_claim_votes_for_neither():
    stolen = VKEYS | {"education.gz.example/node-g": VKEYS[NODES[2]]}
    votes = Quorum.of_nodes(stolen, 1).votes(cosigned(*NODES))
    assert votes == houses(NODES[0], NODES[3], NODES[4])
    # Two nodes of one organisation may share a key: it is one vote all the same.
    shared = VKEYS | {"housing.gz.example/node-g": VKEYS[NODES[2]]}
    assert Quorum.of_nodes(shared, 1).votes(cosigned(*NODES)) == houses(*NODES)


def test_a_key_under_another_name_is_found_out_too():
    renamed = str(replace(KEYS[2], name="education.gz.example/node-g/witness/1"))
    quorum = Quorum.of_nodes(VKEYS | {"education.gz.example/node-g": (renamed,)}, 1)
    assert "housing.gz.example" not in quorum.votes(cosigned(*NODES))


@pytest.mark.parametrize("line", ["", "a+b+c", str(LOG_VKEY), str(KEYS[0])[:-4], str(KEYS[0]) + "\n"])
def test_a_line_that_is_no_cosigners_key_adds_no_vote(line):
    quorum = Quorum.of_nodes({NODES[0]: (line,), NODES[2]: VKEYS[NODES[2]]}, 1)
    assert quorum.votes(cosigned(*NODES)) == houses(NODES[2])


def test_a_line_that_does_not_hold_takes_nothing_from_the_others():
    line = LINES[NODES[2]][0]
    bent = replace(line, signature=line.signature[:-1] + bytes([line.signature[-1] ^ 1]))
    quorum = Quorum.of_nodes(VKEYS, 2)
    forged = Note(NOTE.text, (bent, LINES[NODES[3]][0]))
    assert quorum.votes(forged) == houses(NODES[3])
    both = Note(NOTE.text, (bent, line, LINES[NODES[3]][0]))
    assert quorum.votes(both) == houses(NODES[2], NODES[3])


@given(st.data())
def test_a_cosignature_counts_for_no_other_text_and_no_other_key(data):
    """Lines of another history, another size, another time, and other witnesses' names and key ids."""
    other = Note.decode(signed(branch("b", data.draw(st.sampled_from([6, 7, 8])))))
    victim = data.draw(st.sampled_from(NODES))
    thief = data.draw(st.sampled_from([name for name in NODES if name != victim]))
    mine = WITNESSES[thief].sign(other.text)[0]
    lines = {
        "another text": WITNESSES[victim].sign(other.text)[0],
        "another's name": replace(LINES[thief][0], name=KEYS[NODES.index(victim)].name),
        "another's name and id": replace(
            LINES[thief][0], name=KEYS[NODES.index(victim)].name, key_id=KEYS[NODES.index(victim)].key_id
        ),
        "another time": replace(
            LINES[victim][0], signature=b"\0" * 7 + b"\1" + LINES[victim][0].signature[8:]
        ),
        "both wrong": replace(mine, name=KEYS[NODES.index(victim)].name),
    }
    note = Note(NOTE.text, (*NOTE.signatures, *lines.values()))
    assert Quorum.of_nodes(VKEYS, 1).votes(note) == frozenset()


def test_a_cosignature_from_the_future_does_not_count_yet():
    clock = Clock(START + timedelta(minutes=10))
    early = {name: Witness(name, clock=clock).sign(NOTE.text) for name in NODES}
    quorum = Quorum.of_nodes(VKEYS, 4)
    note = cosigned(*NODES, lines=early)
    assert quorum.reached(note)
    assert quorum.reached(note, START)
    assert not quorum.reached(note, START - timedelta(seconds=1))
    assert TrustPolicy.of([LOG_VKEY], quorum).satisfied(note, START)
    assert not TrustPolicy.of([LOG_VKEY], quorum).satisfied(note, START - timedelta(seconds=1))


def test_a_quorum_of_nobody_needs_nobody_and_one_of_none_there_is_never_reached():
    assert Quorum({}, 0).reached(NOTE)
    assert not Quorum({}, 1).reached(cosigned(*NODES))
    assert not Quorum({}, 1).possible


# -- tlog-policy ---------------------------------------------------------------------------------------------

V = [str(keys_of(f"w{n}").vkeys[0]) for n in range(8)]
SPEC_EXAMPLE = f"""\
log {LOG_VKEY}

witness X1 {V[0]}
witness X2 {V[1]}
witness X3 {V[2]}
group X-witnesses 2 X1 X2 X3

witness Y1 {V[3]}
witness Y2 {V[4]}
witness Y3 {V[5]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def by(*numbers: int) -> Note:
    return NOTE.with_lines(line for n in numbers for line in Witness(f"w{n}").sign(NOTE.text))


SIGNED = [by(*[n for n in range(6) if mask >> n & 1]) for mask in range(64)]


def test_the_example_of_the_specification_means_what_it_says():
    policy = TrustPolicy.parse(SPEC_EXAMPLE.encode())
    for mask, note in enumerate(SIGNED):
        expected = (mask & 7).bit_count() >= 2 and mask >> 3 > 0
        assert policy.satisfied(note) == expected, mask


def test_spaces_tabs_comments_urls_and_order_do_not_matter():
    text = f"\n# a comment\n\t # another\n\twitness \t w1  {V[0]}   https://w1.example/ \n\n  quorum\tw1"
    policy = TrustPolicy.parse(text.encode())
    assert policy.encode().decode() == f"witness w1 {V[0]}\nquorum w1\n"
    assert policy.satisfied(by(0))
    assert not policy.satisfied(by(1))
    assert TrustPolicy.parse(b"quorum none\n").satisfied(NOTE)


def test_names_are_octets_and_keywords_are_names():
    text = (
        b"witness all %s\nwitness \xe2\x84\xaa\x80 %s\nwitness K\x80 %s\n"
        b"group group 2 all \xe2\x84\xaa\x80\nquorum group\n"
    )
    data = text % tuple(vkey.encode() for vkey in V[:3])
    policy = TrustPolicy.parse(data)
    assert policy.encode() == data
    assert [policy.satisfied(note) for note in (by(0, 1), by(0, 2), by(1))] == [True, False, False]


def test_only_a_listed_log_and_only_under_its_own_name_satisfies_a_policy():
    note = by(0)
    for logs, expected in (
        ([LOG_VKEY], True),
        ([OTHER_LOG], False),
        ([], True),
        ([OTHER_LOG, LOG_VKEY], True),
    ):
        policy = TrustPolicy(tuple(logs), {"w": VerifierKey.parse(V[0])}, {}, "w")
        assert policy.satisfied(note) == expected
    elsewhere = replace(note.signatures[0], name=OTHER_LOG.name, key_id=OTHER_LOG.key_id)
    assert not TrustPolicy.parse(f"log {OTHER_LOG}\nquorum none\n".encode()).satisfied(
        Note(note.text, (*note.signatures, elsewhere))
    )
    unsigned = Note(note.text, note.signatures[1:])
    assert not TrustPolicy.parse(SPEC_EXAMPLE.encode()).satisfied(unsigned)
    assert not TrustPolicy.parse(f"log {LOG_VKEY}\nquorum none\n".encode()).satisfied(unsigned)
    forged = Note(note.text, (replace(note.signatures[0], signature=bytes(64)), *note.signatures[1:]))
    assert not TrustPolicy.parse(f"log {LOG_VKEY}\nquorum none\n".encode()).satisfied(forged)
    with pytest.raises(DecodeError):
        TrustPolicy.parse(b"quorum none\n").satisfied(Note(b"no checkpoint\n", note.signatures))


IMPOSTOR = str(replace(VerifierKey.parse(V[0]), name="impostor"))
W = f"witness w {V[0]}\n"
BAD = {
    "a control octet": (b"quorum none\n\x01", 2),
    "a carriage return": (b"quorum none\r\n", 1),
    "a delete octet": (b"quorum none\x7f\n", 1),
    "an unknown keyword": (b"quibble w\nquorum none\n", 1),
    "a comment after items": (f"witness w {V[0]} https://w.example/ # mine\nquorum w\n".encode(), 1),
    "a log without a key": (b"log\nquorum none\n", 1),
    "a log with a broken key": (b"log garbage\nquorum none\n", 1),
    "a log with a key that is not UTF-8": (b"log \xff" + V[0].encode() + b"\nquorum none\n", 1),
    "a witness's key for a log": (f"log {V[0]}\nquorum none\n".encode(), 1),
    "a log's key for a witness": (f"witness w {LOG_VKEY}\nquorum w\n".encode(), 1),
    "a log twice": (f"log {LOG_VKEY}\nlog {OTHER_LOG}\nquorum none\n".encode(), 2),
    "a witness without a key": (b"witness w\nquorum none\n", 1),
    "a witness's key twice": (f"{W}witness x {IMPOSTOR}\nquorum w\n".encode(), 2),
    "a witness named none": (f"witness none {V[0]}\nquorum none\n".encode(), 1),
    "a name twice": (f"{W}witness w {V[1]}\nquorum w\n".encode(), 2),
    "a group with a witness's name": (f"{W}group w any w\nquorum w\n".encode(), 2),
    "a group without members": (f"{W}group g 1\nquorum w\n".encode(), 2),
    "a group without a threshold": (f"{W}group g\nquorum w\n".encode(), 2),
    "a group named none": (f"{W}group none any w\nquorum none\n".encode(), 2),
    "a threshold of nought": (f"{W}group g 0 w\nquorum g\n".encode(), 2),
    "a negative threshold": (f"{W}group g -1 w\nquorum g\n".encode(), 2),
    "a threshold with a leading zero": (f"{W}group g 01 w\nquorum g\n".encode(), 2),
    "a threshold of more than there are": (f"{W}group g 2 w\nquorum g\n".encode(), 2),
    "a threshold of many digits": (f"{W}group g {'9' * 5000} w\nquorum g\n".encode(), 2),
    "an unknown member": (f"{W}group g any x\nquorum g\n".encode(), 2),
    "a member that comes later": (f"group g any w\n{W}quorum g\n".encode(), 1),
    "a group within itself": (f"{W}group g any w g\nquorum g\n".encode(), 2),
    "none as a member": (f"{W}group g any none w\nquorum g\n".encode(), 2),
    "a member twice in a group": (f"{W}group g all w w\nquorum g\n".encode(), 2),
    "a member of two groups": (f"{W}group g any w\ngroup h any w\nquorum g\n".encode(), 3),
    "no quorum": (W.encode(), 0),
    "an empty file": (b"", 0),
    "two quorums": (f"{W}quorum w\nquorum w\n".encode(), 3),
    "an unknown quorum": (b"quorum x\n", 1),
    "a quorum that comes before": (f"quorum w\n{W}".encode(), 1),
    "a quorum without a name": (b"quorum\n", 1),
    "a quorum of two names": (f"{W}quorum w w\n".encode(), 2),
    "too long a file": (b"#" * (MAX_POLICY_BYTES + 1), 0),
}


@pytest.mark.parametrize("why", BAD)
def test_a_wrong_policy_is_refused_with_its_line(why):
    data, line = BAD[why]
    with pytest.raises(PolicyInvalid) as caught:
        TrustPolicy.parse(data)
    assert (caught.value.code, caught.value.line) == ("bad-tlog-policy", line)


@given(st.binary(max_size=200))
def test_a_policy_of_junk_is_refused_cleanly(junk):
    with pytest.raises(PolicyInvalid):
        TrustPolicy.parse(b"quorum none\nquorum" + junk)


def test_groups_in_groups_are_read_up_to_the_limit_and_no_further():
    chain = f"{W}group g0 any w\n" + "".join(f"group g{n} all g{n - 1}\n" for n in range(1, MAX_ITEMS))
    deep = TrustPolicy.parse(f"{chain}quorum g{MAX_ITEMS - 1}\n".encode())
    assert (deep.satisfied(by(0)), deep.satisfied(by(1))) == (True, False)
    with pytest.raises(PolicyInvalid, match="more than"):
        TrustPolicy.parse(f"{chain}group last all g{MAX_ITEMS - 1}\nquorum last\n".encode())


@given(st.sets(st.sampled_from(NODES)), st.integers(0, 5), st.sets(st.sampled_from(NODES)))
def test_the_policy_written_for_others_decides_as_the_quorum_does(nodes, needed, signers):
    quorum = Quorum.of_nodes({name: VKEYS[name] for name in nodes}, needed)
    if not quorum.possible:
        with pytest.raises(PolicyInvalid):
            TrustPolicy.of([LOG_VKEY], quorum)
        return
    policy = TrustPolicy.of([LOG_VKEY], quorum)
    again = TrustPolicy.parse(policy.encode())
    assert again == policy
    assert again.satisfied(cosigned(*signers)) == quorum.reached(cosigned(*signers))


@st.composite
def policies(draw) -> TrustPolicy:
    names = draw(
        st.lists(st.from_regex(r"[!-\"$-~]{1,8}", fullmatch=True), min_size=1, max_size=10, unique=True)
    )
    names = [name for name in names if name != "none"] or ["w"]
    count = draw(st.integers(1, min(6, len(names))))
    witnesses = {name: VerifierKey.parse(V[n]) for n, name in enumerate(names[:count])}
    groups, free = {}, list(witnesses)
    for name in names[count:]:
        if not free:
            break
        members = [
            free.pop(draw(st.integers(0, len(free) - 1))) for _ in range(draw(st.integers(1, len(free))))
        ]
        groups[name] = Group(draw(st.integers(1, len(members))), tuple(members))
        free.append(name)
    return TrustPolicy((LOG_VKEY,), witnesses, groups, draw(st.sampled_from(["none", *witnesses, *groups])))


@given(policies(), st.integers(0, 63))
def test_policies_round_trip_and_decide_as_written_out(policy, mask):
    assert TrustPolicy.parse(policy.encode()) == policy

    def holds(name: str) -> bool:
        """The specification's own words, from the quorum down."""
        if name in policy.groups:
            group = policy.groups[name]
            return sum(map(holds, group.members)) >= group.needed
        return name == "none" or mask >> V.index(str(policy.witnesses[name])) & 1 == 1

    assert policy.satisfied(SIGNED[mask]) == holds(policy.quorum)


def test_thousands_of_signature_lines_are_no_note_and_a_hundred_forged_ones_no_vote():
    line = NoteSignature(KEYS[0].name, KEYS[0].key_id, bytes(72))
    with pytest.raises(DecodeError):
        Note.decode(Note(NOTE.text, (line,) * 5000).encode())
    full = Note.decode(Note(NOTE.text, (*NOTE.signatures, *(line,) * 98, LINES[NODES[0]][0])).encode())
    assert Quorum.of_nodes(VKEYS, 1).votes(full) == houses(NODES[0])
