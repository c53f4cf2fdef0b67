cdef extern from "core/cpu/machine.h" namespace "gptoss::cpu" nogil:
    int usable_threads()
