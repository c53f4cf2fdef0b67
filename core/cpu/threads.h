// Threads: OpenMP, whose pool of threads lives on between loops and is part of every compiler's
// runtime. Without it the same loops run on the calling thread.
#pragma once

#include <cstdint>

#ifdef GPTOSS_HAVE_OPENMP
#include <omp.h>
#endif

namespace gptoss::cpu {

// Less work than this (elements touched or multiply-adds, some microseconds) is done by the calling
// thread: waking others and waiting for them would take longer, far longer on a busy machine.
constexpr int64_t parallel_threshold = int64_t{1} << 16;

// Runs work(task, thread) for every task in [0, tasks), thread in [0, threads). Tasks are handed
// out in runs that grow shorter, down to one: neighbours mostly stay on one thread, which reads
// their weights as one stream, and all threads end at about the same time. Results must not depend
// on which thread takes which task. `cost` is a task's rough number of elements or multiply-adds.
// `work` must not throw.
template <class Work>
void parallel_for(int threads, int64_t tasks, int64_t cost, const Work& work) {
#ifdef GPTOSS_HAVE_OPENMP
  if (threads > 1 && tasks > 1 && tasks * cost >= parallel_threshold) {
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) {
      work(task, omp_get_thread_num());
    }
    return;
  }
#endif
  (void)threads;
  (void)cost;
  for (int64_t task = 0; task < tasks; ++task) {
    work(task, 0);
  }
}

}  // namespace gptoss::cpu
