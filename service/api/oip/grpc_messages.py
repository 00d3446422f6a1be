"""The messages of the Open Inference Protocol over gRPC: the protocol's names and numbers of fields.

Classes are made of this table when it is imported, in a pool of their own: no generated code has to fit the installed
protobuf, and a process may hold a client of the protocol, whose messages are called the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_NAMED = "string name = 1; string version = 2"
_TENSOR = "string name = 1; string datatype = 2; repeated int64 shape = 3"
_CHOICE = "InferParameter"
"""The message whose fields are one `oneof`."""

_MESSAGES = {
    "Empty": "",
    "ServerLiveResponse": "bool live = 1",
    "ReadyResponse": "bool ready = 1",
    "ModelRequest": _NAMED,
    "ServerMetadataResponse": f"{_NAMED}; repeated string extensions = 3",
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": "string name = 1; repeated string versions = 2; string platform = 3; "
    "repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5",
    _CHOICE: "bool bool_param = 1; int64 int64_param = 2; string string_param = 3; double double_param = 4; "
    "uint64 uint64_param = 5",
    "Parameter": "string key = 1; InferParameter value = 2",
    "Contents": "repeated bool bool_contents = 1; repeated int32 int_contents = 2; repeated int64 int64_contents = 3; "
    "repeated uint32 uint_contents = 4; repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6; "
    "repeated double fp64_contents = 7; repeated bytes bytes_contents = 8",
    "InferInput": f"{_TENSOR}; repeated Parameter parameters = 4; Contents contents = 5",
    "InferRequestedOutput": "string name = 1; repeated Parameter parameters = 2",
    "ModelInferRequest": "string model_name = 1; string model_version = 2; string id = 3; "
    "repeated Parameter parameters = 4; repeated InferInput inputs = 5; repeated InferRequestedOutput outputs = 6; "
    "repeated bytes raw_input_contents = 7",
    "InferOutput": _TENSOR,
    "ModelInferResponse": "string model_name = 1; string model_version = 2; string id = 3; "
    "repeated InferOutput outputs = 5; repeated bytes raw_output_contents = 6",
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2",
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "ModelIndex": f"{_NAMED}; string state = 3; string reason = 4",
    "RepositoryIndexResponse": "repeated ModelIndex models = 1",
}
"""What is on the wire alone: a map is its repeated entries there, and what messages are called is not told."""


def _classes(messages: Mapping[str, str]) -> dict[str, Any]:
    file = FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    file.message_type.extend(_described(name, fields) for name, fields in messages.items())
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in messages}


def _described(message: str, fields: str) -> DescriptorProto:
    described = DescriptorProto(name=message)
    if message == _CHOICE:
        described.oneof_decl.add(name="parameter_choice")
    for text in filter(None, fields.split("; ")):
        *repeated, kind, name, _, number = text.split()
        field = described.field.add(name=name, number=int(number))
        field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
        if kind[0].isupper():
            field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
        else:
            field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
        if message == _CHOICE:
            field.oneof_index = 0
    return described


MESSAGES = _classes(_MESSAGES)
"""Classes of messages, by name."""
