"""How each result becomes a table, in groups."""
