"""The relay: order, seats, and memory that stays bounded whoever floods and whoever does not read."""

import asyncio
import logging
from dataclasses import replace

import pytest
from collaboration import HEALTH, INSURANCE, POLICE, SEATS, STATISTICS
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.relay import Exchange, Relay
from protocols.channel.frame import MAX_FRAME_BYTES, Header
from protocols.errors import DecodeError, MinshuError, Refused, StateConflict
from protocols.ids import JobId, Role

JOB = JobId("sha256:" + "1" * 64)
HEADER = Header(
    suite=2,
    job=JOB,
    attempt=1,
    ctx=b"\x05" * 32,
    sender=Role("register"),
    to=Role("matcher"),
    round=1,
    seq=0,
    last=False,
    enc_len=0,
)
KIB = 1 << 10


def frame(size=512, **changes):
    raw = replace(HEADER, **changes).encode()
    return raw + b"\x07" * (size - len(raw))


def exchange(max_frames=64, max_bytes=64 << 20):
    return Exchange(JOB, 1, SEATS, max_frames=max_frames, max_bytes=max_bytes)


async def take(exchange, node, count):
    frames = exchange.frames(node)
    return [await asyncio.wait_for(anext(frames), 1) for _ in range(count)]


async def blocked(awaitable):
    """Start it and say whether it still waits once everything else had its turn."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(20):
        await asyncio.sleep(0)
    return task, not task.done()


def test_frames_reach_their_seat_unchanged_and_in_order():
    async def play():
        relay = exchange()
        sent = [frame(600 + i, seq=i) for i in range(5)]
        for one in sent:
            await relay.put(POLICE, one)
        assert await take(relay, STATISTICS, 5) == sent

    asyncio.run(play())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"job": JobId("sha256:" + "2" * 64)}, "foreign-frame"),
        ({"attempt": 2}, "foreign-frame"),
        ({"sender": Role("source-1")}, "foreign-sender"),
        ({"sender": Role("stranger")}, "foreign-sender"),
        ({"to": Role("stranger")}, "unknown-role"),
        ({"to": Role("register")}, "unknown-role"),
    ],
)
def test_a_frame_that_is_not_its_streams_is_refused(changes, code):
    async def play():
        with pytest.raises(Refused) as refused:
            await exchange().put(POLICE, frame(**changes))
        assert refused.value.code == code

    asyncio.run(play())


@pytest.mark.parametrize(
    "junk", [b"", b"\x01", b"\x02" + frame()[1:], frame()[:150], frame(MAX_FRAME_BYTES + 1)]
)
def test_what_is_no_frame_is_refused(junk):
    async def play():
        with pytest.raises(DecodeError):
            await exchange().put(POLICE, junk)

    asyncio.run(play())


def test_a_sender_waits_when_its_share_of_frames_is_used_up_and_goes_on_when_one_is_read():
    async def play():
        relay = exchange(max_frames=8)  # two per seat
        for seq in range(2):
            await relay.put(POLICE, frame(seq=seq))
        task, waits = await blocked(relay.put(POLICE, frame(seq=2)))
        assert waits
        frames = relay.frames(STATISTICS)
        await anext(frames)
        assert (await blocked(asyncio.shield(task)))[1], "a frame counts until the reader asks for the next"
        await anext(frames)
        await asyncio.wait_for(task, 1)

    asyncio.run(play())


def test_a_sender_waits_when_its_share_of_bytes_is_used_up():
    async def play():
        relay = exchange(max_bytes=4 * 100 * KIB)
        await relay.put(POLICE, frame(60 * KIB))
        task, waits = await blocked(relay.put(POLICE, frame(60 * KIB, seq=1)))
        assert waits
        await take(relay, STATISTICS, 2)
        await asyncio.wait_for(task, 1)

    asyncio.run(play())


def test_a_frame_longer_than_a_whole_share_still_passes_alone():
    async def play():
        relay = exchange(max_bytes=4 * KIB)
        await asyncio.wait_for(relay.put(POLICE, frame(100 * KIB)), 1)

    asyncio.run(play())


def test_a_flooded_seat_that_never_reads_stops_its_flooder_and_nobody_else():
    async def play():
        relay = exchange(max_frames=8)

        async def flood():
            for seq in range(1000):
                await relay.put(POLICE, frame(seq=seq))

        flooder, waits = await blocked(flood())
        assert waits
        for seq in range(50):
            await asyncio.wait_for(
                relay.put(INSURANCE, frame(seq=seq, sender=Role("source-1"), to=Role("source-2"))), 1
            )
            assert len(await take(relay, HEALTH, 1)) == 1
        flooder.cancel()

    asyncio.run(play())


@settings(max_examples=40, deadline=None)
@given(
    sends=st.lists(
        st.tuples(st.sampled_from(sorted(SEATS)), st.sampled_from(sorted(SEATS)), st.integers(512, 40 * KIB)),
        max_size=60,
    ),
    max_frames=st.integers(4, 32),
)
def test_memory_stays_within_the_bound_and_nothing_is_lost(sends, max_frames):
    bound = 4 * 64 * KIB
    flows = [(sender, to, size) for sender, to, size in sends if sender != to]

    async def play():
        relay = exchange(max_frames, bound)
        got = dict.fromkeys(SEATS, 0)

        async def send(role):
            for seq, (sender, to, size) in enumerate(flows):
                if sender == role:
                    await relay.put(SEATS[role], frame(size, sender=sender, to=to, seq=seq))
                    assert relay.held_bytes <= bound

        async def receive(role):
            expected = sum(1 for _, to, _ in flows if to == role)
            frames = relay.frames(SEATS[role])
            while got[role] < expected:
                await anext(frames)
                await asyncio.sleep(0)
                got[role] += 1
            await frames.aclose()

        await asyncio.wait_for(
            asyncio.gather(*(send(role) for role in SEATS), *(receive(role) for role in SEATS)), 10
        )
        assert relay.held_bytes == 0
        assert sum(got.values()) == len(flows)

    asyncio.run(play())


def test_frames_wait_for_a_seat_that_has_not_dialled_in_yet():
    async def play():
        relay = exchange()
        await relay.put(POLICE, frame())
        assert not relay.has_joined(STATISTICS)
        relay.join(STATISTICS)
        assert len(await take(relay, STATISTICS, 1)) == 1

    asyncio.run(play())


def test_a_stream_is_joined_once_and_only_by_a_participant():
    relay = exchange()
    relay.join(POLICE)
    with pytest.raises(StateConflict) as twice:
        relay.join(POLICE)
    assert twice.value.code == "data-stream-twice"
    with pytest.raises(Refused) as stranger:
        relay.join("stranger.example/node-a")
    assert stranger.value.code == "not-a-participant"


def test_a_seat_that_sent_all_still_gets_what_waits_for_it_and_then_its_stream_ends():
    async def play():
        relay = exchange()
        await relay.put(POLICE, frame())
        relay.sent_all(STATISTICS)
        assert len([one async for one in relay.frames(STATISTICS)]) == 1

    asyncio.run(play())


def test_frames_to_a_seat_that_left_are_dropped_and_block_nobody():
    async def play():
        relay = exchange(max_frames=4)
        await relay.put(POLICE, frame())
        task, waits = await blocked(relay.put(POLICE, frame(seq=1)))
        assert waits
        relay.leave(STATISTICS)
        await asyncio.wait_for(task, 1)
        await relay.put(POLICE, frame(seq=2))
        assert relay.held_bytes == 0

    asyncio.run(play())


def test_closing_ends_readers_and_waiting_senders_with_the_reason():
    async def play():
        relay = exchange(max_frames=4)
        await relay.put(POLICE, frame())
        sender, _ = await blocked(relay.put(POLICE, frame(seq=1)))
        reader, _ = await blocked(take(relay, INSURANCE, 1))
        relay.close(StateConflict("over", code="attempt-over"))
        for task in (sender, reader):
            with pytest.raises(MinshuError) as ended:
                await asyncio.wait_for(task, 1)
            assert ended.value.code == "attempt-over"
        assert relay.held_bytes == 0
        with pytest.raises(StateConflict):
            relay.join(HEALTH)

    asyncio.run(play())


def test_a_new_attempt_takes_the_place_of_the_old_one():
    relay = Relay(max_frames=64, max_bytes=64 << 20)
    relay.open(JOB, 1, SEATS)
    first = relay.exchange(JOB, 1)
    relay.open(JOB, 1, SEATS)
    assert relay.exchange(JOB, 1) is first
    relay.open(JOB, 2, SEATS)
    for attempt in (1, 3):
        with pytest.raises(StateConflict) as unknown:
            relay.exchange(JOB, attempt)
        assert unknown.value.code == "unknown-attempt"
    with pytest.raises(StateConflict):
        first.join(POLICE)
    relay.close(JOB, 1)
    assert relay.exchange(JOB, 2)
    relay.close(JOB, 2)
    with pytest.raises(StateConflict):
        relay.exchange(JOB, 2)


def test_no_body_ever_reaches_a_log(caplog):
    async def play():
        relay = exchange()
        await relay.put(POLICE, frame())
        with pytest.raises(Refused) as refused:
            await relay.put(POLICE, frame(attempt=2))
        await take(relay, STATISTICS, 1)
        return str(refused.value)

    with caplog.at_level(logging.DEBUG):
        text = asyncio.run(play())
    assert "\x07" not in text + caplog.text
    assert "0707" not in text + caplog.text
