"""Scenario 6, 接种率模型: a model of who is vaccinated, trained by districts and across departments.

Once over rows: health bureaus of three districts have the same columns of different people. Once over
columns: police, health and medical insurance have different columns of the same people, and only health
knows the outcome. What the bureau receives is a model, never a row. The truth says how good a model of
everybody's rows in one place would be.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from demo.city import SNAPSHOT, Cells, Vaccination, keys_sha256, load_vaccination
from demo.city.expected import KEY_TYPE
from demo.city.uptake import AGE_EDGES, ANSWERS, KINDS, SCHEMES, STREET_TYPES, VISIT_EDGES, WIDTHS
from demo.city.vaccination import JOINED, JOINED_LISTS
from demo.collaboration import Department, command
from demo.narration import Failed
from demo.scenarios.pictures import Ability, Course, vaccination
from demo.scenarios.play import DIRECTED, Play
from policies.jobfile import suppose_job
from protocols.dp.cost import Cost
from protocols.envelope import decode_envelope
from protocols.identifiers import demo_area_table, normalise
from protocols.jobs import job_type
from protocols.jobs.job_type import UNIT, Unit
from protocols.training.boost import Boost
from protocols.training.card import DELTA, Card
from protocols.training.joined.scoring import Steps
from protocols.training.logistic import WEIGHT_BITS, Logistic
from protocols.training.membership import by_loss
from protocols.training.params import EVALUATE, TRAIN, Params
from protocols.training.recipe import Recipe, sigmoid
from protocols.training.rows import TrainingRows
from protocols.training.run import run
from protocols.training.schema import Binned, Coded, Floats, Ints, Rows, Schema
from protocols.training.scores import auc
from protocols.wire import JobSpec

if TYPE_CHECKING:
    from coordinator.client.release import Release
    from protocols.training.model import Model

DISTRICTS: Final = tuple(
    Department(f"health-{area}", f"{area} 区卫健 district health", {"immunisation": "immunisation"})
    for area in ("990101", "990102", "990103")
)
SOURCES: Final = (
    Department("police", "公安 police", {"residents": "residents"}),
    Department("health", "卫健 health", {"immunisation": "immunisation"}),
    Department("medical-insurance", "医保 medical insurance", {"enrolled": "enrolled"}),
)
DEPARTMENTS: Final = (
    *DISTRICTS,
    *SOURCES,
    Department(
        "statistics",
        "统计 statistics (aggregator, matcher)",
        {"panel": "panel"},
        without_persons=frozenset({"panel"}),
    ),
    Department("cyberspace", "网信 cyberspace (helper)"),
    Department("archives", "档案 archives (dealer)"),
)

FEATURES: Final[Mapping[str, Coded | Binned]] = {
    "age": Binned("age", tuple(map(float, AGE_EDGES))),
    "sex": Coded("sex", ("1", "2")),
    "kind": Coded("kind", KINDS),
    "street_type": Coded("street_type", STREET_TYPES),
    "visits": Binned("visits", tuple(map(float, VISIT_EDGES))),
    "checkup": Coded("checkup", ANSWERS),
    "scheme": Coded("scheme", SCHEMES),
}
"""What a model sees of a person, as the jobs name it."""

HEALTH_ALONE: Final = ("visits", "checkup")
"""What the department that knows the outcome knows besides."""

HOLDOUT: Final = 5


LOGISTIC: Final[Mapping[str, Any]] = {"rounds": 30, "clip": 2.0, "step": 4.0, "momentum": 0.5}
DESCENT: Final[Mapping[str, Any]] = {"rounds": 20, "step": 4.0, "momentum": 0.5}
BOOST: Final[Mapping[str, Any]] = {
    "mode": "random", "trees": 120, "batch": 4, "depth": 3, "step": 1.0, "ridge": 100.0
}  # fmt: skip
"""Settings of the recipes, as the jobs name them."""

AGES: Final = ("15–29", "30–44", "45–59", "60–69", "70+")


@dataclass(frozen=True, slots=True)
class Central:
    """What one would have with all rows in one place, without noise.

    Args:
        rows: people.
        features: columns.
        auc: on every fifth of them, of a model of the others.
        spread: standard deviation of that, for people drawn at random.
    """

    rows: int
    features: int
    auc: float
    spread: float


def rows_of(cells: Sequence[Cells], features: Sequence[str]) -> tuple[Schema, Rows]:
    """Return everybody counted in some cells, as a model sees them."""
    schema = Schema(tuple(FEATURES[name] for name in features))
    pairs = [each.people for each in cells]
    at = [list(WIDTHS).index(name) for name in features]
    codes = np.concatenate([codes[:, at] for codes, _ in pairs]).astype(np.uint16)
    labels = np.concatenate([labels for _, labels in pairs]).astype(np.uint8)
    return schema, Rows(codes, np.zeros((len(labels), 0), np.uint16), labels)


def held_out(rows: Rows) -> npt.NDArray[np.bool_]:
    """Return which rows a central model is measured on: every fifth."""
    held: npt.NDArray[np.bool_] = np.arange(len(rows)) % HOLDOUT == 0
    return held


def central(recipe: Recipe[Any], rows: Rows) -> tuple[Any, Central]:
    """Train without noise on four fifths of some rows in one place; return the state, what it achieves."""
    held = held_out(rows)
    state = run(recipe, [rows.take(~held)], _no_randomness).state
    test = rows.take(held)
    found = area(recipe.scores(state, test), test)
    return state, Central(len(rows), len(recipe.schema.coded), found, spread(found, test))


def _no_randomness(size: int) -> bytes:
    raise AssertionError(f"{size} random bytes asked for, but neither recipe draws any without noise")


def area(scores: Floats, rows: Rows) -> float:
    """Return the exact area under the ROC curve; ties count half."""
    _, place = np.unique(scores, return_inverse=True)
    size = int(place.max()) + 1
    return auc(np.stack([np.bincount(place[rows.labels == label], minlength=size) for label in (0, 1)]))


def spread(found: float, rows: Rows) -> float:
    """Return the standard deviation of an AUC (Hanley and McNeil 1982, Radiology 143)."""
    positives = int(rows.labels.sum())
    negatives = len(rows) - positives
    one, other = found / (2 - found), 2 * found**2 / (1 + found)
    variance = found * (1 - found) + (positives - 1) * (one - found**2) + (negatives - 1) * (other - found**2)
    return sqrt(variance / (positives * negatives))


REMIND: Final = 60
"""From this age on, whoever health has no record of and the model takes to be unvaccinated is invited."""

UNKNOWN: Final[Mapping[str, int]] = {"visits": 1, "checkup": 0}
"""What is taken of people without a health record, as codes: a visit or two a year, and no check-up."""

SCORE_BITS: Final = 11


@dataclass(frozen=True, slots=True)
class Judged:
    """A released model beside the truth.

    Args:
        model: as the bureau has it.
        scores: log-odds of everybody whom the question is about.
        rows: these people.
        auc: exact, on all of them.
        spread: standard deviation of that, for people drawn at random.
        held: exact, on those who were held out; None where that is not known outside the nodes.
        membership: how well the loss tells who was trained on from who was held out: one half is best.
    """

    model: "Model"
    scores: Floats
    rows: Rows
    auc: float
    spread: float
    held: float | None = None
    membership: float | None = None


class VaccinationScenario:
    """Three districts train together, then three departments; and what a rule refuses."""

    number: Final = 6
    title: Final = "接种率模型: who is vaccinated, learnt without a row leaving a department"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the questions; see `Scenario`."""
        expected = load_vaccination(play.city)
        districts = [expected.questions[f"{each.folder}/immunisation"] for each in DISTRICTS]
        joined = [expected.questions[JOINED]]
        best = centrals(expected)
        refused = {name: play.refused(name) for name in ("diagnosis", "exact")}
        found = {
            "districts": self._train(play, "districts", DISTRICTS, districts, best["districts"]),
            "boost": self._train(play, "boost", DISTRICTS, districts, best["boost"]),
            "joined": self._train(play, "joined", SOURCES, joined, best["joined"]),
        }
        gain = found["joined"].auc - best["alone"].auc
        if gain <= 0:
            raise Failed(f"the joined model is worth less than what health has alone, by {-gain:.3f}")
        play.say(
            f"Health alone, with all of its rows and no noise: {best['alone'].auc:.3f}. With the columns of "
            f"police and medical insurance: [bold]{found['joined'].auc:.3f}[/bold]."
        )
        reminded = self._remind(play, found["joined"])
        self._leave(play, found, best)
        return {
            "lists": dict(expected.lists),
            "rows": {name: one.rows for name, one in best.items()},
            "features": {name: one.features for name, one in best.items()},
            "central_auc": {name: round(one.auc, 4) for name, one in best.items()},
            "released_auc": {name: round(one.auc, 4) for name, one in found.items()},
            "held_out_auc": {name: round(one.held, 4) for name, one in found.items() if one.held},
            "membership_auc": {
                name: round(one.membership, 4) for name, one in found.items() if one.membership
            },
            "measured": {name: measured(one.model.card) for name, one in found.items()},
            "joined_gain": round(gain, 4),
            "reminded": reminded,
            "refused": refused,
        }

    @staticmethod
    def _train(
        play: Play, name: str, approvers: Sequence[Department], cells: Sequence[Cells], best: Central
    ) -> Judged:
        """Have a model trained, show its card, and hold it against the truth."""
        release = play.ask(name, approvers=approvers)
        play.quote(shown(play, name))
        judged = judge(release, cells)
        spec = JobSpec.decode(decode_envelope(play.collaboration.kept_job(release.note.job)).payload)
        if spec.job_type == "train/1":
            judged = of_members(judged, spec, play.city)
        check(name, judged, best)
        play.say(
            f"On all {len(judged.rows):,} people its AUC is [bold]{judged.auc:.3f}[/bold]; the same recipe "
            f"on everybody's rows in one place, without noise, has {best.auc:.3f} ± {2 * best.spread:.3f}."
        )
        if judged.membership is not None:
            play.say(f"Who was trained on, its loss tells with an AUC of {judged.membership:.3f}.")
        return judged

    @staticmethod
    def _remind(play: Play, joined: Judged) -> dict[str, int]:
        """Have health told whom it has no record of and the model takes to be unvaccinated."""
        weights, constant = unlikely(joined.model)
        play.edits["scores"] = partial(weighed, weights=weights, constant=constant)
        keys, scored, vaccinated = strangers(play.city, weights, constant)
        listed = scored >= _STEPS.whole(_STEPS.at_least)
        job = play.answered("scores", approvers=(*SOURCES, *DEPARTMENTS[-3:]), roles=DIRECTED)
        play.check_records(job, SOURCES[1], int(listed.sum()), keys_sha256(keys[listed].tolist()))
        if job.view().releases:
            raise Failed("the bureau received a release, but records go to one department alone")
        right = int((listed & ~vaccinated).sum())
        play.say(
            f"Of {len(keys):,} people of {REMIND} or more without a health record these are the least likely "
            f"to be vaccinated. In truth {right:,} of them are not, and of the others "
            f"{(~vaccinated & ~listed).sum():,} of {(~listed).sum():,}."
        )
        return {"without_record": len(keys), "listed": int(listed.sum()), "unvaccinated": right}

    @staticmethod
    def _leave(play: Play, found: Mapping[str, Judged], best: Mapping[str, Central]) -> None:
        """Write the table and draw the pictures."""
        taught = uptake(found["districts"])
        play.write_table(
            ("kind", "age", "people", "vaccinated", "model says"),
            [
                (kind, age, people, round(truth, 4), round(said, 4))
                for kind, bands in taught.items()
                for age, (said, truth, people) in zip(AGES, bands, strict=True)
            ],
        )
        vaccination(
            play.picture,
            {name: course(play, name, one.model) for name, one in found.items()},
            abilities(found, best),
            {name: calibration(one) for name, one in found.items()},
            {kind: [(said, truth) for said, truth, _ in bands] for kind, bands in taught.items()},
            ages=AGES,
        )


