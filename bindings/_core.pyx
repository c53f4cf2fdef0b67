# cython: language_level=3, boundscheck=True, wraparound=True
# distutils: language = c++
"""The compiled core: a backend that runs whole steps. Policy lives above, in gptoss/."""

import importlib.util
import os

import numpy as np

from cpython.exc cimport PyErr_SetObject
from cpython.ref cimport PyObject, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libcpp.memory cimport unique_ptr
from libcpp.optional cimport optional
from libcpp.set cimport set as cpp_set
from libcpp.string cimport string
from libcpp.utility cimport move

cimport translate
from core.backend cimport Activation, CppBackend, KvFormat, Options
from core.batch cimport Batch, Output, Sampling, SamplingRow, mask_words, page_size
from core.config cimport ModelConfig
from core.cpu.ggml cimport MxRows
from core.cpu.ggml cimport dequantize_q8_0 as cpp_dequantize_q8_0
from core.cpu.ggml cimport unpack_mxfp4 as cpp_unpack_mxfp4
from core.cpu.isa cimport cpu_features as cpp_cpu_features
from core.cpu.kernels.select cimport describe_isa
from core.cpu.machine cimport usable_threads
from core.cpu.pack cimport PackSource, pack_matrix
from core.cpu.panels cimport WeightFormat, panel_bytes, panel_count
from core.dtype cimport bf16
from core.registry cimport list_backends, make_backend
from core.tensor cimport DType, Tensor
from core.weights cimport DenseWeights, WeightSource
from model_config cimport fill_config
from translate cimport CallbackSource

from gptoss.errors import Error
from gptoss.native.arrays import SAMPLING_DTYPE, StepOutput

Py_INCREF(Error)
translate.error_class = <PyObject*> Error

if SAMPLING_DTYPE.itemsize != sizeof(SamplingRow):
    raise ImportError("SAMPLING_DTYPE does not match SamplingRow")

PAGE_SIZE = page_size

_EMPTY = np.zeros(0, np.int32)


def plugin_directory():
    """Where backends in shared libraries are looked for: beside this module, or GPTOSS_PLUGINS."""
    return os.environ.get("GPTOSS_PLUGINS") or os.path.dirname(os.path.abspath(__file__))


def find_nccl():
    """libnccl.so.2 of the package nvidia-nccl-cu12 or -cu13, or None."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return None
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = os.path.join(folder, "lib", "libnccl.so.2")
        if os.path.isfile(path):
            return path
    return None


cdef int _fetch(void* owner, const char* name, Tensor* out) noexcept with gil:
    """Asks the Python source for a tensor and keeps it alive; -1 with an exception set."""
    try:
        (<_Source> owner).fetch(name.decode(), out)
        return 0
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return -1


cdef int _release(void* owner, const char* name) noexcept with gil:
    try:
        (<_Source> owner).release(name.decode())
        return 0
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return -1


cdef class _Source:
    """Hands a TensorSource's arrays to C++ and keeps them alive while it may read them."""
    cdef object source
    cdef object progress  # called with (bytes handed out, bytes in all), or None
    cdef object bytes_fetched  # of any size, as a Python integer
    cdef dict kept

    def __init__(self, source, progress):
        self.source = source
        self.progress = progress
        self.bytes_fetched = 0
        self.kept = {}

    cdef void fetch(self, str name, Tensor* out) except *:
        array = self.source.tensor(name)
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise Error(f"tensor {name}: expected a C-contiguous NumPy array, "
                        f"found {type(array).__name__}")
        cdef const uint16_t[::1] halves
        cdef const uint8_t[::1] octets
        if array.size == 0:
            raise Error(f"tensor {name}: empty, shape {list(array.shape)}")
        if array.dtype == np.uint16:
            halves = array.reshape(-1)
            out.data = &halves[0]
            out.dtype = DType.bf16
        elif array.dtype == np.uint8:
            octets = array.reshape(-1)
            out.data = &octets[0]
            out.dtype = DType.u8
        else:
            raise Error(f"tensor {name}: expected uint16 (bf16) or uint8, found {array.dtype}")
        for extent in array.shape:
            out.shape.push_back(extent)
        self.kept[name] = array
        if self.progress is not None:
            # of Q8_0, what the same values take as the source counts them, in bf16
            nbytes = array.size // 34 * 64 if name.endswith(".q8_0") else array.nbytes
            self.bytes_fetched += nbytes
            self.progress(self.bytes_fetched, self.source.nbytes)

    def release(self, name):
        del self.kept[name]
        self.source.release(name)  # a mapped file's pages go back to the system

    @property
    def bytes_kept(self):
        return sum(array.nbytes for array in self.kept.values())


