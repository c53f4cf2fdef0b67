from libc.stdint cimport int32_t, int64_t


cdef extern from "core/cpu/layer.h" namespace "gptoss::cpu" nogil:
    void route(const float*, int64_t, int64_t, int32_t*, float*)
