"""A simulated ChatGPT on loopback: an OAuth issuer and a Codex backend, as strict as the real ones."""
