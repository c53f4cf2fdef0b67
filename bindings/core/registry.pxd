from libcpp cimport bool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from core.backend cimport CppBackend, Options
from translate cimport translate_exception


cdef extern from "core/registry.h" namespace "gptoss" nogil:
    cdef cppclass BackendStatus:
        string name
        bool available
        string reason
    vector[BackendStatus] list_backends(const string&) except +translate_exception
    unique_ptr[CppBackend] make_backend(const string&, const string&,
                                        const Options&) except +translate_exception
