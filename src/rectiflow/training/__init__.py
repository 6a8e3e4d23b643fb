"""Floor 7: the loop, what it optimises, and what keeps a run whole."""
