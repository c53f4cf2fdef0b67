// How the ranks of a tensor-parallel model add up what they have computed.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace gptoss {

// One rank's end. Every rank calls all_reduce equally often and with the same counts.
class Communicator {
public:
  virtual ~Communicator() = default;

  // values (count) of every rank become their sum, the same bits on all. On a GPU they are the
  // device's and the work is queued on `stream`; on the CPU the call waits for the other ranks.
  virtual void all_reduce(float* values, int64_t count, void* stream) = 0;

  // One rank has failed: ranks that wait for it, now or later, throw Error instead, until
  // restart().
  virtual void abort() = 0;

  // Whether sums are possible again after abort() and restart(), which one rank calls for all, when
  // none is in all_reduce any more. Where they are not, abort() ends the group for good.
  virtual bool can_restart() const = 0;
  virtual void restart() = 0;
};

// Ranks that are threads of this process, with values in memory that all of them see. Sums are in
// the order of ranks.
std::vector<std::unique_ptr<Communicator>> thread_communicators(int ranks);

}  // namespace gptoss
