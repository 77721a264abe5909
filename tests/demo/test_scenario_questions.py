"""The scenarios' jobs and policies fit each other, and what the nodes would count is the expected answer."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo.city import (
    AREA_CODES,
    PRIMARY_YEARS,
    SNAPSHOT,
    generate,
    load_flexible_work,
    load_overpaid,
    load_residents,
    load_school_places,
    load_separation,
    load_villages,
)
from demo.city.crosstabs import VILLAGE_LISTS
from demo.city.joins import BURDEN_LEAST, MOMENTS, RENT_MOST, RULE_HIGH, SELF_PAID_LEAST, WEIGHTS
from demo.city.persons import GRACE_DAYS, GROUPS
from demo.city.persons import QUESTIONS as QUESTIONS_OF_THE_DEAD
from demo.cli import main
from demo.scenario import NUMBERS
from demo.scenarios import (
    deaths,
    flexible_work,
    hardship,
    marital,
    school_places,
    separation,
    vaccination,
    verifying,
    villages,
)
from demo.scenarios.comparing import Released
from demo.scenarios.play import codes_of, policy_template
from policies.jobfile import suppose_job
from policies.parse import parse_policy
from protocols.ids import Organisation
from protocols.jobs import job_type
from protocols.jobs.job_type import UNIT, Unit
from protocols.joined.lists import JoinedList
from protocols.psi.keyed_list import WAITING
from protocols.wire import JobSpec

NAN = float("nan")

SCENARIOS = {
    2: deaths, 3: separation, 4: school_places, 5: flexible_work, 6: vaccination, 7: hardship, 8: marital,
    9: villages, 10: verifying
}  # fmt: skip
COUNTING = [(3, "finer"), (3, "streets"), (3, "matrix"), (4, "children"), (4, "demand"),
            (4, "places"), (9, "villages")]  # fmt: skip
"""Questions about groups."""
JOINED = [(2, "overpaid"), (2, "overpaid-exact"), (3, "districts"), (3, "residents"),
          (5, "three"), (5, "two"), (5, "two-exact"), (5, "few"), (6, "scores"),
          (7, "leads"), (7, "threshold")]  # fmt: skip
"""Questions over joined rows."""
PERSONS = [(2, "register"), (2, "pension"), (2, "no-grace"), (8, "police"), (8, "civil-affairs"), (8, "held"),
           (10, "session"), (10, "another-street"), (10, "too-many")]  # fmt: skip
"""Questions about persons; some of them are refused by what was answered, or by what they ask for."""
TRAINED = [(6, "districts"), (6, "boost"), (6, "exact"), (6, "joined")]
"""Questions that a model answers."""
UNOPENED = {
    (2, "cause"): "cause",
    (5, "bank-account"): "bank_account",
    (6, "diagnosis"): "diagnosis",
    (7, "disease"): "disease",
    (8, "spouse"): "spouse_id",
    (10, "another-field"): "marital",
}
"""Questions that are refused for a column."""
QUESTIONS = [*COUNTING, *JOINED, *PERSONS, *TRAINED]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios") / "city"
    generate("ci", 5, folder, workers=2)
    return folder


def question(number: int, name: str) -> JobSpec:
    text = files(f"demo.scenarios.scenario_{number}").joinpath(f"{name}.toml").read_text("utf-8")
    return suppose_job(codes_of("ci").fill(text).encode(), datetime(2026, 6, 1, tzinfo=UTC))


def policies(number: int):
    found = {}
    for department in SCENARIOS[number].DEPARTMENTS:
        parsed = parse_policy(policy_template(number, department).encode())
        found[department.organisation] = parsed.policy
        assert parsed.policy.policy_id == department.node
    return found


def counted(city: Path, number: int, name: str) -> list[np.ndarray]:
    """Return how many persons each source would count in each cell."""
    spec = question(number, name)
    tallies = []
    for given in spec.inputs:
        dataset = policies(number)[given.organisation].datasets[given.dataset]
        assert dataset.unit is not None
        unit = Unit(dataset.columns[dataset.unit.column].type, dataset.unit.max_rows)
        builder = job_type(spec.job_type).builder(spec, given.role, unit)
        department = given.organisation.partition(".")[0]
        rows = pq.read_table(city / "registers" / department / f"{given.dataset}.parquet").combine_chunks()
        slots = {slot: rows[column].combine_chunks() for slot, column in given.columns.items()}
        builder.add({**slots, UNIT: rows[dataset.unit.column].combine_chunks()})
        tallies.append(builder.finish().persons())
    return tallies


@pytest.mark.parametrize(("number", "name"), QUESTIONS)
def test_every_question_is_well_formed_and_its_columns_are_in_a_rule_of_the_policy(number, name) -> None:
    spec = question(number, name)
    job_type(spec.job_type).check(spec)
    found = policies(number)
    assert {node.partition("/")[0] for node in spec.roles.values()} <= set(found)
    for given in spec.inputs:
        policy = found[given.organisation]
        (rule,) = (
            rule for rule in policy.rules
            if spec.job_type in rule.job_types
            and given.dataset in rule.datasets
            and spec.purpose in rule.purposes
        )  # fmt: skip
        assert set(given.columns.values()) <= set(rule.columns) <= set(policy.datasets[given.dataset].columns)
        kinds = job_type(spec.job_type).kinds(spec, given.role)
        assert kinds <= set(rule.roles)
        if spec.recipients:
            assert spec.recipients == rule.recipients


@pytest.mark.parametrize(("number", "name"), UNOPENED)
def test_a_question_that_a_department_must_not_answer_names_a_column_that_no_rule_opens(number, name) -> None:
    spec = question(number, name)
    job_type(spec.job_type).check(spec)
    asked = {column for given in spec.inputs for column in given.columns.values()}
    opened = {c for policy in policies(number).values() for rule in policy.rules for c in rule.columns}
    assert asked - opened == {UNOPENED[number, name]}


def test_a_street_is_open_to_the_matcher_where_its_owner_says_so_and_nowhere_else() -> None:
    spec = question(3, "opened")
    used = {
        (given.organisation, given.columns[need.slot]): need.use
        in policies(3)[given.organisation].datasets[given.dataset].columns[given.columns[need.slot]].use
        for given in spec.inputs
        for need in job_type(spec.job_type).columns(spec, given.role)
        if need.use == "open-to-matcher"
    }
    assert used == {
        ("police.gz.example", "register_street"): False,
        ("telecom.gz.example", "street"): True,
    }


def test_matcher_and_helper_of_one_organisation_would_see_every_value() -> None:
    spec = question(3, "one-house")
    job_type(spec.job_type).check(spec)
    assert {"statistics.gz.example/node-a", "statistics.gz.example/node-b"} <= set(spec.roles.values())
    together = job_type(spec.job_type).separation(spec, Organisation("data-bureau.gz.example"))
    assert ["every list's values" in each.why for each in together if each.these & each.those] == [True]
    sound = question(3, "residents")
    apart = job_type(spec.job_type).separation(sound, Organisation("data-bureau.gz.example"))
    assert not any(each.these & each.those for each in apart)


def lists(city: Path, number: int, name: str) -> list[JoinedList]:
    """Return every source's list as its node prepares it."""
    spec = question(number, name)
    found = []
    for given in spec.inputs:
        dataset = policies(number)[given.organisation].datasets[given.dataset]
        unit = None
        if dataset.unit is not None:
            unit = Unit(dataset.columns[dataset.unit.column].type, dataset.unit.max_rows)
        builder = job_type(spec.job_type).builder(spec, given.role, unit)
        department = given.organisation.partition(".")[0]
        rows = pq.read_table(city / "registers" / department / f"{given.dataset}.parquet").combine_chunks()
        slots = {slot: rows[column].combine_chunks() for slot, column in given.columns.items()}
        if unit is not None:
            slots[UNIT] = rows["resident_id"].combine_chunks()
        builder.add(slots)
        found.append(builder.finish())
    return found


