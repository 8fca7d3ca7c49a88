"""How long tests wait for what must happen."""

PATIENCE = 120.0  # seconds: only a test that fails waits so long, and no busy machine takes so long
