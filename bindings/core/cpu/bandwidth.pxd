from libc.stdint cimport int64_t, uint64_t

from translate cimport translate_exception


cdef extern from "core/cpu/bandwidth.h" namespace "gptoss::cpu" nogil:
    uint64_t read_all(const uint64_t*, int64_t, int) except +translate_exception
