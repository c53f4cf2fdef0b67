#include "core/cpu/machine.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace gptoss::cpu {

namespace {

// CPUs granted by the cgroup (v2 or v1) that a container runs in; 0 where none is set.
int cgroup_cpus() {
  double quota = 0.0, period = 0.0;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  if (!(v2 >> quota >> period)) {  // "max 100000" fails to parse: no limit
    std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) {
      return 0;
    }
  }
  return quota > 0.0 && period > 0.0 ? static_cast<int>(std::max(1.0, std::ceil(quota / period)))
                                     : 0;
}

}  // namespace

int usable_threads() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    count = CPU_COUNT(&set);
  }
#endif
  const int quota = cgroup_cpus();
  return std::max(1, quota > 0 ? std::min(count, quota) : count);
}

}  // namespace gptoss::cpu
