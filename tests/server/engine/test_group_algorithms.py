"""Groups of one job that have algorithms of their own: equal to optimizers of torch side by side."""

import numpy as np
import pytest
from tests.server.engine.mixed import Beside, Mixed, group, random_arrays

from optd_wire.values import GroupUpdate

GROUPS = (
    group("matrices", "muon", {"m": (3, 5), "n": (4, 2)}, lr=0.02, weight_decay=0.05),
    group("rest", "adamw", {"b": (7,), "c": (), "d": (2, 3)}, lr=3e-3, betas=(0.8, 0.99)),
    group("plain", "", {"p": (6,), "q": (2, 2)}),
)
DEFAULTS = {"lr": 0.1, "momentum": 0.9}
UPDATES = {
    4: GroupUpdate("matrices", {"lr": 0.01, "momentum": 0.9}),
    7: GroupUpdate("rest", {"lr": 1e-2, "weight_decay": 0.1}),
    9: GroupUpdate("plain", {"momentum": 0.5, "lr": 0.05}),
    13: GroupUpdate("rest", {"eps": 1e-4}),
}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_job_of_three_algorithms_is_three_optimizers_of_torch(play, clip_norm):
    async def scenario(engine):
        rng = np.random.default_rng(3)
        first = random_arrays(GROUPS, rng)
        mixed, beside = Mixed(engine, GROUPS, first, defaults=DEFAULTS, clip_norm=clip_norm), Beside()
        for spec in GROUPS:
            beside.add(spec, first, **({} if spec.algorithm else DEFAULTS))
        for step in range(20):
            gradient = random_arrays(GROUPS, rng, computed=True)
            if step in (5, 11):
                gradient = {name: gradient[name] for name in ("b", "d", "q")}
            updates = (UPDATES[step],) if step in UPDATES else ()
            for update in updates:
                beside.set(update)
            result = await mixed.push(gradient, updates=updates)
            beside.step(gradient, clip_norm)
            assert result.applied_version == step + 1
            beside.assert_weights(mixed.weights, 1e-12)
        beside.assert_state(await mixed.state(), 1e-12)

    play(scenario)