# Where an array's elements lie; null where it has none. The caller keeps the array alive.


cdef const int32_t* _ints(const int32_t[::1] array) noexcept:
    return &array[0] if array.shape[0] > 0 else NULL


cdef const float* _floats(const float[::1] array) noexcept:
    return &array[0] if array.shape[0] > 0 else NULL


cdef const uint32_t* _words(const uint32_t[::1] array) noexcept:
    return &array[0] if array.shape[0] > 0 else NULL


def _is_second(names, name):
    """Which of two; another name is the caller's error: gptoss.engine.options checks."""
    return names.index(name) == 1


def _int32(name, value, ndim):
    array = np.ascontiguousarray(value)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise Error(f"{name}: expected integers in {ndim} dimension(s), found {array.dtype} in "
                    f"{array.ndim}")
    if array.dtype != np.int32:
        if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise Error(f"{name}: values must fit into int32")
        array = array.astype(np.int32)
    return array


cdef void _fill_batch(Batch* batch, token_ids, seq_start, context_len, block_table,
                      logits_rows) except *:
    """Points the batch at int32 arrays whose lengths fit each other; C++ checks what they hold."""
    sequences = len(context_len)
    if len(seq_start) != sequences + 1:
        raise Error(f"seq_start: expected {sequences + 1} entries, found {len(seq_start)}")
    if block_table.shape[0] != 2 or block_table.shape[1] != sequences:
        raise Error(f"block_table: expected shape [2, {sequences}, blocks], found "
                    f"{list(block_table.shape)}")
    batch.num_tokens = len(token_ids)
    batch.num_sequences = sequences
    batch.num_rows = len(logits_rows)
    batch.max_blocks = block_table.shape[2]
    batch.token_ids = _ints(token_ids)
    batch.seq_start = _ints(seq_start)
    batch.context_len = _ints(context_len)
    batch.block_table[0] = _ints(block_table[0].reshape(-1))
    batch.block_table[1] = _ints(block_table[1].reshape(-1))
    batch.logits_rows = _ints(logits_rows)


cdef void _fill_sampling(Sampling* to, sampling, int rows, int vocab_size) except *:
    """Points at the arrays of a SamplingBatch."""
    cdef const uint8_t[::1] row_bytes
    if len(sampling.rows) != rows:
        raise Error(f"sampling: expected {rows} rows, found {len(sampling.rows)}")
    logprobs = sampling.rows["n_logprobs"]
    if logprobs.min() < 0 or logprobs.max() > vocab_size:
        raise Error(f"sampling: n_logprobs must lie in 0..{vocab_size}")
    row_bytes = sampling.rows.view(np.uint8)
    to.rows = <const SamplingRow*> &row_bytes[0]
    to.history_start = _ints(sampling.history_start)
    to.history_ids = _ints(sampling.history_ids)
    to.history_counts = _ints(sampling.history_counts)
    to.bias_start = _ints(sampling.bias_start)
    to.bias_ids = _ints(sampling.bias_ids)
    to.bias_values = _floats(sampling.bias_values)
    if sampling.mask_rows is not None:
        words = mask_words(vocab_size)
        if sampling.masks.shape[1] != words:
            raise Error(f"masks: expected {words} words each, found {sampling.masks.shape[1]}")
        to.mask_rows = _ints(sampling.mask_rows)
        to.num_masks = len(sampling.masks)
        to.masks = _words(sampling.masks.reshape(-1))


