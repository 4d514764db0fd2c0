"""Claims: what a paper says, small, stated before it is tested, and how it is judged. Imports no torch."""

from polopt.claims.arms import measure, train_arm
from polopt.claims.claim import Claim
from polopt.claims.expectations import Above, Below, Greater, Narrower, Ordered, Trend, Within
from polopt.claims.grids import best_of, mean_of, together
from polopt.claims.judge import Verdict, judge
from polopt.claims.shared import shared

__all__ = [
    "Above",
    "Below",
    "Claim",
    "Greater",
    "Narrower",
    "Ordered",
    "Trend",
    "Verdict",
    "Within",
    "best_of",
    "judge",
    "mean_of",
    "measure",
    "shared",
    "together",
    "train_arm",
]
