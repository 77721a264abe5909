"""Who is believed: tokens and enrolment, rosters, TLS keys, requests, jobs."""

import base64
import contextlib
import hashlib
import hmac
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from collaboration import (
    BUREAU,
    HEALTH,
    NODES,
    NOW,
    POLICE,
    SEATS,
    SUITE,
    csr,
    signer,
    spki,
    tls_key,
    vkey,
    witness_vkeys,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from audit.entries import check_statement
from audit.note import COSIGNATURE, ED25519, VerifierKey
from coordinator.authority import LEAF_LIFE, Authority, peer_of
from coordinator.drafting import next_roots
from coordinator.registry import MAX_JOB_ENVELOPE_BYTES, MAX_REFUSED_ROTATIONS, Registry
from coordinator.store import StoredRoster, Token
from coordinator.store.sql import SqlStore
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import JOB, decode_envelope, key_id, sign
from protocols.errors import DecodeError, InputError, MinshuError, Refused, SignatureInvalid, StateConflict
from protocols.ids import NodeName, Organisation, Role
from protocols.roots import Roots

SECRET = b"\x0c" * 16


@pytest.fixture
def store():
    store = SqlStore(None)
    yield store
    store.close()


@pytest.fixture
def registry(world, store, clock):
    return Registry(store, world.roots, SUITE, clock)


@pytest.fixture
def listed(world, registry):
    """A registry with a first roster in force."""
    registry.publish(world.signed(world.roster()))
    return registry


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ca")
    return Authority.create(NodeName("bureau.gz.example/coordinator"), NOW, folder / "ca", folder / "crt")


def refusal(kind, call, *args, **kwargs):
    with pytest.raises(kind) as error:
        call(*args, **kwargs)
    return error.value.code


def due(store):
    return [one.entry for one in store.due_entries()]


# -- tokens and enrolment ----------------------------------------------------------------------------


def test_a_token_gives_one_leaf_for_the_nodes_own_key(world, registry, store, authority, clock):
    registry.new_token(POLICE, SECRET)
    leaf = registry.enrol(*world.enrolment(POLICE, SECRET), authority)
    certificate = x509.load_pem_x509_certificate(leaf)
    certificate.verify_directly_issued_by(authority.certificate)
    assert certificate.not_valid_after_utc - clock() <= LEAF_LIFE
    assert peer_of(leaf) == (POLICE, spki(POLICE))
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert [name.value for name in names] == [POLICE]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    enrolled = store.enrolment(POLICE)
    assert (enrolled.identity_key, enrolled.tls_spki_sha256) == (signer(POLICE).public_key, spki(POLICE))
    assert enrolled.witness_vkeys == witness_vkeys(POLICE)
    assert [(e.kind, e.body["node"], e.body["identity"]) for e in due(store)] == [
        ("node.enrolled", POLICE, key_id(signer(POLICE).public_key))
    ]


def test_the_token_itself_is_never_stored(registry, store):
    registry.new_token(POLICE, SECRET)
    (token,) = store.tokens(hashlib.sha256(SECRET).hexdigest()[:8])
    assert token.secret_sha256 == hashlib.sha256(SECRET).digest()
    assert SECRET not in token.secret_sha256


def test_a_token_is_good_once(world, registry, authority):
    registry.new_token(POLICE, SECRET)
    registry.enrol(*world.enrolment(POLICE, SECRET), authority)
    assert refusal(Refused, registry.enrol, *world.enrolment(POLICE, SECRET), authority) == "token-used"


def test_of_ten_racing_enrolments_with_one_token_one_wins(world, store, authority, clock, tmp_path):
    store = SqlStore(tmp_path / "store.db")
    registry = Registry(store, world.roots, SUITE, clock)
    registry.new_token(POLICE, SECRET)
    request = world.enrolment(POLICE, SECRET)
    outcomes = []

    def enrol():
        try:
            registry.enrol(*request, authority)
            outcomes.append("won")
        except Refused as refused:
            outcomes.append(refused.code)

    threads = [threading.Thread(target=enrol) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["token-used"] * 9 + ["won"]
    store.close()


def test_a_token_expires_after_fifteen_minutes(world, registry, authority, clock):
    registry.new_token(POLICE, SECRET)
    clock.pass_(minutes=15)
    assert refusal(Refused, registry.enrol, *world.enrolment(POLICE, SECRET), authority) == "token-expired"


def test_a_token_made_before_the_clock_went_back_is_refused(world, registry, authority, clock):
    registry.new_token(POLICE, SECRET)
    clock.pass_(hours=-1)
    assert refusal(Refused, registry.enrol, *world.enrolment(POLICE, SECRET), authority) == "clock-moved"
    clock.pass_(hours=1)
    registry.enrol(*world.enrolment(POLICE, SECRET), authority)


def test_a_clock_that_went_far_ahead_and_back_gives_a_used_token_no_second_life(
    world, registry, store, authority, clock
):
    registry.new_token(POLICE, SECRET)
    registry.enrol(*world.enrolment(POLICE, SECRET), authority)
    clock.pass_(days=400)
    store.forget(clock())
    clock.pass_(days=-400)
    assert refusal(Refused, registry.enrol, *world.enrolment(POLICE, SECRET), authority) == "token-unknown"


def test_a_guessed_prefix_enrols_nobody(world, registry, authority, store):
    """The request names 32 bits of the token's hash; only whoever has all 256 can key the mac."""
    registry.new_token(POLICE, SECRET)
    hashed = hashlib.sha256(SECRET).digest()
    for guess in (hashed[:4] + bytes(28), hashed[::-1], b""):
        request, _ = world.enrolment(POLICE, SECRET)
        mac = hmac.digest(guess, hashlib.sha256(request).digest(), "sha256")
        assert refusal(Refused, registry.enrol, request, mac, authority) == "token-unknown"
    assert store.enrolments() == []


def test_two_tokens_of_one_prefix_are_two_tokens(world, registry, authority, store, clock):
    twin = hashlib.sha256(SECRET).digest()[:4] + bytes(28)
    store.add_token(Token(twin, HEALTH, clock(), clock() + timedelta(minutes=15)))
    registry.new_token(POLICE, SECRET)
    request, mac = world.enrolment(HEALTH, SECRET)
    assert refusal(Refused, registry.enrol, request, mac, authority) == "token-unknown"
    registry.enrol(*world.enrolment(POLICE, SECRET), authority)
    (left,) = (token for token in store.tokens(twin[:4].hex()) if token.used is None)
    assert left.node == HEALTH


def test_another_nodes_token_enrols_nobody(world, registry, authority):
    registry.new_token(POLICE, SECRET)
    assert refusal(Refused, registry.enrol, *world.enrolment(HEALTH, SECRET), authority) == "token-unknown"


def test_without_the_token_a_request_enrols_nobody(world, registry, authority, store):
    registry.new_token(POLICE, SECRET)
    request, mac = world.enrolment(POLICE, SECRET)
    guessed = world.enrolment(POLICE, b"\x0d" * 16)
    for wrong in (bytes(32), mac[:-1], mac + b"\0", b"", mac[::-1]):
        assert refusal(Refused, registry.enrol, request, wrong, authority) == "token-unknown"
    assert refusal(Refused, registry.enrol, *guessed, authority) == "token-unknown"
    # The mac covers the request: another request under the same mac is another request.
    other, _ = world.enrolment(POLICE, SECRET, csr=csr(POLICE, tls_key("stolen")))
    assert refusal(Refused, registry.enrol, other, mac, authority) == "token-unknown"
    assert store.enrolments() == []


def cosigning_identity(node):
    """The identity key, named as if it were the witness's."""
    return str(VerifierKey(f"{node}/witness/1", COSIGNATURE, signer(node).public_key))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (SignatureInvalid, "too-few-signatures", HEALTH)),
        ({"journal_vkey": vkey(HEALTH)}, (InputError, "bad-vkey")),
        ({"suite": 1}, (InputError, "wrong-suite")),
        ({"recipient_key": "00"}, (DecodeError, "bad-key")),
        ({"csr": csr(POLICE, ec.generate_private_key(ec.SECP384R1()))}, (InputError, "bad-csr")),
        ({"csr": "-----BEGIN CERTIFICATE REQUEST-----"}, (DecodeError, "bad-csr")),
        ({"extra": 1}, (DecodeError, "unknown-field")),
        ({"schema": "minshu-enrolment/1"}, (DecodeError, "unknown-schema")),
        ({"journal_vkey": vkey(POLICE).replace("/1+", "/0+")}, (InputError, "bad-vkey")),
        ({"witness_vkeys": []}, (DecodeError, "bad-field")),
        ({"witness_vkeys": ["police.gz.example/node-a/witness/1"]}, (DecodeError, "bad-field")),
        ({"witness_vkeys": [*witness_vkeys(POLICE), vkey(POLICE)]}, (DecodeError, "bad-field")),
        ({"witness_vkeys": list(witness_vkeys(HEALTH))}, (InputError, "bad-vkey")),
        ({"witness_vkeys": list(reversed(witness_vkeys(POLICE)))}, (InputError, "bad-vkey")),
        ({"witness_vkeys": [vkey(POLICE)]}, (InputError, "bad-vkey")),
        ({"witness_vkeys": [cosigning_identity(POLICE)]}, (InputError, "bad-vkey")),
        (
            {"witness_vkeys": list(witness_vkeys(POLICE, HEALTH))},
            (SignatureInvalid, "no-proof-of-possession"),
        ),
        ({"witness_vkeys": list(witness_vkeys(POLICE)[:1])}, (SignatureInvalid, "no-proof-of-possession")),
        ({"witness_proofs": []}, (DecodeError, "bad-field")),
        ({"witness_proofs": ["00" * 64]}, (SignatureInvalid, "no-proof-of-possession")),
        ({"witness_proofs": ["00" * 64, "00" * 2420]}, (SignatureInvalid, "no-proof-of-possession")),
        ({"witness_proofs": ["zz" * 64, "00" * 2420]}, (DecodeError, "bad-field")),
    ],
)
def test_an_enrolment_that_does_not_hold_spends_no_token(world, registry, authority, changes, expected):
    kind, code, *by = expected
    registry.new_token(POLICE, SECRET)
    assert refusal(kind, registry.enrol, *world.enrolment(POLICE, SECRET, *by, **changes), authority) == code
    registry.enrol(*world.enrolment(POLICE, SECRET), authority)


