"""What of a lead's messages reaches a node's app, and what of its replies a lead's strategy."""

import io
import zipfile

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the extra `train` is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam
from flwr.supercore.task_identity import TaskIdentity
from trainer_case import amounts, settings_of

from node.trainer.arrays import record_of, take
from node.trainer.contributing import Contribution
from node.trainer.grid import RelayGrid, digest, read, write
from node.trainer.leading import Lead
from node.trainer.recipe import ARRAYS, CONFIG, METRICS, ROUND, ROWS, Recipe, Trained, Turn
from node.trainer.strategy import MAX_TRIES, OverTotals, rounds
from protocols.errors import DecodeError, ProtocolAborted
from protocols.training.recipe import Layout, expect, gaussian
from protocols.training.work import LEAD, TOTAL, Answer, Ask, Begin, Handle, Pin

RUN, NODE = 77, 2
PIN = Pin("r", "d", "1", "sha256:" + "0" * 64)


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, LEAD


def answer(arrays):
    expect(arrays, {"w": ((3,), "float64")})
    return Layout(gaussian(3, 8, 2), 4)


def turns(settings):
    return {
        "train": Turn(3, answer),
        "train.split": Turn(3, answer, {"depth": int}),
        "evaluate": Turn(3, answer),
    }


def client(settings, rows, seed):
    app = ClientApp()
    calls = []

    def same(message, context):
        calls.append(message)
        context.state["n"] = MetricRecord({"calls": len(calls)})
        w = message.content[ARRAYS]["w"].numpy()
        return Message(RecordDict({ARRAYS: record_of({"words": w.astype(np.int64) * 2})}), reply_to=message)

    app.train()(same)
    app.train("split")(same)
    app.evaluate()(same)
    app.query()(same)
    return app


def never_leads(*_):
    raise AssertionError


def begin(role="contribute", node=NODE, nodes=(2,), state=b""):
    return Begin(role, PIN, settings_of(PIN, amounts(1)), RUN, node, nodes, bytes(32), (), state)


def contribution(app=client, state=b""):
    return Contribution(begin(state=state), Recipe(turns, app, never_leads), -1)


def message(*, kind="train", run=RUN, src=LEAD, dst=NODE, group="1", config=None, arrays=None, content=None):
    head = Metadata(run, "1-2", src, dst, "", group, 0.0, 60.0, kind)
    record = arrays if arrays is not None else record_of({"w": np.arange(3.0)})
    said = content if content is not None else {ARRAYS: record, CONFIG: ConfigRecord(config or {ROUND: 1})}
    return make_message(head, RecordDict(said))


def handled(**changes):
    return contribution().handle(Handle(1, write(message(**changes))))


def test_a_vector_goes_to_the_party_and_a_receipt_to_the_lead():
    update = handled()
    assert np.array_equal(np.frombuffer(update.words, "<i8"), [0, 2, 4])
    receipt = read(update.receipt)
    assert {name: dict(record) for name, record in receipt.content.items()} == {"receipt": {"exchange": 1}}
    assert (receipt.metadata.src_node_id, receipt.metadata.dst_node_id) == (NODE, LEAD)
    assert update.turn == "train"


def test_what_bounds_the_words_follows_from_the_recipe_alone():
    update = handled()
    assert (update.largest, update.l1, update.l2_squared) == (4, 2 * 16, 256)  # √3 is at most 2


def test_what_a_message_says_has_one_digest_at_all_nodes():
    other = message(group="9")
    other.metadata.__dict__["_dst_node_id"] = 5
    assert handled().digest == digest(other)
    assert handled().digest != digest(message(arrays=record_of({"w": np.arange(3.0) + 1})))
    assert handled().digest != digest(message(kind="evaluate"))


def test_a_clock_that_is_hours_off_ends_nothing():
    assert read(handled().receipt).metadata.ttl > 3600  # the message was made in 1970


def test_state_goes_with_the_update_and_comes_back():
    update = contribution().handle(Handle(1, write(message())))
    assert contribution(state=update.state)._context.state["n"]["calls"] == 1


