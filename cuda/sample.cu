// sample: a block for each row of logits, with the meaning of core/sampler.h. Nothing is sorted:
// top-k and top-p are cuts in the order of likelihood, found digit by digit with a histogram of
// counts or of mass (radix selection). Mass is counted in integers, so that sums do not depend on
// the order in which threads add.
#include "cuda/kernels.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

namespace {

constexpr int threads = 512;
constexpr int warps = threads / warp_size;
constexpr int digit_bits = 8, digits = 1 << digit_bits;
constexpr double mass_unit = 0x1p40;  // of the most likely token; 2^18 tokens add up to 2^58

using Mass = unsigned long long;

// Larger for larger logits, as an unsigned number.
__device__ inline uint32_t order(float logit) {
  const uint32_t bits = float_to_bits(logit == 0.0f ? 0.0f : logit);  // −0 and 0 are equal
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

struct Shared {
  Mass scan[threads];
  Mass histogram[digits];
  double sums[warps];
  float largest[warps];
  int places[warps];
  int32_t top_ids[max_sampled_logprobs];
  int count;
  Mass answer;
  uint32_t digit;
  int id;
};

// The tokens that are still possible: more likely than `key`, or as likely and with an id up to
// `id`.
struct Cut {
  uint32_t key = 0;
  int id = INT32_MAX;
};
__device__ inline bool above(const Cut& cut, uint32_t key, int id) {
  return key > cut.key || (key == cut.key && id <= cut.id);
}

class Row {
public:
  __device__ Row(const SampleArgs& a, Shared& s)
      : a_(a),
        s_(s),
        row_(a.rows[blockIdx.x]),
        thread_(static_cast<int>(threadIdx.x)),
        original_(a.logits + static_cast<int64_t>(blockIdx.x) * a.vocab),
        logits_(original_) {}

  __device__ void run() {
    SampleResult result{};
    const Largest of_original = largest();
    if (of_original.nan < a_.vocab) {
      return give({of_original.nan, 0.0f, sample_nan});
    }
    if (!isfinite(of_original.value)) {
      return give({0, of_original.value, sample_not_finite});
    }
    const double normaliser =
        of_original.value + logf(static_cast<float>(sum_of_exp(of_original.value)));
    if (row_.n_logprobs > 0) {
      report(normaliser);
    }
    Largest now = of_original;
    if (modify()) {
      now = largest();
      if (!isfinite(now.value)) {
        return give({0, 0.0f, sample_nothing_left});
      }
    }
    result.token = now.id;
    if (row_.temperature > 0.0f) {
      max_ = now.value;
      inverse_temperature_ = 1.0f / row_.temperature;
      result.token = draw();
    }
    result.logprob = static_cast<float>(original_[result.token] - normaliser);
    give(result);
  }

private:
  struct Largest {
    float value;
    int id, nan;  // the first of each; nan: vocab where there is none
  };

  __device__ void give(const SampleResult& result) const {
    if (thread_ == 0) {
      a_.results[blockIdx.x] = result;
    }
  }

  __device__ Largest largest() {
    float most = -INFINITY;
    int id = INT32_MAX, nan = a_.vocab;
    for (int i = thread_; i < a_.vocab; i += threads) {
      const float logit = logits_[i];
      if (isnan(logit)) {
        nan = i < nan ? i : nan;
      } else if (logit > most || (logit == most && i < id)) {
        most = logit;
        id = i;
      }
    }
    const auto better = [&](float other, int its) {
      if (other > most || (other == most && its < id)) {
        most = other;
        id = its;
      }
    };
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, most, distance);
      const int its = __shfl_xor_sync(0xffffffffu, id, distance);
      const int its_nan = __shfl_xor_sync(0xffffffffu, nan, distance);
      better(other, its);
      nan = its_nan < nan ? its_nan : nan;
    }
    __syncthreads();
    if (thread_ % warp_size == 0) {
      s_.largest[thread_ / warp_size] = most;
      s_.places[thread_ / warp_size] = id;
      s_.scan[thread_ / warp_size] = static_cast<Mass>(nan);
    }
    __syncthreads();
    for (int w = 0; w < warps; ++w) {
      better(s_.largest[w], s_.places[w]);
      nan = static_cast<int>(s_.scan[w]) < nan ? static_cast<int>(s_.scan[w]) : nan;
    }
    __syncthreads();
    return {most, id, nan};
  }

