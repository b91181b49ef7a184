"""The Codex backend: connections, requests and answers, the model catalogue."""
