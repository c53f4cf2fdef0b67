"""Measuring a model: whether its files, its numbers and its words are right, and how fast it runs.

`gptoss check` (docs/check.md) runs all of it. Files are imported one by one.
"""
