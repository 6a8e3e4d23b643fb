"""Floor 0: errors, files, configuration, memory, keyed randomness and the condition type. Depends on none of ours."""
