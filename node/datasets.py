"""How a registered dataset is opened: its place in the department, read as its catalogue entry says."""

from node.description import Description
from node.mapping import mapped_source
from node.sources import Access, Place, Source, open_source
from node.state import Dataset


def open_dataset(dataset: Dataset, access: Access) -> Source:
    """Return the source of a dataset, to be used in a `with` block.

    Raises:
        InputError: as `open_place`.
    """
    return open_place(dataset.place, dataset.description, access)


def open_place(place: Place, description: Description, access: Access) -> Source:
    """Return the source of a table that is described so; its mapped columns hold standard codes.

    Raises:
        InputError: there is no such place, nobody here reads what is there, or a mapping is wrong.
    """
    return mapped_source(open_source(place, access), description.mapping, access.codes)
