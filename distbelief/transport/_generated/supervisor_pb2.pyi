from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Pulse(_message.Message):
    __slots__ = ("name", "leaving")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    name: str
    leaving: bool
    def __init__(self, name: _Optional[str] = ..., leaving: _Optional[bool] = ...) -> None: ...

class PulseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
