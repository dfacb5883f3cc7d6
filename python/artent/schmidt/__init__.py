"""Schmidt probabilities at every bond of an update: exact, or bounded from one randomized sketch (docs/math.md §2, §3).

``exact`` gives them all; ``randomized`` gives lower bounds on each and the mass they leave out, for a fraction of the
cost; ``choice`` takes the cheapest that meets a requested error.
"""

from artent.schmidt.choice import cheapest, sketched
from artent.schmidt.exact import dense, factored, halves, ranks, vanish
from artent.schmidt.plan import Plan
from artent.schmidt.spectrum import Spectrum

__all__ = ["Plan", "Spectrum", "cheapest", "dense", "factored", "halves", "ranks", "sketched", "vanish"]
