"""Floor 2: from what a user writes to a `Condition`."""
