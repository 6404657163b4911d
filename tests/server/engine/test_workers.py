import pytest
from optd_server.engine.membership.workers import REMEMBERED, Workers

from optd_wire.errors import StaleEpoch, UnknownWorker
from optd_wire.values import JobVersion, PushResult

REPLY = PushResult(JobVersion(3), 3, 1, False)


def test_a_lease_holds_as_long_as_it_is_renewed():
    workers = Workers("job", lease_seconds=10)
    worker = workers.join("w", now=0)
    workers.check("w", worker.epoch, now=9)
    assert workers.expire(now=18.9) == []
    assert workers.expire(now=19) == [worker]
    with pytest.raises(StaleEpoch, match=r"worker 'w' of job 'job' calls with epoch 1, but its lease of 10 s ran out"):
        workers.check("w", 1, now=19)


def test_time_that_stands_still_or_jumps_ahead_of_a_renewal_ends_no_lease_early():
    workers = Workers("job", lease_seconds=10)
    workers.join("w", now=1e9)
    assert workers.expire(now=1e9 - 3600) == []
    assert workers.active == 1


def test_joining_again_fences_the_old_epoch_and_forgets_its_mark():
    workers = Workers("job", lease_seconds=10)
    workers.join("w", now=0)
    workers.mark("w", 1, 7, REPLY)
    worker = workers.join("w", now=1)
    assert (worker.epoch, worker.sequence, worker.reply, worker.pushes) == (2, 0, None, 1)
    with pytest.raises(StaleEpoch, match="its name was joined again and has epoch 2"):
        workers.check("w", 1, now=1)


def test_what_became_of_a_push_is_told_to_each_join_until_there_is_another_one():
    """The answer to a join may be lost, and the worker joins again."""
    workers = Workers("job", lease_seconds=10)
    workers.join("w", now=0)
    workers.mark("w", 1, 7, REPLY)
    for _ in range(2):
        worker = workers.join("w", now=1)
        assert (worker.previous_epoch, worker.previous_sequence) == (1, 7)
    workers.mark("w", 3, 1, REPLY)
    worker = workers.join("w", now=2)
    assert (worker.previous_epoch, worker.previous_sequence) == (3, 1)


def test_epochs_never_repeat_even_after_leaving():
    workers = Workers("job", lease_seconds=10)
    worker = workers.join("w", now=0)
    workers.leave(worker)
    with pytest.raises(StaleEpoch, match="it has left"):
        workers.check("w", 1, now=0)
    assert workers.join("w", now=0).epoch == 2


def test_a_mark_of_an_old_epoch_does_not_touch_the_new_one():
    workers = Workers("job", lease_seconds=10)
    workers.join("w", now=0)
    workers.join("w", now=0)
    workers.mark("w", 1, 7, REPLY)
    worker = workers.find("w")
    assert (worker.sequence, worker.reply, worker.pushes) == (0, None, 1)


def test_a_worker_that_never_joined_is_unknown():
    with pytest.raises(UnknownWorker, match="worker 'x' has not joined job 'job'"):
        Workers("job", lease_seconds=10).check("x", 1, now=0)


def test_names_that_have_left_are_forgotten_in_the_end_and_their_epochs_are_not_given_again():
    workers = Workers("job", lease_seconds=10)
    given = set()
    for number in range(3 * REMEMBERED):
        worker = workers.join(f"w{number % (REMEMBERED + 7)}", now=0)
        assert (worker.name, worker.epoch) not in given
        given.add((worker.name, worker.epoch))
        workers.leave(worker)
    assert len(list(workers)) == REMEMBERED
    stays = workers.join("stays", now=0)
    for number in range(2 * REMEMBERED):
        workers.leave(workers.join(f"x{number}", now=0))
    assert workers.find("stays") is stays
