"""Begins to create a job and never ends: run as a process of its own, to be killed in the middle.

    python creator.py ADDRESS JOB

Says `sent` when half of the weights have been sent.
"""

import sys
import threading
from collections.abc import Iterator

import grpc
import numpy as np

from optd_wire.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, tensor_pb2


def main() -> None:
    address, job = sys.argv[1:]

    def requests() -> Iterator[job_service_pb2.CreateJobRequest]:
        parameter = job_pb2.ParameterSpec(name="param0", shape=[4], dtype=tensor_pb2.DTYPE_FLOAT32)
        spec = job_pb2.JobSpec(
            name=job, algorithm="sgd", groups=[job_pb2.GroupSpec(name="group0", parameters=[parameter])]
        )
        spec.defaults["lr"].number = 1.0
        yield job_service_pb2.CreateJobRequest(spec=spec)
        half = np.full(2, 77, "f4").tobytes()
        frame = tensor_pb2.Frame(count=2, encoding=tensor_pb2.ENCODING_FLOAT32, payload=half)
        yield job_service_pb2.CreateJobRequest(frames=[frame])
        print("sent", flush=True)
        threading.Event().wait()

    with grpc.insecure_channel(address) as channel:
        job_service_pb2_grpc.JobServiceStub(channel).CreateJob(requests())


if __name__ == "__main__":
    main()
