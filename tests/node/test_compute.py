"""Exponentiations elsewhere are the same ones, and what is handed over shows nowhere."""

import asyncio
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import crosscheck_case
import numpy as np
import pytest
from simulator import ROLES, World, approve_all, over, running
from tls_authority import Authority

from node.compute import Guarded, open_executor
from node.config import Compute
from protocols.errors import InputError, ProtocolAborted, StateConflict
from protocols.psi import group, spread
from protocols.resources import Resources

if TYPE_CHECKING:
    from distributed import LocalCluster

DST = b"minshu/test/1"
CANARY = b"RIC:99010119900101123X"
ITEMS = [CANARY, *(b"RIC:%018d" % n for n in range(2 * spread.PIECE + 7))]
SCALAR = group.random_scalar(secrets.token_bytes)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that is computed in this process leaves it with one thread."""
    monkeypatch.setattr(group, "WORKERS", group.WORKERS)


def go_on() -> None:
    """Nothing stops these."""


def agrees(executor: Executor) -> None:
    expected = group.power(group.hash_to_group(ITEMS, DST), SCALAR)
    blinded = spread.blind(ITEMS, DST, SCALAR, executor)
    assert np.array_equal(blinded, expected)
    assert np.array_equal(
        spread.power(blinded, group.invert(SCALAR), executor), group.hash_to_group(ITEMS, DST)
    )
    broken = blinded.copy()
    broken[spread.PIECE + 3] = 0xFF
    with pytest.raises(ProtocolAborted) as caught:
        spread.power(broken, SCALAR, executor)
    assert caught.value.code == "bad-point"


def test_without_an_executor_this_process_computes() -> None:
    with open_executor(Compute(), go_on) as executor:
        assert executor is None
    blinded = spread.blind(ITEMS, DST, SCALAR)
    assert np.array_equal(spread.power(blinded, group.invert(SCALAR)), group.hash_to_group(ITEMS, DST))


class Here(Executor):
    """Runs everything at once, and remembers what it was given."""

    def __init__(self, problem: BaseException | None = None) -> None:
        self.seen: list[Any] = []
        self.problem = problem

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.seen += args
        future: Future[Any] = Future()
        if self.problem is None:
            future.set_result(fn(*args, **kwargs))
        else:
            future.set_exception(self.problem)
        return future


def test_work_is_cut_into_pieces_that_print_nothing() -> None:
    inner = Here()
    agrees(Guarded(inner, 1.0, go_on))
    assert len(inner.seen) > 6
    assert {repr(work) for work in inner.seen} == {"Work()"}
    assert {str(work) for work in inner.seen} == {"Work()"}


def test_a_piece_is_computed_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = group.power(group.hash_to_group(ITEMS[:100], DST), SCALAR).tobytes()
    monkeypatch.setattr(group, "WORKERS", 3)
    monkeypatch.setattr(group, "ThreadPoolExecutor", None)
    with pytest.raises(TypeError):
        group.hash_to_group(ITEMS[:100], DST)
    assert spread.run(spread.Work(SCALAR, items=tuple(ITEMS[:100]), dst=DST)) == expected


@pytest.mark.parametrize(
    "problem",
    [OSError("gone"), TimeoutError(), BrokenExecutor(CANARY.decode()), RuntimeError(CANARY.decode())],
)
def test_a_loss_is_a_clear_error_that_quotes_nothing(problem: BaseException) -> None:
    with pytest.raises(StateConflict) as caught:
        spread.power(group.hash_to_group(ITEMS, DST), SCALAR, Guarded(Here(problem), 1.0, go_on))
    assert caught.value.code == "compute-lost"
    assert CANARY.decode() not in f"{caught.value} {caught.value.hint}"


def test_an_executor_that_takes_no_more_is_lost_and_an_error_of_ours_is_not() -> None:
    with ThreadPoolExecutor(1) as closed:
        pass
    with pytest.raises(StateConflict) as caught:
        Guarded(closed, 1.0, go_on).submit(repr, 1)
    assert caught.value.code == "compute-lost"
    with pytest.raises(InputError, match="libsodium"):
        list(Guarded(Here(InputError("libsodium did not load")), 1.0, go_on).map(repr, [1]))


@pytest.mark.parametrize("length", [32, 32 * (spread.PIECE + 1)])
def test_a_piece_of_another_length_is_not_joined(length: int) -> None:
    """What came after it would be taken for the points of other items."""

    class Wrong(Here):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(bytes(length) if len(self.seen) == 1 else fn(*args, **kwargs))
            self.seen += args
            return future

    for act in (
        lambda: spread.blind(ITEMS, DST, SCALAR, Wrong()),
        lambda: spread.power(group.hash_to_group(ITEMS, DST), SCALAR, Wrong()),
    ):
        with pytest.raises(StateConflict) as caught:
            act()
        assert caught.value.code == "compute-lost"


def test_a_stop_ends_the_waiting() -> None:
    def over() -> None:
        raise StateConflict("over", code="stopped")

    with pytest.raises(StateConflict) as caught:
        spread.power(group.hash_to_group(ITEMS, DST), SCALAR, Guarded(Here(), 1.0, over))
    assert caught.value.code == "stopped"


class Never(Executor):
    """Takes a call, and that is the last one hears of it."""

    def __init__(self) -> None:
        self.given: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given.append(Future())
        return self.given[-1]


def test_a_stop_is_noticed_while_a_call_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.compute.STEP_S", 0.01)
    looks = iter(range(3))

    def over_soon() -> None:
        if next(looks) == 2:
            raise StateConflict("over", code="stopped")

    inner = Never()
    with pytest.raises(StateConflict) as caught:
        list(Guarded(inner, 20.0, over_soon).map(repr, [1, 2]))
    assert caught.value.code == "stopped"
    assert [future.cancelled() for future in inner.given] == [True, True]


def test_a_call_that_never_ends_is_lost_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.compute.STEP_S", 0.01)
    inner = Never()
    with pytest.raises(StateConflict) as caught:
        list(Guarded(inner, 0.05, go_on).map(repr, [1]))
    assert caught.value.code == "compute-lost"
    assert inner.given[0].cancelled()


def test_who_has_no_list_opens_no_executor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def noted(compute: Compute, go_on: Callable[[], None]) -> AbstractContextManager[Executor | None]:
        opened.append(go_on.__self__.role)  # type: ignore[attr-defined]  # a bound method
        return open_executor(compute, go_on)

    monkeypatch.setattr("node.runner.open_executor", noted)

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}

    asyncio.run(play())
    assert sorted(opened) == sorted(set(ROLES.values()) - {"matcher"})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Compute(cluster="tcp://10.0.0.7:8786"), "without TLS"),
        (Compute(cluster="tcp://scheduler.internal:8786"), "without TLS"),
        (Compute(cluster="tls://scheduler.internal:8786"), "without ca, cert and key"),
        (Compute(cluster="scheduler.internal:8786"), "no address"),
        (Compute(cluster="tcp://127.0.0.1"), "no address"),
        (Compute(cluster="tcp://127.0.0.1:nine"), "no address"),
    ],
)
def test_a_way_on_which_others_read_along_is_refused(settings: Compute, says: str) -> None:
    with pytest.raises(InputError) as caught, open_executor(settings, go_on):
        raise AssertionError("opened")
    assert caught.value.code == "bad-config"
    assert says in caught.value.message


@pytest.mark.alone
def test_processes_compute_the_same() -> None:
    with open_executor(Compute(processes=2), go_on) as executor:
        assert executor is not None
        agrees(executor)


# -- a real cluster ----------------------------------------------------------------------------------------


def certificates(folder: Path) -> dict[str, str]:
    """Write an authority and one certificate of it, good for both ends on this machine."""
    authority = Authority()
    leaf, key = authority.leaf("127.0.0.1")
    written = {}
    for what, pem in {"ca": authority.pem, "cert": leaf, "key": key}.items():
        (folder / what).write_bytes(pem)
        written[what] = str(folder / what)
    return written


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["LocalCluster", Compute]]:
    from distributed import LocalCluster, Security

    files = certificates(tmp_path_factory.mktemp("cluster"))
    security = Security(
        tls_ca_file=files["ca"],
        require_encryption=True,
        **{
            f"tls_{role}_{what}": files[what]
            for role in ("scheduler", "worker", "client")
            for what in ("cert", "key")
        },
    )
    with LocalCluster(
        n_workers=3,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        protocol="tls://",
        security=security,
        dashboard_address=None,
        silence_logs=False,
    ) as local:
        yield local, Compute(cluster=local.scheduler_address, **files)


@pytest.mark.alone
def test_a_cluster_of_three_workers_computes_the_same_over_tls_and_logs_nothing_of_it(
    cluster: tuple["LocalCluster", Compute],
) -> None:
    local, settings = cluster
    assert settings.cluster.startswith("tls://127.0.0.1:")
    with open_executor(settings, go_on) as executor:
        assert executor is not None
        agrees(executor)
        held = local.scheduler.tasks
        logs = str(local.get_logs())
    assert logs
    for secret in (CANARY.decode(), repr(CANARY), repr(SCALAR), SCALAR.hex()):
        assert secret not in logs
        assert not any(secret in str(key) for key in held)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of a cluster, in order."""
    from distributed import Client

    calls: list[str] = []

    def noting(name: str) -> None:
        real = getattr(Client, name)

        def noted(self: Client, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Client, name, noted)

    for name in ("run_on_scheduler", "run", "submit", "map", "scatter"):
        noting(name)
    return calls


