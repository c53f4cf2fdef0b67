// Steps of decoding as CUDA graphs: launched with one call instead of two hundred.
#pragma once

#include <functional>
#include <list>
#include <tuple>

#include "cuda/runtime.h"

namespace gptoss::cuda {

// Everything that a captured step's launches depend on, apart from what lies in its inputs.
struct GraphKey {
  int tokens, rows, max_blocks, splits;
  int64_t inputs, workspace;  // generations of the buffers
  auto values() const { return std::tie(tokens, rows, max_blocks, splits, inputs, workspace); }
  bool operator==(const GraphKey& other) const { return values() == other.values(); }
};

class Graphs {
public:
  // Runs `launches` the first time a key comes, captures it the second time, and from then on
  // launches the graph.
  void run(const GraphKey& key, const Stream& stream, const std::function<void()>& launches) {
#ifdef GPTOSS_CUDA_EMULATED
    (void)key;
    (void)stream;
    launches();
#else
    for (auto found = graphs_.begin(); found != graphs_.end(); ++found) {
      if (found->key == key) {
        graphs_.splice(graphs_.begin(), graphs_, found);
        if (found->graph == nullptr) {
          capture(*found, stream, launches);
        }
        check(cudaGraphLaunch(found->graph, stream.handle), "cudaGraphLaunch");
        return;
      }
    }
    launches();
    graphs_.emplace_front(key);
    if (graphs_.size() > most) {
      graphs_.pop_back();
    }
#endif
  }

#ifndef GPTOSS_CUDA_EMULATED
private:
  static constexpr size_t most = 64;

  struct Captured {
    GraphKey key;
    cudaGraphExec_t graph = nullptr;
    explicit Captured(const GraphKey& of) : key(of) {}
    ~Captured() {
      if (graph != nullptr) {
        (void)cudaGraphExecDestroy(graph);
      }
    }
    Captured(const Captured&) = delete;
    Captured& operator=(const Captured&) = delete;
  };

  static void capture(Captured& to, const Stream& stream, const std::function<void()>& launches) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    try {
      launches();
    } catch (...) {
      (void)cudaStreamEndCapture(stream.handle, &graph);  // the stream is usable again
      (void)cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream.handle, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&to.graph, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiate");
  }

  std::list<Captured> graphs_;  // the last used first
#endif
};

}  // namespace gptoss::cuda
