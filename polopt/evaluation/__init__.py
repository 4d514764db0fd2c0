"""What results mean: returns, scores of completions, statistics over seeds."""