def joined(city: Path, number: int, name: str) -> list[tuple[JoinedList, np.ndarray]]:
    """Return every list with the places of the persons who count on all of them, in one order."""
    found = lists(city, number, name)
    both: set[bytes] = set.intersection(*(set(each.keys.tolist()) for each in found))
    keys = sorted(key for key in both if not key.startswith(WAITING))
    return [(each, np.searchsorted(each.keys, np.array(keys))) for each in found]


def test_joined_registers_hold_the_overpaid_total(city: Path) -> None:
    expected = load_overpaid(city)
    (pension, who), (funeral, whose) = joined(city, 2, "overpaid")
    assert len(who) == expected.past_grace
    assert int((pension.amounts[who, 0] * funeral.amounts[whose, 0]).sum()) == expected.bounded_fen


def test_joined_registers_hold_the_districts_of_registration_and_of_most_nights(city: Path) -> None:
    truth = separation.by_district(load_residents(city), AREA_CODES)
    (register, who), (monthly, whose) = joined(city, 3, "districts")
    cells = Counter(zip(register.cells[who].tolist(), monthly.cells[whose].tolist(), strict=True))
    for i, one in enumerate(AREA_CODES):
        for j, other in enumerate(AREA_CODES):
            assert cells[i, j] == truth[one, other]