cdef void _allocate_draws(Output* output, result, int rows, int logprobs) except *:
    """Arrays of `result` for drawn tokens, and `output` pointed at them."""
    result.tokens = np.empty(rows, np.int32)
    result.logprobs = np.empty(rows, np.float32)
    result.top_ids = np.empty((rows, logprobs), np.int32)
    result.top_logprobs = np.empty((rows, logprobs), np.float32)
    output.tokens = <int32_t*> _ints(result.tokens)
    output.logprobs = <float*> _floats(result.logprobs)
    output.max_logprobs = logprobs
    output.top_ids = <int32_t*> _ints(result.top_ids.reshape(-1))
    output.top_logprobs = <float*> _floats(result.top_logprobs.reshape(-1))


cdef DenseWeights _dense_weights(name) except *:
    return DenseWeights.q8 if _is_second(("published", "q8"), name) else DenseWeights.published


cdef class Backend:
    """A model on a device. One step at a time; the caller serialises calls.

    config: gptoss.model.ModelConfig; source: gptoss.checkpoint.TensorSource, whose arrays are kept
    alive while the backend reads them. device: one of `backends()`. The other options are those of
    gptoss.engine.options, where they are checked; threads: 0 = as many as the process may use.
    progress: called with (bytes read, bytes in all) while the model is loaded.
    Raises gptoss.Error when the device is not available or a tensor is wrong.
    """
    cdef unique_ptr[CppBackend] backend
    cdef _Source source
    cdef ModelConfig config
    cdef int64_t num_pages

    def __init__(self, config, source, *, device="cpu", activation="bf16", threads=0,
                 weights="published", kv="bf16", tensor_parallel=1, progress=None):
        cdef Options options
        options.activation = (Activation.f32 if _is_second(("bf16", "f32"), activation)
                              else Activation.bf16)
        options.threads = threads
        options.weights = _dense_weights(weights)
        options.kv = KvFormat.int8 if _is_second(("bf16", "int8"), kv) else KvFormat.bf16
        options.ranks = tensor_parallel
        nccl = find_nccl() if tensor_parallel > 1 else None
        if nccl is not None:
            os.environ.setdefault("GPTOSS_NCCL", nccl)
        fill_config(&self.config, config)
        self.num_pages = 0
        self.source = _Source(source, progress)
        self.backend = move(make_backend(str(device).encode(), os.fsencode(plugin_directory()),
                                         options))
        cdef optional[DenseWeights] panels
        weights_of_panels = getattr(source, "panels", None)
        if weights_of_panels is not None:
            panels = _dense_weights(weights_of_panels)
        cdef cpp_set[string] q8_0 = {name.encode() for name in getattr(source, "q8_0", ())}
        cdef CallbackSource* callbacks = new CallbackSource(
            <void*> self.source, _fetch, _release, source.expert_dtype == "mxfp4", panels, q8_0)
        try:
            with nogil:
                self.backend.get().load(self.config, (<WeightSource*> callbacks)[0])
        except BaseException:
            self.close()
            raise
        finally:
            del callbacks

    cdef CppBackend* get(self) except NULL:
        if not self.backend:
            raise Error("the backend is closed")
        return self.backend.get()

    @property
    def page_size(self):
        """Tokens in a KV page."""
        return page_size

    @property
    def page_bytes(self):
        """Bytes of a KV page: K and V of page_size tokens for one group of layers."""
        return self.get().page_bytes()

    @property
    def free_bytes(self):
        """Memory of the device that the pool could take, or None where it is the machine's own."""
        free = self.get().free_bytes()
        return None if free < 0 else free

    def plan_kv(self, bytes):
        """How many pages fit into `bytes` bytes."""
        return self.get().plan_kv(bytes)

    def alloc_kv(self, pages):
        """Allocates the pool of KV pages; once, before the first step."""
        self.get().alloc_kv(pages)
        self.num_pages = pages

    def step(self, token_ids, seq_start, context_len, block_table, logits_rows, sampling=None, *,
             want_logits=False, want_hidden=False):
        """Runs the model on a ragged batch; returns a StepOutput.

        token_ids: int32 [T], new tokens of all S sequences. seq_start: int32 [S + 1], offsets into
        T. context_len: int32 [S], tokens of each sequence so far, the new ones included.
        block_table: int32 [2, S, B], page of each block of 16 positions in the full-attention [0]
        and the sliding [1] layers, -1 where none is held. logits_rows: int32 [R], ascending indices
        into T. sampling: SamplingBatch of R rows, or None.
        Raises gptoss.Error naming the field when an index is out of range.
        """
        cdef CppBackend* backend = self.get()
        cdef Batch batch
        cdef Sampling ragged
        cdef Output output
        token_ids = _int32("token_ids", token_ids, 1)
        seq_start = _int32("seq_start", seq_start, 1)
        context_len = _int32("context_len", context_len, 1)
        block_table = _int32("block_table", block_table, 3)
        logits_rows = _int32("logits_rows", logits_rows, 1)
        _fill_batch(&batch, token_ids, seq_start, context_len, block_table, logits_rows)
        result = StepOutput()
        if sampling is not None and batch.num_rows > 0:
            _fill_sampling(&ragged, sampling, batch.num_rows, self.config.vocab_size)
            _allocate_draws(&output, result, batch.num_rows, sampling.rows["n_logprobs"].max())
            batch.sampling = &ragged
        if want_logits:
            result.logits = np.empty((batch.num_rows, self.config.vocab_size), np.float32)
            output.logits = <float*> _floats(result.logits.reshape(-1))
        if want_hidden:
            result.hidden = np.empty(
                (self.config.num_hidden_layers, batch.num_tokens, self.config.hidden_size),
                np.float32)
            output.hidden = <float*> _floats(result.hidden.reshape(-1))
        with nogil:
            backend.step(batch, output)
        return result

    def info(self):
        """Names and values for people: backend, isa, threads, activation, weight formats, bytes."""
        entries = {name.decode(): value.decode() for name, value in self.get().info()}
        entries["weight_bytes"] = str(self.source.bytes_kept + int(entries.get("weight_bytes", 0)))
        entries["kv_pages"] = str(self.num_pages)
        entries["kv_bytes"] = str(self.num_pages * self.get().page_bytes())
        return entries

    def close(self):
        """Frees the model and the KV pool; later calls raise gptoss.Error."""
        self.backend.reset()
        self.source = None


