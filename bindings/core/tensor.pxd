from libc.stdint cimport int64_t
from libcpp.vector cimport vector


cdef extern from "core/tensor.h" namespace "gptoss" nogil:
    cdef enum class DType(int):
        bf16
        u8
    cdef cppclass Tensor:
        const void* data
        DType dtype
        vector[int64_t] shape
