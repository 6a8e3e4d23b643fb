"""Floor 2: from pictures to what the flow works on, and back."""
