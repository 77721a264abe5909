"""Look-ups at a node, beside the sessions themselves: keys are changed, and what nobody wants any more goes.

A department that answers keeps the key that its tables are made with, and a clerk's node keeps the tables,
both on their shelves, for the next session. Where one is gone it is made again, and sent again.
"""

from datetime import datetime, timedelta
from typing import Any, Final

from node.home import Home
from node.journal import named
from node.logs import Log
from node.shelf import shelf_of, shelves
from node.state import State
from policies.model import ActivePolicy
from protocols.errors import InputError, MinshuError
from protocols.lookup import build

JOB_TYPE: Final = "lookup/1"


def rotate(home: Home, state: State, dataset: str) -> dict[str, Any]:
    """Have every session over a dataset that begins from here on use a new key, and send its whole table.

    Returns:
        The dataset, and how many tables there are of it.

    Raises:
        InputError: no such dataset here.
        StateConflict: it could not be stored. Asked again, it is done once more, which harms nobody.
    """
    if state.dataset(dataset) is None:
        raise InputError(
            "no dataset of that name is registered here",
            code="unknown-dataset",
            hint="minshu-node dataset list names them",
        )
    tables = build.rotate(shelf_of(home, JOB_TYPE), dataset)
    with state.change() as change:
        change.log("lookup.rotated", {"dataset": named(dataset), "count": tables})
    return {"dataset": dataset, "tables": tables}


def delete_unused(state: State, home: Home, active: ActivePolicy | None, now: datetime, log: Log) -> None:
    """Delete what lies on the shelves and no session has wanted for `retention.release_days`.

    A table is sealed row by row, but it is about persons: it stays for no longer than a list that nobody
    opens. What cannot be deleted now is logged, and due again at the next look.
    """
    if active is None:
        return
    try:
        before = now - timedelta(days=active.policy.retention.release_days)
        gone = sum(shelf.drop_unused(before) for shelf in shelves(home))
        if gone:
            with state.change() as change:
                change.log("deletion.receipt", {"what": "shelf", "count": gone})
    except MinshuError as error:
        log.failure(error.code, sentence=error.message)
