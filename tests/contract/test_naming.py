"""buf's STANDARD rules for names, read off the generated descriptors: they hold also where buf cannot run."""

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

import optd_wire.v1

PASCAL = re.compile(r"([A-Z][a-z0-9]*)+")
LOWER_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
PROTO_ROOT = Path(__file__).resolve().parents[2] / "proto"


def contract() -> list[FileDescriptorProto]:
    """The files of the contract, as the generated modules hold them."""
    files = []
    for module in pkgutil.iter_modules(optd_wire.v1.__path__, "optd_wire.v1."):
        if module.name.endswith("_pb2"):
            file = FileDescriptorProto()
            importlib.import_module(module.name).DESCRIPTOR.CopyToProto(file)
            files.append(file)
    return files


def file_breaches(file: FileDescriptorProto) -> Iterator[str]:
    path = PurePosixPath(file.name)
    if not LOWER_SNAKE.fullmatch(path.stem):
        yield f"FILE_LOWER_SNAKE_CASE {file.name}"
    if str(path.parent) != file.package.replace(".", "/"):
        yield f"PACKAGE_DIRECTORY_MATCH {file.package}"
    if not all(LOWER_SNAKE.fullmatch(part) for part in file.package.split(".")):
        yield f"PACKAGE_LOWER_SNAKE_CASE {file.package}"
    if not re.search(r"\.v[0-9]+$", file.package):
        yield f"PACKAGE_VERSION_SUFFIX {file.package}"
    if file.syntax != "proto3":
        yield f"SYNTAX_SPECIFIED {file.name}"
    if file.public_dependency or file.weak_dependency:
        yield f"IMPORT_NO_PUBLIC {file.name}"
    for enum in file.enum_type:
        yield from enum_breaches(enum)
    for message in file.message_type:
        yield from message_breaches(message)
    for service in file.service:
        if not PASCAL.fullmatch(service.name):
            yield f"SERVICE_PASCAL_CASE {service.name}"
        if not service.name.endswith("Service"):
            yield f"SERVICE_SUFFIX {service.name}"


def enum_breaches(enum: EnumDescriptorProto) -> Iterator[str]:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    if not PASCAL.fullmatch(enum.name):
        yield f"ENUM_PASCAL_CASE {enum.name}"
    if enum.options.allow_alias:
        yield f"ENUM_NO_ALLOW_ALIAS {enum.name}"
    if enum.value[0].number != 0:
        yield f"ENUM_FIRST_VALUE_ZERO {enum.name}"
    for value in enum.value:
        if not UPPER_SNAKE.fullmatch(value.name):
            yield f"ENUM_VALUE_UPPER_SNAKE_CASE {value.name}"
        if not value.name.startswith(prefix):
            yield f"ENUM_VALUE_PREFIX {value.name}"
        if value.number == 0 and not value.name.endswith("_UNSPECIFIED"):
            yield f"ENUM_ZERO_VALUE_SUFFIX {value.name}"


def message_breaches(message: DescriptorProto) -> Iterator[str]:
    if not PASCAL.fullmatch(message.name):
        yield f"MESSAGE_PASCAL_CASE {message.name}"
    for field in message.field:
        if not LOWER_SNAKE.fullmatch(field.name):
            yield f"FIELD_LOWER_SNAKE_CASE {message.name}.{field.name}"
    optional = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, oneof in enumerate(message.oneof_decl):
        if index not in optional and not LOWER_SNAKE.fullmatch(oneof.name):
            yield f"ONEOF_LOWER_SNAKE_CASE {message.name}.{oneof.name}"
    for enum in message.enum_type:
        yield from enum_breaches(enum)
    for nested in message.nested_type:
        yield from message_breaches(nested)


