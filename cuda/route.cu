// route: norm, gate, the largest `chosen` and their softmax, for one or for four tokens a block:
// four read the gate's weights once. A warp takes every eighth expert; then a warp for each token
// finds the largest by comparisons over its lanes. group_by_expert: one block for all pairs; for
// few tokens it is the last block of route that does it, which saves a launch.
#include "cuda/residual.cuh"

namespace gptoss::cuda {

namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_size;
constexpr int max_experts = 256;
constexpr int max_chosen = 8;
constexpr int a_lane = max_experts / warp_size;

struct Floats8 {
  float value[8];
};

// Sum of t · w over the lanes' eights of n.
__device__ inline float dot(const float* t, const bf16* w, int n) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  float sum = 0.0f;
  for (int i = lane * 8; i < n; i += warp_size * 8) {
    Words packed;
    load_aligned(&packed, w + i);
    GPTOSS_UNROLL
    for (int j = 0; j < 4; ++j) {
      sum += t[i + j * 2] * bits_to_float(packed.word[j] << 16);
      sum += t[i + j * 2 + 1] * bits_to_float(packed.word[j] & 0xffff0000u);
    }
  }
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  return sum;
}

// A warp: ids and weights of a row of logits. Ties go to the lowest index.
__device__ inline void choose(const float* logits, int experts, int chosen, int32_t* to_ids,
                              float* to_weights) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  float mine[a_lane];  // expert lane + 32 · i
  bool taken[a_lane];
  GPTOSS_UNROLL
  for (int i = 0; i < a_lane; ++i) {
    const int expert = lane + warp_size * i;
    taken[i] = expert >= experts;
    mine[i] = taken[i] ? 0.0f : logits[expert];
  }
  int ids[max_chosen] = {};
  float values[max_chosen] = {};
  float sum = 0.0f, largest = 0.0f;
  GPTOSS_UNROLL
  for (int c = 0; c < max_chosen; ++c) {
    if (c >= chosen) {
      break;
    }
    int best = -1;
    float most = 0.0f;
    GPTOSS_UNROLL
    for (int i = 0; i < a_lane; ++i) {
      if (!taken[i] && (best < 0 || mine[i] > most)) {
        best = lane + warp_size * i;
        most = mine[i];
      }
    }
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
      const int other = __shfl_xor_sync(0xffffffffu, best, distance);
      const float its = __shfl_xor_sync(0xffffffffu, most, distance);
      if (other >= 0 && (best < 0 || its > most || (its == most && other < best))) {
        best = other;
        most = its;
      }
    }
    GPTOSS_UNROLL
    for (int i = 0; i < a_lane; ++i) {
      taken[i] = taken[i] || lane + warp_size * i == best;
    }
    largest = c == 0 ? most : largest;
    // A NaN among the logits is larger than nothing; some expert has to be named all the same.
    ids[c] = best >= 0 && best < experts ? best : 0;
    values[c] = expf(most - largest);
    sum += values[c];
  }
  if (lane == 0) {
    GPTOSS_UNROLL
    for (int c = 0; c < max_chosen; ++c) {
      if (c >= chosen) {
        break;
      }
      to_ids[c] = ids[c];
      to_weights[c] = values[c] / sum;
    }
  }
}

