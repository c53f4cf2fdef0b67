from libc.stdint cimport int32_t


cdef extern from "core/config.h" namespace "gptoss" nogil:
    cdef cppclass ModelConfig:
        int32_t num_hidden_layers
        int32_t num_experts
        int32_t experts_per_token
        int32_t vocab_size
        int32_t hidden_size
        int32_t intermediate_size
        int32_t head_dim
        int32_t num_attention_heads
        int32_t num_key_value_heads
        int32_t sliding_window
        int32_t initial_context_length
        double rope_theta
        double rope_scaling_factor
        double rope_ntk_alpha
        double rope_ntk_beta
        float swiglu_limit
        float rms_norm_eps
