# cython: language_level=3, boundscheck=True, wraparound=False
# distutils: language = c++
"""NumPy in, NumPy out: one function per CPU kernel, for tests and micro-benchmarks.

bf16 arrays are uint16. `isa` names an instruction set of isas(). Every output is filled with NaN
(0xFFFF for bf16) before the kernel runs, so that an element left out is seen.
"""

from time import perf_counter

import numpy as np

from cpython.ref cimport PyObject
from libc.math cimport sqrt
from libcpp cimport bool
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libcpp.vector cimport vector

cimport translate
from core.batch cimport page_size
from core.config cimport ModelConfig
from core.cpu.isa cimport Isa, isa_name
from core.cpu.kernels.select cimport kernels_for, parse_isa, testable_isas
from core.cpu.kernels.table cimport (
    AttentionArgs, Kernels, KvStorage, MatmulArgs, Product, QuantizeArgs, RmsNormArgs, RopeArgs,
    SwigluArgs, TileRowArgs, attention_scratch, attention_tokens, matmul_scratch,
)
from core.cpu.layer cimport route as cpp_route
from core.cpu.linear cimport Compute, LinearJob, OperandStorage, linear, make_operand
from core.cpu.panels cimport (
    Panels as CppPanels, WeightFormat, panel_blocks, panel_bytes, panel_cols, panel_count,
)
from core.dtype cimport bf16
from core.rope cimport (
    yarn_concentration as cpp_yarn_concentration,
    yarn_inverse_frequencies as cpp_yarn_inverse_frequencies,
)
from core.sampler cimport uniform_draw as cpp_uniform_draw
from core.testing.peak cimport peak as cpp_peak
from cuda.testing cimport (
    HostArray, HostCall, array_in, array_in_out, array_out, load_host_kernels,
)
from model_config cimport fill_config

from gptoss.errors import Error

from . import _core

translate.error_class = <PyObject*> Error

PAGE_SIZE = page_size
PRODUCTS = ("f32", "i16", "bf16")  # in the order of Product in core/cpu/kernels/table.h
ATTENTION_TOKENS = attention_tokens  # at most, in a tile


def isas():
    """Names of the instruction sets that this build has and this CPU supports, slowest first, and
    those that are only for tests."""
    return [isa_name(isa).decode() for isa in testable_isas()]


def products(isa):
    """Which of the products "f32", "i16" and "bf16" this instruction set has."""
    cdef const Kernels* kernels = _kernels(isa)
    return [name for number, name in enumerate(PRODUCTS) if kernels.matmul[number] != NULL]


cdef const Kernels* _kernels(str isa) except NULL:
    return &kernels_for(parse_isa(isa.encode()))


def _poisoned(shape):
    return np.full(shape, np.nan, np.float32)


def _check(condition, message):
    if not condition:
        raise Error(message)


class Panels:
    """A matrix [rows, cols] in panels (core/cpu/panels.h): data uint8 [panels, panel bytes]."""

    def __init__(self, format, rows, cols, data):
        self.format = format
        self.rows = rows
        self.cols = cols
        self.data = data


def pack(format, *, weight=None, blocks=None, scales=None, threads=1):
    """Panels of weight [N, K] (bf16 → "bf16" or "q8") or of blocks [N, K / 32, 16] and scales
    [N, K / 32] (→ "mxfp4")."""
    data = _core.pack(format, weight=weight, blocks=blocks, scales=scales, threads=threads)
    rows, cols = weight.shape if blocks is None else (blocks.shape[0], blocks.shape[1] * 32)
    return Panels(format, rows, cols, data)


