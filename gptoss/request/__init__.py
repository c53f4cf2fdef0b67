"""What a request asks for and what it gets: parameters, grammars, results."""

from gptoss.request.deep import deeply as deeply
from gptoss.request.grammar import Grammar as Grammar
from gptoss.request.grammar import first_line as first_line
from gptoss.request.grammar import json_rule as json_rule
from gptoss.request.grammar import load_llguidance as load_llguidance
from gptoss.request.grammar import parser_limits as parser_limits
from gptoss.request.params import MAX_LOGPROBS as MAX_LOGPROBS
from gptoss.request.params import SEED_LIMIT as SEED_LIMIT
from gptoss.request.params import SamplingParams as SamplingParams
from gptoss.request.params import derive_seed as derive_seed
from gptoss.request.result import Completion as Completion
from gptoss.request.result import Delta as Delta
from gptoss.request.result import FinishReason as FinishReason
from gptoss.request.result import Score as Score
from gptoss.request.result import Timing as Timing
from gptoss.request.result import TokenLogprob as TokenLogprob
from gptoss.request.result import join as join
from gptoss.request.text import valid_json as valid_json
from gptoss.request.text import valid_text as valid_text