@pytest.mark.parametrize("name", ["three", "two"])
def test_joined_registers_hold_the_pooled_moments(city: Path, name: str) -> None:
    expected = load_flexible_work(city).questions[name]
    rows = np.hstack([each.amounts[who] for each, who in joined(city, 5, name)])
    assert len(rows) == expected.persons
    assert rows.sum(axis=0).tolist() == list(expected.sums)
    assert (rows.T @ rows).tolist() == [list(row) for row in expected.products]


def test_the_rule_of_scenario_7_is_that_of_the_expected_answer() -> None:
    params = question(7, "leads").params
    own, rent, burden = params["rule"]
    assert (own["weights"], own["at_least"]) == ({"self_paid": 1}, str(SELF_PAID_LEAST))
    assert (rent["weights"], rent["at_most"]) == ({"rent": 1}, str(RENT_MOST))
    pupil = {"present(source-3)" if name == "pupil" else name: by for name, by in WEIGHTS.items()}
    assert (burden["weights"], burden["at_least"]) == (pupil, str(BURDEN_LEAST))
    assert {each["slot"]: int(each["high"]) for each in params["columns"]} == dict(RULE_HIGH)


def test_the_bounds_of_scenario_5_are_those_of_the_expected_answer() -> None:
    for name, columns in MOMENTS.items():
        params = question(5, name).params
        assert params["target"] == flexible_work.TARGETS[name]
        asked = {each["slot"]: (int(each["low"]), int(each["high"])) for each in params["columns"]}
        assert asked == {slot: (column.low, column.high) for slot, column in columns.items()}


def test_the_pooled_fit_is_that_of_least_squares(city: Path) -> None:
    moments = load_flexible_work(city).questions["three"]
    rows = np.hstack([each.amounts[who] for each, who in joined(city, 5, "three")]).astype(float)
    to = moments.columns.index("band")
    design = np.column_stack([np.ones(len(rows)), np.delete(rows, to, axis=1)])
    found, rest, _, _ = np.linalg.lstsq(design, rows[:, to], rcond=None)
    fit = flexible_work.pooled(moments, "band")
    assert [fit.intercept, *fit.coefficients.values()] == pytest.approx(found, rel=1e-9)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * rest[0] / (len(rows) - 3))
    assert list(fit.errors.values()) == pytest.approx(errors, rel=1e-9)
    released = {
        cell: Released(value, NAN, NAN) for cell, value in flexible_work.figures_of(moments, "band").items()
    }
    right = flexible_work.figures_of(moments, "band")
    assert flexible_work.largest_error(released, right) == 0
    off = released | {("mean", "open", ""): Released(right["mean", "open", ""] * 1.001, NAN, NAN)}
    assert flexible_work.largest_error(off, right) == pytest.approx(1e-3)
    gone = released | {("mean", "open", ""): Released(NAN, NAN, NAN)}
    assert flexible_work.largest_error(gone, right) == float("inf")


def test_the_grace_of_scenario_2_is_that_of_the_expected_answers() -> None:
    for name in QUESTIONS_OF_THE_DEAD:
        params = question(2, name).params
        assert (params["grace_days"], params["as_of"]) == (GRACE_DAYS, SNAPSHOT.isoformat())


