"""Rounds in which anything may go wrong at any time, of workers that try again as they should."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.engine.rounds import Rounds, play, random_arrays, same, settle, stepped

from optd_wire import errors
from optd_wire.frames import Frame

AGAIN = (errors.RoundBroken, errors.PushWithdrawn, errors.StaleEpoch, errors.InvalidArgument)
PARAMETERS = "abcde"


class Trainer:
    """A worker that pushes its gradients one after the other, each until it counts, whatever happens meanwhile.

    Each attempt is for the newest weights, as if the worker had pulled.
    """

    def __init__(self, rounds: Rounds, name: str, gradients, rng: np.random.Generator, mishaps: int) -> None:
        self.rounds, self.name, self.gradients, self.rng, self.mishaps = rounds, name, gradients, rng, mishaps

    async def train(self) -> None:
        for number, gradient in enumerate(self.gradients, 1):
            while not await self._pushed(number, gradient):
                await settle(int(self.rng.integers(3)))

    async def _pushed(self, number, gradient) -> bool:
        """One attempt; whether the gradient counts."""
        worker = self.rounds.member(self.name)
        if not self.rounds.job.leases.holds(self.name) or self._strikes():
            # A process that has taken over learns how far the one before it has come.
            sequence = worker.sequence
            before = (worker.epoch, sequence) if sequence else (worker.previous_epoch, worker.previous_sequence)
            await self.rounds.join(self.name)
            self.done += sequence
            assert (worker.previous_epoch, worker.previous_sequence) == before
            if self.done == number:
                return True
        upload = self._share(gradient) if self.rng.integers(3) == 0 else self._send(gradient)
        try:
            reply = await upload
        except AGAIN:
            return False
        except errors.RoundClosed:
            assert not self.in_lockstep
            return False
        except asyncio.CancelledError:
            assert upload.task.cancelled()
            return False
        if self.in_lockstep:
            assert reply.result.applied_version == number
        return True

    in_lockstep = False
    """Whether each step has a push of every worker."""
    done = 0
    """How many pushes have counted under epochs that are over."""

    def _strikes(self) -> bool:
        if self.mishaps and self.rng.integers(2):
            self.mishaps -= 1
            return True
        return False

    def _share(self, gradient):
        return self.rounds.share(self.name, gradient)

    def _send(self, gradient):
        messages = self.rounds.messages(gradient)
        upload = self.rounds.upload(self.name)
        asyncio.get_running_loop().create_task(self._feed(upload, messages))
        return upload

    async def _feed(self, upload, messages) -> None:
        at = int(self.rng.integers(len(messages) + 1)) if self._strikes() else None
        for number, frames in enumerate([*messages, None]):
            await settle(int(self.rng.integers(4)))
            if number == at:
                await self._break(upload)
                return
            upload.send(frames or (), last=frames is None)

    async def _break(self, upload) -> None:
        """What goes wrong with a push on its way."""
        match int(self.rng.integers(6)):
            case 0:
                upload.break_off()
            case 1:
                upload.task.cancel()
            case 2:
                await self.rounds.leave(self.name)
            case 3:
                self.rounds.expire(self.name)
            case 4:
                upload.send([Frame.of(2, 0, np.full(4, np.nan))])
            case 5:
                upload.send([Frame.of(0, 0, np.ones(1, "f4"))], last=True)
        # Whoever still reads on learns that nothing comes.
        upload.break_off()


@pytest.mark.parametrize("sync", [True, False])
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 6), st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=150)
def test_every_gradient_counts_once_whatever_goes_wrong(sync, count, steps, mishaps, seed):
    names = "abcd"[:count]
    rng = np.random.default_rng(seed)
    gradients = {
        name: [
            {p: values for p, values in random_arrays(int(rng.integers(1 << 30))).items() if rng.integers(4)}
            for _ in range(steps)
        ]
        for name in names
    }

    async def scenario(rounds):
        await rounds.join(*names)
        expected, answer, answered = rounds.weights, rounds.job.pushes._due._answer, []

        def answer_and_note(push, reply):
            answered.append(push.header.worker)
            answer(push, reply)

        rounds.job.pushes._due._answer = answer_and_note
        trainers = [Trainer(rounds, name, gradients[name], rng, mishaps) for name in names]
        for trainer in trainers:
            trainer.in_lockstep = sync
        await asyncio.gather(*(trainer.train() for trainer in trainers))
        assert rounds.version == steps * (1 if sync else count)
        left = {name: list(gradients[name]) for name in names}
        for start in range(0, len(answered), rounds.job.pushes.waiting.policy.most):
            together = answered[start : start + rounds.job.pushes.waiting.policy.most]
            expected = stepped(expected, [left[name].pop(0) for name in together])
        assert not any(left.values())
        assert same(rounds.weights, expected)

    play(scenario, count if sync else 0)
