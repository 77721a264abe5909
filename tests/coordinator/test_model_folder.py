"""A model in the analyst's hands: whose it is, what it says, what is scored with it."""

import csv
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import score_joined_case as score_case
import train_joined_case as train_case
from collaboration import BUREAU, HEALTH, NOW, STATISTICS, SUITE, Clock, Collaboration, recipient, signer
from crosscheck_case import person
from model_case import content_of, files_in, spec_of, table_of

from coordinator.client import cli
from coordinator.client.home import CONFIG, AnalystConfig, AnalystHome, create
from coordinator.client.model import read_folder, score_params
from coordinator.client.release import Release, open_release
from coordinator.files import replace_file
from node.releases import encode_content, release_info
from policies.jobfile import suppose_job
from protocols.channel import suites
from protocols.dp.cost import Cost
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, RELEASE, decode_envelope, key_id, sign
from protocols.errors import DecodeError, InputError, MinshuError, SignatureInvalid
from protocols.jobs.job_type import SUSPECTED, Content, Table
from protocols.training.card import Plan
from protocols.training.model import ARRAYS, CARD, CURVES, Model, model_content, pack
from protocols.wire import InputSummary, JobSpec, ReleaseNote

STATEMENT = "模型参数 (model parameters)"


class Lab:
    """A home that has seen a roster, and models that nodes of it release."""

    def __init__(self, path: Path) -> None:
        self.world = Collaboration(Clock())
        self.roster = self.world.roster()
        self.home = AnalystHome(path / "home")
        create(self.home.path, name="li", organisation=BUREAU, suite=SUITE)
        config = AnalystConfig("li", BUREAU, SUITE, "coordinator.test:7070")
        replace_file(self.home.path / CONFIG, config.encode())
        replace_file(self.home.path / "roots.json", self.world.roots.encode())
        self.home.keep_roster(1, self.world.signed(self.roster))
        self.out = path / "out"

    def spec(self, recipe: Any = "logistic", **params: Any) -> JobSpec:
        use = params.pop("use", "")
        asked = spec_of(recipe, **params)
        asked = replace(asked, expected_use=use or asked.expected_use)
        return replace(asked, requester=key_id(signer("li").public_key), roster_digest=self.roster.digest)

    def keep(self, spec: JobSpec) -> None:
        replace_file(self.home.job(spec.job_id), sign(JOB, spec.encode(), [signer("li")]).encode())

    def released(
        self,
        spec: JobSpec,
        *,
        by: str = STATISTICS,
        card_of: JobSpec | None = None,
        made: Content | None = None,
        **changes: Any,
    ):
        """Seal a model as its node does; open it as its recipient does."""
        content = encode_content(made or content_of(card_of or spec), STATEMENT, bytes(16))
        release, job = "7c" * 16, spec.job_id
        private = recipient("li")
        sealed = suites.seal(SUITE, suites.public_key(SUITE, private), release_info(release, job), content)
        note = ReleaseNote(
            release=release,
            job=job,
            attempt=1,
            node=STATISTICS,
            name="model",
            output_class="C",
            recipient=BUREAU,
            sealed_to=sha256_digest(suites.public_key(SUITE, private)),
            suite=SUITE,
            sha256=sha256_digest(sealed),
            content_sha256=sha256_digest(content),
            statement=STATEMENT,
            created=NOW,
            expires=NOW,
        )
        envelope = sign(RELEASE, replace(note, **changes).encode(), [signer(by)]).encode()
        return envelope, sealed, content

    def opened(self, spec: JobSpec, **changes: Any) -> Release:
        envelope, sealed, _ = self.released(spec, **changes)
        return open_release(
            note=envelope,
            sealed=sealed,
            release="7c" * 16,
            job=spec.job_id,
            spec=spec,
            roster=self.roster,
            organisation=BUREAU,
            private=recipient("li"),
        )

    def save(self, spec: JobSpec | None = None, **changes: Any) -> Path:
        """Return a folder as `minshu fetch` leaves it, whoever signed the note."""
        envelope, _, content = self.released(spec or self.spec(), **changes)
        self.out.mkdir(exist_ok=True)
        for name, data in {"model.note.dsse": envelope, "model.arrow": content}.items():
            (self.out / name).write_bytes(data)
        made = changes.get("made") or content_of(changes.get("card_of") or spec or self.spec())
        for name, data in files_in(made).items():
            (self.out / name).write_bytes(data)
        return self.out


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def refused(call: Callable[[], object], kind: type[MinshuError] = MinshuError) -> str:
    with pytest.raises(kind) as error:
        call()
    return error.value.code


