#include "core/comm.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "core/check.h"

namespace gptoss {

namespace {

struct Group {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<float*> values;
  std::vector<int64_t> counts;
  std::vector<float> sum;
  int arrived = 0;
  uint64_t generation = 0;
  bool aborted = false;

  explicit Group(int ranks)
      : values(static_cast<size_t>(ranks)), counts(static_cast<size_t>(ranks)) {}

  // Until all ranks are here; the last one does `work` first.
  template <class Work>
  void meet(const Work& work) {
    std::unique_lock lock(mutex);
    const uint64_t mine = generation;
    if (++arrived == static_cast<int>(values.size())) {
      work();
      arrived = 0;
      ++generation;
      changed.notify_all();
      return;
    }
    changed.wait(lock, [&] { return generation != mine || aborted; });
    // A rank that has met the others goes on, even if one of them has failed since.
    GPTOSS_CHECK(generation != mine, "tensor parallel: another rank has failed");
  }
};

class ThreadCommunicator final : public Communicator {
public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(static_cast<size_t>(rank)) {}

  void all_reduce(float* values, int64_t count, void*) override {
    Group& g = *group_;
    {
      const std::lock_guard lock(g.mutex);
      GPTOSS_CHECK(!g.aborted, "tensor parallel: another rank has failed");
      g.values[rank_] = values;
      g.counts[rank_] = count;
    }
    g.meet([&] {
      const bool same = std::count(g.counts.begin(), g.counts.end(), g.counts[0]) ==
                        static_cast<std::ptrdiff_t>(g.counts.size());
      g.sum.assign(same ? static_cast<size_t>(g.counts[0]) : 0, 0.0f);
    });
    GPTOSS_CHECK(g.sum.size() == static_cast<size_t>(count),
                 "tensor parallel: ranks add up arrays of different lengths");
    // Each adds up its part for all.
    const auto ranks = static_cast<int64_t>(g.values.size());
    const int64_t begin = count * static_cast<int64_t>(rank_) / ranks;
    const int64_t end = count * (static_cast<int64_t>(rank_) + 1) / ranks;
    for (const float* from : g.values) {
      for (int64_t i = begin; i < end; ++i) {
        g.sum[static_cast<size_t>(i)] += from[i];
      }
    }
    g.meet([] {});
    std::copy(g.sum.begin(), g.sum.end(), values);
    g.meet([] {});  // before the next sum takes its place
  }

  void abort() override {
    const std::lock_guard lock(group_->mutex);
    group_->aborted = true;
    group_->changed.notify_all();
  }

  bool can_restart() const override { return true; }

  void restart() override {
    const std::lock_guard lock(group_->mutex);
    group_->aborted = false;
    group_->arrived = 0;  // those that waited have left
  }

private:
  std::shared_ptr<Group> group_;
  size_t rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> thread_communicators(int ranks) {
  const auto group = std::make_shared<Group>(ranks);
  std::vector<std::unique_ptr<Communicator>> result;
  result.reserve(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    result.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  }
  return result;
}

}  // namespace gptoss
