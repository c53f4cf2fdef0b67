"""The table of options: all that OpenAI's API, vLLM, llama.cpp's server and Ollama take on the routes
that are here, and what is our own.
"""

from __future__ import annotations

from gptoss.server.api import option_forms as forms
from gptoss.server.api import option_values as values
from gptoss.server.api.effort import effort, effort_or_switch
from gptoss.server.api.option import (
    ANSWERS,
    BOTH,
    CHAT,
    COMPLETIONS,
    CONVERSATIONS,
    RESPONSES,
    Option,
)
from gptoss.server.api.option_values import also, boolean, integer, number, one_of, unless

_VLLM, _LLAMA, _OLLAMA, _OURS = "vLLM", "llama.cpp", "Ollama", "gptoss"
_TOKENIZE, _DETOKENIZE = ("tokenize",), ("detokenize",)
_OFF = "thinking cannot be turned off or cut; see reasoning_effort"
_SAMPLERS = "there are temperature, top_k, top_p, min_p and the penalties"
_HARMONY = "the model has one format"
_TEXT = "this model reads and writes text alone"
_NOT_KEPT = "nothing is kept between requests"
_TIERS = dict.fromkeys(("auto", "default", "flex", "scale", "priority", "fast", "standard"), True)

# Objects in which a key that is not known is an error: without it they would ask for nothing.
STRICT = frozenset({"structured_outputs"})

