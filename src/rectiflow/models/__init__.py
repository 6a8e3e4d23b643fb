"""Floor 3: models as files: what their `config.json` says, and weights with their hashes."""