@pytest.mark.parametrize("place", [0, 1])
def test_a_proof_of_another_enrolment_is_none(world, registry, store, authority, place):
    registry.new_token(POLICE, SECRET)
    request = csr(POLICE)  # signed once: another signature of it would make it another enrolment
    proofs, earlier = (
        decode_json(decode_envelope(world.enrolment(POLICE, secret, csr=request)[0]).payload)[
            "witness_proofs"
        ]
        for secret in (SECRET, b"\x0d" * 16)
    )
    mixed = [earlier[at] if at == place else proof for at, proof in enumerate(proofs)]
    replayed = world.enrolment(POLICE, SECRET, csr=request, witness_proofs=mixed)
    assert refusal(SignatureInvalid, registry.enrol, *replayed, authority) == "no-proof-of-possession"
    assert store.enrolments() == []
    registry.enrol(*world.enrolment(POLICE, SECRET, csr=request, witness_proofs=proofs), authority)


def test_a_node_may_enrol_with_one_witness_key_and_any_generation_of_its_log(
    world, registry, store, authority
):
    registry.new_token(POLICE, SECRET)
    later = str(VerifierKey(f"{POLICE}/journal/3", ED25519, signer(POLICE).public_key))
    request = world.enrolment(
        POLICE, SECRET, journal_vkey=later, witness_vkeys=list(witness_vkeys(POLICE)[:1]), keys=1
    )
    registry.enrol(*request, authority)
    enrolled = store.enrolment(POLICE)
    assert enrolled.journal_vkey == later
    assert enrolled.witness_vkeys == witness_vkeys(POLICE)[:1]


