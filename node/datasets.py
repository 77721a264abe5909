"""How a registered dataset is opened: its place in the department, read as its catalogue entry says."""

from node.sources import Access, Source, open_source
from node.state import Dataset


def open_dataset(dataset: Dataset, access: Access) -> Source:
    """Return the source of a dataset, to be used in a `with` block.

    Raises:
        InputError: there is no such place, or nobody here reads what is there.
    """
    return open_source(dataset.place, access)
