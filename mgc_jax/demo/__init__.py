"""The demo's own music."""
