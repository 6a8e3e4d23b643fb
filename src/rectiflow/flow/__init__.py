"""Floor 1: the mathematics. Schedules, predictions, sources, the flow itself, times, the loss and exact oracles."""