def test_a_csr_its_key_did_not_sign_is_refused(world, registry, authority):
    registry.new_token(POLICE, SECRET)
    der = x509.load_pem_x509_csr(csr(POLICE).encode()).public_bytes(Encoding.DER)
    forged = base64.encodebytes(der[:-1] + bytes([der[-1] ^ 1])).decode()
    text = f"-----BEGIN CERTIFICATE REQUEST-----\n{forged}-----END CERTIFICATE REQUEST-----\n"
    request = world.enrolment(POLICE, SECRET, csr=text)
    assert refusal(InputError, registry.enrol, *request, authority) == "bad-csr"


def test_a_huge_enrolment_is_refused_before_it_is_parsed(registry, authority):
    assert refusal(DecodeError, registry.enrol, b"[" * (1 << 20), bytes(32), authority) == "too-long"


@pytest.mark.parametrize("name", ["police", "Police.gz.example/node-a", "a/b/c", "", "a/" + "b" * 65, "a/\n"])
def test_a_token_is_only_made_for_a_nodes_full_name(registry, name):
    assert refusal(InputError, registry.new_token, name, SECRET) == "bad-name"


# -- the roster --------------------------------------------------------------------------------------


def test_a_roster_that_two_roots_signed_is_in_force(world, registry, store):
    roster = registry.publish(world.signed(world.roster()))
    assert registry.roster == roster
    (entry,) = due(store)
    assert (entry.kind, entry.body["version"], entry.body["sha256"]) == ("roster.published", 1, roster.digest)
    assert entry.body["signers"] == sorted(key_id(s.public_key) for s in world.roots_signers[:2])


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda w: w.signed(w.roster(), 1), "too-few-signatures"),
        (lambda w: sign("other", w.roster().encode(), w.roots_signers).encode(), "wrong-payload-type"),
        (
            lambda w: sign(
                "application/vnd.minshu.roster.v1+json", w.roster().encode(), [w.roots_signers[0]] * 2
            ).encode(),
            "too-few-signatures",
        ),
        (lambda w: w.signed(w.roster(collaboration="other.example")), "wrong-collaboration"),
        (lambda w: w.signed(w.roster(suite=1)), "wrong-suite"),
        (lambda w: w.signed(w.roster(expires=w.now())), "roster-expired"),
        (lambda w: w.signed(w.roster(expires=w.now() + timedelta(days=91))), "roster-life"),
        (lambda w: w.signed(w.roster(issued=w.now() + timedelta(hours=1))), "roster-not-valid"),
        (lambda w: w.signed(w.roster(organisations=())), "bad-roster"),
        (lambda w: w.signed(replace(w.roster(), previous=w.roster().digest)), "roster-forked"),
        (lambda w: w.freshness(w.roster()), "wrong-payload-type"),
        (lambda w: b"{}", "bad-envelope"),
    ],
)
def test_a_roster_that_does_not_hold_is_not_published(world, registry, store, make, code):
    assert refusal(MinshuError, registry.publish, make(world)) == code
    assert (registry.roster, due(store)) == (None, [])


