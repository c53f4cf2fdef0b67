# C++ exceptions as Python exceptions, and weights that a Python object hands over.
from cpython.ref cimport PyObject
from libcpp cimport bool
from libcpp.optional cimport optional
from libcpp.set cimport set as cpp_set
from libcpp.string cimport string

from core.tensor cimport Tensor
from core.weights cimport DenseWeights


cdef extern from "bindings/translate.h" namespace "gptoss::bindings" nogil:
    void translate_exception()
    PyObject* error_class
    cdef cppclass CallbackSource:
        CallbackSource(void* owner, int (*fetch)(void*, const char*, Tensor*) noexcept,
                       int (*release)(void*, const char*) noexcept, bool mxfp4,
                       optional[DenseWeights] panels, cpp_set[string] q8_0)
