"""The measurement of joined statistics asks real questions, and a wrong answer is no figure."""

import secrets
from dataclasses import replace

import numpy as np
import pytest

from bench import joined
from bench.rig.nodes import running
from bench.rows import Results
from demo.collaboration import DEPARTMENTS
from node.releases import decode_content
from protocols.channel import suites
from protocols.ids import Role
from protocols.jobs import job_type
from protocols.party import run
from protocols.psi import owner

ROWS = 20_000
PRIVATE = suites.new_private_key(joined.SUITE, secrets.token_bytes)


def played(name, folder, monkeypatch) -> joined.Ran:
    """Play a question in memory, with the parties that the nodes have."""
    monkeypatch.setattr(owner, "Tagging", owner.Tagging)  # put back afterwards
    release = folder / "release.sealed"
    public = suites.public_key(joined.SUITE, PRIVATE).hex()
    params = {"question": name, "rows": ROWS, "release": str(release), "public": public}
    run({role: joined.party(role, params) for role in joined.QUESTIONS[name].seats})
    plain = suites.open_sealed(joined.SUITE, PRIVATE, joined._INFO, release.read_bytes())
    table, about = decode_content(plain)
    return joined.Ran(1.0, 1.0, table, about["facts"])


@pytest.mark.parametrize("name", joined.QUESTIONS)
def test_a_question_is_a_job_of_its_type_and_its_answer_is_the_plain_one(name, tmp_path, monkeypatch):
    spec = joined.spec_of(joined.QUESTIONS[name], ROWS)
    job_type(spec.job_type).check(spec)
    ran = played(name, tmp_path, monkeypatch)
    joined.check(name, ran, ROWS)
    if name == "moments":
        assert joined.coefficient_error(ran, ROWS) < joined.TOLERANCE
    column = ran.table.column("value").to_pylist()
    at = next(place for place, value in enumerate(column) if value)
    changed = [1.1 * value + 10 if place == at and value else value for place, value in enumerate(column)]
    wrong = replace(
        ran, table=ran.table.set_column(ran.table.column_names.index("value"), "value", [changed])
    )
    with pytest.raises(RuntimeError, match=r"wrong|off by"):
        joined.check(name, wrong, ROWS)


def test_a_tenth_of_each_list_is_on_no_other():
    lists = [set(joined.persons_of(Role(f"source-{n}"), ROWS).tolist()) for n in (1, 2, 3)]
    assert {len(each) for each in lists} == {joined.keys_of_a_list(ROWS)}
    assert len(set.intersection(*lists)) == ROWS
    assert len(lists[0] & lists[1]) == ROWS


def test_every_key_has_one_tag_and_lists_that_stand_in_for_lists_have_different_ones():
    keys = np.array([b"RIC:%018d" % n for n in range(5000)] + [b"minshu/joined-list/1/source-1"])
    other = np.array([b"minshu/joined-list/1/source-2", b"RIC:%018d" % 77])
    tags = joined.tags_of(keys).tolist()
    assert len(set(tags)) == 5001
    assert [tag in tags for tag in joined.tags_of(other).tolist()] == [False, True]


@pytest.mark.long  # seven processes and mpyc's three; `python -m bench joined` does the same at size
def test_real_nodes_answer_every_question_and_mpyc_stands_beside(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.rows.OUT", tmp_path / "out")
    with running(tmp_path / "town", DEPARTMENTS) as (nodes, _):
        results = Results("joined")
        joined.compare(results, joined.Rig(nodes, tmp_path, ROWS), 1)
    found = {row.what: row for row in results.rows}
    assert set(found) >= {"moments 2e4 x 6", "open table", "hidden table", "coefficient error"}
    assert found["moments 2e4 x 6"].peer == joined.MPYC
    assert found["coefficient error"].value < joined.TOLERANCE
    assert found["open table rss"].value > 50