def test_rosters_only_go_forwards(world, listed):
    first = listed.roster
    second = world.roster(2, first)
    for wrong, code in (
        (world.roster(1, analysts=()), "roster-forked"),
        (first, "already-published"),
        (world.roster(2), "roster-forked"),
        (world.roster(2, world.roster(1, analysts=())), "roster-forked"),
        (world.roster(3, second), "roster-fast-forward"),
    ):
        assert refusal(StateConflict, listed.publish, world.signed(wrong)) == code
    listed.publish(world.signed(second))
    assert refusal(StateConflict, listed.publish, world.signed(first)) == "roster-rollback"
    assert (listed.before(), listed.between(1)) == (first, [])
    assert listed.rosters_after(0) == [world.signed(second)]
    assert listed.rosters_after(1) == [world.signed(second)]
    assert listed.rosters_after(2) == []


def test_another_process_publishes_and_this_one_notices(world, listed, store, clock):
    other = Registry(store, world.roots, SUITE, clock)
    listed.refresh()
    assert listed.roster.version == 1
    other.publish(world.signed(world.roster(2, other.roster)))
    listed.refresh()
    assert listed.roster.version == 2


def test_a_roster_published_by_another_process_counts_at_once(world, listed, store, clock):
    other = Registry(store, world.roots, SUITE, clock)
    few = world.roster(2, other.roster, analysts=other.roster.analysts[1:], nodes=other.roster.nodes[1:])
    gone = other.roster.nodes[0].name
    other.publish(world.signed(few))
    assert refusal(SignatureInvalid, listed.request, "List", world.request("List")) == "unknown-analyst"
    assert refusal(SignatureInvalid, listed.check_peer, gone, spki(gone)) == "not-in-roster"


def hand_over(world, listed):
    """Publish the roster that hands over to other root keys; return their holders."""
    holders = tuple(signer(f"next root {n}") for n in range(3))
    roots = next_roots([one.public_key for one in holders], 2)
    both = (*world.roots_signers[:2], *holders[:2])
    assert (
        refusal(
            SignatureInvalid, listed.publish, world.signed(world.roster(2, listed.roster, roots=roots), 3)
        )
        == "too-few-signatures"
    )
    world.roots_signers = both
    listed.publish(world.signed(world.roster(2, listed.roster, roots=roots), 4))
    return holders


def test_root_keys_hand_over_and_the_coordinator_hands_out_the_next_ones(world, listed, store, clock):
    pinned = listed.roots
    holders = hand_over(world, listed)
    assert listed.roots == Roots.of("gz.example", 2, [one.public_key for one in holders])
    third = world.roster(3, listed.roster)
    assert refusal(SignatureInvalid, listed.publish, world.signed(third)) == "too-few-signatures"
    world.roots_signers = holders
    listed.publish(world.signed(third))
    # Another process on the same home comes to the same keys from those it pinned.
    assert Registry(store, pinned, SUITE, clock).roots == listed.roots


