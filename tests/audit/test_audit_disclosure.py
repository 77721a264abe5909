"""Disclosure control run again on published tables: with paper and pencil, nothing withheld is found."""

import io
import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import new_signer, person

from audit.disclosure import NOT_OPENED, Released, commitment, committed, disclose, examine
from audit.findings import Answer, Check
from coordinator.client.release import Release
from node.releases import decode_content, encode_content, write_table
from protocols.encoding import sha256_digest
from protocols.envelope import RELEASE, sign
from protocols.errors import InputError
from protocols.ids import Digest, JobId, NodeName, Organisation
from protocols.jobs.crosscheck import street_table
from protocols.psi.keyed_list import KeyedListBuilder
from protocols.wire import Constraints, ReleaseNote

JOB = JobId("sha256:" + "ab" * 32)
COUNTS = {f"9901{d:02d}{s:03d}": 30 + 7 * d + 11 * s for d in range(1, 5) for s in range(1, 6)}
COUNTS |= {"990101001": 3, "990102002": 8, "990103003": 1}


def plain(counts: dict[str, int], minimum: int) -> dict[str, list[Any]]:
    """The table as a node makes it."""
    return {name: column.tolist() for name, column in street_table(counts, minimum).table.columns.items()}


def codes(columns: dict[str, list[Any]], minimum: int = 10, **more: Any) -> set[str]:
    return {problem.code for problem in examine(columns, minimum=minimum, **more)}


def show(columns: dict[str, list[Any]], level: str, count: int, **place: str) -> None:
    """Publish a cell."""
    for row, name in enumerate(columns["level"]):
        if name == level and all(columns[key][row] == value for key, value in place.items()):
            columns["count"][row], columns["withheld"][row] = count, False


def hide(columns: dict[str, list[Any]], level: str, **place: str) -> None:
    for row, name in enumerate(columns["level"]):
        if name == level and all(columns[key][row] == value for key, value in place.items()):
            columns["count"][row], columns["withheld"][row] = -1, True


def test_a_table_as_a_node_makes_it_gives_nothing_away() -> None:
    columns = plain(COUNTS, 10)
    assert columns["withheld"].count(True) >= 6
    assert examine(columns, minimum=10, facts=street_table(COUNTS, 10).facts) == []


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 3), st.integers(1, 4)), st.integers(0, 60), min_size=1, max_size=12
    ),
    st.sampled_from([3, 5, 10, 20]),
)
def test_no_table_of_the_products_own_making_is_objected_to(cells: dict[Any, int], minimum: int) -> None:
    counts = {f"9901{d:02d}{s:03d}": count for (d, s), count in cells.items()}
    content = street_table(counts, minimum)
    columns = {name: column.tolist() for name, column in content.table.columns.items()}
    assert examine(columns, minimum=minimum, facts=content.facts) == []


def test_a_cell_without_its_shield_follows_from_its_district() -> None:
    columns = plain(COUNTS, 10)
    for row, level in enumerate(columns["level"]):
        if level == "street" and columns["withheld"][row] and COUNTS[columns["street"][row]] >= 10:
            columns["withheld"][row] = False
            columns["count"][row] = COUNTS[columns["street"][row]] // 5 * 5
    assert codes(columns) == {"recoverable"}


def test_a_withheld_total_follows_from_its_parts() -> None:
    columns = plain({street: count + 20 for street, count in COUNTS.items()}, 10)
    assert codes(columns) == set()
    hide(columns, "district", district="990102")
    assert codes(columns) == {"recoverable"}
    columns = plain({street: count + 20 for street, count in COUNTS.items()}, 10)
    hide(columns, "city")
    assert codes(columns) == {"recoverable"}


def test_a_small_cell_that_is_published_is_found() -> None:
    columns = plain(COUNTS, 10)
    show(columns, "street", 5, street="990101001")
    assert "small-cell" in codes(columns)


def test_a_count_that_is_not_rounded_is_found() -> None:
    columns = plain(COUNTS, 10)
    show(columns, "street", 47, street="990104005")
    assert "not-rounded" in codes(columns)


def test_a_table_for_a_smaller_group_than_was_demanded_is_found() -> None:
    content = street_table(COUNTS, 5)
    columns = {name: column.tolist() for name, column in content.table.columns.items()}
    assert codes(columns, 20, facts=content.facts) >= {"wrong-facts"}


def test_two_withheld_streets_of_three_persons_are_told_to_be_few() -> None:
    """District 20, one street 15: the two others have 2 to 9 between them, so each fewer than 10."""
    columns = plain(dict.fromkeys(COUNTS, 50), 10)
    columns["level"] += ["district", "street", "street", "street"]
    columns["district"] += ["990109"] * 4
    columns["street"] += ["", "990109001", "990109002", "990109003"]
    columns["count"] += [20, 15, -1, -1]
    columns["withheld"] += [False, False, True, True]
    show(columns, "city", 1020)
    assert codes(columns) == {"too-narrow"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["level"].__setitem__(1, "city"),
        lambda c: c["count"].__setitem__(2, -5),
        lambda c: c["count"].__setitem__(2, "many"),
        lambda c: c["withheld"].__setitem__(3, "perhaps"),
        lambda c: c["street"].__setitem__(-1, c["street"][-2]),
        lambda c: c["district"].__setitem__(-1, "000000"),
    ],
)
def test_what_is_no_such_table_is_said_to_be_none(spoil: Any) -> None:
    columns = plain(COUNTS, 10)
    spoil(columns)
    assert codes(columns) == {"bad-table"}