  __device__ double sum_of_exp(float max) {
    double sum = 0.0;
    float part = 0.0f;
    for (int i = thread_; i < a_.vocab; i += threads) {
      part += expf(logits_[i] - max);
    }
    sum = part;
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    __syncthreads();
    if (thread_ % warp_size == 0) {
      s_.sums[thread_ / warp_size] = sum;
    }
    __syncthreads();
    sum = 0.0;
    for (int w = 0; w < warps; ++w) {
      sum += s_.sums[w];
    }
    return sum;
  }

  // Bias, penalties and mask, in a copy. False where there are none.
  __device__ bool modify() {
    if (row_.bias_begin == row_.bias_end && row_.history_begin == row_.history_end &&
        row_.mask < 0) {
      return false;
    }
    float* copy = a_.modified + static_cast<int64_t>(blockIdx.x) * a_.vocab;
    for (int i = thread_; i < a_.vocab; i += threads) {
      copy[i] = logits_[i];
    }
    logits_ = copy;
    __syncthreads();
    if (thread_ == 0) {  // in their order: a token may have several
      for (int i = row_.bias_begin; i < row_.bias_end; ++i) {
        copy[a_.bias_ids[i]] += a_.bias_values[i];
      }
    }
    __syncthreads();
    for (int i = row_.history_begin + thread_; i < row_.history_end; i += threads) {
      float& logit = copy[a_.history_ids[i]];
      const auto count = static_cast<float>(a_.history_counts[i]);
      logit = logit > 0.0f ? logit / row_.repetition_penalty : logit * row_.repetition_penalty;
      if (count > 0.0f) {
        logit -= row_.presence_penalty + row_.frequency_penalty * count;
      }
    }
    __syncthreads();
    if (row_.mask >= 0) {
      const uint32_t* mask = a_.masks + row_.mask * ((int64_t{a_.vocab} + 31) / 32);
      for (int i = thread_; i < a_.vocab; i += threads) {
        if ((mask[i / 32] >> (i % 32) & 1u) == 0) {
          copy[i] = -INFINITY;
        }
      }
      __syncthreads();
    }
    return true;
  }

  __device__ float weight(int id) const {
    return expf((logits_[id] - max_) * inverse_temperature_);
  }
  __device__ Mass mass(int id) const {
    return static_cast<Mass>(static_cast<double>(weight(id)) * mass_unit);
  }
  __device__ bool possible(int id) const {
    return above(cut_, order(logits_[id]), id) && weight(id) >= row_.min_p;
  }

  // Lowers the cut to the most likely tokens above it whose `measure` together reaches `target`.
  template <class Measure>
  __device__ void keep(Cut& cut, Mass target, const Measure& measure) {
    uint32_t prefix = 0;
    Mass missing = target;
    for (int shift = 32 - digit_bits; shift >= 0; shift -= digit_bits) {
      const uint32_t fixed = shift == 32 - digit_bits ? 0u : ~0u << (shift + digit_bits);
      __syncthreads();
      for (int i = thread_; i < digits; i += threads) {
        s_.histogram[i] = 0;
      }
      __syncthreads();
      for (int i = thread_; i < a_.vocab; i += threads) {
        const uint32_t key = order(logits_[i]);
        if ((key & fixed) == prefix && above(cut, key, i)) {
          atomicAdd(&s_.histogram[key >> shift & (digits - 1)], measure(i));
        }
      }
      __syncthreads();
      if (thread_ == 0) {
        int digit = digits - 1;
        while (digit > 0 && s_.histogram[digit] < missing) {
          missing -= s_.histogram[digit--];
        }
        s_.digit = static_cast<uint32_t>(digit);
        s_.answer = missing;
      }
      __syncthreads();
      prefix |= s_.digit << shift;
      missing = s_.answer;
    }
    // Equally likely tokens are taken by their ids; all of them have the same measure.
    const int begin = segment(thread_), end = segment(thread_ + 1);
    Mass mine = 0;
    for (int i = begin; i < end; ++i) {
      const uint32_t key = order(logits_[i]);
      mine += key == prefix && above(cut, key, i) ? measure(i) : 0;
    }
    const Mass before = exclusive_sum(mine);
    if (thread_ == 0) {
      s_.id = INT32_MAX;  // rounding may leave the last one short of the target
    }
    __syncthreads();
    if (before < missing && missing <= before + mine) {
      Mass sum = before;
      for (int i = begin; i < end; ++i) {
        const uint32_t key = order(logits_[i]);
        sum += key == prefix && above(cut, key, i) ? measure(i) : 0;
        if (sum >= missing) {
          s_.id = i;
          break;
        }
      }
    }
    __syncthreads();
    cut = {prefix, s_.id};
  }