// Groups all pairs by expert, in one block: a warp for each expert, in rounds, counts its pairs, 32
// at a time, and later places them. start: (experts + 1) in shared memory.
template <int block_threads>
__device__ inline void group_pairs(const GroupArgs& a, int32_t* start) {
  constexpr int block_warps = block_threads / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const auto chose = [&](int pair, int expert) {
    return pair < a.pairs && load_from_other_blocks(a.ids + pair) - a.first_expert == expert;
  };
  for (int expert = warp; expert < a.experts; expert += block_warps) {
    int count = 0;
    for (int pair = 0; pair < a.pairs; pair += warp_size) {
      count += __popc(__ballot_sync(0xffffffffu, chose(pair + lane, expert)));
    }
    if (lane == 0) {
      start[expert + 1] = count;
    }
  }
  for (int pair = static_cast<int>(threadIdx.x); pair < a.pairs; pair += block_threads) {
    const int expert = load_from_other_blocks(a.ids + pair) - a.first_expert;
    if (expert < 0 || expert >= a.experts) {
      a.row_of_pair[pair] = -1;  // somebody else's
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int active = 0;
    start[0] = 0;
    for (int e = 0; e < a.experts; ++e) {
      if (start[e + 1] > 0) {
        a.active[1 + active++] = e;
      }
      start[e + 1] += start[e];
    }
    a.active[0] = active;
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e <= a.experts; e += block_threads) {
    a.start[e] = start[e];
  }
  for (int expert = warp; expert < a.experts; expert += block_warps) {
    int row = start[expert];
    for (int pair = 0; pair < a.pairs && row < start[expert + 1]; pair += warp_size) {
      const bool mine = chose(pair + lane, expert);
      const unsigned all = __ballot_sync(0xffffffffu, mine);
      if (mine) {
        const int place = row + __popc(all & ((1u << lane) - 1u));
        a.pair_of_row[place] = pair + lane;
        a.row_of_pair[pair + lane] = place;
      }
      row += __popc(all);
    }
  }
}

template <int tokens>
__global__ void __launch_bounds__(threads, 2) route_kernel(RouteArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  auto* t = reinterpret_cast<float*>(shared);  // (tokens, n)
  float* sums = t + tokens * a.n;              // (warps)
  float* logits = sums + warps;                // (tokens, experts)
  const int first = static_cast<int>(blockIdx.x) * tokens;
  const int count = a.rows - first < tokens ? a.rows - first : tokens;
  for (int token = 0; token < count; ++token) {
    float* row = t + token * a.n;
    const float factor = load_row<threads>(a.residual, first + token, a.n, a.eps, row, sums);
    for (int i = static_cast<int>(threadIdx.x); i < a.n; i += threads) {
      row[i] *= factor * to_float(a.scale[i]);
      a.t[static_cast<int64_t>(first + token) * a.n + i] = to_bf16(row[i]);
    }
    __syncthreads();  // the sums are used again
  }
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  for (int e = warp; e < a.experts; e += warps) {
    for (int token = 0; token < count; ++token) {
      const float sum = dot(t + token * a.n, a.w + static_cast<int64_t>(e) * a.n, a.n);
      if (threadIdx.x % warp_size == 0) {
        logits[token * a.experts + e] = sum + to_float(a.bias[e]);
      }
    }
  }
  __syncthreads();
  if (warp < count) {
    const int64_t to = static_cast<int64_t>(first + warp) * a.chosen;
    choose(logits + warp * a.experts, a.experts, a.chosen, a.ids + to, a.weights + to);
  }
  if (a.ended == nullptr) {
    return;
  }
  // The block that ends last groups all blocks' pairs ("Memory Fence Functions" in the CUDA C++
  // Programming Guide).
  __threadfence();
  __syncthreads();
  auto* ended = reinterpret_cast<int*>(logits);
  if (threadIdx.x == 0) {
    *ended = atomicAdd(a.ended, 1);
  }
  __syncthreads();
  if (*ended != static_cast<int>(gridDim.x) - 1) {
    return;
  }
  __threadfence();
  __syncthreads();  // all have read `ended`, whose place start[] takes
  group_pairs<threads>(a.group, reinterpret_cast<int32_t*>(logits));
  if (threadIdx.x == 0) {
    *a.ended = 0;  // for the next launch
  }
}

template <int tokens>
int shared_bytes(const RouteArgs& a) {
  const int logits = tokens * a.experts, start = a.experts + 1;
  return (tokens * a.n + warps + (logits > start ? logits : start)) * 4;
}

template <int tokens>
void run(const RouteArgs& a, const Stream& stream) {
  GPTOSS_CHECK(shared_bytes<tokens>(a) <= stream.device.shared_bytes,
               "route: rows of {} do not fit into {} bytes", a.n, stream.device.shared_bytes);
  launch({"route", {a.rows, a.n, a.experts, a.chosen}}, route_kernel<tokens>,
         {(a.rows + tokens - 1) / tokens, 1, 1}, threads,
         static_cast<size_t>(shared_bytes<tokens>(a)), stream, a);
}

constexpr int group_threads = 1024;

__global__ void __launch_bounds__(group_threads) group_kernel(GroupArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  group_pairs<group_threads>(a, reinterpret_cast<int32_t*>(shared));
}

}  // namespace

void route(const RouteArgs& a, const Stream& stream) {
  GPTOSS_CHECK(
      a.rows > 0 && a.n > 0 && a.n % 8 == 0 && a.experts > 0 && a.experts <= max_experts &&
          a.chosen > 0 && a.chosen <= max_chosen && a.chosen <= a.experts,
      "route: expected rows of a multiple of 8, at most {} experts of which at most {} are "
      "chosen, found rows of {}, {} and {}",
      max_experts, max_chosen, a.n, a.experts, a.chosen);
  if (a.rows > 64 && shared_bytes<4>(a) <= stream.device.shared_bytes) {
    run<4>(a, stream);
  } else {
    run<1>(a, stream);
  }
}

void group_by_expert(const GroupArgs& a, const Stream& stream) {
  GPTOSS_CHECK(a.pairs > 0 && a.experts > 0 && a.experts <= max_experts,
               "group_by_expert: expected pairs and at most {} experts, found {} and {}",
               max_experts, a.pairs, a.experts);
  launch({"group_by_expert", {a.pairs, a.experts}}, group_kernel, {1, 1, 1}, group_threads,
         static_cast<size_t>(a.experts + 1) * sizeof(int32_t), stream, a);
}

}  // namespace gptoss::cuda