@pytest.mark.alone
def test_a_cluster_is_asked_for_its_version_before_it_is_handed_anything(
    cluster: tuple["LocalCluster", Compute], asked: list[str]
) -> None:
    with open_executor(cluster[1], go_on) as executor:
        assert asked == ["run_on_scheduler", "run"]
        spread.blind(ITEMS[:3], DST, SCALAR, executor)
    assert asked == ["run_on_scheduler", "run", "submit"]


@pytest.mark.alone
def test_a_cluster_with_another_version_is_handed_nothing(
    cluster: tuple["LocalCluster", Compute], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.compute.version", lambda _: "0.0.9")
    with pytest.raises(StateConflict) as caught, open_executor(cluster[1], go_on):
        raise AssertionError("opened")
    assert caught.value.code == "cluster-mismatch"
    assert asked == ["run_on_scheduler", "run"]


@pytest.mark.alone
def test_a_cluster_whose_workers_have_no_minshu_is_handed_nothing(
    cluster: tuple["LocalCluster", Compute], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the scheduler's process, which is this one, stands for what its workers cannot import."""
    here = ModuleType("minshu_is_only_here")
    exec("from importlib.metadata import version\ndef installed(): return version('minshu')", here.__dict__)
    monkeypatch.setitem(sys.modules, here.__name__, here)
    monkeypatch.setattr(spread, "installed", here.installed)
    with pytest.raises(StateConflict) as caught, open_executor(cluster[1], go_on):
        raise AssertionError("opened")
    assert caught.value.code == "cluster-mismatch"
    assert here.__name__ not in f"{caught.value} {caught.value.hint}"
    assert asked == ["run_on_scheduler", "run"]


@pytest.mark.alone
def test_a_cluster_without_workers_is_handed_nothing(
    cluster: tuple["LocalCluster", Compute], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.Client.run", lambda *_: {})
    with pytest.raises(StateConflict) as caught, open_executor(cluster[1], go_on):
        raise AssertionError("opened")
    assert caught.value.code == "cluster-unreachable"


@pytest.mark.alone
def test_who_has_no_certificate_of_the_cluster_gets_in_nowhere(
    cluster: tuple["LocalCluster", Compute], tmp_path: Path
) -> None:
    _, settings = cluster
    others = Compute(cluster=settings.cluster, **certificates(tmp_path))
    with pytest.raises(StateConflict) as caught, open_executor(others, go_on):
        raise AssertionError("let in")
    assert caught.value.code == "cluster-unreachable"


@pytest.mark.alone
def test_a_cluster_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.compute.CONNECT_S", 1.0)
    with pytest.raises(StateConflict) as caught, open_executor(Compute(cluster="tcp://127.0.0.1:9"), go_on):
        raise AssertionError("reached")
    assert caught.value.code == "cluster-unreachable"


@pytest.mark.alone
def test_a_whole_cross_check_on_a_cluster_finds_the_same_persons(
    cluster: tuple["LocalCluster", Compute], monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [dict.fromkeys(range(start, 3000, step), ("990101001", "2026-01")) for start, step in LISTS]

    def found() -> list[str]:
        records, _ = crosscheck_case.case(
            lists, k=2, constraints=replace(crosscheck_case.LOOSE, max_rows=3000)
        ).released()
        return sorted(records.table.columns["key"].tolist())

    here = found()
    _, settings = cluster
    with open_executor(settings, go_on) as executor:
        given: list[Resources] = []

        def lent() -> Resources:
            given.append(Resources(executor=executor))
            return given[-1]

        monkeypatch.setattr(crosscheck_case, "resources", lent)
        assert found() == here
    assert given
    assert len(here) > 100


LISTS = ((0, 2), (1, 3), (0, 3), (0, 5))
"""First number and step of each list, the register's first: odd numbers are not on it."""
