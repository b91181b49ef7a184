"""The configuration: its model, where it comes from, and the addresses and directories that follow from it."""