def centrals(expected: Vaccination) -> dict[str, Central]:
    """Return what the questions would give with all rows in one place and no noise; `alone`: health's own."""
    districts = [expected.questions[f"{each.folder}/immunisation"] for each in DISTRICTS]
    joined = [expected.questions[JOINED]]
    everything, over_districts = rows_of(districts, tuple(FEATURES))
    _, over_joined = rows_of(joined, tuple(FEATURES))
    alone, of_health = rows_of(joined, HEALTH_ALONE)
    found: dict[str, tuple[Recipe[Any], Rows]] = {
        "districts": (Logistic(everything, **LOGISTIC), over_districts),
        "boost": (Boost(everything, **BOOST), over_districts),
        "alone": (Logistic(alone, **DESCENT), of_health),
        "joined": (Logistic(everything, **DESCENT), over_joined),
    }
    return {name: central(recipe, rows)[1] for name, (recipe, rows) in found.items()}


def shown(play: Play, name: str) -> str:
    """Return what `minshu model show` says of a released model."""
    folder = play.result / "releases" / name
    return command("minshu", "model", "show", folder, "--home", play.collaboration.analyst, "--lang", "en")


def judge(release: "Release", cells: Sequence[Cells]) -> Judged:
    """Score everybody in some cells with a released model."""
    model = release.model()
    names = [each.name.rpartition(".")[2] for each in model.schema.coded]
    schema, rows = rows_of(cells, names)
    if [each.width for each in model.schema.coded] != [each.width for each in schema.coded]:
        raise Failed("the model sees other columns than the question names")
    scores = model.log_odds(rows)
    found = area(scores, rows)
    return Judged(model, scores, rows, found, spread(found, rows))


