"""Notebooks of AWS and of its users, fetched at a pinned commit and run against the emulator; docs/notebooks.md."""