def test_a_further_setting_is_taken_where_the_recipe_declares_it():
    handled(kind="train.split", config={ROUND: 1, "depth": 3})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "query"}, "wrong-message"),
        ({"kind": "query.default"}, "wrong-message"),
        ({"kind": "train.other"}, "wrong-message"),
        ({"kind": "system"}, "wrong-message"),
        ({"kind": "get_parameters"}, "wrong-message"),
        ({"kind": "reconnect"}, "wrong-message"),
        ({"run": RUN + 1}, "wrong-message"),
        ({"src": 3}, "wrong-message"),
        ({"dst": 3}, "wrong-message"),
        ({"group": "2"}, "wrong-exchange"),
        ({"group": ""}, "wrong-exchange"),
        ({"config": {ROUND: 1, "clip": 9.0}}, "wrong-message"),
        ({"config": {ROUND: 1.0}}, "wrong-message"),
        ({"kind": "train.split", "config": {ROUND: 1, "depth": True}}, "wrong-message"),
        ({"content": {ARRAYS: record_of({"w": np.zeros(3)})}}, "wrong-message"),
        ({"content": {ARRAYS: ConfigRecord(), CONFIG: ConfigRecord({ROUND: 1})}}, "wrong-arrays"),
        ({"arrays": record_of({"w": np.zeros(4)})}, "wrong-arrays"),
        ({"arrays": record_of({"w": np.zeros(3, "<f4")})}, "wrong-arrays"),
        ({"arrays": record_of({"w": np.array([0, np.nan, 0])})}, "wrong-arrays"),
        ({"arrays": record_of({"w": np.array([0, np.inf, 0])})}, "wrong-arrays"),
        ({"arrays": record_of({"v": np.zeros(3)})}, "wrong-arrays"),
        ({"arrays": record_of({"w": np.zeros(3), "v": np.zeros(3)})}, "wrong-arrays"),
    ],
)
def test_another_message_does_not_reach_the_app(changes, code):
    def never(settings, rows, seed):
        app = ClientApp()
        for register in (app.train(), app.train("split"), app.evaluate(), app.query()):
            register(lambda *_: pytest.fail("the app was called"))
        return app

    with pytest.raises(ProtocolAborted) as caught:
        contribution(never).handle(Handle(1, write(message(**changes))))
    assert caught.value.code == code


def test_an_error_in_place_of_a_message_is_refused():
    body = write(Message(Error(0, "x"), reply_to=message(src=NODE, dst=LEAD)))
    with pytest.raises(ProtocolAborted):
        contribution().handle(Handle(1, body))


def test_a_repeated_exchange_is_refused():
    part, body = contribution(), write(message())
    part.handle(Handle(1, body))
    with pytest.raises(ProtocolAborted) as caught:
        part.handle(Handle(2, body))
    assert caught.value.code == "wrong-exchange"


