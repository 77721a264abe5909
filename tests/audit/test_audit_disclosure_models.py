"""Opened models held against the journals of who made them and of whose rows they are of."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from model_case import AGGREGATOR, TURNS, content_of, files_in, inputs_of, metrics_of, spec_of, trained
from train_joined_case import S1, S2, Ledge, as_lists, people, train_case, train_spec

from audit.disclosure import NO_FACTS, NO_JOB, NOT_OPENED, Released, disclose
from audit.disclosure_models import examine_figures, examine_model, examine_part, made_elsewhere
from audit.findings import Answer, Check
from coordinator.client.release import Release
from node.releases import encode_content
from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.envelope import RELEASE, KeySigner, sign
from protocols.errors import MinshuError
from protocols.ids import DatasetName, Digest, Organisation, Role
from protocols.jobs import JOB_TYPES, job_type, train
from protocols.jobs.job_type import Content, OutputClass, Setup
from protocols.training.card import Card, MakesModels
from protocols.training.card_text import limits
from protocols.training.model import ARRAYS, CARD, CURVES, facts_of, pack, read_model
from protocols.training.params import Params
from protocols.training.parties import Held
from protocols.training.scores import Bins
from protocols.training.work import Done
from protocols.wire import (
    Constraints,
    JobInput,
    JobSpec,
    ReleaseNote,
    Roster,
    RosterNode,
    RosterOrganisation,
    organisation_of,
)

SIGNER = KeySigner(Ed25519PrivateKey.from_private_bytes(bytes(32)))
SPEC = spec_of()
FILES = files_in(content_of(SPEC))
FACTS = dict(content_of(SPEC).facts)
LIMITS = Constraints(min_group_size=10)


def released(spec: JobSpec = SPEC, content: bytes = b"", **changes: Any) -> Released:
    """Return what the log of who made a model says of it."""
    note = ReleaseNote(
        release="0f" * 16,
        job=spec.job_id,
        attempt=1,
        node=AGGREGATOR,
        name="model",
        output_class="C",
        recipient=Organisation("bureau.gz.example"),
        sealed_to=Digest(spec.job_id),
        suite=2,
        sha256=Digest(spec.job_id),
        content_sha256=sha256_digest(content),
        statement="model",
        created=datetime(2026, 12, 1, tzinfo=UTC),
        expires=datetime(2026, 12, 31, tzinfo=UTC),
    )
    return replace(Released(note, "entry 7", LIMITS, spec, inputs=inputs_of(spec)), **changes)


def wrong(files: dict[str, bytes] = FILES, found: Released | None = None, **facts: Any) -> list[str]:
    """Return what an auditor finds; the facts are the card's unless others are given."""
    columns = {"file": [*files], "data": [*files.values()]}
    stated = facts.get("facts")
    if stated is None:
        stated = facts_of(Card.decode(files[CARD]), files)
    return [problem.what for problem in examine_model(columns, stated, found or released(), {})]


def with_card(path: list[Any], value: Any) -> dict[str, bytes]:
    """Return the model with one field of its card changed."""
    plain = part = decode_json(FILES[CARD])
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with suppress(MinshuError):  # a card that is none stays as it is
        # Whoever lies about a run has its caveats lie as well.
        plain["limits"] = msgspec.to_builtins(limits(Card.decode(canonical_json(plain))))
    return FILES | {CARD: canonical_json(plain)}


def of_card(name: str) -> list[str]:
    return [f"its card's {name} is not what the journal says"]


# -- who made it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["logistic", "boost"])
def test_the_card_of_the_run_holds(recipe: str) -> None:
    spec = spec_of(recipe)
    assert wrong(files_in(content_of(spec)), released(spec)) == []


