"""Floor 3: built-in sets, the order of training data, and pictures in and out of files."""
