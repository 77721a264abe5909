"""Where a node's exponentiations are done: in this process, in others, or on the department's own cluster.

A cluster's workers get identifiers and the keys of an attempt, as this process has them. So the way to it is
TLS with certificates of both sides, or it is on this machine; and nothing that is handed over is ever part of
a message that the cluster logs, see `protocols.psi.spread`.

Without TLS a cluster knows nobody: every account of this machine can connect to the scheduler's port, read
what is handed over and have code run as the workers' user. That is for a machine on which nobody else works.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from importlib.util import find_spec
from ipaddress import ip_address
from multiprocessing import get_context
from typing import Any, Final
from urllib.parse import urlsplit

from node.config import Compute
from protocols.errors import InputError, StateConflict

CONNECT_S: Final = 10.0
_LOST_HINT: Final = "start it again, or take it out of [compute] in node.toml, then submit the job again"


@contextlib.contextmanager
def open_executor(compute: Compute, go_on: Callable[[], None]) -> Iterator[Executor | None]:
    """Give the executor that the settings name; None for the cores of this process.

    Args:
        compute: the settings.
        go_on: called while waiting; raises when the attempt is over.

    Raises:
        InputError: settings that name no safe way to a cluster.
        StateConflict: `cluster-missing`, its software is not installed; `cluster-unreachable`.
    """
    if compute.cluster:
        with _cluster(compute) as executor:
            yield Guarded(executor, compute.timeout_s, go_on)
    elif compute.processes:
        # Spawned: a fork of a process with threads may stop in a lock that nobody holds any more.
        with ProcessPoolExecutor(compute.processes, mp_context=get_context("spawn")) as executor:
            try:
                yield Guarded(executor, compute.timeout_s, go_on)
            finally:
                executor.shutdown(wait=False, cancel_futures=True)
    else:
        yield None


class Guarded(Executor):
    """An executor whose losses are this node's own errors, and whose waits end with the attempt."""

    def __init__(self, inner: Executor, timeout_s: float, go_on: Callable[[], None]) -> None:
        """Hand everything to `inner`."""
        self._inner, self._timeout_s, self._go_on = inner, timeout_s, go_on

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand over one call.

        Raises:
            StateConflict: `compute-lost`: the executor takes no more.
        """
        # RuntimeError is how an executor says so; of a call that was taken it would be an error in the call.
        with _lost(RuntimeError):
            return self._inner.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,  # noqa: ARG002  # part of the interface
    ) -> Iterator[Any]:
        """Yield what each call returns, in order.

        Raises:
            StateConflict: `compute-lost`: a call came to no end, or whoever made it is gone.
            MinshuError: the attempt is over.
        """
        waiting = [self.submit(fn, *each) for each in zip(*iterables, strict=True)]
        try:
            for future in waiting:
                self._go_on()
                with _lost():
                    yield future.result(timeout or self._timeout_s)
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def _lost(*more: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except (*_losses(), *more) as error:
        # Only the type: what a cluster says of a call may quote its arguments.
        raise StateConflict(
            f"the machines that compute for this node are gone, or too slow ({type(error).__name__})",
            code="compute-lost",
            hint=_LOST_HINT,
        ) from None


def _losses() -> tuple[type[BaseException], ...]:
    """Return what a call ends in that its executor lost."""
    known = (CancelledError, BrokenExecutor, TimeoutError, OSError)
    if "distributed" not in sys.modules:
        return known
    from distributed.scheduler import KilledWorker

    return (*known, KilledWorker)


@contextlib.contextmanager
def _cluster(compute: Compute) -> Iterator[Executor]:
    _check_safe(compute)
    if find_spec("distributed") is None:
        raise StateConflict(
            "this node is installed without what a cluster needs",
            code="cluster-missing",
            hint="pip install 'minshu[cluster]'",
        )
    from distributed import Client, Security

    security = None
    if compute.cluster.startswith("tls:"):
        security = Security(
            tls_ca_file=compute.ca,
            tls_client_cert=compute.cert,
            tls_client_key=compute.key,
            require_encryption=True,
        )
    try:
        client = Client(compute.cluster, security=security, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise StateConflict(
            f"the cluster of [compute] does not answer ({type(error).__name__})",
            code="cluster-unreachable",
            hint=_LOST_HINT,
        ) from None
    with client:
        # Not pure: else results would be found again by a digest of their arguments, and so kept.
        yield client.get_executor(pure=False)


def _check_safe(compute: Compute) -> None:
    """Check that nobody between this node and the cluster reads along.

    Raises:
        InputError: `bad-config`.
    """
    found = urlsplit(compute.cluster)
    try:
        named = bool(found.hostname and found.port)
    except ValueError:
        named = False
    if found.scheme not in ("tls", "tcp") or not named:
        raise InputError(
            "the cluster of [compute] is no address such as tls://host:port",
            code="bad-config",
            hint='write cluster = "tls://scheduler.internal:8786" in node.toml',
        )
    if found.scheme == "tls" and not (compute.ca and compute.cert and compute.key):
        raise InputError(
            "[compute] names a cluster by TLS without ca, cert and key",
            code="bad-config",
            hint="give the three files: the cluster has to know this node, and this node the cluster",
        )
    if found.scheme == "tcp" and not _here(found.hostname or ""):
        raise InputError(
            "[compute] names a cluster on another machine without TLS",
            code="bad-config",
            hint="write tls:// with ca, cert and key: identifiers and keys go this way",
        )


def _here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