# -- saved and shown -----------------------------------------------------------------------------------------


def test_a_fetched_model_is_saved_with_its_card_and_its_note(lab, tmp_path):
    release = lab.opened(lab.spec())
    files = release.save(tmp_path / "saved")
    assert {path.name for path in files} == {ARRAYS, CARD, CURVES, "model.arrow", "model.note.dsse"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    kept = read_folder(tmp_path / "saved", lab.home)
    assert (kept.roster, kept.note.node) == (1, STATISTICS)
    model = release.model()
    assert model.card == kept.model.card
    assert np.array_equal(model.scores(table_of("logistic")), kept.model.scores(table_of("logistic")))
    onnx.checker.check_model(onnx.load_from_string(model.to_onnx()))


def test_a_notebook_shows_the_card_of_a_model_and_runs_nothing(lab):
    page = lab.opened(lab.spec(use="<script>x</script>"))._repr_html_()
    assert ("模型 (C 类)" in page, "A model (class C)" in page) == (True, True)
    assert ("<script>" in page, "&lt;script&gt;" in page) == (False, True)


def test_a_table_is_no_model_and_says_how_it_is_read(lab, world):
    note, _, _ = world.release(lab.spec().job_id, 1)
    table = Release("street-table", "", {}, ReleaseNote.decode(decode_envelope(note).payload), note, b"")
    assert refused(table.model, InputError) == "no-model"


def test_figures_of_a_split_model_are_saved_as_a_table(lab, tmp_path):
    columns = Table({"measure": np.array(["auc"]), "value": np.array([0.8])})
    content = encode_content(Content("metrics", columns, {"model": "split"}), STATEMENT, bytes(16))
    envelope, _, _ = lab.released(lab.spec(), name="metrics")
    note = ReleaseNote.decode(decode_envelope(envelope).payload)
    release = Release("metrics", STATEMENT, {"model": "split"}, note, envelope, content)
    assert refused(release.model, InputError) == "no-model"
    assert [path.suffix for path in release.save(tmp_path / "saved")] == [".csv", ".arrow", ".dsse"]


def test_a_model_that_is_none_is_not_saved(lab, tmp_path):
    release = lab.opened(lab.spec(), card_of=lab.spec(purpose=None, rounds=5))
    assert refused(lambda: release.save(tmp_path / "saved"), DecodeError) == "wrong-card"
    assert not (tmp_path / "saved").exists()


def test_show_says_what_it_is_and_whose_signature_it_has(lab, capsys):
    folder = lab.save()
    code, out, err = run(capsys, "model", "show", folder, "--lang", "en", "--home", lab.home.path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "A model (class C)"
    assert lines[1] == f"  made by    {STATISTICS}, 2026-12-02; signed with its key in roster 1"
    assert "疑似, 需人工核实" in out
    code, out, _ = run(capsys, "model", "show", folder, "--home", lab.home.path)
    assert (code, out.splitlines()[0]) == (0, "模型 (C 类)")
    code, out, _ = run(capsys, "model", "show", folder, "--json", "--home", lab.home.path)
    shown = json.loads(out)
    assert (shown["roster"], shown["card"]["schema"], shown["curves"]) == (
        1,
        "minshu-model/1",
        {"auc": [0.6, 0.7]},
    )


def test_without_a_home_it_is_said_that_no_signature_was_checked(lab, capsys, monkeypatch):
    monkeypatch.delenv("MINSHU_HOME", raising=False)
    said = "signature not checked, as no home is named"
    code, out, err = run(capsys, "model", "show", lab.save(by="mallory"), "--lang", "en")
    assert (code, said in out, said in err) == (0, True, True)
    code, err, _ = scored(lab, capsys, ROWS, "--keep", "name", home=None)
    assert (code, said in err, "hint: name the home of an analyst with --home" in err) == (0, True, True)
    code, _, err = run(capsys, "model", "export", lab.out, "--onnx", lab.home.path / "model.onnx")
    assert (code, said in err) == (0, True)
    folder, _ = joined_model(lab)
    code, out, err = run(capsys, "model", "job", folder)
    assert (code, said in err, said in out) == (0, True, False)
    monkeypatch.setenv("MINSHU_HOME", str(lab.home.path))
    code, _, err = run(capsys, "model", "job", folder)
    assert (code, err) == (0, "")


def test_what_show_prints_moves_no_cursor(lab, capsys, monkeypatch):
    lines = ["a\x1b[2J", "b\u202ec", "城\u3000中\r"]
    monkeypatch.setattr(Model, "describe", lambda *_: lines)
    code, out, _ = run(capsys, "model", "show", lab.save(), "--home", lab.home.path)
    shown = out.splitlines()
    assert (code, shown[0], shown[2:]) == (0, r"a\x1b[2J", [r"b\u202ec", "城\u3000中\\r"])


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"by": "mallory"}, SignatureInvalid, "too-few-signatures"),
        ({"by": HEALTH}, SignatureInvalid, "wrong-node"),
        ({"output_class": "A"}, DecodeError, "no-model"),
        ({"content_sha256": sha256_digest(b"x")}, DecodeError, "wrong-digest"),
    ],
)
def test_a_model_whose_note_does_not_hold_is_not_used(lab, changes, kind, code):
    folder = lab.save(**changes)
    assert refused(lambda: read_folder(folder, lab.home), kind) == code


