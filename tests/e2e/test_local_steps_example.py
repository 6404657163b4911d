"""examples/local_steps.py: two workers behind slow links, with local steps and data-parallel."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from local_steps import Text, evaluate, make_model, run, train_in_parallel, train_locally, warm_up
from slow_link import Bucket

DIFFERENCES = {"every": 100, "encoding": "int8"}


@pytest.fixture(scope="module")
def text() -> Text:
    return Text()


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_local_steps_take_a_hundredth_of_the_bytes_and_train(text):
    start = warm_up(text, 10)
    model = make_model(text)
    model.load_state_dict(start)
    parallel = run(text, start, 3, 100, train_in_parallel)
    local = run(text, start, 100, 100, train_locally, **DIFFERENCES)
    assert parallel.bytes_per_step / local.bytes_per_step >= 100
    assert local.loss < 0.9 * evaluate(model, text)


def test_a_link_is_as_slow_as_it_says():
    bucket = Bucket(rate=1_000_000, burst=1000)
    began = time.monotonic()
    for _ in range(100):
        bucket.take(1000)
    assert time.monotonic() - began >= 0.09
    assert bucket.passed == 100_000


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_loss_is_that_of_data_parallel_training_within_2_percent(text):
    start = warm_up(text, 1000)
    parallel = run(text, start, 1000, 1000, train_in_parallel)
    local = run(text, start, 1000, 1000, train_locally, **DIFFERENCES)
    assert local.loss <= 1.02 * parallel.loss
    assert parallel.bytes_per_step / local.bytes_per_step >= 100
