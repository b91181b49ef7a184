"""Tools that OpenAI's APIs run themselves. Where the backend does not run them for a model, codexd does."""
