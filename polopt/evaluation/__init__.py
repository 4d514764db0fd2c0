"""What results mean: statistics over seeds, and claims with the function that judges them. Imports no torch."""

from polopt.evaluation.claims import (
    Above,
    Below,
    Claim,
    Greater,
    Narrower,
    Ordered,
    Trend,
    Verdict,
    Within,
    judge,
)

__all__ = ["Above", "Below", "Claim", "Greater", "Narrower", "Ordered", "Trend", "Verdict", "Within", "judge"]
