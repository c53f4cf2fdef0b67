from libcpp.string cimport string
from libcpp.vector cimport vector

from core.cpu.isa cimport Isa
from core.cpu.kernels.table cimport Kernels
from translate cimport translate_exception


cdef extern from "core/cpu/kernels/select.h" namespace "gptoss::cpu" nogil:
    vector[Isa] testable_isas() except +translate_exception
    Isa parse_isa(const string&) except +translate_exception
    string describe_isa() except +translate_exception
    const Kernels& kernels_for(Isa) except +translate_exception
