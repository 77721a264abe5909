"""Training over secure sums, played in memory: equality, masks, refusals, absence, resuming."""

import json
import struct
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import combinations, pairwise
from secrets import token_bytes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_case import MemoryShelf
from training_case import (
    AGGREGATOR,
    JOB,
    SCHEMA,
    Contributor,
    Down,
    Job,
    Meddling,
    arrays_of,
    dying,
    parts,
    people,
    read,
    said,
    write,
    written,
)

from protocols.dp.mechanism import Budget
from protocols.errors import DecodeError, InputError, MinshuError, ProtocolAborted, StateConflict
from protocols.ids import Role
from protocols.party import Incoming, Waiting
from protocols.sums.masks import Masks
from protocols.training import lasting, parties
from protocols.training.boost import Boost
from protocols.training.lasting import ShelvedSteps, forget
from protocols.training.logistic import Logistic
from protocols.training.mlp import Mlp
from protocols.training.parties import (
    CHECKS,
    HELLO,
    MASKED,
    MAX_FAILURES,
    READY,
    SEED,
    SET,
    TASK,
    Hello,
    Receipt,
    Task,
    Trainer,
    absent,
    decode_ready,
    stream,
)
from protocols.training.plan import MAX_ATTEMPTS, MAX_NUMBER, MAX_WORDS, Shape
from protocols.training.run import run
from protocols.training.schema import Coded, Rows, Schema
from protocols.training.scores import HELD_OUT, TRAINED
from protocols.training.work import Answer, Begin, Handle, RecipeFailed, Update, WorkerGone

LOGISTIC = Logistic(SCHEMA, rounds=6, clip=1.5)
RHO = Fraction("0.5")
FIRST, SECOND, THIRD = (Role(f"source-{number}") for number in (1, 2, 3))


def is_a(message, kind: int) -> bool:
    return message.round >= 0x3010 and message.round % 16 == kind


def job(recipe=LOGISTIC, sources=3, count=90, **more) -> Job:
    return Job(recipe, parts(people(count), sources), **more)


def refused(case: Job, code: str) -> MinshuError:
    with pytest.raises(MinshuError) as caught:
        case.run()
    assert caught.value.code == code
    return caught.value


# -- what comes of it


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(LOGISTIC, id="logistic"),
        pytest.param(Mlp(SCHEMA, hidden=3, rounds=3, clip=0.3), id="mlp"),
        pytest.param(Boost(SCHEMA, trees=2, depth=3, fewest=5), id="greedy"),
        pytest.param(Boost(SCHEMA, mode="random", trees=4, depth=3, batch=2), id="random"),
    ],
)
@pytest.mark.parametrize("sources", [3, 5])
def test_without_noise_it_is_centralised_training_to_the_last_bit(recipe, sources):
    rows = people()
    alone = recipe.arrays(run(recipe, [rows], token_bytes).state)
    done, held = Job(recipe, parts(rows, sources)).run()
    together = arrays_of(read(done.model))
    assert together.keys() == alone.keys()
    for name, array in alone.items():
        assert np.array_equal(array, together[name]), name
    assert held.rounds == {"train": recipe.rounds, "evaluate": 0}


def test_every_round_is_recorded_once_at_every_member_and_numbers_only_rise():
    case = job(rho=RHO, every=2)
    _, held = case.run()
    assert held.rounds == {"train": 6, "evaluate": 3}
    for source in case.sources:
        assert case.used[source] == {"train": 6, "evaluate": 3}
        assert case.numbers[source] == sorted(set(case.numbers[source]))
    sent = [m for m in case.sent if m.to == AGGREGATOR and is_a(m, MASKED)]
    assert {m.round for m in sent} == {stream(n, MASKED) for n in case.numbers[FIRST]}


def test_totals_are_the_exact_sums_and_noise_of_the_variance_that_was_asked_for():
    recipe = replace(LOGISTIC, rounds=80, step=1e-9, momentum=0.0)
    case = job(recipe, rho=RHO, honest=2)
    exact = run(recipe, [people()], token_bytes).state.velocity
    answers = []
    case.faults[AGGREGATOR] = answers.append
    case.run()
    found = [np.frombuffer(answer.total, "<f8") for answer in answers if isinstance(answer, Answer)]
    layout = recipe.layout(recipe.start())
    words = layout.vector
    noise = case.plan().noise("train", Shape(words.size, layout.largest, words.l1, words.l2_squared))
    errors = np.array(found) - exact * len(people()) * (1 << 16)
    # 80 × 12 values: their deviation is within 12 % of the noise's own, all but once in a million runs.
    assert errors.std() == pytest.approx(noise.variance**0.5, rel=0.12)
    assert noise.variance == pytest.approx(1.5 * recipe.clip**2 * 2**32 / (2 * float(RHO)), rel=1e-6)


