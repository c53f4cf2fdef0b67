"""Benchmarks: `bench.py` runs `model` and `serve`; the others are separate programs."""
