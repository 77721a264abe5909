"""The city is what it says: exact answers, published margins, nobody real, the same bytes every time."""

import hashlib
import itertools
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.city import (
    AREA_CODES,
    DATASETS,
    PROFILES,
    SNAPSHOT,
    Manifest,
    generate,
    load_expected,
    load_manifest,
)
from demo.city.plan import FLAGGED, LISTED, LIVING, Cohort, largest_remainder, make_plan, split
from protocols.errors import InputError
from protocols.identifiers import TypedKeys, demo_area_table, normalise

SOURCES = ("human-resources", "health", "education", "housing")


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("cities")
    for profile in ("ci", "demo"):
        generate(profile, 7, base / profile, workers=2)
    return {profile: base / profile for profile in ("ci", "demo")}


@pytest.fixture(scope="module", params=["ci", "demo"])
def city(request: pytest.FixtureRequest, cities: dict[str, Path]) -> Path:
    return cities[request.param]


@pytest.fixture(scope="module")
def ci(cities: dict[str, Path]) -> Path:
    return cities["ci"]


def table(city: Path, name: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(city / f"{name}.parquet", columns=columns)


def keys_of(column: pa.ChunkedArray) -> TypedKeys:
    return normalise(column, "resident-id", as_of=SNAPSHOT, areas=demo_area_table())


def key_sets(city: Path) -> dict[str, set[bytes]]:
    return {
        name: set(keys_of(table(city, f"registers/{dataset}", ["resident_id"])["resident_id"]).keys.tolist())
        for name, dataset in DATASETS.items()
    }


def flagged_by_oracle(lists: dict[str, set[bytes]]) -> set[bytes]:
    seen = Counter(itertools.chain.from_iterable(lists[name] for name in SOURCES))
    return {key for key, sources in seen.items() if sources >= 2} - lists["police"]


# The answer of scenario 1 ----------------------------------------------------------------------------


def test_the_demo_city_flags_5718_keys_of_which_3351_are_true(cities: dict[str, Path]) -> None:
    city = cities["demo"]
    flagged = flagged_by_oracle(key_sets(city))
    meanings = table(city, "truth/flagged")
    true = meanings.filter(pc.equal(meanings["meaning"], "true"))
    assert len(flagged) == 5_718
    assert len(flagged & set(keys_of(true["resident_id"]).keys.tolist())) == 3_351
    assert Counter(meanings["meaning"].to_pylist()) == {
        "true": 3_351,
        "departed": 1_302,
        "typo-or-alternative-id": 473,
        "lag": 355,
        "duplicate": 237,
    }


def test_the_expected_answer_is_the_one_recomputed_from_the_dirty_registers(city: Path) -> None:
    lists = key_sets(city)
    expected = load_expected(city)
    flagged = flagged_by_oracle(lists)
    assert expected.flagged == len(flagged)
    lines = b"".join(key + b"\n" for key in sorted(flagged))
    assert expected.flagged_sha256 == "sha256:" + hashlib.sha256(lines).hexdigest()
    venn = Counter(
        "+".join(name for name in (*SOURCES, "police") if key in lists[name])
        for key in set.union(*lists.values())
    )
    assert expected.venn == venn
    assert expected.in_min_sources == sum(
        count for region, count in venn.items() if len(set(region.split("+")) & set(SOURCES)) >= 2
    )
    for name, entry in expected.lists.items():
        assert entry.dataset == DATASETS[name]
        assert entry.rows == table(city, f"registers/{entry.dataset}", ["resident_id"]).num_rows
        assert entry.distinct_keys == len(lists[name])
        assert entry.known_to_police == len(lists[name] & lists["police"])


def test_every_source_and_every_repeat_gives_a_flagged_key_the_same_street(city: Path) -> None:
    expected = load_expected(city)
    flagged = flagged_by_oracle(key_sets(city))
    streets: dict[bytes, set[str]] = {}
    for name in SOURCES:
        rows = table(city, f"registers/{DATASETS[name]}", ["resident_id", "street"])
        found = keys_of(rows["resident_id"])
        given_streets = rows["street"].to_pylist()
        for key, row in zip(found.keys.tolist(), found.rows.tolist(), strict=True):
            if key in flagged:
                streets.setdefault(key, set()).add(given_streets[row])
    assert set(streets) == flagged
    assert all(len(found_in) == 1 for found_in in streets.values())
    assert Counter(found_in.pop() for found_in in streets.values()) == expected.streets
    assert set(expected.streets) <= set(expected.districts)


def test_dirt_changes_no_list(city: Path) -> None:
    people = table(city, "truth/persons")
    own = people["resident_id"]
    known_as = pc.coalesce(people["known_as"], own)
    clean = {"police": own.filter(people["on_police_list"])}
    for name in SOURCES:
        clean[name] = known_as.filter(people[f"in_{name.replace('-', '_')}"])
    dirty = key_sets(city)
    for name, column in clean.items():
        assert {b"RIC:" + text.encode() for text in column.to_pylist()} == dirty[name]


def test_each_meaning_is_what_the_truth_says(city: Path) -> None:
    lists = key_sets(city)
    people = {row["resident_id"]: row for row in table(city, "truth/persons").to_pylist()}
    for flag in table(city, "truth/flagged").to_pylist():
        person = people[flag["own_id"]]
        on_list = b"RIC:" + flag["own_id"].encode() in lists["police"]
        match flag["meaning"]:
            case "true" | "lag":
                assert person["living"]
                assert not on_list
                assert flag["resident_id"] == flag["own_id"]
            case "departed":
                assert not person["living"]
                assert person["departed_month"] <= 202509
            case _:
                assert person["living"]
                assert on_list
                assert flag["resident_id"] == person["known_as"] != flag["own_id"]


def test_the_guards_hold_for_honest_lists_with_room(city: Path) -> None:
    expected = load_expected(city)
    assert expected.flagged / expected.in_min_sources <= 0.20
    for name in SOURCES:
        entry = expected.lists[name]
        assert entry.known_to_police / entry.distinct_keys >= 0.85
    published = load_manifest(city).files["registers/police/population.parquet"].distinct_keys
    assert published == expected.lists["police"].distinct_keys


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_the_counts_of_every_profile_follow_the_published_fractions(profile) -> None:
    plan = make_plan(profile)
    floating = profile.population * 552 // 1000
    flagged = floating * 1036 // 10_000
    assert plan.people(LIVING) == profile.population
    assert plan.people(LISTED) == profile.population * 92 // 100
    assert plan.people(frozenset(FLAGGED)) == flagged
    assert plan.people(frozenset({Cohort.UNREGISTERED})) == flagged * 5861 // 10_000
    totals = [int(plan.count[(plan.lists >> bit & 1) == 1].sum()) for bit in range(4)]
    assert totals == [profile.population * share // 1000 for share in (450, 400, 180, 350)]
    several = np.bitwise_count(plan.lists) >= 2
    unlisted = np.isin(plan.cohort, [Cohort.UNSEEN, Cohort.GONE])
    assert not (several & unlisted).any()
    assert (plan.sizes.sum(axis=0) == plan.count).all()
    assert plan.sizes.sum(axis=1).max() <= profile.block * 1.05


# Margins ---------------------------------------------------------------------------------------------


def test_the_published_margins_are_met_exactly(city: Path) -> None:
    population = load_manifest(city).population
    people = table(city, "truth/persons")
    living = people.filter(people["living"])
    assert living.num_rows == population
    household = pc.is_valid(living["register_street"])
    assert pc.sum(household).as_py() == population * 448 // 1000

    ages = SNAPSHOT.year - pc.year(living["birth_date"]).to_numpy()
    bands = [int(((ages >= low) & (ages <= high)).sum()) for low, high in ((0, 14), (15, 59), (60, 120))]
    assert bands == [population * share // 10_000 for share in (1387, 7472, 1141)]
    assert int((ages == 0).sum()) == population * 1107 // 100_000
    assert Counter(living["sex"].to_pylist())[1] == population * 5283 // 10_000
    dead = people.filter(pc.is_valid(people["death_date"]))
    assert dead.num_rows == population * 735 // 100_000

    districts = Counter(street[:6] for street in living["street"].to_pylist())
    shares = (36668, 28229, 22380, 17683, 17287, 15867, 12221, 11330, 9679, 9600, 7326)
    assert [districts[area] for area in AREA_CODES] == largest_remainder(population, shares)
    at_home = living.filter(household)
    separated = pc.sum(pc.not_equal(at_home["street"], at_home["register_street"])).as_py()
    assert separated == population * 828 // 10_000

    old = living.filter(pa.array(ages >= 60))
    assert pc.sum(pc.invert(old["in_health"])).as_py() == old.num_rows * 285 // 1000


def test_streets_are_numbered_within_their_district(city: Path) -> None:
    districts = load_expected(city).districts
    assert len(districts) == (33 if load_manifest(city).profile == "ci" else 176)
    assert set(districts.values()) == set(AREA_CODES)
    assert all(len(street) == 9 and street[:6] == district for street, district in districts.items())
    for path in sorted((city / "registers").rglob("*.parquet")):
        assert set(pq.read_table(path, columns=["street"])["street"].unique().to_pylist()) <= set(districts)


def test_a_street_of_the_past_appears_only_in_rows_from_before_the_move(ci: Path) -> None:
    truth = {row["resident_id"]: row for row in table(ci, "truth/persons").to_pylist()}
    moved = 0
    for row in table(ci, "registers/telecom/monthly").to_pylist():
        person = truth.get(row["resident_id"])
        if person is None:
            continue  # spelled with an error
        before = person["moved_month"] is not None and row["last_seen_month"] < person["moved_month"]
        assert row["street"] == (person["previous_street"] if before else person["street"])
        moved += before
    assert moved > 0


# Nobody real -----------------------------------------------------------------------------------------


def test_ids_are_unique_valid_and_under_the_prefix_99(city: Path) -> None:
    people = table(city, "truth/persons", ["resident_id", "known_as"])
    ids = pa.concat_arrays([*people["resident_id"].chunks, *people["known_as"].drop_null().chunks])
    checked = keys_of(ids)
    assert checked.counts() == {}
    assert len(np.unique(checked.keys)) == len(ids)
    assert {text[:6] for text in ids.to_pylist()} == set(AREA_CODES)
    assert {area[:2] for area in AREA_CODES} == {"99"}
    # 996 to 999 mark centenarians, and a fifteen-digit id with such a number would get another century.
    assert max(int(text[14:17]) for text in ids.to_pylist()) < 996


def test_phones_are_under_an_unassigned_prefix_and_employers_codes_are_valid(ci: Path) -> None:
    insured = table(ci, "registers/human-resources/insured")
    assert all(len(phone) == 11 and phone.startswith("154") for phone in insured["phone"].to_pylist())
    business = table(ci, "registers/market-regulation/businesses")
    for column in (insured["employer"], business["credit_code"]):
        assert normalise(column, "uscc", as_of=SNAPSHOT, areas=demo_area_table()).counts() == {}
        assert all(code[2:6] == "9901" for code in column.to_pylist())
    codes = business.filter(pc.is_in(business["resident_id"], table(ci, "truth/persons")["resident_id"]))
    owners = codes.group_by("credit_code").aggregate([("resident_id", "count_distinct")])
    assert set(owners["resident_id_count_distinct"].to_pylist()) == {1}


# Dirt ------------------------------------------------------------------------------------------------


def test_every_rejected_row_is_a_logged_bad_check_digit_and_no_table_has_more_than_one_per_cent(
    ci: Path,
) -> None:
    for path, file in load_manifest(ci).files.items():
        if not path.startswith("registers/") or file.distinct_keys < 0:
            continue
        name = path.removesuffix(".parquet")
        found = keys_of(table(ci, name, ["resident_id"])["resident_id"])
        log = table(ci, name.replace("registers", "truth/dirt"))
        bad = log.filter(pc.equal(log["kind"], "bad-check-digit"))["row"].to_pylist()
        assert np.flatnonzero(found.reasons).tolist() == bad
        assert set(found.counts()) <= {"bad-check-digit"}
        assert len(bad) <= file.rows * 0.01
        assert len(np.unique(found.keys)) == file.distinct_keys


def test_the_log_names_every_deviation_and_nothing_else(city: Path) -> None:
    rows = table(city, "registers/police/population").to_pylist()
    logged: dict[str, set[int]] = {}
    for entry in table(city, "truth/dirt/police/population").to_pylist():
        logged.setdefault(entry["kind"], set()).add(entry["row"])
    seen: dict[str, set[int]] = {
        "fifteen-digits": {n for n, row in enumerate(rows) if len(row["resident_id"]) == 15},
        "full-width": {n for n, row in enumerate(rows) if ord(row["resident_id"][0]) > 0xFF00},
        "trailing-blank": {n for n, row in enumerate(rows) if row["resident_id"].endswith(" ")},
        "lower-case-x": {n for n, row in enumerate(rows) if row["resident_id"].endswith("x")},
        "name-dot": {n for n, row in enumerate(rows) if set(row["name"]) & set("•‧・．")},
        "no-residence-permit": {
            n for n, row in enumerate(rows) if row["kind"] == "floating" and row["residence_permit"] is None
        },
    }
    for kind, found in seen.items():
        assert found == logged[kind], kind
        assert found, kind
    floating = sum(row["kind"] == "floating" for row in rows)
    assert len(logged["no-residence-permit"]) == pytest.approx(0.342 * floating, rel=0.01)
    assert len(logged["dead-phone"]) == pytest.approx(0.127 * len(rows), abs=8)
    assert len(logged["repeat"]) == pytest.approx(0.153 * len(rows), abs=8)
    assert len(logged["bad-check-digit"]) == pytest.approx(0.01 * len(rows), rel=0.05)


def test_a_repeat_names_the_row_it_repeats_and_one_in_eight_people_has_several(city: Path) -> None:
    rows = table(city, "registers/housing/leases")
    log = table(city, "truth/dirt/housing/leases")
    repeats = log.filter(pc.equal(log["kind"], "repeat"))
    assert (repeats["of_row"].null_count, log["of_row"].null_count) == (0, log.num_rows - repeats.num_rows)
    found = keys_of(rows["resident_id"])
    key_of_row = dict(zip(found.rows.tolist(), found.keys.tolist(), strict=True))
    pairs = list(zip(repeats["row"].to_pylist(), repeats["of_row"].to_pylist(), strict=True))
    assert all(first in key_of_row for _, first in pairs)
    assert all(key_of_row.get(row, key_of_row[first]) == key_of_row[first] for row, first in pairs)
    assert rows.num_rows - len(pairs) == len(set(key_of_row.values()))
    several = len({first for _, first in pairs})
    assert several == pytest.approx(0.12 * len(set(key_of_row.values())), abs=8)


def test_birth_certificates_differ_from_the_register_where_the_log_says(city: Path) -> None:
    births = table(city, "registers/health/births")
    log = table(city, "truth/dirt/health/births")
    logged = set(log.filter(pc.equal(log["kind"], "birth-mismatch"))["row"].to_pylist())
    found = keys_of(births["resident_id"])
    days = births["birth_date"].to_pylist()
    differ = set()
    for row, key in zip(found.rows.tolist(), found.keys.tolist(), strict=True):
        in_id = date(int(key[10:14]), int(key[14:16]), int(key[16:18]))
        if in_id != days[row]:
            differ.add(row)
    assert differ == logged & set(found.rows.tolist())
    assert differ


def test_pensions_still_paid_to_the_dead_are_those_still_on_the_register(cities: dict[str, Path]) -> None:
    city = cities["ci"]
    people = table(city, "truth/persons")
    uncancelled = people.filter(pc.equal(people["cohort"], "uncancelled"))
    assert uncancelled.num_rows == 73 * 300 // 1000
    inflated = ("uncancelled_per_mille", "low_income_per_mille", "owners_per_cent")
    assert load_manifest(city).inflated == inflated
    pensions = set(keys_of(table(city, "registers/human-resources/pension")["resident_id"]).keys.tolist())
    register = set(keys_of(table(city, "registers/police/register")["resident_id"]).keys.tolist())
    old = uncancelled.filter(pc.less_equal(uncancelled["birth_date"], date(SNAPSHOT.year - 60, 12, 31)))
    keys = {b"RIC:" + text.encode() for text in old["resident_id"].to_pylist()}
    assert keys
    assert keys <= pensions & register


def test_spouses_and_parents_agree(ci: Path) -> None:
    people = {row["resident_id"]: row for row in table(ci, "truth/persons").to_pylist()}
    for person in people.values():
        if person["spouse_id"]:
            spouse = people[person["spouse_id"]]
            assert spouse["spouse_id"] == person["resident_id"]
            assert spouse["sex"] != person["sex"]
        if person["mother_id"]:
            mother = people[person["mother_id"]]
            assert mother["sex"] == 2
            assert 21 <= person["birth_date"].year - mother["birth_date"].year <= 41
            assert person["father_id"] == mother["spouse_id"]


# The same every time ---------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    manifests: list[Manifest] = []
    for workers in (1, 2, 3):
        manifests.append(generate("ci", 1, tmp_path / str(workers), workers=workers))
    assert manifests[0] == manifests[1] == manifests[2]
    one, two, three = (
        {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}
        for base in (tmp_path / "1", tmp_path / "2", tmp_path / "3")
    )
    assert one == two == three


def test_the_manifest_lists_every_file_with_its_digest(ci: Path) -> None:
    manifest = load_manifest(ci)
    on_disk = {str(path.relative_to(ci)) for path in ci.rglob("*") if path.is_file()}
    numbers = ("1", "2", "2-overpaid", "3", "3-residents", "4", "5", "6", "7", "8", "9")
    answers = {f"expected/scenario-{number}.json" for number in numbers}
    assert on_disk == {*manifest.files, "manifest.json", *answers}
    for path, file in manifest.files.items():
        data = (ci / path).read_bytes()
        assert file.sha256 == "sha256:" + hashlib.sha256(data).hexdigest()
        assert file.bytes == len(data)
        metadata = pq.read_metadata(ci / path)
        assert file.rows == metadata.num_rows
        assert metadata.row_group(0).column(0).compression == "SNAPPY"


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_another_seed_gives_other_people_and_the_same_counts(ci: Path, tmp_path: Path, seed: int) -> None:
    generate("ci", seed, tmp_path / "city")
    one, other = load_expected(ci), load_expected(tmp_path / "city")
    assert one.flagged_sha256 != other.flagged_sha256
    assert one.streets != other.streets
    assert (one.venn, one.lists, one.flagged_by_meaning) == (
        other.venn,
        other.lists,
        other.flagged_by_meaning,
    )


# Bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"profile": "huge"}, "unknown-profile"),
        ({"seed": -1}, "bad-seed"),
        ({"seed": 2**64}, "bad-seed"),
        ({"workers": 0}, "bad-workers"),
        ({"workers": 65}, "bad-workers"),
        ({"out": "taken"}, "output-exists"),
        ({"out": "taken/note"}, "output-exists"),
        ({"out": "taken/note/city"}, "output-not-writable"),
    ],
)
def test_a_bad_argument_is_named_and_leaves_nothing_behind(tmp_path: Path, changed, code: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note").write_text("mine")
    arguments = {"profile": "ci", "seed": 1, "workers": 1, "out": "city"} | changed
    with pytest.raises(InputError) as caught:
        generate(**(arguments | {"out": tmp_path / arguments["out"]}))
    assert caught.value.code == code
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["note", "taken"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, OSError])
def test_a_build_that_stops_halfway_leaves_nothing_behind(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == 2:
            raise failure

    with pytest.raises((failure, InputError)):
        generate("ci", 1, tmp_path / "city", workers=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "city").mkdir()
    generate("ci", 1, tmp_path / "city")
    assert load_expected(tmp_path / "city").flagged == 571


def test_a_folder_that_is_no_city_is_refused(tmp_path: Path) -> None:
    for damage in (None, b"{", b"[]", b'{"schema": "minshu-city/0"}'):
        if damage is not None:
            (tmp_path / "expected").mkdir(exist_ok=True)
            for path in (tmp_path / "manifest.json", tmp_path / "expected" / "scenario-1.json"):
                path.write_bytes(damage)
        for load in (load_manifest, load_expected):
            with pytest.raises(InputError) as caught:
                load(tmp_path)
            assert caught.value.code == "no-city"


# Rounding --------------------------------------------------------------------------------------------


@given(st.integers(0, 10**7), st.lists(st.integers(0, 10**5), min_size=1, max_size=40).filter(any))
def test_largest_remainders_sum_to_the_total_and_stay_within_one_of_the_share(total: int, weights) -> None:
    parts = largest_remainder(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    assert all(
        abs(part * whole - total * weight) < whole for part, weight in zip(parts, weights, strict=True)
    )


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.data())
def test_a_split_in_two_has_exactly_the_asked_sums(sizes, data) -> None:
    members = data.draw(st.integers(0, sum(sizes)))
    parts = split(np.array(sizes), np.array([members, sum(sizes) - members]))
    assert parts.min() >= 0
    assert parts.sum(axis=0).tolist() == [members, sum(sizes) - members]
    assert parts.sum(axis=1).tolist() == sizes


def test_a_split_too_fine_for_its_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="smaller than one person per column"):
        split(np.ones(8, dtype=np.int64), np.ones(8, dtype=np.int64))
