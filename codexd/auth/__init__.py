"""Credentials of one ChatGPT account: reading them, keeping them fresh, never losing them."""
