"""`sync`: a step for every round of one push of each of a fixed number of workers."""

from collections.abc import Sequence

from optd_server.engine.rounds.push import Push


class SyncRule:
    """Collects a round. A worker that has pushed waits; its next push belongs to the next round.

    A round is reduced in the order of the workers' names, so that the same pushes give the same bits whatever the
    order of their arrival.
    """

    def __init__(self, workers: int) -> None:
        # All pushes of a round are added up in one.
        self.slots = 1
        self.most = workers
        self._round: dict[str, Push] = {}

    @property
    def waiting(self) -> Sequence[Push]:
        """The pushes of the round that is not complete yet."""
        return tuple(self._round.values())

    def offer(self, push: Push) -> Sequence[Push]:
        """Adds a push to the round; returns the whole round when it is the last one."""
        self._round[push.header.worker] = push
        if len(self._round) < self.most:
            return ()
        complete = [self._round[worker] for worker in sorted(self._round)]
        self._round.clear()
        return complete

    def withdraw(self, worker: str) -> Push | None:
        """Takes the worker's push out of the round."""
        return self._round.pop(worker, None)
