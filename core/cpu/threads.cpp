#include "core/cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/cpu/machine.h"
#include "core/forks.h"

namespace gptoss::cpu {

namespace {

// About as long as a step spends between two of its loops; between steps threads may sleep.
constexpr std::chrono::microseconds awake(50);

constexpr int most = 4096;

thread_local bool inside_loop = false;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Until the value is no longer `old`.
void await(const std::atomic<uint32_t>& value, uint32_t old, bool spin) {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (changed()) {
    return;
  }
  if (spin) {
    const auto end = std::chrono::steady_clock::now() + awake;
    do {
      for (int i = 0; i < 16; ++i) {
        pause();
        if (changed()) {
          return;
        }
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

// What is written by many lies in cache lines of its own.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
struct ThreadPool::Team {
  explicit Team(int threads) : spin(threads <= usable_threads()) {
    try {
      for (int thread = 1; thread < threads; ++thread) {
        workers.emplace_back([this, thread] { serve(thread); });
      }
    } catch (const std::system_error& error) {
      const size_t started = workers.size();
      end();
      throw Error(gptoss::format("threads: expected {}, the system gave {}: {}", threads,
                                 started + 1, error.what()));
    } catch (...) {  // no memory for one more
      end();
      throw;
    }
  }

  void end() {
    ended.store(true, std::memory_order_relaxed);
    announce();
    for (std::thread& worker : workers) {
      worker.join();
    }
  }

  void run(int64_t count, Range range_of, const void* work_of) {
    range = range_of;
    work = work_of;
    tasks = count;
    const int64_t helpers = std::min(static_cast<int64_t>(workers.size()), count - 1);
    sharers = helpers + 1;
    next.store(0, std::memory_order_relaxed);
    gate.store(static_cast<uint32_t>(helpers) * one_wanted, std::memory_order_release);
    announce();
    take(0);
    uint32_t now = gate.fetch_or(closed, std::memory_order_acq_rel) | closed;
    while ((now & inside) != 0) {
      await(gate, now, spin);
      now = gate.load(std::memory_order_acquire);
    }
    if (thrown != nullptr) {
      std::rethrow_exception(std::exchange(thrown, nullptr));
    }
  }

  // Wakes the threads that sleep.
  void announce() {
    loops.fetch_add(1);
    loops.notify_all();
  }

  void serve(int thread) {
    uint32_t seen = 0;
    for (;;) {
      await(loops, seen, spin);
      seen = loops.load(std::memory_order_acquire);
      if (ended.load(std::memory_order_relaxed)) {
        return;
      }
      if (enter()) {
        take(thread);
        leave();
      }
    }
  }

  // False where the loop is over, or has threads enough.
  bool enter() {
    uint32_t now = gate.load(std::memory_order_relaxed);
    while ((now & closed) == 0 && (now & inside) < now / one_wanted) {
      if (gate.compare_exchange_weak(now, now + 1, std::memory_order_acquire)) {
        return true;
      }
    }
    return false;
  }

  void leave() {
    const uint32_t before = gate.fetch_sub(1, std::memory_order_acq_rel);
    if ((before & closed) != 0 && (before & inside) == 1) {
      gate.notify_one();
    }
  }

  // Takes runs of tasks, half a thread's share of what is left at a time, until none are left.
  void take(int thread) {
    inside_loop = true;
    try {
      int64_t begin = next.load(std::memory_order_relaxed);
      while (begin < tasks) {
        const int64_t end = begin + std::max<int64_t>(1, (tasks - begin) / (2 * sharers));
        if (next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
          range(work, begin, end, thread);
          begin = next.load(std::memory_order_relaxed);
        }
      }
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (thrown == nullptr) {
        thrown = std::current_exception();
      }
      next.store(tasks, std::memory_order_relaxed);
    }
    inside_loop = false;
  }

  const uint32_t born = forks();
  const bool spin;
  std::atomic<bool> busy = false;

  // The loop. Written by its caller while the gate is closed and nobody is inside.
  Range range = nullptr;
  const void* work = nullptr;
  int64_t tasks = 0;
  int64_t sharers = 1;  // threads that are wanted, the caller among them
  std::mutex error_mutex;
  std::exception_ptr thrown;

  alignas(64) std::atomic<int64_t> next = 0;  // the first task that nobody has taken
  // The loop's workers: how many are inside, how many are wanted, whether it is over.
  static constexpr uint32_t inside = 0xffff, one_wanted = 0x10000, closed = 0x80000000;
  alignas(64) std::atomic<uint32_t> gate = closed;
  alignas(64) std::atomic<uint32_t> loops = 0;  // announced so far; workers wait for the next
  std::atomic<bool> ended = false;

  std::vector<std::thread> workers;
};

// In a forked child the threads cannot be joined, nor can what they may hold be destroyed: it is
// leaked.
void ThreadPool::Leave::operator()(Team* team) const {
  if (team->born == forks()) {
    team->end();
    delete team;
  }
}

ThreadPool::ThreadPool(int threads) : size_(std::max(1, threads)) {
  GPTOSS_CHECK(size_ <= most, "threads: expected at most {}, found {}", most, size_);
  team_.reset(size_ > 1 ? new Team(size_) : nullptr);
}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(int64_t tasks, Range range, const void* work) {
  const bool alone = team_ == nullptr || tasks < 2 || inside_loop || team_->born != forks() ||
                     team_->busy.exchange(true, std::memory_order_acquire);
  if (alone) {
    range(work, 0, tasks, 0);
    return;
  }
  struct Release {
    std::atomic<bool>& busy;
    ~Release() { busy.store(false, std::memory_order_release); }
  } release{team_->busy};
  team_->run(tasks, range, work);
}

}  // namespace gptoss::cpu
