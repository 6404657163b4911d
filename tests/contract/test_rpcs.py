"""Every RPC, called with generated stubs and plain protobuf alone, as a client in another language would."""

from collections.abc import Callable, Sequence

import pytest
from contract.checkpoint_calls import list_snapshots, read_checkpoint, restore_job, roll_back_job
from contract.job_calls import (
    add_group,
    confirm_shared_memory,
    create_job,
    delete_job,
    get_job,
    join,
    leave,
    list_jobs,
    list_workers,
    open_shared_memory,
    renew_lease,
    set_policy,
    update_group,
    update_job,
    wait_durable,
)
from contract.plain import (
    ALL_RPCS,
    SECONDS,
    Plain,
    header,
    refused,
)
from contract.training_calls import (
    check,
    get_server_status,
    inspect_group,
    list_algorithms,
    list_groups,
    list_option_changes,
    list_rejections,
    list_rounds,
    pull,
    pull_rows,
    push,
    read_state,
    server_reflection_info,
    step,
    watch,
    watch_job,
    watch_versions,
    write_state,
)
from contract.two_groups import GRADIENT, create
from google.protobuf.descriptor import MethodDescriptor

from optd_wire.v1 import (
    training_service_pb2,
)

CALLS: Sequence[Callable[[Plain, str], None]] = [
    list_snapshots,
    read_checkpoint,
    restore_job,
    roll_back_job,
    create_job,
    get_job,
    list_jobs,
    delete_job,
    add_group,
    update_group,
    set_policy,
    update_job,
    wait_durable,
    join,
    renew_lease,
    leave,
    open_shared_memory,
    confirm_shared_memory,
    list_workers,
    push,
    pull,
    pull_rows,
    watch_versions,
    step,
    read_state,
    write_state,
    get_server_status,
    list_algorithms,
    list_groups,
    inspect_group,
    list_rejections,
    list_option_changes,
    list_rounds,
    watch_job,
    check,
    watch,
    server_reflection_info,
]
BY_NAME = {called.__name__.replace("_", ""): called for called in CALLS}


@pytest.mark.parametrize("method", ALL_RPCS, ids=lambda method: method.full_name.removeprefix("optd.v1."))
def test_every_rpc_serves_plain_stubs(method: MethodDescriptor, plain: Plain, name: str):
    """An RPC that is new in the contract fails here until there is a call of it."""
    BY_NAME[method.name.lower()](plain, name)


def test_every_refused_push_counts(plain: Plain, name: str):
    """Every refused push counts: among those of its job, or of the server where the job is not known."""
    create(plain, name)
    epoch = plain.join(name)
    before = plain.status().rejections_without_job
    with refused("INVALID_REQUEST", "must have its header"):
        plain.push(None, GRADIENT)
    with refused("INVALID_REQUEST", "must have its header"):
        next(plain.training.Step(iter([training_service_pb2.StepRequest(last=True)]), timeout=SECONDS))
    with refused("UNKNOWN_JOB", "no-such-job"):
        plain.push(header("no-such-job", "w0", 1, 1), GRADIENT)
    assert plain.status().rejections_without_job == before + 3
    first = header(name, "w0", epoch, 1)
    delivery = training_service_pb2.Delivery(encoding="ENCODING_TOPK")
    with refused("INVALID_REQUEST", "cannot travel in"):
        step = training_service_pb2.StepRequest(header=first, delivery=delivery, frames=GRADIENT, last=True)
        next(plain.training.Step(iter([step]), timeout=SECONDS))
    with refused("FUTURE_VERSION", "of version 7"):
        plain.push(header(name, "w0", epoch, 1, base=7), GRADIENT)
    assert dict(plain.rejections(name).counts) == {"INVALID_REQUEST": 1, "FUTURE_VERSION": 1}
    assert [(r.worker, r.reason) for r in plain.rejections(name).recent][-1] == ("w0", "FUTURE_VERSION")
    assert plain.status().rejections_without_job == before + 3
    assert plain.push(first, GRADIENT).version.version == 1
