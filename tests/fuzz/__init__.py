"""Hostile and broken input: what every parser promises of any bytes, and what keeps it honest."""
