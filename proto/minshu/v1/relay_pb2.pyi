from minshu.v1 import audit_pb2 as _audit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ControlRequest(_message.Message):
    __slots__ = ("hello", "answer", "progress", "ended", "upload", "admitted", "explained", "outcome", "rotation", "letter")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    LETTER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    answer: Answer
    progress: RunProgress
    ended: RunEnded
    upload: ReleaseUpload
    admitted: Admitted
    explained: Explained
    outcome: OutcomeFiled
    rotation: KeyRotation
    letter: _audit_pb2.Letter
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ..., ended: _Optional[_Union[RunEnded, _Mapping]] = ..., upload: _Optional[_Union[ReleaseUpload, _Mapping]] = ..., admitted: _Optional[_Union[Admitted, _Mapping]] = ..., explained: _Optional[_Union[Explained, _Mapping]] = ..., outcome: _Optional[_Union[OutcomeFiled, _Mapping]] = ..., rotation: _Optional[_Union[KeyRotation, _Mapping]] = ..., letter: _Optional[_Union[_audit_pb2.Letter, _Mapping]] = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("welcome", "roster", "offer", "start", "stop", "stored", "noted", "admit", "explain", "freshness", "filed", "letter")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    NOTED_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    FILED_FIELD_NUMBER: _ClassVar[int]
    LETTER_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    roster: RosterUpdate
    offer: JobOffer
    start: Start
    stop: Stop
    stored: ReleaseStored
    noted: RunNoted
    admit: Admit
    explain: Explain
    freshness: FreshnessUpdate
    filed: StatementStored
    letter: _audit_pb2.Letter
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., roster: _Optional[_Union[RosterUpdate, _Mapping]] = ..., offer: _Optional[_Union[JobOffer, _Mapping]] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., stored: _Optional[_Union[ReleaseStored, _Mapping]] = ..., noted: _Optional[_Union[RunNoted, _Mapping]] = ..., admit: _Optional[_Union[Admit, _Mapping]] = ..., explain: _Optional[_Union[Explain, _Mapping]] = ..., freshness: _Optional[_Union[FreshnessUpdate, _Mapping]] = ..., filed: _Optional[_Union[StatementStored, _Mapping]] = ..., letter: _Optional[_Union[_audit_pb2.Letter, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "node", "roster_version", "catalogue", "live")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    version: int
    node: str
    roster_version: int
    catalogue: bytes
    live: _containers.RepeatedCompositeFieldContainer[Attempt]
    def __init__(self, version: _Optional[int] = ..., node: _Optional[str] = ..., roster_version: _Optional[int] = ..., catalogue: _Optional[bytes] = ..., live: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("job", "attempt")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job: str
    attempt: int
    def __init__(self, job: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("coordinator", "roster", "freshness", "time")
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    coordinator: str
    roster: bytes
    freshness: bytes
    time: str
    def __init__(self, coordinator: _Optional[str] = ..., roster: _Optional[bytes] = ..., freshness: _Optional[bytes] = ..., time: _Optional[str] = ...) -> None: ...

class RosterUpdate(_message.Message):
    __slots__ = ("roster",)
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    roster: bytes
    def __init__(self, roster: _Optional[bytes] = ...) -> None: ...

class FreshnessUpdate(_message.Message):
    __slots__ = ("freshness",)
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    freshness: bytes
    def __init__(self, freshness: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class Explain(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: bytes
    def __init__(self, id: _Optional[str] = ..., request: _Optional[bytes] = ...) -> None: ...

class Explained(_message.Message):
    __slots__ = ("id", "verdict")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    id: str
    verdict: bytes
    def __init__(self, id: _Optional[str] = ..., verdict: _Optional[bytes] = ...) -> None: ...

class OutcomeFiled(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: bytes
    def __init__(self, outcome: _Optional[bytes] = ...) -> None: ...

class KeyRotation(_message.Message):
    __slots__ = ("rotation",)
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    rotation: bytes
    def __init__(self, rotation: _Optional[bytes] = ...) -> None: ...

class StatementStored(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    def __init__(self, sha256: _Optional[str] = ...) -> None: ...

class JobOffer(_message.Message):
    __slots__ = ("attempt", "job")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    job: bytes
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., job: _Optional[bytes] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("attempt", "verdict")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    verdict: bytes
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., verdict: _Optional[bytes] = ...) -> None: ...

class Admit(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("attempt", "admission")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    admission: bytes
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., admission: _Optional[bytes] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("attempt", "admissions")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ADMISSIONS_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    admissions: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., admissions: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("attempt", "code", "sentence")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    code: str
    sentence: str
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., code: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class RunProgress(_message.Message):
    __slots__ = ("attempt", "phase", "done", "total", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    phase: str
    done: int
    total: int
    figures: _containers.ScalarMap[str, str]
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., figures: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RunEnded(_message.Message):
    __slots__ = ("attempt", "state", "code", "sentence", "hint", "opened")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    state: str
    code: str
    sentence: str
    hint: str
    opened: bool
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., state: _Optional[str] = ..., code: _Optional[str] = ..., sentence: _Optional[str] = ..., hint: _Optional[str] = ..., opened: bool = ...) -> None: ...

class ReleaseUpload(_message.Message):
    __slots__ = ("attempt", "note", "release", "offset", "piece", "last")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    note: bytes
    release: str
    offset: int
    piece: bytes
    last: bool
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., note: _Optional[bytes] = ..., release: _Optional[str] = ..., offset: _Optional[int] = ..., piece: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class ReleaseStored(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: str
    def __init__(self, release: _Optional[str] = ...) -> None: ...

class RunNoted(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ...) -> None: ...

class DataRequest(_message.Message):
    __slots__ = ("open", "frame")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    open: Attempt
    frame: bytes
    def __init__(self, open: _Optional[_Union[Attempt, _Mapping]] = ..., frame: _Optional[bytes] = ...) -> None: ...

class DataResponse(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: bytes
    def __init__(self, frame: _Optional[bytes] = ...) -> None: ...
