from libc.stdint cimport int64_t
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from core.batch cimport Batch, Output
from core.config cimport ModelConfig
from core.weights cimport DenseWeights, WeightSource
from translate cimport translate_exception


cdef extern from "core/backend.h" namespace "gptoss" nogil:
    cdef enum class Activation(int):
        bf16
        f32
    cdef enum class KvFormat "gptoss::KvFormat"(int):
        bf16 "gptoss::KvFormat::bf16"
        int8 "gptoss::KvFormat::int8"
    cdef cppclass Options:
        Activation activation
        int threads
        DenseWeights weights
        KvFormat kv
        int ranks
    cdef cppclass CppBackend "gptoss::Backend":
        void load(const ModelConfig&, WeightSource&) except +translate_exception
        int64_t page_bytes() except +translate_exception
        int64_t plan_kv(int64_t) except +translate_exception
        int64_t free_bytes() except +translate_exception
        void alloc_kv(int64_t) except +translate_exception
        void step(const Batch&, const Output&) except +translate_exception
        vector[pair[string, string]] info() except +translate_exception
