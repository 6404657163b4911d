"""The table of RPCs: their paths, their messages, and how the frames of an answer are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from optd_wire.frames import decode, decode_received
from optd_wire.row_frames import decode_rows
from optd_wire.v1 import checkpoint_service_pb2 as checkpoint
from optd_wire.v1 import inspection_service_pb2 as inspection
from optd_wire.v1 import job_service_pb2 as job
from optd_wire.v1 import state_service_pb2 as state
from optd_wire.v1 import training_service_pb2 as training
from optd_wire.v1 import worker_service_pb2 as worker

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


@dataclass(frozen=True, slots=True, eq=False)
class Rpc(Generic[Q, A]):
    """One RPC, whose requests are `Q` and whose answers are `A`."""

    path: str
    """From the root: "/package.Service/Method"."""
    answer: type[A]
    read: Callable[[type[A], bytes], tuple[A, list[Any]]] = decode
    """Takes a message of the answer apart: the message without its frames, and the frames."""

    @property
    def name(self) -> str:
        """The method's name, for messages."""
        return self.path.rpartition("/")[2]


_JOBS = "/optd.v1.JobService/"
CREATE_JOB: Rpc[job.CreateJobRequest, job.CreateJobResponse] = Rpc(_JOBS + "CreateJob", job.CreateJobResponse)
GET_JOB: Rpc[job.GetJobRequest, job.GetJobResponse] = Rpc(_JOBS + "GetJob", job.GetJobResponse)
LIST_JOBS: Rpc[job.ListJobsRequest, job.ListJobsResponse] = Rpc(_JOBS + "ListJobs", job.ListJobsResponse)
DELETE_JOB: Rpc[job.DeleteJobRequest, job.DeleteJobResponse] = Rpc(_JOBS + "DeleteJob", job.DeleteJobResponse)
ADD_GROUP: Rpc[job.AddGroupRequest, job.AddGroupResponse] = Rpc(_JOBS + "AddGroup", job.AddGroupResponse)
UPDATE_GROUP: Rpc[job.UpdateGroupRequest, job.UpdateGroupResponse] = Rpc(_JOBS + "UpdateGroup", job.UpdateGroupResponse)
SET_POLICY: Rpc[job.SetPolicyRequest, job.SetPolicyResponse] = Rpc(_JOBS + "SetPolicy", job.SetPolicyResponse)
UPDATE_JOB: Rpc[job.UpdateJobRequest, job.UpdateJobResponse] = Rpc(_JOBS + "UpdateJob", job.UpdateJobResponse)
WAIT_DURABLE: Rpc[job.WaitDurableRequest, job.WaitDurableResponse] = Rpc(_JOBS + "WaitDurable", job.WaitDurableResponse)

_WORKERS = "/optd.v1.WorkerService/"
JOIN: Rpc[worker.JoinRequest, worker.JoinResponse] = Rpc(_WORKERS + "Join", worker.JoinResponse)
RENEW_LEASE: Rpc[worker.RenewLeaseRequest, worker.RenewLeaseResponse] = Rpc(
    _WORKERS + "RenewLease", worker.RenewLeaseResponse
)
LEAVE: Rpc[worker.LeaveRequest, worker.LeaveResponse] = Rpc(_WORKERS + "Leave", worker.LeaveResponse)
OPEN_SHARED_MEMORY: Rpc[worker.OpenSharedMemoryRequest, worker.OpenSharedMemoryResponse] = Rpc(
    _WORKERS + "OpenSharedMemory", worker.OpenSharedMemoryResponse
)
CONFIRM_SHARED_MEMORY: Rpc[worker.ConfirmSharedMemoryRequest, worker.ConfirmSharedMemoryResponse] = Rpc(
    _WORKERS + "ConfirmSharedMemory", worker.ConfirmSharedMemoryResponse
)
LIST_WORKERS: Rpc[worker.ListWorkersRequest, worker.ListWorkersResponse] = Rpc(
    _WORKERS + "ListWorkers", worker.ListWorkersResponse
)

