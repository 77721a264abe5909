"""The members' catalogues as an analyst sees them: found, owned, contested; none that its node did not sign.

tests/transcripts/catalogue-bureau.txt is what the analyst types and sees.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from collaboration import BUREAU, HEALTH, INSURANCE, POLICE, STATISTICS, signer
from hypothesis import given
from hypothesis import strategies as st
from loopback import LiveBureau

from coordinator.client import cli
from coordinator.client.catalogue import Catalogues
from coordinator.client.view import Catalogue
from minshu import Bureau
from protocols.encoding import canonical_json
from protocols.envelope import decode_envelope
from protocols.errors import DecodeError, InputError, SignatureInvalid
from protocols.ids import Organisation

TRANSCRIPT = Path(__file__).parents[1] / "transcripts" / "catalogue-bureau.txt"

MARITAL = {"title": "婚姻状况", "type": "text", "code_table": "gbt2261.2@2003", "authoritative": True}
COUNTS = {"key": "id", "rows": 92100, "distinct_keys": 92000, "snapshot": "2026-12-01T00:00:00Z"}
POLICE_SAYS: dict[str, Any] = {
    "datasets": [
        {
            "name": "residents",
            "title": "户籍人口",
            "item": "4401-001",
            "grade": "important",
            "purposes": ["人口管理"],
            "update_days": 1,
            "definition": {"id": "resident-180", "version": "2024", "text": "居住半年以上"},
            "columns": [
                {"name": "id", "type": "text", "title": "公民身份号码", "authoritative": True},
                {"name": "sex", "type": "text", "title": "性别", "code_table": "gbt2261.1@2003"},
                {"name": "marital", **MARITAL},
                {"name": "income", "type": "integer", "title": "收入", "unit": "元", "organisation": "人社"},
            ],
            "quality": {"complete": {"id": "99.9"}, "age_days": 2},
            **COUNTS,
        },
        {"name": "village", "title": "ＣＩＴＹ Village", "columns": [], **COUNTS},
    ],
    "announced": [
        {
            "name": "permits",
            "title": "居住证",
            "columns": [{"name": "permit_no", "type": "text", "title": "居住证编号", "item": "4401-003-01"}],
        }
    ],
}
HEALTH_SAYS: dict[str, Any] = {
    "datasets": [
        {
            "name": "patients",
            "title": "就诊人员",
            "organisation": "health.gz.example",
            "grade": "general-4",
            "purposes": ["公共卫生", "人口管理"],
            "columns": [
                {"name": "marital_state", **MARITAL},
                {"name": "sex", "type": "text", "title": "性别", "organisation": "police"},
            ],
            **COUNTS,
        }
    ],
}
INSURANCE_SAYS: dict[str, Any] = {
    "datasets": [
        {
            "name": "insured",
            "title": "参保人员",
            "organisation": "人社",
            "columns": [{"name": "income", "type": "integer", "title": "收入", "authoritative": True}],
            **COUNTS,
        }
    ],
}
SAYS = {POLICE: POLICE_SAYS, HEALTH: HEALTH_SAYS, INSURANCE: INSURANCE_SAYS}
TITLES = {
    Organisation("police.gz.example"): "Police",
    Organisation("health.gz.example"): "Health",
    Organisation("human-resources.gz.example"): "人社",
    BUREAU: "Bureau",
}


def document(node: str, **said: Any) -> dict[str, Any]:
    issued = "2026-12-01T00:00:00Z"
    return {"schema": "minshu-catalogue/2", "node": node, "issued": issued, "announced": [], **said}


def signed(live: LiveBureau, node: str, by: str | None = None) -> bytes:
    said = document(node, **SAYS[node])
    del said["node"]
    return live.world.catalogue(node, by=by, **said)


def decoded(node: str, **said: Any) -> Catalogue:
    return Catalogue.decode(canonical_json(document(node, **said)))


@pytest.fixture
def city() -> Catalogues:
    return Catalogues(tuple(decoded(node, **SAYS[node]) for node in sorted(SAYS)), TITLES)


def names(found: Any) -> list[str]:
    return [each.dataset.name for each in found]


# -- finding -----------------------------------------------------------------------------------------------


def test_nothing_asked_finds_everything_by_node_and_name(city: Catalogues) -> None:
    assert names(city.search()) == ["patients", "insured", "permits", "residents", "village"]
    assert [one.node for one in city] == sorted(SAYS)
    assert len(city) == len(city[:]) == 3


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"text": "婚姻"}, ["patients", "residents"]),
        ({"text": "婚姻 户籍"}, ["residents"]),
        ({"text": "city village"}, ["village"]),
        ({"text": "ｖｉｌｌａｇｅ"}, ["village"]),
        ({"text": "居住半年"}, ["residents"]),
        ({"text": "4401-003"}, ["permits"]),
        ({"text": "没有的"}, []),
        ({"name": "人员"}, ["patients", "insured"]),
        ({"name": "4401-001"}, ["residents"]),
        ({"column": "性 别"}, ["patients", "residents"]),
        ({"code_table": "GB/T 2261.1"}, ["residents"]),
        ({"column": "sex", "code_table": "gbt2261.2"}, []),
        ({"owner": "人社"}, ["insured", "residents"]),
        ({"owner": "human-resources"}, ["insured", "residents"]),
        ({"owner": "police"}, ["patients", "permits", "residents", "village"]),
        ({"purpose": "人口"}, ["patients", "residents"]),
        ({"grade": "important"}, ["residents"]),
        ({"grade": "一般"}, ["patients"]),
        ({"purpose": "人口", "grade": "重要"}, ["residents"]),
    ],
)
def test_a_search_finds_what_fits_all_that_is_asked(
    city: Catalogues, asked: dict[str, str], found: list[str]
) -> None:
    assert names(city.search(**asked)) == found


def test_a_search_says_in_which_columns(city: Catalogues) -> None:
    (residents,) = city.search(name="户籍", column="性别")
    assert [column.name for column in residents.columns] == ["sex"]
    (residents,) = city.search("户籍")
    assert residents.columns == ()


def test_a_grade_that_there_is_not_is_no_empty_answer(city: Catalogues) -> None:
    with pytest.raises(InputError) as caught:
        city.search(grade="secret")
    assert caught.value.code == "unknown-grade"


def test_one_dataset_is_shown_and_others_are_named_when_it_is_not_there(city: Catalogues) -> None:
    assert city.dataset(POLICE, "residents").dataset.title == "户籍人口"
    permits = city.dataset(POLICE, "permits").dataset
    assert (permits.rows, permits.size) == (None, "announced, not registered")
    for node, name, code, closest in [
        (POLICE, "resident", "unknown-dataset", "residents"),
        ("police.gz.example", "residents", "unknown-node", POLICE),
    ]:
        with pytest.raises(InputError) as caught:
            city.dataset(node, name)
        assert caught.value.code == code
        assert closest in caught.value.message


# -- one field, one source ---------------------------------------------------------------------------------


def test_two_organisations_that_claim_a_field_are_in_conflict(city: Catalogues) -> None:
    (conflict,) = city.conflicts()
    assert conflict.field == "婚姻状况"
    assert conflict.organisations == ("health.gz.example", "police.gz.example")
    assert {claim.column for claim in conflict.claims} == {"marital", "marital_state"}
    for each in city.search("婚姻"):
        assert each.contested == (conflict,)
    assert city.search("参保")[0].contested == ()


def test_nobody_contests_a_field_with_itself_or_by_referring_to_its_source(city: Catalogues) -> None:
    # The insurers' own claim, and the police's reference to them, name one organisation.
    claims = city.owner("收入")
    assert [(claim.authoritative, claim.organisation, claim.node) for claim in claims] == [
        (True, "human-resources.gz.example", INSURANCE),
        (False, "human-resources.gz.example", POLICE),
    ]
    twice = Catalogues((decoded(POLICE, datasets=[*POLICE_SAYS["datasets"], *_again()]),), TITLES)
    assert twice.conflicts() == ()


def _again() -> list[dict[str, Any]]:
    return [{**POLICE_SAYS["datasets"][0], "name": "residents_2"}]


def test_a_field_is_owned_by_title_or_name_whatever_its_width(city: Catalogues) -> None:
    assert [claim.node for claim in city.owner("公民身份号码")] == [POLICE]
    assert [claim.node for claim in city.owner("ＭＡＲＩＴＡＬ")] == [POLICE]
    assert city.owner("公民身份号码")[0].definition == "resident-180@2024"
    assert city.owner("没有的") == city.owner("") == ()


def test_what_a_node_says_of_another_organisation_is_its_word_and_no_claim() -> None:
    column = {"name": "birth", "type": "text", "title": "出生日期", "authoritative": True}
    own = decoded(POLICE, datasets=[{"name": "a", "title": "a", "columns": [column], **COUNTS}])
    said = {"name": "b", "title": "b", "organisation": "Police", "columns": [column], **COUNTS}
    other = decoded(HEALTH, datasets=[said])
    found = Catalogues((other, own), TITLES)
    assert [(c.node, c.authoritative, c.hearsay) for c in found.owner("出生日期")] == [
        (POLICE, True, False),
        (HEALTH, False, True),
    ]
    column["organisation"] = "Insurance"  # nor does it make a conflict
    other = decoded(HEALTH, datasets=[{**said, "columns": [column]}])
    assert Catalogues((other, own), TITLES).conflicts() == ()
    assert not Catalogues((other, own), TITLES).search(name="b")[0].own


def test_contested_fields_are_worked_out_once_for_all_datasets() -> None:
    columns = [{"name": f"c{n}", "type": "text", "authoritative": True} for n in range(400)]
    many = [{"name": f"d{n}", "title": "d", "columns": columns[:1], **COUNTS} for n in range(300)]
    big = {"name": "big", "title": "big", "columns": columns, **COUNTS}
    found = Catalogues(tuple(decoded(node, datasets=[big, *many]) for node in (HEALTH, POLICE)), TITLES)
    assert len(found.search("d299")[0].contested) == 1
    assert found._contested is found._contested
    assert len(found.search(name="big")[0].contested) == 400


# -- reading -----------------------------------------------------------------------------------------------


def test_a_catalogue_of_the_first_version_is_read(city: Catalogues) -> None:
    first = {
        "schema": "minshu-catalogue/1",
        "node": POLICE,
        "issued": "2026-12-01T00:00:00Z",
        "datasets": [
            {"name": "people", "title": "人口", "columns": [{"name": "id", "type": "text"}], **COUNTS}
        ],
    }
    found = Catalogue.decode(canonical_json(first))
    assert (found.datasets[0].rows, found.datasets[0].columns[0].words()) == (92100, "id text")
    assert found.content == first


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "minshu-catalogue/3"},
        {"node": 7},
        {"datasets": {}},
        {"datasets": [{"name": "a"}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "title": "a\u202eb"}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "rows": -1}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "purposes": [1]}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "update_days": "7"}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "definition": {"id": "a"}}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "columns": [{"name": "a", "type": "text", "unit": 1}]}]},
        {"datasets": [{**POLICE_SAYS["datasets"][0], "columns": ["a"]}]},
        {"datasets": [7]},
        {"datasets": [{**POLICE_SAYS["datasets"][1], "lineage": ["x"]}]},
        {"datasets": [], "extra": {}},
        {"datasets": [{**POLICE_SAYS["datasets"][1], "grade": "weird"}]},
        {"datasets": [{**POLICE_SAYS["datasets"][1], "columns": [{"name": "a b", "type": "text"}]}]},
        {"datasets": [{**POLICE_SAYS["datasets"][1], "title": "x" * 129}]},
        {"datasets": [{**POLICE_SAYS["datasets"][1], "quality": {"note": {"a": {"b": {"c": {"d": 1}}}}}}]},
        {"datasets": [], "issued": "yesterday"},
        {"datasets": POLICE_SAYS["datasets"] * 2},
        {"announced": [{"name": "residents", "title": "x", "columns": []}], **POLICE_SAYS, "x": 0},
    ],
)
def test_a_field_that_is_not_of_its_form_is_refused(wrong: dict[str, Any]) -> None:
    said = {**document(POLICE, **POLICE_SAYS), **wrong}
    if "x" in wrong:
        said["announced"] = [{"name": "residents", "title": "x", "columns": []}]
    with pytest.raises(DecodeError):
        Catalogue.decode(canonical_json(said))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"x - at `$\x1b[2J": 1}, "it is"),
        ({"x - at `$.zhang_san": 1}, "it is"),
        ({"x - at `$[110105194912310021]": 1}, "it is"),
        (
            {"datasets": [{**POLICE_SAYS["datasets"][0], "columns": [{"name": 7}]}]},
            "`$.datasets[0].columns[0].name` is",
        ),
        ({"datasets": [{"x - at `$\x1b": 1}]}, "`$.datasets[0]` is"),
    ],
)
def test_an_error_says_where_in_no_word_of_the_catalogue(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Catalogue.decode(canonical_json({**document(POLICE, **POLICE_SAYS), **wrong}))
    assert caught.value.message == f"a catalogue cannot be read: {said} not of its form"


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "title", "columns", "definition", "purposes", "quality", "rows", "type"]), inner, max_size=4)
), max_leaves=9))  # fmt: skip
def test_any_other_dataset_is_refused_with_an_error_of_ours(plain: Any) -> None:
    for place in ("datasets", "announced"):
        try:
            decoded(POLICE, **{"datasets": [], place: [plain]})
        except DecodeError:
            continue
        assert isinstance(plain, dict)


# -- over the wire -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory, loop: Any) -> Any:
    """A coordinator that hands out the catalogues of three nodes."""
    live = LiveBureau(tmp_path_factory.mktemp("offered"), loop)
    live.start()
    live.coordinator.registry.catalogues = lambda: [  # type: ignore[method-assign]  # what its nodes sent
        signed(live, node) for node in SAYS
    ]
    yield live
    live.close()


def test_the_sdk_searches_what_three_nodes_signed(offered: Any) -> None:
    with Bureau.connect(offered.analyst.path) as bureau:
        found = bureau.catalogue()
        assert names(found.search("婚姻")) == ["patients", "residents"]
        assert [conflict.field for conflict in found.conflicts()] == ["婚姻状况"]


def test_a_forged_or_repeated_catalogue_is_refused(offered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = signed(offered, POLICE)
    changed = own.replace(own[40:44], own[44:48], 1)
    by_another = signed(offered, POLICE, by=HEALTH)
    stranger = signed(offered, POLICE, by="mallory")
    with Bureau.connect(offered.analyst.path) as bureau:
        for handed_out, expected in [
            ([stranger], SignatureInvalid),
            ([by_another], SignatureInvalid),
            ([changed], (SignatureInvalid, DecodeError)),
            ([own, own], DecodeError),
        ]:
            monkeypatch.setattr(offered.coordinator.registry, "catalogues", lambda these=handed_out: these)
            with pytest.raises(expected):
                bureau.catalogue()


def test_a_catalogue_that_cannot_be_read_hides_no_other(
    offered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = offered.world.catalogue(HEALTH, schema="minshu-catalogue/2", evil={"x": 1})
    with Bureau.connect(offered.analyst.path) as bureau:
        handed_out = [strange, signed(offered, POLICE)]
        monkeypatch.setattr(offered.coordinator.registry, "catalogues", lambda: handed_out)
        found = bureau.catalogue()
        assert [one.node for one in found] == [POLICE]
        assert found.unreadable == ((HEALTH, "bad-catalogue"),)
        assert [each.dataset.name for each in found.search("婚姻")] == ["residents"]


def test_a_catalogue_with_several_signatures_is_left_out_and_hides_no_other(
    offered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = offered.world.catalogue(HEALTH)
    by_two = decode_envelope(one).with_signature(signer(INSURANCE)).encode()
    twice = decode_envelope(one).with_signature(signer(HEALTH)).encode()
    handed_out = [by_two, twice, signed(offered, HEALTH), signed(offered, POLICE)]
    monkeypatch.setattr(offered.coordinator.registry, "catalogues", lambda: handed_out)
    with Bureau.connect(offered.analyst.path) as bureau:
        found = bureau.catalogue()
    assert [one.node for one in found] == sorted([HEALTH, POLICE])
    assert found.unreadable == tuple((node, "several-signers") for node in sorted([HEALTH, INSURANCE]))


def test_an_older_catalogue_than_was_seen_is_not_taken_for_the_newest(
    offered: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def handed_out(day: int) -> None:
        issued = f"2026-01-0{day}T00:00:00Z"
        these = [offered.world.catalogue(POLICE, issued=issued)]
        monkeypatch.setattr(offered.coordinator.registry, "catalogues", lambda: these)

    home = offered.analyst.path
    (home / "catalogues.json").unlink(missing_ok=True)
    with Bureau.connect(home) as bureau:
        handed_out(3)
        assert [one.issued.day for one in bureau.catalogue()] == [3]
        handed_out(2)
        assert bureau.catalogue().unreadable == ((POLICE, "older-catalogue"),)
    _, out = typed(capsys, "catalogue", "--home", str(home))
    assert "older-catalogue" in out
    handed_out(4)
    _, out = typed(capsys, "catalogue", "--home", str(home))
    assert f"{POLICE}  issued 2026-01-04T00:00:00Z" in out
    (home / "catalogues.json").unlink()


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main([*words])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_transcript_is_what_happens(
    offered: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINSHU_HOME", str(offered.analyst.path))
    written = TRANSCRIPT.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("$ "):
            code, out = typed(capsys, *shlex.split(line[2:])[1:])
            seen += line + "\n" + out + (f"[{code}]\n" if code else "")
    assert seen == written


def test_every_question_speaks_json(offered: Any, capsys: pytest.CaptureFixture[str]) -> None:
    home = ("--home", str(offered.analyst.path), "--json")
    _, out = typed(capsys, "catalogue", *home, "search", "婚姻", "--grade", "important")
    (found,) = json.loads(out)["found"]
    assert (found["node"], found["dataset"]["name"], found["columns"]) == (POLICE, "residents", ["marital"])
    assert found["contested"] == [
        {"field": "婚姻状况", "organisations": ["health.gz.example", "police.gz.example"]}
    ]
    _, out = typed(capsys, "catalogue", "show", POLICE, "permits", *home)
    assert json.loads(out)["dataset"]["rows"] is None
    _, out = typed(capsys, "catalogue", "owner", "婚姻状况", *home)
    assert json.loads(out)["contested"]
    _, out = typed(capsys, "catalogue", "conflicts", *home)
    assert [each["field"] for each in json.loads(out)["conflicts"]] == ["婚姻状况"]
    _, out = typed(capsys, "catalogue", *home)
    assert set(json.loads(out)["catalogues"]) == {POLICE, HEALTH, INSURANCE}
    assert STATISTICS not in out
