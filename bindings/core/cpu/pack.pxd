from libc.stdint cimport int64_t, uint8_t

from core.cpu.panels cimport WeightFormat
from core.dtype cimport bf16
from translate cimport translate_exception


cdef extern from "core/cpu/pack.h" namespace "gptoss::cpu" nogil:
    cdef cppclass PackSource:
        const bf16* weight
        const uint8_t* blocks
        const uint8_t* scales
        const uint8_t* q8_0
        int64_t rows
        int64_t cols
    void pack_matrix(const PackSource&, WeightFormat, uint8_t*, int) except +translate_exception
