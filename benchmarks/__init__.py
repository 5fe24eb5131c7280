"""Benchmarks: one script a question; see docs/benchmarks.md."""
