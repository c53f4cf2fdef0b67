"""Text and token ids: vocabularies, their files, and where they are found."""

from gptoss.tokenizer.files import tokenizer_files as tokenizer_files
from gptoss.tokenizer.gguf import gguf_metadata as gguf_metadata
from gptoss.tokenizer.load import copy_tokenizer_files as copy_tokenizer_files
from gptoss.tokenizer.load import load_tokenizer as load_tokenizer
from gptoss.tokenizer.load import load_vocabulary as load_vocabulary
from gptoss.tokenizer.tokenizer import Tokenizer as Tokenizer
from gptoss.tokenizer.vocabulary import HARMONY_SIZE as HARMONY_SIZE
from gptoss.tokenizer.vocabulary import O200K_FILE as O200K_FILE
