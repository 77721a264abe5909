"""What jobs of both kinds of training are made of here, and what is asked of their models."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.encoding import sha256_digest
from protocols.ids import DatasetName, KeyId, NodeName, Organisation, Role
from protocols.jobs.job_type import Content
from protocols.party import Rand
from protocols.training.model import Model, read_model
from protocols.wire import InputSummary, JobInput, JobSpec

CTX: Final = hashlib.sha256(b"minshu/bench/models").digest()
_ZERO: Final = sha256_digest(b"minshu/bench")
_CREATED: Final = datetime(2026, 12, 1, tzinfo=UTC)


def spec_of(
    job_type: str,
    params: Mapping[str, Any],
    seats: Iterable[Role],
    slots: Mapping[Role, Iterable[str]],
    seed: int,
) -> JobSpec:
    """Return a job; what binds it to a roster and to people is made up, as nobody here asks for it.

    Args:
        job_type: its name.
        params: of the job.
        seats: all roles.
        slots: role → slots of the dataset that it brings.
        seed: another one makes it another job: other random splits.
    """
    return JobSpec(
        job_type=job_type,
        params={"areas": "demo-city", **params},
        inputs=tuple(
            JobInput(
                role, Organisation(f"{role}.example"), DatasetName("records"), {slot: slot for slot in own}
            )
            for role, own in slots.items()
        ),
        roles={role: NodeName(f"{role}.example/node") for role in seats},
        purpose="P-1",
        legal_basis="DPIA-1",
        expected_use="measurement",
        recipients=(),
        requester=KeyId(_ZERO),
        collaboration="example",
        roster_digest=_ZERO,
        created=_CREATED,
        expires=_CREATED + timedelta(days=1),
        nonce=f"{seed:032x}",
    )


def summary_of(rows: int, keys: int, rule_version: str) -> InputSummary:
    """Return what an admission says of a dataset."""
    return InputSummary(rows, keys, keys, _ZERO, "2026-12-01", _ZERO, rule_version)


def seeded(*seed: object) -> Rand:
    """Return a source of bytes that is the same every time, so that a figure can be found again."""
    words = hashlib.sha256("/".join(map(str, seed)).encode()).digest()
    return np.random.default_rng(np.frombuffer(words, "<u4")).bytes


def model_of(released: Content) -> Model:
    """Return the model of a release."""
    files = released.table.columns
    return read_model(dict(zip(files["file"].tolist(), files["data"].tolist(), strict=True)))


def auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[Any]) -> float:
    """Return how often a row of label 1 has a higher score than one of label 0; a tie counts half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ones = int(labels.sum())
    above = ranks[labels == 1].sum() - ones * (ones + 1) / 2
    return float(above) / (ones * (len(labels) - ones))
