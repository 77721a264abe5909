"""The notebook-style examples, run as scripts against a town of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["train_by_district.py", "own_recipe.py"])
def test_an_example_is_a_notebook_in_cells(name: str) -> None:
    cells = (ROOT / "examples" / name).read_text("utf-8").split("\n# %%")
    assert len(cells) > 5
    assert all(cell.startswith((" [markdown]\n", " ")) for cell in cells[1:])


@pytest.mark.long  # a whole town
def test_a_model_is_trained_by_district_as_the_example_does_it() -> None:
    said = run("train_by_district.py")
    assert "SUCCEEDED" in said
    assert "REFUSED exact-training" in said
    assert "疑似" in said


@pytest.mark.long  # a whole town
def test_a_recipe_of_one_s_own_is_installed_allowed_and_used_by_its_digest() -> None:
    said = run("own_recipe.py")
    assert "SUCCEEDED" in said
    assert "REFUSED recipe-not-allowed" in said