@pytest.mark.parametrize("name", [ARRAYS, CARD, CURVES])
def test_a_file_that_was_changed_afterwards_is_noticed(lab, name):
    folder = lab.save()
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    assert refused(lambda: read_folder(folder, lab.home), DecodeError) == "wrong-digest"


@pytest.mark.parametrize("name", ["model.note.dsse", "model.arrow"])
def test_a_model_without_its_note_is_not_used(lab, name):
    folder = lab.save()
    (folder / name).unlink()
    assert refused(lambda: read_folder(folder, lab.home), InputError) == "no-note"


def test_a_card_that_tells_of_another_job_is_refused(lab):
    spec = lab.spec()
    lab.keep(spec)
    assert read_folder(lab.save(spec), lab.home).roster == 1
    other = lab.spec(rho="0.4")
    folder = lab.save(spec, card_of=other)
    assert refused(lambda: read_folder(folder, lab.home), DecodeError) == "wrong-card"


def test_a_model_made_by_another_node_than_the_job_has_is_refused(lab):
    spec = lab.spec()
    lab.keep(spec)
    folder = lab.save(spec, by=HEALTH, node=HEALTH)
    assert refused(lambda: read_folder(folder, lab.home), SignatureInvalid) == "unplanned-release"


def test_a_home_without_a_roster_checks_no_signature(lab):
    for path in lab.home.rosters.iterdir():
        path.unlink()
    folder = lab.save()
    assert refused(lambda: read_folder(folder, lab.home), InputError) == "no-roster"


# -- scores --------------------------------------------------------------------------------------------------


ROWS = "name,district,age,income\n=A1,east,30,100\n乙,other,,2000\n丙,west,71.5,-3\n"


def scored(
    lab: Lab, capsys: Any, text: str, *words: str, home: str | None = "--home"
) -> tuple[int, str, Path]:
    rows, out = lab.home.path / "rows.csv", lab.home.path / "scores.csv"
    rows.write_text(text, "utf-8")
    folder = lab.save()
    named = [] if home is None else [home, lab.home.path]
    code, _, err = run(capsys, "model", "score", folder, "--in", rows, "--out", out, *words, *named)
    return code, err, out


