"""A released model looked at again: whether its card tells of the run that the journal tells of.

How good a model is nobody can work out again without the rows. All else on a card is in the job, in what the
participants admitted, or follows from both. Of a model that is split among departments there is no card:
only how good it is, and that in figures of enough people.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, Final

from audit.disclosure import ARROW, MODEL, NOTE, Problem, Released, cell_text, read_arrow, together
from audit.disclosure_joined import against
from audit.findings import Check
from protocols.dp.cost import Cost
from protocols.encoding import sha256_digest
from protocols.envelope import RELEASE, decode_envelope, key_id, verify
from protocols.errors import InputError, MinshuError
from protocols.jobs import job_type
from protocols.jobs.job_type import InRounds, OutputClass
from protocols.jobs.sources import minimum_of
from protocols.jobs.train_joined import split_facts
from protocols.training.card import (
    Card,
    MakesModels,
    Training,
    datasets,
    differences,
    fewest_rows,
    privacy,
    training,
)
from protocols.training.card_text import limits
from protocols.training.joined.params import Params
from protocols.training.model import facts_of, files_of, read_model
from protocols.wire import Constraints, JobSpec, ReleaseNote, Roster

_CALLED: Final = {"most_rounds": "rounds", "sources": "sources"}
"""What numbers of a run are called in findings, if not `training`."""

_SHARES: Final = ("value", "low", "high")
_CALIBRATION: Final = ("calibration-said", "calibration-found")

_FAR: Final = 10.0
"""So many standard deviations noise does not go."""


def examine_model(
    columns: Mapping[str, Sequence[Any]],
    facts: Mapping[str, Any] | None,
    found: Released,
    beside: Mapping[str, bytes],
) -> list[Problem]:
    """Return what is wrong with a model's release.

    (1) It is a model with its own card and all its caveats, and the files beside it are those in it. (2) What
    is stated beside it is what the card makes it. (3) The card is of this job: what it was for, what it looks
    at, whose data.
    (4) Datasets are as they were admitted. (5) The run is that of the job; rounds are no more than were
    reserved, or just as many where all of them are one answer; and they cost what the job pays. (6) It was
    measured on what the job says.

    Args:
        columns: as the release has them.
        facts: what is stated beside the files; None where that is not at hand.
        found: the release, with its job.
        beside: the files of the release as its recipient keeps them, those that were handed in.
    """
    # (1)
    try:
        files = files_of(columns)
        card = read_model(files).card
    except MinshuError as error:
        return [Problem(error.code, error.message)]
    problems = [
        Problem("wrong-content", f"{name} is not the file of the release")
        for name, data in beside.items()
        if files.get(name) != data
    ]
    # (2)
    if facts is not None and dict(facts) != facts_of(card, files):
        problems.append(Problem("wrong-facts", "what is stated beside it is not what its card says"))
    # (3) (4) (5) (6)
    return problems + _against_journal(card, found)


def made_elsewhere(
    opened: Mapping[str, bytes], releases: Container[str], roster: Roster | None, check: Check
) -> Iterator[tuple[str, ReleaseNote, Card]]:
    """Yield the models that were handed in and that another node of this collaboration has made.

    Args:
        opened: file name → bytes.
        releases: digests of the contents that this log's node has released.
        roster: in force at the end of the log; None: no signature can be checked, so nothing is yielded.
        check: takes what is wrong with a model whose note holds.
    """
    keys = {} if roster is None else {key_id(node.identity_key): node for node in roster.nodes}
    for name, files in together(opened).items():
        if not {ARROW, NOTE} <= files.keys() or sha256_digest(files[ARROW]) in releases:
            continue
        try:
            envelope = decode_envelope(files[NOTE])
            signers = verify(envelope, RELEASE, {key: node.identity_key for key, node in keys.items()})
            note = ReleaseNote.decode(envelope.payload)
        except MinshuError:
            continue  # of another collaboration, or of an earlier key: nothing that this log can speak to
        if (note.output_class, note.name) != (OutputClass.MODEL, MODEL):
            continue
        if {keys[each].name for each in signers} != {note.node}:
            continue
        if note.content_sha256 != sha256_digest(files[ARROW]):
            check.found("wrong-content", name + ARROW, "it is not the content that its note names")
            continue
        try:
            yield name, note, read_model(files_of(read_arrow(files[ARROW])[0])).card
        except MinshuError as error:
            check.found(error.code, name, error.message)


def examine_part(card: Card, found: Released, recorded: Mapping[str, int]) -> list[Problem]:
    """Return where the card of a model differs from the journal of a department whose rows went into it.

    (1) As for who made it: the job, the datasets as admitted, what the run costs. (2) The department recorded
    no more rounds than the card tells of: each of them was one that the model could be made of.

    Args:
        card: of the model.
        found: what this log knows of the job.
        recorded: rounds that this department took part in, by turn, over all attempts.
    """
    # (1)
    problems = _against_journal(card, found)
    # (2)
    if any(count > card.training.rounds.get(turn, 0) for turn, count in recorded.items()):
        problems.append(
            Problem("wrong-card", "its card tells of fewer rounds than this department took part in")
        )
    return problems


def _against_journal(card: Card, found: Released) -> list[Problem]:
    if found.spec is None:
        return []
    try:
        wrong = _wrong(card, found.spec, found)
    except MinshuError as error:
        return [Problem(error.code, error.message)]
    return [
        Problem("wrong-card", f"its card's {name} is not what the journal says") for name in sorted(wrong)
    ]


def _wrong(card: Card, spec: JobSpec, found: Released) -> set[str]:
    kind = job_type(spec.job_type)
    # (3)
    wrong = {*differences(card, spec)}
    # (4)
    admitted = all(each.role in found.inputs for each in spec.inputs)
    if not admitted or card.datasets != datasets(spec, found.inputs):
        wrong.add("datasets")
    # (5)
    if not isinstance(kind, MakesModels):
        return wrong | {"job_type"}
    if admitted:
        plan, run = kind.run_plan(spec, found.inputs, found.constraints), card.training
        expected = training(plan, run.rounds)
        wrong |= {
            _CALLED.get(name, "training")
            for name in Training.__struct_fields__
            if getattr(run, name) != getattr(expected, name)
        }
        most = plan.most_rounds
        if any(count > most.get(turn, 0) for turn, count in run.rounds.items()):
            wrong.add("rounds")
        # A job that is not in rounds answers once, and in full.
        if not isinstance(kind, InRounds) and run.rounds != most:
            wrong.add("rounds")
        if card.privacy != privacy(spec, plan.cost, _spent(card, spec, kind, found.constraints)):
            wrong.add("privacy")
    # (6)
    if card.limits != limits(card):
        wrong.add("limits")
    if card.metrics is not None and card.metrics.on != _measured_on(spec):
        wrong.add("metrics")
    return wrong


def _spent(card: Card, spec: JobSpec, kind: object, limits: Constraints) -> Cost | None:
    """Return what the rounds held cost a person: every department pays for them from its own budget."""
    if not isinstance(kind, InRounds):
        return None
    source = next(each.role for each in spec.inputs if each.role.startswith("source-"))
    return kind.cost_of(spec, source, limits, card.training.rounds)


def _measured_on(spec: JobSpec) -> str:
    if "test" in spec.params:
        return "public test set"
    return "held-out" if spec.params.get("noise") == "none" else "held-out, noisy"


# -- figures of a split model --------------------------------------------------------------------------------


def examine_figures(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any] | None, spec: JobSpec, found: Released
) -> list[Problem]:
    """Return what is wrong with the figures of a split model of `train-joined/1`.

    (1) They are an AUC, perhaps, and a calibration, bin by bin, of shares to six digits. (2) What is stated
    beside them is what the job makes it, and no code is withheld where noise hides how many have it. (3)
    Every bin is of enough people of those that could be held out. (4) The AUC is within its interval, which
    under noise is one; chances ascend where they are exact.

    Args:
        columns: as the release has them.
        facts: what is stated beside them; None for a CSV file alone.
        spec: the job that asked for it.
        found: the release, with what was admitted.
    """
    try:
        params = Params.of(spec)
        limits = found.constraints
        counts = [found.keys[owner] for owner in params.lists.owners]
        plan = params.plan(counts, bytes(32), minimum_of(limits))
        # (1)
        area, said = _figures(columns)
    except MinshuError as error:
        return [Problem(error.code, error.message)]
    exact = plan.noises is None
    # (2)
    stated = None if facts is None else facts.get("withheld_codes")
    most = plan.size - 1 if exact else 0
    withheld = stated if type(stated) is int and 0 <= stated <= most else 0
    problems = against(facts, split_facts(params, withheld))
    # (3)
    noise = None if plan.noises is None else plan.noises.histogram
    variance = 0.0 if noise is None else noise.variance
    rows = plan.held_rows() + _FAR * sqrt(variance * 2 * plan.bins)
    bins = min(plan.bins, int(rows / (2 * fewest_rows(variance, plan.bins)))) if plan.holdout else 0
    if len(said) > bins or (area is not None and not bins):
        problems.append(Problem("small-cell", "a figure is of fewer people than one may be published of"))
    # (4)
    if area is not None:
        value, low, high = area
        if not low <= value <= high or (not exact and low == high and 0 < value < 1):
            problems.append(Problem("wrong-interval", "the AUC's interval is none of its noise"))
    if exact and any(one > other for one, other in pairwise(said)):
        problems.append(Problem("bad-table", "the chances of its calibration do not ascend"))
    return problems


def _figures(
    columns: Mapping[str, Sequence[Any]],
) -> tuple[tuple[float, ...] | None, list[float]]:
    """Return the AUC with the ends of its interval, and of each bin of the calibration what the model says.

    Raises:
        InputError: `bad-table`.
    """
    wrong = InputError("the figures are no AUC and calibration of a split model", code="bad-table")
    if columns.keys() != {"measure", "bin", *_SHARES}:
        raise wrong
    try:
        names = [
            (cell_text(name), int(cell_text(at)))
            for name, at in zip(columns["measure"], columns["bin"], strict=True)
        ]
        shares = [tuple(map(float, each)) for each in zip(*(columns[each] for each in _SHARES), strict=True)]
    except (TypeError, ValueError):
        raise wrong from None
    if any(not 0 <= each <= 1 or each != round(each, 6) for numbers in shares for each in numbers):
        raise wrong
    area = None
    if names and names[0] == ("auc", 0):
        area, names, shares = shares[0], names[1:], shares[1:]
    places = [(measure, place) for place in range(len(names) // 2) for measure in _CALIBRATION]
    if len(names) != len(shares) or names != places or any(len({*numbers}) > 1 for numbers in shares):
        raise wrong
    return area, [value for value, *_ in shares[::2]]