def test_rows_held_out_are_counted_apart_and_never_trained_on():
    case = job(holdout=5, every=6)
    answers = []
    case.faults[AGGREGATOR] = answers.append
    done, _ = case.run()
    trained = [rows.take(~case.held(rows)) for rows in case.nodes]
    state = case.state(done)
    rows = replace(LOGISTIC, rounds=6)
    expected = LOGISTIC.start()
    for _ in range(rows.rounds):
        total = sum(LOGISTIC.contribute(expected, node) for node in trained)
        expected = LOGISTIC.advance(expected, total.astype(float), 90 - 90 // 5)
    assert np.array_equal(state.weights, expected.weights)
    tables = case.bins.tables(np.frombuffer(answers[-1].total, "<f8"))
    assert tables[TRAINED].sum() == sum(map(len, trained))
    assert tables[HELD_OUT].sum() == 90 - sum(map(len, trained))
    assert answers[-1].rows == 90


def test_the_leads_worker_stops_early_and_no_round_more_is_spent():
    case = job(count=900, rho=RHO, every=2, holdout=2, enough=0.0)
    _, held = case.run()
    assert held.rounds == {"train": 2, "evaluate": 1}
    assert case.used[FIRST] == {"train": 2, "evaluate": 1}


@pytest.mark.parametrize(
    ("said", "rho", "shown"), [(True, RHO, True), (False, RHO, False), (True, None, False)]
)
def test_figures_are_shown_while_it_runs_only_where_the_plan_says_so_and_sums_are_noisy(said, rho, shown):
    case = job(count=900, rho=rho, every=2, holdout=2, shown=said)
    seen = []

    class Watching(Meddling):
        def receive(self, message):
            step = super().receive(message)
            if isinstance(step, Waiting):
                seen.append(dict(step.progress.figures))
            return step

    case.wrap[AGGREGATOR] = Watching
    case.run()
    assert any("auc" in figures for figures in seen) == shown
    spent = [float(figures["epsilon"]) for figures in seen if "epsilon" in figures]
    assert bool(spent) == shown
    assert spent == sorted(spent)
    if not shown:
        assert not any(seen)


def test_models_longer_than_a_message_go_in_pieces():
    schema = Schema(tuple(Coded(f"c{n}", tuple(map(str, range(4000)))) for n in range(36)))
    recipe = Logistic(schema, rounds=1)
    nodes = [people(10, seed, schema) for seed in range(3)]
    done, _ = Job(recipe, nodes).run()
    whole = Rows(
        *(np.concatenate([getattr(n, name) for n in nodes]) for name in ("codes", "amounts", "labels"))
    )
    assert np.array_equal(
        arrays_of(read(done.model))["weights"], run(recipe, [whole], token_bytes).state.weights
    )


# -- what the frames hold


def words_sent(case: Job) -> np.ndarray:
    bodies = [m.body for m in case.sent if m.to == AGGREGATOR and is_a(m, MASKED)]
    return np.frombuffer(b"".join(bodies), "<u8")


def spread(words: np.ndarray) -> float:
    """Return the chi-square of the topmost bytes against uniform ones, 255 degrees of freedom."""
    counts = np.bincount((words >> np.uint64(56)).astype(int), minlength=256)
    expected = len(words) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_masked_words_are_uniform_and_would_not_be_without_masks(monkeypatch):
    case = job(replace(LOGISTIC, rounds=100), rho=RHO)
    case.run()
    # Above 371 once in a million runs.
    assert spread(words_sent(case)) < 371
    monkeypatch.setattr(Masks, "add_to", lambda self, words: None)
    bare = job(replace(LOGISTIC, rounds=100), rho=RHO)
    bare.run()
    assert spread(words_sent(bare)) > 1000


def seen_in_frames(case: Job) -> bool:
    """Whether any frame holds a piece of a source's rows or of what it would add."""
    start = LOGISTIC.start()
    secrets = [rows.codes.tobytes()[at : at + 24] for rows in case.nodes for at in range(0, 96, 24)]
    secrets += [rows.labels.tobytes()[:24] for rows in case.nodes]
    secrets += [LOGISTIC.contribute(start, rows).tobytes()[:24] for rows in case.nodes]
    assert all(len(secret) == 24 and any(secret) for secret in secrets)
    return any(secret in m.body for m in case.sent for secret in secrets)


def test_nothing_of_rows_or_updates_is_in_any_frame_and_without_masks_it_would_be(monkeypatch):
    nodes = [people(40, seed) for seed in range(3)]
    case = Job(LOGISTIC, nodes)
    case.run()
    assert not seen_in_frames(case)
    monkeypatch.setattr(Masks, "add_to", lambda self, words: None)
    bare = Job(LOGISTIC, nodes)
    bare.run()
    assert seen_in_frames(bare)


def guessed(words: np.ndarray) -> list[int]:
    """Return the codes of the one row that a gradient is of: those whose words are largest."""
    offsets = SCHEMA.offsets
    signed = np.abs(words.view(np.int64).astype(float))
    return [int(np.argmax(signed[a:b])) for a, b in pairwise(offsets)]


def hits(runs: int = 60) -> tuple[int, float]:
    """Return how many codes of single rows a reader of one source's frames finds, and how many by chance."""
    found, expected = 0, 0.0
    for seed in range(runs):
        case = Job(replace(LOGISTIC, rounds=1), [people(1, 1000 + 3 * seed + n) for n in range(3)], seed=seed)
        case.run()
        (body,) = [m.body for m in case.sent if m.sender == FIRST and is_a(m, MASKED)]
        words = np.frombuffer(body, "<u8")[CHECKS:]
        found += sum(np.array(guessed(words)) == case.nodes[0].codes[0])
        expected += sum(1 / width for width in SCHEMA.widths)
    return found, expected


def test_inverting_a_masked_gradient_is_guessing_and_an_unmasked_one_tells_the_row(monkeypatch):
    found, expected = hits()
    # 180 guesses of chance 1/3 or 1/4, deviation 6.0: beyond 5 of them once in a million runs.
    assert abs(found - expected) < 30
    monkeypatch.setattr(Masks, "add_to", lambda self, words: None)
    found, _ = hits()
    assert found == 180


# -- a lead that asks for more than was agreed


def changing(change, kind=TASK, to=None):
    """Return a wrap that changes the lead's messages of a kind."""

    def out(message):
        if not is_a(message, kind) or to not in (None, message.to):
            return message
        return change(message)

    return lambda lead: Meddling(lead, out)


def in_task(change):
    """Return a change of what a task says."""

    def changed(message):
        task = Task.decode(message.body)
        said_ = read(task.message)
        change(said_)
        return replace(message, body=replace(task, message=write(said_)).encode())

    return changed


def larger_clip(message):
    message["config"]["clip"] = 100.0


def other_arrays(message):
    message["arrays"] = written({"weights": np.zeros(3)})


def other_exchange(message):
    message["exchange"] += 1


@pytest.mark.parametrize(
    ("change", "code"),
    [(larger_clip, "wrong-message"), (other_arrays, "wrong-arrays"), (other_exchange, "wrong-exchange")],
)
def test_a_lead_that_changes_what_was_agreed_is_refused_and_nothing_is_spent(change, code):
    case = job(rho=RHO, wrap={AGGREGATOR: changing(in_task(change))})
    refused(case, code)
    assert not any(case.used.values())
    assert not len(words_sent(case))


@pytest.mark.parametrize("turn", ["train.more", "evaluate", "query"])
def test_a_turn_that_the_job_does_not_have_or_the_message_is_not_is_refused(turn):
    def change(message):
        return replace(message, body=replace(Task.decode(message.body), turn=turn).encode())

    case = job(rho=RHO, wrap={AGGREGATOR: changing(change)})
    # An evaluation is in the job, but the message trains: the source's own worker says so.
    refused(case, "wrong-message")
    assert not failures(case, FIRST)
    assert not any(case.used.values())


@pytest.mark.parametrize(("rho", "quorum"), [(None, 0), (RHO, 3), (RHO, 2)])
def test_a_lead_that_asks_for_fewer_peers_is_refused_and_nothing_is_spent(rho, quorum):
    def fewer(message):
        members = int.from_bytes(message.body, "big")
        while members.bit_count() >= (quorum or 3):
            members &= members - 1 if members & 1 == 0 or members.bit_count() > 2 else members - 2
        return replace(message, body=members.to_bytes(8, "big"))

    case = job(rho=rho, quorum=quorum, wrap={AGGREGATOR: changing(fewer, SET)})
    refused(case, "too-few-peers")
    assert not len(words_sent(case))


@pytest.mark.parametrize("body", [b"", bytes(7), bytes(9), b"\xff" * 8])
def test_a_set_that_is_none_is_refused(body):
    case = job(rho=RHO, wrap={AGGREGATOR: changing(lambda message: replace(message, body=body), SET)})
    refused(case, "bad-set")


def test_a_source_that_is_left_out_sends_nothing_and_those_told_so_do_not_cancel_with_it():
    case = job(rho=RHO, sources=4, quorum=3)
    without_third = changing(lambda message: replace(message, body=(0b1011).to_bytes(8, "big")), SET)
    case.wrap[AGGREGATOR] = without_third
    with pytest.raises(ProtocolAborted):  # this lead waits for the third source, in vain
        case.run()
    assert case.used[THIRD] == {}
    senders = {m.sender for m in case.sent if is_a(m, MASKED)}
    assert senders == {FIRST, SECOND, Role("source-4")}


def test_a_round_is_never_repeated_in_a_later_attempt():
    case = job(rho=RHO)

    def die(message):
        if case.numbers[FIRST] and max(case.numbers[FIRST]) == 3:
            raise Down

    with pytest.raises(Down):
        case.run(die)
    case.shelves[AGGREGATOR].blobs.clear()

    def forgetful(message):
        if message.round != HELLO:
            return message
        whole = Hello(0, case.plan().rounds, case.plan().digest)
        return replace(message, body=whole.encode(case.plan()))

    case.wrap[AGGREGATOR] = lambda lead: Meddling(lead, into=forgetful)
    refused(case, "round-repeated")
    assert case.used[FIRST] == {"train": 3}


def test_a_round_more_than_the_job_has_is_refused():
    case = job(rho=RHO, rounds={"train": 3, "evaluate": 0})

    def generous(message):
        if message.round != HELLO:
            return message
        body = bytearray(message.body)
        body[8:12] = (3).to_bytes(4, "big")
        return replace(message, body=bytes(body))

    case.used = {source: {"train": 3} for source in case.sources}
    case.wrap[AGGREGATOR] = lambda lead: Meddling(lead, into=generous)
    refused(case, "turn-spent")


def as_asked(case: Job, digests: dict) -> None:
    """Let the lead take every receipt for one of its own message."""

    def into(message):
        if not is_a(message, READY):
            return message
        receipt = decode_ready(message.body)
        return replace(message, body=replace(receipt, message=digests["asked"]).encode())

    def out(message):
        if is_a(message, TASK):
            task = Task.decode(message.body)
            digests.setdefault("asked", said(read(task.message)))
            if message.to == SECOND:
                other = read(task.message)
                arrays = arrays_of(other["arrays"])
                arrays["weights"][0] += 1
                other["arrays"] = written(arrays)
                return replace(message, body=replace(task, message=write(other)).encode())
        return message

    case.wrap[AGGREGATOR] = lambda lead: Meddling(lead, out, into)


def usable(case: Job) -> bool:
    """Whether any set of masked vectors adds up to what a sum of updates could be."""
    vectors = [np.frombuffer(m.body, "<u8") for m in case.sent if is_a(m, MASKED)]
    assert len(vectors) >= 2
    return any(
        (np.abs(np.sum(some, axis=0, dtype=np.uint64).view(np.int64).astype(float)) < 2.0**50).sum() > 2
        for size in range(1, len(vectors) + 1)
        for some in combinations(vectors, size)
    )


def test_sources_that_are_told_different_members_give_no_sum_of_any():
    def change(message):
        told = 0b1011 if message.to == FIRST else 0b0111
        return replace(message, body=told.to_bytes(8, "big"))

    case = job(sources=4, rho=RHO, quorum=3, wrap={AGGREGATOR: changing(change, SET)})
    with pytest.raises(ProtocolAborted):
        case.run()
    assert not usable(case)


def test_sources_that_are_told_different_messages_give_no_sum_of_any():
    case = job(rho=RHO)
    as_asked(case, {})
    refused(case, "not-a-sum")
    assert not usable(case)


def test_an_honest_lead_leaves_out_a_source_that_reads_its_message_otherwise():
    def into(message):
        if message.sender != SECOND or not is_a(message, READY):
            return message
        return replace(message, body=replace(decode_ready(message.body), message=bytes(32)).encode())

    case = job(rho=RHO, quorum=2, wrap={AGGREGATOR: lambda lead: Meddling(lead, into=into)})
    answers = []
    case.faults[AGGREGATOR] = answers.append
    _, held = case.run()
    assert held.rounds["train"] == 6
    # Nor is it asked for ever: it would take that for a lead that asks and never adds up.
    why = [answer.failed for answer in answers if isinstance(answer, Answer)]
    assert why == [((3, "messages-differ"),)] * 4 + [((3, "left-out"),)] * 2
    assert SECOND not in {m.sender for m in case.sent if is_a(m, MASKED)}


def test_the_view_is_usable_where_nobody_meddles():
    case = job(replace(LOGISTIC, rounds=1), rho=RHO)
    case.run()
    assert usable(case)


# -- updates that are none


def updating(**change):
    """Return a fault of the second source's worker: its updates are changed."""

    def fault(case):
        rows = case.nodes[1]
        honest = Contributor(case.recipe, rows, case.held(rows), case.bins)

        def act(frame):
            answer = honest.step(frame)
            if not isinstance(answer, Update):
                return answer
            made = {name: value(answer) if callable(value) else value for name, value in change.items()}
            return Update(**{name: getattr(answer, name) for name in answer.__struct_fields__} | made)

        return act

    return fault


def one_word_more_than_rows_add_up_to(update):
    words = np.frombuffer(update.words, "<i8").copy()
    words[0] = 43 * update.largest
    return words.tobytes()


def least_word(update):
    return np.full(len(update.words) // 8, -(2**63), np.int64).tobytes()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (updating(words=one_word_more_than_rows_add_up_to), "update-out-of-range"),
        (updating(words=least_word), "update-out-of-range"),
        (updating(words=b""), "update-wrong-length"),
        (updating(words=b"1234567"), "update-wrong-length"),
        (updating(words=bytes(8 * 193)), "update-wrong-length"),
        (updating(l1=1), "update-out-of-range"),
        (updating(l2_squared=1), "update-out-of-range"),
        (updating(largest=0), "update-out-of-range"),
        (updating(receipt=bytes(70_000)), "update-wrong-length"),
        (updating(words=lambda update: bytes(16)), "shapes-differ"),
        (updating(largest=lambda update: update.largest + 1), "shapes-differ"),
    ],
)
def test_an_update_that_is_none_stays_at_its_node_and_costs_nothing(fault, code):
    case = job(rho=RHO)
    assert len(case.nodes[1]) < 43
    case.faults[SECOND] = fault(case)
    # Only its own node hears why, and what it is asked no more is not computed.
    if code == "shapes-differ":
        assert code in refused(case, "quorum-lost").message
        assert not failures(case, SECOND)
    else:
        assert code not in refused(case, "worker-failed-too-often").message
        assert failures(case, SECOND) == [code] * MAX_FAILURES
    assert not any(case.used.values())
    assert not len(words_sent(case))


