"""The same weights in Hugging Face's transformers: the same logits? Small models only."""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.checkpoint import write_checkpoint
from gptoss.engine import available_memory
from gptoss.errors import Error
from gptoss.eval.modes_check import EXACT
from gptoss.eval.numbers import distance
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session
from gptoss.eval.texts import PROSE

PARAMETERS = 500_000_000  # at most; transformers holds them in float32, for a while twice
TOKENS = 64
# Both compute in float32 and sum in another order: the bundled model is 4e-7 away, others 3e-6.
RELATIVE = 1e-4


def check_transformers(session: Session) -> Outcome:
    """Logits of float32 activations beside those of GptOssForCausalLM in float32."""
    source = session.source
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise Skipped(f"{package} is not installed")
    parameters = session.config.parameters()
    if parameters > PARAMETERS:
        raise Skipped(f"the model is too large to be held in float32 ({parameters / 1e9:.1f} G)")
    if available_memory() < 12 * parameters:
        raise Skipped("too little free memory")
    if source.panels is not None:
        raise Skipped("a packed model cannot be written in Hugging Face's layout")
    tokens = session.tokens(PROSE, min(TOKENS, session.config.context_length))
    ours = session.engine(**EXACT).logits(tokens)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        try:
            write_checkpoint(source, target, "huggingface-bf16")
        except Error as error:  # such as a full disk
            raise Skipped(f"no copy for transformers could be written: {error}") from None
        try:
            theirs = transformers_logits(target, tokens)
        except Exception as error:  # another release of it: not this model's fault
            text = " ".join(str(error).split())
            raise Skipped(f"transformers fails: {type(error).__name__}: {text}") from None
    found = distance(theirs, ours)
    apart = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    line = (
        f"logits differ by {apart:.1e} (relative norm), KL {found.kl:.1e} nats, "
        f"top-1 the same {found.top1:.1%}, {len(tokens)} tokens"
    )
    failed = not apart <= RELATIVE
    if failed:
        line += f"; expected at most {RELATIVE}"
    return Outcome(line, failed, {"relative": apart, "kl": found.kl, "top1": found.top1})


def transformers_logits(directory: Path, tokens: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """float32 [T, vocabulary] of a checkpoint in the layout "huggingface-bf16"."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.GptOssForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return np.asarray(logits.float().numpy())
