# The CUDA kernels as tests call them.
from libc.stdint cimport int64_t
from libcpp.string cimport string

from translate cimport translate_exception


cdef extern from "cuda/testing.h" namespace "gptoss::cuda" nogil:
    cdef enum HostArrayUse "gptoss::cuda::HostArrayUse":
        array_in "gptoss::cuda::array_in"
        array_out "gptoss::cuda::array_out"
        array_in_out "gptoss::cuda::array_in_out"

    cdef struct HostArray:
        void* data
        size_t bytes
        HostArrayUse use

    cdef struct HostCall:
        const char* kernel
        const HostArray* arrays
        int array_count
        const int64_t* sizes
        int size_count
        const double* numbers
        int number_count
        int repeat
        double* seconds
        int major
        int multiprocessors
        int shared_bytes

    cdef struct HostKernels:
        void (*call)(const HostCall&) except +translate_exception
    const HostKernels& load_host_kernels(const string& path) except +translate_exception