def test_a_model_without_noise_holds_where_the_job_says_so() -> None:
    spec = spec_of(rho=None, noise="none", evaluate={"every": 4, "bins": 8})
    exact = msgspec.structs.replace(metrics_of(), on="held-out")
    files = files_in(content_of(spec, metrics=exact, spent=Cost()))
    assert wrong(files, released(spec)) == []
    # Said to be of the job with noise, it is another's.
    assert set(wrong(files)) >= {*of_card("job"), *of_card("privacy"), *of_card("metrics")}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["job"], "sha256:" + "3" * 64, "job"),
        (["job_type"], "train-joined/1", "job_type"),
        (["purpose"], "another", "purpose"),
        (["legal_basis"], "another", "legal_basis"),
        (["expected_use"], "another", "expected_use"),
        (["settings"], {"clip": "100"}, "settings"),
        (["label", "positive"], ["0"], "label"),
        (["features", 0, "edges"], ["20", "41", "60"], "features"),
        (["group", "codes"], ["1"], "group"),
        (["datasets", 0, "dataset"], "other", "datasets"),
        (["datasets", 1, "snapshot"], "2020-01-01", "datasets"),
        (["datasets", 2, "rows"], 7, "datasets"),
        (["training", "rounds", "train"], 5, "rounds"),
        (["training", "rounds", "other"], 1, "rounds"),
        (["training", "most_rounds", "train"], 60, "rounds"),
        (["training", "sources"], 2, "sources"),
        (["training", "holdout"], 7, "training"),
        (["training", "honest"], 3, "training"),
        (["training", "persons_in"], 1, "training"),
        (["training", "unit_rows"], 9, "training"),
        (["privacy", "epsilon"], "0.5", "privacy"),
        (["privacy", "rho"], "0.1", "privacy"),
        (["privacy", "delta"], "0.000001", "privacy"),
        (["privacy", "spent_epsilon"], "0.1", "privacy"),
        (["metrics", "on"], "public test set", "metrics"),
    ],
)
def test_a_wrong_card_is_found(path: list[Any], value: Any, field: str) -> None:
    found = wrong(with_card(path, value))
    assert of_card(field)[0] in found
    # Fewer or more rounds cost otherwise, too.
    assert set(found) <= {*of_card(field), *of_card("privacy")}


def test_a_card_without_its_caveats_is_found() -> None:
    for changed in ({"en": [], "zh": []}, {"en": ["Approved."], "zh": ["可直接使用。"]}):
        plain = decode_json(FILES[CARD]) | {"limits": changed}
        [what] = wrong(FILES | {CARD: canonical_json(plain)})
        assert "what the card says to know before use" in what
        card = Card.decode(canonical_json(plain))
        assert [each.what for each in examine_part(card, released(), {})] == of_card("limits")


def test_early_stop_costs_what_its_rounds_cost() -> None:
    rounds = {"train": 2, "evaluate": 1}
    spent = job_type("train/1").cost_of(SPEC, SPEC.inputs[0].role, LIMITS, rounds)  # type: ignore[attr-defined]  # in rounds
    assert wrong(files_in(content_of(SPEC, rounds=rounds, spent=spent))) == []
    assert wrong(files_in(content_of(SPEC, rounds=rounds))) == of_card("privacy")


def test_what_is_not_a_model_is_found() -> None:
    def codes(files: dict[str, bytes]) -> set[str]:
        columns = {"file": [*files], "data": [*files.values()]}
        return {problem.code for problem in examine_model(columns, FACTS, released(), {})}

    assert codes(FILES) == set()
    assert codes({name: data for name, data in FILES.items() if name != CARD}) == {"no-card"}
    assert codes(FILES | {ARRAYS: FILES[ARRAYS][:-8] + bytes(8)[:7] + b"\1"}) == {"wrong-card"}
    assert codes(FILES | {CARD: b"{}"}) == {"unknown-schema"}
    assert codes(with_card(["more"], 1)) == {"bad-card"}
    columns = {"file": [CARD, CARD], "data": [b"", b""]}
    assert {each.code for each in examine_model(columns, FACTS, released(), {})} == {"bad-model"}


