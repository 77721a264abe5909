"""How a call reaches its handler, and what bounds those that do not: silence, numbers, our own faults.

gRPC gives every open call one of a server's slots, and one that is to bring a single message keeps the slot
until that has come. So the message is read here, in bounded time and only from a peer who may call at all;
and no address holds more than its share of the slots.
"""

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final

import grpc
import grpc.aio

from coordinator import rpc
from protocols.errors import DecodeError, MinshuError, Unreachable

FIRST_MESSAGE_S: Final = 10.0
"""How long a call may stay silent before its first message."""

_log = logging.getLogger("minshu.coordinator")

Context = grpc.aio.ServicerContext[Any, Any]

_FAULT: Final = MinshuError(
    "the coordinator failed to answer; its log says why", hint="tell the coordinator's operator, try again"
)


def answers(handler: Callable[[Any, Any, Context], Awaitable[Any]]) -> Any:
    """Turn our errors into statuses; of any other the caller learns nothing but that it was one."""

    @wraps(handler)
    async def answer(self: Any, request: Any, context: Context) -> Any:
        try:
            return await handler(self, request, context)
        except MinshuError as error:
            await rpc.abort(context, error)
        except Exception:  # noqa: BLE001  # the outermost frame of a call
            if context.done():
                return None  # the caller has hung up; gRPC says so by whatever the next call fails with
            _log.exception("a call failed")
            await rpc.abort(context, _FAULT)

    return answer


async def first_message(context: Context) -> Any:
    """Return a call's first message.

    Raises:
        DecodeError: `silent-stream`: none came in time.
    """
    try:
        message = await asyncio.wait_for(context.read(), FIRST_MESSAGE_S)
    except TimeoutError:
        message = grpc.aio.EOF
    if message is grpc.aio.EOF:
        raise DecodeError(
            f"no message came within {FIRST_MESSAGE_S:.0f} s of opening the stream", code="silent-stream"
        )
    return message


class Calls(grpc.aio.ServerInterceptor):
    """Stands before every handler of a server: counts the call, checks its peer, reads its one message."""

    def __init__(self, check: Callable[[Context], object], at_once: int) -> None:
        """Let a call on to its handler where `check` raises nothing; an address may have `at_once` open."""
        self._check = check
        self._at_once = at_once
        self._open: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method's handler, as one that is called before any message has come."""
        # The stubs do not name what a handler consists of; None is a method that nobody serves.
        found: Any = await continuation(handler_call_details)
        if found is None:
            return None
        one = not found.request_streaming
        kinds = ("unary", "stream")
        inner = getattr(found, f"{kinds[not one]}_{kinds[found.response_streaming]}")

        async def serve(self: Calls, requests: Any, context: Context) -> Any:
            address = origin(context.peer())
            if self._open[address] >= self._at_once:
                raise Unreachable(
                    f"{self._at_once} calls from this address are open, no more are given",
                    code="too-many-calls",
                    hint="wait until some of them have ended, then try again",
                )
            self._open[address] += 1
            try:
                self._check(context)
                return await inner(await first_message(context) if one else requests, context)
            finally:
                self._open[address] -= 1
                if not self._open[address]:
                    del self._open[address]

        guarded = answers(serve)

        async def handler(requests: Any, context: Context) -> Any:
            return await guarded(self, requests, context)

        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if found.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(handler, found.request_deserializer, found.response_serializer)  # type: ignore[no-any-return]  # see above


def origin(peer: str) -> str:
    """Return whom gRPC's name of a peer counts for: its IPv4 address, or the /64 network of its IPv6 one."""
    host = peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
