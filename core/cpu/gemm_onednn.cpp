#include "cpu/gemm_onednn.h"

#include "check.h"
#include "cpu/threads.h"

#ifdef GPTOSS_HAVE_ONEDNN
#include <array>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace gptoss::cpu {

#ifdef GPTOSS_HAVE_ONEDNN

namespace {

// The bf16 kernels need AVX-512; oneDNN's fallback below that is a plain loop.
bool cpu_has_bf16_gemm() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::isa_default:
    case dnnl::cpu_isa::sse41:
    case dnnl::cpu_isa::avx:
    case dnnl::cpu_isa::avx2:
    case dnnl::cpu_isa::avx2_vnni:
      return false;
    default:
      return true;
  }
}

}  // namespace

struct DenseGemm::State {
  using Shape = std::array<int64_t, 4>;  // rows, n, cols, y_stride
  struct Plan {
    dnnl::matmul::primitive_desc description;
    dnnl::matmul primitive;
  };
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Shape, Plan> plans;
  bool usable = cpu_has_bf16_gemm();

  const Plan& plan(const Shape& shape) {
    const auto found = plans.find(shape);
    if (found != plans.end()) {
      return found->second;
    }
    using Type = dnnl::memory::data_type;
    const auto [rows, n, cols, y_stride] = shape;
    const dnnl::memory::desc x({rows, cols}, Type::bf16, dnnl::memory::dims{cols, 1});
    const dnnl::memory::desc w({cols, n}, Type::bf16, dnnl::memory::dims{1, cols});
    const dnnl::memory::desc y({rows, n}, Type::f32, dnnl::memory::dims{y_stride, 1});
    const dnnl::matmul::primitive_desc description(engine, x, w, y);
    return plans.emplace(shape, Plan{description, dnnl::matmul(description)}).first->second;
  }
};

DenseGemm::DenseGemm(int threads) {
  const ThreadCountScope scope(threads);
  state_ = std::make_unique<State>();
}

DenseGemm::~DenseGemm() = default;

bool DenseGemm::available() const { return state_->usable; }

void DenseGemm::matmul(const bf16* x, const bf16* w, float* y, int64_t rows, int64_t n,
                       int64_t cols, int64_t y_stride) {
  try {
    const State::Plan& plan = state_->plan({rows, n, cols, y_stride});
    const auto memory = [&](const dnnl::memory::desc& desc, const void* data) {
      return dnnl::memory(desc, state_->engine, const_cast<void*>(data));
    };
    plan.primitive.execute(state_->stream,
                           {{DNNL_ARG_SRC, memory(plan.description.src_desc(), x)},
                            {DNNL_ARG_WEIGHTS, memory(plan.description.weights_desc(), w)},
                            {DNNL_ARG_DST, memory(plan.description.dst_desc(), y)}});
    state_->stream.wait();
  } catch (const dnnl::error& error) {
    throw Error(
        format("oneDNN matmul ({} x {}) · ({} x {}): {}", rows, cols, cols, n, error.what()));
  }
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return format("{}.{}.{}", version->major, version->minor, version->patch);
}

#else

struct DenseGemm::State {};

DenseGemm::DenseGemm([[maybe_unused]] int threads) {}

DenseGemm::~DenseGemm() = default;

bool DenseGemm::available() const { return false; }

void DenseGemm::matmul(const bf16*, const bf16*, float*, int64_t, int64_t, int64_t, int64_t) {
  throw Error("this build has no oneDNN");
}

std::string onednn_version() { return ""; }

#endif

}  // namespace gptoss::cpu
