"""The machine that codexd runs on: what it has, and what stands in where it has it not."""
