// The pool of threads: every task once, on any calling thread, after any exception, in a fork too.
#include "core/cpu/threads.h"

#include <sys/resource.h>

#include <atomic>
#include <latch>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/check.h"
#include "tests/core/forked.h"
#include "tests/core/test.h"

using namespace gptoss;
using cpu::parallel_for, cpu::parallel_threshold, cpu::ThreadPool, test::in_child;

namespace {

// Whether each of `tasks` tasks runs once, under the number of a thread that runs no other.
bool covers(ThreadPool& pool, int64_t tasks) {
  std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
  std::vector<std::atomic<int>> running(static_cast<size_t>(pool.size()));
  std::atomic<bool> good = true;
  parallel_for(pool, tasks, parallel_threshold, [&](int64_t task, int thread) {
    if (thread < 0 || thread >= pool.size() || running[static_cast<size_t>(thread)]++ != 0) {
      good = false;
    }
    ++runs[static_cast<size_t>(task)];
    --running[static_cast<size_t>(thread)];
  });
  for (const std::atomic<int>& count : runs) {
    good = good && count == 1;
  }
  return good;
}

// Ends only if all threads of the pool are in one loop at the same time.
void meet(ThreadPool& pool) {
  std::latch all(pool.size());
  parallel_for(pool, pool.size(), parallel_threshold, [&](int64_t, int) { all.arrive_and_wait(); });
}

}  // namespace

TEST(every_task_runs_once) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    for (const int64_t tasks : {0, 1, 2, 3, 7, 64, 1000, 20011}) {
      CHECK(covers(pool, tasks));
    }
  }
}

TEST(many_loops_one_after_the_other) {
  ThreadPool pool(4);
  int64_t sum = 0;
  for (int turn = 0; turn < 5000; ++turn) {
    std::atomic<int64_t> mine = 0;
    parallel_for(pool, 5, parallel_threshold, [&](int64_t task, int) { mine += task + turn; });
    sum += mine;
  }
  CHECK(sum == int64_t{5} * 5000 * 4999 / 2 + 5000 * 10);
}

TEST(all_threads_take_part) {
  for (const int threads : {2, 5, 64}) {  // and more of them than there are CPUs
    ThreadPool pool(threads);
    for (int turn = 0; turn < 20; ++turn) {
      meet(pool);
    }
  }
}

TEST(little_work_stays_with_the_caller) {
  ThreadPool pool(4);
  const std::thread::id caller = std::this_thread::get_id();
  parallel_for(pool, 100, parallel_threshold / 100 - 1, [&](int64_t, int thread) {
    CHECK(thread == 0 && std::this_thread::get_id() == caller);
  });
}

TEST(what_a_task_throws_reaches_the_caller) {
  ThreadPool pool(4);
  for (int64_t bad = 0; bad < 40; ++bad) {
    const auto loop = [&] {
      parallel_for(pool, 40, parallel_threshold, [&](int64_t task, int) {
        if (task == bad) {
          throw std::runtime_error(format("task {} is bad", task));
        }
      });
    };
    CHECK_THROWS(loop(), format("task {} is bad", bad));
  }
  // All at the same time: one comes out.
  std::latch all(4);
  const auto loop = [&] {
    parallel_for(pool, 4, parallel_threshold, [&](int64_t, int) {
      all.arrive_and_wait();
      throw std::runtime_error("bad");
    });
  };
  CHECK_THROWS(loop(), "bad");
  meet(pool);
  CHECK(covers(pool, 1000));
}

TEST(a_loop_inside_a_loop_runs_where_it_is) {
  ThreadPool pool(3), other(3);
  for (ThreadPool* inner : {&pool, &other}) {
    std::atomic<int> good = 0;
    parallel_for(pool, 50, parallel_threshold, [&](int64_t, int) {
      const std::thread::id here = std::this_thread::get_id();
      int64_t sum = 0;  // no atomic: one thread
      parallel_for(*inner, 10, parallel_threshold, [&](int64_t task, int thread) {
        sum += thread == 0 && std::this_thread::get_id() == here ? task : 1000;
      });
      good += sum == 45;
    });
    CHECK(good == 50);
  }
  meet(pool);
}

TEST(many_callers) {
  ThreadPool shared(3);
  std::vector<std::thread> callers;
  std::atomic<int> good = 0;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      ThreadPool own(2);
      for (int turn = 0; turn < 200; ++turn) {
        std::atomic<int64_t> sum = 0;
        for (ThreadPool* pool : {&shared, &own}) {
          parallel_for(*pool, 30, parallel_threshold, [&](int64_t task, int) { sum += task; });
        }
        good += sum == 2 * 435;
      }
      meet(own);
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  CHECK(good == 4 * 200);
  meet(shared);
}

#ifndef GPTOSS_TSAN
TEST(a_new_pool_in_a_forked_child) {
  ThreadPool pool(4);
  meet(pool);
  CHECK(in_child([] {
          ThreadPool fresh(4);
          meet(fresh);
          return covers(fresh, 1000) ? 0 : 1;
        }) == 0);
  meet(pool);  // the parent has lost nothing
}
#endif

TEST(an_old_pool_in_a_forked_child_runs_loops_on_the_caller_and_can_be_dropped) {
  auto pool = std::make_unique<ThreadPool>(4);
  std::latch begun(1), forked(1);
  // Forked in the middle of a loop of another thread.
  std::thread caller([&] {
    parallel_for(*pool, 4, parallel_threshold, [&](int64_t task, int) {
      if (task == 3) {
        begun.count_down();
      }
      forked.wait();
    });
  });
  begun.wait();
  const int result = in_child([&] {
    const bool good = covers(*pool, 1000);
    pool.reset();
    return good ? 0 : 1;
  });
  forked.count_down();
  caller.join();
  CHECK(result == 0);
  meet(*pool);
}

TEST(more_threads_than_there_can_be) {
  CHECK_THROWS(ThreadPool(4097), "threads: expected at most 4096, found 4097");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(GPTOSS_TSAN)  // which need all the addresses
TEST(more_threads_than_the_system_gives) {
  CHECK(in_child([] {
          const rlimit addresses{rlim_t{1} << 30, rlim_t{1} << 30};
          setrlimit(RLIMIT_AS, &addresses);
          CHECK_THROWS(ThreadPool(4000), "threads: expected 4000, the system gave ");
          ThreadPool few(2);
          meet(few);
          return test::state().failed_checks;
        }) == 0);
}
#endif
