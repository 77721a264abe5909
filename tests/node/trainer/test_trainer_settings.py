"""The table `[trainer]` of node.toml."""

from dataclasses import asdict

import pytest

from node.config import Trainer, load_config
from node.trainer.process import Limits
from protocols.errors import InputError


def loaded(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text('name = "a/b"\n' + text)
    return load_config(path)


def test_what_a_worker_may_use_is_set_in_a_table_of_its_own(tmp_path):
    found = loaded(tmp_path, "[trainer]\nmemory_mb = 2048\nstep_s = 30\nthreads = 2\n").trainer
    assert found == Trainer(memory_mb=2048, step_s=30, threads=2)
    limits = Limits.of(found)
    assert (limits.memory_mb, limits.step_s, limits.threads, limits.begin_s) == (
        2048,
        30,
        2,
        Limits().begin_s,
    )


def test_defaults_are_those_of_a_worker(tmp_path):
    assert Limits.of(loaded(tmp_path, "").trainer) == Limits()
    assert loaded(tmp_path, "[trainer]\n").trainer == Trainer()


def test_no_limit_is_said_as_zero(tmp_path):
    found = loaded(tmp_path, "[trainer]\nmemory_mb = 0\ncpu_s = 0\nniceness = 0\n").trainer
    assert (found.memory_mb, found.cpu_s, found.niceness) == (0, 0, 0)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("unknown-setting", "[trainer]\ngpus = 1"),
        ("bad-config", "trainer = 5"),
        ("bad-config", "[trainer]\nthreads = 0"),
        ("bad-config", "[trainer]\nstep_s = 0"),
        ("bad-config", "[trainer]\ncpu_s = -1"),
        ("bad-config", "[trainer]\nmemory_mb = 1.5"),
        ("bad-config", "[trainer]\nstep_s = nan"),
        ("bad-config", "[trainer]\nthreads = true"),
        ("bad-config", "[[trainer]]\nthreads = 1"),
        ("bad-config", '[trainer]\nunfenced = "some"'),
        ("bad-config", "[trainer]\nunfenced = 1"),
        ("unknown-setting", 'home = "/"'),
    ],
)
def test_a_wrong_limit_is_an_error(tmp_path, code, text):
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, text)
    assert caught.value.code == code


def test_every_limit_can_be_set_but_how_long_a_start_takes():
    assert set(asdict(Limits())) - set(asdict(Trainer())) == {"begin_s"}
