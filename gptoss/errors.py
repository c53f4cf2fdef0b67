"""The one exception that wrong input raises."""

from __future__ import annotations

_SHOWN = 120


class Error(ValueError):
    """Anything the user can put right: a broken checkpoint, a bad option, a prompt too long.

    The message says which file, tensor or option it is about, what was expected and what was found.
    The compiled core raises its own failed checks as this class too.

    Attributes:
        field: the option, the parameter or the field of a request that is at fault, by its name
            alone, for programs; None where it is something else. Code that raises an error again
            with more to say passes it on.
        code: what is wrong, for programs that have to tell it from everything else, by the name
            that OpenAI's API has for it, such as "context_length_exceeded"; mostly None.
    """

    def __init__(
        self, message: str = "", *, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def shown(value: object) -> str:
    """`value` as it may safely appear in a message: escaped, one line, cut after 120 characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 400:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or holding an integer too long to print
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
