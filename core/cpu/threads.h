// Loops spread over a pool of threads.
#pragma once

#include <cstdint>
#include <memory>

namespace gptoss::cpu {

// Threads that wait for loops: some tens of microseconds awake, where there are CPUs enough for
// all, then asleep. The end of a loop waits for those that have begun with it, never for one that
// has not woken yet.
class ThreadPool {
public:
  // The thread that runs a loop is one of them; the others are started here. Throws Error when the
  // system does not give that many.
  explicit ThreadPool(int threads);
  // Ends the threads. No loop may be running.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Covers [0, tasks) with calls of range(work, begin, end, thread), thread in [0, size()), those
  // of one thread one after the other. What a call throws comes out here, the first of several;
  // the rest of the tasks may not have run then. A loop inside a loop, one of a second caller at
  // the same time, and one in a forked child, where the threads are not, run on the calling thread.
  using Range = void (*)(const void* work, int64_t begin, int64_t end, int thread);
  void run(int64_t tasks, Range range, const void* work);

private:
  struct Team;
  struct Leave {
    void operator()(Team* team) const;
  };
  int size_;
  std::unique_ptr<Team, Leave> team_;
};

// Less work than this (elements touched or multiply-adds, some microseconds) is done by the calling
// thread: waking others and waiting for them would take longer, far longer on a busy machine.
constexpr int64_t parallel_threshold = int64_t{1} << 16;

// Runs work(task, thread) for every task in [0, tasks), thread in [0, pool.size()). Tasks are
// handed out in runs that grow shorter, down to one: neighbours mostly stay on one thread, which
// reads their weights as one stream, and all threads end at about the same time. Results must not
// depend on which thread takes which task. `cost` is a task's rough number of elements or
// multiply-adds.
template <class Work>
void parallel_for(ThreadPool& pool, int64_t tasks, int64_t cost, const Work& work) {
  const auto range = [](const void* of, int64_t begin, int64_t end, int thread) {
    for (int64_t task = begin; task < end; ++task) {
      (*static_cast<const Work*>(of))(task, thread);
    }
  };
  if (pool.size() > 1 && tasks > 1 && tasks * cost >= parallel_threshold) {
    pool.run(tasks, range, &work);
  } else {
    range(&work, 0, tasks, 0);
  }
}

}  // namespace gptoss::cpu
