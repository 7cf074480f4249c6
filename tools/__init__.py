"""Code generation and the repository's own checks: run by people and by CI, imported only by tests."""
