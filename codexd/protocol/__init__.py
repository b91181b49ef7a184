"""Sans-IO protocol code: bytes and values in, values and bytes out. No clock, no randomness, no socket."""
