"""`quality/1` played whole: the totals are those of each department's own look, and nothing small is told."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_case import DAY, KEY, KIND, NAME, QUALITY, figures_of, quality_case, quality_spec

from audit.disclosure_quality import examine_quality
from protocols.codes import GBT2261_1
from protocols.identifiers import area_table
from protocols.jobs.quality import Params
from protocols.quality import QualityBuilder
from protocols.quality_sums import flat, read_columns, withheld_figures
from protocols.tables.layout import Reader
from protocols.wire import Constraints


def dirty(number: int, rows: int = 240):
    """A department's table: every 5th row without an identifier, others of every kind of wrong."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    found = []
    for n in range(rows):
        body = f"990101{1950 + n % 60}0{1 + n % 9}{10 + n % 18}{(n // 2) % 50 + number * 100:03d}"
        check = "10X98765432"[sum(int(c) * w for c, w in zip(body, weights, strict=True)) % 11]
        key = body + (check if n % 7 else "X" if check == "1" else "1")
        found.append(
            {
                "id": None if n % 5 == 0 else "未知" if n % 31 == 0 else key[: 18 if n % 11 else 12],
                "sex": None if n % 23 == 0 else "1" if n % 9 else "男",
                "day": ("2020-02-02", "2099-01-01", "", "1850-01-01", "soon")[(n % 37 < 12) * (n % 5)],
                "name": "某人" if n % 13 else " ",
            }
        )
        if n % 8 == 4:
            found[-1]["id"] = found[-2]["id"]
    return found


TABLES = [dirty(number) for number in range(4)]


def own_look(rows):
    """What a department's own preflight counts of such rows."""
    builder = QualityBuilder(
        ["id", "sex", "day", "name"],
        key="id",
        as_of=date(2026, 1, 1),
        areas=area_table("demo-city"),
        seed=bytes(32),
        codes={"sex": GBT2261_1},
        days=["day"],
    )
    builder.add({slot: pa.array([row[slot] for row in rows], pa.string()) for slot in rows[0]})
    return builder.finish()


@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_the_table_is_the_sum_of_what_each_department_finds_by_itself(mode):
    case = quality_case(TABLES, mode=mode, persons_in=1, key_holder=3)
    content = case.released()
    shown, shares = figures_of(content), figures_of(content, "share")
    looks = [own_look(rows) for rows in TABLES]
    expected = {("", "", ""): sum(look.rows for look in looks)}
    for slot in ("id", "sex", "day", "name"):
        expected[slot, "missing", ""] = sum(look.columns[slot].missing for look in looks)
    keys = [look.key for look in looks]
    expected["id", "valid", ""] = sum(key.valid for key in keys)
    expected["id", "valid", "repeated"] = sum(key.repeated for key in keys)
    for reason in ("bad-check-digit", "bad-length"):
        expected["id", "invalid", reason] = sum(key.rejected[reason] for key in keys)
    expected["sex", "invalid", ""] = sum(look.columns["sex"].outside for look in looks)
    for reason in ("future", "early", "malformed"):
        expected["day", "invalid", reason] = sum(getattr(look.columns["day"], reason) for look in looks)
    assert all(count > 10 for count in expected.values())
    assert {place: shown[place] for place in expected} == {
        place: (2 * count + 5) // 10 * 5 for place, count in expected.items()
    }
    no_identifier = shares["id", "missing", ""] + shares["id", "invalid", ""]
    exactly = 1 - expected["id", "valid", ""] / expected["", "", ""]
    assert no_identifier == pytest.approx(exactly, abs=0.01)
    assert (
        examine_quality(
            {name: values.tolist() for name, values in content.table.columns.items()},
            content.facts,
            case.spec,
            Constraints(min_group_size=1),
        )
        == []
    )


def test_with_noise_the_true_totals_lie_in_the_intervals():
    case = quality_case(TABLES, rho="2", persons_in=1, seed="noise")
    content = case.released()
    totals = sum(each.counts for each in case.inputs.values())
    low, high = (content.table.columns[name] for name in ("low", "high"))
    there = ~content.table.columns["withheld"]
    within = ((low <= totals) & (totals <= high))[there]
    # 20 and more figures, each in its interval with 95 %: five outside has a chance below 1e-3.
    assert there.sum() >= 15
    assert (~within).sum() <= 5
    assert "share" not in content.table.columns["measure"].tolist()


def test_one_department_that_alone_has_such_rows_is_not_told_of():
    tables = [[dict(row, sex="1") for row in rows] for rows in TABLES]
    tables[2] = [dict(row, sex="男") for row in tables[2][:100]] + tables[2][100:]
    shown = figures_of(quality_case(tables, persons_in=1).released())
    assert shown["sex", "invalid", ""] is None
    assert shown["sex", "valid", ""] is None  # all rows less these are those
    assert shown["sex", "missing", ""] == 0
    assert shown["", "", ""] == 960


