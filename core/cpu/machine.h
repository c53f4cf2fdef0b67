// What of the machine this process may use.
#pragma once

namespace gptoss::cpu {

// Threads: the process's CPU affinity, bounded by a cgroup quota where one is set.
int usable_threads();

}  // namespace gptoss::cpu
