from libc.stdint cimport int64_t, uint8_t

from core.dtype cimport bf16


cdef extern from "core/cpu/panels.h" namespace "gptoss::cpu" nogil:
    int panel_rows
    cdef enum class WeightFormat(int):
        mxfp4
        q8
        q8_0
    int64_t panel_count(int64_t)
    int64_t panel_blocks(int64_t)
    int64_t panel_cols(int64_t)
    int64_t panel_bytes(WeightFormat, int64_t)
    cdef cppclass Panels:
        WeightFormat format
        int64_t rows
        int64_t cols
        const uint8_t* data
        const bf16* bias