def failures(case, role) -> list[str]:
    """Return the codes that a source keeps for its own node."""
    return bytes(case.shelves[role].get(f"{JOB.hex()}-{role}-failed") or b"").decode().split()


@pytest.mark.parametrize("code", ["update-not-finite", "worker-memory", "bad-arrays", "Kein Code"])
def test_a_worker_that_fails_makes_its_source_absent_and_nobody_else_hears_why(code):
    def fault(frame):
        if isinstance(frame, Handle):
            raise RecipeFailed("what no frame may hold", code=code)

    case = job(rho=RHO, quorum=2)
    case.faults[SECOND] = fault
    _, held = case.run()
    assert held.rounds["train"] == 6
    assert case.used[SECOND] == {}
    bodies = {m.body for m in case.sent if m.sender == SECOND and is_a(m, READY)}
    assert bodies == {b"\x00absent"}
    assert not any(word in m.body for m in case.sent for word in (b"what no frame", code.encode()))


@pytest.mark.parametrize("quorum", [2, 3])
def test_after_three_failures_in_one_job_a_worker_is_asked_nothing_more_in_any_attempt(quorum):
    case = job(rho=RHO, quorum=quorum, rounds={"train": 9, "evaluate": 0})
    asked = []

    def fault(frame):
        if isinstance(frame, Handle):
            asked.append(frame)
            raise RecipeFailed("", code="worker-memory")

    case.faults[SECOND] = fault
    for _ in range(3):
        left = [18]

        def die(_, left=left):
            left[0] -= 1
            if not left[0]:
                raise Down

        with suppress(Down, ProtocolAborted):
            case.run(die)
    assert len(asked) == MAX_FAILURES
    assert failures(case, SECOND) == ["worker-memory"] * MAX_FAILURES
    if quorum == 3:
        refused(case, "worker-failed-too-often")
    else:
        _, held = case.run()
        assert held.rounds["train"] >= 6
        assert not case.used[SECOND]
        assert failures(case, SECOND) == []  # nothing is kept at the good end
    assert len(asked) == MAX_FAILURES