def test_facts_beside_a_model_are_those_of_its_card() -> None:
    assert wrong(facts=FACTS) == []
    for changed in (FACTS | {"auc": "0.9999"}, FACTS | {"more": 1}, {}):
        assert wrong(facts=changed) == ["what is stated beside it is not what its card says"]


def looked_at(opened: dict[str, bytes], found: Released) -> Check:
    check = Check("disclosure")
    disclose(opened, {found.note.content_sha256: found}, check)
    return check


def saved(folder: Path, spec: JobSpec = SPEC) -> tuple[dict[str, bytes], Released]:
    """Return the files of a model as its recipient has them, and what the log says."""
    content = encode_content(content_of(spec), "model", bytes(16))
    found = released(spec, content)
    envelope = sign(RELEASE, found.note.encode(), [SIGNER]).encode()
    Release("model", "model", {}, found.note, envelope, content).save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, found


def test_a_model_as_the_analyst_saved_it_holds(tmp_path: Path) -> None:
    opened, found = saved(tmp_path)
    assert set(opened) == {ARRAYS, CARD, CURVES, "model.arrow", "model.note.dsse"}
    check = looked_at(opened, found)
    assert (check.findings, check.answer, check.figures["opened releases"]) == ([], Answer.HOLDS, 1)
    assert looked_at({"model.arrow": opened["model.arrow"]}, found).answer is Answer.HOLDS
    # Its files alone do not show that they are the release.
    bare = looked_at({name: opened[name] for name in (ARRAYS, CARD, CURVES)}, found)
    assert (bare.answer, bare.missing) == (Answer.NOT_CHECKABLE, [NOT_OPENED])
    unknown = looked_at(opened, replace(found, spec=None))
    assert (unknown.answer, unknown.missing) == (Answer.NOT_CHECKABLE, [NO_JOB])


def test_a_file_beside_the_release_that_was_changed_is_found(tmp_path: Path) -> None:
    opened, found = saved(tmp_path)
    plain = decode_json(opened[CARD]) | {"purpose": "another"}
    check = looked_at(opened | {CARD: canonical_json(plain)}, found)
    assert [(each.code, each.what) for each in check.findings] == [
        ("wrong-content", f"{CARD} is not the file of the release")
    ]


# -- as the job types make them ------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"rho": None, "epsilon": "6", "delta": "0.00001"}, {"group": None}])
def test_what_the_lead_of_a_run_publishes_holds(params: dict[str, Any]) -> None:
    spec = spec_of(**params)
    asked = Params.of(spec)
    setup = Setup(spec, 1, bytes(32), LIMITS, inputs_of(spec))
    made, state = trained()
    counts = np.full(Bins.even(8, 3 if asked.group else 1).size, 200.0).tolist()
    done = Done(pack(made.arrays(state)), {}, {"auc": [0.5], "histogram": counts})
    held = Held({"train": 3, "evaluate": 1}, {"numpy": "2"})
    [content] = train._published(setup, asked, done, held)
    files = files_in(content)
    assert wrong(files, released(spec), facts=dict(content.facts)) == []
    card = read_model(files).card
    assert card.metrics is not None
    assert (card.metrics.auc, card.metrics.membership_auc, card.training.rounds["train"]) == (0.5, 0.5, 3)
    assert float(card.privacy.spent_epsilon) < float(card.privacy.epsilon) <= 6


def test_a_model_measured_on_a_public_test_set_holds() -> None:
    spec = spec_of(test="aggregator", holdout=None, evaluate={"every": 4, "bins": 8})
    public = JobInput(
        Role("aggregator"), organisation_of(AGGREGATOR), DatasetName("panel"), spec.inputs[0].columns
    )
    spec = replace(spec, inputs=(*spec.inputs, public))
    setup = Setup(spec, 1, bytes(32), LIMITS, inputs_of(spec))
    made, state = trained()
    counts = np.full(Bins.even(8, 3).size, 200.0).tolist()
    done = Done(pack(made.arrays(state)), {}, {"auc": [0.5], "histogram": counts})
    [content] = train._published(setup, Params.of(spec), done, Held({"train": 4}, {}))
    assert wrong(files_in(content), released(spec)) == []
    assert read_model(files_in(content)).card.metrics.on == "public test set"  # type: ignore[union-attr]  # there are some


