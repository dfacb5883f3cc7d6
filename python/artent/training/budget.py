"""What measuring costs, and when it may cost again: a share of the training time that is not exceeded."""

import math
import time
from contextlib import contextmanager

# Where more than so many due measurements in a row would be left out, measuring gets coarser instead of rarer.
PATIENCE = 4
_MANY = 10**9  # steps: never


class Budget:
    """Keeps the account of a training that is measured on the way, and says how long the next measurement has to wait.

    Time is the wall's. All of it between measurements counts as training, which includes evaluation and saving. The
    share is what measuring adds: seconds spent measuring, over the seconds of training since the first measurement
    began.

    Args:
        share: the share that measuring may take, such as 0.05; None lets every measurement pass.
        every: steps between the measurements that were asked for.
        clock: seconds, from any zero.

    Attributes:
        measurements: how many there were.
        measuring: the seconds they took together.
        last: the seconds of the last one; None before the first.

    Raises:
        ValueError, TypeError: ``share`` is not a number between 0 and 1.
    """

    def __init__(self, share=None, every=1, clock=time.perf_counter):
        if share is not None:
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise TypeError(
                    f"budget must be a share of the training time such as 0.05, or None, not {type(share).__name__}"
                )
            if not 0 < share < 1:
                raise ValueError(
                    f"budget={share!r}: expected a share of the training time between 0 and 1, such as 0.05"
                )
        self.limit, self.every = share, every
        self.measurements, self.measuring, self.last = 0, 0.0, None
        self.clock, self._start, self._first, self._judged = clock, None, None, 0

    @contextmanager
    def measurement(self, step):
        """Around a measurement at ``step``: its time is no training. One that raises is paid for all the same."""
        begin = self.clock()
        if self._start is None:
            self._start, self._first = begin, step
        try:
            yield
        finally:
            self.last = self.clock() - begin
            self.measuring += self.last
            self.measurements += 1

    @property
    def training(self):
        """Seconds of training since the first measurement began."""
        return 0.0 if self._start is None else self.clock() - self._start - self.measuring

    @property
    def share(self):
        """Seconds measuring over seconds training; None where there was no training yet."""
        return self.measuring / self.training if self.training > 0 else None

    def wait(self, step):
        """Steps until one more measurement, at the last one's cost, keeps within the share: 0 if it may be now.

        What the steps to come take is what the steps so far took.
        """
        if self.limit is None or self.last is None:
            return 0
        seconds = (self.measuring + self.last) / self.limit - self.training
        return 0 if seconds <= 0 else self._steps(seconds, step)

    def too_rare(self, step):
        """Whether the last measurement costs so much that, for good, more than ``PATIENCE`` due ones in a row would be
        left out between two that take place.

        The first is not judged by: it pays for what is loaded and compiled once. Each other is, once.
        """
        if self.limit is None or self.measurements < 2 or self._judged == self.measurements:
            return False
        self._judged = self.measurements
        return self._steps(self.last / self.limit, step) > (PATIENCE + 1) * self.every

    def _steps(self, seconds, step):
        """Training steps in so many seconds, rounded up; at least one."""
        taken = self.training / max(1, step - self._first)
        return max(1, min(_MANY, math.ceil(seconds / taken))) if taken > 0 else 1
