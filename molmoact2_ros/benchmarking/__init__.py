"""What is measured, and the pages in `benchmarks/` that say what came out. Never part of the tests."""
