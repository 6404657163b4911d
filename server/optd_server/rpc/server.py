"""The gRPC server: our services, health, reflection; limits and credentials; start and graceful stop."""

import asyncio
import socket
from importlib import metadata

import grpc
import psutil
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from optd_server.config import Config, ConfigError
from optd_server.durability.checkpoints import Checkpoints
from optd_server.engine.catalog import Catalog
from optd_server.rpc.authentication import TokenInterceptor
from optd_server.rpc.callers import Callers
from optd_server.rpc.calls import Calls
from optd_server.rpc.handover import Handover
from optd_server.rpc.security import Security
from optd_server.rpc.services.checkpoint import CheckpointService
from optd_server.rpc.services.inspection import InspectionService
from optd_server.rpc.services.job import JobService
from optd_server.rpc.services.state import StateService
from optd_server.rpc.services.training import TrainingService
from optd_server.rpc.services.worker import WorkerService
from optd_wire.errors import ShuttingDown
from optd_wire.v1 import (
    checkpoint_service_pb2,
    inspection_service_pb2,
    job_service_pb2,
    state_service_pb2,
    training_service_pb2,
    worker_service_pb2,
)
from optd_wire.values import Limits, ServerStatus

# Only bit 0, "identity", is set.
_NO_GZIP = ("grpc.compression_enabled_algorithms_bitset", 1)
KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
MIN_PING_INTERVAL_MS = 5_000
MAX_METADATA_BYTES = 16 * 1024
WINDOW_BYTES = 4 << 20
# Leaves room for health, reflection and renewals of leases when all other calls are in use.
SPARE_CALLS = 64


class Server:
    """A gRPC server around a catalog of jobs. Lives on one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        checkpoints: Checkpoints,
        config: Config,
        security: Security,
        handover: Handover | str,
    ) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints
        self._handover = handover
        self._config = config
        self._security = security
        self._started = catalog.clock.monotonic()
        self._durability = config.level if config.level != "log" else f"log, fsync {config.fsync}"
        callers = Callers(security.tokens)
        inspection = inspection_service_pb2.DESCRIPTOR.services_by_name["InspectionService"].full_name
        workers = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]
        renewal = workers.methods_by_name["RenewLease"].full_name
        self._calls = Calls(
            config.max_requests,
            config.idle_seconds,
            catalog.budgets.server,
            catalog.budget_of,
            callers,
            always_ready=frozenset([inspection]),
            always_admitted=frozenset([renewal]),
        )
        self._health = health.aio.HealthServicer()
        self._serving = False
        interceptors = [TokenInterceptor(callers)] if security.tokens else []
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=_options(config),
            maximum_concurrent_rpcs=config.max_requests + SPARE_CALLS,
        )
        self._names = self._add_services()

    def _add_services(self) -> list[str]:
        services = {
            job_service_pb2: JobService(self._catalog),
            worker_service_pb2: WorkerService(self._catalog, self._handover),
            training_service_pb2: TrainingService(self._catalog, self._config.idle_seconds),
            state_service_pb2: StateService(self._catalog),
            checkpoint_service_pb2: CheckpointService(self._catalog, self._checkpoints),
            inspection_service_pb2: InspectionService(self._catalog, self.status, self._calls.stopping),
        }
        names = []
        for file, service in services.items():
            for descriptor in file.DESCRIPTOR.services_by_name.values():
                self._server.add_generic_rpc_handlers((self._calls.handlers(descriptor, service),))
                names.append(descriptor.full_name)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        return names

    async def start(self) -> str:
        """Listen; return HOST:PORT. Calls wait until `serve`. Raises `ConfigError` if it cannot listen there."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        address = f"{host}:{self._config.port}"
        _check_free(self._config.host, self._config.port)
        try:
            if self._security.credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._security.credentials)
        except RuntimeError as error:
            raise ConfigError(f"port: cannot listen on {address}: {error}") from None
        await self._server.start()
        return f"{host}:{port}"

    async def serve(self) -> None:
        """Let calls in, which have waited until all jobs were there."""
        self._calls.ready.set()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, give running ones up to `grace_seconds` to finish, then cancel them."""
        # First, so that no call begins after the health service has said NOT_SERVING.
        self._calls.stop()
        self._catalog.end_version_waits(ShuttingDown())
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        stopping = asyncio.ensure_future(self._server.stop(grace_seconds))
        # A push that still waits for others now waits in vain, because no further call is accepted.
        await asyncio.wait([stopping], timeout=min(0.5, grace_seconds * 0.8))
        self._catalog.refuse_waiting(ShuttingDown())
        await stopping

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        self._serving = status == health_pb2.HealthCheckResponse.SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    def status(self) -> ServerStatus:
        """Describe the server."""
        return ServerStatus(
            server_version=metadata.version("optd"),
            uptime_ms=int((self._catalog.clock.monotonic() - self._started) * 1000),
            serving="SERVING" if self._serving else "NOT_SERVING",
            jobs=len(self._catalog),
            workers=sum(job.workers.active for job in self._catalog),
            requests=self._calls.running,
            planned_bytes=self._catalog.memory.planned,
            resident_bytes=psutil.Process().memory_info().rss,
            limits=Limits(
                max_message_bytes=self._config.max_message_bytes,
                max_requests=self._config.max_requests,
                max_streams_per_connection=self._config.max_streams,
                max_memory_bytes=self._config.max_memory_bytes,
                max_inflight_bytes=self._config.max_inflight_bytes,
                max_job_inflight_bytes=self._catalog.budgets.job_limit,
            ),
            authentication=self._security.authentication,
            tls=self._config.tls,
            kernels=self._catalog.offload.kernels.describe(self._config.threads),
            durability=self._durability,
            rejections_without_job=self._catalog.rejections_without_job.total(),
        )


def _check_free(host: str, port: int) -> None:
    """Raise `ConfigError` with the system's reason if the port cannot be bound; gRPC gives no reason."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"port: cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}") from None


async def expire_leases(catalog: Catalog, lease_seconds: float) -> None:
    """End leases that have run out, and ephemeral jobs with them, as long as the server runs."""
    while True:
        await asyncio.sleep(min(1.0, lease_seconds / 4))
        await catalog.expire()


def _options(config: Config) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # With gzip, a few bytes could become gigabytes before the byte budget counts them.
        _NO_GZIP,
        ("grpc.so_reuseport", 0),
        # Bounds what gRPC reads of a stream in advance; by default that grows to 16 MiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.max_frame_size", WINDOW_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
