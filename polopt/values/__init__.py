"""How good decisions are: returns and advantages, targets, critics, and the scale of rewards."""