  __device__ int segment(int thread) const {
    return static_cast<int>(static_cast<int64_t>(a_.vocab) * thread / threads);
  }

  // Σ of the threads before this one; s_.answer: of all.
  __device__ Mass exclusive_sum(Mass mine) {
    __syncthreads();
    s_.scan[thread_] = mine;
    for (int distance = 1; distance < threads; distance *= 2) {
      __syncthreads();
      const Mass other = thread_ >= distance ? s_.scan[thread_ - distance] : 0;
      __syncthreads();
      s_.scan[thread_] += other;
    }
    __syncthreads();
    s_.answer = s_.scan[threads - 1];
    return s_.scan[thread_] - mine;
  }

  __device__ int draw() {
    cut_ = Cut{};
    if (row_.top_k > 0 && row_.top_k < a_.vocab) {
      keep(cut_, static_cast<Mass>(row_.top_k), [](int) { return Mass{1}; });
    }
    if (row_.top_p < 1.0f) {
      Mass mine = 0;
      for (int i = thread_; i < a_.vocab; i += threads) {
        mine += above(cut_, order(logits_[i]), i) ? mass(i) : 0;
      }
      (void)exclusive_sum(mine);
      const auto wanted =
          static_cast<Mass>(ceil(static_cast<double>(row_.top_p) * static_cast<double>(s_.answer)));
      keep(cut_, wanted > 0 ? wanted : 1, [&](int i) { return mass(i); });
    }
    // In the order of ids.
    const int begin = segment(thread_), end = segment(thread_ + 1);
    Mass mine = 0;
    for (int i = begin; i < end; ++i) {
      mine += possible(i) ? mass(i) : 0;
    }
    const Mass before = exclusive_sum(mine);
    const Mass total = s_.answer;
    auto target = static_cast<Mass>(row_.uniform * static_cast<double>(total));
    target = target < total ? target : total - 1;
    if (before <= target && target < before + mine) {
      Mass sum = before;
      for (int i = begin; i < end; ++i) {
        sum += possible(i) ? mass(i) : 0;
        if (target < sum) {
          s_.id = i;
          break;
        }
      }
    }
    __syncthreads();
    return s_.id;
  }

  // The most likely tokens, in their order.
  __device__ void report(double normaliser) {
    Cut cut;
    const int count = row_.n_logprobs;
    keep(cut, static_cast<Mass>(count), [](int) { return Mass{1}; });
    __syncthreads();
    if (thread_ == 0) {
      s_.count = 0;
    }
    __syncthreads();
    for (int i = thread_; i < a_.vocab; i += threads) {
      if (above(cut, order(logits_[i]), i)) {
        s_.top_ids[atomicAdd(&s_.count, 1)] = i;
      }
    }
    __syncthreads();
    const int64_t to = static_cast<int64_t>(blockIdx.x) * a_.max_logprobs;
    if (thread_ < count) {
      const int id = s_.top_ids[thread_];
      int rank = 0;
      for (int i = 0; i < count; ++i) {
        const int other = s_.top_ids[i];
        rank += logits_[other] > logits_[id] || (logits_[other] == logits_[id] && other < id);
      }
      a_.top_ids[to + rank] = id;
      a_.top_logprobs[to + rank] = static_cast<float>(logits_[id] - normaliser);
    }
    __syncthreads();
  }

  const SampleArgs& a_;
  Shared& s_;
  const SampleRow row_;
  const int thread_;
  const float* original_;
  const float* logits_;  // with bias and penalties, once they are applied
  float max_ = 0.0f, inverse_temperature_ = 0.0f;
  Cut cut_;
};

__global__ void __launch_bounds__(threads, 1) sample_kernel(SampleArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  Row(a, *reinterpret_cast<Shared*>(shared)).run();
}

}  // namespace

void sample(const SampleArgs& a, const Stream& stream) {
  GPTOSS_CHECK(a.row_count > 0 && a.vocab > 0 && a.vocab <= 1 << 18 &&
                   a.max_logprobs <= max_sampled_logprobs,
               "sample: expected rows of at most {} tokens, at most {} logprobs, found {} rows of "
               "{}, {} logprobs",
               1 << 18, max_sampled_logprobs, a.row_count, a.vocab, a.max_logprobs);
  launch({"sample", {a.row_count, a.vocab}}, sample_kernel, {a.row_count, 1, 1}, threads,
         sizeof(Shared), stream, a);
}

}  // namespace gptoss::cuda