def test_a_failure_that_cannot_be_remembered_is_not_told():
    case = job(rho=RHO, quorum=2)
    case.faults[SECOND] = failing({1})
    case.shelves[SECOND] = Full(0)
    refused(case, "shelf-write-failed")
    assert not [m for m in case.sent if m.sender == SECOND and is_a(m, READY)]


def asking(case, times: int, role=THIRD, first: int = 1):
    """Return what a source answers a lead that asks so often and never says who is in the sum."""
    plan = case.plan()
    trainer = Trainer(plan, role, lambda: case.start(role), token_bytes, used={}, shelf=case.shelves[role])
    trainer.start()
    for other in plan.sources[: plan.sources.index(role)]:
        trainer.receive(Incoming(other, SEED, bytes(32), last=True))
    answers = []
    for number in range(first, first + times):
        message = {"exchange": number, "turn": "train", "config": {"round": 0}}
        message["arrays"] = written(case.recipe.arrays(case.recipe.start()))
        body = Task(number, number, "train", write(message)).encode()
        step = trainer.receive(Incoming(AGGREGATOR, stream(number, TASK), body, last=True))
        answers += [sent.body for sent in step.outgoing]
    return answers


def test_questions_of_which_no_sum_is_made_are_answered_only_as_often_as_an_honest_lead_asks():
    case = job(rho=RHO)
    assert all(body[0] == 1 for body in asking(case, 4))
    with pytest.raises(ProtocolAborted) as caught:
        asking(case, 5)
    assert caught.value.code == "asked-too-often"


