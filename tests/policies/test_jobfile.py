from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from policies.jobfile import DEFAULT_VALID_HOURS, load_job
from protocols.encoding import sha256_digest
from protocols.errors import InputError
from protocols.ids import Digest, KeyId
from protocols.jobs import job_type
from protocols.wire import MAX_JOB_BYTES, JobSpec

JOB = (Path(__file__).parent / "job.toml").read_text("utf-8")


def load(world: Any, text: str, **changes: Any) -> JobSpec:
    arguments = {
        "requester": KeyId(sha256_digest(b"analyst")),
        "roster_digest": Digest(sha256_digest(b"roster")),
        "now": world.now + timedelta(microseconds=7),
        "nonce": "0" * 32,
        **changes,
    }
    return load_job(text, **arguments)


def test_a_job_file_becomes_the_spec_that_every_node_decodes(world: Any):
    spec = load(world, JOB)
    assert JobSpec.decode(spec.encode()) == spec
    job_type(spec.job_type).check(spec)
    assert spec.params == {"present_in": "at_least", "k": 2, "key_holder": "source-1"}
    assert [given.organisation for given in spec.inputs] == [
        "police.gz.example",
        "human-resources.gz.example",
        "health.gz.example",
    ]
    assert spec.created == world.now
    assert spec.expires == world.now + timedelta(hours=72)


def test_validity_is_hours_a_time_or_a_week(world: Any):
    assert load(world, JOB.replace("valid_hours = 72\n", "")).expires == world.now + timedelta(
        hours=DEFAULT_VALID_HOURS
    )
    exact = load(world, JOB.replace("valid_hours = 72", "expires = 2026-12-04T08:00:00+08:00"))
    assert exact.expires.isoformat() == "2026-12-04T00:00:00+00:00"


def test_asking_the_same_twice_makes_two_jobs_of_one_question(world: Any):
    first, second = load(world, JOB), load(world, JOB, nonce="1" * 32)
    assert first.job_id != second.job_id
    assert first.question("today") == second.question("today") != first.question("tomorrow")


def test_a_job_says_what_its_answer_is_for(world: Any):
    assert load(world, JOB).expected_use == "派出所逐户上门核实后补登居住证"
    line = 'expected_use = "派出所逐户上门核实后补登居住证"\n'
    with pytest.raises(InputError, match="expected_use") as caught:
        load(world, JOB.replace(line, ""))
    assert caught.value.code == "missing-key"
    assert 'for example expected_use = "' in caught.value.hint
    for empty in ('""', '"two\\nlines"', "3"):
        with pytest.raises(InputError, match="line 4: expected_use") as caught:
            load(world, JOB.replace(line, f"expected_use = {empty}\n"))
        assert caught.value.code == "job-invalid"


def test_a_file_of_the_format_before_is_refused_by_its_schema(world: Any):
    assert load(world, 'schema = "minshu-job/2"\n' + JOB) == load(world, JOB)
    with pytest.raises(InputError, match="expected minshu-job/2"):
        load(world, 'schema = "minshu-job/1"\n' + JOB)


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ("valid_hours = 72", "valid_days = 3", "unknown-key", 7),
        ("valid_hours = 72", "valid_hours = 0", "job-invalid", 7),
        ("valid_hours = 72", "valid_hours = 721", "job-invalid", 7),
        ("valid_hours = 72", "valid_hours = 1\nexpires = 2026-12-04T08:00:00Z", "bad-time", 8),
        ("valid_hours = 72", "expires = 2026-12-04T08:00:00", "job-invalid", 7),
        ('job_type = "crosscheck/1"', 'job_type = "crosscheck"', "job-invalid", 1),
        ('purpose = "P-2026-001"\n', "", "missing-key", 0),
        ("k = 2", "k = 2.0", "job-invalid", 11),
        ("k = 2", "k = 2026-12-04", "job-invalid", 11),
        ('matcher = "statistics', 'matcher = "police', "bad-roles", 16),
        ('role = "register"', 'role = "source-9"', "bad-inputs", 21),
        ('role = "source-2"', 'role = "source-1"', "bad-inputs", 31),
        ('organisation = "health', 'organisation = "police', "bad-inputs", 32),
        ('dataset = "population"', 'dataset = "../population"', "job-invalid", 22),
        ('columns = { key = "resident_id" }', 'columns = { key = "a b" }', "job-invalid", 23),
        ("[params]", "[params", "not-toml", 9),
        ('recipients = ["police.gz.example"]', "recipients = []", "empty-list", 6),
        ('["police.gz.example"]', '["police.gz.example", "police.gz.example"]', "listed-twice", 6),
    ],
)
def test_a_wrong_job_file_is_refused_at_its_line(world: Any, old: str, new: str, code: str, line: int):
    assert JOB.count(old) == 1
    with pytest.raises(InputError) as caught:
        load(world, JOB.replace(old, new))
    assert caught.value.code == code
    assert caught.value.message.startswith(f"line {line}: ") == bool(line)
    assert caught.value.hint


def test_params_may_nest_what_json_carries_exactly(world: Any):
    nested = 'k = 2\nbins = [1, [2, "x"]]\nof = { deep = [{ yes = true }] }'
    spec = load(world, JOB.replace("k = 2", nested))
    assert spec.params["bins"] == [1, [2, "x"]]
    assert spec.params["of"] == {"deep": [{"yes": True}]}


@pytest.mark.parametrize("value", ["[1,\n 2.5]", "{ a = [{ b =\t2.5 }] }", "2.5"])
def test_a_float_anywhere_in_the_params_is_refused_at_its_line(world: Any, value: str):
    text = JOB.replace("k = 2", f"k = 2\nnoise = {value}")
    with pytest.raises(InputError, match="a number with a point") as caught:
        load(world, text)
    line = int(caught.value.message.split(":")[0].removeprefix("line "))
    assert "2.5" in text.split("\n")[line - 1]
    assert "decimals as text" in caught.value.hint


def test_an_error_says_in_words_what_was_expected(world: Any):
    with pytest.raises(InputError, match="expected hours, from 1 to 720"):
        load(world, JOB.replace("valid_hours = 72", "valid_hours = 0"))


def test_a_job_that_expires_before_it_begins_is_refused(world: Any):
    with pytest.raises(InputError) as caught:
        load(world, JOB.replace("valid_hours = 72", "expires = 2026-12-01T00:00:00Z"))
    assert caught.value.code == "bad-time"


def test_a_job_file_of_10_mb_is_refused_before_it_is_parsed(world: Any):
    # Parsed, this would take minutes; it is not even TOML.
    with pytest.raises(InputError) as caught:
        load(world, "[" * (10 << 20))
    assert caught.value.code == "too-long"
    assert str(MAX_JOB_BYTES) in caught.value.message


def test_text_that_utf8_cannot_carry_is_refused(world: Any):
    with pytest.raises(InputError) as caught:
        load(world, JOB + "# \ud800\n")
    assert caught.value.code == "not-utf8"