def test_marital_status_is_compared_by_the_groups_of_the_expected_answer() -> None:
    groups = [{str(code) for code in codes} for codes in GROUPS.values()]
    for name in ("police", "civil-affairs"):
        values = question(8, name).params["values"]
        assert len(values) == len(groups)
        assert all(group <= set(listed) for group, listed in zip(groups, values, strict=True))


def test_a_policy_lets_a_session_have_as_many_look_ups_as_the_scenario_makes() -> None:
    assert question(10, "session").params["lookups"] == verifying.LOOKUPS
    (rule,) = policies(10)["police.gz.example"].rules
    assert verifying.LOOKUPS <= rule.max_rows < question(10, "too-many").params["lookups"]
    assert dict(rule.only) == {"street": (verifying.STREET,)}


def test_the_register_counts_the_separation_matrix(city: Path) -> None:
    streets = codes_of("ci").streets
    (matrix,) = counted(city, 3, "matrix")
    assert matrix.reshape(len(streets), -1).tolist() == table(load_separation(city).streets, streets, streets)


def test_three_lists_count_each_child_once(city: Path) -> None:
    streets = codes_of("ci").streets
    cells = np.array(table(load_school_places(city).children, streets, PRIMARY_YEARS))
    assert sum(counted(city, 4, "children")).reshape(cells.shape).tolist() == cells.tolist()
    assert sum(counted(city, 4, "demand")).tolist() == cells.sum(axis=1).tolist()


def test_each_department_counts_its_own_villagers(city: Path) -> None:
    expected = load_villages(city).villages
    found = counted(city, 9, "villages")
    spec = question(9, "villages")
    names = [f"{given.organisation.partition('.')[0]}/{given.dataset}" for given in spec.inputs]
    assert sorted(names) == sorted(VILLAGE_LISTS)
    for name, persons in zip(names, found, strict=True):
        assert persons.tolist() == [expected[village][name] for village in codes_of("ci").villages]


def table(nested, rows: Sequence[str], columns: Sequence[str]) -> list[list[int]]:
    return [[nested[row].get(column, 0) for column in columns] for row in rows]


@pytest.mark.parametrize("number", NUMBERS)
def test_nobody_has_more_rows_than_the_policy_says(city: Path, number: int) -> None:
    for name in (name for n, name in (*COUNTING, *JOINED, *TRAINED) if n == number):
        spec = question(number, name)
        for given in spec.inputs:
            dataset = policies(number)[given.organisation].datasets[given.dataset]
            if dataset.unit is None:
                assert dataset.personal == "none" or spec.job_type in ("joined-rule/1", "score-joined/1")
                continue
            folder = city / "registers" / given.organisation.partition(".")[0]
            ids = pq.read_table(folder / f"{given.dataset}.parquet", columns=[dataset.unit.column])
            assert max(ids.group_by(dataset.unit.column).aggregate([([], "count_all")])["count_all"]
                       .to_pylist()) <= dataset.unit.max_rows  # fmt: skip


def test_what_one_scenario_asks_fits_into_its_budgets() -> None:
    for number in NUMBERS:
        asked: dict[str, float] = {}
        for name in (name for n, name in QUESTIONS if n == number):
            spec = question(number, name)
            for given in spec.inputs:
                budgets = policies(number)[given.organisation].budgets
                if "rho" in spec.params:
                    key = f"{given.organisation}/{given.dataset}"
                    asked[key] = asked.get(key, 0) + float(spec.params["rho"])
                    assert asked[key] <= float(budgets["noisy"].limit)


def test_the_codes_of_the_job_files_are_all_filled_in() -> None:
    for number, name in (*QUESTIONS, *UNOPENED):
        text = files(f"demo.scenarios.scenario_{number}").joinpath(f"{name}.toml").read_text("utf-8")
        assert not re.search(r"\{\w+\}", codes_of("demo").fill(text).replace("{ ", ""))


def test_a_scenario_that_is_not_played_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["scenario", "11", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0]
        == "minshu-demo: error: scenario 11 is not among those that are played: 2, 3, 4, 5, 6, 7, 8, 9, 10"
    )
    assert said[1].startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_profile_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["scenario", "3", "--profile", "atlantis", "--out", str(tmp_path / "out")]) == 1
    assert "no profile is called 'atlantis'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
