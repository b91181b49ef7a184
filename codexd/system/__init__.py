"""The operating system: systemd, users, certificates, memory, and replacements for what a system lacks."""
