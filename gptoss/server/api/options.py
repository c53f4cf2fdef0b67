"""What may be asked for, option by option: one table of all routes, and requests read by it.

    options = read_options(body, "chat")
    options["stream"]                               # checked; what is missing has its default
    options["stream_options.include_usage"]
    with options.named():                           # errors name the field that was sent
        params = options.sampling(grammar=…)
    options.ignored                                 # keys that mean nothing here

A key that the table does not have is no error, but named in `ignored`. What is refused is refused
only where it asks for something: null, false, an empty list and the like change nothing.
docs/options.md is printed from the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gptoss.errors import Error, shown
from gptoss.request import Grammar, SamplingParams
from gptoss.server.api.effort import DEFAULT, NAMES
from gptoss.server.api.option import ANSWERS, Option, Route
from gptoss.server.api.option_table import STRICT, TABLE
from gptoss.server.errors import ApiError


@dataclass
class Options(Mapping[str, Any]):
    """The options of a request, checked: name → what is meant by it, or its default.

    Attributes:
        route: that they are of.
        given: those that are not null; None in it: the value says that there is to be none.
        ignored: keys of the request that mean nothing here, as they stand in it.
    """

    route: Route
    given: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """KeyError where the route has no such option."""
        return self.given[name] if name in self.given else _known(self.route)[name].default

    def __iter__(self) -> Iterator[str]:
        return iter(_known(self.route))

    def __len__(self) -> int:
        return len(_known(self.route))

    def sampling(self, **more: Any) -> SamplingParams:
        """What the request asks of the sampler. more: parameters that are not the request's, or
        are made of several options; they count first. Raises Error, about a parameter.
        """
        values = {
            option.param: self.given[option.name]
            for option in reversed(list(_known(self.route).values()))
            if option.param is not None and option.name in self.given
        }
        if "max_tokens" not in values:
            values["max_tokens"] = _MAX_TOKENS[self.route]
        return SamplingParams(**{"logprobs": self.logprobs(), **values, **more})

    def logprobs(self) -> int | None:
        """How many of the most likely tokens are wanted with each one's log-probability; None: not
        even that. Raises ApiError.
        """
        if self.route == "completions":
            number: int | None = self["logprobs"]
            return number
        top: int | None = self["top_logprobs"]
        wanted = self["logprobs"] if self.route == "chat" else _LOGPROBS in (self["include"] or ())
        if self.route == "chat" and top and not wanted:
            raise ApiError(
                "top_logprobs: expected logprobs to be true with it", field="top_logprobs"
            )
        return (top or 0) if wanted or top else None

    def form(self) -> tuple[str, Grammar | None]:
        """What the answer must be: (the option that says so, the grammar; None: anything).

        Raises ApiError: it is invalid, cannot be carried out, or there are several.
        """
        found: list[tuple[str, Grammar]] = []
        for option in _known(self.route).values():
            if option.form is not None and option.name in self.given:
                try:
                    grammar = option.form(self.given[option.name], option.name)
                except ApiError:
                    raise
                except Error as error:
                    raise ApiError(f"{option.name}: {error}", field=option.name) from None
                if grammar is not None:
                    found.append((option.name, grammar))
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise ApiError(f"{names}: expected one of them", field=found[1][0])
        return found[0] if found else (self.form_name(), None)

    def form_name(self) -> str:
        """The option that says what the answer must be, or the route's usual one for that."""
        for option in _known(self.route).values():
            if option.form is not None and option.name in self.given:
                return option.name
        return _FORM.get(self.route, "grammar")

    def effort(self) -> str:
        """How much the model is to think: "low", "medium" or "high"."""
        own = "reasoning.effort" if self.route == "responses" else NAMES[0]
        for name in (own, *NAMES):
            if name in self.given:
                found: str = self.given[name]
                return found
        return DEFAULT

    @contextmanager
    def named(self, **more: str) -> Iterator[None]:
        """Errors about a part of the engine's are raised as errors about the field of the request
        that it was made of. more: what else is called otherwise, for example prompt="input".
        """
        names = {"logprobs": "logprobs" if self.route == "completions" else "top_logprobs"}
        for option in reversed(list(_known(self.route).values())):
            if option.param is not None and (
                option.name in self.given or option.param not in names
            ):
                names[option.param] = option.name
        names["grammar"] = self.form_name()
        with field_names({**names, **more}):
            yield


