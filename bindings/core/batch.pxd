from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "core/batch.h" namespace "gptoss" nogil:
    int page_size
    int64_t mask_words(int64_t)
    cdef cppclass SamplingRow:
        float temperature
        int32_t n_logprobs
    cdef cppclass Sampling:
        const SamplingRow* rows
        const int32_t* history_start
        const int32_t* history_ids
        const int32_t* history_counts
        const int32_t* bias_start
        const int32_t* bias_ids
        const float* bias_values
        const int32_t* mask_rows
        const uint32_t* masks
        int32_t num_masks
    cdef cppclass Batch:
        int32_t num_tokens
        int32_t num_sequences
        int32_t num_rows
        int32_t max_blocks
        const int32_t* token_ids
        const int32_t* seq_start
        const int32_t* context_len
        const int32_t* block_table[2]
        const int32_t* logits_rows
        const Sampling* sampling
    cdef cppclass Output:
        int32_t* tokens
        float* logprobs
        int32_t max_logprobs
        int32_t* top_ids
        float* top_logprobs
        float* logits
        float* hidden