def test_a_lead_may_ask_as_often_as_it_does_when_others_are_absent():
    # Three times two of four are absent, then one: the second source has answered four times for one sum.
    case = job(rho=RHO, sources=4, quorum=3)
    tries = iter(range(1, 5))

    def third_time(frame):
        if isinstance(frame, Handle) and frame.exchange == 2 and next(tries) == 3:
            raise RecipeFailed("")

    case.faults |= {FIRST: failing({2}, times=2), THIRD: failing({2}, times=3), Role("source-4"): third_time}
    _, held = case.run()
    assert held.rounds["train"] == 6
    assert case.numbers[SECOND] == [1, 5, 6, 7, 8, 9]
    assert case.used[THIRD] == {"train": 1}


def test_gradients_that_explode_end_the_run_with_a_code():
    # A source that is dishonest adds to the lead's sum whatever it likes, but not beyond what rows add up to.
    case = job(rho=RHO)
    original = parties.Trainer._masked

    def exploding(trainer, pending, members):
        if trainer._role == SECOND:
            pending.words = pending.words + (1 << 55)
        return original(trainer, pending, members)

    parties.Trainer._masked = exploding
    try:
        refused(case, "total-out-of-range")
    finally:
        parties.Trainer._masked = original


def test_a_lead_whose_numbers_are_none_ends_with_its_code():
    class Exploding(Logistic):
        def advance(self, state, total, rows):
            return super().advance(state, total * np.inf, rows)

    refused(job(Exploding(SCHEMA, rounds=2), rho=RHO), "bad-total")


# -- who does not fit


def test_nodes_with_other_features_settings_or_noise_do_not_train_together():
    case = job(rho=RHO, settings={SECOND: b'{"recipe":"other"}'})
    refused(case, "plans-differ")
    assert not [m for m in case.sent if is_a(m, TASK)]


def changes():
    yield "settings", {"settings": b"{}"}
    yield "recipe", {"recipe": "logistic"}
    yield "rounds", {"rounds": {"train": 7, "evaluate": 6}}
    yield "budget", {"budgets": {"train": Budget("zcdp", RHO / 2), "evaluate": Budget("zcdp", RHO)}}
    yield "quorum", {"quorum": 2}
    yield "honest", {"honest": 2}
    yield "persons", {"persons_in": 2}
    yield "holdout", {"holdout": 7}
    yield "attempt", {"ctx": bytes(32)}
    yield "job", {"job": bytes(32)}
    yield "rows", {"most_rows": {FIRST: 1000, SECOND: 50, THIRD: 50}}
    yield "sources", {"sources": (SECOND, FIRST, THIRD)}


@pytest.mark.parametrize("change", [pytest.param(each, id=name) for name, each in changes()])
def test_whatever_is_agreed_on_is_in_the_digest_and_in_every_mask(change):
    plan = job(rho=RHO).plan()
    other = replace(plan, **change)
    shape = Shape(9, 1, 9, 9)
    assert plan.digest != other.digest
    assert plan.label(1, plan.sources, "train", bytes(32), shape) != other.label(
        1, plan.sources, "train", bytes(32), shape
    )


def test_digest_label_and_bodies_are_as_the_spec_says():
    plan = job(rho=RHO).plan()
    shape = Shape(12, 3, 20, 49)
    said_of = {
        "sources": ["source-1", "source-2", "source-3"],
        "aggregator": "aggregator",
        "recipe": "fake",
        "settings": sha256(b'{"recipe":"fake"}').hexdigest(),
        "turns": {"evaluate": ["6", "1/2"], "train": ["6", "1/2"]},
        "quorum": 3,
        "honest": 1,
        "persons_in": 1,
        "rows": [[len(node), len(node)] for node in parts(people())],
        "holdout": 0,
    }
    body = json.dumps(said_of, sort_keys=True, separators=(",", ":")).encode()
    digest = sha256(b"minshu/train-ready/1" + plan.job + plan.ctx + body).digest()
    assert plan.digest == digest
    shaped = struct.pack(">IQQQQ", 12, 3, 20, 0, 49)
    told = struct.pack(">Q", 0b101) + b"\x05train" + b"m" * 32 + shaped + digest
    assert plan.label(9, (FIRST, THIRD), "train", b"m" * 32, shape) == (
        b"minshu/train-mask/1" + struct.pack(">I", 9) + sha256(told).digest()
    )
    assert Receipt(b"m" * 32, shape, b"r").encode() == b"\x01" + b"m" * 32 + shaped + b"r"
    assert Task(9, 4, "train", b"m").encode() == struct.pack(">II", 9, 4) + b"\x05train" + b"m"
    assert Hello(9, {"train": 5, "evaluate": 2}, digest).encode(plan) == struct.pack(">III", 9, 2, 5) + digest
    assert [stream(1, kind) for kind in (TASK, READY, SET, MASKED)] == [0x3010, 0x3011, 0x3012, 0x3013]


