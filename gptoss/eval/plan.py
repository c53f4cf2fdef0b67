"""The checks of `gptoss check`, in their order."""

from __future__ import annotations

from functools import partial

from gptoss.eval.config_check import check_config, check_weights
from gptoss.eval.files_check import check_files, check_hashes
from gptoss.eval.harmony_check import check_effort, check_format, check_tool_call
from gptoss.eval.modes_check import Modes
from gptoss.eval.outcome import Check
from gptoss.eval.session import Session
from gptoss.eval.speed_check import Speed
from gptoss.eval.text_check import check_continuations, check_perplexity
from gptoss.eval.tokenizer_check import check_tokenizer
from gptoss.eval.transformers_check import check_transformers


def plan(session: Session, quick: bool = False) -> list[Check]:
    """All checks of a model. The model is loaded once for all of them up to "f32 logits", then once
    for each mode; never twice at a time.

    quick: leave out what reads all of the files, the modes, transformers, and efforts.
    """
    speed, modes = Speed(session, quick), Modes(session)
    return [
        Check("files", partial(check_files, session)),
        Check("configuration", partial(check_config, session)),
        Check("hashes", partial(check_hashes, session, quick)),
        Check("weights", partial(check_weights, session), slow=True),
        Check("tokenizer", partial(check_tokenizer, session)),
        Check("harmony", partial(check_format, session)),
        Check("bandwidth", speed.bandwidth),  # while there is memory for it
        Check("load", speed.load),
        Check("continuations", partial(check_continuations, session)),
        Check("perplexity", partial(check_perplexity, session)),
        Check("tool call", partial(check_tool_call, session)),
        Check("effort", partial(check_effort, session), slow=True),
        Check("speed", speed.speed),
        Check("memory", speed.memory),
        Check("f32 logits", modes.exact, slow=True),
        Check("transformers", partial(check_transformers, session), slow=True),
        *(Check(name, partial(modes.mode, name), slow=True) for name in modes.names),
    ]
