"""Structure-aware fuzzing of every reader: ``scripts/fuzz``, and a little of it in the tests."""
