# gptoss.config.ModelConfig → the ModelConfig of the core.
from core.config cimport ModelConfig


cdef inline void fill_config(ModelConfig* to, object config) except *:
    to.num_hidden_layers = config.num_hidden_layers
    to.num_experts = config.num_experts
    to.experts_per_token = config.experts_per_token
    to.vocab_size = config.vocab_size
    to.hidden_size = config.hidden_size
    to.intermediate_size = config.intermediate_size
    to.head_dim = config.head_dim
    to.num_attention_heads = config.num_attention_heads
    to.num_key_value_heads = config.num_key_value_heads
    to.sliding_window = config.sliding_window
    to.initial_context_length = config.initial_context_length
    to.rope_theta = config.rope_theta
    to.rope_scaling_factor = config.rope_scaling_factor
    to.rope_ntk_alpha = config.rope_ntk_alpha
    to.rope_ntk_beta = config.rope_ntk_beta
    to.swiglu_limit = config.swiglu_limit
    to.rms_norm_eps = config.rms_norm_eps
