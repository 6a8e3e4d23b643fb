"""Floor 4: scores of a model: its likelihood and its pictures."""
