"""Floor 6: scores of a model: its likelihood and its pictures."""
