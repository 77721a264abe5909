"""Bring a way to train of your own: an installed package that a job names by its digest, never code in a job.

.venv/bin/python examples/own_recipe.py
"""

# %% [markdown]
# `examples/own-recipe` is a package with two recipes. Every department that takes part installs it, looks at
# it, and writes its digest into the policy; a job then names the same digest. What runs at a node is the text
# that the node's own officers agreed to, whoever asks.

# %% An environment to install it into, so that nothing stays in yours
import atexit
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

from demo.collaboration import Department, command, command_json
from demo.scenarios.vaccination import DISTRICTS
from demo.town import open_town

HERE = Path(__file__).resolve().parent
INSTALLED = "MINSHU_EXAMPLE_ENVIRONMENT"

if INSTALLED not in os.environ:
    with tempfile.TemporaryDirectory(prefix="minshu-own-recipe-") as name:
        folder = Path(name) / "environment"
        venv.create(folder, with_pip=False)
        python = folder / "bin" / "python"
        # It sees all that is installed here, and one package more.
        places = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        beside = f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
        (Path(places["purelib"]) / "beside.pth").write_text(beside, encoding="utf-8")
        package = shutil.copytree(HERE / "own-recipe", Path(name) / "own-recipe")  # a build leaves files
        subprocess.run(
            [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python,
             "install", "--no-deps", "--no-build-isolation", "--no-index", package],
            check=True,
        )  # fmt: skip
        again = subprocess.run([python, __file__], check=False, env=os.environ | {INSTALLED: str(folder)})
    raise SystemExit(again.returncode)

# %% What is installed, as a node sees it. The digest covers every file of the package
ending = ExitStack()
atexit.register(ending.close)  # whatever happens in between
mine = Path(ending.enter_context(tempfile.TemporaryDirectory()))
recipes = command_json("minshu-node", "recipe", "list")["recipes"]
(bayes,) = (each for each in recipes if each["name"] == "bayes")
pin = {name: bayes[name] for name in ("name", "distribution", "version", "digest")}
print(json.dumps(pin, indent=1))


# %% Officers of each department allow this digest, and sign; one byte more in the package is another digest
def allowing(department: Department, text: str) -> str:  # noqa: ARG001  # all write the same
    """Return a policy that allows the recipe where it allows Minshu's own."""
    return text.replace('recipes = ["logistic", "boost"]', f'recipes = ["logistic", "{pin["digest"]}"]')


town = ending.enter_context(open_town(6, profile="ci", policies=allowing))

# %% A job names the pin. Naive Bayes counts once, so there is one round, and all of ε is for it
text = files("demo.scenarios.scenario_6").joinpath("districts.toml").read_text("utf-8")
named = ", ".join(f'{name} = "{value}"' for name, value in pin.items())
for before, after in (
    ('recipe = "logistic"', f"recipe = {{ {named} }}"),
    ('settings = { clip = "2", step = "4", momentum = "0.5" }', 'settings = { smoothing = "1" }'),
    ("rounds = 30", "rounds = 1"),
    ("every = 10, ", ""),
):
    assert before in text
    text = text.replace(before, after)
question = mine / "bayes.toml"
question.write_text(text, encoding="utf-8")

# %% Ask, approve, receive
bureau = town.connect()
job = bureau.submit(question)
town.approve(job, *DISTRICTS)
done = job.wait(progress=False)
print(done.state, done.code, done.sentence)
release = job.release()
release.save(mine / "model")
print(command("minshu", "model", "show", mine / "model", "--home", town.analyst, "--lang", "en"))

# %% Another digest is refused, before anything of it is loaded
other = text.replace(pin["digest"], "sha256:" + "0" * 64)
(mine / "other.toml").write_text(other, encoding="utf-8")
refused = bureau.submit(mine / "other.toml").wait(progress=False)
print(refused.state, refused.code, refused.sentence)

# %% The end
ending.close()
