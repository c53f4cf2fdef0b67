#include "cuda/sampling.h"

#include <algorithm>

#include "core/check.h"

namespace gptoss::cuda {

template <class T>
T* DeviceSampling::reserve(DeviceMemory& memory, int64_t count, const Stream& stream) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  if (bytes > memory.bytes()) {
    synchronize(stream);
    const size_t grown = std::max(bytes, memory.bytes() * 3 / 2);
    memory = DeviceMemory();
    memory = DeviceMemory(grown);
  }
  return memory.as<T>();
}

void DeviceSampling::run(const float* logits, int vocab, const Batch& batch, const Output& output,
                         int first, int rows, const Stream& stream) {
  if (batch.sampling == nullptr) {
    synchronize(stream);
    return;
  }
  const SamplingRow* row = batch.sampling->rows + first;
  int most = 0;
  for (int r = 0; r < rows; ++r) {
    most = std::max(most, row[r].n_logprobs);
  }
  if (most <= max_sampled_logprobs && vocab <= 1 << 18) {
    on_device(logits, vocab, batch, output, first, rows, stream);
    return;
  }
  host_logits_.resize(static_cast<size_t>(rows) * static_cast<size_t>(vocab));
  copy_async_to(host_logits_.data(), logits, host_logits_.size() * sizeof(float), stream);
  synchronize(stream);
  sample_rows(host_logits_.data(), vocab, batch, first, rows, output, scratch_);
}

void DeviceSampling::on_device(const float* logits, int vocab, const Batch& batch,
                               const Output& output, int first, int rows, const Stream& stream) {
  const Sampling& s = *batch.sampling;
  std::vector<SampleRow> of_device(static_cast<size_t>(rows));
  bool modifies = false;
  int width = 0;
  for (int r = 0; r < rows; ++r) {
    const int at = first + r;
    const SamplingRow& p = s.rows[at];
    GPTOSS_CHECK(p.n_logprobs <= output.max_logprobs,
                 "batch: n_logprobs is {} (row {}), the output has room for {}", p.n_logprobs, at,
                 output.max_logprobs);
    width = std::max(width, p.n_logprobs);
    SampleRow& to = of_device[static_cast<size_t>(r)];
    to = {p.temperature,
          p.top_p,
          p.min_p,
          p.top_k,
          p.repetition_penalty,
          p.presence_penalty,
          p.frequency_penalty,
          p.n_logprobs,
          uniform_draw(p.seed, p.draw),
          0,
          0,
          0,
          0,
          s.mask_rows != nullptr ? s.mask_rows[at] : -1,
          0};
    const bool penalises =
        p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
    if (penalises && s.history_start != nullptr) {
      to.history_begin = s.history_start[at];
      to.history_end = s.history_start[at + 1];
    }
    if (s.bias_start != nullptr) {
      to.bias_begin = s.bias_start[at];
      to.bias_end = s.bias_start[at + 1];
    }
    modifies |= to.history_begin < to.history_end || to.bias_begin < to.bias_end || to.mask >= 0;
  }

  SampleArgs a{};
  a.logits = logits;
  a.row_count = rows;
  a.vocab = vocab;
  a.max_logprobs = width;
  const auto upload = [&](DeviceMemory& memory, const auto* values, int64_t count) {
    using T = std::remove_const_t<std::remove_reference_t<decltype(*values)>>;
    T* to = reserve<T>(memory, count, stream);
    if (count > 0) {
      copy_async_to(to, values, static_cast<size_t>(count) * sizeof(T), stream);
    }
    return static_cast<const T*>(to);
  };
  a.rows = upload(rows_, of_device.data(), rows);
  if (modifies) {
    const int end = batch.num_rows;
    const int64_t history = s.history_start != nullptr ? s.history_start[end] : 0;
    const int64_t bias = s.bias_start != nullptr ? s.bias_start[end] : 0;
    a.history_ids = upload(history_ids_, s.history_ids, history);
    a.history_counts = upload(history_counts_, s.history_counts, history);
    a.bias_ids = upload(bias_ids_, s.bias_ids, bias);
    a.bias_values = upload(bias_values_, s.bias_values, bias);
    a.masks = upload(masks_, s.masks, s.num_masks * mask_words(vocab));
    a.modified = reserve<float>(modified_, int64_t{rows} * vocab, stream);
  }
  a.results = reserve<SampleResult>(results_, rows, stream);
  a.top_ids = reserve<int32_t>(top_ids_, int64_t{rows} * width, stream);
  a.top_logprobs = reserve<float>(top_logprobs_, int64_t{rows} * width, stream);
  sample(a, stream);

  const size_t tops = static_cast<size_t>(rows) * static_cast<size_t>(width);
  const size_t bytes = static_cast<size_t>(rows) * sizeof(SampleResult) + tops * 8;
  if (host_.bytes() < bytes) {
    host_ = PinnedMemory(std::max(bytes, host_.bytes() * 3 / 2));
  }
  auto* results = host_.as<SampleResult>();
  auto* ids = reinterpret_cast<int32_t*>(results + rows);
  auto* logprobs = reinterpret_cast<float*>(ids + tops);
  copy_async_to(results, a.results, static_cast<size_t>(rows) * sizeof(SampleResult), stream);
  if (width > 0) {
    copy_async_to(ids, a.top_ids, tops * sizeof(int32_t), stream);
    copy_async_to(logprobs, a.top_logprobs, tops * sizeof(float), stream);
  }
  synchronize(stream);
  for (int r = 0; r < rows; ++r) {
    const int at = first + r;
    GPTOSS_CHECK(results[r].status != sample_nan, "logits of row {}: NaN at token {}", at,
                 results[r].token);
    GPTOSS_CHECK(results[r].status != sample_not_finite,
                 "logits of row {}: the largest must be finite, found {}", at, results[r].logprob);
    GPTOSS_CHECK(results[r].status != sample_nothing_left,
                 "logits of row {}: bias, penalties and mask leave no token possible", at);
    output.tokens[at] = results[r].token;
    output.logprobs[at] = results[r].logprob;
    for (int i = 0; i < output.max_logprobs; ++i) {
      const bool given = i < s.rows[at].n_logprobs;
      const int64_t to = int64_t{at} * output.max_logprobs + i;
      output.top_ids[to] = given ? ids[r * width + i] : -1;
      output.top_logprobs[to] = given ? logprobs[r * width + i] : 0.0f;
    }
  }
}

}  // namespace gptoss::cuda
