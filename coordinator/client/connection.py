"""The SDK's calls: a TLS channel that trusts the pinned authority alone, and signed requests over it."""

import secrets
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

from coordinator.client.home import AnalystHome
from coordinator.files import read_bounded
from coordinator.requests import Request

_MAX_MESSAGE_BYTES: Final = 64 << 20
_MAX_PEM_BYTES: Final = 64 << 10
_EXPLAIN_S: Final = 10.0
"""How long the coordinator waits for the nodes' dry answers."""


class Connection:
    """Synchronous calls to the BureauService; from any thread."""

    def __init__(self, home: AnalystHome, now: Callable[[], datetime]) -> None:
        """Prepare the channel; gRPC dials at the first call."""
        import grpc

        from minshu.v1.jobs_pb2_grpc import BureauServiceStub

        self._signer = home.signer()
        self._now = now
        self._timeout_s = home.config.timeout_s
        self._channel: grpc.Channel = grpc.secure_channel(
            home.config.address,
            grpc.ssl_channel_credentials(read_bounded(home.authority, _MAX_PEM_BYTES)),
            options=(
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.keepalive_time_ms", 30_000),
                # A proxy named in the environment is meant for the web, not for this.
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self._stub: Any = BureauServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self._channel.close()

    def submit(self, envelope: bytes) -> None:
        """Hand in a signed job.

        Raises:
            MinshuError: what the coordinator answered.
            Unreachable: it did not.
        """
        from minshu.v1.jobs_pb2 import SubmitRequest

        self._answered(self._stub.Submit, SubmitRequest(job=envelope))

    def file(self, envelope: bytes) -> Any:
        """Hand in a signed outcome and return the answer.

        Raises:
            MinshuError: what the coordinator answered.
            Unreachable: it did not.
        """
        from minshu.v1.jobs_pb2 import FileRequest

        return self._answered(self._stub.File, FileRequest(outcome=envelope))

    def explain(self, envelope: bytes) -> Iterator[Any]:
        """Hand in a signed question and yield what the nodes answer.

        Raises:
            MinshuError: what the coordinator answered.
            Unreachable: it did not, or went away.
        """
        from minshu.v1.jobs_pb2 import ExplainRequest

        return self._streamed(
            self._stub.Explain, ExplainRequest(question=envelope), _EXPLAIN_S + self._timeout_s
        )

    def call(self, method: str, subject: str = "") -> Any:
        """Sign a request for `method` and return the answer.

        Raises:
            MinshuError: what the coordinator answered.
            Unreachable: it did not.
        """
        return self._answered(getattr(self._stub, method), self._message(method, subject))

    def stream(self, method: str, subject: str) -> Iterator[Any]:
        """Sign a request for `method` and yield the answers; the call ends when the iterator is closed.

        Raises:
            MinshuError: what the coordinator answered.
            Unreachable: it did not, or went away.
        """
        return self._streamed(getattr(self._stub, method), self._message(method, subject))

    @staticmethod
    def _streamed(method: Any, message: Any, timeout_s: float | None = None) -> Iterator[Any]:
        import grpc

        from coordinator.rpc import error_of

        call = method(message, timeout=timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise error_of(error) from None
        finally:
            call.cancel()

    def _message(self, method: str, subject: str) -> Any:
        from minshu.v1 import jobs_pb2

        request = Request(method, subject, self._now(), secrets.token_hex(16)).signed(self._signer)
        return getattr(jobs_pb2, f"{method}Request")(request=request)

    def _answered(self, method: Any, message: Any) -> Any:
        import grpc

        from coordinator.rpc import error_of

        try:
            return method(message, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_of(error) from None