def test_every_attempt_of_a_job_begins_alike_and_a_source_has_its_deadline():
    case = job(rho=RHO)
    first = replace(case.plan(), deadline_s=30)
    case.attempt = 2
    later = replace(case.plan(), deadline_s=30)
    assert first.digest != later.digest
    for role in case.roles:
        assert first.begin(role) == later.begin(role)
        assert first.begin(role).deadline_s == (0 if role == AGGREGATOR else 30)
    assert replace(first, job=bytes(32)).begin(FIRST).seed != first.begin(FIRST).seed


def test_masks_are_of_one_round_set_turn_message_and_shape():
    plan, shape = job(rho=RHO).plan(), Shape(9, 2, 9, 9)
    labels = {
        plan.label(1, plan.sources, "train", bytes(32), shape),
        plan.label(2, plan.sources, "train", bytes(32), shape),
        plan.label(1, plan.sources[:2], "train", bytes(32), shape),
        plan.label(1, plan.sources, "evaluate", bytes(32), shape),
        plan.label(1, plan.sources, "train", bytes(31) + b"1", shape),
        *(
            plan.label(1, plan.sources, "train", bytes(32), replace(shape, **{name: 3}))
            for name in ("words", "largest")
        ),
        plan.label(1, plan.sources, "train", bytes(32), replace(shape, l1=8)),
        plan.label(1, plan.sources, "train", bytes(32), replace(shape, l2_squared=8)),
    }
    assert len(labels) == 9


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sources": (FIRST,)}, "bad-roles"),
        ({"sources": (FIRST, FIRST, THIRD)}, "bad-roles"),
        ({"aggregator": FIRST}, "bad-roles"),
        ({"budgets": {"train": None, "evaluate": None}, "quorum": 2}, "too-few-organisations"),
        ({"honest": 0}, "no-honest-contributor"),
        ({"honest": 4}, "no-honest-contributor"),
        ({"quorum": 1, "honest": 1}, "bad-params"),
        ({"persons_in": 4}, "bad-params"),
        ({"rows": {FIRST: 1}}, "bad-params"),
        ({"most_rows": {FIRST: 0, SECOND: 1, THIRD: 1}}, "bad-params"),
        ({"budgets": {}}, "bad-params"),
        ({"job": b""}, "bad-params"),
    ],
)
def test_a_plan_that_protects_nobody_is_refused(change, code):
    with pytest.raises(InputError) as caught:
        replace(job(rho=RHO).plan(), **change)
    assert caught.value.code == code


def test_a_sum_that_could_wrap_is_refused_before_anything_is_computed_of_it():
    plan, shape = job(rho=RHO).plan(), Shape(1, 1 << 52, 1 << 52, 1 << 104)
    plan.noise("train", shape)
    for many in (plan, job().plan()):
        with pytest.raises(InputError) as caught:
            replace(many, most_rows=dict.fromkeys(many.sources, 1 << 20)).noise("train", shape)
        assert caught.value.code == "sum-too-large"


# -- absence


def failing(exchanges, code="recipe-failed", times=1000):
    left = [times]

    def fault(frame):
        if isinstance(frame, Handle) and frame.exchange in exchanges and left[0]:
            left[0] -= 1
            raise RecipeFailed("", code=code)

    return fault


def test_a_source_that_is_absent_for_a_round_takes_part_in_the_next():
    case = job(rho=RHO, quorum=2)
    case.faults[THIRD] = failing({2, 4})
    answers = []
    case.faults[AGGREGATOR] = answers.append
    _, held = case.run()
    assert held.rounds["train"] == 6
    assert case.used == {FIRST: {"train": 6}, SECOND: {"train": 6}, THIRD: {"train": 4}}
    who = [len(answer.receipts) for answer in answers[2:]]
    assert who == [3, 2, 3, 2, 3, 3]
    rows = [answer.rows for answer in answers[2:]]
    assert rows[0] == 90
    assert rows[1] == 90 - len(case.nodes[2])
    assert answers[3].failed == ((4, "absent"),)
    assert failures(case, THIRD) == []


def test_too_few_sources_end_the_attempt_after_some_tries_and_cost_nothing():
    case = job(rho=RHO, quorum=2)
    case.faults[SECOND] = failing({1})
    case.faults[THIRD] = failing({1})
    refused(case, "quorum-lost")
    assert not any(case.used.values())
    tasks = {m.round for m in case.sent if m.sender == AGGREGATOR}
    assert len(tasks) == 4


def test_a_quorum_that_comes_back_in_time_goes_on():
    case = job(rho=RHO)
    left = [2]

    def fault(frame):
        if isinstance(frame, Handle) and frame.exchange == 3 and left[0]:
            left[0] -= 1
            raise RecipeFailed("", code="recipe-failed")

    case.faults[SECOND] = fault
    _, held = case.run()
    assert held.rounds["train"] == 6
    assert case.used[FIRST] == {"train": 6}
    assert max(case.numbers[FIRST]) == 8


