"""Floor 8: recipes, each a function that returns one complete typed configuration. Never imports torch."""
