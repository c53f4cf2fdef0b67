from libc.stdint cimport int64_t

from core.cpu.isa cimport Isa


cdef extern from "core/testing/peak.h" namespace "gptoss::testing" nogil:
    double peak(Isa, int64_t)
