"""A model's hyper-parameters beside the published ones, and its weights: are they numbers?"""

from __future__ import annotations

import dataclasses

import numpy as np

from gptoss.checkpoint import PRESETS
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session
from gptoss.model import ModelConfig

_EXPONENT = 0x7F80  # of bf16: all ones in NaN and infinity
_NAMED = 6


def check_config(session: Session) -> Outcome:
    """Is the configuration that of the published model of the same shape?"""
    config = session.config
    warned = "".join(f"; {each}" for each in session.warnings)
    if session.preset is None:
        line = (
            f"a model of its own: {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{config.num_experts} experts, {config.vocab_size:,} tokens, context "
            f"{config.context_length:,}"
        )
        return Outcome(line + warned, figures={"published": None})
    found = differences(config, PRESETS[session.preset])
    figures = {"published": session.preset, "differences": found}
    if found:
        return Outcome(f"unlike {session.preset}: {'; '.join(found)}{warned}", True, figures)
    return Outcome(f"all values are those of {session.preset}{warned}", figures=figures)


def differences(config: ModelConfig, published: ModelConfig) -> list[str]:
    """Each field that differs, as "rope_theta: expected 150000.0, found 10000.0"."""
    return [
        f"{field.name}: expected {wanted}, found {value}"
        for field in dataclasses.fields(ModelConfig)
        if (wanted := getattr(published, field.name)) != (value := getattr(config, field.name))
    ]


def check_weights(session: Session) -> Outcome:
    """Is every bf16 value a finite number, and every MXFP4 scale a scale?

    Matrices of a packed model are not looked into: opening it compares its checksums.
    """
    source = session.source
    if session.synthetic:
        raise Skipped("the weights are made up")
    count, wrong = 0, {}
    done, total = 0, source.nbytes
    for info in source.tensors():
        if info.dtype == "BF16" or info.name.endswith(".scales"):
            array = source.tensor(info.name)  # which raises Error for a scale of NaN
            count += array.size
            if info.dtype == "BF16":
                bad = int(np.count_nonzero((array & _EXPONENT) == _EXPONENT))
                if bad:
                    wrong[info.name] = bad
            source.release(info.name)
        done += info.nbytes
        if session.progress is not None:
            session.progress(done, total)
    figures = {"values": count, "not_finite": wrong}
    if wrong:
        names = ", ".join(f"{name} ({bad})" for name, bad in list(wrong.items())[:_NAMED])
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        line = f"values that are no finite numbers in {len(wrong)} tensors: {names}{more}"
        return Outcome(line, True, figures)
    return Outcome(f"{count:,} bf16 values and scales are finite numbers", figures=figures)
