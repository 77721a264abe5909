from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Letter(_message.Message):
    __slots__ = ("id", "to", "add_checkpoint", "cosigned", "ask_head", "head", "receipt", "receipt_kept")
    ID_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    ADD_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    ASK_HEAD_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_KEPT_FIELD_NUMBER: _ClassVar[int]
    id: str
    to: str
    add_checkpoint: AddCheckpoint
    cosigned: Cosigned
    ask_head: AskHead
    head: HeadSaid
    receipt: HandReceipt
    receipt_kept: ReceiptKept
    def __init__(self, id: _Optional[str] = ..., to: _Optional[str] = ..., add_checkpoint: _Optional[_Union[AddCheckpoint, _Mapping]] = ..., cosigned: _Optional[_Union[Cosigned, _Mapping]] = ..., ask_head: _Optional[_Union[AskHead, _Mapping]] = ..., head: _Optional[_Union[HeadSaid, _Mapping]] = ..., receipt: _Optional[_Union[HandReceipt, _Mapping]] = ..., receipt_kept: _Optional[_Union[ReceiptKept, _Mapping]] = ..., **kwargs) -> None: ...

class AddCheckpoint(_message.Message):
    __slots__ = ("body",)
    BODY_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    def __init__(self, body: _Optional[bytes] = ...) -> None: ...

class Cosigned(_message.Message):
    __slots__ = ("status", "body")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status: int
    body: bytes
    def __init__(self, status: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class AskHead(_message.Message):
    __slots__ = ("nonce", "log")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    log: str
    def __init__(self, nonce: _Optional[bytes] = ..., log: _Optional[str] = ...) -> None: ...

class HeadSaid(_message.Message):
    __slots__ = ("statement", "checkpoint")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    checkpoint: bytes
    def __init__(self, statement: _Optional[bytes] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class HandReceipt(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    def __init__(self, receipt: _Optional[bytes] = ...) -> None: ...

class ReceiptKept(_message.Message):
    __slots__ = ("sha256", "code")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    code: str
    def __init__(self, sha256: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...