def test_without_noise_nobody_may_be_absent():
    case = job()
    case.faults[THIRD] = failing({2})
    refused(case, "worker-failed-too-often")
    assert case.used[THIRD] == {"train": 1}
    assert max(m.round for m in case.sent if m.sender == AGGREGATOR) == stream(5, TASK)


# -- deaths


@pytest.mark.parametrize("role", [FIRST, AGGREGATOR])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_a_worker_that_dies_is_started_again_and_nobody_sees_it(role, at):
    alive, _ = job(every=3, holdout=5).run()
    case = job(every=3, holdout=5)
    case.faults[role] = dying([at, at + 4])
    done, held = case.run()
    assert done == alive
    assert case.started[role] == 3
    assert held.rounds == {"train": 6, "evaluate": 2}
    assert case.used[FIRST] == {"train": 6, "evaluate": 2}


def test_a_worker_that_is_started_again_gets_the_state_it_handed_over():
    case = job(rho=RHO)
    states = []

    def fault(frame):
        if isinstance(frame, Begin):
            states.append(int.from_bytes(frame.state, "big"))
        elif frame.exchange == 4 and len(states) == 1:
            raise WorkerGone("")

    case.faults[FIRST] = fault
    case.run()
    assert states == [0, 3]


def test_a_worker_that_dies_too_often_makes_its_source_absent():
    case = job(rho=RHO, quorum=2)
    case.faults[SECOND] = lambda frame: (
        (_ for _ in ()).throw(WorkerGone("")) if isinstance(frame, Handle) else None
    )
    _, held = case.run()
    assert held.rounds["train"] == 6
    assert case.started[SECOND] == 3
    assert case.used[SECOND] == {}


def test_a_worker_that_is_late_is_not_asked_the_same_again():
    def fault(frame):
        if isinstance(frame, Handle) and frame.exchange == 2:
            raise WorkerGone("", code="worker-deadline")

    case = job(rho=RHO, quorum=2)
    case.faults[SECOND] = fault
    case.run()
    assert case.used[SECOND] == {"train": 5}
    assert case.started[SECOND] == 2
    assert absent() in {m.body for m in case.sent}
    assert not any(b"deadline" in m.body for m in case.sent)


def test_a_lead_that_asks_otherwise_after_its_death_is_stopped():
    case = job(rho=RHO)
    steps = []

    def fault(frame):
        steps.append(frame)
        if len(steps) == 4:
            raise WorkerGone("")
        if len(steps) > 4 and isinstance(frame, Begin):
            case.recipe = replace(LOGISTIC, step=0.5)

    case.faults[AGGREGATOR] = fault
    original = case.start

    def start(role):
        worker = original(role)
        if role == AGGREGATOR and len(steps) >= 4:
            worker._recipe = replace(LOGISTIC, step=0.5)
        return worker

    case.start = start
    with pytest.raises(StateConflict) as caught:
        case.run()
    assert caught.value.code == "recipe-not-deterministic"


MESSAGES = 3 * 2 + 3 + 6 * 4 * 3
"""About so many messages has a run of six rounds."""


