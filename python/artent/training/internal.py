"""The internal part of a measurement: profiles of what training wrote."""

import math
import warnings
from statistics import fmean

from artent.checkpoints import pending_updates
from artent.measure import measure
from artent.schmidt import Plan
from artent.training.base import together

# Of entanglement_profile.
OPTIONS = {"sites", "method", "alpha", "log_base", "rank", "max_error", "seed"}
_SCALARS = ("cut_entropy", "valley_depth", "effective_rank")
# A dense update of fewer rows or columns is exact under "auto" (see entanglement_profile), so there is nothing to win.
_LARGE = 700
_ERROR = 0.01  # of ln min(m, n), the entropy that the cut can have


class Internal:
    """Profiles of the updates that ``targets`` means, against ``base`` where adapters don't hold them.

    Attributes:
        options: of ``entanglement_profile``.
        lowered: those that the budget set.
        unchanged: names of the targets that had no update.
        failed: {name: why} of those whose update has no profile (it holds NaN, …).
        seconds: the last measurement's.
    """

    def __init__(self, base, targets, options):
        if unknown := sorted(options.keys() - OPTIONS):
            raise ValueError(f"profile: {', '.join(unknown)} unknown; expected some of {', '.join(sorted(OPTIONS))}")
        Plan(**{name: value for name, value in options.items() if name != "sites"})  # which checks them
        self.base, self.targets, self.options = base, targets, dict(options)
        self.lowered, self.unchanged, self.failed, self.seconds = {}, (), {}, 0.0
        self._measured = False
        self._smallest = None  # min(m, n) of the smallest dense update that is large

    def measure(self, model, processes):
        """(records, means) on the first process, ([], {}) on the others; every process calls it."""
        pending = pending_updates(model, self.base, targets=self.targets)
        self._smallest = min((min(p.shape) for p in pending if p.rank is None and min(p.shape) >= _LARGE), default=None)
        found = list(measure(pending, processes=processes, keep_going=True, **{**self.options, **self.lowered}))
        order = {one.name: place for place, one in enumerate(pending)}  # several processes bring them in another one
        found.sort(key=lambda one: order[one.name])
        self.unchanged = tuple(one.name for one in found if one.profile is None and one.failed is None)
        with together(processes):
            self._tell(found)
        changed = [one for one in found if one.profile is not None]
        told = {"lowered": self.lowered} if self.lowered else {}
        records = [{"module": o.name, **o.profile.to_dict(), "seconds": o.seconds, **told} for o in changed]
        means = {s: fmean(float(getattr(o.profile, s)) for o in changed) for s in _SCALARS} if changed else {}
        return records, means

    def _tell(self, found):
        """What has no profile must not end a training, but where nothing has one from the start. Told once a module."""
        failed = {one.name: one.failed for one in found if one.failed}
        if failed and len(failed) == len(found) and not self._measured:
            raise ValueError(next(iter(failed.values())))
        self._measured = self._measured or bool(found)
        if new := {name: reason for name, reason in failed.items() if name not in self.failed}:
            warnings.warn(f"{len(new)} updates have no profile: {'; '.join(list(new.values())[:3])}", stacklevel=6)
        self.failed = failed

    def coarser(self):
        """What the next cheaper way sets, or None if there is none.

        An error of 1 % of ln min(m, n) in place of exact, then estimates to a standard error of as much.
        Factored updates are cheap and exact; what the user chose stays.
        """
        chosen = self.options.keys() & {"rank", "max_error"} or self.options.get("method", "auto") != "auto"
        if self._smallest is None or chosen:
            return None
        if "max_error" in self.lowered:
            estimated = "method" in self.lowered or self.options.get("alpha", 1) != 1
            return None if estimated else {"method": "hybrid"}
        error = _ERROR * math.log(self._smallest)
        if base := self.options.get("log_base"):
            error /= math.log(base)
        return {"max_error": error}
