"""The Codex backend: connections to it, one request and its answer, the model catalogue."""
