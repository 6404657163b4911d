// A worker in another language, from the .proto files alone: fits stopping distances of cars to their speeds.
//
//   npm ci --ignore-scripts
//   node train.mjs --server 127.0.0.1:50051 --job cars --worker node-1
//
// proto/README.md says what the .proto files leave open. OPTD_SERVER and OPTD_TOKEN are used if they are set. --proto is
// the include path, which `python -c "import optd_wire; print(optd_wire.PROTO_DIR)"` prints.
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const text = (value) => ({ type: "string", default: value });
const { values: flags } = parseArgs({
  options: {
    server: text(process.env.OPTD_SERVER ?? "127.0.0.1:50051"), job: text("cars"), worker: text("node"),
    algorithm: text("adam"), steps: text("300"), proto: text(fileURLToPath(new URL("../../proto", import.meta.url))),
  },
});

// Speeds in mph and stopping distances in feet (M. Ezekiel, Methods of Correlation Analysis, 1930).
const SPEEDS = [4, 4, 7, 7, 8, 9, 10, 10, 10, 11, 11, 12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 16, 16, 17,
  17, 17, 18, 18, 18, 18, 19, 19, 19, 20, 20, 20, 20, 20, 22, 23, 24, 24, 24, 24, 25];
const DISTANCES = [2, 10, 4, 22, 16, 10, 18, 26, 34, 17, 28, 14, 20, 24, 28, 26, 34, 34, 46, 26, 36, 60, 80, 20, 26, 54, 32,
  40, 32, 40, 50, 42, 56, 76, 84, 36, 46, 68, 32, 48, 52, 56, 64, 66, 54, 70, 92, 93, 120, 85];

// The services ---------------------------------------------------------------------------------------------------------

const FILES = ["job_service", "worker_service", "training_service"].map((name) => `optd/v1/${name}.proto`);
const loading = { keepCase: true, longs: Number, enums: String, defaults: true, includeDirs: [flags.proto] };
const { v1 } = grpc.loadPackageDefinition(loader.loadSync(FILES, loading)).optd;
// Replies that describe a large job are larger than gRPC's default limit of 4 MiB.
const connect = (Service) =>
  new Service(flags.server, grpc.credentials.createInsecure(), { "grpc.max_receive_message_length": -1 });
const jobs = connect(v1.JobService), workers = connect(v1.WorkerService), training = connect(v1.TrainingService);
const metadata = new grpc.Metadata();
if (process.env.OPTD_TOKEN) metadata.set("authorization", `Bearer ${process.env.OPTD_TOKEN}`);
const within = (seconds) => ({ deadline: Date.now() + seconds * 1000 });

const ask = (client, rpc, request, seconds = 10) => new Promise((resolve, reject) =>
  client[rpc](request, metadata, within(seconds), (error, reply) => (error ? reject(error) : resolve(reply))));

const upload = (client, rpc, message, seconds = 300) => new Promise((resolve, reject) => {
  const call = client[rpc](metadata, within(seconds), (error, reply) => (error ? reject(error) : resolve(reply)));
  call.end({ ...message, last: true }); // one message; larger models take many, the last one with `last`
});

