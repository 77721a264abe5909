"""The registry: every job type Minshu knows, in one tuple. An unlisted type is refused everywhere."""

from functools import cache

from protocols.errors import Refused
from protocols.jobs.job_type import JobType

JOB_TYPES: tuple[JobType, ...]


@cache
def _job_types() -> tuple[JobType, ...]:
    # Imported when asked for: what they build on is written in the words of `job_type`, which lies in here.
    from protocols.jobs.crosscheck import Crosscheck
    from protocols.jobs.crosscheck_series import CrosscheckSeries
    from protocols.jobs.joined_moments import JoinedMoments
    from protocols.jobs.joined_rule import JoinedRule
    from protocols.jobs.joined_table import JoinedTable
    from protocols.jobs.lookup import Lookups
    from protocols.jobs.match import Matching
    from protocols.jobs.overlap import Overlap
    from protocols.jobs.quality import QualityAcross
    from protocols.jobs.release import Release
    from protocols.jobs.score_joined import ScoreJoined
    from protocols.jobs.table import CrossTable
    from protocols.jobs.train import Train
    from protocols.jobs.train_joined import TrainJoined

    return (
        Crosscheck(),
        CrosscheckSeries(),
        CrossTable(),
        Release(),
        QualityAcross(),
        Matching(),
        Overlap(),
        Lookups(),
        JoinedTable(),
        JoinedMoments(),
        JoinedRule(),
        ScoreJoined(),
        Train(),
        TrainJoined(),
    )


def __getattr__(name: str) -> tuple[JobType, ...]:
    if name == "JOB_TYPES":
        return _job_types()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def job_type(name: str) -> JobType:
    """Return the job type called `name`.

    Raises:
        Refused: no such type in this version.
    """
    for known in _job_types():
        if known.name == name:
            return known
    raise Refused(
        "the job type is unknown to this version",
        code="unknown-job-type",
        hint="known types: " + ", ".join(known.name for known in _job_types()),
    )