def _aligned(shape, dtype, fill):
    """An array at a multiple of 64 bytes, filled."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    array = raw[skip:skip + size].view(dtype).reshape(shape)
    array.fill(fill)
    return array


cdef CppPanels _panels(object panels, const uint16_t[::1] bias) except *:
    cdef CppPanels w
    cdef const uint8_t[:, ::1] data = panels.data
    w.format = <WeightFormat> <int> _core.WEIGHT_FORMATS[panels.format]
    w.rows = panels.rows
    w.cols = panels.cols
    w.data = &data[0, 0]
    w.bias = NULL
    _check(data.shape[0] == panel_count(w.rows) and data.shape[1] == panel_bytes(w.format, w.cols),
           "panels: data does not fit rows and cols")
    if bias is not None:
        _check(bias.shape[0] == w.rows, "panels: bias has the wrong length")
        w.bias = <const bf16*> &bias[0]
    return w


def _padded(x, cols):
    """x [·, cols] with zeros up to whole blocks."""
    padded = np.zeros((x.shape[0], panel_cols(cols)), np.float32)
    padded[:, :cols] = x
    return padded


def _row_count(x, row_ids):
    if row_ids is None:
        return x.shape[0]
    _check(np.all((np.asarray(row_ids) >= 0) & (np.asarray(row_ids) < x.shape[0])),
           "row_ids out of range")
    return row_ids.shape[0]


cdef object _multiply(str isa, int product, MatmulArgs* a, begin, end):
    """y [rows, N] of the operand, rows and weights in `a`; NaN where it is not computed."""
    cdef const Kernels* kernels = _kernels(isa)
    _check(kernels.matmul[product] != NULL, f"{isa} has no product {PRODUCTS[product]}")
    result = _poisoned((a.rows, a.w.rows))
    scratch = _aligned((matmul_scratch,), np.uint8, 0xFF)
    cdef float[:, ::1] y = result
    cdef uint8_t[::1] scratch_view = scratch
    a.x.product = <Product> product
    a.x.cols = a.w.cols
    a.y = &y[0, 0]
    a.y_stride = a.w.rows
    a.begin = begin
    a.end = panel_count(a.w.rows) if end is None else end
    a.scratch = &scratch_view[0]
    with nogil:
        kernels.matmul[product](a[0])
    return result


def matmul_f32(x, panels, *, isa, const uint16_t[::1] bias=None, const int32_t[::1] row_ids=None,
               begin=0, end=None):
    """y [rows, N] = x [·, K] (rows row_ids) · panelsᵀ + bias: float32 operand and products.

    Only the columns of panels begin..end are computed; the others stay NaN.
    """
    cdef MatmulArgs a
    a.w = _panels(panels, bias)
    _check(x.shape[1] == a.w.cols, "matmul_f32: x and the weights differ in columns")
    cdef const float[:, ::1] operand = _padded(x, x.shape[1])
    a.x.x = &operand[0, 0]
    a.rows = _row_count(x, row_ids)
    a.row_ids = &row_ids[0] if row_ids is not None else NULL
    return _multiply(isa, <int> Product.f32, &a, begin, end)


def quantize(const float[:, ::1] x, *, isa):
    """(q int16 [rows, panel_cols(n)], scale float32 [rows, panel_blocks(n)]) of x [rows, n]."""
    cdef int64_t n = x.shape[1]
    q = np.full((x.shape[0], panel_cols(n)), -32768, np.int16)
    scale = _poisoned((x.shape[0], panel_blocks(n)))
    cdef int16_t[:, ::1] q_view = q
    cdef float[:, ::1] scale_view = scale
    cdef const Kernels* kernels = _kernels(isa)
    for row in range(x.shape[0]):
        kernels.quantize(QuantizeArgs(&x[row, 0], n, &q_view[row, 0], &scale_view[row, 0]))
    return q, scale


def matmul_i16(const int16_t[:, ::1] q, const float[:, ::1] scale, panels, *, isa,
               const uint16_t[::1] bias=None, const int32_t[::1] row_ids=None, begin=0, end=None):
    """As matmul_f32, on rows that `quantize` made; mxfp4 and q8."""
    cdef MatmulArgs a
    a.w = _panels(panels, bias)
    _check(q.shape[1] == panel_cols(a.w.cols) and scale.shape[1] == panel_blocks(a.w.cols)
           and q.shape[0] == scale.shape[0], "matmul_i16: operand and weights differ in columns")
    a.x.q = &q[0, 0]
    a.x.q_scale = &scale[0, 0]
    a.rows = _row_count(q, row_ids)
    a.row_ids = &row_ids[0] if row_ids is not None else NULL
    return _multiply(isa, <int> Product.i16, &a, begin, end)


def to_tiles(const float[:, ::1] x, *, isa):
    """bf16 tiles (uint16) [ceil(rows / 16), panel_blocks(n), 16, 32] of x [rows, n]."""
    cdef int64_t n = x.shape[1]
    tiles = _aligned((panel_count(x.shape[0]), panel_blocks(n), 16, 32), np.uint16, 0xFFFF)
    cdef uint16_t[:, :, :, ::1] to = tiles
    cdef const Kernels* kernels = _kernels(isa)
    for row in range(x.shape[0]):
        kernels.to_tile_row(TileRowArgs(&x[row, 0], n, <bf16*> &to[row // 16, 0, row % 16, 0]))
    tiles[-1, :, (x.shape[0] - 1) % 16 + 1:] = 0
    return tiles


def matmul_bf16(const uint16_t[:, :, :, ::1] tiles, rows, panels, *, isa,
                const uint16_t[::1] bias=None, begin=0, end=None):
    """As matmul_f32, on tiles that `to_tiles` made."""
    cdef MatmulArgs a
    a.w = _panels(panels, bias)
    _check(tiles.shape[0] == panel_count(rows) and tiles.shape[1] == panel_blocks(a.w.cols)
           and tiles.shape[2] == 16 and tiles.shape[3] == 32,
           "matmul_bf16: operand and weights differ in shape")
    a.x.tiles = <const bf16*> &tiles[0, 0, 0, 0]
    a.rows = rows
    return _multiply(isa, <int> Product.bf16, &a, begin, end)


def rms_norm(const float[::1] x, const uint16_t[::1] scale, float eps, *, isa):
    """x [n] / sqrt(mean(x²) + eps) times scale (bf16 [n])."""
    _check(x.shape[0] == scale.shape[0], "rms_norm: x and scale differ in length")
    result = _poisoned(x.shape[0])
    cdef float[::1] y = result
    cdef const Kernels* kernels = _kernels(isa)
    kernels.rms_norm(RmsNormArgs(&x[0], <const bf16*> &scale[0], &y[0], x.shape[0], eps))
    return result


def rope(x, const float[::1] cos, const float[::1] sin, *, isa):
    """Rotated copy of x [heads, 2 · half] by cos and sin [half]."""
    result = np.array(x, np.float32, order="C")
    _check(result.ndim == 2 and result.shape[1] == 2 * cos.shape[0] == 2 * sin.shape[0],
           "rope: x, cos and sin differ in shape")
    cdef float[:, ::1] y = result
    cdef const Kernels* kernels = _kernels(isa)
    kernels.rope(RopeArgs(&y[0, 0], &cos[0], &sin[0], y.shape[0], cos.shape[0]))
    return result


def _kv_pages(x, scale):
    """Bytes of each page [pages, ·]: elements x [pages, ·, ·], then float32 scale [pages, 16]."""
    parts = [np.ascontiguousarray(x).reshape(x.shape[0], -1).view(np.uint8)]
    if scale is not None:
        parts.append(np.ascontiguousarray(scale, np.float32).view(np.uint8))
    return np.concatenate(parts, axis=1)


def attention(const float[:, :, ::1] q, const uint16_t[::1] sinks, k, v, const int32_t[::1] pages,
              position, *, isa, window=None, k_scale=None, v_scale=None):
    """out [tokens, group, D]: query tokens at `position` and following, of one KV head's group,
    attend to what they see: the last `window` keys, or all.

    k, v: the pool, [pages, page_size, D], float32, uint16 (bf16) or int8 with k_scale and v_scale
    [pages, page_size]. pages [blocks]: page of each block of page_size positions.
    """
    _check(k.shape == v.shape and k.ndim == 3 and k.shape[1] == page_size
           and k.shape[2] == q.shape[2] and k.dtype == v.dtype,
           "attention: k and v must be alike, [pages, 16, D]")
    _check(sinks.shape[0] == q.shape[1], "attention: one sink per query head")
    cdef int64_t last = position + q.shape[0] - 1
    first = 0 if window is None else max(0, position - window + 1)
    _check(0 < q.shape[0] <= attention_tokens and 0 <= first <= last < pages.shape[0] * page_size,
           "attention: tokens or positions out of range")
    used = np.asarray(pages)[first // page_size:last // page_size + 1]
    _check(np.all((used >= 0) & (used < k.shape[0])), "attention: a page is out of range")
    result = _poisoned((q.shape[0], q.shape[1], q.shape[2]))
    scratch = _poisoned(attention_scratch(q.shape[1], q.shape[2]))
    cdef float[:, :, ::1] out = result
    cdef float[::1] scratch_view = scratch
    cdef const uint8_t[:, ::1] k_bytes = _kv_pages(k.transpose(0, 2, 1), k_scale)
    cdef const uint8_t[:, ::1] v_bytes = _kv_pages(v, v_scale)
    cdef AttentionArgs a
    a.q = &q[0, 0, 0]
    a.q_stride = q.shape[1] * q.shape[2]
    a.sinks = <const bf16*> &sinks[0]
    a.out = &out[0, 0, 0]
    a.out_stride = a.q_stride
    a.tokens = q.shape[0]
    a.group = q.shape[1]
    a.head_dim = q.shape[2]
    a.scale = <float> (1.0 / sqrt(<double> q.shape[2]))
    a.pages = &pages[0]
    a.position = position
    a.window = 2**62 if window is None else window
    a.k = &k_bytes[0, 0]
    a.v = &v_bytes[0, 0]
    a.page_stride = k_bytes.shape[1]
    a.storage = <KvStorage> <int> {"float32": 0, "uint16": 1, "int8": 2}[k.dtype.name]
    a.scratch = &scratch_view[0]
    cdef const Kernels* kernels = _kernels(isa)
    with nogil:
        kernels.attention(a)
    return result


def swiglu(const float[::1] u, float limit, *, isa, round=False):
    """h [n] from u [2 n], glu and linear interleaved."""
    cdef int64_t n = u.shape[0] // 2
    result = _poisoned(n)
    cdef float[::1] h = result
    cdef const Kernels* kernels = _kernels(isa)
    kernels.swiglu(SwigluArgs(&u[0], &h[0], 0, n, limit, round))
    return result


def to_bf16(const float[::1] x, *, isa):
    """bf16 (uint16) of x, rounded to nearest even."""
    result = np.full(x.shape[0], 0xFFFF, np.uint16)
    cdef uint16_t[::1] to = result
    cdef const Kernels* kernels = _kernels(isa)
    kernels.to_bf16(&x[0], <bf16*> &to[0], x.shape[0])
    return result


def round_bf16(x, *, isa):
    """float32 copy of x with every value rounded to bf16."""
    result = np.array(x, np.float32)
    cdef float[::1] y = result
    cdef const Kernels* kernels = _kernels(isa)
    kernels.round_bf16(&y[0], y.shape[0])
    return result


def add_scaled(y, const float[::1] x, float a, *, isa):
    """y + a · x, all [n]."""
    result = np.array(y, np.float32)
    _check(result.shape == (x.shape[0],), "add_scaled: x and y differ in length")
    cdef float[::1] sums = result
    cdef const Kernels* kernels = _kernels(isa)
    kernels.add_scaled(&sums[0], &x[0], a, x.shape[0])
    return result


def route(const float[::1] logits, count):
    """(experts int32 [count], weights float32 [count]): the largest logits, their softmax."""
    _check(0 < count <= logits.shape[0], "route: count out of range")
    experts = np.full(count, -1, np.int32)
    weights = _poisoned(count)
    cdef int32_t[::1] experts_view = experts
    cdef float[::1] weights_view = weights
    cpp_route(&logits[0], logits.shape[0], count, &experts_view[0], &weights_view[0])
    return experts, weights


def yarn(config):
    """(inverse frequencies float64 [head_dim / 2], concentration) of a ModelConfig."""
    cdef ModelConfig c
    fill_config(&c, config)
    cdef vector[double] frequencies = cpp_yarn_inverse_frequencies(c)
    return np.array(frequencies), cpp_yarn_concentration(c)


def uniform_draw(uint64_t seed, uint64_t draw):
    """The uniform number in [0, 1) that a draw uses."""
    return cpp_uniform_draw(seed, draw)


def peak_seconds(rounds, threads, *, isa):
    """(seconds, operations of all threads) of the fastest multiply-add instruction of this isa, on
    registers alone."""
    from threading import Barrier, Thread

    cdef Isa isa_ = parse_isa(isa.encode())
    barrier = Barrier(threads + 1)
    done = []

    def work():
        cdef int64_t rounds_ = rounds
        cdef double operations
        barrier.wait()
        with nogil:
            operations = cpp_peak(isa_, rounds_)
        done.append(operations)

    workers = [Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = perf_counter()
    for worker in workers:
        worker.join()
    return perf_counter() - start, sum(done)


def linear_seconds(matrices, rows, threads, repeat, *, isa, bf16=True):
    """Seconds that each of `repeat` products of `rows` operand rows with one of `matrices` (Panels,
    taken in turn) took, operand conversion included, after one that is not counted.

    bf16: operands are rounded, as the engine does by default; otherwise float32 products.
    """
    cdef Isa isa_ = parse_isa(isa.encode())
    cdef int threads_ = threads
    cdef bool round_ = bf16
    cdef Compute* compute = new Compute(isa_, threads_, round_)
    cdef OperandStorage* storage = new OperandStorage()
    cdef CppPanels w
    cdef vector[LinearJob] jobs
    cdef int64_t rows_ = rows
    cdef const float[:, ::1] x = np.random.default_rng(0).standard_normal(
        (rows, matrices[0].cols)).astype(np.float32)
    cdef float[:, ::1] y = _poisoned((rows, matrices[0].rows))
    jobs.resize(1)
    jobs[0].w = &w
    jobs[0].y = &y[0, 0]
    jobs[0].y_stride = matrices[0].rows
    seconds = []
    try:
        for i in range(repeat + 1):
            w = _panels(matrices[i % len(matrices)], None)
            start = perf_counter()
            with nogil:
                linear(compute[0], make_operand(compute[0], &x[0, 0], rows_, w.cols, w.cols,
                                                compute.product_for(w.format, rows_), storage[0]),
                       jobs)
            seconds.append(perf_counter() - start)
        return seconds[1:]
    finally:
        del storage
        del compute


def cuda(str kernel, arrays, sizes, numbers=(), *, str library="", int repeat=1, int major=9,
         int multiprocessors=132, int shared_bytes=227 << 10):
    """Runs a CUDA kernel (cuda/testing.cu names its arrays, sizes and numbers, in order).

    arrays: (C-contiguous NumPy array or None, "in" | "out" | "inout") each; "out" is filled with
    NaN before. library: path of libgptoss_cuda.so for a GPU, "" for the emulation on the CPU, which
    takes itself for a GPU of this compute capability (major), multiprocessors and shared memory.
    repeat: runs; returns the seconds of those after the first, caches cold.
    """
    _check(repeat >= 1, "repeat: at least one run")
    cdef bytes name = kernel.encode(), path = library.encode()
    cdef vector[HostArray] host
    cdef vector[int64_t] size
    cdef vector[double] number
    cdef HostArray one
    cdef const uint8_t[::1] readable
    cdef uint8_t[::1] writable
    for array, use in arrays:
        one.data = NULL
        one.bytes = 0
        one.use = {"in": array_in, "out": array_out, "inout": array_in_out}[use]
        if array is not None and array.size > 0:
            _check(array.flags.c_contiguous, f"{kernel}: expected C-contiguous arrays")
            flat = array.reshape(-1).view(np.uint8)
            if use == "in":
                readable = flat
                one.data = <void*> &readable[0]
            else:
                writable = flat
                one.data = &writable[0]
            one.bytes = array.nbytes
        host.push_back(one)
    for value in sizes:
        size.push_back(value)
    for value in numbers:
        number.push_back(value)
    seconds = np.zeros(repeat - 1)
    cdef double[::1] seconds_view = seconds
    cdef HostCall call
    call.kernel = name
    call.arrays = host.data()
    call.array_count = host.size()
    call.sizes = size.data()
    call.size_count = size.size()
    call.numbers = number.data()
    call.number_count = number.size()
    call.repeat = repeat
    call.seconds = &seconds_view[0] if repeat > 1 else NULL
    call.major = major
    call.multiprocessors = multiprocessors
    call.shared_bytes = shared_bytes
    load_host_kernels(path).call(call)
    return seconds