_LOGPROBS = "message.output_text.logprobs"
# As many as the context holds, except where OpenAI's API has another default.
_MAX_TOKENS: dict[Route, int | None] = {"chat": None, "responses": None, "completions": 16}
_FORM: dict[Route, str] = {
    "chat": "response_format",
    "responses": "text.format",
    "completions": "response_format",
}


def read_options(body: Mapping[str, Any], route: Route) -> Options:
    """Check a request's options. Raises ApiError: a value is wrong, or asks for what is refused."""
    options = Options(route)
    _read(body, "", options)
    asks = any(
        value and name.startswith("stream_options.") for name, value in options.given.items()
    )
    if asks and not options["stream"]:
        raise ApiError("stream_options: expected stream to be true with it", field="stream_options")
    return options


def _read(values: Mapping[str, Any], inside: str, options: Options) -> None:
    known, parents = _known(options.route), _parents(options.route)
    for key, value in values.items():
        name = f"{inside}{key}" if isinstance(key, str) else ""
        # A key with a dot of its own is none of ours.
        mine = known.get(name) if "." not in key else None
        if mine is not None:
            if value is not None:
                _take(mine, value, options)
        elif name in parents and "." not in key:
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ApiError(f"{name}: expected an object, found {shown(value)}", field=name)
            options.given[name] = value
            _read(value, f"{name}.", options)
        elif inside[:-1] in STRICT:
            inner = ", ".join(each.rpartition(".")[2] for each in known if each.startswith(inside))
            raise ApiError(
                f"{inside[:-1]}: expected {inner}, found the key {shown(key)}",
                field=inside[:-1],
            )
        else:
            _check_elsewhere(name, value, options.route)
            options.ignored.append(name)


def _check_elsewhere(name: str, value: Any, route: Route) -> None:
    """Raises ApiError for what another route has, where it asks there for another answer: a client
    that asks the wrong route must not believe that it was carried out.
    """
    if route not in ANSWERS or value is None:
        return
    found = [option for other in ANSWERS if (option := _known(other).get(name))]
    # What merely carries a text, as `prompt` does, is no option of an answer anywhere.
    means = [o.form or o.param or o.verdict == "refused" for o in found]
    if not found or not all(means):
        return
    option = found[0]
    if not option.harmless(value) and value != option.default:
        raise ApiError(
            f"{name}: this route has no such option ({option.says})",
            field=name,
            code="unsupported_parameter",
        )


def _take(option: Option, value: Any, options: Options) -> None:
    if option.verdict == "refused":
        if not option.harmless(value):
            raise ApiError(
                f"{option.name}: this server cannot do that ({option.says})",
                field=option.name,
                code="unsupported_parameter",
            )
        return
    try:
        found = option.read(value, option.name)
    except ApiError:
        raise
    except Error as error:
        raise ApiError(f"{option.name}: {error}", field=option.name) from None
    options.given[option.name] = found


@contextmanager
def field_names(names: Mapping[str, str]) -> Iterator[None]:
    """Errors of the engine about a field in `names` are raised as errors about the field of the
    request that it was made of.
    """
    try:
        yield
    except ApiError:
        raise  # it is about the request itself
    except Error as error:
        name = names.get(error.field or "")
        if name is None or name == error.field:
            raise
        text = str(error).removeprefix(f"{error.field}: ")  # as the engine calls it
        raise ApiError(f"{name}: {text}", field=name, code=error.code) from None


@cache
def _known(route: Route) -> dict[str, Option]:
    return {option.name: option for option in TABLE if route in option.routes}


@cache
def _parents(route: Route) -> frozenset[str]:
    """Options that are objects of others."""
    return frozenset(name.rpartition(".")[0] for name in _known(route) if "." in name)
