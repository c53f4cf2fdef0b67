from libc.stdint cimport uint16_t


cdef extern from "core/dtype.h" namespace "gptoss" nogil:
    cdef struct bf16:
        uint16_t bits