@pytest.mark.parametrize("noise", [{"noise": "none"}, {"rho": "16", "evaluate": {"rho": "5", "bins": 8}}])
def test_what_the_matcher_of_a_joined_run_publishes_holds(noise: dict[str, Any]) -> None:
    spec = train_spec(rounds=2, **noise)
    case = train_case(spec, as_lists(people(150)))
    content = case.released()
    found = replace(released(spec), constraints=case.setup.constraints, inputs=case.setup.inputs)
    assert wrong(files_in(content), found, facts=dict(content.facts)) == []
    model = read_model(files_in(content))
    assert model.card.recipe == "logistic"
    assert [feature.name for feature in model.card.features] == [
        "source-1.limit",
        "source-1.sex",
        "source-2.status",
        "source-2.bill",
    ]


@cache
def joined() -> tuple[dict[str, bytes], Released]:
    """Return a model of a joined run of five rounds, and what the log says of it."""
    spec = train_spec(rounds=5, rho="16", evaluate={"rho": "5", "bins": 8})
    case = train_case(spec, as_lists(people(150)))
    files = files_in(case.released())
    return files, replace(released(spec), constraints=case.setup.constraints, inputs=case.setup.inputs)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"rounds": {"train": 2}, "most_rounds": {"train": 2}}, ["rounds"]),
        ({"rounds": {"train": 2}}, ["rounds"]),
        ({"rounds": {"train": 6}, "most_rounds": {"train": 6}}, ["rounds"]),
        ({"holdout": 0, "honest": 2, "persons_in": 1, "unit_rows": 9}, ["training"]),
        ({"honest": 0}, ["training"]),
        ({"sources": 3}, ["sources"]),
    ],
    ids=str,
)
def test_a_joined_models_card_tells_of_the_run_that_its_job_asks_for(
    change: dict[str, Any], fields: list[str]
) -> None:
    files, found = joined()
    assert wrong(files, found) == []
    card = Card.decode(files[CARD])
    lie = msgspec.structs.replace(card, training=msgspec.structs.replace(card.training, **change))
    assert wrong(files | {CARD: lie.encode()}, found) == [each for name in fields for each in of_card(name)]


def test_of_every_job_type_that_makes_models_the_auditor_knows_the_run() -> None:
    made = {each.name for each in JOB_TYPES if each.output_class is OutputClass.MODEL}
    assert made == {"train/1", "train-joined/1"}
    assert all(isinstance(job_type(name), MakesModels) for name in made)


# -- whose rows it is of -------------------------------------------------------------------------------------


def roster() -> Roster:
    """Return a roster in which the node that made the models is listed."""
    node = RosterNode(AGGREGATOR, SIGNER.public_key, Digest("sha256:" + "1" * 64), "", bytes(32), ())
    return Roster(
        collaboration="gz.example",
        version=1,
        previous=None,
        suite=2,
        issued=datetime(2026, 12, 1, tzinfo=UTC),
        expires=datetime(2026, 12, 31, tzinfo=UTC),
        organisations=(RosterOrganisation(Organisation("statistics.gz.example"), "statistics"),),
        nodes=(node,),
        analysts=(),
        freshness_keys=(),
    )


