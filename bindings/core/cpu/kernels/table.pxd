from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libcpp cimport bool

from core.cpu.panels cimport Panels
from core.dtype cimport bf16


cdef extern from "core/cpu/kernels/table.h" namespace "gptoss::cpu" nogil:
    cdef enum class Product(int):
        f32
        i16
        bf16
    cdef cppclass Operand:
        Product product
        int64_t rows
        int64_t cols
        const float* x
        const int16_t* q
        const float* q_scale
        const bf16* tiles
    cdef cppclass MatmulArgs:
        Operand x
        int64_t first_row
        const int32_t* row_ids
        int64_t rows
        Panels w
        int64_t begin
        int64_t end
        float* y
        int64_t y_stride
        uint8_t* scratch
    int64_t matmul_scratch
    cdef struct QuantizeArgs:
        const float* x
        int64_t n
        int16_t* q
        float* scale
    cdef struct TileRowArgs:
        const float* x
        int64_t n
        bf16* tile_row
    cdef struct RmsNormArgs:
        const float* x
        const bf16* scale
        float* y
        int64_t n
        float eps
    cdef struct RopeArgs:
        float* x
        const float* cos
        const float* sin
        int64_t heads
        int64_t half
    cdef enum class KvStorage(int):
        f32
    cdef struct AttentionArgs:
        const float* q
        int64_t q_stride
        float* out
        int64_t out_stride
        const bf16* sinks
        int64_t tokens
        int64_t group
        int64_t head_dim
        float scale
        const int32_t* pages
        int64_t position
        int64_t window
        const uint8_t* k
        const uint8_t* v
        int64_t page_stride
        KvStorage storage
        float* scratch
    int64_t attention_tokens
    int64_t attention_scratch(int64_t, int64_t)
    cdef struct SwigluArgs:
        const float* u
        float* h
        int64_t begin
        int64_t end
        float limit
        bool round
    cdef cppclass Kernels:
        void (*matmul[3])(const MatmulArgs&)
        void (*quantize)(const QuantizeArgs&)
        void (*to_tile_row)(const TileRowArgs&)
        void (*rms_norm)(const RmsNormArgs&)
        void (*rope)(const RopeArgs&)
        void (*attention)(const AttentionArgs&)
        void (*swiglu)(const SwigluArgs&)
        void (*to_bf16)(const float*, bf16*, int64_t)
        void (*round_bf16)(float*, int64_t)
        void (*add_scaled)(float*, const float*, float, int64_t)
