"""Schmidt probabilities at every bond of an update: exact, or what is known of them for less (docs/math.md §2, §3).

``exact`` gives them all; ``randomized`` gives lower bounds on each and the mass they leave out; ``choice`` takes the
cheapest of the two that meets a requested error; ``hybrid`` estimates entropies, with a standard error.
"""

from artent.schmidt.choice import cheapest, sketched
from artent.schmidt.exact import dense, factored, halves, ranks, vanish
from artent.schmidt.hybrid import estimated
from artent.schmidt.plan import Plan
from artent.schmidt.spectrum import Estimated, Spectrum

__all__ = [
    "Estimated",
    "Plan",
    "Spectrum",
    "cheapest",
    "dense",
    "estimated",
    "factored",
    "halves",
    "ranks",
    "sketched",
    "vanish",
]