def test_scores_of_persons_carry_the_mark_and_are_for_their_owner_alone(lab, capsys):
    code, err, out = scored(lab, capsys, "\ufeff" + ROWS, "--keep", "name")
    assert (code, err) == (0, "")
    assert out.stat().st_mode & 0o777 == 0o600
    with out.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [each["mark"] for each in found] == [SUSPECTED] * 3
    # What an office program would compute is text.
    assert [each["name"] for each in found] == ["'=A1", "乙", "丙"]
    assert [each["row"] for each in found] == ["1", "2", "3"]
    model = read_folder(lab.out, None).model
    expected = model.scores(
        {
            "age": np.array([30, np.nan, 71.5]),
            "district": np.array(["east", "other", "west"], dtype=object),
            "income": np.array([100.0, 2000, -3]),
        }
    )
    assert np.allclose([float(each["score"]) for each in found], expected, atol=1e-6)
    code, err, _ = scored(lab, capsys, ROWS, "--keep", "name")
    assert (code, "exists already" in err) == (1, True)


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        (ROWS, (), "columns name are no features of the model"),
        (ROWS.replace("income", "outgo"), ("--keep", "name"), "columns income are missing"),
        (ROWS, ("--keep", "id"), "columns id to keep are missing"),
        (ROWS, ("--keep", "name", "--keep", "name"), "named twice"),
        (ROWS, ("--keep", "score"), "called like one of the result"),
        (ROWS.replace("100", ""), ("--keep", "name"), "column income has a value that is no number"),
        (
            ROWS.replace("100", "nan"),
            ("--keep", "name"),
            "column income has a value that is no decimal number",
        ),
        (ROWS.replace("30", "inf"), ("--keep", "name"), "column age has a value that is no decimal number"),
        (ROWS.replace("30", "1e3"), ("--keep", "name"), "column age has a value that is no decimal number"),
        (ROWS.replace(",100", ""), ("--keep", "name"), "is not a CSV file"),
        (ROWS.replace("name", "age"), (), "is not a CSV file"),
        (ROWS.splitlines()[0] + "\n", ("--keep", "name"), "there are no rows"),
        ("", (), "is not a CSV file"),
    ],
)
def test_rows_of_another_form_are_not_scored(lab, capsys, text, words, says):
    code, err, out = scored(lab, capsys, text, *words)
    assert (code, out.exists()) == (1, False)
    assert says in err


def test_a_model_is_exported_once(lab, capsys):
    folder, file = lab.save(), lab.home.path / "model.onnx"
    code, out, _ = run(capsys, "model", "export", folder, "--onnx", file, "--json")
    assert (code, json.loads(out)["bytes"]) == (0, file.stat().st_size)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    code, _, err = run(capsys, "model", "export", folder, "--onnx", file)
    assert (code, "exists already" in err) == (1, True)
    code, _, err = run(capsys, "model", "export", lab.save(lab.spec("boost")), "--onnx", file)
    assert (code, "hint: score rows with minshu model score" in err) == (1, True)


# -- a job that scores ---------------------------------------------------------------------------------------

COLUMNS = [
    {"source": "source-1", "slot": "limit", "edges": ["2", "4.5"]},
    {"source": "source-2", "slot": "street", "codes": ["core", 'the "old" town\\', "城中村"]},
    {"source": "source-2", "slot": "bill", "edges": ["-1", "1.5"], "missing": "yes"},
]
WEIGHTS = [-700, 0, 300, 900, -450, 20, 0, -800, 0, 800, 60, -100]  # the last is the constant
PRINTED = """\
# The model of {job}:
# whoever is asked to take part in the job reads it. Sources are numbered as they were there.
# Slot street_code is street there, a name that is taken here.
job_type = "score-joined/1"

[params]
# To be written: at_least, step, records_from, recipient; perhaps join, filters, areas.
model = { bits = 9, constant = -50 }
columns = [
  { source = "source-1", slot = "limit", edges = ["2", "4.5"], weights = [-350, 0, 150] },
  { source = "source-2", slot = "street_code", codes = ["core", "the \\"old\\" town\\\\", "城中村"], \
weights = [450, -225, 10, 0] },
  { source = "source-2", slot = "bill", edges = ["-1", "1.5"], missing = "yes", \
weights = [-400, 0, 400, 30] },
]
"""
REST = """
at_least = "0.35"
step = "0.1"
records_from = "source-1"
recipient = "source-1"
areas = "demo-city"

[roles]
source-1 = "police.gz.example/node-a"
source-2 = "tax.gz.example/node-a"
matcher = "statistics.gz.example/node-a"
helper = "archives.gz.example/node-a"
dealer = "standards.gz.example/node-a"

[[inputs]]
role = "source-1"
dataset = "people"
columns = { key = "id", limit = "limit", street = "street" }

[[inputs]]
role = "source-2"
dataset = "people"
columns = { key = "id", street_code = "street", bill = "bill" }
"""
TOP = """\
purpose = "P-1"
legal_basis = "L-1"
expected_use = "officers visit"
collaboration = "gz.example"
recipients = ["police.gz.example"]
"""


