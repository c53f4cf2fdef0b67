"""From texts to training data, and from training data to batches. `docs/data.md` is a guide."""

from gptoss.train.data.cleaning import Cleaning, clean
from gptoss.train.data.collect import is_validation
from gptoss.train.data.packing import Batch, Piece, TextRows
from gptoss.train.data.preparation import prepare
from gptoss.train.data.prepared import PreparedData, open_data
from gptoss.train.data.tokenizers import END_OF_TEXT, SPECIAL, TextTokenizer, load_tokenizer

__all__ = [
    "END_OF_TEXT",
    "SPECIAL",
    "Batch",
    "Cleaning",
    "Piece",
    "PreparedData",
    "TextRows",
    "TextTokenizer",
    "clean",
    "is_validation",
    "load_tokenizer",
    "open_data",
    "prepare",
]
