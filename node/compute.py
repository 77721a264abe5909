"""Where a node's exponentiations are done: in this process, in others, or on the department's own cluster.

A cluster's workers get identifiers and the keys of an attempt, as this process has them. So the way to it is
TLS with certificates of both sides, or it is on this machine; and nothing that is handed over is ever part of
a message that the cluster logs, see `protocols.psi.spread`. A scheduler or worker without this Minshu would
log what it cannot unpickle: all that are there are asked for their version before they are handed anything.
A worker that joins later is not asked; the guide says what to set against that.

Results come back pickled, too. So whoever may register as a worker or submit to the scheduler runs code as
this node's account, with its keys, and as the workers' user. By TLS that is whoever has a certificate of
`ca`. Without it a cluster knows nobody, and it is every account of this machine, which may also read what is
handed over: that is for a machine on which nobody else works.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from importlib.metadata import version
from importlib.util import find_spec
from ipaddress import ip_address
from multiprocessing import get_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from node.config import Compute
from protocols.errors import InputError, MinshuError, StateConflict
from protocols.psi import spread

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S: Final = 10.0
STEP_S: Final = 1.0
"""Time between two looks at whether the attempt is over, in seconds."""

_LOST_HINT: Final = "start it again, or take it out of [compute] in node.toml, then submit the job again"


@contextlib.contextmanager
def open_executor(compute: Compute, go_on: Callable[[], None]) -> Iterator[Executor | None]:
    """Give the executor that the settings name; None for the cores of this process.

    Args:
        compute: the settings.
        go_on: called while waiting; raises when the attempt is over.

    Raises:
        InputError: settings that name no safe way to a cluster.
        StateConflict: `cluster-missing`, its software is not installed; `cluster-unreachable`;
            `cluster-mismatch`, a machine of it does not have this version of Minshu; `compute-lost`, one
            says nothing.
        MinshuError: the attempt is over.
    """
    if compute.cluster:
        with _cluster(compute, go_on) as executor:
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
        with _lost():
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
            StateConflict: `compute-lost`: a call came to no end or to a foreign error, or whoever made it is
                gone.
            MinshuError: that of a call, or the attempt is over.
        """
        waiting = [self.submit(fn, *each) for each in zip(*iterables, strict=True)]
        try:
            for future in waiting:
                yield self._result(future, timeout or self._timeout_s)
        finally:
            for future in waiting:
                future.cancel()

    def _result(self, future: Future[Any], timeout_s: float) -> Any:
        end = monotonic() + timeout_s
        while True:
            self._go_on()
            wait((future,), min(STEP_S, max(end - monotonic(), 0.0)))
            if future.done() or monotonic() >= end:
                with _lost():
                    return future.result(0)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except MinshuError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a cluster ends a call in, and its types are many
        # Only the type: what a cluster says of a call may quote its arguments.
        raise StateConflict(
            f"the machines that compute for this node are gone, slow or at fault ({type(error).__name__})",
            code="compute-lost",
            hint=_LOST_HINT,
        ) from None


@contextlib.contextmanager
def _cluster(compute: Compute, go_on: Callable[[], None]) -> Iterator[Executor]:
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
        _check_same(client, compute.timeout_s, go_on)
        # Not pure: else results would be found again by a digest of their arguments, and so kept.
        yield client.get_executor(pure=False)


def _check_same(client: "Client", timeout_s: float, go_on: Callable[[], None]) -> None:
    """Check that the scheduler and every worker have this version of Minshu; they are told nothing.

    Raises:
        StateConflict: `cluster-mismatch`; `cluster-unreachable`, there is no worker; `compute-lost`.
        MinshuError: the attempt is over.
    """
    asking = ThreadPoolExecutor(1)
    try:
        [found] = Guarded(asking, timeout_s, go_on).map(_versions, [client])
    finally:
        asking.shutdown(wait=False)
    if not found[1:]:
        raise StateConflict(
            "the cluster of [compute] has no workers", code="cluster-unreachable", hint=_LOST_HINT
        )
    if any(each != version("minshu") for each in found):
        raise _mismatch()


def _versions(client: "Client") -> list[Any]:
    """Return what the scheduler says its version is, then each worker."""
    try:
        # That they find the function at all says that they can unpickle a piece of work.
        return [client.run_on_scheduler(spread.installed), *client.run(spread.installed).values()]
    except OSError:
        raise  # a connection that is lost, or too slow
    except Exception:  # noqa: BLE001  # without Minshu it may end in anything
        raise _mismatch() from None


def _mismatch() -> StateConflict:
    return StateConflict(
        "the cluster's machines do not have this version of Minshu",
        code="cluster-mismatch",
        hint="install it on the scheduler's machine and every worker's, start them again, then submit the job"
        " again",
    )


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