def joined_model(lab: Lab, columns: Any = COLUMNS, weights: Any = WEIGHTS) -> tuple[Path, JobSpec]:
    """Save a model of `train-joined/1` whose weights are these, whole numbers of 2^-10."""
    spec = train_case.train_spec(columns=columns, label={**train_case.LABEL, "source": "source-1"})
    inputs = {
        each.role: InputSummary(130, 120, 120, train_case.ZERO, "2026-10-31", train_case.ZERO, "2")
        for each in spec.inputs
    }
    made = model_content(
        spec,
        inputs,
        Plan({"train": 5}, 2, 0, 2, 1, 5, Cost()),
        model=pack({"weights": np.array(weights, dtype=np.int64) << 10}),
        rounds={"train": 5},
        spent=Cost(),
        metrics=None,
        curves={},
        versions={},
    )
    return lab.save(spec, made=made), spec


def job_of(printed: str) -> JobSpec:
    """Return the job of a printed text, once what it leaves to be written is written."""
    text = printed.replace('"score-joined/1"\n', f'"score-joined/1"\n{TOP}')
    return suppose_job((text + REST).encode(), NOW)


def test_the_part_of_a_scoring_job_that_a_joined_model_decides_is_printed(lab, capsys):
    folder, trained = joined_model(lab)
    code, out, err = run(capsys, "model", "job", folder, "--home", lab.home.path)
    assert (code, err) == (0, "")
    assert out == PRINTED.replace("{job}", trained.job_id)
    code, out, _ = run(capsys, "model", "job", folder, "--json")
    assert json.loads(out) == tomllib.loads(PRINTED)["params"]


def test_a_printed_job_is_one_and_scores_as_the_model_does(lab, capsys):
    folder, _ = joined_model(lab)
    spec = job_of(run(capsys, "model", "job", folder)[1])
    score_case.SCORES.check(spec)
    limits, streets, bills = (
        (0, 2, 4.4, 4.5, 9),
        ("core", 'the "old" town\\', "城中村", "x", None),
        (-2, -1, 1.5, None),
    )
    people = [
        {"who": n, "limit": limit, "street_code": street, "bill": bill}
        for n, (limit, street, bill) in enumerate(product(limits, streets, bills))
    ]
    lists = [[{"who": p["who"], "limit": p["limit"], "street": "s", "last_seen": None} for p in people]]
    lists += [[{name: p[name] for name in ("who", "street_code", "bill")} for p in people]]
    told = score_case.told(score_case.score_case(spec, lists))
    model = read_folder(folder, None).model
    chances = model.scores(
        {
            "source-1.limit": np.array([p["limit"] for p in people], float),
            "source-2.street": np.array([p["street_code"] for p in people], object),
            "source-2.bill": np.array([np.nan if p["bill"] is None else p["bill"] for p in people], float),
        }
    )
    reached = {
        f"RIC:{person(p['who'])}": f"{0.35 + 0.1 * int((chance - 0.35) / 0.1):.2f}"
        for p, chance in zip(people, chances.tolist(), strict=True)
        if chance >= 0.35
    }
    assert {key: f"{float(step):.2f}" for key, step in told.items()} == reached
    assert 20 < len(reached) < len(people)


@pytest.mark.parametrize(
    ("weights", "bits", "constant"),
    [([0] * 12, 4, 0), ([64] * 12, 4, 1), ([64] * 11 + [-192], 4, -3), ([*([0] * 11), 5], 10, 5)],
)
def test_weights_are_printed_on_the_coarsest_grid_that_holds_them(lab, weights, bits, constant):
    folder, _ = joined_model(lab, weights=weights)
    found = score_params(read_folder(folder, None).model)
    assert (found.model, found.columns[0]["weights"][0]) == (
        {"bits": bits, "constant": constant},
        weights[0] >> (10 - bits),
    )


def test_a_model_that_no_such_job_can_hold_or_needs_is_not_printed(lab, capsys):
    code, _, err = run(capsys, "model", "job", lab.save())
    assert (code, "the model is of train/1" in err, "hint: each department scores" in err) == (1, True, True)
    own = [{**each, "source": "source-2", "slot": f"c{n}"} for n, each in enumerate(COLUMNS)]
    folder, _ = joined_model(lab, columns=own)
    assert refused(lambda: score_params(read_folder(folder, None).model)) == "one-source"
    many = [{"source": f"source-{1 + n % 2}", "slot": f"c{n}", "edges": ["1"]} for n in range(65)]
    folder, _ = joined_model(lab, columns=many, weights=[1] * 131)
    assert refused(lambda: score_params(read_folder(folder, None).model)) == "too-many-columns"
