"""An engine whose steps begin only when a test lets them."""

from contextlib import contextmanager
from threading import Condition

from waiting import PATIENCE


class HeldBackend:
    """The backend of an engine; its steps wait for `let`.

    begun: steps that were let through. waits: whether a step is waiting.
    """

    def __init__(self, backend, steps):
        self._backend, self._left, self._changed = backend, steps, Condition()
        self.begun, self.waits = 0, False

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def let(self, steps):
        """`steps` more may begin."""
        with self._changed:
            self._left += steps
            self._changed.notify_all()

    def step(self, *args, **kwargs):
        with self._changed:
            self.waits = self._left <= 0
            assert self._changed.wait_for(lambda: self._left > 0, PATIENCE), "never let through"
            self.waits = False
            self._left -= 1
            self.begun += 1
        return self._backend.step(*args, **kwargs)


@contextmanager
def held(engine, steps=0):
    """After `steps` steps the engine stands still until the block ends: → HeldBackend."""
    worker = engine._worker
    real = worker.backend
    worker.backend = backend = HeldBackend(real, steps)
    try:
        yield backend
    finally:
        worker.backend = real
        backend.let(1 << 60)
