"""The registry: every job type Minshu knows, in one tuple. An unlisted type is refused everywhere."""

from typing import Final

from protocols.errors import Refused
from protocols.jobs.crosscheck import Crosscheck
from protocols.jobs.job_type import JobType

JOB_TYPES: Final[tuple[JobType, ...]] = (Crosscheck(),)


def job_type(name: str) -> JobType:
    """Return the job type called `name`.

    Raises:
        Refused: no such type in this version.
    """
    for known in JOB_TYPES:
        if known.name == name:
            return known
    raise Refused(
        "the job type is unknown to this version",
        code="unknown-job-type",
        hint="known types: " + ", ".join(known.name for known in JOB_TYPES),
    )
