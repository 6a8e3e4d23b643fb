"""Floor 6: recipes, each a function that returns one complete typed configuration. Never imports torch."""