def of_members(judged: Judged, spec: JobSpec, city: Path) -> Judged:
    """Return the same with figures of who was held out, which the job alone decides: see `TrainingRows`.

    Where the job brings a public test set, nobody was held out, and the panel's people stand in for them.
    """
    parts = []
    for given in spec.inputs:
        unit = None if given.role == "aggregator" else Unit("resident-id", 3)
        builder = job_type(spec.job_type).builder(spec, given.role, unit)
        path = city / "registers" / given.organisation.partition(".")[0] / f"{given.dataset}.parquet"
        table = pq.read_table(path).combine_chunks()
        slots = {slot: table[column].combine_chunks() for slot, column in given.columns.items()}
        if unit is not None:
            slots[UNIT] = table["resident_id"].combine_chunks()
        builder.add(slots)
        prepared = builder.finish()
        assert isinstance(prepared, TrainingRows)
        parts.append(prepared.columns())
    names = [each.name for each in judged.model.schema.coded]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    codes = np.column_stack([columns[f"f:{name}"] for name in names])
    rows = Rows(codes, np.zeros((len(codes), 0), np.uint16), columns["label"])
    held, scores = columns["held"] == 1, judged.model.log_odds(rows)
    return replace(
        judged,
        held=area(scores[held], rows.take(held)),
        membership=by_loss(scores, rows, ~held).auc,
    )


