"""Walls around the process of a model: what its code can neither reach nor do, enforced by the kernel."""
