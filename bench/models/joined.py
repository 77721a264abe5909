"""Models of persons whose columns two owners have: `train-joined/1` on defaults of credit cards.

`gain`: the whole job, played in one process by its own parties, tagging and dealing included, without noise,
on four fifths of the persons; the released model foretells the fifth whose number is a multiple of 5. Beside
it stands what the guest, who has the label, foretells with its own columns alone, cut at the same edges: by
the recipe `logistic`, whose gradient is that of the true sigmoid.

`iteration`: all 30,000 rows at ε = 1. Each party is a process that speaks sealed frames through TLS and the
coordinator's relay, as `bench.rig.nodes` says. It is the mean over all iterations but the first, what the
dealer makes for them included.
"""

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.models.datasets import DEFAULT, HELD_OUT, Owner, credit
from bench.models.jobs import CTX, auc, model_of, seeded, spec_of, summary_of
from bench.rig.lists import id_lines
from bench.rig.nodes import running
from bench.rows import Results, Row
from demo.collaboration import DEPARTMENTS
from protocols.ids import Role
from protocols.jobs.job_type import UNIT, PreparedInput, Setup, Unit, source
from protocols.jobs.train_joined import TrainJoined
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.party import Finished, Incoming, Party, Rand, Step, Waiting, run
from protocols.training import run as plain
from protocols.training.logistic import Logistic
from protocols.training.schema import Binned, Schema
from protocols.wire import Constraints, JobSpec

TRAIN: Final = TrainJoined()
SEED: Final = 1
ROUNDS: Final = 60
TIMED: Final = 25

GUEST, HOST = source(1), source(2)
"""The owners of the columns; the guest has the label, too."""

_SEATS: Final = dict(zip((GUEST, HOST, MATCHER, HELPER, DEALER), DEPARTMENTS, strict=False))
_KEY: Final = "key"
_EXACT: Final = {"noise": "none"}
_NOISY: Final = {"epsilon": "1", "delta": "0.00001"}


def measure(results: Results) -> None:
    """Measure every row that is not there yet."""
    if not results.has("joined gain auc"):
        guest, host = credit()
        alone, both = alone_auc(guest), joined_auc(guest, host)
        results.add(Row("joined gain auc", both - alone, "AUC"))
        results.add(Row("joined auc", both, "AUC", "the guest's columns alone", alone))
    if not results.has("joined iteration"):
        results.add(Row("joined iteration", iteration_s(TIMED), "s"))


def held_out(owner: Owner) -> npt.NDArray[np.bool_]:
    """Return who is held out."""
    held: npt.NDArray[np.bool_] = owner.persons % HELD_OUT == 0
    return held


def alone_auc(guest: Owner, rounds: int = ROUNDS) -> float:
    """Return what the guest's own columns foretell."""
    schema = Schema(tuple(Binned(slot, tuple(map(float, guest.edges(slot)))) for slot in guest.features))
    held = held_out(guest)
    train, test = (
        schema.encode(each.columns, each.columns[DEFAULT]) for each in (guest.take(~held), guest.take(held))
    )
    model = Logistic(schema, rounds=rounds, clip=8.0, step=2.0)
    return auc(model.scores(plain.run(model, [train], seeded("alone")).state, test), test.labels)


def joined_auc(guest: Owner, host: Owner, rounds: int = ROUNDS) -> float:
    """Return what the columns of both foretell: the released model, on whom it was not trained on."""
    held = held_out(guest)
    spec = job(guest, host, {"rounds": rounds, **_EXACT})
    TRAIN.check(spec)
    made = parties(spec, guest.take(~held), host.take(~held), lambda role: seeded("joined", SEED, role))
    (released,) = run(made)[MATCHER]
    model = model_of(released)
    columns = {f"{GUEST}.{slot}": guest.columns[slot][held] for slot in guest.features}
    columns |= {f"{HOST}.{slot}": host.columns[slot][held] for slot in host.features}
    return auc(model.log_odds(model.rows(columns)), guest.columns[DEFAULT][held])