def backends():
    """Every backend this build knows: dicts of name, available, reason."""
    return [{"name": status.name.decode(), "available": status.available,
             "reason": status.reason.decode(errors="replace")}
            for status in list_backends(os.fsencode(plugin_directory()))]


def cpu_features():
    """{"isa": kernels in use, "features": what this CPU has, "threads": what the process may use}."""
    return {"isa": describe_isa().decode(), "features": [f.decode() for f in cpp_cpu_features()],
            "threads": usable_threads()}


# In the order of WeightFormat in core/cpu/panels.h.
WEIGHT_FORMATS = {"bf16": 0, "mxfp4": 1, "q8": 2, "q8_0": 3}


def panel_shape(format, rows, cols):
    """(panels, bytes of one) of a matrix [rows, cols] in a format of core/cpu/panels.h."""
    return panel_count(rows), panel_bytes(<WeightFormat> <int> WEIGHT_FORMATS[format], cols)


def pack(format, *, weight=None, blocks=None, scales=None, threads=0):
    """A matrix as panels, uint8 [panels, panel bytes]; 64-byte aligned.

    weight: bf16 (uint16) [N, K] for "bf16" and "q8"; or blocks uint8 [N, K / 32, 16] and scales
    uint8 [N, K / 32] for "mxfp4"; or blocks uint8 [N, K / 32, 34] for "q8_0". threads: 0 = as many
    as the process may use.
    """
    cdef PackSource source
    cdef const uint16_t[:, ::1] weights
    cdef const uint8_t[:, :, ::1] block_bytes
    cdef const uint8_t[:, ::1] scale_bytes
    if (weight is None) != (format in ("mxfp4", "q8_0")) or format not in WEIGHT_FORMATS:
        raise Error(f"pack: expected a weight for bf16 or q8, or blocks for mxfp4 or q8_0, asked "
                    f"for {format!r}")
    if weight is not None:
        weights = np.ascontiguousarray(weight)
        source.weight = <const bf16*> &weights[0, 0]
        source.rows = weights.shape[0]
        source.cols = weights.shape[1]
    elif format == "q8_0":
        block_bytes = np.ascontiguousarray(blocks)
        if block_bytes.shape[2] != 34:
            raise Error(f"pack: expected blocks of 34 bytes, found {block_bytes.shape[2]}")
        source.q8_0 = &block_bytes[0, 0, 0]
        source.rows = block_bytes.shape[0]
        source.cols = block_bytes.shape[1] * 32
    else:
        block_bytes = np.ascontiguousarray(blocks)
        scale_bytes = np.ascontiguousarray(scales)
        if (block_bytes.shape[0] != scale_bytes.shape[0] or block_bytes.shape[2] != 16
                or block_bytes.shape[1] != scale_bytes.shape[1]):
            raise Error("pack: blocks and scales differ in shape")
        source.weight = NULL
        source.blocks = &block_bytes[0, 0, 0]
        source.scales = &scale_bytes[0, 0]
        source.rows = block_bytes.shape[0]
        source.cols = block_bytes.shape[1] * 32
    cdef WeightFormat format_ = <WeightFormat> <int> WEIGHT_FORMATS[format]
    shape = panel_shape(format, source.rows, source.cols)
    raw = np.empty(shape[0] * shape[1] + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    panels = raw[skip:skip + shape[0] * shape[1]].reshape(shape)
    cdef uint8_t[:, ::1] to = panels
    cdef int threads_ = threads or usable_threads()
    with nogil:
        pack_matrix(source, format_, &to[0, 0], threads_)
    return panels


def unpack_mxfp4(packed, blocks, scales, *, halves, threads=0):
    """MXFP4 blocks as ggml's files store them, taken apart.

    packed: uint8 [N, B, 17], scale bytes first. blocks: uint8 [N, B, 16] and scales: uint8 [N, B],
    written to; their rows may lie apart. halves: a byte holds values i and i + 16 of a block, and
    not 2i and 2i + 1 as published. threads: 0 = as many as the process may use.
    """
    cdef const uint8_t[:, :, ::1] from_ = packed
    cdef uint8_t[:, :, :] to_blocks = blocks
    cdef uint8_t[:, :] to_scales = scales
    cdef MxRows to
    cdef int64_t rows = packed.shape[0], count = packed.shape[1]
    if packed.shape != (rows, count, 17) or blocks.shape != (rows, count, 16) or (
            scales.shape != (rows, count)):
        raise Error(f"unpack_mxfp4: shapes {packed.shape}, {blocks.shape} and {scales.shape} do "
                    f"not belong together")
    if blocks.strides[1:] != (16, 1) or scales.strides[1:] != (1,):
        raise Error("unpack_mxfp4: expected rows that are contiguous")
    to.blocks = &to_blocks[0, 0, 0]
    to.scales = &to_scales[0, 0]
    to.block_stride = to_blocks.strides[0]
    to.scale_stride = to_scales.strides[0]
    cdef bint halves_ = halves
    cdef int threads_ = threads or usable_threads()
    with nogil:
        cpp_unpack_mxfp4(&from_[0, 0, 0], halves_, rows, count, to, threads_)


def dequantize_q8_0(blocks, threads=0):
    """uint8 [N, 34], a float16 scale and 32 int8 in each → bf16 (uint16) [N, 32], rounded once.

    None where a scale is not finite.
    """
    cdef const uint8_t[:, ::1] from_ = blocks
    if blocks.shape[1] != 34 or len(blocks) == 0:
        raise Error(f"dequantize_q8_0: expected shape [N, 34], found {list(blocks.shape)}")
    out = np.empty((len(blocks), 32), np.uint16)
    cdef uint16_t[:, ::1] to = out
    cdef int64_t count = len(blocks)
    cdef int threads_ = threads or usable_threads()
    cdef bint finite
    with nogil:
        finite = cpp_dequantize_q8_0(&from_[0, 0], count, <bf16*> &to[0, 0], threads_)
    return out if finite else None