@pytest.mark.parametrize(("rows", "withheld"), [(1, True), (9, True), (10, False)])
def test_a_number_below_the_group_is_withheld_and_one_of_the_group_is_not(rows, withheld):
    # Three departments have such rows together.
    tables = [[dict(row, name="某人") for row in table] for table in TABLES[:3]]
    for n in range(rows):
        tables[n % 3][n]["name"] = ""
    content = quality_case(tables, persons_in=1, constraints=Constraints(min_group_size=10)).released()
    assert (figures_of(content)["name", "missing", ""] is None) == (withheld or rows < 3)


@pytest.mark.parametrize(
    ("asked", "least"), [({"persons_in": 3}, 30), ({"persons_in": 1, "unit_rows": 4}, 40)]
)
def test_a_group_is_of_as_many_rows_as_that_many_persons_may_have(asked, least):
    tables = [[dict(row, name="某人") for row in table] for table in TABLES[:3]]
    for table in tables:
        for n in range(least // 3 if least % 3 == 0 else least // 3 + 1):
            table[n]["name"] = ""
    limits = Constraints(min_group_size=10)
    content = quality_case(tables, constraints=limits, **asked).released()
    assert content.facts["shown_from"] == least
    assert figures_of(content)["name", "missing", ""] is not None
    for table in tables:
        table[0]["name"] = "某人"
    again = quality_case(tables, constraints=limits, **asked).released()
    assert figures_of(again)["name", "missing", ""] is None


def test_the_strictest_participants_departments_are_behind_every_number():
    tables = [[dict(row, name="某人") for row in table] for table in TABLES]
    for table in tables[:3]:
        for n in range(20):
            table[n]["name"] = ""
    for fewest, hidden in ((None, False), (3, False), (4, True)):
        limits = Constraints(min_group_size=1, min_organisations=fewest)
        shown = figures_of(quality_case(tables, constraints=limits).released())
        assert (shown["name", "missing", ""] is None) == hidden


def test_where_a_department_is_empty_nothing_is_told():
    content = quality_case([TABLES[0], TABLES[1], []]).released()
    assert set(figures_of(content).values()) == {None}
    assert set(figures_of(content, "share").values()) == {None}


def test_empty_departments_are_empty_and_have_no_shares():
    content = quality_case([[], [], []]).released()
    assert set(figures_of(content).values()) == {0}
    assert set(figures_of(content, "share").values()) == {None}


COLUMNS = read_columns(Reader({"columns": [DAY, KIND, NAME]}, "quality/1"))
SMALL = st.integers(0, 3) | st.integers(4, 40)


@st.composite
def totals(draw):
    """Totals of a small job, and departments behind each figure, as data make them."""
    reasons = [draw(SMALL) for _ in range(3)]
    missing, valid = draw(SMALL), draw(SMALL)
    rows = sum(reasons) + missing + valid
    outside = draw(st.integers(0, rows))
    blank = draw(st.integers(0, rows))
    kind_missing = draw(st.integers(0, rows - outside))
    counts = [
        rows,
        *(missing, sum(reasons), valid),
        *reasons,
        *(kind_missing, outside, rows - outside - kind_missing),
        *(blank, rows - blank),
    ]
    few = draw(st.sets(st.sampled_from([1, 3, 4, 5, 6, 7, 8, 9, 10, 11])))
    behind = [0 if not count else 2 if at in few else 3 for at, count in enumerate(counts)]
    return np.array(counts), np.array(behind)


@settings(max_examples=40, deadline=None)
@given(totals(), st.integers(1, 12))
def test_an_auditor_finds_nothing_that_follows_and_nobody_learns_a_withheld_number(drawn, least):
    counts, behind = drawn
    hidden = withheld_figures(COLUMNS, counts, behind, least=least, fewest=3)
    places = flat(COLUMNS)
    assert hidden[(counts > 0) & ((counts < least) | (behind < 3))].all()
    if hidden.all():
        return
    assert not hidden[0]
    known = {place: int(count) for place, count, dark in zip(places, counts, hidden, strict=True) if not dark}
    for column in COLUMNS:
        # A reader solves for what is withheld: no sum has a single unknown, also after several steps.
        parts = [place for place in places if place.column == column.slot and not place.reason]
        dark = [part for part in parts if part not in known]
        assert len(dark) != 1
        for part in parts:
            of_it = [p for p in places if (p.column, p.part) == (column.slot, part.part) and p.reason]
            unknown = [place for place in of_it if place not in known]
            if part in known:
                assert len(unknown) != 1
                left = known[part] - sum(known[place] for place in of_it if place in known)
                # Each of them could be a whole group.
                assert not unknown or left - (len(unknown) - 1) >= least
            elif of_it:
                assert unknown


def test_no_two_jobs_are_one_question_unless_they_ask_the_same():
    role = "source-1"
    first = QUALITY.query(quality_spec(3), role)
    assert not first.filters
    assert not first.noisy
    assert QUALITY.query(quality_spec(3, mode="mask", key_holder=2), role) == first
    assert QUALITY.query(quality_spec(4), role) != first
    assert QUALITY.query(quality_spec(3, columns=[KEY, DAY, NAME]), role) != first
    assert QUALITY.query(quality_spec(3, rho="0.1"), role).noisy
    assert Params.of(quality_spec(3)).words == 2 * len(flat(Params.of(quality_spec(3)).columns))