def test_a_department_checks_the_card_of_a_model_that_another_node_made(tmp_path: Path) -> None:
    opened, found = saved(tmp_path)
    check = Check("disclosure")
    [(name, note, card)] = made_elsewhere(opened, set(), roster(), check)
    assert (name, note, card) == ("model", found.note, read_model(FILES).card)
    assert examine_part(card, found, Counter(TURNS)) == []
    assert examine_part(card, found, {"train": 2}) == []
    fewer = examine_part(card, found, {"train": TURNS["train"] + 1})
    assert [each.what for each in fewer] == [
        "its card tells of fewer rounds than this department took part in"
    ]
    other = released(spec_of(rho="0.4"))
    assert of_card("privacy")[0] in [each.what for each in examine_part(card, other, {})]
    # Where this node has made it itself, `disclose` has looked at it.
    assert [*made_elsewhere(opened, {found.note.content_sha256}, roster(), check)] == []
    assert check.findings == []


def test_only_models_that_a_member_has_signed_are_held_against_a_log(tmp_path: Path) -> None:
    opened, _ = saved(tmp_path)
    check = Check("disclosure")
    for files, known in (
        (opened, None),
        (opened, replace(roster(), nodes=())),
        ({name: data for name, data in opened.items() if name != "model.note.dsse"}, roster()),
        ({name: data for name, data in opened.items() if name != "model.arrow"}, roster()),
    ):
        assert [*made_elsewhere(files, set(), known, check)] == []
    assert check.findings == []
    changed = opened["model.arrow"][:-16] + bytes(16) + b"\0"
    assert [*made_elsewhere(opened | {"model.arrow": changed}, set(), roster(), check)] == []
    assert [each.code for each in check.findings] == ["wrong-content"]


def test_the_card_of_a_joined_model_says_whose_columns_it_looks_at() -> None:
    """A card whose features were taken from other departments than the job's is another's."""
    card = read_model(FILES).card
    moved = msgspec.structs.replace(card.features[0], source="source-2")
    changed = msgspec.structs.replace(card, features=(moved, *card.features[1:]))
    assert changed.features[0].name == "source-2.age"
    found = wrong(FILES | {CARD: changed.encode()})
    assert found == of_card("features")
    assert np.isfinite(read_model(FILES | {CARD: changed.encode()}).arrays["weights"]).all()


# -- figures of a split model --------------------------------------------------------------------------------

SPLIT = {
    "exact": {"noise": "none"},
    "noisy": {"rho": "16", "evaluate": {"rho": "5", "bins": 8}},
    "nobody held out": {"noise": "none", "holdout": 0},
}


@cache
def figures(name: str) -> tuple[Content, Released]:
    """Return the figures of a split model as its matcher publishes them, and what its log says."""
    spec = train_spec(**{"rounds": 2, "holdout": 2, "model": "split"} | SPLIT[name])
    lists = as_lists(people(700))
    case = train_case(spec, lists, shelves={S1: Ledge(), S2: Ledge()})
    content = case.released()
    found = released(spec, encode_content(content, "model", bytes(16)))
    keys = {role: each.distinct_keys for role, each in case.setup.inputs.items()}
    found = replace(found, note=replace(found.note, name="metrics"), keys=keys)
    return content, replace(found, constraints=case.setup.constraints, inputs=case.setup.inputs)


def found_wrong(name: str, facts: dict[str, Any] | None = None, **columns: Any) -> set[str]:
    """Return the codes of what is wrong with the figures, some of them changed."""
    content, found = figures(name)
    assert found.spec is not None
    whole = {each: values.tolist() for each, values in content.table.columns.items()} | columns
    problems = examine_figures(whole, dict(content.facts) | (facts or {}), found.spec, found)
    return {problem.code for problem in problems}


