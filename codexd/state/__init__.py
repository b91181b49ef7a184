"""Data that outlives a request or a restart: durable files, the directory's lock, keys, responses, usage, prompts."""
