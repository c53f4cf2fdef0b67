#include "cuda/testing.h"

#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/cuda_backend.h"
#include "cuda/kernels.h"

namespace gptoss::cuda {

namespace {

// The arrays of a call on the device, taken in order.
class Call {
public:
  Call(const HostCall& host, const Stream& stream) : host_(host), stream_(stream) {
    for (int i = 0; i < host.array_count; ++i) {
      const HostArray& array = host.arrays[i];
      memory_.emplace_back(array.data == nullptr ? 0 : array.bytes);
      if (array.data != nullptr && array.use == array_out) {
        memory_.back().fill(0xff);  // NaN in every type
      } else if (array.data != nullptr) {
        memory_.back().copy_from_host(array.data, array.bytes);
      }
    }
  }

  void give_back() const {
    for (int i = 0; i < host_.array_count; ++i) {
      const HostArray& array = host_.arrays[i];
      if (array.data != nullptr && array.use != array_in) {
        memory_[static_cast<size_t>(i)].copy_to_host(array.data, array.bytes);
      }
    }
  }

  // The next array, of at least `count` elements (or null).
  template <class T>
  T* array(int64_t count) {
    const int i = array_++;
    GPTOSS_CHECK(i < host_.array_count, "{}: expected more than {} arrays", host_.kernel, i);
    const HostArray& array = host_.arrays[i];
    GPTOSS_CHECK(array.data == nullptr ||
                     (count >= 0 && array.bytes >= static_cast<size_t>(count) * sizeof(T)),
                 "{}: array {} has {} bytes, expected {}", host_.kernel, i, array.bytes,
                 count * static_cast<int64_t>(sizeof(T)));
    return array.data == nullptr ? nullptr : memory_[static_cast<size_t>(i)].as<T>();
  }

  int size() {
    const int i = size_++;
    GPTOSS_CHECK(i < host_.size_count, "{}: expected more than {} sizes", host_.kernel, i);
    GPTOSS_CHECK(host_.sizes[i] >= 0 && host_.sizes[i] <= INT32_MAX, "{}: size {} is {}",
                 host_.kernel, i, host_.sizes[i]);
    return static_cast<int>(host_.sizes[i]);
  }

  double number() {
    const int i = number_++;
    GPTOSS_CHECK(i < host_.number_count, "{}: expected more than {} numbers", host_.kernel, i);
    return host_.numbers[i];
  }