def test_a_reader_without_a_roster_gets_the_chain_from_the_first_hand_over_on(world, listed):
    world.roots_signers = hand_over(world, listed)
    for version in (3, 4):
        listed.publish(world.signed(world.roster(version, listed.roster)))
    chain = listed.rosters_after(0)
    assert len(chain) == 3
    assert chain == listed.rosters_after(1)
    assert listed.between(1) == chain[:2]
    assert listed.between(3) == []


def test_the_rosters_in_between_come_in_portions(world, listed, monkeypatch):
    for version in range(2, 6):
        listed.publish(world.signed(world.roster(version, listed.roster)))
    size = len(listed.roster_envelope)
    for limit, count in ((0, 1), (2 * size + 100, 2), (1 << 20, 3)):
        monkeypatch.setattr("coordinator.registry.MAX_BETWEEN_BYTES", limit)
        assert listed.between(1) == listed.rosters_after(1)[:count]


def test_a_store_with_a_roster_that_nobody_signed_is_not_believed(world, listed, store, clock):
    forged = world.roster(2, listed.roster)
    envelope = world.signed(forged, 1)
    store.publish(StoredRoster(2, forged.digest, envelope), listed.roster.digest)
    assert refusal(StateConflict, listed.refresh) == "roster-changed"
    assert refusal(StateConflict, Registry, store, world.roots, SUITE, clock) == "roster-changed"
    assert listed.roster.version == 1


def test_a_coordinator_that_starts_anew_takes_up_the_chain_where_it_is(world, registry):
    seventh = replace(world.roster(7), previous=sha256_digest(b"the sixth"))
    assert registry.publish(world.signed(seventh)).version == 7


# -- freshness ---------------------------------------------------------------------------------------


def test_a_freshness_statement_is_handed_out_and_journaled(world, listed, store, clock):
    clock.pass_(days=3)
    envelope = world.freshness(listed.roster)
    listed.publish_freshness(envelope)
    assert listed.freshness_envelope == envelope
    entry = due(store)[-1]
    assert (entry.kind, entry.body["version"], entry.body["sha256"]) == (
        "roster.fresh",
        1,
        listed.roster.digest,
    )
    assert entry.body["signers"] == [key_id(signer("freshness").public_key)]
    check_statement(entry.kind, entry.body)


def test_a_freshness_statement_of_another_process_counts_at_once(world, listed, store, clock):
    other = Registry(store, world.roots, SUITE, clock)
    other.publish_freshness(world.freshness(other.roster))
    listed.refresh()
    assert listed.freshness_envelope == other.freshness_envelope != b""
    other.publish(world.signed(world.roster(2, other.roster)))
    listed.refresh()
    assert listed.freshness_envelope == b""


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda w, r: w.freshness(r, by="li"), "too-few-signatures"),
        (lambda w, r: w.freshness(r, version=2), "freshness-mismatch"),
        (lambda w, r: w.freshness(r, sha256=sha256_digest(b"")), "roster-forked"),
        (lambda w, r: w.freshness(r, issued=w.now() + timedelta(hours=1)), "freshness-not-valid"),
        (lambda w, r: w.freshness(r, issued=w.now() - timedelta(days=1)), "already-published"),
        (lambda w, r: w.freshness(r), "already-published"),
        (lambda w, r: w.signed(r), "wrong-payload-type"),
    ],
)
def test_a_freshness_statement_that_does_not_hold_is_not_handed_out(world, listed, make, code):
    said = world.freshness(listed.roster)
    listed.publish_freshness(said)
    assert refusal(MinshuError, listed.publish_freshness, make(world, listed.roster)) == code
    assert listed.freshness_envelope == said


def test_a_statement_older_than_the_roster_adds_nothing_and_is_not_journaled(world, listed, store):
    before = due(store)
    old = world.freshness(listed.roster, issued=listed.roster.issued - timedelta(seconds=1))
    assert refusal(StateConflict, listed.publish_freshness, old) == "already-published"
    assert (listed.freshness_envelope, due(store)) == (b"", before)


# -- next identity keys ------------------------------------------------------------------------------


