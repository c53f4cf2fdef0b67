"""The engine: requests that share the steps of one model."""

from gptoss.engine.aio import AsyncEngine as AsyncEngine
from gptoss.engine.aio import AsyncStream as AsyncStream
from gptoss.engine.engine import Engine as Engine
from gptoss.engine.prompts import Prompt as Prompt
from gptoss.engine.sequence import Account as Account
from gptoss.engine.stream import Stream as Stream
from gptoss.engine.text import StopMatcher as StopMatcher
