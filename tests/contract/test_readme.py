"""`proto/README.md`, which tells a client in another language what the .proto files do not say by themselves."""

import re
import sys
from pathlib import Path

import pytest
from contract.plain import OWN_RPCS
from google.protobuf.descriptor import MethodDescriptor

import optd_wire
from optd_wire.errors import BY_REASON, Code

PROTO = Path(__file__).resolve().parents[2] / "proto"
README = (PROTO / "README.md").read_text()


def test_every_reason_is_listed_with_its_code_and_its_metadata() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (.*?) \| .+ \|$", README, re.MULTILINE)
    assert [reason for reason, _, _ in rows] == sorted(BY_REASON)
    for reason, code, keys in rows:
        error = BY_REASON[reason]
        assert code == error.code.name
        shown = error(**dict.fromkeys(re.findall(r"`(\w+)`", keys), "x"))
        assert set(shown.values) == set(re.findall(r"\{(\w+)", error.template))


def test_the_list_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROTO))
    from reasons import with_table

    assert with_table(README) == README
    assert with_table(README.replace("| `UNKNOWN_JOB` |", "| `GONE` |")) == README
    sys.modules.pop("reasons")


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_every_code_says_what_to_do(code: Code) -> None:
    assert f"| `{code.name}` ({code.value}) |" in README


@pytest.mark.parametrize("rpc", OWN_RPCS, ids=lambda rpc: rpc.name)
def test_every_rpc_says_whether_it_may_be_sent_again(rpc: MethodDescriptor) -> None:
    section = README.partition("## What may be sent again")[2].partition("\n## ")[0]
    assert f"`{rpc.name}`" in section or f"`{rpc.containing_service.name}`" in section


def test_the_files_are_where_the_package_says() -> None:
    assert optd_wire.PROTO_DIR == PROTO
    assert (optd_wire.PROTO_DIR / "optd" / "v1" / "tensor.proto").is_file()
