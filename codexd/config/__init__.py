"""The configuration: its model, its sources, and the addresses and directories derived from it."""
