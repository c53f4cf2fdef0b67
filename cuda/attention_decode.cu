// attention_decode: one token of a sequence against its keys. The heads of a group are the rows of
// one tile. Blocks share the pages (flash-decoding, Dao et al. 2023), a block's warps share its
// pages, each with copies of its own under way; sums are merged exactly, over warps in shared
// memory and over blocks by the one that ends last.
#include "cuda/attention_tile.cuh"

namespace gptoss::cuda {

namespace {

constexpr int warps = 4;
constexpr int threads = warps * warp_size;
constexpr int max_rows = 16;  // heads of a group

template <int dim>
struct Shape {
  static constexpr int pieces = dim / 8;
  static constexpr int tile_bytes = page_size * dim * 2;
  static constexpr int stages = dim > 64 ? 2 : 4;
  static constexpr int warp_bytes = stages * 2 * tile_bytes;
  static constexpr int part = dim + 2;  // a row's sums: out, max, sum
  static constexpr int merge_bytes = warps * max_rows * part * 4;
  static constexpr int shared_bytes =
      warps * warp_bytes > merge_bytes ? warps * warp_bytes : merge_bytes;
};

// Adds up `count` parts of a row, `stride` floats apart, for one element of out; the maximum and
// the sum of the whole row as well.
struct Merged {
  float out = 0.0f, max = -INFINITY, sum = 0.0f;
};
template <bool from_other_blocks>
__device__ inline Merged merge(const float* parts, int count, int64_t stride, int dim,
                               int element) {
  const auto load = [&](int i, int at) {
    const float* from = parts + i * stride + at;
    return from_other_blocks ? load_from_other_blocks(from) : *from;
  };
  Merged m;
  for (int i = 0; i < count; ++i) {
    m.max = fmaxf(m.max, load(i, dim));
  }
  const float base = m.max == -INFINITY ? 0.0f : m.max;
  for (int i = 0; i < count; ++i) {
    const float weight = exp2f(load(i, dim) - base);
    m.out += load(i, element) * weight;
    m.sum += load(i, dim + 1) * weight;
  }
  return m;
}

template <int dim>
__global__ void __launch_bounds__(threads, 2) decode_kernel(AttentionArgs a) {
  using S = Shape<dim>;
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  const int token = a.tiles[blockIdx.x * 2], kv_head = static_cast<int>(blockIdx.y);
  const int split = static_cast<int>(blockIdx.z), splits = static_cast<int>(gridDim.z);
  const int group = a.heads / a.kv.kv_heads;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int32_t* pages = a.pages + static_cast<int64_t>(a.sequence[token]) * a.max_blocks;
  const int last = a.position[token];
  const int first = last >= a.window ? last - a.window + 1 : 0;
  const int64_t element = (static_cast<int64_t>(token) * a.heads + kv_head * group) * dim;

  QueryRows<dim> rows;
  const bf16* q[2];
  GPTOSS_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + half * 8;
    q[half] = row < group ? a.q + element + row * dim : nullptr;
    rows.first[half] = first;
    rows.last[half] = row < group ? last : -1;
  }
  rows.load(q);

  const int first_page = first / page_size, count = last / page_size + 1 - first_page;
  const int a_split = (count + splits - 1) / splits;
  const int begin = first_page + split * a_split + warp;
  const int end = first_page + ((split + 1) * a_split < count ? (split + 1) * a_split : count);
  unsigned char* mine = shared + warp * S::warp_bytes;
  const auto load = [&](int turn) {
    const int page = begin + turn * warps;
    if (page < end) {
      unsigned char* stage = mine + turn % S::stages * 2 * S::tile_bytes;
      for (int i = lane; i < page_size * S::pieces; i += warp_size) {
        const int key = i / S::pieces, piece = i % S::pieces, position = page * page_size + key;
        unsigned char* to = stage + swizzled(key, piece, S::pieces);
        copy_key(a, pages, kv_head, false, position, first, last, piece, to);
        copy_key(a, pages, kv_head, true, position, first, last, piece, to + S::tile_bytes);
      }
    }
    commit_copies();
  };
  for (int turn = 0; turn < S::stages - 1; ++turn) {
    load(turn);
  }
  GPTOSS_KEEP_LOOP
  for (int turn = 0; begin + turn * warps < end; ++turn) {
    wait_for_copies<S::stages - 2>();
    __syncwarp();  // the page has come for all lanes, and all have left the last one
    load(turn + S::stages - 1);
    const unsigned char* stage = mine + turn % S::stages * 2 * S::tile_bytes;
    rows.template attend<page_size>(stage, stage + S::tile_bytes,
                                    (begin + turn * warps) * page_size, a.scale * log2_e);
  }
  wait_for_copies<0>();
  rows.finish();

