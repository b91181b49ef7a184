"""Telemetry of the daemon: its log, request traces, token counts, metrics."""
