"""Text generation: one batch of sequences that requests join and leave between two tokens."""