def test_a_node_announces_its_next_identity_key(world, listed, store, clock):
    envelope = world.rotation(POLICE, "police, next")
    sha256 = listed.announce_rotation(POLICE, envelope)
    assert sha256 == decode_envelope(envelope).payload_digest
    (kept,) = store.rotations()
    assert (kept.node, kept.next_key, kept.envelope) == (POLICE, signer("police, next").public_key, envelope)
    entry = due(store)[-1]
    assert (entry.kind, entry.body["kind"], entry.body["sha256"]) == ("peer.receipt", "rotation", sha256)
    # Nothing is believed on its strength.
    assert refusal(SignatureInvalid, listed.catalogue, POLICE, world.catalogue(POLICE, by="police, next"))
    # Told again, it is confirmed again and journaled no more.
    assert listed.announce_rotation(POLICE, envelope) == sha256
    assert due(store)[-1] == entry


def test_a_second_announcement_neither_wins_nor_is_lost_unseen(world, listed, store, clock):
    clock.pass_(minutes=1)
    listed.announce_rotation(POLICE, world.rotation(POLICE, "thief"))
    clock.pass_(minutes=1)
    own = world.rotation(POLICE, "owner")
    for _ in range(2):
        assert refusal(StateConflict, listed.announce_rotation, POLICE, own) == "other-announcement"
    assert [(one.next_key, one.refused) for one in store.rotations()] == [
        (signer("thief").public_key, False),
        (signer("owner").public_key, True),
    ]
    codes = [entry.body.get("code") for entry in due(store) if entry.body.get("kind") == "rotation"]
    assert codes == [None, "other-announcement"]
    # The operator keeps the present key; the owner's announcement, sent again, is the one that stands.
    clock.pass_(minutes=1)
    listed.publish(world.signed(world.roster(2, listed.roster, issued=world.now())))
    clock.pass_(minutes=1)
    thief = world.rotation(POLICE, "thief", issued=world.now() - timedelta(minutes=3))
    listed.announce_rotation(POLICE, thief)
    assert listed.announce_rotation(POLICE, own) == decode_envelope(own).payload_digest
    standing = {one.next_key for one in store.rotations() if one.arrived > listed.roster.issued}
    assert standing == {signer("owner").public_key}


def test_a_flood_of_announcements_leaves_a_bounded_trace(world, listed, store, clock):
    clock.pass_(minutes=1)
    before = len(due(store))
    for number in range(20):
        with contextlib.suppress(StateConflict):
            listed.announce_rotation(POLICE, world.rotation(POLICE, f"key {number}"))
    assert len(store.rotations()) == len(due(store)) - before == 1 + MAX_REFUSED_ROTATIONS


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda w: w.rotation(POLICE, "next", by=(POLICE,)), "too-few-signatures"),
        (lambda w: w.rotation(POLICE, "next", by=("next",)), "too-few-signatures"),
        (lambda w: w.rotation(HEALTH, "next"), "too-few-signatures"),
        (lambda w: w.rotation(HEALTH, "next", by=(HEALTH, "next", POLICE)), "wrong-subject"),
        (lambda w: w.rotation(POLICE, "next", node=HEALTH), "wrong-subject"),
        (lambda w: w.rotation(POLICE, HEALTH), "key-in-use"),
        (lambda w: w.rotation(POLICE, "li"), "key-in-use"),
        (lambda w: w.rotation(POLICE, "next", issued=w.now() + timedelta(hours=1)), "rotation-not-valid"),
        (lambda w: w.catalogue(POLICE), "wrong-payload-type"),
        (lambda w: b"[" * (1 << 20), "too-long"),
    ],
)
def test_an_announcement_that_does_not_hold_is_not_kept(world, listed, store, make, code):
    assert refusal(MinshuError, listed.announce_rotation, POLICE, make(world)) == code
    assert store.rotations() == []


def test_a_catalogue_under_a_key_given_up_is_no_longer_handed_out(world, listed, store):
    for node in (POLICE, HEALTH):
        store.put_catalogue(node, world.catalogue(node))
    assert len(listed.catalogues()) == 2
    nodes = tuple(
        replace(node, identity_key=signer("police, next").public_key) if node.name == POLICE else node
        for node in listed.roster.nodes
    )
    listed.publish(world.signed(world.roster(2, listed.roster, nodes=nodes)))
    assert listed.catalogues() == [world.catalogue(HEALTH)]


def test_a_catalogue_with_another_signature_beside_its_nodes_is_not_taken(world, listed, store):
    both = decode_envelope(world.catalogue(POLICE)).with_signature(signer(HEALTH)).encode()
    assert refusal(SignatureInvalid, listed.catalogue, POLICE, both) == "several-signers"
    store.put_catalogue(POLICE, both)  # as an earlier release did
    assert listed.catalogues() == []


