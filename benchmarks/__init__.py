"""Benchmarks: commands that measure and write docs/results; nothing here is imported by `unstir`."""
