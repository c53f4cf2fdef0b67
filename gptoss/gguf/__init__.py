"""GGUF, the file format of llama.cpp and Ollama: read in place, and written.

A file is a header, metadata (key → typed value), tensor descriptions and, aligned, the tensors'
bytes; everything is little-endian.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
