cdef extern from "core/weights.h" namespace "gptoss" nogil:
    cdef enum class DenseWeights(int):
        published
        q8
    cdef cppclass WeightSource:
        pass
