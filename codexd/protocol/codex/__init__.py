"""Wire format of the Codex backend: requests, events, models, failures, rate limits, tools."""