  const Stream& stream() const { return stream_; }
  // The same arguments once more.
  void rewind() { array_ = size_ = number_ = 0; }

private:
  const HostCall& host_;
  const Stream& stream_;
  std::vector<DeviceMemory> memory_;
  int array_ = 0, size_ = 0, number_ = 0;
};

int64_t times(int a, int b) { return static_cast<int64_t>(a) * b; }

void gemm(Call& c, void (*kernel)(const GemmArgs&, const Stream&)) {
  const int m = c.size(), n = c.size(), k = c.size();
  GemmArgs a{};
  a.add = c.size() != 0;
  a.x = c.array<bf16>(times(m, k));
  a.w = c.array<bf16>(times(n, k));
  a.bias = c.array<bf16>(n);
  a.y = c.array<float>(times(m, n));
  a.m = m;
  a.n = n;
  a.k = k;
  a.x_stride = k;
  a.y_stride = n;
  kernel(a, c.stream());
}

// x, codes and scales packed, bias, start, active, pair_of_row, and the result.
void expert(Call& c, void (*kernel)(const ExpertArgs&, const Stream&)) {
  const int rows = c.size(), pairs = c.size(), experts = c.size(), n = c.size(), k = c.size();
  ExpertArgs a{};
  a.pairs_a_row = c.size();
  const bool paired = c.size() != 0;
  a.pairs = pairs;
  a.experts = experts;
  a.n = n;
  a.k = k;
  a.limit = static_cast<float>(c.number());
  a.x = c.array<bf16>(times(rows, k));
  a.codes = c.array<uint8_t>(packed_bytes(experts, n, k));
  a.scales = c.array<uint8_t>(packed_scale_bytes(experts, n, k));
  a.bias = c.array<bf16>(times(experts, n));
  a.start = c.array<int32_t>(experts + 1);
  a.active = c.array<int32_t>(experts + 1);
  a.pair_of_row = c.array<int32_t>(pairs);
  if (paired) {
    a.h = c.array<bf16>(times(pairs, n / 2));
  } else {
    a.y = c.array<float>(times(pairs, n));
  }
  kernel(a, c.stream());
}

void attention(Call& c, void (*kernel)(const AttentionArgs&, const Stream&)) {
  const int all = c.size(), tiles = c.size(), heads = c.size(), kv_heads = c.size();
  const int dim = c.size(), sequences = c.size(), max_blocks = c.size(), pages = c.size();
  AttentionArgs a{};
  a.window = c.size();
  a.splits = c.size();
  a.tokens = tiles;
  a.heads = heads;
  a.max_blocks = max_blocks;
  a.scale = static_cast<float>(c.number());
  const int64_t page = times(2 * kv_heads * page_size, dim);
  a.q = c.array<bf16>(times(all, heads * dim));
  a.kv = {c.array<bf16>(pages * page), page, kv_heads, dim};
  a.sinks = c.array<bf16>(heads);
  a.pages = c.array<int32_t>(times(sequences, max_blocks));
  a.sequence = c.array<int32_t>(all);
  a.position = c.array<int32_t>(all);
  a.tiles = c.array<int32_t>(times(tiles, 2));
  a.out = c.array<bf16>(times(all, heads * dim));
  a.parts = c.array<float>(decode_part_floats(tiles, heads, dim, a.splits));
  a.ended = c.array<int32_t>(times(tiles, kv_heads));
  kernel(a, c.stream());
}

Residual residual(Call& c, int rows, int n) {
  const int chosen = c.size(), pairs = c.size();
  Residual r;
  r.chosen = chosen;
  r.store = c.size() != 0;
  r.x = c.array<float>(times(rows, n));
  r.partial = c.array<float>(times(rows, n));
  r.expert_out = c.array<float>(times(pairs, n));
  r.row_of_pair = c.array<int32_t>(times(rows, chosen));
  r.weights = c.array<float>(times(rows, chosen));
  return r;
}

void run_norm(Call& c) {
  const int rows = c.size(), n = c.size(), of_x = c.size();
  NormArgs a{};
  a.residual = residual(c, of_x, n);
  a.scale = c.array<bf16>(n);
  a.row_ids = c.array<int32_t>(rows);
  a.y = c.array<bf16>(times(rows, n));
  a.rows = rows;
  a.n = n;
  a.eps = static_cast<float>(c.number());
  rms_norm(a, c.stream());
}

void run_route(Call& c) {
  const int rows = c.size(), n = c.size(), experts = c.size(), chosen = c.size();
  RouteArgs a{};
  a.residual = residual(c, rows, n);
  a.scale = c.array<bf16>(n);
  a.w = c.array<bf16>(times(experts, n));
  a.bias = c.array<bf16>(experts);
  a.t = c.array<bf16>(times(rows, n));
  a.ids = c.array<int32_t>(times(rows, chosen));
  a.weights = c.array<float>(times(rows, chosen));
  a.ended = c.array<int32_t>(1);
  const int pairs = rows * chosen;
  a.group = {a.ids,
             c.array<int32_t>(experts + 1),
             c.array<int32_t>(experts + 1),
             c.array<int32_t>(pairs),
             c.array<int32_t>(pairs),
             pairs,
             experts,
             0};
  a.rows = rows;
  a.n = n;
  a.experts = experts;
  a.chosen = chosen;
  a.eps = static_cast<float>(c.number());
  route(a, c.stream());
}

void run_group(Call& c) {
  const int pairs = c.size(), experts = c.size(), first = c.size();
  GroupArgs a{};
  a.ids = c.array<int32_t>(pairs);
  a.start = c.array<int32_t>(experts + 1);
  a.active = c.array<int32_t>(experts + 1);
  a.pair_of_row = c.array<int32_t>(pairs);
  a.row_of_pair = c.array<int32_t>(pairs);
  a.pairs = pairs;
  a.experts = experts;
  a.first_expert = first;
  group_by_expert(a, c.stream());
}

void run_combine(Call& c) {
  const int tokens = c.size(), n = c.size(), chosen = c.size(), rows = c.size();
  CombineArgs a{};
  a.expert_out = c.array<float>(times(rows, n));
  a.row_of_pair = c.array<int32_t>(times(tokens, chosen));
  a.weights = c.array<float>(times(tokens, chosen));
  a.y = c.array<float>(times(tokens, n));
  a.tokens = tokens;
  a.n = n;
  a.chosen = chosen;
  combine(a, c.stream());
}

void run_pack(Call& c) {
  const int experts = c.size(), rows = c.size(), columns = c.size();
  PackArgs a{};
  a.paired = c.size() != 0;
  const int64_t blocks = times(experts, rows) * (columns / mx_block);
  a.blocks = c.array<uint8_t>(blocks * mx_block_bytes);
  a.scales = c.array<uint8_t>(blocks);
  a.codes = c.array<uint8_t>(packed_bytes(experts, rows, columns));
  a.packed_scales = c.array<uint8_t>(packed_scale_bytes(experts, rows, columns));
  a.experts = experts;
  a.rows = rows;
  a.columns = columns;
  pack_experts(a, c.stream());
}

void run_unpack(Call& c) {
  const int count = c.size();
  const auto* blocks = c.array<uint8_t>(times(count, mx_block_bytes));
  const auto* scales = c.array<uint8_t>(count);
  unpack_mxfp4({blocks, scales, c.array<bf16>(times(count, mx_block)), count}, c.stream());
}

void run_embed(Call& c) {
  const int tokens = c.size(), n = c.size(), vocab = c.size();
  const auto* embedding = c.array<bf16>(times(vocab, n));
  const auto* ids = c.array<int32_t>(tokens);
  embed({embedding, ids, c.array<float>(times(tokens, n)), tokens, n}, c.stream());
}

void run_tables(Call& c) {
  const int tokens = c.size(), half = c.size();
  RopeTablesArgs a{};
  a.position = c.array<int32_t>(tokens);
  a.frequencies = c.array<double>(half);
  a.concentration = c.number();
  a.cos = c.array<float>(times(tokens, half));
  a.sin = c.array<float>(times(tokens, half));
  a.tokens = tokens;
  a.half = half;
  rope_tables(a, c.stream());
}

void run_rope(Call& c) {
  const int tokens = c.size(), heads = c.size(), kv_heads = c.size(), dim = c.size();
  const int pages = c.size(), width = (heads + 2 * kv_heads) * dim;
  RopeStoreArgs a{};
  a.qkv = c.array<float>(times(tokens, width));
  a.bias = c.array<bf16>(width);
  a.cos = c.array<float>(times(tokens, dim / 2));
  a.sin = c.array<float>(times(tokens, dim / 2));
  a.slots = c.array<int32_t>(tokens);
  a.q = c.array<bf16>(times(tokens, heads * dim));
  const int64_t page = times(2 * kv_heads * page_size, dim);
  a.kv = {c.array<bf16>(pages * page), page, kv_heads, dim};
  a.tokens = tokens;
  a.heads = heads;
  rope_and_store(a, c.stream());
}

void run_sample(Call& c) {
  SampleArgs a{};
  a.row_count = c.size();
  a.vocab = c.size();
  a.max_logprobs = c.size();
  const int history = c.size(), bias = c.size(), masks = c.size();
  a.logits = c.array<float>(times(a.row_count, a.vocab));
  a.modified = c.array<float>(times(a.row_count, a.vocab));
  a.rows = c.array<SampleRow>(a.row_count);
  a.history_ids = c.array<int32_t>(history);
  a.history_counts = c.array<int32_t>(history);
  a.bias_ids = c.array<int32_t>(bias);
  a.bias_values = c.array<float>(bias);
  a.masks = c.array<uint32_t>(times(masks, static_cast<int>(mask_words(a.vocab))));
  a.results = c.array<SampleResult>(a.row_count);
  a.top_ids = c.array<int32_t>(times(a.row_count, a.max_logprobs));
  a.top_logprobs = c.array<float>(times(a.row_count, a.max_logprobs));
  sample(a, c.stream());
}

// What the device's memory gives: two bytes moved a byte of these arrays.
void run_copy(Call& c) {
  const int words = c.size();
  const auto* from = c.array<float>(words);
  copy_async_to(c.array<float>(words), from, static_cast<size_t>(words) * sizeof(float),
                c.stream());
}

// The device's time between two points of a stream, its caches cold at the first.
class Stopwatch {
public:
#ifdef GPTOSS_CUDA_EMULATED
  explicit Stopwatch(const Stream&) {}
  double seconds() const {
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin_;
    return taken.count();
  }

private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
#else
  explicit Stopwatch(const Stream& stream) : stream_(stream) {
    static const DeviceMemory more_than_caches(size_t{256} << 20);
    zero_async(more_than_caches.as<void>(), more_than_caches.bytes(), stream);
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    check(cudaEventRecord(begin_, stream.handle), "cudaEventRecord");
  }
  ~Stopwatch() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  double seconds() const {
    check(cudaEventRecord(end_, stream_.handle), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) * 1e-3;
  }

private:
  const Stream& stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
#endif
};

const std::map<std::string, std::function<void(Call&)>>& by_name() {
  static const std::map<std::string, std::function<void(Call&)>> kernels = {
      {"gemv_bf16", [](Call& c) { gemm(c, gemv_bf16); }},
      {"gemm_bf16", [](Call& c) { gemm(c, gemm_bf16); }},
      {"gemm_hopper", [](Call& c) { gemm(c, gemm_hopper); }},
      {"experts_few", [](Call& c) { expert(c, experts_few); }},
      {"experts_tiles", [](Call& c) { expert(c, experts_tiles); }},
      {"experts_hopper", [](Call& c) { expert(c, experts_hopper); }},
      {"experts", [](Call& c) { expert(c, experts); }},
      {"attention_prefill", [](Call& c) { attention(c, attention_prefill); }},
      {"attention_decode", [](Call& c) { attention(c, attention_decode); }},
      {"attention_any", [](Call& c) { attention(c, attention_any); }},
      {"rms_norm", run_norm},
      {"route", run_route},
      {"group_by_expert", run_group},
      {"combine", run_combine},
      {"pack_experts", run_pack},
      {"unpack_mxfp4", run_unpack},
      {"embed", run_embed},
      {"rope_tables", run_tables},
      {"rope_and_store", run_rope},
      {"sample", run_sample},
      {"copy", run_copy},
  };
  return kernels;
}

void call(const HostCall& host) {
  const auto found = by_name().find(host.kernel);
  GPTOSS_CHECK(found != by_name().end(), "no CUDA kernel is called {}", host.kernel);
  StreamOwner stream;
#ifdef GPTOSS_CUDA_EMULATED
  stream.get().device = {host.major, 0, host.multiprocessors, host.shared_bytes};
#endif
  Call arguments(host, stream);
  for (int run = 0; run < host.repeat; ++run) {
    arguments.rewind();
    const Stopwatch watch(stream);
    found->second(arguments);
    const double seconds = watch.seconds();
    if (run > 0 && host.seconds != nullptr) {
      host.seconds[run - 1] = seconds;
    }
  }
  synchronize(stream);
  arguments.give_back();
}

constexpr HostKernels kernels = {device_available, call};

}  // namespace

#ifdef GPTOSS_CUDA_EMULATED
const HostKernels& emulated_kernels() { return kernels; }
#endif

}  // namespace gptoss::cuda

extern "C" __attribute__((visibility("default")))
const gptoss::cuda::HostKernels gptoss_cuda_kernels = gptoss::cuda::kernels;
