import threading

import pytest

from demo.processes import Children
from protocols.errors import Unreachable


def test_who_waits_for_a_child_that_ended_is_told_at_once_and_which_it_was(tmp_path):
    with Children() as children:
        child = children.start("node", ["minshu-node", "--version"], tmp_path / "node.log")
        child.process.wait()
        gave_up = threading.Event()
        with pytest.raises(Unreachable, match="node"), children.watched(gave_up.set):
            assert gave_up.wait(10)
