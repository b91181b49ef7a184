"""The Chat Completions API, and the legacy Completions API."""