def test_counts_that_contradict_each_other_are_found() -> None:
    columns = plain(dict.fromkeys(COUNTS, 50), 10)
    show(columns, "city", 5000)
    assert codes(columns) == {"does-not-add-up"}


def _possible(tree: dict[str, list[int]], hidden: set[Any], highest: int) -> list[dict[Any, int]]:
    """Every table that a reader of the published cells cannot rule out, by trying all of them."""
    truth: dict[Any, int] = {("city",): sum(map(sum, tree.values()))}
    for district, streets in tree.items():
        truth["district", district] = sum(streets)
        truth |= {("street", district, at): count for at, count in enumerate(streets)}
    places = [(district, at) for district in tree for at in range(len(tree[district]))]
    unknown = [("street", *place) for place in places if ("street", *place) in hidden]
    found = []
    for guess in itertools.product(range(1, highest + 1), repeat=len(unknown)):
        table = {key: count for key, count in truth.items() if key[0] == "street"}
        table |= dict(zip(unknown, guess, strict=True))
        for district in tree:
            table["district", district] = sum(table["street", d, at] for d, at in places if d == district)
        table["city",] = sum(table["district", district] for district in tree)
        if all(table[key] == truth[key] for key in truth if key not in hidden):
            found.append(table)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=2), st.randoms())
def test_exact_tables_give_away_just_what_trying_all_tables_gives_away(
    districts: list[list[int]], rand: Any
) -> None:
    tree = {f"99010{number}": streets for number, streets in enumerate(districts, 1)}
    keys = [("city",), *(("district", d) for d in tree)]
    keys += [("street", d, at) for d, streets in tree.items() for at in range(len(streets))]
    hidden = {key for key in keys if rand.random() < 0.5}
    highest = 4 * 6 + 1  # more than any published sum leaves for one cell
    unknown = sum(key[0] == "street" for key in hidden)
    if unknown > 3:
        return
    possible = _possible(tree, hidden, highest)
    given_away = any(len({table[key] for table in possible}) == 1 for key in hidden)
    cells = [("city", "", "", sum(map(sum, tree.values())), ("city",) in hidden)]
    for district, streets in tree.items():
        cells.append(("district", district, "", sum(streets), ("district", district) in hidden))
        cells += [
            ("street", district, str(at), count, ("street", district, at) in hidden)
            for at, count in enumerate(streets)
        ]
    levels, names, streets_of, counts, withheld = map(list, zip(*cells, strict=True))
    columns = {
        "level": levels,
        "district": names,
        "street": streets_of,
        "count": [-1 if dark else count for count, dark in zip(counts, withheld, strict=True)],
        "withheld": withheld,
    }
    assert ("recoverable" in codes(columns, 1, rounding=1)) == given_away


# -- opened releases ---------------------------------------------------------------------------------------


def released(counts: dict[str, int], minimum: int, **fields: Any) -> tuple[bytes, bytes, Released]:
    """Return a release's content, its note's envelope, and what the log says of it."""
    content = encode_content(street_table(counts, minimum), "aggregate", bytes(16))
    note = ReleaseNote(
        release="0f" * 16,
        job=JOB,
        attempt=1,
        node=NodeName("police.gz.example/node-a"),
        name="street-table",
        output_class="A",
        recipient=Organisation("data-bureau.gz.example"),
        sealed_to=Digest(JOB),
        suite=2,
        sha256=Digest(JOB),
        content_sha256=sha256_digest(content),
        statement="aggregate",
        created=datetime(2026, 12, 1, tzinfo=UTC),
        expires=datetime(2026, 12, 31, tzinfo=UTC),
    )
    envelope = sign(RELEASE, note.encode(), [new_signer()]).encode()
    kept = Constraints(**{"min_group_size": minimum, **fields})
    return content, envelope, Released(note, "entry 7", kept)


def looked_at(opened: dict[str, bytes], entry: Released) -> Check:
    check = Check("disclosure")
    disclose(opened, {entry.note.content_sha256: entry}, check)
    return check


def found(check: Check) -> set[str]:
    return {finding.code for finding in check.findings}