def check(name: str, judged: Judged, best: Central) -> None:
    """Hold a released model against the truth.

    (1) It was trained on the lists' people. (2) It tells the vaccinated nearly as well as one of all rows
    without noise: what noise takes falls with the number of rows. (3) What its card says of that is so, but
    for noise, bins and chance.

    Raises:
        Failed: it does not hold.
    """
    card = judged.model.card
    # (1)
    if card.privacy.notion == "none" or card.metrics is None:
        raise Failed(f"the model of {name} was trained without noise, or was not measured")
    # (2)
    short = best.auc - judged.auc
    if short > LOSS + LOSS_ROWS / best.rows + 4 * best.spread:
        raise Failed(
            f"the model of {name} has an AUC that is {short:.3f} below that of all rows in one place"
        )
    # (3)
    said = card.metrics
    if said.auc is None or said.auc_low is None or said.auc_high is None:
        return
    noise = max(said.auc_high - said.auc, said.auc - said.auc_low)
    # Where it is known who was held out, noise and bins are all there is between the card and the truth.
    chance = 5 * sqrt(HOLDOUT) * judged.spread
    truth, beside = (judged.auc, chance) if judged.held is None else (judged.held, 0.0)
    if abs(said.auc - truth) > 3 * noise + beside:
        raise Failed(f"the card of {name} says {said.auc:.3f}, the truth is {truth:.3f}")
    if judged.membership is not None and abs(judged.membership - 0.5) > chance:
        raise Failed(f"the model of {name} tells who was trained on: an AUC of {judged.membership:.3f}")


