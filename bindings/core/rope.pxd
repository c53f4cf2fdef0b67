from libcpp.vector cimport vector

from core.config cimport ModelConfig
from translate cimport translate_exception


cdef extern from "core/rope.h" namespace "gptoss" nogil:
    vector[double] yarn_inverse_frequencies(const ModelConfig&) except +translate_exception
    double yarn_concentration(const ModelConfig&)