@pytest.mark.parametrize("name", SPLIT)
def test_figures_of_a_split_model_hold_as_its_matcher_publishes_them(name: str) -> None:
    content, found = figures(name)
    assert found_wrong(name) == set()
    assert (len(content.table.columns["bin"]) > 1) == (name != "nobody held out")
    encoded = encode_content(content, "model", bytes(16))
    check = looked_at({"metrics.arrow": encoded}, found)
    assert (check.findings, check.answer, check.figures["opened releases"]) == ([], Answer.HOLDS, 1)
    # Without the job nothing can be said of them; and a CSV file alone does not show what is stated beside.
    unknown = looked_at({"metrics.arrow": encoded}, replace(found, spec=None))
    assert (unknown.answer, unknown.missing) == (Answer.NOT_CHECKABLE, [NO_JOB])
    rows = zip(*content.table.columns.values(), strict=True)
    lines = [",".join(content.table.columns), *(",".join(map(str, row)) for row in rows)]
    alone = looked_at({"metrics.csv": "\n".join(lines).encode()}, found)
    assert (alone.answer, alone.missing) == (Answer.NOT_CHECKABLE, [NO_FACTS])
    both = {"metrics.csv": "\n".join(lines).encode(), "metrics.arrow": encoded}
    assert looked_at(both, found).answer is Answer.HOLDS


@pytest.mark.parametrize(
    "facts",
    [
        {"weights": 14},
        {"rounds": 3},
        {"noise": "rho 8"},
        {"model": "assembled"},
        {"withheld_codes": 1},
        {"withheld_codes": False},
        {"persons": 700},
    ],
    ids=str,
)
def test_what_is_stated_beside_figures_is_what_the_job_makes_it(facts: dict[str, Any]) -> None:
    assert found_wrong("noisy", facts) == {"wrong-facts"}


def test_without_noise_as_many_codes_are_withheld_as_there_are() -> None:
    assert [found_wrong("exact", {"withheld_codes": n}) for n in (14, 15, -1)] == [
        set(), {"wrong-facts"}, {"wrong-facts"}
    ]  # fmt: skip


def test_figures_of_few_people_are_found() -> None:
    def with_bins(count: int) -> dict[str, Any]:
        shares = [0.5] * (2 * count)
        names = ["calibration-said", "calibration-found"] * count
        return {
            "measure": names,
            "bin": [place for place in range(count) for _ in range(2)],
            **dict.fromkeys(("value", "low", "high"), shares),
        }

    # Some 550 of 712 people may be held out: a bin is of 100 or more.
    assert [found_wrong("exact", **with_bins(count)) for count in (5, 6)] == [set(), {"small-cell"}]
    assert found_wrong("noisy", **with_bins(6)) == {"small-cell"}
    content, _ = figures("exact")
    shown = {each: values[:1].tolist() for each, values in content.table.columns.items()}
    assert found_wrong("exact", **shown) == set()
    assert found_wrong("nobody held out", **shown) == {"small-cell"}


def test_an_interval_without_the_noise_is_found() -> None:
    content, _ = figures("noisy")
    value, low, high = (content.table.columns[each].tolist() for each in ("value", "low", "high"))
    same = {"low": [value[0], *low[1:]], "high": [value[0], *high[1:]]}
    assert found_wrong("noisy", **same) == {"wrong-interval"}
    assert found_wrong("noisy", low=[round(value[0] + 0.01, 6), *low[1:]]) == {"wrong-interval"}


def test_a_table_that_is_no_figures_is_found() -> None:
    columns = {each: values.tolist() for each, values in figures("exact")[0].table.columns.items()}
    value, places = columns["value"], columns["bin"]
    for changed in (
        {"measure": ["area", *columns["measure"][1:]]},
        {"bin": [*places[:-1], 7]},
        {"bin": [*places[:-1], "x"]},
        {"value": [1.5, *value[1:]]},
        {"value": [float("nan"), *value[1:]]},
        {"value": [0.1234567, *value[1:]]},
        {"value": [*value[:-1], 0.5]},
        {"more": value},
        {name: values[:-1] for name, values in columns.items()},
    ):
        assert found_wrong("exact", **changed) == {"bad-table"}, changed
    swapped = [0, 3, 2, 1, 4]
    assert found_wrong(
        "exact", **{name: [columns[name][at] for at in swapped] for name in ("value", "low", "high")}
    ) == {"bad-table"}