TABLE: tuple[Option, ...] = (
    # What is answered.
    Option("model", (*ANSWERS, *_TOKENIZE, *_DETOKENIZE), "done", "the model's name; another one is a 404"),
    Option("messages", (*CHAT, *_TOKENIZE), "done", "the conversation"),
    Option("input", RESPONSES, "done", "the conversation, as a text or as items"),
    Option("instructions", RESPONSES, "done", "a developer message before the input"),
    Option("prompt", COMPLETIONS, "done", "a text, token ids, or up to 64 of these"),
    Option("tools", (*CONVERSATIONS, *_TOKENIZE), "done", "functions that the model may call"),
    Option("tool_choice", CONVERSATIONS, "done", "auto, none, required, a function, allowed_tools"),
    Option("parallel_tool_calls", CONVERSATIONS, "done", "false: an answer ends with its first call",
           read=boolean, default=True),
    Option("allow_undeclared_calls", CONVERSATIONS, "done",
           "true: calls are not held to the tools that are declared", _OURS, boolean, False),
    Option("stream", ANSWERS, "done", "events while it is written", read=boolean, default=False),
    Option("stream_options.include_usage", BOTH, "done", "numbers of tokens in a last event",
           read=boolean, default=False),
    Option("stream_options.continuous_usage_stats", BOTH, "done", "numbers of tokens in every event",
           _VLLM, boolean, False),
    Option("stream_options.include_obfuscation", ANSWERS, "mapped", "taken; events are not padded",
           read=boolean),
    Option("n", BOTH, "done", "answers to each prompt, up to 128", read=integer, default=1, param="n"),
    Option("best_of", COMPLETIONS, "mapped", "as many as n; more would be drawn to throw them away",
           read=integer),
    # How long.
    Option("max_completion_tokens", CHAT, "done", "most tokens, thinking included; -1: the context",
           read=unless(-1), param="max_tokens"),
    Option("max_tokens", BOTH, "done",
           "most tokens; -1: the context; by itself 16 in completions; 0 with echo", read=unless(-1),
           param="max_tokens"),
    Option("max_output_tokens", RESPONSES, "done", "most tokens, thinking included; -1: the context",
           read=unless(-1), param="max_tokens"),
    Option("n_predict", BOTH, "mapped", "max_tokens", _LLAMA, unless(-1), param="max_tokens"),
    Option("min_tokens", ANSWERS, "done", "fewest tokens before an end or a stop string counts", _VLLM,
           integer, 0, "min_tokens"),
    Option("stop", ANSWERS, "done", "up to 16 strings; in conversations of text for the user alone",
           read=values.stop, default=(), param="stop"),
    Option("stop_token_ids", ANSWERS, "done", "tokens that end the text", _VLLM, values.token_ids, (),
           "stop_token_ids"),
    Option("include_stop_str_in_output", ANSWERS, "done", "the stop string that ended it is in the text",
           _VLLM, boolean, False, "include_stop_str_in_output"),
    Option("ignore_eos", ANSWERS, "done", "goes on past the model's end tokens", _VLLM, boolean, False,
           "ignore_eos"),
    # How it is drawn.
    Option("temperature", ANSWERS, "done", "0 to 100; 0 is greedy", read=number, default=1.0,
           param="temperature"),
    Option("top_p", ANSWERS, "done", "above 0, up to 1", read=number, default=1.0, param="top_p"),
    Option("top_k", ANSWERS, "done", "0 and -1 keep all", _VLLM, unless(-1), 0, "top_k"),
    Option("min_p", ANSWERS, "done", "0 to 1, of the most likely token's probability", _VLLM, number,
           0.0, "min_p"),
    Option("presence_penalty", ANSWERS, "done", "-2 to 2", read=number, default=0.0,
           param="presence_penalty"),
    Option("frequency_penalty", ANSWERS, "done", "-2 to 2", read=number, default=0.0,
           param="frequency_penalty"),
    Option("repetition_penalty", ANSWERS, "done", "over prompt and output; 1 changes nothing", _VLLM,
           number, 1.0, "repetition_penalty"),
    Option("repeat_penalty", BOTH, "mapped", "repetition_penalty; over all of the text", _LLAMA, number,
           param="repetition_penalty"),
    Option("logit_bias", ANSWERS, "done", "-100 to 100 for token ids; also llama.cpp's list of pairs",
           read=values.logit_bias, param="logit_bias"),
    Option("seed", ANSWERS, "done", "64 bits, signed or not; -1: any", read=values.seed, param="seed"),
    Option("priority", ANSWERS, "done", "-1000 to 1000, lower goes first", _VLLM, values.priority, 0),
    # What is said of tokens.
    Option("logprobs", CHAT, "done", "log-probabilities of the answer's tokens", read=boolean,
           default=False),
    Option("logprobs", COMPLETIONS, "done",
           "log-probabilities of tokens, and of this many most likely ones; up to 100",
           read=values.count_or_flag),
    Option("top_logprobs", CONVERSATIONS, "done", "of this many most likely tokens; up to 100",
           read=integer),
    Option("include", RESPONSES, "done",
           "message.output_text.logprobs, reasoning.encrypted_content; the rest is taken, and nothing "
           "is there to include"),
    Option("echo", COMPLETIONS, "done", "the prompt before the text; with logprobs, its tokens' too",
           read=boolean, default=False),
    Option("echo", CHAT, "done", "the last message, where the model wrote it, before its continuation",
           _VLLM, boolean, False),
    Option("prompt_logprobs", BOTH, "done", "log-probabilities of the prompt's tokens; up to 100", _VLLM,
           integer),
    Option("return_token_ids", BOTH, "done", "ids of the tokens of prompt and answer", _VLLM, boolean,
           False),
    Option("return_tokens_as_token_ids", COMPLETIONS, "done", "tokens of logprobs as token_id:N", _VLLM,
           boolean, False),
    # What the answer must be.
    Option("response_format", BOTH, "done", "text, json_object (also with a schema), json_schema",
           form=forms.response_format),
    Option("text.format", RESPONSES, "done", "text, json_object, json_schema",
           form=forms.response_format),
    Option("json_schema", BOTH, "mapped", "response_format of that schema", _LLAMA,
           form=forms.json_schema),
    Option("grammar", BOTH, "mapped", "GBNF, or Lark", _LLAMA, form=forms.any_grammar),
    *(
        Option(f"{prefix}{kind}", routes, "done", says, _VLLM, form=form)
        for prefix, routes in (("structured_outputs.", ANSWERS), ("guided_", BOTH))
        for kind, says, form in (
            ("json", "JSON of a schema", forms.json_schema),
            ("regex", "a match of all of a regular expression", forms.regex),
            ("choice", "one of several texts", forms.choice),
            ("grammar", "a text of a Lark grammar, or of one in GBNF", forms.any_grammar),
        )
    ),
    Option("structured_outputs.json_object", ANSWERS, "done", "true: any JSON object", _VLLM,
           form=forms.json_object),
    *(
        Option(f"structured_outputs.{name}", ANSWERS, "refused", "there is one way of doing it", _VLLM)
        for name in ("structural_tag", "whitespace_pattern", "disable_any_whitespace",
                     "disable_additional_properties")
    ),
    Option("structured_outputs.disable_fallback", ANSWERS, "mapped", "taken; there is no fallback",
           _VLLM, boolean),
    Option("structured_outputs.backend", ANSWERS, "mapped", "taken; there is one", _VLLM),
    Option("guided_decoding_backend", BOTH, "mapped", "taken; there is one", _VLLM),
    Option("guided_whitespace_pattern", BOTH, "refused", "blanks are those that indent", _VLLM),
    # Thinking.
    Option("reasoning_effort", CHAT, "done", "none, minimal, low → low; medium; high, xhigh, max → high",
           read=effort),
    Option("reasoning_effort", (*RESPONSES, *_TOKENIZE), "mapped", "reasoning.effort", _OURS, effort),
    Option("reasoning.effort", RESPONSES, "done",
           "none, minimal, low → low; medium; high, xhigh, max → high", read=effort),
    Option("reasoning.effort", (*CHAT, *_TOKENIZE), "mapped", "reasoning_effort", read=effort),
    Option("reasoning.summary", RESPONSES, "mapped", "the thinking itself stands in its place"),
    Option("reasoning.generate_summary", RESPONSES, "mapped", "as reasoning.summary"),
    Option("chat_template_kwargs.reasoning_effort", (*CONVERSATIONS, *_TOKENIZE), "mapped",
           "reasoning_effort", _VLLM, effort),
    Option("think", (*CONVERSATIONS, *_TOKENIZE), "mapped", "reasoning_effort; true: medium, false: low",
           _OLLAMA, effort_or_switch),
    Option("include_reasoning", CHAT, "done", "false: thinking is not given", _VLLM, boolean, True),
    Option("reasoning_format", CHAT, "refused", "thinking stands beside the text, in both names of it",
           _LLAMA, harmless=also("auto", "deepseek")),
    Option("reasoning_in_content", CHAT, "refused", "see reasoning_format", _LLAMA),
    Option("thinking_token_budget", BOTH, "refused", _OFF, _VLLM, harmless=lambda v: v in (None, -1)),
    Option("reasoning_budget", BOTH, "refused", _OFF, _LLAMA, harmless=lambda v: v in (None, -1)),
    Option("thinking_budget_tokens", BOTH, "refused", _OFF, _LLAMA,
           harmless=lambda v: v in (None, -1)),
    Option("thinking_forced_open", CHAT, "refused", _HARMONY, _LLAMA),
    Option("chat_template_kwargs.builtin_tools", CHAT, "refused",
           "the model's own tools run nowhere here", _VLLM),
    Option("chat_template_kwargs.model_identity", CHAT, "refused",
           "write it into a developer message", _VLLM),
    # Going on with a message.
    Option("continue_final_message", (*CHAT, *_TOKENIZE), "done", "the last message is gone on with",
           _VLLM, boolean, False),
    Option("add_generation_prompt", (*CHAT, *_TOKENIZE), "done", "false with continue_final_message",
           _VLLM, boolean),
    # Kept, told, counted: nothing of the answer depends on it.
    Option("metadata", CONVERSATIONS, "mapped", "taken; responses repeat it"),
    Option("user", ANSWERS, "mapped", "taken; clients are told apart by key or address"),
    Option("safety_identifier", CONVERSATIONS, "mapped", "taken"),
    Option("prompt_cache_key", CONVERSATIONS, "mapped", "taken; all prompts share the prefix cache"),
    Option("prompt_cache_retention", CONVERSATIONS, "mapped", "taken; kept as long as there is room"),
    Option("prompt_cache_options", CONVERSATIONS, "mapped", "taken; see prompt_cache_retention"),
    Option("service_tier", CONVERSATIONS, "mapped", "taken; there is one", read=one_of(_TIERS)),
    Option("store", RESPONSES, "mapped",
           "thinking is remembered for a while, for items that refer to it; false: not even that",
           read=boolean, default=True),
    Option("store", CHAT, "mapped", "taken; nothing is kept", read=boolean),
    Option("truncation", RESPONSES, "mapped", "taken; what does not fit is an error all the same",
           read=one_of({"auto": "auto", "disabled": "disabled"})),
    Option("max_tool_calls", RESPONSES, "mapped", "taken; it counts tools of OpenAI's own",
           read=integer),
    Option("cache_prompt", BOTH, "refused", "the server's option --no-prefix-cache decides", _LLAMA,
           harmless=lambda value: value in (None, True)),
    Option("request_id", ANSWERS, "mapped", "taken; the header x-request-id names a request", _VLLM),
    Option("session_id", ANSWERS, "mapped", "taken", _VLLM),
    Option("stream_interval", BOTH, "mapped", "taken; every token comes at once", _VLLM, integer),
    Option("id_slot", BOTH, "mapped", "taken; there are no slots", _LLAMA, integer),
    Option("n_keep", BOTH, "mapped", "taken; a text that does not fit is never cut", _LLAMA, integer),
    Option("parse_tool_calls", CHAT, "refused", "calls are always read", _LLAMA, harmless=also(True)),
    Option("sse_ping_interval", ANSWERS, "mapped", "taken; nothing is sent while there is no text",
           _LLAMA, integer),
    # Of OpenAI's, refused.
    *(
        Option(name, CHAT, "refused", says)
        for name, says in (
            ("audio", _TEXT),
            ("prediction", "texts that repeat what stands in them are guessed ahead by themselves"),
            ("web_search_options", "nothing is searched here"),
            ("functions", "declare tools"),
            ("moderation", "nothing is judged here"),
        )
    ),
    Option("function_call", CHAT, "refused", "use tool_choice", harmless=also("none", "auto")),
    Option("modalities", CHAT, "refused", _TEXT, harmless=also(["text"])),
    Option("verbosity", CHAT, "refused", "the model was not taught it", harmless=also("medium")),
    Option("text.verbosity", RESPONSES, "refused", "the model was not taught it",
           harmless=also("medium")),
    Option("suffix", COMPLETIONS, "refused", "the model was not taught to fill in"),
    *(
        Option(name, RESPONSES, "refused", says)
        for name, says in (
            ("previous_response_id", _NOT_KEPT),
            ("previous_response", _NOT_KEPT),
            ("previous_input_messages", _NOT_KEPT),
            ("conversation", _NOT_KEPT),
            ("background", _NOT_KEPT),
            ("background_options", _NOT_KEPT),
            ("prompt", _NOT_KEPT),
            ("context_management", "nothing is left out of a conversation"),
            ("moderation", "nothing is judged here"),
            ("access_programs", "nothing is searched here"),
            ("image", _TEXT),
            ("enable_response_messages", "see /tokenize"),
        )
    ),
    # Of vLLM's, refused.
    Option("length_penalty", BOTH, "refused", "there is no beam search", _VLLM, harmless=also(1, 1.0)),
    Option("early_stopping", BOTH, "refused", "there is no beam search", _VLLM),
    Option("skip_special_tokens", CONVERSATIONS, "refused", "answers hold none", _VLLM,
           harmless=also(True)),
    Option("skip_special_tokens", COMPLETIONS, "mapped",
           "taken; those that do not end the text are in it by name", _VLLM, boolean),
    Option("spaces_between_special_tokens", BOTH, "mapped", "taken; none are added", _VLLM, boolean),
    Option("add_special_tokens", BOTH, "refused", "the model has none to add", _VLLM,
           harmless=also(True)),
    Option("truncate_prompt_tokens", ANSWERS, "refused", "a prompt is never cut", _VLLM),
    Option("truncation_side", BOTH, "refused", "a prompt is never cut", _VLLM),
    Option("chat_template", (*CHAT, *_TOKENIZE), "refused", _HARMONY, _VLLM),
    Option("chat_template_content_format", CHAT, "mapped", "taken; there is one", _VLLM),
    Option("documents", CHAT, "refused", "write them into a message", _VLLM),
    Option("media_io_kwargs", CHAT, "refused", _TEXT, _VLLM),
    Option("mm_processor_kwargs", (*CONVERSATIONS, *_TOKENIZE), "refused", _TEXT, _VLLM),
    Option("return_tokens_as_token_ids", CHAT, "refused", "logprobs tell each token's bytes", _VLLM),
    Option("return_mm_kwargs", BOTH, "refused", _TEXT, _VLLM, harmless=also(True)),
    Option("cache_salt", ANSWERS, "refused",
           "the server's option --no-prefix-cache keeps clients apart", _VLLM),
    *(
        Option(name, BOTH, "refused", says, _VLLM)
        for name, says in (
            ("use_beam_search", "there is no beam search"),
            ("watermarking", _SAMPLERS),
            ("allowed_token_ids", "use logit_bias or a grammar"),
            ("bad_words", "use logit_bias or a grammar"),
            ("logprob_token_ids", "only the most likely ones are told"),
            ("logits_processors", _SAMPLERS),
            ("repetition_detection", "there are the penalties"),
            ("return_token_offsets", "logprobs of completions have text_offset"),
            ("return_prompt_text", "see /tokenize and /detokenize"),
            ("routed_experts_prompt_start", "which experts worked is not told"),
            ("kv_transfer_params", "caches are not handed on"),
            ("ec_transfer_params", "caches are not handed on"),
        )
    ),
    Option("vllm_xargs", ANSWERS, "refused", "there are no extensions", _VLLM),
    Option("prompt_embeds", COMPLETIONS, "refused", "prompts are texts or tokens", _VLLM),
    # Of llama.cpp's, refused.
    Option("typical_p", BOTH, "refused", _SAMPLERS, _LLAMA, harmless=also(1, 1.0)),
    Option("tfs_z", BOTH, "refused", _SAMPLERS, _LLAMA, harmless=also(1, 1.0)),
    Option("top_n_sigma", BOTH, "refused", _SAMPLERS, _LLAMA, harmless=also(-1)),
    Option("repeat_last_n", BOTH, "refused", "penalties look at all of the text", _LLAMA,
           harmless=lambda value: value in (None, -1)),
    # They shape a sampler that is refused when it is on.
    *(
        Option(name, BOTH, "mapped", "taken; the sampler that it shapes is refused", _LLAMA)
        for name in ("dynatemp_exponent", "mirostat_tau", "mirostat_eta", "dry_base",
                     "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
                     "xtc_threshold", "adaptive_decay")
    ),
    Option("adaptive_target", BOTH, "refused", _SAMPLERS, _LLAMA, harmless=also(-1)),
    *(
        Option(name, BOTH, "refused", says, _LLAMA)
        for name, says in (
            ("dynatemp_range", _SAMPLERS),
            ("mirostat", _SAMPLERS),
            ("dry_multiplier", _SAMPLERS),
            ("xtc_probability", _SAMPLERS),
            ("min_keep", _SAMPLERS),
            ("samplers", _SAMPLERS),
            ("n_probs", "use logprobs"),
            ("post_sampling_probs", "log-probabilities are the model's own"),
            ("n_indent", _SAMPLERS),
            ("n_discard", "a text that does not fit is never cut"),
            ("n_cmpl", "use n"),
            ("n_cache_reuse", "the prefix cache takes what it has"),
            ("t_max_predict_ms", "use the server's option --timeout"),
            ("return_tokens", "use return_token_ids"),
            ("return_progress", "use stream"),
            ("timings_per_token", "times are in /metrics"),
            ("response_fields", "answers are whole"),
            ("lora", "merge it first"),
            ("image_data", _TEXT),
            ("grammar_lazy", "a grammar holds from the answer's beginning"),
            ("grammar_triggers", "a grammar holds from the answer's beginning"),
            ("preserved_tokens", "texts hold no special tokens"),
            ("input_prefix", "the model was not taught to fill in"),
            ("input_suffix", "the model was not taught to fill in"),
            ("input_extra", "the model was not taught to fill in"),
        )
    ),
    # Ollama's.
    Option("keep_alive", BOTH, "mapped", "taken; the model stays as long as the server", _OLLAMA),
    Option("options", BOTH, "refused", "write them into the request itself", _OLLAMA),
    Option("format", BOTH, "refused", "use response_format", _OLLAMA),
    # Texts as tokens.
    Option("prompt", _TOKENIZE, "done", "the text", _VLLM),
    Option("content", _TOKENIZE, "mapped", "prompt", _LLAMA),
    Option("add_special_tokens", _TOKENIZE, "mapped", "taken; the model has none to add", _VLLM, boolean),
    Option("add_special", _TOKENIZE, "mapped", "taken; the model has none to add", _LLAMA, boolean),
    Option("parse_special", _TOKENIZE, "done", "true: names of special tokens are these, not words", _LLAMA,
           boolean, False),
    Option("return_token_strs", _TOKENIZE, "done", "token_strs: what each token stands for", _VLLM,
           boolean, False),
    Option("with_pieces", _TOKENIZE, "done", "tokens as {id, piece}; bytes where that is no text", _LLAMA,
           boolean, False),
    Option("tokens", _DETOKENIZE, "done", "the ids", _VLLM),
)  # fmt: skip
