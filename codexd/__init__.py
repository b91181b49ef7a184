"""codexd: an OpenAI-compatible API for one person's own tools, over that person's ChatGPT account."""

__version__ = "0.1.0"
