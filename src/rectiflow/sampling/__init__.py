"""Floor 2: from noise to data. Solvers, guidance and the one loop."""
