"""Scenarios 2 and 8: which persons are right follows from the registers as they are, dirt included."""

import hashlib
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.city import SNAPSHOT, generate, keys_sha256, load_deaths, load_marital
from demo.city.persons import GRACE_DAYS, GROUPS, QUESTIONS, UNTIL
from protocols.identifiers import demo_area_table, normalise


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("persons") / "city"
    generate("ci", 3, folder, workers=2)
    return folder


def by_key(city: Path, register: str, *columns: str) -> dict[bytes, set[tuple[object, ...]]]:
    """Return what each person's rows say, read as a node reads them."""
    rows = pq.read_table(city / "registers" / f"{register}.parquet", columns=["resident_id", *columns])
    found = normalise(rows["resident_id"], "resident-id", as_of=SNAPSHOT, areas=demo_area_table())
    said = list(zip(*(rows[column].to_pylist() for column in columns), strict=True)) if columns else []
    people: dict[bytes, set[tuple[object, ...]]] = {}
    for key, row in zip(found.keys.tolist(), found.rows.tolist(), strict=True):
        people.setdefault(key, set()).add(said[row] if columns else ())
    return people


def test_the_grace_is_sixty_days_before_the_month_of_the_extracts() -> None:
    assert GRACE_DAYS == 60
    assert date(2025, 10, 2) == UNTIL


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_uncancelled_are_those_whom_both_lists_hold_and_whose_date_is_past_the_grace(
    city: Path, name: str
) -> None:
    register, source, column = QUESTIONS[name]
    expected = load_deaths(city).questions[name]
    on_register, dead = by_key(city, register), by_key(city, source, column, "street")
    assert all(len(rows) == 1 for rows in dead.values())  # repeats say the same
    rows = {key: row for key, (row,) in dead.items()}
    past = {key for key, (day, _) in rows.items() if day <= date(2025, 12, 1) - timedelta(60)}
    flagged = past & on_register.keys()
    assert expected.flagged == len(flagged) > 0
    assert expected.flagged_sha256 == keys_sha256([key.removeprefix(b"RIC:") for key in flagged])
    assert expected.source_keys == len(rows)
    assert expected.register_keys == len(on_register)
    assert expected.within_grace == len((rows.keys() - past) & on_register.keys())
    assert expected.streets == Counter(rows[key][1] for key in flagged)
    assert sum(expected.ages.values()) == len(flagged)
    assert sum(past for past, _ in expected.months.values()) == len(flagged)
    assert sum(within for _, within in expected.months.values()) == expected.within_grace


def test_the_pension_list_has_people_within_their_grace_and_everybody_flagged_is_dead(city: Path) -> None:
    expected = load_deaths(city)
    assert expected.questions["pension"].within_grace > 0
    truth = pq.read_table(city / "truth" / "persons.parquet", columns=["resident_id", "death_date"])
    died = dict(zip(truth["resident_id"].to_pylist(), truth["death_date"].to_pylist(), strict=True))
    assert expected.dead == sum(day is not None for day in died.values())
    for name, (register, source, _) in QUESTIONS.items():
        both = by_key(city, register).keys() & by_key(city, source).keys()
        assert all(died[key.decode().removeprefix("RIC:")] is not None for key in both), name


def group_of(code: object) -> str:
    return next(name for name, codes in GROUPS.items() if code in codes)


def test_marital_status_differs_where_the_two_registers_say_so_and_nowhere_else(city: Path) -> None:
    expected = load_marital(city)
    police = by_key(city, "police/population", "marital", "residence_district")
    marriages = by_key(city, "civil-affairs/marriage", "status")
    # A person's rows agree on the status, whatever else their repeats say.
    known = {key: {group_of(code) for code, _ in rows} for key, rows in police.items()}
    told = {key: {group_of(code) for (code,) in rows} for key, rows in marriages.items()}
    assert all(len(groups) == 1 for groups in (*known.values(), *told.values()))
    both = known.keys() & told.keys()
    differing = {key for key in both if known[key] != told[key]}
    assert (expected.police_keys, expected.marriage_keys) == (len(known), len(told))
    assert (expected.both, expected.differing) == (len(both), len(differing))
    assert expected.differing_sha256 == keys_sha256([key.removeprefix(b"RIC:") for key in differing])
    pairs = Counter((*known[key], *told[key]) for key in differing)
    assert {(a, b): n for a, row in expected.pairs.items() for b, n in row.items()} == pairs
    assert expected.districts == Counter(next(iter(police[key]))[1] for key in differing)


def test_each_of_the_two_is_wrong_somewhere_and_the_log_says_where(city: Path) -> None:
    expected = load_marital(city)
    assert expected.police_wrong > 0 < expected.marriages_wrong
    assert expected.police_wrong + expected.marriages_wrong == expected.differing
    truth = pq.read_table(city / "truth" / "persons.parquet", columns=["resident_id", "marital"])
    marital = dict(zip(truth["resident_id"].to_pylist(), truth["marital"].to_pylist(), strict=True))
    for register, column in (("police/population", "marital"), ("civil-affairs/marriage", "status")):
        rows = pq.read_table(city / "registers" / f"{register}.parquet", columns=["resident_id", column])
        log = pq.read_table(city / "truth" / "dirt" / f"{register}.parquet").to_pylist()
        stale = {entry["row"] for entry in log if entry["kind"] == "stale-marital"}
        spelled = {entry["row"] for entry in log if entry["kind"] not in ("stale-marital", "repeat")}
        for row, (identifier, said) in enumerate(zip(*rows.to_pydict().values(), strict=True)):
            if row not in spelled and identifier in marital:
                assert (said != marital[identifier]) == (row in stale)


def test_a_couple_has_one_day_of_marriage(city: Path) -> None:
    rows = pq.read_table(city / "registers" / "civil-affairs" / "marriage.parquet").to_pylist()
    days = {row["resident_id"]: row["registered_on"] for row in rows}
    couples = [row for row in rows if row["spouse_id"] in days]
    assert couples
    assert all(days[row["spouse_id"]] == row["registered_on"] for row in couples)
    truth = pq.read_table(city / "truth" / "persons.parquet", columns=["resident_id", "birth_date"])
    born = dict(zip(truth["resident_id"].to_pylist(), truth["birth_date"].to_pylist(), strict=True))
    assert all(
        (row["registered_on"] - born[row["resident_id"]]).days > 21 * 365
        for row in rows
        if row["resident_id"] in born
    )


def test_the_digest_of_people_is_that_of_scenario_1() -> None:
    ids = [b"990101199001010015", b"990101198001010010"]
    lines = b"RIC:990101198001010010\nRIC:990101199001010015\n"
    assert keys_sha256(ids) == "sha256:" + hashlib.sha256(lines).hexdigest()
    assert keys_sha256(pa.array(ids).to_numpy(zero_copy_only=False).astype("S18")) == keys_sha256(ids)
