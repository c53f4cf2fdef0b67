from libcpp.string cimport string
from libcpp.vector cimport vector

from translate cimport translate_exception


cdef extern from "core/cpu/isa.h" namespace "gptoss::cpu" nogil:
    cdef enum class Isa(int):
        generic
    const char* isa_name(Isa)
    vector[string] cpu_features() except +translate_exception