_TRAINING = "/optd.v1.TrainingService/"
PUSH: Rpc[training.PushRequest, training.PushResponse] = Rpc(_TRAINING + "Push", training.PushResponse)
PULL: Rpc[training.PullRequest, training.PullResponse] = Rpc(_TRAINING + "Pull", training.PullResponse)
PULL_ROWS: Rpc[training.PullRowsRequest, training.PullRowsResponse] = Rpc(
    _TRAINING + "PullRows", training.PullRowsResponse, decode_rows
)
WATCH_VERSIONS: Rpc[training.WatchVersionsRequest, training.WatchVersionsResponse] = Rpc(
    _TRAINING + "WatchVersions", training.WatchVersionsResponse
)
STEP: Rpc[training.StepRequest, training.StepResponse] = Rpc(_TRAINING + "Step", training.StepResponse, decode_received)

_STATE = "/optd.v1.StateService/"
READ_STATE: Rpc[state.ReadStateRequest, state.ReadStateResponse] = Rpc(_STATE + "ReadState", state.ReadStateResponse)
WRITE_STATE: Rpc[state.WriteStateRequest, state.WriteStateResponse] = Rpc(
    _STATE + "WriteState", state.WriteStateResponse
)


def _without_frames(answer: type[A], data: bytes) -> tuple[A, list[Any]]:
    return answer.FromString(data), []


_CHECKPOINTS = "/optd.v1.CheckpointService/"
LIST_SNAPSHOTS: Rpc[checkpoint.ListSnapshotsRequest, checkpoint.ListSnapshotsResponse] = Rpc(
    _CHECKPOINTS + "ListSnapshots", checkpoint.ListSnapshotsResponse
)
READ_CHECKPOINT: Rpc[checkpoint.ReadCheckpointRequest, checkpoint.ReadCheckpointResponse] = Rpc(
    _CHECKPOINTS + "ReadCheckpoint", checkpoint.ReadCheckpointResponse, _without_frames
)
RESTORE_JOB: Rpc[checkpoint.RestoreJobRequest, checkpoint.RestoreJobResponse] = Rpc(
    _CHECKPOINTS + "RestoreJob", checkpoint.RestoreJobResponse
)
ROLL_BACK_JOB: Rpc[checkpoint.RollBackJobRequest, checkpoint.RollBackJobResponse] = Rpc(
    _CHECKPOINTS + "RollBackJob", checkpoint.RollBackJobResponse
)

_INSPECTION = "/optd.v1.InspectionService/"
GET_SERVER_STATUS: Rpc[inspection.GetServerStatusRequest, inspection.GetServerStatusResponse] = Rpc(
    _INSPECTION + "GetServerStatus", inspection.GetServerStatusResponse
)
LIST_ALGORITHMS: Rpc[inspection.ListAlgorithmsRequest, inspection.ListAlgorithmsResponse] = Rpc(
    _INSPECTION + "ListAlgorithms", inspection.ListAlgorithmsResponse
)
LIST_GROUPS: Rpc[inspection.ListGroupsRequest, inspection.ListGroupsResponse] = Rpc(
    _INSPECTION + "ListGroups", inspection.ListGroupsResponse
)
INSPECT_GROUP: Rpc[inspection.InspectGroupRequest, inspection.InspectGroupResponse] = Rpc(
    _INSPECTION + "InspectGroup", inspection.InspectGroupResponse
)
LIST_REJECTIONS: Rpc[inspection.ListRejectionsRequest, inspection.ListRejectionsResponse] = Rpc(
    _INSPECTION + "ListRejections", inspection.ListRejectionsResponse
)
LIST_OPTION_CHANGES: Rpc[inspection.ListOptionChangesRequest, inspection.ListOptionChangesResponse] = Rpc(
    _INSPECTION + "ListOptionChanges", inspection.ListOptionChangesResponse
)
LIST_ROUNDS: Rpc[inspection.ListRoundsRequest, inspection.ListRoundsResponse] = Rpc(
    _INSPECTION + "ListRounds", inspection.ListRoundsResponse
)
WATCH_JOB: Rpc[inspection.WatchJobRequest, inspection.WatchJobResponse] = Rpc(
    _INSPECTION + "WatchJob", inspection.WatchJobResponse
)

CHECK_HEALTH: Rpc[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = Rpc(
    "/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse
)