LOSS: Final = 0.01
LOSS_ROWS: Final = 250
"""What noise may take from an AUC: so much, and so much over the number of rows."""


def measured(card: Card) -> dict[str, float | str | None]:
    """Return what a card says of how good its model is."""
    found = card.metrics
    if found is None:
        return {}
    return {
        "on": found.on,
        "auc": found.auc,
        "low": found.auc_low,
        "high": found.auc_high,
        "calibration_error": found.calibration_error,
        "membership_auc": found.membership_auc,
        "epsilon": card.privacy.epsilon,
    }


def uptake(judged: Judged) -> dict[str, list[tuple[float, float, int]]]:
    """Return, by kind and age, what the model says on average, the part that is vaccinated, and how many."""
    names = [each.name.rpartition(".")[2] for each in judged.model.schema.coded]
    age, kind = (judged.rows.codes[:, names.index(name)] for name in ("age", "kind"))
    chances = sigmoid(judged.scores)
    found: dict[str, list[tuple[float, float, int]]] = {}
    for at, word in enumerate(KINDS):
        found[word] = []
        for band in range(len(AGES)):
            some = (kind == at) & (age == band)
            mean, part = float(chances[some].mean()), float(judged.rows.labels[some].mean())
            found[word].append((mean, part, int(some.sum())))
    return found


def calibration(judged: Judged) -> list[tuple[float, float]]:
    """Return, for ten equal parts of the people by score, the mean chance and the part that is vaccinated."""
    order = np.argsort(judged.scores, kind="stable")
    chances, labels = sigmoid(judged.scores)[order], judged.rows.labels[order]
    return [
        (float(some.mean()), float(found.mean()))
        for some, found in zip(np.array_split(chances, 10), np.array_split(labels, 10), strict=True)
    ]


def abilities(found: Mapping[str, Judged], best: Mapping[str, Central]) -> list[Ability]:
    """Return released models beside what rows in one place would give."""
    rows = (
        ("逻辑回归, 三区, 交付", "three districts, logistic", found["districts"], True),
        ("同上, 集中且不加噪", "the same in one place, no noise", best["districts"], False),
        ("提升树, 三区, 交付", "three districts, boosted trees", found["boost"], True),
        ("同上, 集中且不加噪", "the same in one place, no noise", best["boost"], False),
        ("公安 × 卫健 × 医保, 交付", "three departments joined", found["joined"], True),
        ("同上, 集中且不加噪", "the same in one place, no noise", best["joined"], False),
        ("仅卫健, 不加噪", "health alone, no noise", best["alone"], False),
    )
    return [
        Ability(zh, en, one.auc, one.auc - 2 * one.spread, one.auc + 2 * one.spread, released)
        for zh, en, one, released in rows
    ]


def course(play: Play, name: str, model: "Model") -> Course:
    """Return how a run went, and what of ε was spent after each round."""
    curves = model.curves
    measured_at = curves.get("round", ())
    loss, auc_found = (list(zip(measured_at, curves.get(each, ()), strict=False)) for each in ("loss", "auc"))
    spec = suppose_job((play.jobs / f"{name}.toml").read_bytes(), datetime.now(UTC))
    said = model.card.metrics
    within = None
    if said is not None and said.auc_low is not None and said.auc_high is not None:
        within = (said.auc_low, said.auc_high)
    return Course(loss, auc_found, spent(spec, model.card), within)


