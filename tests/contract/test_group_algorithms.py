"""Groups that name their own algorithms, as plain stubs create, train, describe and change them."""

import numpy as np
import pytest
import torch
from contract.plain import SECONDS, Plain, ending, frame, group, header, job_spec, refused

from optd_wire.v1 import inspection_service_pb2, job_pb2, job_service_pb2

pytestmark = pytest.mark.slow

MATRIX, VECTOR = np.arange(6.0).reshape(2, 3) / 6, np.arange(4.0)


def named(algorithm: str, spec: job_pb2.GroupSpec) -> job_pb2.GroupSpec:
    spec.algorithm = algorithm
    return spec


def spec_of(name: str) -> job_pb2.JobSpec:
    matrices = named("muon", group("matrices", {"w": ((2, 3), "float64")}, lr=0.02))
    rest = named("adamw", group("rest", {"b": ((4,), "float64")}, lr=3e-4))
    return job_spec(name, [matrices, rest], algorithm="sgd", lr=0.5)


def test_muon_for_the_matrices_and_adamw_for_the_rest(plain: Plain, name: str) -> None:
    info = plain.create(spec_of(name), [frame(MATRIX.ravel()), frame(VECTOR, group=1)])
    assert info.algorithm == "sgd"
    assert [each.options.algorithm for each in info.groups] == ["muon", "adamw"]
    assert info.groups[0].options.options["ns_steps"].integer == 5
    assert "momentum" not in info.groups[1].options.options
    epoch = plain.join(name)

    weights = {"w": torch.tensor(MATRIX), "b": torch.tensor(VECTOR)}
    beside = [torch.optim.Muon([weights["w"]], lr=0.02), torch.optim.AdamW([weights["b"]], lr=3e-4)]
    rng = np.random.default_rng(0)
    for sequence in range(1, 6):
        gradients = {"w": rng.standard_normal((2, 3)), "b": rng.standard_normal(4)}
        frames = [frame(gradients["w"].ravel()), frame(gradients["b"], group=1)]
        result = plain.push(header(name, "w0", epoch, sequence, base=sequence - 1), frames)
        assert result.applied_version == sequence, "one push is one version of all groups"
        for parameter, gradient in gradients.items():
            weights[parameter].grad = torch.tensor(gradient)
        for optimizer in beside:
            optimizer.step()
    found = plain.weights(name)
    np.testing.assert_allclose(found["b"], weights["b"].numpy(), rtol=0, atol=1e-12)
    # Muon rounds to bfloat16 on its way: some numbers that float32 hardly tells apart are then 2**-8 apart.
    np.testing.assert_allclose(found["w"], weights["w"].numpy(), rtol=0, atol=5e-4)

    state, _ = plain.read_state(name)
    kept = [{entry.field for entry in each.entries if any(entry.present)} for each in state.groups]
    assert kept == [{"momentum_buffer"}, {"exp_avg", "exp_avg_sq"}]
    request = inspection_service_pb2.ListGroupsRequest(job=name)
    groups = plain.inspection.ListGroups(request, timeout=SECONDS).groups
    assert [each.options.algorithm for each in groups] == ["muon", "adamw"]


def test_a_group_is_added_with_its_algorithm_and_changed_by_its_options(plain: Plain, name: str) -> None:
    plain.create(spec_of(name), [frame(MATRIX.ravel()), frame(VECTOR, group=1)])
    added = named("rmsprop", group("late", {"x": ((2,), "float32")}, momentum=0.5))
    requests = [
        job_service_pb2.AddGroupRequest(job=name, group=added),
        job_service_pb2.AddGroupRequest(frames=[frame(np.zeros(2, "f4"), group=2)]),
    ]
    answer = plain.jobs.AddGroup(ending(requests), timeout=SECONDS)
    assert (answer.created, answer.group.options.algorithm) == (True, "rmsprop")
    changed = plain.update_group(name, "late", alpha=0.5).options
    assert (changed.algorithm, changed.options["alpha"].number) == ("rmsprop", 0.5)
    with refused("UNKNOWN_OPTION", "adamw: no option 'alpha'"):
        plain.update_group(name, "rest", alpha=0.5)
    with refused("JOB_MISMATCH", f"job '{name}' has in group 'late' algorithm 'rmsprop', this registration has 'sgd'"):
        requests[0].group.algorithm = ""
        plain.jobs.AddGroup(ending(requests[:1]), timeout=SECONDS)


def test_who_joins_names_the_same_algorithms(plain: Plain, name: str) -> None:
    plain.create(spec_of(name), [frame(MATRIX.ravel()), frame(VECTOR, group=1)])
    spec = spec_of(name)
    assert plain.join(name, spec=spec) == 1
    spec.groups[1].algorithm = "adam"
    with refused("JOB_MISMATCH", "in group 'rest' algorithm 'adamw', this registration has 'adam'"):
        plain.join(name, spec=spec)
