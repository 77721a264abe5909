"""Train a model over three districts whose rows never meet. Cell by cell, or all at once:

.venv/bin/python examples/train_by_district.py
"""

# %% [markdown]
# Health bureaus of three districts each know their own residents: age, kind of street, visits to a doctor,
# and who is vaccinated this season. The bureau wants a model of it. No row leaves a district: each round
# every node works out one vector of sums, adds its share of noise and a mask, and a fourth department adds
# them up.

# %% A town to try it on: three districts, police and others, each a node with a policy of its own
import atexit
import csv
import tempfile
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

from coordinator.client.view import View
from demo.collaboration import CommandFailed, command
from demo.scenarios.vaccination import DISTRICTS
from demo.town import open_town

ending = ExitStack()
atexit.register(ending.close)  # whatever happens in between
town = ending.enter_context(open_town(6, profile="ci"))
mine = Path(ending.enter_context(tempfile.TemporaryDirectory()))
print(f"{len(town.departments)} departments run; the analyst's home is {town.analyst.name}/")

# %% The job: what is asked is a text, and public. Codes and edges are not taken from anybody's data
text = files("demo.scenarios.scenario_6").joinpath("districts.toml").read_text("utf-8")
question = mine / "districts.toml"
question.write_text(text, encoding="utf-8")
print(text.partition("[params]")[2].partition("[roles]")[0])

# %% What would every node answer, and what would it cost? Nothing runs, no data is read
bureau = town.connect()
print("\n".join(bureau.explain(question).lines("en")[:24]))

# %% Ask. At each district an officer looks at the question and approves the whole run, all rounds of it
job = bureau.submit(question)
town.approve(job, *DISTRICTS)


# %% Watch it. Figures are noisy: they are of people who were held out, and are part of what ε pays for
def progress(view: View) -> None:
    """Print figures as nodes show them."""
    for run in view.runs:
        if run.figures:
            print(view.state, dict(run.figures))


done = job.wait(progress=progress)
print(done.state, done.code)

# %% The model, with its card: whose data, how many rounds, what ε, how good it is, what it is not for
release = job.release()
release.save(mine / "model")
print(command("minshu", "model", "show", mine / "model", "--home", town.analyst, "--lang", "en"))

# %% Curves of the run, to draw
model = release.model()
for name, points in model.curves.items():
    print(name, [round(point, 3) for point in points[:8]])

# %% Score rows that you are allowed to have. What comes out is marked: 疑似, 需人工核实
somebody = {"age": 72, "sex": "2", "kind": "register", "street_type": "core", "visits": 4, "checkup": "yes",
            "scheme": "resident"}  # fmt: skip
somebody_else = {**somebody, "age": 24, "kind": "floating", "street_type": "village", "scheme": "none"}
with (mine / "rows.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, list(somebody))
    writer.writeheader()
    writer.writerows([somebody, somebody_else])
command("minshu", "model", "score", mine / "model", "--in", mine / "rows.csv", "--out", mine / "scores.csv",
        "--home", town.analyst)  # fmt: skip
print((mine / "scores.csv").read_text("utf-8-sig"))

# %% What a policy does not allow is refused before anything runs: the same without noise
exact = files("demo.scenarios.scenario_6").joinpath("exact.toml").read_text("utf-8")
(mine / "exact.toml").write_text(exact, encoding="utf-8")
refused = bureau.submit(mine / "exact.toml").wait(progress=False)
print(refused.state, refused.code, refused.sentence)

# %% Every row of the ledger: what the run cost each district, and what is left
for district in DISTRICTS:
    try:
        print(command("minshu-node", "budget", "--home", town.home(district)))
    except CommandFailed as failed:
        print(failed.reason)

# %% The end: all processes stop, and the folder goes
ending.close()