def test_roots_have_one_spelling_and_one_fingerprint(world):
    roots = world.roots
    assert Roots.decode(roots.encode()) == roots
    assert Roots.of("gz.example", 2, reversed(roots.keys)) == roots
    for wrong in (
        roots.encode().replace(b'"threshold":2', b'"threshold":4'),
        roots.encode().replace(roots.keys[0].hex().encode(), roots.keys[1].hex().encode()),
        roots.encode().replace(roots.keys[0].hex().encode(), roots.keys[0].hex().upper().encode()),
        roots.encode() + b"\n",
    ):
        with pytest.raises(DecodeError):
            Roots.decode(wrong)
    with pytest.raises(InputError):
        Roots.of("gz.example", 2, [roots.keys[0]] * 2)
    assert refusal(SignatureInvalid, roots.pinned, "sha256:" + "0" * 64) == "wrong-roots"
    assert roots.pinned(roots.fingerprint) is roots


# -- connections -------------------------------------------------------------------------------------


def test_before_the_first_roster_the_enrolled_key_counts(world, registry, authority):
    assert refusal(SignatureInvalid, registry.check_peer, POLICE, spki(POLICE)) == "not-in-roster"
    registry.new_token(POLICE, SECRET)
    registry.enrol(*world.enrolment(POLICE, SECRET), authority)
    assert registry.check_peer(POLICE, spki(POLICE)) == POLICE
    assert refusal(SignatureInvalid, registry.check_peer, POLICE, spki(HEALTH)) == "wrong-tls-key"


def test_once_there_is_a_roster_it_alone_counts(world, listed, authority):
    assert listed.check_peer(POLICE, spki(POLICE)) == POLICE
    assert refusal(SignatureInvalid, listed.check_peer, POLICE, spki(HEALTH)) == "wrong-tls-key"
    # A fresh enrolment, or a stolen authority, changes nothing before the root keys have signed it.
    listed.new_token(POLICE, SECRET)
    stolen = tls_key("stolen")
    leaf = listed.enrol(*world.enrolment(POLICE, SECRET, csr=csr(POLICE, stolen)), authority)
    assert refusal(SignatureInvalid, listed.check_peer, *peer_of(leaf)) == "wrong-tls-key"
    smaller = world.roster(2, listed.roster, nodes=listed.roster.nodes[1:])
    listed.publish(world.signed(smaller))
    gone = next(node for node in NODES if smaller.node(node) is None)
    assert refusal(SignatureInvalid, listed.check_peer, gone, spki(gone)) == "not-in-roster"


# -- analysts' requests ------------------------------------------------------------------------------


def test_a_request_names_its_analyst(world, listed):
    analyst, request = listed.request("Show", world.request("Show", "sha256:" + "1" * 64))
    assert (analyst.name, analyst.organisation) == ("li", BUREAU)
    assert request.subject == "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("make", "kind", "code"),
    [
        (lambda w: w.request("List", by="mallory"), SignatureInvalid, "unknown-analyst"),
        (lambda w: w.request("Roster"), SignatureInvalid, "wrong-method"),
        (lambda w: w.request("List", time=w.now() - timedelta(seconds=301)), Refused, "request-stale"),
        (lambda w: w.request("List", time=w.now() + timedelta(seconds=301)), Refused, "request-stale"),
        (lambda w: w.request("List", nonce="x"), DecodeError, "bad-field"),
        (lambda w: w.request("List")[:-20], DecodeError, "not-json"),
        (lambda w: b" " * 5000, DecodeError, "too-long"),
        (lambda w: sign(JOB, b"{}", [signer("li")]).encode(), SignatureInvalid, "wrong-payload-type"),
        (
            lambda w: w.request("List").replace(
                key_id(signer("li").public_key).encode(), key_id(signer("zhao").public_key).encode()
            ),
            SignatureInvalid,
            "too-few-signatures",
        ),
    ],
)
def test_a_request_that_does_not_hold_is_refused(world, listed, make, kind, code):
    assert refusal(kind, listed.request, "List", make(world)) == code


def test_a_request_is_answered_once(world, listed, clock):
    request = world.request("List")
    listed.request("List", request)
    clock.pass_(seconds=200)
    assert refusal(StateConflict, listed.request, "List", request) == "request-replayed"


