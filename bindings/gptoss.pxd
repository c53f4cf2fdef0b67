# The C++ declarations that the two extension modules use; mirrors core/*.h.
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint16_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector


cdef extern from "Python.h":
    void PyErr_SetObject(object type, object value)
    ctypedef struct PyObject


cdef extern from "translate.h" namespace "gptoss::bindings" nogil:
    void translate_exception()
    PyObject* error_class
    cdef cppclass CallbackSource:
        CallbackSource(void* owner, int (*fetch)(void*, const char*, Tensor*) noexcept,
                       int (*release)(void*, const char*) noexcept, bool mxfp4, int packed)


cdef extern from "dtype.h" namespace "gptoss" nogil:
    cdef struct bf16:
        uint16_t bits


cdef extern from "tensor.h" namespace "gptoss" nogil:
    cdef enum class DType(int):
        bf16
        u8
    cdef cppclass Tensor:
        const void* data
        DType dtype
        vector[int64_t] shape


cdef extern from "config.h" namespace "gptoss" nogil:
    cdef cppclass ModelConfig:
        int32_t num_hidden_layers
        int32_t num_experts
        int32_t experts_per_token
        int32_t vocab_size
        int32_t hidden_size
        int32_t intermediate_size
        int32_t head_dim
        int32_t num_attention_heads
        int32_t num_key_value_heads
        int32_t sliding_window
        int32_t initial_context_length
        double rope_theta
        double rope_scaling_factor
        double rope_ntk_alpha
        double rope_ntk_beta
        float swiglu_limit
        float rms_norm_eps


cdef extern from "weights.h" namespace "gptoss" nogil:
    cdef cppclass WeightSource:
        pass


cdef extern from "batch.h" namespace "gptoss" nogil:
    int page_size
    int64_t mask_words(int64_t)
    cdef cppclass SamplingRow:
        float temperature
        int32_t n_logprobs
    cdef cppclass Sampling:
        const SamplingRow* rows
        const int32_t* history_start
        const int32_t* history_ids
        const int32_t* history_counts
        const int32_t* bias_start
        const int32_t* bias_ids
        const float* bias_values
        const int32_t* mask_rows
        const uint32_t* masks
        int32_t num_masks
    cdef cppclass Batch:
        int32_t num_tokens
        int32_t num_sequences
        int32_t num_rows
        int32_t max_blocks
        const int32_t* token_ids
        const int32_t* seq_start
        const int32_t* context_len
        const int32_t* block_table[2]
        const int32_t* logits_rows
        const Sampling* sampling
    cdef cppclass Output:
        int32_t* tokens
        float* logprobs
        int32_t max_logprobs
        int32_t* top_ids
        float* top_logprobs
        float* logits
        float* hidden


cdef extern from "backend.h" namespace "gptoss" nogil:
    cdef enum class Activation(int):
        bf16
        f32
    cdef enum class DenseWeights(int):
        published
        q8
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
    cdef cppclass BackendStatus:
        string name
        bool available
        string reason
    vector[BackendStatus] list_backends(const string&) except +translate_exception
    unique_ptr[CppBackend] make_backend(const string&, const string&,
                                        const Options&) except +translate_exception


cdef extern from "sampler.h" namespace "gptoss" nogil:
    double uniform_draw(uint64_t, uint64_t)


cdef extern from "cpu/isa.h" namespace "gptoss::cpu" nogil:
    cdef enum class Isa(int):
        generic
    const char* isa_name(Isa)
    vector[Isa] usable_isas() except +translate_exception
    vector[Isa] testable_isas() except +translate_exception
    Isa parse_isa(const string&) except +translate_exception
    string describe_isa() except +translate_exception
    vector[string] cpu_features() except +translate_exception
    int usable_threads()


cdef extern from "cpu/threads.h" namespace "gptoss::cpu" nogil:
    cdef cppclass ThreadPool:
        ThreadPool(int) except +translate_exception


cdef extern from "cpu/bandwidth.h" namespace "gptoss::cpu" nogil:
    uint64_t read_all(const uint64_t*, int64_t, ThreadPool&) except +translate_exception


