from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Weights(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHTS_LATEST: _ClassVar[Weights]
    WEIGHTS_AVERAGED: _ClassVar[Weights]
    WEIGHTS_PREDICTED: _ClassVar[Weights]

class PushStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUSH_STATUS_UNSPECIFIED: _ClassVar[PushStatus]
    PUSH_STATUS_APPLIED: _ClassVar[PushStatus]
    PUSH_STATUS_ALREADY_APPLIED: _ClassVar[PushStatus]
    PUSH_STATUS_SET_ASIDE: _ClassVar[PushStatus]
    PUSH_STATUS_REFUSED: _ClassVar[PushStatus]
WEIGHTS_LATEST: Weights
WEIGHTS_AVERAGED: Weights
WEIGHTS_PREDICTED: Weights
PUSH_STATUS_UNSPECIFIED: PushStatus
PUSH_STATUS_APPLIED: PushStatus
PUSH_STATUS_ALREADY_APPLIED: PushStatus
PUSH_STATUS_SET_ASIDE: PushStatus
PUSH_STATUS_REFUSED: PushStatus

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("incarnation", "clock")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    clock: int
    def __init__(self, incarnation: _Optional[int] = ..., clock: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("weights", "unless", "begin", "n_elements")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    UNLESS_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    N_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    weights: Weights
    unless: Version
    begin: int
    n_elements: int
    def __init__(self, weights: _Optional[_Union[Weights, str]] = ..., unless: _Optional[_Union[Version, _Mapping]] = ..., begin: _Optional[int] = ..., n_elements: _Optional[int] = ...) -> None: ...

class FetchResult(_message.Message):
    __slots__ = ("version", "n_elements")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    N_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    version: Version
    n_elements: int
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., n_elements: _Optional[int] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("item", "lease", "replica", "begin", "n_elements", "base", "rate", "examples", "skipped", "layout", "fetch", "incarnation")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    N_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    item: int
    lease: int
    replica: int
    begin: int
    n_elements: int
    base: Version
    rate: float
    examples: int
    skipped: _containers.RepeatedScalarFieldContainer[int]
    layout: str
    fetch: bool
    incarnation: int
    def __init__(self, item: _Optional[int] = ..., lease: _Optional[int] = ..., replica: _Optional[int] = ..., begin: _Optional[int] = ..., n_elements: _Optional[int] = ..., base: _Optional[_Union[Version, _Mapping]] = ..., rate: _Optional[float] = ..., examples: _Optional[int] = ..., skipped: _Optional[_Iterable[int]] = ..., layout: _Optional[str] = ..., fetch: _Optional[bool] = ..., incarnation: _Optional[int] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class PushResult(_message.Message):
    __slots__ = ("status", "version", "refusal", "detail", "staleness", "n_elements")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    N_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    status: PushStatus
    version: Version
    refusal: str
    detail: str
    staleness: int
    n_elements: int
    def __init__(self, status: _Optional[_Union[PushStatus, str]] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., refusal: _Optional[str] = ..., detail: _Optional[str] = ..., staleness: _Optional[int] = ..., n_elements: _Optional[int] = ...) -> None: ...

class VectorReply(_message.Message):
    __slots__ = ("fetched", "chunk", "pushed")
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    fetched: FetchResult
    chunk: Chunk
    pushed: PushResult
    def __init__(self, fetched: _Optional[_Union[FetchResult, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., pushed: _Optional[_Union[PushResult, _Mapping]] = ...) -> None: ...

class LoadHeader(_message.Message):
    __slots__ = ("n_elements",)
    N_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    n_elements: int
    def __init__(self, n_elements: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: LoadHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[LoadHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetAsideRequest(_message.Message):
    __slots__ = ("items", "reason")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, items: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class SetAsideReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Interval(_message.Message):
    __slots__ = ("begin", "end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    begin: int
    end: int
    def __init__(self, begin: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class StateReply(_message.Message):
    __slots__ = ("shard", "incarnation", "begin", "end", "loaded", "clock", "examples", "applied", "set_aside", "repeated_pushes", "refused", "staleness", "skipped", "queued", "nbytes_received", "nbytes_sent", "traffic", "twin", "follows", "trouble")
    class SetAsideEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class StalenessEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class TrafficEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    REPEATED_PUSHES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    NBYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    NBYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    TWIN_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    incarnation: int
    begin: int
    end: int
    loaded: bool
    clock: int
    examples: int
    applied: _containers.RepeatedCompositeFieldContainer[Interval]
    set_aside: _containers.ScalarMap[int, str]
    repeated_pushes: int
    refused: _containers.ScalarMap[str, int]
    staleness: _containers.ScalarMap[int, int]
    skipped: int
    queued: int
    nbytes_received: int
    nbytes_sent: int
    traffic: _containers.ScalarMap[str, int]
    twin: int
    follows: int
    trouble: str
    def __init__(self, shard: _Optional[int] = ..., incarnation: _Optional[int] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ..., loaded: _Optional[bool] = ..., clock: _Optional[int] = ..., examples: _Optional[int] = ..., applied: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ..., set_aside: _Optional[_Mapping[int, str]] = ..., repeated_pushes: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ..., staleness: _Optional[_Mapping[int, int]] = ..., skipped: _Optional[int] = ..., queued: _Optional[int] = ..., nbytes_received: _Optional[int] = ..., nbytes_sent: _Optional[int] = ..., traffic: _Optional[_Mapping[str, int]] = ..., twin: _Optional[int] = ..., follows: _Optional[int] = ..., trouble: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class SaveRequest(_message.Message):
    __slots__ = ("snapshot", "items", "seconds")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    snapshot: int
    items: _containers.RepeatedCompositeFieldContainer[Interval]
    seconds: float
    def __init__(self, snapshot: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class SaveReply(_message.Message):
    __slots__ = ("name", "nbytes", "sha256", "n_shards", "state", "paused_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    N_SHARDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    nbytes: int
    sha256: str
    n_shards: int
    state: StateReply
    paused_s: float
    def __init__(self, name: _Optional[str] = ..., nbytes: _Optional[int] = ..., sha256: _Optional[str] = ..., n_shards: _Optional[int] = ..., state: _Optional[_Union[StateReply, _Mapping]] = ..., paused_s: _Optional[float] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthReply(_message.Message):
    __slots__ = ("serving", "shard", "incarnation")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    shard: int
    incarnation: int
    def __init__(self, serving: _Optional[bool] = ..., shard: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class FeedTwinRequest(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class FeedTwinReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: Version
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class ReleaseTwinRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseTwinReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdoptHeader(_message.Message):
    __slots__ = ("source", "nbytes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    source: Version
    nbytes: int
    def __init__(self, source: _Optional[_Union[Version, _Mapping]] = ..., nbytes: _Optional[int] = ...) -> None: ...

class AdoptRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: AdoptHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[AdoptHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class AdoptReply(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    def __init__(self, incarnation: _Optional[int] = ...) -> None: ...

class MirrorHeader(_message.Message):
    __slots__ = ("push", "clock", "staleness")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    push: PushHeader
    clock: int
    staleness: int
    def __init__(self, push: _Optional[_Union[PushHeader, _Mapping]] = ..., clock: _Optional[int] = ..., staleness: _Optional[int] = ...) -> None: ...

class MirrorRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: MirrorHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[MirrorHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class MirrorReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