def test_before_the_first_roster_nobody_is_answered(world, registry):
    assert refusal(SignatureInvalid, registry.request, "List", world.request("List")) == "unknown-analyst"


# -- jobs --------------------------------------------------------------------------------------------


def test_a_job_is_the_requesters(world, listed):
    envelope = world.job(listed.roster)
    spec, analyst, job_id = listed.job(envelope)
    assert (spec.job_id, analyst.name) == (job_id, "li")


def test_under_an_expired_roster_no_job_is_taken_in(world, listed, clock):
    clock.now = listed.roster.expires - timedelta(seconds=1)
    listed.job(world.job(listed.roster))
    clock.pass_(seconds=1)
    assert refusal(Refused, listed.job, world.job(listed.roster)) == "roster-expired"
    # Its nodes and analysts still reach the coordinator: how else would they get the next one.
    assert listed.check_peer(POLICE, spki(POLICE)) == POLICE
    listed.request("Roster", world.request("Roster"))


@pytest.mark.parametrize(
    ("changes", "by", "expected"),
    [
        ({}, "mallory", (SignatureInvalid, "unknown-analyst")),
        ({}, "zhao", (SignatureInvalid, "wrong-requester")),
        ({"requester": key_id(signer("zhao").public_key)}, "li", (SignatureInvalid, "wrong-requester")),
        ({"collaboration": "other.example"}, "li", (InputError, "wrong-collaboration")),
        ({"roster_digest": sha256_digest(b"old")}, "li", (StateConflict, "roster-outdated")),
        ({"expires": NOW, "created": NOW - timedelta(days=1)}, "li", (InputError, "bad-expiry")),
        ({"expires": NOW + timedelta(days=31)}, "li", (InputError, "bad-expiry")),
        (
            {"roles": {**SEATS, Role("matcher"): NodeName("unknown.example/node-a")}},
            "li",
            (InputError, "unknown-node"),
        ),
        (
            {"params": {"present_in": "at_least", "k": 9, "key_holder": "source-1"}},
            "li",
            (InputError, "bad-params"),
        ),
        ({"job_type": "no-such-type/1"}, "li", (Refused, "unknown-job-type")),
        ({"recipients": (Organisation("health.gz.example"),)}, "li", (InputError, "bad-recipients")),
    ],
)
def test_a_job_that_does_not_hold_is_refused(world, listed, changes, by, expected):
    kind, code = expected
    found = refusal(kind, listed.job, world.job(listed.roster, by, **changes))
    assert found == code


def test_a_huge_job_is_refused_before_it_is_parsed(listed):
    assert refusal(DecodeError, listed.job, b"[" * (MAX_JOB_ENVELOPE_BYTES + 1)) == "too-long"


def test_a_job_signed_as_something_else_is_refused(world, listed):
    envelope = sign("other", world.spec(listed.roster).encode(), [signer("li")]).encode()
    assert refusal(SignatureInvalid, listed.job, envelope) == "wrong-payload-type"


# -- what nodes sign ---------------------------------------------------------------------------------


def test_what_a_node_signs_counts_only_for_itself_and_its_attempt(world, listed):
    job = "sha256:" + "1" * 64
    for read, make in (
        (listed.verdict, lambda node, by, attempt: world.verdict(node, job, attempt, "permit", by)),
        (listed.admission, lambda node, by, attempt: world.admission(node, job, attempt, by)),
        (listed.release_note, lambda node, by, attempt: world.release(job, attempt, node, by)[0]),
    ):
        read(POLICE, job, 1, make(POLICE, None, 1))
        assert (
            refusal(SignatureInvalid, read, POLICE, job, 1, make(POLICE, HEALTH, 1)) == "too-few-signatures"
        )
        assert refusal(SignatureInvalid, read, POLICE, job, 1, make(HEALTH, POLICE, 1)) == "wrong-subject"
        assert refusal(SignatureInvalid, read, POLICE, job, 1, make(POLICE, None, 2)) == "wrong-subject"
        assert refusal(DecodeError, read, POLICE, job, 1, b"{" * (1 << 20)) == "too-long"
        stranger = NodeName("stranger.example/node-a")
        assert refusal(SignatureInvalid, read, stranger, job, 1, make(POLICE, None, 1)) == "not-in-roster"


def test_a_clash_in_a_replaced_roster_entry_shows_when_it_is_decoded(world, registry):
    roster = world.roster()
    twice = replace(roster, nodes=(*roster.nodes, roster.nodes[0]))
    assert refusal(DecodeError, registry.publish, world.signed(twice)) == "bad-roster"