  __syncthreads();  // the pages' place takes the sums, (warps, 16, part)
  auto* parts = reinterpret_cast<float*>(shared);
  GPTOSS_UNROLL
  for (int half = 0; half < 2; ++half) {
    float* part = parts + (warp * max_rows + lane / 4 + half * 8) * S::part;
    GPTOSS_UNROLL
    for (int n = 0; n < dim / 8; ++n) {
      part[n * 8 + lane % 4 * 2] = rows.out[n][half * 2];
      part[n * 8 + lane % 4 * 2 + 1] = rows.out[n][half * 2 + 1];
    }
    if (lane % 4 == 0) {
      part[dim] = rows.max[half];
      part[dim + 1] = rows.sum[half];
    }
  }
  __syncthreads();
  const auto finish = [&](const Merged& m, int row, int d) {
    const float sink = to_float(a.sinks[kv_head * group + row]);
    a.out[element + row * dim + d] = to_bf16(m.out * weight_with_sink(m.max, m.sum, sink));
  };
  constexpr int64_t between_warps = max_rows * S::part;
  const int64_t between_splits = static_cast<int64_t>(group) * S::part;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * a.kv.kv_heads + kv_head;
  float* of_splits = a.parts + task * splits * between_splits;
  for (int i = static_cast<int>(threadIdx.x); i < group * dim; i += threads) {
    const int row = i / dim, d = i % dim;
    const Merged m = merge<false>(parts + row * S::part, warps, between_warps, dim, d);
    if (splits == 1) {
      finish(m, row, d);
      continue;
    }
    float* part = of_splits + split * between_splits + row * S::part;
    part[d] = m.out;
    if (d == 0) {
      part[dim] = m.max;
      part[dim + 1] = m.sum;
    }
  }
  if (splits == 1) {
    return;
  }
  // The block that ends last finds the others' sums written (CUDA C++ Programming Guide, "Memory
  // Fence Functions").
  __threadfence();
  __syncthreads();
  auto* ended = reinterpret_cast<int*>(shared);
  if (threadIdx.x == 0) {
    *ended = atomicAdd(a.ended + task, 1);
  }
  __syncthreads();
  if (*ended != splits - 1) {
    return;
  }
  __threadfence();
  for (int i = static_cast<int>(threadIdx.x); i < group * dim; i += threads) {
    const float* row = of_splits + i / dim * S::part;
    finish(merge<true>(row, splits, between_splits, dim, i % dim), i / dim, i % dim);
  }
  if (threadIdx.x == 0) {
    a.ended[task] = 0;  // for the next launch
  }
}

template <int dim>
void run(const AttentionArgs& a, const Stream& stream) {
  launch({"attention_decode", {a.tokens, a.heads, dim, a.splits}}, decode_kernel<dim>,
         {a.tokens, a.kv.kv_heads, a.splits}, threads, Shape<dim>::shared_bytes, stream, a);
}

}  // namespace

bool has_attention(int group, int head_dim) {
  return group <= max_rows &&
         (head_dim == 16 || head_dim == 32 || head_dim == 64 || head_dim == 128);
}

int64_t decode_part_floats(int tokens, int heads, int head_dim, int splits) {
  return static_cast<int64_t>(tokens) * heads * splits * (head_dim + 2);
}

void attention_decode(const AttentionArgs& a, const Stream& stream) {
  GPTOSS_CHECK(
      a.tokens > 0 && a.splits > 0 && a.heads / a.kv.kv_heads <= max_rows,
      "attention_decode: expected groups of at most {} heads, found {} heads on {} KV heads",
      max_rows, a.heads, a.kv.kv_heads);
  with_head_dim("attention_decode", a.kv.head_dim, [&](auto dim) { run<dim()>(a, stream); });
}

}  // namespace gptoss::cuda
