"""Ollama's API, for tools that speak no other: requests, and answers as lines of JSON."""
