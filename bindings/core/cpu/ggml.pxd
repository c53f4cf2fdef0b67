from libc.stdint cimport int64_t, uint8_t
from libcpp cimport bool

from core.dtype cimport bf16
from translate cimport translate_exception


cdef extern from "core/cpu/ggml.h" namespace "gptoss::cpu" nogil:
    cdef cppclass MxRows:
        uint8_t* blocks
        uint8_t* scales
        int64_t block_stride
        int64_t scale_stride
    void unpack_mxfp4(const uint8_t*, bool, int64_t, int64_t, const MxRows&,
                      int) except +translate_exception
    bool dequantize_q8_0(const uint8_t*, int64_t, bf16*, int) except +translate_exception
