from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    def __init__(self, job: _Optional[bytes] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: JobView
    def __init__(self, view: _Optional[_Union[JobView, _Mapping]] = ...) -> None: ...

class ShowRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class ShowResponse(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: JobView
    def __init__(self, view: _Optional[_Union[JobView, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("views",)
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    views: _containers.RepeatedCompositeFieldContainer[JobView]
    def __init__(self, views: _Optional[_Iterable[_Union[JobView, _Mapping]]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("note", "piece")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    note: bytes
    piece: bytes
    def __init__(self, note: _Optional[bytes] = ..., piece: _Optional[bytes] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: JobView
    def __init__(self, view: _Optional[_Union[JobView, _Mapping]] = ...) -> None: ...

class CatalogueRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class CatalogueResponse(_message.Message):
    __slots__ = ("catalogues",)
    CATALOGUES_FIELD_NUMBER: _ClassVar[int]
    catalogues: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, catalogues: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RosterRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class RosterResponse(_message.Message):
    __slots__ = ("roster", "freshness", "between")
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    BETWEEN_FIELD_NUMBER: _ClassVar[int]
    roster: bytes
    freshness: bytes
    between: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, roster: _Optional[bytes] = ..., freshness: _Optional[bytes] = ..., between: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("question",)
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    question: bytes
    def __init__(self, question: _Optional[bytes] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("node", "verdict", "code")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    verdict: bytes
    code: str
    def __init__(self, node: _Optional[str] = ..., verdict: _Optional[bytes] = ..., code: _Optional[str] = ...) -> None: ...

class FileRequest(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: bytes
    def __init__(self, outcome: _Optional[bytes] = ...) -> None: ...

class FileResponse(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: JobView
    def __init__(self, view: _Optional[_Union[JobView, _Mapping]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("organisation", "purpose", "jobs", "succeeded", "refused", "rows", "records", "rho", "last")
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    RHO_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    organisation: str
    purpose: str
    jobs: int
    succeeded: int
    refused: int
    rows: int
    records: int
    rho: str
    last: str
    def __init__(self, organisation: _Optional[str] = ..., purpose: _Optional[str] = ..., jobs: _Optional[int] = ..., succeeded: _Optional[int] = ..., refused: _Optional[int] = ..., rows: _Optional[int] = ..., records: _Optional[int] = ..., rho: _Optional[str] = ..., last: _Optional[str] = ...) -> None: ...

class JobView(_message.Message):
    __slots__ = ("job", "state", "attempt", "job_type", "purpose", "code", "sentence", "hint", "submitted", "runs", "releases", "answered_by", "legal_basis", "expected_use", "outcomes")
    JOB_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    JOB_TYPE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    LEGAL_BASIS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_USE_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    job: str
    state: str
    attempt: int
    job_type: str
    purpose: str
    code: str
    sentence: str
    hint: str
    submitted: str
    runs: _containers.RepeatedCompositeFieldContainer[RunView]
    releases: _containers.RepeatedCompositeFieldContainer[ReleaseView]
    answered_by: str
    legal_basis: str
    expected_use: str
    outcomes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, job: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., job_type: _Optional[str] = ..., purpose: _Optional[str] = ..., code: _Optional[str] = ..., sentence: _Optional[str] = ..., hint: _Optional[str] = ..., submitted: _Optional[str] = ..., runs: _Optional[_Iterable[_Union[RunView, _Mapping]]] = ..., releases: _Optional[_Iterable[_Union[ReleaseView, _Mapping]]] = ..., answered_by: _Optional[str] = ..., legal_basis: _Optional[str] = ..., expected_use: _Optional[str] = ..., outcomes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RunView(_message.Message):
    __slots__ = ("node", "role", "state", "attempt", "code", "sentence", "hint", "verdict", "phase", "done", "total", "approvals_needed", "approvals_given", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_NEEDED_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_GIVEN_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    node: str
    role: str
    state: str
    attempt: int
    code: str
    sentence: str
    hint: str
    verdict: bytes
    phase: str
    done: int
    total: int
    approvals_needed: int
    approvals_given: int
    figures: _containers.ScalarMap[str, str]
    def __init__(self, node: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., code: _Optional[str] = ..., sentence: _Optional[str] = ..., hint: _Optional[str] = ..., verdict: _Optional[bytes] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., approvals_needed: _Optional[int] = ..., approvals_given: _Optional[int] = ..., figures: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ReleaseView(_message.Message):
    __slots__ = ("release", "name", "output_class", "node", "bytes", "expires")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_CLASS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    release: str
    name: str
    output_class: str
    node: str
    bytes: int
    expires: str
    def __init__(self, release: _Optional[str] = ..., name: _Optional[str] = ..., output_class: _Optional[str] = ..., node: _Optional[str] = ..., bytes: _Optional[int] = ..., expires: _Optional[str] = ...) -> None: ...