// The reason of an error, such as UNKNOWN_JOB: a google.rpc.ErrorInfo in the trailing metadata.
const { root } = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`, { keepCase: true });
function reasonOf(error) {
  const [trailer] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const details = trailer ? root.lookupType("Status").decode(trailer).details : [];
  const infos = details.filter((any) => any.type_url.endsWith("/google.rpc.ErrorInfo"));
  const info = infos.map((any) => root.lookupType("ErrorInfo").decode(any.value)).find((each) => each.domain === "optd");
  return info?.reason ?? grpc.status[error.code];
}

// Repeats a call that may be sent again while the server is away, for up to a minute, after random pauses that grow.
async function again(call) {
  for (let wait = 50, until = Date.now() + 60_000; ; wait = Math.min(2 * wait, 2000)) {
    try {
      return await call();
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE || Date.now() > until) throw error;
      await pause(Math.random() * wait);
    }
  }
}

// The worker -----------------------------------------------------------------------------------------------------------

const parameter = (name) => ({ name, shape: [1], dtype: "DTYPE_FLOAT64" });
const spec = {
  name: flags.job, algorithm: flags.algorithm, defaults: { lr: { number: 0.5 } },
  groups: [{ name: "line", parameters: [parameter("slope"), parameter("intercept")] }],
};
const frame = (numbers) =>
  ({ group: 0, offset: 0, count: numbers.length, encoding: "ENCODING_FLOAT64", payload: Buffer.from(Float64Array.from(numbers).buffer) });

async function join() {
  for (;;) {
    try {
      return await ask(workers, "Join", { job: flags.job, worker: flags.worker, spec, wait_ms: 5000 }, 15);
    } catch (error) {
      if (reasonOf(error) !== "UNKNOWN_JOB") throw error;
    }
    try {
      await upload(jobs, "CreateJob", { spec, frames: [frame([0, 0])] });
    } catch (error) {
      if (reasonOf(error) !== "JOB_EXISTS") throw error; // else another worker was first
    }
  }
}

// Reads the weights, which needs no lease.
async function pull() {
  const weights = [0, 0];
  let version = 0;
  for await (const reply of training.Pull({ job: flags.job }, metadata, within(60))) {
    if (reply.result) version = reply.result.version.version;
    for (const { offset, count, payload } of reply.frames)
      for (let i = 0; i < count; i++) weights[offset + i] = payload.readDoubleLE(8 * i);
  }
  return { weights, version };
}

// Loss and gradient of distance = slope * (speed - 15) / 5 + intercept.
function evaluate([slope, intercept]) {
  const inputs = SPEEDS.map((speed) => (speed - 15) / 5), n = SPEEDS.length;
  const errors = inputs.map((x, i) => slope * x + intercept - DISTANCES[i]);
  const mean = (numbers) => numbers.reduce((sum, each) => sum + each, 0) / n;
  return { loss: mean(errors.map((e) => e * e)), gradient: [2 * mean(errors.map((e, i) => e * inputs[i])), 2 * mean(errors)] };
}

async function train() {
  let me = await again(join), sequence = 0;
  const identity = () => ({ job: flags.job, worker: flags.worker, epoch: me.epoch });
  // Renews the lease in the background. If another session fences this worker, its next push is refused.
  setInterval(() => ask(workers, "RenewLease", identity()).catch(() => {}), me.lease_ms / 3).unref();
  let { weights, version } = await again(pull);
  for (let done = 0; done < Number(flags.steps); ) {
    const { loss, gradient } = evaluate(weights);
    const header = { ...identity(), sequence: sequence + 1, base_version: version };
    try {
      // Each attempt has the same sequence, so the push counts once.
      await again(() => upload(training, "Push", { header, frames: [frame(gradient)] }));
      sequence += 1;
      if (done++ % 50 === 0) console.log(`version ${version}  loss ${loss.toFixed(3)}`);
    } catch (error) {
      const reason = reasonOf(error); // the name was taken over, or the lease ran out
      if (reason !== "STALE_EPOCH" && reason !== "LEASE_EXPIRED") throw error;
      me = await again(join);
      if (me.previous_epoch === header.epoch && me.previous_sequence === header.sequence) done += 1; // it counts after all
      sequence = 0;
      console.log(`${reason}: joined again with epoch ${me.epoch}`);
    }
    ({ weights, version } = await again(pull));
  }
  console.log(`version ${version}  loss ${evaluate(weights).loss.toFixed(3)}  slope ${weights[0]}  intercept ${weights[1]}`);
  await ask(workers, "Leave", identity());
}

try {
  await train();
} catch (error) {
  console.error(`${reasonOf(error)}: ${error.details ?? error.message}`);
  process.exitCode = 1;
}
