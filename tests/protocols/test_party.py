"""`run` plays a protocol in memory under the rules of the real channel."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.party import MAX_BODY_BYTES, Finished, Incoming, Outgoing, Sent, Step, Waiting, run

A, B, C = Role("a"), Role("b"), Role("c")


@dataclass
class Scripted:
    """A party that starts with `first` and answers each message with `answer`."""

    first: Step
    answer: Callable[[Incoming], Step] = lambda message: Finished(output=message.body)
    heard: list[Incoming] = field(default_factory=list)

    def start(self) -> Step:
        return self.first

    def receive(self, message: Incoming) -> Step:
        self.heard.append(message)
        return self.answer(message)


def sends(*messages: Outgoing) -> Finished:
    return Finished(messages, output="sent")


def test_a_message_arrives_as_it_was_sent_and_outputs_come_back():
    receiver = Scripted(Waiting())
    outputs = run({A: Scripted(sends(Outgoing(B, 3, b"hello"))), B: receiver})
    assert outputs == {A: "sent", B: b"hello"}
    assert receiver.heard == [Incoming(A, 3, b"hello", last=True)]


def test_messages_of_one_pair_keep_their_order():
    def answer(message: Incoming) -> Step:
        return Finished(output="done") if message.last else Waiting()

    receiver = Scripted(Waiting(), answer)
    chunks = [Outgoing(B, 1, bytes((n,)), last=n == 9) for n in range(10)]
    run({A: Scripted(sends(*chunks)), B: receiver})
    assert [m.body for m in receiver.heard] == [bytes((n,)) for n in range(10)]


def test_outgoing_is_lazy_and_sent_to_its_end():
    made = []

    def stream() -> Iterable[Outgoing]:
        for n in range(3):
            made.append(n)
            yield Outgoing(B, n, b"")

    receiver = Scripted(Waiting(), lambda m: Finished() if m.round == 2 else Waiting())
    step = Finished(stream())
    assert made == []
    run({A: Scripted(step), B: receiver})
    assert made == [0, 1, 2]


def test_the_observer_sees_every_message_in_order():
    seen: list[Sent] = []
    pong = Scripted(Waiting(), lambda m: Finished([Outgoing(A, 2, m.body[::-1])]))
    ping = Scripted(Waiting([Outgoing(B, 1, b"ab")]))
    run({A: ping, B: pong}, observe=seen.append)
    assert seen == [Sent(A, B, 1, b"ab", last=True), Sent(B, A, 2, b"ba", last=True)]


@pytest.mark.parametrize("to", [C, A])
def test_a_message_to_no_other_role_aborts(to):
    with pytest.raises(ProtocolAborted, match="no other role"):
        run({A: Scripted(sends(Outgoing(to, 1, b""))), B: Scripted(Finished())})


def test_a_message_to_a_finished_role_aborts():
    with pytest.raises(ProtocolAborted, match="after it had finished"):
        run({A: Scripted(sends(Outgoing(B, 1, b""))), B: Scripted(Finished())})


def test_a_protocol_that_stalls_names_who_is_unfinished():
    with pytest.raises(ProtocolAborted, match="unfinished: a, b"):
        run({A: Scripted(Waiting()), B: Scripted(Waiting()), C: Scripted(Finished())})


def test_a_stream_that_continues_after_its_last_message_aborts():
    receiver = Scripted(Waiting(), lambda _: Waiting())
    with pytest.raises(ProtocolAborted) as caught:
        run({A: Scripted(sends(Outgoing(B, 1, b""), Outgoing(B, 1, b""))), B: receiver})
    assert caught.value.code == "frame-after-last"


def test_a_stream_without_an_end_aborts():
    with pytest.raises(ProtocolAborted) as caught:
        run({A: Scripted(sends(Outgoing(B, 1, b"x", last=False))), B: Scripted(Waiting())})
    assert caught.value.code == "stream-truncated"


def test_streams_of_other_rounds_and_receivers_are_apart():
    receiver = Scripted(Waiting(), lambda m: Finished() if m.round == 2 else Waiting())
    other = Scripted(Waiting())
    sender = Scripted(sends(Outgoing(B, 1, b""), Outgoing(C, 1, b""), Outgoing(B, 2, b"")))
    assert run({A: sender, B: receiver, C: other}) == {A: "sent", B: None, C: b""}


def test_a_body_over_the_bound_aborts():
    fits, too_long = bytes(MAX_BODY_BYTES), bytes(MAX_BODY_BYTES + 1)
    assert run({A: Scripted(sends(Outgoing(B, 1, fits))), B: Scripted(Waiting())})[B] == fits
    with pytest.raises(ProtocolAborted) as caught:
        run({A: Scripted(sends(Outgoing(B, 1, too_long))), B: Scripted(Waiting())})
    assert caught.value.code == "too-long"


def test_an_abort_of_a_party_ends_the_run():
    def refuse(_: Incoming) -> Step:
        raise ProtocolAborted("a count does not fit", code="bad-count")

    with pytest.raises(ProtocolAborted) as caught:
        run({A: Scripted(sends(Outgoing(B, 1, b""))), B: Scripted(Waiting(), refuse)})
    assert caught.value.code == "bad-count"