def rpc_breaches(files: list[FileDescriptorProto]) -> Iterator[str]:
    """The rules for requests and responses: a pair for each RPC, named after it, used nowhere else."""
    rpcs = [(file, service, rpc) for file in files for service in file.service for rpc in service.method]
    uses = Counter(name for _, _, rpc in rpcs for name in (rpc.input_type, rpc.output_type))
    for file, service, rpc in rpcs:
        if not PASCAL.fullmatch(rpc.name):
            yield f"RPC_PASCAL_CASE {rpc.name}"
        for kind, name in (("Request", rpc.input_type), ("Response", rpc.output_type)):
            standard = {f".{file.package}.{prefix}{rpc.name}{kind}" for prefix in ("", service.name)}
            if name not in standard:
                yield f"RPC_{kind.upper()}_STANDARD_NAME {rpc.name}"
            if uses[name] > 1:
                yield f"RPC_REQUEST_RESPONSE_UNIQUE {name}"


def breaches(files: list[FileDescriptorProto]) -> list[str]:
    found = [breach for file in files for breach in file_breaches(file)]
    return found + list(rpc_breaches(files))


def test_generated_modules_hold_every_file_of_the_contract():
    written = {str(path.relative_to(PROTO_ROOT)) for path in (PROTO_ROOT / "optd/v1").rglob("*.proto")}
    assert {file.name for file in contract()} == written


def test_contract_keeps_the_rules():
    assert breaches(contract()) == []


def good_file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="optd/v1/thing_service.proto", package="optd.v1", syntax="proto3")
    for name in ("GetThingRequest", "GetThingResponse"):
        file.message_type.add(name=name).field.add(name="some_name", number=1)
    color = file.enum_type.add(name="LineColor")
    color.value.add(name="LINE_COLOR_UNSPECIFIED", number=0)
    color.value.add(name="LINE_COLOR_RED", number=1)
    file.service.add(name="ThingService").method.add(
        name="GetThing", input_type=".optd.v1.GetThingRequest", output_type=".optd.v1.GetThingResponse"
    )
    return file


def change(path: str, value: object) -> FileDescriptorProto:
    """The good file with one attribute changed, at a path such as `service.0.name`."""
    file = good_file()
    *way, last = path.split(".")
    target = file
    for part in way:
        target = target[int(part)] if part.isdigit() else getattr(target, part)
    setattr(target, last, value)
    return file


def test_rules_accept_a_good_file():
    assert breaches([good_file()]) == []


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("name", "optd/v1/thingService.proto", "FILE_LOWER_SNAKE_CASE"),
        ("name", "optd/thing_service.proto", "PACKAGE_DIRECTORY_MATCH"),
        ("package", "optd", "PACKAGE_VERSION_SUFFIX"),
        ("package", "Optd.v1", "PACKAGE_LOWER_SNAKE_CASE"),
        ("syntax", "", "SYNTAX_SPECIFIED"),
        ("message_type.0.name", "get_thing", "MESSAGE_PASCAL_CASE"),
        ("message_type.0.field.0.name", "someName", "FIELD_LOWER_SNAKE_CASE"),
        ("enum_type.0.name", "line_color", "ENUM_PASCAL_CASE"),
        ("enum_type.0.value.0.name", "LINE_COLOR_NONE", "ENUM_ZERO_VALUE_SUFFIX"),
        ("enum_type.0.value.0.number", 2, "ENUM_FIRST_VALUE_ZERO"),
        ("enum_type.0.value.1.name", "RED", "ENUM_VALUE_PREFIX"),
        ("enum_type.0.value.1.name", "LINE_COLOR_red", "ENUM_VALUE_UPPER_SNAKE_CASE"),
        ("enum_type.0.options.allow_alias", True, "ENUM_NO_ALLOW_ALIAS"),
        ("service.0.name", "Things", "SERVICE_SUFFIX"),
        ("service.0.name", "thing_Service", "SERVICE_PASCAL_CASE"),
        ("service.0.method.0.name", "get_thing", "RPC_PASCAL_CASE"),
        ("service.0.method.0.input_type", ".optd.v1.Thing", "RPC_REQUEST_STANDARD_NAME"),
        ("service.0.method.0.output_type", ".optd.v1.Thing", "RPC_RESPONSE_STANDARD_NAME"),
        ("service.0.method.0.output_type", ".optd.v1.GetThingRequest", "RPC_REQUEST_RESPONSE_UNIQUE"),
    ],
)
def test_rules_find_a_breach(path: str, value: object, rule: str):
    assert rule in {breach.split()[0] for breach in breaches([change(path, value)])}
