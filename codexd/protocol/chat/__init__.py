"""Chat Completions, and the legacy completions before it."""
