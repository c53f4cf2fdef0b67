# cython: language_level=3, boundscheck=True, wraparound=True
# distutils: language = c++
"""The compiled core: a backend that runs whole steps. Policy lives above, in gptoss/."""

import importlib.util
import os

import numpy as np

from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move

from gptoss cimport (
    Activation, Batch, CallbackSource, CppBackend, DType, DenseWeights, KvFormat, ModelConfig,
    Options, Output, PackSource, Sampling, SamplingRow, Tensor, WeightFormat, WeightSource, bf16,
    cpu_features as cpp_cpu_features, describe_isa, fill_config, list_backends, make_backend,
    mask_words, pack_matrix, page_size, panel_bytes, panel_count, usable_threads,
)
cimport gptoss

from gptoss.errors import Error
from gptoss.native.arrays import SAMPLING_DTYPE, StepOutput

Py_INCREF(Error)
gptoss.error_class = <gptoss.PyObject*> Error

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
        gptoss.PyErr_SetObject(type(error), error)
        return -1


cdef int _release(void* owner, const char* name) noexcept with gil:
    try:
        (<_Source> owner).release(name.decode())
        return 0
    except BaseException as error:
        gptoss.PyErr_SetObject(type(error), error)
        return -1


cdef class _Source:
    """Hands a TensorSource's arrays to C++ and keeps them alive while it may read them."""
    cdef object source
    cdef dict kept

    def __init__(self, source):
        self.source = source
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

    def release(self, name):
        del self.kept[name]
        self.source.release(name)  # a mapped file's pages go back to the system

    @property
    def bytes_kept(self):
        return sum(array.nbytes for array in self.kept.values())


cdef const int32_t* _pointer(const int32_t[::1] view) noexcept:
    return &view[0] if view.shape[0] > 0 else NULL


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


cdef class Backend:
    """A model on a device. One step at a time; the caller serialises calls.

    config: gptoss.model.config.ModelConfig; source: gptoss.checkpoint.source.TensorSource, whose arrays are kept
    alive while the backend reads them. device: "auto", "cpu" or "cuda". activation: "bf16" or
    "f32" (nothing is rounded). threads: 0 = as many as the process may use. tensor_parallel: GPUs
    that hold a part of the model each (on the CPU: groups of threads).
    Raises gptoss.Error when the device is not available or a tensor is wrong.
    """
    cdef unique_ptr[CppBackend] backend
    cdef _Source source
    cdef ModelConfig config
    cdef int64_t num_pages

    def __init__(self, config, source, *, device="cpu", activation="bf16", threads=0,
                 weights="published", kv="bf16", tensor_parallel=1):
        if activation not in ("bf16", "f32"):
            raise Error(f"activation: expected bf16 or f32, found {activation!r}", field="activation")
        cdef Options options
        options.activation = Activation.f32 if activation == "f32" else Activation.bf16
        options.threads = threads
        if weights not in ("published", "q8"):
            raise Error(f"weights: expected published or q8, found {weights!r}", field="weights")
        options.weights = DenseWeights.q8 if weights == "q8" else DenseWeights.published
        if kv not in ("bf16", "int8"):
            raise Error(f"kv: expected bf16 or int8, found {kv!r}", field="kv")
        options.kv = KvFormat.int8 if kv == "int8" else KvFormat.bf16
        options.ranks = tensor_parallel
        nccl = find_nccl() if tensor_parallel > 1 else None
        if nccl is not None:
            os.environ.setdefault("GPTOSS_NCCL", nccl)
        fill_config(&self.config, config)
        self.num_pages = 0
        self.source = _Source(source)
        self.backend = move(make_backend(str(device).encode(), os.fsencode(plugin_directory()),
                                         options))
        packed = getattr(source, "packed", None)
        cdef CallbackSource* callbacks = new CallbackSource(
            <void*> self.source, _fetch, _release, source.expert_dtype == "mxfp4",
            -1 if packed is None else ("published", "q8").index(packed))
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
        """How many pages fit into so many bytes."""
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
        token_ids = _int32("token_ids", token_ids, 1)
        seq_start = _int32("seq_start", seq_start, 1)
        context_len = _int32("context_len", context_len, 1)
        block_table = _int32("block_table", block_table, 3)
        logits_rows = _int32("logits_rows", logits_rows, 1)
        cdef int32_t sequences = len(context_len)
        cdef int32_t rows = len(logits_rows)
        if len(seq_start) != sequences + 1:
            raise Error(f"seq_start: expected {sequences + 1} entries, found {len(seq_start)}")
        if block_table.shape[0] != 2 or block_table.shape[1] != sequences:
            raise Error(f"block_table: expected shape [2, {sequences}, blocks], found "
                        f"{list(block_table.shape)}")
        cdef const int32_t[::1] full = block_table[0].reshape(-1)
        cdef const int32_t[::1] sliding = block_table[1].reshape(-1)
        cdef Batch batch
        batch.num_tokens = len(token_ids)
        batch.num_sequences = sequences
        batch.num_rows = rows
        batch.max_blocks = block_table.shape[2]
        batch.token_ids = _pointer(token_ids)
        batch.seq_start = _pointer(seq_start)
        batch.context_len = _pointer(context_len)
        batch.block_table[0] = _pointer(full)
        batch.block_table[1] = _pointer(sliding)
        batch.logits_rows = _pointer(logits_rows)

        result = StepOutput()
        cdef Output output
        cdef Sampling ragged
        cdef const uint8_t[::1] row_bytes
        cdef int32_t[::1] tokens_view, top_ids_view
        cdef float[::1] logprobs_view, top_logprobs_view, logits_view, hidden_view
        cdef const float[::1] bias_view
        cdef const uint32_t[::1] masks_view
        if sampling is not None and rows > 0:
            if len(sampling.rows) != rows:
                raise Error(f"sampling: expected {rows} rows, found {len(sampling.rows)}")
            most = int(sampling.rows["n_logprobs"].max())
            if not 0 <= most <= self.config.vocab_size or sampling.rows["n_logprobs"].min() < 0:
                raise Error(f"sampling: n_logprobs must lie in 0..{self.config.vocab_size}")
            row_bytes = sampling.rows.view(np.uint8)
            ragged.rows = <const SamplingRow*> &row_bytes[0]
            ragged.history_start = _pointer(sampling.history_start)
            ragged.history_ids = _pointer(sampling.history_ids)
            ragged.history_counts = _pointer(sampling.history_counts)
            ragged.bias_start = _pointer(sampling.bias_start)
            ragged.bias_ids = _pointer(sampling.bias_ids)
            bias_view = sampling.bias_values
            ragged.bias_values = &bias_view[0] if bias_view.shape[0] > 0 else NULL
            if sampling.mask_rows is not None:
                words = mask_words(self.config.vocab_size)
                if sampling.masks.shape[1] != words:
                    raise Error(f"masks: expected {words} words each, found "
                                f"{sampling.masks.shape[1]}")
                ragged.mask_rows = _pointer(sampling.mask_rows)
                ragged.num_masks = len(sampling.masks)
                masks_view = sampling.masks.reshape(-1)
                ragged.masks = &masks_view[0] if masks_view.shape[0] > 0 else NULL
            batch.sampling = &ragged
            result.tokens = np.empty(rows, np.int32)
            result.logprobs = np.empty(rows, np.float32)
            result.top_ids = np.empty((rows, most), np.int32)
            result.top_logprobs = np.empty((rows, most), np.float32)
            tokens_view = result.tokens
            logprobs_view = result.logprobs
            output.tokens = &tokens_view[0]
            output.logprobs = &logprobs_view[0]
            output.max_logprobs = most
            if most > 0:
                top_ids_view = result.top_ids.reshape(-1)
                top_logprobs_view = result.top_logprobs.reshape(-1)
                output.top_ids = &top_ids_view[0]
                output.top_logprobs = &top_logprobs_view[0]
        if want_logits:
            result.logits = np.empty((rows, self.config.vocab_size), np.float32)
            if rows > 0:
                logits_view = result.logits.reshape(-1)
                output.logits = &logits_view[0]
        if want_hidden:
            result.hidden = np.empty(
                (self.config.num_hidden_layers, len(token_ids), self.config.hidden_size), np.float32)
            if len(token_ids) > 0:
                hidden_view = result.hidden.reshape(-1)
                output.hidden = &hidden_view[0]
        with nogil:
            backend.step(batch, output)
        return result

    def info(self):
        """Names and values for people: backend, isa, threads, activation, weight formats, bytes."""
        entries = {name.decode(): value.decode() for name, value in self.get().info()}
        entries["weight_bytes"] = str(self.source.bytes_kept + int(entries.pop("packed_bytes", 0)))
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