cdef extern from "cpu/panel.h" namespace "gptoss::cpu" nogil:
    int panel_rows
    cdef enum class WeightFormat(int):
        mxfp4
        q8
    int64_t panel_count(int64_t)
    int64_t panel_blocks(int64_t)
    int64_t panel_cols(int64_t)
    int64_t panel_bytes(WeightFormat, int64_t)
    cdef cppclass Panels:
        WeightFormat format
        int64_t rows
        int64_t cols
        const uint8_t* data
        const bf16* bias


cdef extern from "cpu/pack.h" namespace "gptoss::cpu" nogil:
    cdef cppclass PackSource:
        const bf16* weight
        const uint8_t* blocks
        const uint8_t* scales
        int64_t rows
        int64_t cols
    void pack_matrix(const PackSource&, WeightFormat, uint8_t*, int) except +translate_exception


cdef extern from "cpu/kernels.h" namespace "gptoss::cpu" nogil:
    cdef cppclass MatmulF32Args:
        const float* x
        int64_t x_stride
        const int32_t* row_ids
        int64_t rows
        Panels w
        float* y
        int64_t y_stride
        int64_t begin
        int64_t end
    cdef struct QuantizeArgs:
        const float* x
        int64_t n
        int16_t* q
        float* scale
    int64_t matmul_scratch
    cdef cppclass MatmulI16Args:
        uint8_t* scratch
        const int16_t* x
        const float* x_scale
        const int32_t* row_ids
        int64_t rows
        Panels w
        float* y
        int64_t y_stride
        int64_t begin
        int64_t end
    cdef cppclass MatmulBf16Args:
        const bf16* x
        int64_t rows
        Panels w
        float* y
        int64_t y_stride
        int64_t begin
        int64_t end
        uint8_t* scratch
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
        double (*peak)(int64_t)
        void (*matmul_f32)(const MatmulF32Args&)
        void (*quantize)(const QuantizeArgs&)
        void (*matmul_i16)(const MatmulI16Args&)
        void (*matmul_bf16)(const MatmulBf16Args&)
        void (*to_tile_row)(const TileRowArgs&)
        void (*rms_norm)(const RmsNormArgs&)
        void (*rope)(const RopeArgs&)
        void (*attention)(const AttentionArgs&)
        void (*swiglu)(const SwigluArgs&)
        void (*to_bf16)(const float*, bf16*, int64_t)
        void (*round_bf16)(float*, int64_t)
        void (*add_scaled)(float*, const float*, float, int64_t)
    const Kernels& kernels_for(Isa) except +translate_exception


cdef extern from "cpu/compute.h" namespace "gptoss::cpu" nogil:
    cdef enum class Product(int):
        i16
    cdef cppclass Operand:
        pass
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


cdef extern from "cpu/ops.h" namespace "gptoss::cpu" nogil:
    void route(const float*, int64_t, int64_t, int32_t*, float*)


cdef extern from "rope.h" namespace "gptoss" nogil:
    vector[double] yarn_inverse_frequencies(const ModelConfig&) except +translate_exception
    double yarn_concentration(const ModelConfig&)


cdef inline void fill_config(ModelConfig* to, object config) except *:
    to.num_hidden_layers = config.num_hidden_layers
    to.num_experts = config.num_experts
    to.experts_per_token = config.experts_per_token
    to.vocab_size = config.vocab_size
    to.hidden_size = config.hidden_size
    to.intermediate_size = config.intermediate_size
    to.head_dim = config.head_dim
    to.num_attention_heads = config.num_attention_heads
    to.num_key_value_heads = config.num_key_value_heads
    to.sliding_window = config.sliding_window
    to.initial_context_length = config.initial_context_length
    to.rope_theta = config.rope_theta
    to.rope_scaling_factor = config.rope_scaling_factor
    to.rope_ntk_alpha = config.rope_ntk_alpha
    to.rope_ntk_beta = config.rope_ntk_beta
    to.swiglu_limit = config.swiglu_limit
    to.rms_norm_eps = config.rms_norm_eps
