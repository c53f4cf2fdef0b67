// The seam between policy and arithmetic: a backend runs the whole model on a batch in one call.
// It chooses its own fusion and layouts. "cpu" is built in; others are shared libraries found at
// run time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/batch.h"
#include "core/comm.h"
#include "core/config.h"
#include "core/shard.h"
#include "core/weights.h"

namespace gptoss {

enum class Activation : int {
  bf16 = 0,  // operands of matrix products and the KV cache are rounded to bf16
  f32 = 1,   // nothing is rounded: for exact comparison
};

enum class KvFormat : int {
  bf16 = 0,  // float32 where the activation is f32
  int8 = 1,  // with a scale per token and head
};

struct Options {
  Activation activation = Activation::bf16;
  int threads = 0;  // 0: as many as the process may use
  DenseWeights weights = DenseWeights::published;
  KvFormat kv = KvFormat::bf16;
  int ranks = 1;  // of a tensor-parallel group
  // For a backend that is one rank of a group; its configuration is shard_config's.
  Shard shard;
  Communicator* communicator = nullptr;
};

class Backend {
public:
  virtual ~Backend() = default;

  // Called once, first.
  virtual void load(const ModelConfig& config, WeightSource& source) = 0;

  // Bytes of one page: K and V of page_size tokens for one group of layers.
  virtual int64_t page_bytes() const = 0;
  // Pages that fit into `bytes` bytes; at least 0.
  int64_t plan_kv(int64_t bytes) const { return bytes > 0 ? bytes / page_bytes() : 0; }
  // Memory of the device that the pool could take; -1 where it is the machine's own.
  virtual int64_t free_bytes() const { return -1; }
  // Allocates the pool; called once, before the first step.
  virtual void alloc_kv(int64_t pages) = 0;

  // Runs every layer on the batch's new tokens, stores their K and V, and fills the output. A throw
  // leaves the backend usable; pages that the batch would have written hold nothing of worth.
  virtual void step(const Batch& batch, const Output& output) = 0;

  // Names and values for people to read.
  virtual std::vector<std::pair<std::string, std::string>> info() const = 0;
};

// What a backend's shared library exports under the name gptoss_backend_plugin. `abi` is
// backend_abi of the headers it was built with; a mismatch is refused. Strings and vectors cross
// the seam, and those of libc++, which release wheels contain, are laid out otherwise than
// libstdc++'s.
constexpr int32_t libcxx_abi = 1000;
#ifdef _LIBCPP_VERSION
constexpr int32_t backend_abi = libcxx_abi + 4;
#else
constexpr int32_t backend_abi = 4;
#endif
struct BackendPlugin {
  int32_t abi;
  // False when the machine lacks the device; `reason` (of reason_size bytes) then says why.
  bool (*available)(char* reason, size_t reason_size);
  // A backend for the device number options.shard.rank.
  Backend* (*create)(const Options& options);
  // Fills `to` with one communicator for each of `ranks` devices.
  void (*communicators)(int ranks, std::vector<std::unique_ptr<Communicator>>& to);
};

}  // namespace gptoss
