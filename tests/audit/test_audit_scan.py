"""The identifiers scan finds what could identify a person, wherever it stands, and nothing else."""

import base64
import hashlib
import tracemalloc
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
from simulator import new_signer, person, policy_text

from audit.bundle import Found
from audit.entries import Entry, PolicyRef
from audit.findings import Answer, Check
from audit.identifiers_scan import IdentifierScan, identifying
from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, sha256_digest
from protocols.envelope import APPROVAL, JOB, POLICY, sign

NUMBER = person(7)
APART = f"{NUMBER[:6]}-{NUMBER[6:14]}-{NUMBER[14:]}"
JOB_ID = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NUMBER, "long-number"),
        (NUMBER.lower(), "long-number"),
        (f"张三 {NUMBER} 已核实", "long-number"),
        (APART, "resident-id"),
        (f"{NUMBER[:6]} {NUMBER[6:14]} {NUMBER[14:]}", "resident-id"),
        ("13900001234", "long-number"),
        ("139 0000 1234", "mobile-number"),
        ("+86-139-0000-1234", "mobile-number"),
        ("１３９００００１２３４", "long-number"),
        ("P-2026-014", ""),
        ("2026-11-22T08:00:00Z", ""),
        ("2026-11-22 08:00:00.123", ""),
        ("2026-11-22T08:00:00.000Z", ""),
        (JOB_ID, ""),
        ("0123456789" * 4 + "abcdef" * 4, ""),
        ("核实名单并补登", ""),
        ("", ""),
        (f"{NUMBER[:6]}-{NUMBER[6:14]}-{NUMBER[14:17]}{'0' if NUMBER[17] != '0' else '1'}", ""),
    ],
)
def test_what_could_identify_a_person_is_told_from_what_could_not(text: str, expected: str) -> None:
    assert identifying(text) == expected


def entry(**fields: Any) -> Entry:
    plain: dict[str, Any] = {
        "log": "police.gz.example/node-a/journal/1",
        "seq": 3,
        "time": "2026-12-01T08:00:00.000Z",
        "kind": "job.received",
        "job": JOB_ID,
        "attempt": 1,
        "policy": PolicyRef(1, JOB_ID, "R1"),
        "actor": "",
        "body": {"requester": JOB_ID, "job_type": "crosscheck/1", "columns": ["id", "street"]},
        "refs": (),
    }
    return Entry(**{**plain, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"body": {"requester": JOB_ID, "job_type": "crosscheck/1", "purpose": APART}},
        {"body": {"requester": JOB_ID, "job_type": "crosscheck/1", "columns": ["id", APART]}},
        {"actor": APART},
        {"policy": PolicyRef(1, JOB_ID, APART)},
    ],
)
def test_every_text_of_an_entry_is_looked_through(fields: dict[str, Any]) -> None:
    check = Check("identifiers")
    scan = IdentifierScan(check)
    scan.entry(entry())
    assert check.count == 0
    scan.entry(entry(**fields))
    scan.finish()
    assert [(f.code, f.where) for f in check.findings] == [("resident-id", "entry 3")]
    assert NUMBER[6:14] not in str(check.document())


def looked_through(data: bytes) -> list[str]:
    check = Check("identifiers")
    IdentifierScan(check).file("objects/x", data)
    return [finding.code for finding in check.findings]


def test_payloads_are_looked_into() -> None:
    signer = new_signer()
    for said in (f"核实 {NUMBER}", APART):
        text = canonical_json({"expected_use": said, "nonce": "0" * 32})
        assert looked_through(sign(JOB, text, [signer]).encode())
    large = canonical_json({"max_rows": 20000000000})
    assert looked_through(sign(JOB, large, [signer]).encode()) == []
    mobile = canonical_json({"params": {"phone": 13900001234}})
    assert looked_through(sign(JOB, mobile, [signer]).encode()) == ["long-number"]


def test_policies_are_looked_into_with_their_comments() -> None:
    text = policy_text("police", JOB_ID, "sha256:" + "cd" * 32, "sha256:" + "ef" * 32).encode()
    assert looked_through(text) == []
    assert looked_through(sign(POLICY, text, [new_signer()]).encode()) == []
    noted = text + f"# 来电 {NUMBER}\n".encode()
    assert looked_through(noted) == ["long-number"]


def test_costs_digests_keys_and_signatures_are_no_identifiers() -> None:
    cost = Cost.zcdp(Fraction(1, 3), Fraction(1, 10**9))
    assert any(len(str(loss)) > 11 for loss in cost.rdp)
    payload = canonical_json(
        {"cost": cost.encode(), "key": "1234567890123456789012345678901234567890", "job": JOB_ID}
    )
    for _ in range(40):
        assert looked_through(sign(APPROVAL, payload, [new_signer()]).encode()) == []
    assert looked_through(canonical_json({"cost": NUMBER})) == ["long-number"]


