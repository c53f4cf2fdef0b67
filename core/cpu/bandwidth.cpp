#include "cpu/bandwidth.h"

#include <algorithm>
#include <vector>

namespace gptoss::cpu {

uint64_t read_all(const uint64_t* data, int64_t n, ThreadPool& threads) {
  // Each thread walks a stretch of its own, as it does in a matrix product.
  constexpr int64_t per_task = int64_t{1} << 19;  // 4 MiB
  const int64_t tasks = (n + per_task - 1) / per_task;
  std::vector<uint64_t> sums(static_cast<size_t>(tasks));
  parallel_for(threads, tasks, per_task, [&](int64_t task, int) {
    const int64_t end = std::min(n, (task + 1) * per_task);
    uint64_t lanes[8] = {};
    int64_t i = task * per_task;
    for (; i + 8 <= end; i += 8) {
      for (int lane = 0; lane < 8; ++lane) {
        lanes[lane] += data[i + lane];
      }
    }
    for (; i < end; ++i) {
      lanes[0] += data[i];
    }
    for (const uint64_t lane : lanes) {
      sums[static_cast<size_t>(task)] += lane;
    }
  });
  uint64_t sum = 0;
  for (const uint64_t part : sums) {
    sum += part;
  }
  return sum;
}

}  // namespace gptoss::cpu