def test_a_release_as_the_analyst_saved_it_holds(tmp_path: Path) -> None:
    content, note, entry = released(COUNTS, 10)
    facts = dict(decode_content(content)[1]["facts"])
    Release("street-table", "aggregate", facts, entry.note, note, content).save(tmp_path)
    opened = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(opened) == {"street-table.csv", "street-table.arrow", "street-table.note.dsse"}
    for keep in itertools.product([False, True], repeat=3):
        some = {name: data for (name, data), there in zip(sorted(opened.items()), keep, strict=True) if there}
        check = looked_at(some, entry)
        assert found(check) == set()
        tables = [name for name in some if not name.endswith(".dsse")]
        assert check.answer is (Answer.HOLDS if tables else Answer.NOT_CHECKABLE), some.keys()


def test_a_table_opened_at_the_node_itself_holds(tmp_path: Path) -> None:
    content, _, entry = released(COUNTS, 10)
    write_table(decode_content(content)[0], tmp_path / "street-table.csv")
    data = (tmp_path / "street-table.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert looked_at({"street-table.csv": data}, entry).answer is Answer.HOLDS


def test_without_the_opened_release_nothing_can_be_said() -> None:
    check = looked_at({}, released(COUNTS, 10)[2])
    assert check.answer is Answer.NOT_CHECKABLE
    assert check.missing == [NOT_OPENED]


def test_other_content_than_the_note_names_is_found() -> None:
    _, note, entry = released(COUNTS, 10)
    other = encode_content(street_table(COUNTS, 10), "aggregate", bytes(15) + b"\x01")
    opened = {"street-table.arrow": other, "street-table.note.dsse": note}
    assert found(looked_at(opened, entry)) == {"wrong-content"}


def test_another_note_on_a_release_is_found() -> None:
    content, _, entry = released(COUNTS, 10)
    from dataclasses import replace

    other = replace(entry.note, recipient=Organisation("health.gz.example"))
    note = sign(RELEASE, other.encode(), [new_signer()]).encode()
    opened = {"street-table.arrow": content, "street-table.note.dsse": note}
    assert found(looked_at(opened, entry)) == {"wrong-note"}


def test_a_csv_file_that_shows_another_table_is_found() -> None:
    content, note, entry = released(COUNTS, 10)
    import pyarrow.csv

    sink = io.BytesIO()
    table = decode_content(encode_content(street_table(dict.fromkeys(COUNTS, 40), 10), "", bytes(16)))[0]
    pyarrow.csv.write_csv(table, sink)
    opened = {"t.arrow": content, "t.note.dsse": note, "t.csv": sink.getvalue()}
    assert found(looked_at(opened, entry)) == {"wrong-content"}


def test_a_release_for_a_smaller_group_than_all_admitted_is_found() -> None:
    content, _, entry = released(COUNTS, 5, min_group_size=20)
    assert "wrong-facts" in found(looked_at({"street-table.arrow": content}, entry))


def test_a_release_of_another_log_is_passed_over() -> None:
    content, _, _ = released(dict.fromkeys(COUNTS, 44), 10)
    check = looked_at({"street-table.arrow": content}, released(COUNTS, 10)[2])
    assert check.answer is Answer.NOT_CHECKABLE
    assert check.looked_at == 0


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xff\xff\xff", b"level,district\n1", b"\x80abc", b'"', b"a,a\n1,2"]
)
def test_bytes_that_are_no_table_are_said_to_be_none(data: bytes) -> None:
    _, note, entry = released(COUNTS, 10)
    check = looked_at({"street-table.csv": data, "street-table.note.dsse": note}, entry)
    assert found(check) == {"bad-release"} or check.answer is Answer.NOT_CHECKABLE


# -- commitments -------------------------------------------------------------------------------------------


def inputs(*people: int) -> tuple[list[bytes], Digest, bytes]:
    """Return typed keys, and a node's commitment to them with its salt."""
    import pyarrow as pa

    from protocols.identifiers import demo_area_table

    builder = KeyedListBuilder(as_of=datetime(2026, 12, 1, tzinfo=UTC).date(), areas=demo_area_table())
    builder.add({"key": pa.array([person(number) for number in people])})
    prepared, salt = builder.finish(), bytes(range(32))
    return prepared.keys.tolist(), prepared.commitment(salt), salt


def test_a_commitment_is_computed_as_the_node_computed_it() -> None:
    keys, stated, salt = inputs(*range(50))
    assert commitment([*keys[::-1], keys[0]], salt) == stated
    assert commitment(keys[1:], salt) != stated
    with pytest.raises(InputError):
        commitment(keys, salt[1:])


def test_released_keys_are_of_the_committed_inputs() -> None:
    one, two = inputs(*range(40)), inputs(*range(20, 60))
    stated = {one[1]: "entry 3", two[1]: "entry 4"}
    lists = [(one[0], one[2]), (two[0], two[2])]
    both = inputs(*range(20, 40))[0]
    check = Check("committed")
    committed(both, lists, stated, check, at_least=2)
    assert check.answer is Answer.HOLDS
    committed([*both, inputs(41)[0][0]], lists, stated, check, at_least=2)
    assert found(check) == {"not-of-the-inputs"}
    check = Check("committed")
    committed(both, [(inputs(*range(41))[0], one[2])], stated, check)
    assert found(check) == {"not-committed"}
