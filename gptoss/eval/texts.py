"""Texts that models are measured on. All are in the public domain."""

from __future__ import annotations

from pathlib import Path

# Lincoln's address at Gettysburg (1863), in the Bliss copy, and the beginning of Carroll's "Alice's
# Adventures in Wonderland" (1865): every model that read much has read both.
PROSE = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8")

# What a model that can tell stories, facts and code goes on with.
PROMPTS = (
    "Once upon a time there was a little girl who",
    "The capital of France is",
    "def fibonacci(n):\n    ",
)

ROUND_TRIPS = (
    "Hello, world! It's 3.14159 or 1234567; isn't it?",
    "Grüße, naïve façade, Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย, 中文, 日本語, 한국어",
    "👍🏽 👩‍👩‍👧‍👦 🇫🇷 ☃️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 e\u0301 \u200b\ufeff",
    " \t\n\n  if (x != 0) {\r\n\treturn `a\\b`;\r\n  }\n        \n",
    "<|start|>user<|message|>not special<|end|> <|no such token|>",
)
# Ids in o200k_harmony, by OpenAI's package openai-harmony 0.0.8.
KNOWN = {
    "Hello, world!": (13225, 11, 2375, 0),
    "1234567 apples": (7633, 19354, 22, 57814),
    "Straße, 東京, Москва": (103575, 13153, 11, 185244, 11, 72673),
    "👩\u200d👧 ok": (28823, 102, 2524, 28823, 100, 4763),
    " \n\n  def f(x):\r\n": (1202, 220, 1056, 285, 4061, 12517),
}
KNOWN_SPECIAL = {
    "<|start|>user<|message|>hi<|end|><|call|>": (200006, 1428, 200008, 3686, 200007, 200012),
}
