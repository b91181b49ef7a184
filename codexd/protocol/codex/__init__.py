"""The Codex backend's wire: requests, events, models, failures, rate limits, tools."""
