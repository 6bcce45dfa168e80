"""The real consumers, wrapped for tests."""
