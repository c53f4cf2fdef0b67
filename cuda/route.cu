// route: a warp for each token; the largest is found `chosen` times, by comparisons over the lanes.
#include "kernels.h"

namespace gptoss::cuda {

namespace {

constexpr int warps = 4;
constexpr int most_experts = 256;
constexpr int most_chosen = 8;
constexpr int a_lane = most_experts / warp_size;

__global__ void __launch_bounds__(warps* warp_size) route_kernel(RouteArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int row = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / warp_size;
  if (row >= a.rows) {
    return;
  }
  const float* logits = a.logits + static_cast<int64_t>(row) * a.experts;
  float mine[a_lane];  // expert lane + 32 · i
  bool taken[a_lane];
  GPTOSS_UNROLL
  for (int i = 0; i < a_lane; ++i) {
    const int expert = lane + warp_size * i;
    taken[i] = expert >= a.experts;
    mine[i] = taken[i] ? 0.0f : logits[expert];
  }
  int ids[most_chosen] = {};
  float values[most_chosen] = {};
  float sum = 0.0f, largest = 0.0f;
  GPTOSS_UNROLL
  for (int c = 0; c < most_chosen; ++c) {
    if (c >= a.chosen) {
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
    ids[c] = best;
    values[c] = expf(most - largest);
    sum += values[c];
  }
  if (lane == 0) {
    GPTOSS_UNROLL
    for (int c = 0; c < most_chosen; ++c) {
      if (c >= a.chosen) {
        break;
      }
      a.ids[static_cast<int64_t>(row) * a.chosen + c] = ids[c];
      a.weights[static_cast<int64_t>(row) * a.chosen + c] = values[c] / sum;
    }
  }
}

}  // namespace

void route(const RouteArgs& a, Stream stream) {
  GPTOSS_CHECK(a.rows > 0 && a.experts > 0 && a.experts <= most_experts && a.chosen > 0 &&
                   a.chosen <= most_chosen && a.chosen <= a.experts,
               "route: expected at most {} experts of which at most {} are chosen, found {} and {}",
               most_experts, most_chosen, a.experts, a.chosen);
  launch(format("route {} of {} experts, {} rows", a.chosen, a.experts, a.rows), route_kernel,
         {(a.rows + warps - 1) / warps, 1, 1}, warps * warp_size, 0, stream, a);
}

}  // namespace gptoss::cuda
