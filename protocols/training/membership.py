"""How well somebody tells who was in the training data from who was not: the membership audit of a model.

Two attacks. `by_loss` (Yeom et al. 2018, CSF, arXiv:1709.01604): who was in it has a small loss. `by_shadows`
(Carlini et al. 2022, "LiRA", IEEE S&P, arXiv:2112.03570): models trained with and without a row tell how its
score is distributed in both cases. Both are reported as the AUC of telling members from others, .5 at best
for the model; the second also as the part of members found at a false-alarm rate of 1 in 100.

An audit needs the members' rows, so it is a local computation of a node, or of the bench; its two numbers
are a release on private rows, like any metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocols.training.schema import Floats, Rows

Members = npt.NDArray[np.bool_]
Train = Callable[[Rows], Callable[[Rows], Floats]]
"""Trains on rows; returns what gives log-odds for rows."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an attack achieved.

    Attributes:
        auc: of telling members from others.
        found: part of the members found while 1 in 100 others is taken for one.
    """

    auc: float
    found: float


def confidence(margins: Floats, labels: npt.NDArray[np.uint8]) -> Floats:
    """Return the log-odds of each row's own label; the larger, the smaller its loss."""
    return np.where(labels == 1, margins, -margins)


def by_loss(margins: Floats, rows: Rows, members: Members) -> Audit:
    """Return what the loss alone tells.

    Args:
        margins: n log-odds by the model under audit.
        rows: n.
        members: which of them it was trained on.
    """
    return _audit(confidence(margins, rows.labels), members)


def by_shadows(
    margins: Floats, rows: Rows, members: Members, train: Train, halves: Sequence[Members]
) -> Audit:
    """Return what models trained with and without each row tell.

    A row's score is taken as normal, with a mean of its own in both cases and one variance for all rows in
    each case, as suits few shadow models.

    Args:
        margins: n log-odds by the model under audit.
        rows: n.
        members: which of them it was trained on.
        train: trains a model as the one under audit was trained.
        halves: for each shadow model, which rows it gets; every row is in some and not in others.
    """
    inside = np.array(halves)
    scores = np.stack([confidence(train(rows.take(half))(rows), rows.labels) for half in halves])
    own = confidence(margins, rows.labels)
    likely = np.zeros(len(rows))
    for sign, mask in ((1, inside), (-1, ~inside)):
        count = mask.sum(axis=0)
        mean = (scores * mask).sum(axis=0) / count
        variance = (((scores - mean) ** 2) * mask).sum() / max(count.sum() - len(rows), 1) + 1e-12
        likely += sign * (-((own - mean) ** 2) / (2 * variance) - np.log(variance) / 2)
    return _audit(likely, members)


def _audit(evidence: Floats, members: Members) -> Audit:
    inside, others = evidence[members], np.sort(evidence[~members])
    left = np.searchsorted(others, inside, side="left")
    right = np.searchsorted(others, inside, side="right")
    area = float((left + right).mean() / (2 * len(others)))
    threshold = others[min(int(np.ceil(0.99 * len(others))), len(others) - 1)]
    return Audit(area, float((inside > threshold).mean()))
