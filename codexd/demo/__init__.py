"""A simulated ChatGPT on loopback: an OAuth issuer and a Codex backend, as strict and as rude as the real ones."""
