"""Credentials of one ChatGPT account: sign-in, refresh, storage."""