def interrupted(case: Job, deaths: list[int]):
    """Run attempt after attempt, each but the last ended after so many messages."""
    for death in deaths:
        left = [death]

        def die(_, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Down

        try:
            return case.run(die)
        except Down:
            continue
    return case.run()


@given(st.lists(st.integers(0, MESSAGES), max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_run_whose_coordinator_dies_goes_on_to_the_same_model(deaths):
    case = job(rounds={"train": 10, "evaluate": 0})
    done, held = interrupted(case, deaths)
    alone = run(LOGISTIC, [people()], token_bytes).state
    assert np.array_equal(case.state(done).weights, alone.weights)
    assert 6 <= held.rounds["train"] <= 6 + len(deaths)
    for source in case.sources:
        assert case.used[source]["train"] <= held.rounds["train"]
        assert case.numbers[source] == sorted(set(case.numbers[source]))


@given(st.lists(st.integers(0, MESSAGES), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_a_run_without_a_round_to_spare_ends_with_what_it_has(deaths):
    case = job(rho=RHO, rounds={"train": 6, "evaluate": 0})
    done, held = interrupted(case, deaths)
    assert held.rounds["train"] <= 6
    assert all(used.get("train", 0) <= 6 for used in case.used.values())
    assert 6 - len(deaths) <= case.state(done).round <= 6


def test_the_second_attempt_does_not_compute_again_what_the_first_one_knew():
    case = job(rho=RHO, rounds={"train": 7, "evaluate": 0})

    def die(_):
        if len(case.numbers[FIRST]) == 4:
            raise Down

    with pytest.raises(Down):
        case.run(die)
    asked = []
    case.faults[FIRST] = lambda frame: asked.append(frame) if isinstance(frame, Handle) else None
    case.run()
    assert [frame.exchange for frame in asked] == [4, 5, 6]
    assert case.used[FIRST]["train"] in (6, 7)


class Full(MemoryShelf):
    """A shelf that takes nothing after so many blobs."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def put(self, name):
        self.room -= 1
        if self.room < 0:
            raise StateConflict("no room", code="shelf-write-failed")
        return super().put(name)


@pytest.mark.parametrize("role", [FIRST, AGGREGATOR])
def test_a_round_that_cannot_be_remembered_is_not_sent(role):
    case = job(rho=RHO)
    # The lead keeps how many rounds were held, then the answer; a source its last number.
    case.shelves[role] = Full(2 if role == FIRST else 4)
    refused(case, "shelf-write-failed")
    assert case.used[FIRST] == {"train": 2}
    sent = {m.round for m in case.sent if m.sender == FIRST and is_a(m, MASKED)}
    assert sent == {stream(1, MASKED), stream(2, MASKED)}


def test_at_the_good_end_sources_keep_nothing_and_the_lead_nothing_once_it_is_told():
    case = job(rho=RHO)
    case.run()
    assert not any(case.shelves[source].blobs for source in case.sources)
    shelf = case.shelves[AGGREGATOR]
    assert len(shelf.blobs) == 7
    shelf.blobs["another-job"] = b""
    forget(shelf, case.plan().job)
    assert list(shelf.blobs) == ["another-job"]


# -- messages

shapes = st.integers(1, MAX_WORDS).flatmap(
    lambda words: st.integers(1, 1 << 40).map(lambda most: Shape(words, most, most, most**2))
)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1), st.sampled_from(["train", "evaluate"]), st.binary()
)
def test_tasks_come_back_from_their_bytes(number, exchange, turn, message):
    task = Task(number, exchange, turn, message)
    assert Task.decode(task.encode()) == task


@given(st.binary(min_size=32, max_size=32), shapes, st.binary(max_size=100))
def test_receipts_come_back_from_their_bytes(message, shape, receipt):
    made = Receipt(message, shape, receipt)
    assert decode_ready(made.encode()) == made


@given(st.binary(max_size=80))
def test_bytes_that_are_no_message_are_refused_as_such(body):
    plan = job(rho=RHO).plan()
    for decode in (Task.decode, decode_ready, lambda data: Hello.decode(data, plan), plan.members):
        with suppress(DecodeError):
            decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x00recipe-failed",
        b"\x00absent ",
        b"\x02absent",
        b"\x01" + bytes(68),
        b"\x01" + bytes(31),
    ],
)
def test_neither_a_receipt_nor_a_code_is_refused(body):
    with pytest.raises(DecodeError):
        decode_ready(body)


def saying(number: int):
    """Return a wrap of a source: it says that its last round was this one."""

    def out(message):
        if message.round != HELLO:
            return message
        return replace(message, body=number.to_bytes(4, "big") + message.body[4:])

    return lambda party: Meddling(party, out)


@pytest.mark.parametrize("lie", [MAX_NUMBER - 2, 2**32 - 1])
def test_a_source_that_says_an_absurd_number_ends_one_attempt_and_no_later_one(lie):
    case = job(rho=RHO, wrap={SECOND: saying(lie)})
    refused(case, "bad-hello")
    assert not case.shelves[AGGREGATOR].blobs
    case.wrap.clear()
    _, held = case.run()
    assert held.rounds["train"] == 6
    assert max(case.numbers[FIRST]) == 6


def test_numbers_do_not_run_out_however_often_a_source_lies():
    case = job(rho=RHO, rounds={"train": 40, "evaluate": 0})
    last = case.plan().last
    assert last == (3 * 40 + MAX_ATTEMPTS) * 4
    reached = last
    for attempt in range(4):
        case.wrap[SECOND] = saying(reached)

        def die(message):
            if is_a(message, MASKED):
                raise Down

        with pytest.raises(Down):
            case.run(die)
        reached = max(case.numbers[FIRST])
        assert reached == last + attempt + 1
        case.wrap[SECOND] = saying(reached + 1)
        refused(case, "bad-hello")
    case.wrap.clear()
    _, held = case.run()
    assert held.rounds["train"] == 10
    assert max(case.numbers[FIRST]) < 2 * last <= MAX_NUMBER


def test_a_source_that_lost_its_shelf_says_no_fewer_rounds_than_its_node_counted():
    case = job(rho=RHO, rounds={"train": 9, "evaluate": 0})
    case.used[FIRST] = {"train": 3}
    held = b"".join(number.to_bytes(4, "big") for number in (3, 0, 3))  # the last round; evaluated, trained
    case.shelves[AGGREGATOR].blobs[f"{JOB.hex()}-lead"] = held
    case.run()
    (hello,) = [Hello.decode(m.body, case.plan()) for m in case.sent if (m.sender, m.round) == (FIRST, HELLO)]
    assert hello.number == 3
    assert min(case.numbers[FIRST]) == 4


def test_a_lead_reads_its_steps_back_one_by_one_and_keeps_no_totals_in_memory():
    case = job(rho=RHO, rounds={"train": 8, "evaluate": 0})

    def die(_):
        if len(case.numbers[FIRST]) == 4:
            raise Down

    with pytest.raises(Down):
        case.run(die)
    shelf = case.shelves[AGGREGATOR]
    steps = ShelvedSteps(shelf, JOB).load()
    assert not isinstance(steps, list | tuple)
    assert [step.turn for step in steps] == ["train"] * 3
    lead = case.parties()[AGGREGATOR]
    lead.start()
    assert lead._worker.steps == 3
    totals = {bytes(step.answer.total) for step in ShelvedSteps(shelf, JOB).load()}
    kept = [value for value in vars(lead._worker).values() if isinstance(value, list | tuple | dict)]
    assert not any(total in repr(kept).encode("latin-1", "replace") for total in totals)
    assert not kept


def test_a_shelf_takes_no_more_answers_than_a_run_of_its_size_makes(monkeypatch):
    monkeypatch.setattr(lasting, "MAX_KEPT_BYTES", 800)
    case = job(rho=RHO)
    refused(case, "steps-too-large")
    assert 0 < case.used[FIRST]["train"] < 6


@pytest.mark.parametrize("left", [(7, 0), (0, 7)])
def test_a_source_cannot_say_that_it_has_more_rounds_than_the_job(left):
    plan = job(rho=RHO).plan()
    hello = Hello(0, dict(zip(("train", "evaluate"), left, strict=True)), plan.digest)
    with pytest.raises(DecodeError) as caught:
        Hello.decode(hello.encode(plan), plan)
    assert caught.value.code == "bad-hello"