_FORMATS = {"bf16": 0, "mxfp4": 1, "q8": 2}


def panel_shape(format, rows, cols):
    """(panels, bytes of one) of a matrix [rows, cols] in a format of core/cpu/panel.h."""
    return panel_count(rows), panel_bytes(<WeightFormat> <int> _FORMATS[format], cols)


def pack(format, *, weight=None, blocks=None, scales=None, threads=0):
    """A matrix as panels, uint8 [panels, panel bytes]; 64-byte aligned.

    weight: bf16 (uint16) [N, K] for "bf16" and "q8"; or blocks uint8 [N, K / 32, 16] and scales
    uint8 [N, K / 32] for "mxfp4". threads: 0 = as many as the process may use.
    """
    cdef PackSource source
    cdef const uint16_t[:, ::1] weights
    cdef const uint8_t[:, :, ::1] block_bytes
    cdef const uint8_t[:, ::1] scale_bytes
    if (weight is None) != (format == "mxfp4") or format not in _FORMATS:
        raise Error(f"pack: expected a weight for bf16 or q8, or blocks for mxfp4, asked for "
                    f"{format!r}")
    if weight is not None:
        weights = np.ascontiguousarray(weight)
        source.weight = <const bf16*> &weights[0, 0]
        source.rows = weights.shape[0]
        source.cols = weights.shape[1]
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
    cdef WeightFormat format_ = <WeightFormat> <int> _FORMATS[format]
    shape = panel_shape(format, source.rows, source.cols)
    raw = np.empty(shape[0] * shape[1] + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    panels = raw[skip:skip + shape[0] * shape[1]].reshape(shape)
    cdef uint8_t[:, ::1] to = panels
    cdef int threads_ = threads or usable_threads()
    with nogil:
        pack_matrix(source, format_, &to[0, 0], threads_)
    return panels