@pytest.mark.parametrize("body", [b"", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_no_message_are_refused(body):
    with pytest.raises((DecodeError, ProtocolAborted)):
        contribution().handle(Handle(1, body))


def hostile(data: bytes, shape=(3,), kind="float64", stype="numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"w": Array(kind, shape, stype, data)})


def header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_an_array_that_is_what_it_says_is_taken():
    found = take(hostile(header("(3,)") + np.arange(3.0).tobytes()))
    assert np.array_equal(found["w"], [0, 1, 2])
    every = {
        "a": np.array([True, False]),
        "b": np.zeros((2, 0, 3), np.int16),
        "c": np.array(5, np.uint8),
        "d": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    back = take(record_of(every))
    assert all(np.array_equal(back[name], every[name]) for name in every)
    assert [each.dtype for each in back.values()] == [each.dtype for each in every.values()]
    assert not any(each.flags.writeable for each in back.values())


@pytest.mark.parametrize(
    "record",
    [
        *(hostile(header(shape) + bytes(24)) for shape in ("(1000000000000,)", "(3, 1)", "(-3,)")),
        hostile(header("(3,)") + bytes(24), shape=(4,)),
        hostile(header("(3,)") + bytes(24), shape=(-3,)),
        hostile(header("(3,)") + bytes(24), kind="int64"),
        hostile(header("(3,)") + bytes(24), kind="object"),
        hostile(header("(3,)", "|O") + bytes(24), kind="object"),
        hostile(header("(3,)") + bytes(24), stype="pickle"),
        hostile(header("(3,)") + bytes(23)),
        hostile(header("(3,)") + bytes(25)),
        hostile(header("(1, 1, 1, 1, 3)") + bytes(24), shape=(1, 1, 1, 1, 3)),
        hostile(header("(3,)", "|b1") + b"\x00\x02\x01", kind="bool"),
        hostile(b""),
        record_of({f"w{at}": np.zeros(1) for at in range(257)}),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(record):
    with pytest.raises(DecodeError) as caught:
        take(record)
    assert caught.value.code == "bad-arrays"


def test_an_archive_in_place_of_an_array_is_refused():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", header("(3,)") + bytes(24))
    with pytest.raises(DecodeError):
        take(hostile(packed.getvalue()))


@pytest.mark.parametrize(
    "reply",
    [
        {ARRAYS: record_of({"words": np.zeros(2, np.int64)})},
        {ARRAYS: record_of({"words": np.zeros((3, 1), np.int64)})},
        {ARRAYS: record_of({"words": np.zeros(3)})},
        {ARRAYS: record_of({"words": np.zeros(3, np.int64), "more": np.zeros(3, np.int64)})},
        {ARRAYS: record_of({"words": np.zeros(3, np.int64)}), "metrics": MetricRecord({"loss": 1.0})},
        {"model": record_of({"words": np.zeros(3, np.int64)})},
        {ARRAYS: MetricRecord({"loss": 1.0})},
        {},
    ],
)
def test_a_reply_that_the_recipe_does_not_declare_goes_nowhere(reply):
    def wrong(settings, rows, seed):
        app = ClientApp()
        app.train()(lambda message, context: Message(RecordDict(reply), reply_to=message))
        return app

    with pytest.raises(DecodeError):
        contribution(wrong).handle(Handle(1, write(message())))


# ---------------------------------------------------------------- the grid and strategies over totals


class Adam(OverTotals, FedAdam):
    def mean(self, total):
        arrays = record_of({"w": take(total.content[ARRAYS])["total"] / 2})
        return make_message(
            total.metadata, RecordDict({ARRAYS: arrays, "m": MetricRecord({"num-examples": 1})})
        )


def options():
    return {"fraction_evaluate": 0.0, "eta": 0.1}


def test_a_strategy_of_flowers_over_a_total_does_what_it_does_over_replies():
    """Plain FedAdam gets every node's weights; ours only their sum."""
    nodes, start = (2, 3), np.array([1.0, 2.0, 3.0])

    def step(node, w):
        return w - 0.1 * node * np.arange(1, 4)

    def plain(_exchange, messages):
        for asked in messages:
            node = asked.metadata.dst_node_id
            w = step(node, asked.content[ARRAYS]["w"].numpy())
            content = {ARRAYS: record_of({"w": w}), "m": MetricRecord({"num-examples": 1})}
            yield node, write(Message(RecordDict(content), reply_to=asked))

    def summed(_exchange, messages):
        total = np.zeros(3)
        for asked in messages:
            node = asked.metadata.dst_node_id
            total += step(node, asked.content[ARRAYS]["w"].numpy())
            yield node, write(Message(RecordDict({"receipt": ConfigRecord({"exchange": 1})}), reply_to=asked))
        yield TOTAL, RecordDict({ARRAYS: record_of({"total": total})})

    found = [
        rounds(strategy, RelayGrid(RUN, nodes, exchange), record_of({"w": start}), 4)["w"].numpy()
        for strategy, exchange in ((FedAdam(**options()), plain), (Adam(**options()), summed))
    ]
    assert np.allclose(found[0], found[1], rtol=0, atol=1e-12)
    assert not np.allclose(found[0], start)


def test_flowers_own_loop_runs_on_the_grid():
    """`Strategy.start` trains and evaluates; both go through one exchange each."""
    groups = []

    def exchange(number, messages):
        groups.append((number, {message.metadata.group_id for message in messages}))
        return [(TOTAL, RecordDict({ARRAYS: record_of({"total": np.full(3, 4.0)})}))]

    strategy = Adam(eta=0.1)
    result = strategy.start(RelayGrid(RUN, (2, 3), exchange), record_of({"w": np.zeros(3)}), num_rounds=2)
    assert groups == [(number, {str(number)}) for number in range(1, 5)]
    assert result.arrays["w"].numpy().shape == (3,)


def test_a_round_without_a_total_is_held_again():
    heard = []

    def exchange(number, messages):
        heard.append([message.content[CONFIG][ROUND] for message in messages])
        return [] if number < 3 else [(TOTAL, RecordDict({ARRAYS: record_of({"total": np.ones(3)})}))]

    rounds(Adam(**options()), RelayGrid(RUN, (2, 3), exchange), record_of({"w": np.zeros(3)}), 2)
    assert heard == [[1, 1], [1, 1], [1, 1], [2, 2]]


def test_a_lead_gives_up_where_no_total_ever_comes():
    heard = []
    grid = RelayGrid(RUN, (2, 3), lambda number, _: heard.append(number) or [])
    with pytest.raises(ProtocolAborted) as caught:
        rounds(Adam(**options()), grid, record_of({"w": np.zeros(3)}), 2)
    assert caught.value.code == "no-total"
    assert len(heard) == MAX_TRIES


def question(node, kind="train", w=0.0, names="w"):
    content = RecordDict({ARRAYS: record_of({names: np.full(3, w)}), CONFIG: ConfigRecord({ROUND: 1})})
    return Message(content, node, kind)


def lead_with(ask, questions=lambda grid: [question(node) for node in grid.get_node_ids()]):
    def lead(settings, columns, seed, grid):
        lead.replies = list(grid.send_and_receive(questions(grid)))
        return Trained({"w": np.zeros(3)})

    Lead(begin("lead", LEAD, (2, 3)), Recipe(turns, client, lead), ask).run()
    return lead.replies


@pytest.mark.parametrize(
    ("questions", "code"),
    [
        (lambda _: [question(2)], "bad-recipe"),
        (lambda _: [question(2), question(3), question(4)], "bad-recipe"),
        (lambda _: [question(2), question(3, w=1.0)], "bad-recipe"),
        (lambda _: [question(2), question(3, "evaluate")], "bad-recipe"),
        (lambda _: [question(node, "train.other") for node in (2, 3)], "bad-recipe"),
        (lambda _: [question(node, names="v") for node in (2, 3)], "bad-state"),
    ],
)
def test_a_lead_asks_all_nodes_the_same_of_what_it_declares(questions, code):
    with pytest.raises(DecodeError) as caught:
        lead_with(lambda _: pytest.fail("the party was asked"), questions)
    assert caught.value.code == code


def receipt(ask: Ask, node: int, **changes) -> bytes:
    body = dict(ask.messages)[node]
    asked = read(body)
    asked.metadata.created_at = 2e9
    for name, value in changes.items():
        asked.metadata.__dict__[f"_{name}"] = value
    return write(Message(RecordDict({"receipt": ConfigRecord({"exchange": 1})}), reply_to=asked, ttl=1.0))


def test_a_node_that_failed_is_an_error_with_its_code():
    replies = lead_with(
        lambda ask: Answer(((2, receipt(ask, 2)),), ((3, "node-gone"),), np.ones(3).tobytes(), 7)
    )
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    assert by_node[2].has_content()
    assert (by_node[3].error.code, by_node[3].error.reason) == (5, "node-gone")
    assert np.array_equal(take(by_node[TOTAL].content[ARRAYS])["total"], np.ones(3))
    assert by_node[TOTAL].content[METRICS][ROWS] == 7


def test_without_a_total_there_is_none():
    replies = lead_with(lambda ask: Answer((), ((2, "node-gone"), (3, "x-y")), None, 0))
    assert [(r.error.code, r.error.reason) for r in replies] == [(5, "node-gone"), (0, "x-y")]


@pytest.mark.parametrize(
    "changes",
    [
        {"message_id": "0-2"},
        {"dst_node_id": 3},
        {"src_node_id": 3},
        {"run_id": 5},
        {"message_type": "evaluate"},
    ],
)
def test_a_receipt_that_belongs_to_another_message_is_an_error(changes):
    replies = lead_with(
        lambda ask: Answer(((2, receipt(ask, 2, **changes)), (3, b"\xff")), (), np.ones(3).tobytes(), 7)
    )
    assert [reply.has_error() for reply in replies] == [True, True, False]


@pytest.mark.parametrize(
    "total", [np.ones(2), np.ones(0), np.array([1, np.nan, 1]), np.array([1, np.inf, 1])]
)
def test_a_total_of_another_length_or_not_finite_ends_the_lead(total):
    with pytest.raises(DecodeError):
        lead_with(lambda ask: Answer((), ((2, "a"), (3, "b")), total.tobytes(), 7))


@pytest.mark.parametrize(
    "answer", [Answer((), ((2, "a"),), None, 0), Answer((), ((2, "a"), (2, "a")), None, 0)]
)
def test_an_answer_that_leaves_a_node_out_ends_the_lead(answer):
    with pytest.raises(DecodeError):
        lead_with(lambda _: answer)


def test_push_and_pull_are_one_exchange():
    grid = RelayGrid(RUN, (2,), lambda *_: [(TOTAL, RecordDict({ARRAYS: record_of({"total": np.ones(3)})}))])
    sent = Message(RecordDict({ARRAYS: record_of({"w": np.zeros(3)})}), 2, "train")
    ids = list(grid.push_messages([sent]))
    assert [r.metadata.src_node_id for r in grid.pull_messages(ids)] == [TOTAL]
    assert list(grid.pull_messages(ids)) == []
