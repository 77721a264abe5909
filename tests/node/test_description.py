"""What is said about a dataset: read from TOML with line and key of whatever is wrong, kept, and bounded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.description import MAX_COLUMNS, NO_DESCRIPTION, Description, read_description
from node.desk import dataset_from_json, dataset_to_json
from node.sources import FilePlace, SourceColumn
from node.state import Dataset
from protocols.codes import DEFINITIONS
from protocols.errors import DecodeError, InputError
from protocols.ids import DatasetName

FULL = """
title = "婚姻登记"
item = "4401-001"
organisation = "市民政局"
authoritative = ["status"]
grade = "general-4"
sharing = "conditional"
purposes = ["婚姻登记", "公共服务"]
update_days = 1
legal_basis = "婚姻登记条例"
shown = false

[definition]
id = "marriage"
version = "2024"
text = "以登记为准"

[columns.status]
title = "婚姻状况"
nullable = false

[columns.fee]
unit = "元"
organisation = "市财政局"
code_table = "local-fee@2024"

[mapping.status]
table = "gbt2261.2@2003"
values = { "已婚" = "20" }
"""
COLUMNS = (SourceColumn("status", "text"), SourceColumn("fee", "integer"))


def read(tmp_path: Path, text: str) -> Description:
    path = tmp_path / "marriage.toml"
    path.write_text(text, "utf-8")
    return read_description(path)


def test_a_description_says_all_of_it_and_survives_its_json(tmp_path: Path) -> None:
    found = read(tmp_path, FULL)
    assert (found.title, found.grade, found.purposes) == ("婚姻登记", "general-4", ("婚姻登记", "公共服务"))
    assert found.is_authoritative("status")
    assert not found.is_authoritative("fee")
    # Others see the codes that a column has after mapping.
    assert (found.code_table("status"), found.code_table("fee")) == ("gbt2261.2@2003", "local-fee@2024")
    assert Description.from_json(found.to_json()) == found
    found.check(COLUMNS)
    with pytest.raises(InputError) as caught:
        found.check(COLUMNS[1:])
    assert caught.value.code == "unknown-column"


def test_nothing_is_said_by_default_and_a_dataset_carries_what_is(tmp_path: Path) -> None:
    assert NO_DESCRIPTION.to_json() == {}
    assert Description.from_json({}) == NO_DESCRIPTION
    described = read(tmp_path, FULL)
    for description in (NO_DESCRIPTION, described):
        dataset = Dataset(
            DatasetName("marriage"),
            "婚姻",
            FilePlace(tmp_path / "m.csv"),
            "id",
            COLUMNS,
            7,
            6,
            6,
            "",
            description,
        )
        assert dataset_from_json(dataset_to_json(dataset)) == dataset


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('title = "a"\ntitel = "b"', 2, "titel: unknown key"),
        ('\n\ntitle = ""', 3, "title"),
        ('title = "电话 13800138000"', 1, "title"),
        (f'title = "{"长" * 129}"', 1, "title"),
        ('grade = "secret"', 1, "grade"),
        ("update_days = 0", 1, "update_days"),
        ("update_days = 1.5", 1, "update_days"),
        ('purposes = ["a", "a"]', 1, "purposes[1]"),
        ('item = "11010119900307777X"', 1, "item"),
        ('[definition]\nid = "a"', 1, "definition"),
        ('[columns.status]\ncode_table = "GB/T 2261.2"', 2, "columns.status.code_table"),
        ('[columns."a b"]\ntitle = "x"', 1, "columns.a b"),
        ("[columns.status]\nauthoritative = 1", 2, "columns.status.authoritative"),
        ('[mapping.status]\nvalues = { a = "1" }', 1, "mapping.status"),
        ("title = ", 1, "not TOML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert f"line {line}:" in caught.value.message
    assert key in caught.value.message
    assert caught.value.message.startswith("marriage.toml")
    assert str(tmp_path) not in caught.value.message + caught.value.hint


def test_characters_that_nobody_sees_are_refused(tmp_path: Path) -> None:
    for hidden in ("\u202e", "\u200b"):
        with pytest.raises(InputError) as caught:
            read(tmp_path, f'title = "a{hidden}b"')
        assert caught.value.code == "unreadable-character"
        with pytest.raises(DecodeError):
            Description.from_json({"title": f"a{hidden}b"})


def test_a_description_is_bounded_and_its_file_has_to_be_there(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(MAX_COLUMNS + 1)]
    with pytest.raises(DecodeError):
        Description.from_json({"authoritative": names})
    with pytest.raises(InputError) as caught:
        read(tmp_path, "authoritative = [" + ",".join(f'"{name}"' for name in names) + "]")
    assert f"more than {MAX_COLUMNS} columns" in caught.value.message
    with pytest.raises(InputError) as caught:
        read_description(tmp_path / "nowhere.toml")
    assert caught.value.code == "no-description"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["title", "columns", "mapping", "definition", "x"]), inner, max_size=3)
), max_leaves=9))  # fmt: skip
def test_any_other_json_is_refused_with_an_error_of_ours(plain: object) -> None:
    try:
        found = Description.from_json(plain)  # type: ignore[arg-type]  # that is the test
    except DecodeError:
        return
    assert Description.from_json(found.to_json()) == found


def test_a_definition_of_this_program_is_cited_by_its_name(tmp_path: Path) -> None:
    said = read(tmp_path, '[definition]\nid = "resident-population"\nversion = "2020"\n')
    assert said.definition == DEFINITIONS["resident-population@2020"]
    for more, code in (("2030", "unknown-definition"), ('2020"\ntext = "别的', "other-definition")):
        with pytest.raises(InputError) as caught:
            read(tmp_path, f'[definition]\nid = "resident-population"\nversion = "{more}"\n')
        assert caught.value.code == code
