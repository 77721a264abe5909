"""Which clock is believed: this machine's, as long as the coordinator's agrees and it does not jump."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.clock import ASK_AGAIN_S, CLOCK_FILE, Clock, Heard
from node.doctor import examine
from node.home import init_home
from protocols.succession import CLOCK_TOLERANCE

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
HOUR, YEAR = timedelta(hours=1), timedelta(days=365)
JUMPS = [HOUR, -HOUR, YEAR, -YEAR, CLOCK_TOLERANCE + timedelta(seconds=1), timedelta(minutes=-6)]


@dataclass
class Machine:
    """A wall clock and a monotonic one; the true time passes in both, the rest happens to one."""

    wall: datetime = START
    ticks: float = 1000.0
    true: datetime = START

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks

    def pass_(self, seconds: float, drift: float = 0.0) -> None:
        """Time passes; the wall clock gains `drift` seconds per second."""
        self.wall += timedelta(seconds=seconds * (1 + drift))
        self.true += timedelta(seconds=seconds)
        self.ticks += seconds

    def sleep(self, span: timedelta) -> None:
        """The machine is suspended: its monotonic clock stands still."""
        self.wall += span
        self.true += span


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> Clock:
    return Clock(machine.now, machine.monotonic)


def test_before_the_first_welcome_nothing_speaks_against_the_clock(machine: Machine, clock: Clock) -> None:
    machine.pass_(3600)
    assert clock.trusted() == clock.now() == machine.wall
    assert clock.step() is None
    assert not clock.asks_again()


@pytest.mark.parametrize("error", [-CLOCK_TOLERANCE, timedelta(seconds=-1), timedelta(), CLOCK_TOLERANCE])
def test_a_clock_that_agrees_is_trusted(machine: Machine, clock: Clock, error: timedelta) -> None:
    clock.heard(machine.wall - error)
    machine.pass_(86_400)
    assert clock.trusted() == machine.wall


@pytest.mark.parametrize("error", JUMPS)
def test_a_clock_that_differs_is_not_trusted_until_a_welcome_agrees(
    machine: Machine, clock: Clock, error: timedelta
) -> None:
    clock.heard(machine.wall - error)
    assert clock.trusted() is None
    machine.pass_(86_400)
    assert clock.trusted() is None
    assert clock.step() is None  # it was wrong from the start: it did not jump
    clock.heard(machine.wall - error)
    assert clock.trusted() is None
    clock.heard(machine.wall)
    assert clock.trusted() == machine.wall


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_is_told_once_and_ends_trust_until_a_welcome_agrees(
    machine: Machine, clock: Clock, jump: timedelta
) -> None:
    clock.heard(machine.wall)
    machine.pass_(100)
    machine.wall += jump
    # Whoever asks first finds out; nobody decides by the new time before it is journaled.
    assert clock.trusted() is None
    assert clock.step() == jump
    assert clock.step() is None
    machine.pass_(7 * 86_400)
    assert clock.trusted() is None
    clock.heard(machine.true)
    assert clock.trusted() is None, "the coordinator does not follow"
    clock.heard(machine.wall)
    assert clock.trusted() == machine.wall


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_back_to_where_it_was_told_both_jumps(
    machine: Machine, clock: Clock, jump: timedelta
) -> None:
    clock.heard(machine.true)
    machine.wall += jump
    assert clock.trusted() is None
    machine.wall -= jump
    assert clock.trusted() is None
    assert [clock.step(), clock.step(), clock.step()] == [jump, -jump, None]
    clock.heard(machine.true)
    assert clock.trusted() == machine.wall


def test_a_jump_before_the_first_welcome_is_seen_too(machine: Machine, clock: Clock) -> None:
    machine.wall += YEAR
    assert clock.trusted() is None
    assert clock.step() == YEAR


def test_setting_a_wrong_clock_right_is_a_jump_that_the_next_welcome_settles(
    machine: Machine, clock: Clock
) -> None:
    machine.wall -= 2 * HOUR
    clock = Clock(machine.now, machine.monotonic)
    clock.heard(machine.true)
    assert clock.trusted() is None
    machine.wall += 2 * HOUR
    assert clock.step() == 2 * HOUR
    assert clock.trusted() is None
    assert clock.asks_again()
    clock.heard(machine.true)
    assert clock.trusted() == machine.wall


def test_steps_below_the_tolerance_are_let_be(machine: Machine, clock: Clock) -> None:
    clock.heard(machine.wall)
    machine.wall += CLOCK_TOLERANCE
    assert clock.step() is None
    for _ in range(2):
        machine.wall -= CLOCK_TOLERANCE
        assert clock.step() is None
    assert clock.trusted() == machine.wall


def test_many_small_steps_are_one_jump(machine: Machine, clock: Clock) -> None:
    clock.heard(machine.wall)
    told = []
    for _ in range(10):
        machine.pass_(2)
        machine.wall += timedelta(minutes=1)
        told.append(clock.step())
    assert told == [None] * 5 + [timedelta(minutes=6)] + [None] * 4
    assert clock.trusted() is None


@pytest.mark.parametrize("drift", [400e-6, -400e-6])
def test_a_slow_drift_of_months_is_no_jump(machine: Machine, clock: Clock, drift: float) -> None:
    clock.heard(machine.wall)
    for _ in range(90 * 24):
        machine.pass_(3600, drift)
        assert clock.trusted() == machine.wall
    assert abs(machine.wall - machine.true) > timedelta(minutes=45)
    assert clock.step() is None
    # It hides no jump.
    machine.wall += timedelta(minutes=6)
    assert clock.step() == timedelta(minutes=6)
    # What has drifted away from the coordinator is found at the next welcome, which a renewal brings.
    clock.heard(machine.true)
    assert clock.trusted() is None


def test_a_machine_that_was_asleep_asks_before_it_is_trusted(machine: Machine, clock: Clock) -> None:
    clock.heard(machine.true)
    machine.pass_(60)
    machine.sleep(8 * HOUR)
    assert clock.trusted() is None
    assert clock.asks_again()
    assert clock.step() == 8 * HOUR
    clock.heard(machine.true)
    assert clock.trusted() == machine.wall == machine.true


def test_a_clock_in_doubt_asks_at_once_after_a_jump_and_then_now_and_then(
    machine: Machine, clock: Clock
) -> None:
    clock.heard(machine.wall - HOUR)  # disagrees: it was just asked
    assert not clock.asks_again()
    machine.pass_(ASK_AGAIN_S - 1)
    assert not clock.asks_again()
    machine.pass_(1)
    assert clock.asks_again()
    assert not clock.asks_again()
    machine.wall += HOUR
    assert [clock.asks_again(), clock.asks_again()] == [True, False]
    clock.heard(machine.wall)
    machine.pass_(10 * ASK_AGAIN_S)
    assert not clock.asks_again()


@given(
    said=st.datetimes(timezones=st.just(UTC)),
    steps=st.lists(st.integers(-(10**8), 10**8), max_size=4),
)
def test_whatever_the_coordinator_says_the_time_is_never_other_than_this_machines(
    said: datetime, steps: list[int]
) -> None:
    machine = Machine()
    clock = Clock(machine.now, machine.monotonic)
    for step in steps:
        machine.pass_(1)
        machine.wall += timedelta(seconds=step)
        clock.heard(said)
        assert clock.trusted() in (None, machine.wall)
        if abs(machine.wall - said) > CLOCK_TOLERANCE:
            assert clock.trusted() is None


# -- the file and the doctor ---------------------------------------------------------------------------------


def test_what_was_heard_is_kept_for_the_doctor(machine: Machine, tmp_path: Path) -> None:
    clock = Clock(machine.now, machine.monotonic, tmp_path / CLOCK_FILE)
    assert Heard.read(tmp_path) is None
    clock.heard(machine.wall + timedelta(hours=2, minutes=3))
    assert Heard.read(tmp_path) == Heard(START, timedelta(hours=2, minutes=3))
    clock.heard(datetime.max.replace(tzinfo=UTC, microsecond=0))
    assert Heard.read(tmp_path) is not None
    (tmp_path / CLOCK_FILE).write_bytes(b'{"schema":')
    assert Heard.read(tmp_path) is None


def test_a_disk_that_is_full_costs_the_doctor_only(machine: Machine, tmp_path: Path) -> None:
    clock = Clock(machine.now, machine.monotonic, tmp_path / "gone" / CLOCK_FILE)
    clock.heard(machine.wall - HOUR)
    assert clock.trusted() is None


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        (timedelta(hours=2, minutes=3), "error: this node's clock is 2:03:00 behind the coordinator's"),
        (-YEAR, "error: this node's clock is 365 days, 0:00:00 ahead of the coordinator's"),
        (timedelta(minutes=4), "ok: 2026-11-22T08:00:00Z"),
    ],
)
def test_the_doctor_tells_how_far_the_clock_is_off(
    machine: Machine, tmp_path: Path, behind: timedelta, found: str
) -> None:
    home = init_home(tmp_path / "node", "police.gz.example/node-a", 2)
    from node.journal import open_journal
    from node.state import open_state

    open_state(open_journal(home, machine.now), home.database).close()
    Clock(machine.now, machine.monotonic, home.path / CLOCK_FILE).heard(machine.wall + behind)
    [finding] = [f for f in examine(home, START) if f.what == "clock"]
    assert f"{finding.state}: {finding.found}".startswith(found)
    assert bool(finding.hint) == (finding.state == "error")