# -- the job -------------------------------------------------------------------------------------------------


def job(guest: Owner, host: Owner, params: Mapping[str, Any]) -> JobSpec:
    """Return the job about these two lists."""
    owners = {GUEST: guest, HOST: host}
    columns = [
        {"source": str(role), "slot": slot, "edges": owner.edges(slot)}
        for role, owner in owners.items()
        for slot in owner.features
    ]
    label = {"source": str(GUEST), "slot": DEFAULT, "at_least": "1"}
    return spec_of(
        TRAIN.name,
        {"columns": columns, "label": label, "holdout": 0, **params},
        _SEATS,
        {role: [_KEY, *owner.columns] for role, owner in owners.items()},
        SEED,
    )


def parties(
    spec: JobSpec, guest: Owner, host: Owner, rand: Callable[[Role], Rand], roles: tuple[Role, ...] = ()
) -> dict[Role, Party]:
    """Return the parties of a job over these lists: of all roles, or of those named."""
    prepared: dict[Role, PreparedInput] = {
        role: listed(spec, role, owner)
        for role, owner in ((GUEST, guest), (HOST, host))
        if not roles or role in roles
    }
    keys = len(guest.persons)
    summary = summary_of(keys, keys, "bench")
    setup = Setup(spec, 1, CTX, Constraints(min_group_size=10), {GUEST: summary, HOST: summary})
    return {
        role: TRAIN.party(role, setup, prepared.get(role), rand(role)) for role in roles or tuple(spec.roles)
    }


def listed(spec: JobSpec, role: Role, owner: Owner) -> PreparedInput:
    """Return a list as its node would prepare it, persons under resident IDs."""
    import pyarrow as pa

    keys = pa.array(id_lines(owner.persons).decode("ascii").split())
    columns = {slot: pa.array(values) for slot, values in owner.columns.items()}
    builder = TRAIN.builder(spec, role, Unit("resident-id", 1, spec.day))
    builder.add({_KEY: keys, UNIT: keys, **columns})
    return builder.finish()


# -- how long it takes ---------------------------------------------------------------------------------------


def iteration_s(rounds: int) -> float:
    """Return the mean seconds of an iteration.

    Raises:
        RuntimeError: not all were held.
    """
    with (
        tempfile.TemporaryDirectory(prefix="minshu-bench-") as temporary,
        running(Path(temporary), tuple(_SEATS.values())) as (nodes, _),
    ):
        said = Path(temporary) / "rounds.json"
        nodes.play(_SEATS, f"{__name__}:party", {"rounds": rounds, "said": str(said)})
        ended: list[float] = json.loads(said.read_text())
    if len(ended) != rounds:
        raise RuntimeError(f"{len(ended)} iterations were held, {rounds} expected")
    return (ended[-1] - ended[0]) / (rounds - 1)


def party(role: Role, params: Mapping[str, Any]) -> Party:
    """Return a role's party; the matcher's says when its iterations ended."""
    guest, host = credit()
    spec = job(guest, host, {"rounds": params["rounds"], **_NOISY})
    made = parties(spec, guest, host, lambda _: secrets.token_bytes, (role,))[role]
    return Timed(made, params["rounds"], Path(params["said"])) if role == MATCHER else made


@dataclass(slots=True)
class Timed:
    """A matcher; `said` gets when each of its iterations ended, in seconds of the machine's clock."""

    party: Party
    rounds: int
    said: Path
    ended: list[float] = field(default_factory=list)

    def start(self) -> Step:
        """Start."""
        return self.party.start()

    def receive(self, message: Incoming) -> Step:
        """Pass on, and look how many iterations are over."""
        step = self.party.receive(message)
        done = self.rounds
        if isinstance(step, Waiting):
            at = step.progress
            done = at.done if at is not None and at.phase == "training" else 0
        self.ended += [time.perf_counter()] * (done - len(self.ended))
        if isinstance(step, Finished):
            self.said.write_text(json.dumps(self.ended))
        return step
