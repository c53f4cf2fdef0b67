cdef extern from "core/weights.h" namespace "gptoss" nogil:
    cdef cppclass WeightSource:
        pass
