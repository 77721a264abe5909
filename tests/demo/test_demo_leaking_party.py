"""The leak scan finds a party that leaks, by what its node records before sealing, and no honest one."""

import base64
import hashlib
from dataclasses import replace

import pytest
from crosscheck_case import Case, case, person

from demo.leaks import Scanner
from node.record import Recorder
from node.rpc import Attempt
from protocols.errors import MinshuError
from protocols.ids import Role
from protocols.party import Finished, Incoming, Outgoing, Party, Sent, Step, Waiting, run

LISTS = [
    dict.fromkeys(range(120), ("990101001", "2026-01")),
    dict.fromkeys([*range(90), *range(300, 312)], ("990101001", "2026-01")),
    dict.fromkeys([*range(30, 120), *range(300, 312)], ("990101002", "2026-02")),
]
CANARIES = [person(number) for number in (3, 45, 111, 301, 308)]
LEAKED = CANARIES[3]
KEY = f"RIC:{LEAKED}".encode()

LEAKS = {
    "the typed key": KEY,
    "the bare number in hex": LEAKED.encode().hex().encode(),
    "the typed key in base64, off by one": base64.b64encode(b"x" + KEY),
    "a plain SHA-256 in the place of a point": hashlib.sha256(KEY).digest(),
    "an SM3 of the bare number": hashlib.new("sm3", LEAKED.encode()).digest(),
}


class Leaking:
    """A party as it should be, but for the end of one message: there it puts something of its list."""

    def __init__(self, inner: Party, leak: bytes) -> None:
        self._inner, self._leak = inner, leak

    def start(self) -> Step:
        return self._slip(self._inner.start())

    def receive(self, message: Incoming) -> Step:
        return self._slip(self._inner.receive(message))

    def _slip(self, step: Step) -> Waiting | Finished:
        return replace(step, outgoing=map(self._bend, step.outgoing))

    def _bend(self, message: Outgoing) -> Outgoing:
        leak, self._leak = self._leak, b""
        return replace(message, body=message.body[: len(message.body) - len(leak)] + leak)


def recorded(asked: Case, folder) -> None:
    """Play a cross-check and record every body as each sender's own node does, before it is sealed."""
    recorders = {role: Recorder(folder / role) for role in asked.parties}
    attempt = Attempt(asked.spec.job_id, 1)

    def record(sent: Sent) -> None:
        message = Outgoing(sent.to, sent.round, sent.body, last=sent.last)
        recorders[sent.sender].body(attempt, sent.sender, message)

    run(asked.parties, observe=record)


def test_an_honest_run_is_clean_and_the_scan_had_all_of_it_to_search(tmp_path):
    asked = case(LISTS, k=2)
    recorded(asked, tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size == sum(len(sent.body) for sent in case_bodies())
    assert Scanner(CANARIES).scan([tmp_path]) == []


def case_bodies() -> list[Sent]:
    again = case(LISTS, k=2)
    again.run()
    return again.sent


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("role", ["register", "source-1", "source-2"])
def test_one_leaking_party_is_found(leak, role, tmp_path):
    asked = case(LISTS, k=2)
    asked.parties[Role(role)] = Leaking(asked.parties[Role(role)], leak)
    try:
        recorded(asked, tmp_path)
    except MinshuError:
        pass  # its peers may well notice; the message was out by then
    findings = Scanner(CANARIES).scan([tmp_path])
    assert {finding.canary for finding in findings} == {CANARIES.index(LEAKED)}
    assert {finding.file.parent.name for finding in findings} == {role}