def spent(spec: JobSpec, card: Card) -> list[tuple[float, float]]:
    """Return what ε a run had spent after each of its rounds, evaluations up to then included."""
    held = card.training.rounds[TRAIN]
    if spec.job_type == "train/1":
        params = Params.of(spec)
        every = params.evaluate.every if params.turns.get(EVALUATE) else held + 1
        costs = [
            params.cost_of({TRAIN: number, **({EVALUATE: number // every} if number >= every else {})})
            for number in range(1, held + 1)
        ]
    else:
        # One shot, charged as a whole; its rounds share the noise evenly.
        costs = [Cost.zcdp(Fraction(card.privacy.rho) * number / held) for number in range(1, held + 1)]
    return [
        (float(number), float(cost.amount("approximate-dp", DELTA) or 0))
        for number, cost in enumerate(costs, start=1)
    ]


_STEPS: Final = Steps(SCORE_BITS, Fraction("0.6"), Fraction("0.1"))


def unlikely(model: "Model") -> tuple[dict[str, list[int]], int]:
    """Return the log-odds of not being vaccinated as whole numbers of 2^-SCORE_BITS: weights, and a constant.

    What health would know is not known of whom it has no record of: see UNKNOWN.
    """
    whole = np.rint(-model.arrays["weights"] / (1 << WEIGHT_BITS - SCORE_BITS)).astype(np.int64).tolist()
    found: dict[str, list[int]] = {}
    constant = int(whole[-1])
    for feature, begin in zip(model.schema.coded, model.schema.offsets.tolist(), strict=False):
        name = feature.name.rpartition(".")[2]
        if name in UNKNOWN:
            constant += whole[begin + UNKNOWN[name]]
        else:
            found[name] = whole[begin : begin + feature.width]
    return found, constant


def weighed(text: str, weights: Mapping[str, Sequence[int]], constant: int) -> str:
    """Return the job of scores with a model's weights in the places of those that stand there."""
    for name, each in weights.items():
        text, count = re.subn(rf'(slot = "{name}",.* weights = )\[.*?\]', rf"\g<1>{list(each)}", text)
        assert count == 1
    return re.sub(r"(?m)constant = -?\d+", f"constant = {constant}", text)


def strangers(
    city: Path, weights: Mapping[str, Sequence[int]], constant: int
) -> tuple[npt.NDArray[np.bytes_], Ints, npt.NDArray[np.bool_]]:
    """Return who is old, known to police and medical insurance, and not to health: key, score, vaccinated."""
    police, health, insured = (_register(city, name) for name in JOINED_LISTS)
    keys = np.intersect1d(police.keys, insured.keys)
    keys = np.setdiff1d(keys, health.keys)
    age = police.column("age")[np.searchsorted(police.keys, keys)]
    keys = keys[age >= REMIND]
    scores = np.full(len(keys), constant, np.int64)
    for name, each in weights.items():
        owner = insured if name == "scheme" else police
        values = owner.column(name)[np.searchsorted(owner.keys, keys)]
        values = values.astype(str) if isinstance(FEATURES[name], Coded) else values
        scores += np.array(each)[FEATURES[name].encode(values)]
    truth = pq.read_table(city / "truth" / "vaccination.parquet", columns=["resident_id", "vaccinated"])
    vaccinated = dict(zip(*(truth[name].to_pylist() for name in truth.column_names), strict=True))
    plain = np.array([key.removeprefix(KEY_TYPE) for key in keys.tolist()], dtype="S18")
    return plain, scores, np.array([vaccinated[key.decode()] for key in plain.tolist()])


@dataclass(frozen=True, slots=True)
class _Register:
    """One list, a row for each of its people.

    Args:
        keys: ascending, typed.
        rows: the first row of each.
        table: all rows.
    """

    keys: npt.NDArray[np.bytes_]
    rows: Ints
    table: pa.Table

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return each person's value. The columns of these lists are the same in all rows of a person."""
        found: npt.NDArray[Any] = np.array(self.table[name].to_pylist())[self.rows]
        return found


def _register(city: Path, name: str) -> _Register:
    table = pq.read_table(city / "registers" / f"{name}.parquet")
    found = normalise(table["resident_id"], "resident-id", as_of=SNAPSHOT, areas=demo_area_table())
    keys, first = np.unique(found.keys, return_index=True)
    return _Register(keys, found.rows[first], table)
