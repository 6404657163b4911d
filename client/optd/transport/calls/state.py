"""The calls of StateService: optimizer state and weights, read and replaced."""

from __future__ import annotations

from optd.transport import rpcs
from optd.transport.calls.calls import Calls
from optd.transport.numbers import Source, StateSink
from optd_wire.errors import UnexpectedStatus
from optd_wire.messages import from_message, to_message
from optd_wire.v1 import state_service_pb2 as state_pb
from optd_wire.values import GroupOptions, JobVersion, ReadStateResult, WriteStateHeader


class StateCalls(Calls):
    """Reads and replaces optimizer state."""

    def read_state(
        self,
        job: str,
        fields: tuple[str, ...],
        into: StateSink,
        timeout: float,
        *,
        group: str = "",
        parameter: str = "",
    ) -> ReadStateResult:
        """Reads fields of one version; `into` gets the result before the frames come, and returns what takes these."""
        request = state_pb.ReadStateRequest(job=job, fields=fields, group=group, parameter=parameter)
        responses = self._connection.download(rpcs.READ_STATE, request, timeout)
        result: ReadStateResult | None = None
        for message, frames in responses:
            if result is None:
                result = from_message(message.result, ReadStateResult)
                sink = into(result)
            if frames:
                sink(frames)
        if result is None:
            raise UnexpectedStatus(rpc="ReadState", address=self.address, status="OK", problem="it sent nothing")
        return result

    def write_state(
        self, header: WriteStateHeader, numbers: Source, timeout: float
    ) -> tuple[tuple[GroupOptions, ...], JobVersion]:
        """Replaces state, weights and options; returns the options of all groups."""
        first = state_pb.WriteStateRequest(header=to_message(header))
        response = self._connection.upload(rpcs.WRITE_STATE, first, numbers(), timeout)
        options = tuple(from_message(group, GroupOptions) for group in response.options)
        return options, from_message(response.version, JobVersion)
