# The CUDA kernels as tests call them; mirrors cuda/testing.h.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool
from libcpp.string cimport string

from gptoss cimport bf16, translate_exception


cdef extern from "testing.h" namespace "gptoss::cuda" nogil:
    cdef struct HostKernels:
        void (*gemm_bf16)(const bf16*, const bf16*, const bf16*, float*, int, int, int, bool,
                          bool) except +translate_exception
        void (*rms_norm)(const float*, const bf16*, bf16*, int, int,
                         float) except +translate_exception
        void (*unpack_mxfp4)(const uint8_t*, const uint8_t*, bf16*,
                             int64_t) except +translate_exception
        void (*route)(const float*, int32_t*, float*, int, int, int) except +translate_exception
    const HostKernels& load_host_kernels(const string& path) except +translate_exception
