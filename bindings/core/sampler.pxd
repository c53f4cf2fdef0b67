from libc.stdint cimport uint64_t


cdef extern from "core/sampler.h" namespace "gptoss" nogil:
    double uniform_draw(uint64_t, uint64_t)
