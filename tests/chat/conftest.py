"""What these tests share; `vocabularies` of the tokenizer's tests becomes importable."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from gptoss import Error
from gptoss.tokenizer import HARMONY_SIZE, O200K_FILE, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def published():
    """The tokenizer of the published models, which only some machines hold."""
    try:
        return load_tokenizer(None, SimpleNamespace(vocab_size=HARMONY_SIZE))
    except Error as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def openais(published):
    """OpenAI's own library with the same vocabulary."""
    library = pytest.importorskip("openai_harmony")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder, O200K_FILE).write_bytes(published.rank_file())
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", folder)
        return library.load_harmony_encoding(library.HarmonyEncodingName.HARMONY_GPT_OSS)
