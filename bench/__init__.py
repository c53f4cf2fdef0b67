"""Benchmarks: `bench.py` runs `model` and `serve`; the others are programs of their own."""
