"""A recipe of one's own: a package that is installed from a wheel, pinned by digest and trained with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the extra `train` is not installed")

from safetensors.numpy import load
from trainer_case import Town, settings_of

from node.cli import main
from node.trainer import recipes
from protocols.errors import InputError
from protocols.training.schema import Binned, Coded, Rows, Schema
from protocols.training.work import Pin, RecipeFailed

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "own-recipe"
NAME = "minshu-own-recipe"

FEATURES = [
    {"slot": "age", "edges": ["20.0", "40.0"], "missing": False},
    {"slot": "street", "codes": ["S1", "S2"]},
]
SCHEMA = Schema((Binned("age", (20.0, 40.0)), Coded("street", ("S1", "S2"))))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example, built and installed by pip, offline."""
    source = tmp_path_factory.mktemp("source") / "own-recipe"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    offline = ["--no-index", "--no-build-isolation", "--no-deps"]
    ran = subprocess.run([*pip, *offline, "--target", target, source], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return target


@pytest.fixture
def folder(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    return installed


def tables(nodes: int = 3) -> list[Mapping[str, np.ndarray]]:
    draw = np.random.default_rng(4)
    found = []
    for count in (900, 80, 20)[:nodes]:
        age, street = draw.integers(0, 3, count), draw.integers(0, 3, count)
        label = draw.random(count) < 1 / (1 + np.exp(1.5 - age - (street == 0)))
        columns = {"f:age": age.astype("<u2"), "f:street": street.astype("<u2"), "label": label.astype("u1")}
        found.append({**columns, "held": (draw.random(count) < 0.2).astype("u1")})
    return found


def joined(found) -> tuple[Rows, np.ndarray]:
    table = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    codes = np.column_stack([table["f:age"], table["f:street"]])
    return Rows(codes, np.zeros((len(codes), 0), np.uint16), table["label"]), table["held"] == 1


@pytest.mark.alone
def test_naive_bayes_counts_all_rows_together(folder):
    pin = recipes.pin("bayes", NAME)
    settings = settings_of(
        pin, FEATURES, rounds=1, settings={"smoothing": "1"}, evaluate={"every": 1, "bins": 32, "test": False}
    )
    with Town(folder, tables(), recipe=pin, settings=settings) as town:
        done = town.play()
    rows, held = joined(tables())
    trained = rows.take(~held)
    cells = load(done.model)["cells"]
    assert [cells[label, 0] for label in (0, 1)] == np.bincount(trained.labels).tolist()
    assert cells[:, 1:].sum() == 2 * len(trained)
    assert cells[1, 1] == ((trained.codes[:, 0] == 0) & (trained.labels == 1)).sum()
    assert done.facts["auc"] > 0.6
    counted = next(update for update in town.updates if update.turn == "train")
    assert (counted.largest, counted.l1, counted.l2_squared) == (1, 3, 3)


@pytest.mark.alone
def test_flower_apps_of_one_s_own_train_as_they_would_with_all_rows_in_one_place(folder):
    pin = recipes.pin("adam", NAME)
    settings = settings_of(pin, FEATURES, rounds=6, settings={"clip": "1"})
    weights = []
    one = {name: np.concatenate([each[name] for each in tables()]) for name in tables()[0]}
    for found in (tables(), [one]):
        with Town(folder, found, recipe=pin, settings=settings) as town:
            weights.append(load(town.play().model)["w"])
    assert np.array_equal(weights[0], weights[1])
    assert np.abs(weights[0]).max() > 0.1


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("bayes", {"settings": {"clip": "2"}, "rounds": 1}, "bad-settings"),
        ("bayes", {"rounds": 2}, "bad-settings"),
        ("adam", {"settings": {"clip": "many"}}, "bad-settings"),
        ("other", {}, "recipe-missing"),
    ],
)
def test_a_job_that_a_recipe_cannot_do_ends_with_a_code(folder, name, changes, code):
    pin = recipes.pin(name, NAME)
    with (
        Town(folder, tables(1), recipe=pin, settings=settings_of(pin, FEATURES, **changes)) as town,
        pytest.raises(RecipeFailed) as caught,
    ):
        town.begin(2)
    assert caught.value.code == code


@pytest.mark.alone
def test_the_command_shows_what_a_policy_writes(folder, capsys):
    assert main(["recipe", "list", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["recipes"]}
    pin = recipes.pin("bayes", NAME)
    assert found["logistic"] == {"name": "logistic", "policy": "logistic"}
    assert found["bayes"]["policy"] == found["adam"]["policy"] == pin.digest
    assert (found["bayes"]["distribution"], found["bayes"]["version"]) == (NAME, "1.0.0")
    assert main(["recipe", "list"]) == 0
    assert f"bayes  {NAME} 1.0.0  {pin.digest}" in capsys.readouterr().out.splitlines()


@pytest.mark.alone
def test_the_installer_s_traces_do_not_change_the_digest(folder, tmp_path, monkeypatch):
    before = recipes.pin("bayes", NAME).digest
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    (info,) = other.glob("*.dist-info")
    (info / "INSTALLER").write_text("another")
    (other / "own_recipe" / "__pycache__").mkdir(exist_ok=True)
    (other / "own_recipe" / "__pycache__" / "bayes.cpython-311.pyc").write_bytes(b"anything")
    monkeypatch.setattr(sys, "path", [str(other), *(each for each in sys.path if each != str(folder))])
    assert recipes.pin("bayes", NAME).digest == before


# ---------------------------------------------------------------- what can be had without installing it


@pytest.fixture
def bayes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from own_recipe.bayes import Bayes

    yield Bayes(SCHEMA, 1.0, 2)
    for name in [each for each in sys.modules if each.split(".")[0] == "own_recipe"]:
        del sys.modules[name]


def test_a_unit_changes_the_counts_by_no_more_than_is_declared(bayes):
    rows, _ = joined(tables())
    vector = bayes.layout(bayes.start()).vector
    for at in range(0, 40, 2):
        change = bayes.contribute(bayes.start(), rows.take(slice(at, at + 2)))
        assert np.abs(change).sum() <= vector.l1
        assert (change**2).sum() <= vector.l2_squared
    twice = Rows(rows.codes[[0, 0]], rows.amounts[[0, 0]], rows.labels[[0, 0]])
    assert (bayes.contribute(bayes.start(), twice) ** 2).sum() == vector.l2_squared


def test_naive_bayes_says_what_its_definition_says(bayes):
    rows, _ = joined(tables())
    state = bayes.advance(bayes.start(), bayes.contribute(bayes.start(), rows).astype(float), len(rows))
    assert bayes.layout(state) is None
    odds = bayes.scores(state, rows)
    for at in range(5):
        chance = []
        for label in (0, 1):
            of = rows.labels == label
            share = of.sum() + 1.0
            for column, width in enumerate(SCHEMA.widths):
                same = (rows.codes[of, column] == rows.codes[at, column]).sum() + 1.0
                share *= same / (of.sum() + width)
            chance.append(share)
        assert odds[at] == pytest.approx(np.log(chance[1] / chance[0]), abs=1e-12)


def test_an_editable_install_is_listed_as_of_no_use(tmp_path, monkeypatch, capsys):
    info = tmp_path / "loose-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loose\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[minshu.recipes]\nloose = loose:RECIPE\n")
    (info / "RECORD").write_text("loose.pth,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["recipe", "list", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["recipes"]}
    assert found["loose"] == {"name": "loose", "distribution": "loose", "error": "recipe-not-pinned"}
    with pytest.raises(InputError):
        recipes.check(Pin("loose", "loose", "1.0", "sha256:" + "0" * 64))
