from libc.stdint cimport int64_t
from libcpp cimport bool
from libcpp.vector cimport vector

from core.cpu.isa cimport Isa
from core.cpu.kernels.table cimport Operand, Product
from core.cpu.panels cimport Panels, WeightFormat
from translate cimport translate_exception


cdef extern from "core/cpu/linear.h" namespace "gptoss::cpu" nogil:
    cdef cppclass OperandStorage:
        pass
    cdef cppclass Compute:
        Compute(Isa, int, bool) except +translate_exception
        Product product_for(WeightFormat, int64_t)
    cdef cppclass LinearJob:
        const Panels* w
        float* y
        int64_t y_stride
    Operand make_operand(Compute&, const float*, int64_t, int64_t, int64_t, Product,
                         OperandStorage&) except +translate_exception
    void linear(Compute&, const Operand&, const vector[LinearJob]&) except +translate_exception