@pytest.mark.parametrize("data", [b"", b"{", b'{"payload":"', b"\xff" * 32, b"[" * 2000, b'{"payload":"!"}'])
def test_bytes_of_any_kind_are_survived(data: bytes) -> None:
    assert looked_through(data) == []


HOSTILE = {
    "keys within keys": 'x="é"\n'.encode() + b".".join([b"a"] * 3000) + b" = 1\n",
    "a number of thousands of digits": 'x="é"\n'.encode() + b"y = 0x" + b"f" * 5000 + b"\n",
    "lists within lists": '["é",'.encode() + b"[" * 900 + b'"1"' + b"]" * 900 + b"]",
    "an envelope of lists": b'{"payload":"e30=","signatures":' + b"[" * 900 + b"]" * 900 + b"}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_survived(name: str) -> None:
    assert looked_through(HOSTILE[name]) == []


def test_what_lies_deep_in_a_document_is_looked_at_all_the_same() -> None:
    deep = '["é",'.encode() + b"[" * 300 + f'"{NUMBER}"'.encode() + b"]" * 300 + b"]"
    assert looked_through(deep) == ["long-number"]
    assert looked_through(b'{"payload":"!", ' + NUMBER.encode()) == ["long-number"]
    around = sign(JOB, b"{}", [new_signer()]).encode()
    assert looked_through(around.replace(b'"payloadType"', f'"who":"{NUMBER}","payloadType"'.encode()))


def test_an_object_that_is_no_text_is_looked_through_unless_it_is_a_key() -> None:
    assert looked_through(b"\xff" + NUMBER.encode()) == ["long-number"]
    assert looked_through(b"\xff" * 21 + b"13900001234") == []


def test_a_long_number_on_the_edge_of_what_is_looked_at_at_once_is_found() -> None:
    for before in range(4080, 4100):
        assert identifying("é" * before + APART + "é" * 9000) == "resident-id"


def test_memory_stays_with_the_size_of_an_object() -> None:
    """One character that is eighteen in full, and one list of three bytes that takes sixty-four."""
    for data in ("\ufdfa".encode() * (1 << 19), '["é"'.encode() + b",[]" * (1 << 19) + b"]"):
        tracemalloc.start()
        assert looked_through(data) == []
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 16 * len(data)


# -- planted identifiers -----------------------------------------------------------------------------------


@dataclass
class Shelf:
    """A bundle's files, in memory."""

    held: dict[str, bytes] = field(default_factory=dict)

    def files(self) -> list[Found]:
        return [Found(name, len(data), regular=name != "link") for name, data in self.held.items()]

    def read(self, name: str, limit: int = 1 << 20) -> bytes | None:
        return self.held[name]


FORMS = {
    "text": NUMBER.encode(),
    "hex": NUMBER.encode().hex().encode(),
    "base64": base64.b64encode(b"id " + NUMBER.encode()),
    "sha256": hashlib.sha256(NUMBER.encode()).hexdigest().encode(),
    "typed sha256": hashlib.sha256(b"RIC:" + NUMBER.encode()).digest(),
    "sm3": hashlib.new("sm3", NUMBER.encode()).hexdigest().encode(),
    "md5": base64.b64encode(hashlib.md5(NUMBER.encode(), usedforsecurity=False).digest()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_identifier_is_found_in_every_form_and_file(form: str) -> None:
    for name in ("tile/entries/000.p/3", "checkpoint", "objects/sha256/ab/" + "ab" * 32):
        check = Check("identifiers")
        IdentifierScan(check, [person(1), NUMBER]).bundle(Shelf({name: b"before " + FORMS[form] + b" after"}))
        assert ("canary", name) in {(f.code, f.where) for f in check.findings}
        assert NUMBER not in str(check.document())


def test_a_planted_identifier_inside_an_envelope_is_found() -> None:
    """Base64 of a payload hides what the alignment of its words does not show."""
    for shift in range(3):
        envelope = sign(JOB, b"{}" + b" " * shift + FORMS["sha256"], [new_signer()]).encode()
        check = Check("identifiers")
        IdentifierScan(check, [NUMBER]).bundle(Shelf({"objects/x": envelope}))
        assert "canary" in {f.code for f in check.findings}


def test_without_planted_identifiers_only_objects_are_read() -> None:
    asked: list[str] = []

    class Watched(Shelf):
        def read(self, name: str, limit: int = 1 << 20) -> bytes | None:
            asked.append(name)
            return super().read(name, limit)

    shelf = Watched({"tile/entries/000": b"", "objects/a": b"{}", "link": b""})
    check = Check("identifiers")
    scan = IdentifierScan(check)
    scan.entry(entry())
    scan.finish()
    scan.bundle(shelf)
    assert asked == ["objects/a"]
    assert check.answer is Answer.HOLDS
    assert check.looked_at == 2


def test_a_digest_that_no_one_planted_is_no_finding() -> None:
    check = Check("identifiers")
    IdentifierScan(check, [NUMBER]).bundle(Shelf({"objects/x": sha256_digest(b"other").encode()}))
    assert check.count == 0
