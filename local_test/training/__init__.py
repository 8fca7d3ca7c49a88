"""How the two small models in local_test/weights were made; nothing here runs in the server or its tests."""
