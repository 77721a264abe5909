"""The hand-over between a party's thread and its data stream is bounded, and can be stopped at any point."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from simulator import until

from node.exchange import Exchange
from protocols.errors import MinshuError, StateConflict, Unreachable


class Pipe:
    """A data stream whose other end the test holds."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.coming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.taken = 0
        self.gate = asyncio.Event()
        self.finished = self.closed = self.broken = False

    async def send(self, frame: bytes) -> None:
        await self.gate.wait()
        if self.broken:
            raise Unreachable("gone", code="link-broken")
        self.sent.append(frame)

    async def receive(self) -> bytes | None:
        frame = await self.coming.get()
        self.taken += 1
        return frame

    async def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    got: list[object] = []

    def run() -> None:
        try:
            got.append(work())
        except MinshuError as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def test_a_slow_link_holds_the_party_back() -> None:
    async def play() -> None:
        pipe = Pipe()
        exchange = Exchange(pipe, 2)
        passed: list[int] = []

        def work() -> None:
            for n in range(10):
                exchange.send(bytes([n]))
                passed.append(n)

        thread, _ = in_thread(work)
        await asyncio.sleep(0.1)
        assert len(passed) <= 3  # two in the queue, one in the link's hands
        pipe.gate.set()
        await until(lambda: not thread.is_alive())
        await exchange.finish()
        assert pipe.sent == [bytes([n]) for n in range(10)]
        assert pipe.finished
        await exchange.close()
        assert pipe.closed

    asyncio.run(play())


def test_a_slow_party_leaves_frames_at_the_relay() -> None:
    async def play() -> None:
        pipe = Pipe()
        exchange = Exchange(pipe, 2)
        for n in range(1, 11):
            pipe.coming.put_nowait(bytes([n]))
        await asyncio.sleep(0.05)
        assert pipe.taken <= 3
        thread, got = in_thread(lambda: [exchange.receive() for _ in range(10)])
        await until(lambda: not thread.is_alive())
        assert got == [[bytes([n]) for n in range(1, 11)]]
        await exchange.close()

    asyncio.run(play())


@pytest.mark.parametrize("act", ["send", "receive"])
def test_a_stop_reaches_a_party_that_waits(act: str) -> None:
    async def play() -> None:
        pipe = Pipe()
        exchange = Exchange(pipe, 1)

        def work() -> None:
            while True:
                if act == "send":
                    exchange.send(b"x")
                else:
                    exchange.receive()

        thread, got = in_thread(work)
        await asyncio.sleep(0.05)
        why = StateConflict("over", code="peer-failed")
        exchange.stop(why)
        exchange.stop(StateConflict("later", code="later"))
        await until(lambda: not thread.is_alive())
        assert got == [why]
        with pytest.raises(StateConflict):
            exchange.check()
        await exchange.close()

    asyncio.run(play())


def test_a_stop_before_the_party_waits_is_not_missed() -> None:
    async def play() -> None:
        exchange = Exchange(Pipe(), 1)
        why = StateConflict("over", code="peer-failed")
        exchange.stop(why)
        thread, got = in_thread(exchange.receive)
        await until(lambda: not thread.is_alive())
        assert got == [why]
        await exchange.close()

    asyncio.run(play())


def test_a_stream_that_ends_too_early_is_a_lost_peer() -> None:
    async def play() -> None:
        pipe = Pipe()
        exchange = Exchange(pipe, 4)
        pipe.coming.put_nowait(b"last")
        pipe.coming.put_nowait(None)
        thread, got = in_thread(lambda: (exchange.receive(), exchange.receive()))
        await until(lambda: not thread.is_alive())
        [error] = got
        assert isinstance(error, Unreachable)
        assert error.code == "peer-lost"
        await exchange.close()

    asyncio.run(play())


def test_a_broken_link_ends_the_sending() -> None:
    async def play() -> None:
        pipe = Pipe()
        pipe.broken = True
        pipe.gate.set()
        exchange = Exchange(pipe, 1)
        thread, got = in_thread(lambda: [exchange.send(b"x") for _ in range(5)])
        await until(lambda: not thread.is_alive())
        assert isinstance(got[0], Unreachable)
        with pytest.raises(Unreachable):
            await exchange.finish()
        await exchange.close()

    asyncio.run(play())


def test_a_stop_reaches_a_party_that_is_done_but_whose_frames_are_stuck() -> None:
    async def play() -> None:
        exchange = Exchange(Pipe(), 1)  # its gate stays shut
        thread, _ = in_thread(lambda: exchange.send(b"x"))
        await until(lambda: not thread.is_alive())
        finishing = asyncio.create_task(exchange.finish())
        await asyncio.sleep(0.05)
        assert not finishing.done()
        exchange.stop(StateConflict("over", code="timed-out"))
        with pytest.raises(StateConflict):
            await asyncio.wait_for(finishing, 5)
        await exchange.close()

    asyncio.run(play())
