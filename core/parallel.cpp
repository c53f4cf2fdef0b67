#include "core/parallel.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/forks.h"
#include "core/shard.h"

namespace gptoss {

namespace {

// A thread that does one thing after the other: a GPU is chosen for each thread.
class Worker {
public:
  Worker() : thread_([this] { work(); }) {}
  ~Worker() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void start(std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    task_ = std::move(task);
    error_ = nullptr;
    busy_ = true;
    changed_.notify_all();
  }

  // False when it is still busy after that time.
  bool wait_for(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, time, [&] { return !busy_; });
  }

  // Waits, and gives what the task threw.
  std::exception_ptr wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !busy_; });
    return error_;
  }

private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return busy_ || ended_; });
      if (!busy_) {
        return;
      }
      const std::function<void()> task = std::exchange(task_, nullptr);
      lock.unlock();
      std::exception_ptr error;
      try {
        task();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      error_ = error;
      busy_ = false;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> task_;
  std::exception_ptr error_;
  bool busy_ = false, ended_ = false;
  std::thread thread_;  // last: it uses the others
};

class ParallelBackend final : public Backend {
public:
  ParallelBackend(const Options& options, std::vector<std::unique_ptr<Communicator>> communicators,
                  const std::function<std::unique_ptr<Backend>(const Options&)>& create)
      : communicators_(std::move(communicators)), ranks_(communicators_.size()) {
    try {
      on_each([&](size_t r) {
        Options mine = options;
        mine.shard = {static_cast<int>(r), static_cast<int>(ranks_.size())};
        mine.communicator = communicators_[r].get();
        ranks_[r].backend = create(mine);
      });
    } catch (...) {
      close();
      throw;
    }
  }
  // A forked child lacks the ranks' threads, and waiting for what they may hold would not end:
  // it is leaked.
  ~ParallelBackend() override {
    if (born_ == forks()) {
      close();
    } else {
      // NOLINTBEGIN(bugprone-unhandled-exception-at-new): a child without memory ends here.
      static_cast<void>(new std::vector<Rank>(std::move(ranks_)));
      static_cast<void>(new auto(std::move(communicators_)));
      // NOLINTEND(bugprone-unhandled-exception-at-new)
    }
  }

  // One rank after another: they share the source.
  void load(const ModelConfig& config, WeightSource& source) override {
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const Shard shard{static_cast<int>(r), static_cast<int>(ranks_.size())};
      const ModelConfig mine = shard_config(config, shard);
      ShardedSource part(source, shard, r + 1 < ranks_.size());
      on_one(r, [&] { ranks_[r].backend->load(mine, part); });
    }
  }

  // Of all ranks together where they share a memory.
  int64_t page_bytes() const override {
    int64_t sum = 0, most = 0;
    for (const Rank& rank : ranks_) {
      sum += rank.backend->page_bytes();
      most = std::max(most, rank.backend->page_bytes());
    }
    return free_bytes() < 0 ? sum : most;
  }

  int64_t free_bytes() const override {
    std::vector<int64_t> free(ranks_.size());
    for (size_t r = 0; r < ranks_.size(); ++r) {
      on_one(r, [&] { free[r] = ranks_[r].backend->free_bytes(); });
    }
    return *std::min_element(free.begin(), free.end());
  }

  void alloc_kv(int64_t pages) override {
    on_each([&](size_t r) { ranks_[r].backend->alloc_kv(pages); });
  }

  // The first rank gives the output; the others end with the layers.
  void step(const Batch& batch, const Output& output) override {
    Batch silent = batch;
    silent.num_rows = 0;
    silent.sampling = nullptr;
    on_each([&](size_t r) {
      ranks_[r].backend->step(r == 0 ? batch : silent, r == 0 ? output : Output{});
    });
  }

  std::vector<std::pair<std::string, std::string>> info() const override {
    auto result = ranks_[0].backend->info();
    int64_t bytes = 0;
    for (const Rank& rank : ranks_) {
      for (const auto& [name, value] : rank.backend->info()) {
        bytes += name == "weight_bytes" ? std::stoll(value) : 0;
      }
    }
    for (auto& [name, value] : result) {
      value = name == "weight_bytes" ? std::to_string(bytes) : value;
    }
    result.emplace_back("tensor_parallel", std::to_string(ranks_.size()));
    return result;
  }

private:
  struct Rank {
    std::unique_ptr<Backend> backend;
    mutable Worker worker;
  };

  void check_process() const {
    GPTOSS_CHECK(born_ == forks(), "tensor parallel: it belongs to the process that loaded it");
  }

  void on_one(size_t r, const std::function<void()>& task) const {
    check_process();
    ranks_[r].worker.start(task);
    if (const std::exception_ptr error = ranks_[r].worker.wait()) {
      std::rethrow_exception(error);
    }
  }

  // On all at the same time. What is wrong with a batch every rank finds by itself, before it
  // waits for another; but memory may run out on one alone, and then the others would wait for
  // ever: they are told, at once where the group can start again, else after some patience. What
  // the first to fail threw is thrown.
  void on_each(const std::function<void(size_t)>& task) {
    check_process();
    Failure failure;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      ranks_[r].worker.start([&task, &failure, r] {
        try {
          task(r);
        } catch (...) {
          failure.set(std::current_exception());
        }
      });
    }
    const bool can_restart = communicators_.front()->can_restart();
    constexpr std::chrono::milliseconds look(100);
    const std::chrono::milliseconds patience(can_restart ? 0 : 10000);
    std::chrono::milliseconds waited(0);
    bool aborted = false;
    for (Rank& rank : ranks_) {
      while (!rank.worker.wait_for(look)) {
        waited += failure.get() != nullptr ? look : std::chrono::milliseconds(0);
        if (waited > patience && !std::exchange(aborted, true)) {
          for (const auto& communicator : communicators_) {
            communicator->abort();
          }
        }
      }
    }
    if (aborted && can_restart) {
      communicators_.front()->restart();
    }
    if (const std::exception_ptr error = failure.get()) {
      std::rethrow_exception(error);
    }
  }

  // What the first of several threads to fail threw.
  class Failure {
  public:
    void set(const std::exception_ptr& error) {
      const std::lock_guard lock(mutex_);
      error_ = error_ != nullptr ? error_ : error;
    }
    std::exception_ptr get() const {
      const std::lock_guard lock(mutex_);
      return error_;
    }

  private:
    mutable std::mutex mutex_;
    std::exception_ptr error_;
  };

  // Backends end where they began.
  void close() {
    for (Rank& rank : ranks_) {
      rank.worker.start([&rank] { rank.backend.reset(); });
      rank.worker.wait();
    }
  }

  const uint32_t born_ = forks();
  std::vector<std::unique_ptr<Communicator>> communicators_;
  std::vector<Rank> ranks_;
};

}  // namespace

std::unique_ptr<Backend> make_parallel_backend(
    const Options& options, std::vector<std::unique_ptr<Communicator>> communicators,
    const std::function<std::unique_ptr<Backend>(const Options&)>& create) {
  return std::make_unique<ParallelBackend>(options, std::move(communicators), create);
}

}  // namespace gptoss
