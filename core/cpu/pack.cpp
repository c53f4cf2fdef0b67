#include "core/cpu/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/cpu/ggml.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints and panels are");

constexpr int64_t lane_bytes = 4;  // of one row, in mxfp4 and q8 and as a pair in bf16
constexpr int64_t group_bytes = panel_rows * lane_bytes;

// words (count) of one row → every sixteenth place of a panel.
void scatter(const uint32_t* words, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * group_bytes, words + i, lane_bytes);
  }
}

// Four bytes of published nibbles, k = 0 … 7 from the lowest bits up, in the order of a panel:
// even columns in the lower half, odd ones in the upper, at equal bits.
uint32_t pair_nibbles(uint32_t published) {
  const uint32_t even = published & 0x0f0f0f0fu;
  const uint32_t odd = published >> 4 & 0x0f0f0f0fu;
  const uint32_t even_pairs = (even | even >> 4) & 0x00ff00ffu;
  const uint32_t odd_pairs = (odd | odd >> 4) & 0x00ff00ffu;
  return ((even_pairs | even_pairs >> 8) & 0xffffu) | (odd_pairs | odd_pairs >> 8) << 16;
}

// Rows are taken in stretches whose intermediate values stay in the first-level cache; the loops
// over a stretch are simple enough for the compiler to vectorise.
constexpr int64_t stretch = 16 * panel_block;

void pack_mxfp4_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const int64_t count = from.cols / mx_block;
  const uint8_t* blocks = from.blocks + row * count * mx_block_bytes;
  const uint8_t* scales = from.scales + row * count;
  constexpr int64_t columns_per_word = 8;
  for (int64_t k = 0; k < from.cols; k += stretch) {
    uint32_t words[stretch / columns_per_word];
    const int64_t n = std::min(stretch, from.cols - k) / columns_per_word;
    std::memcpy(words, blocks + k / 2, static_cast<size_t>(n * lane_bytes));
    for (int64_t i = 0; i < n; ++i) {
      words[i] = pair_nibbles(words[i]);
    }
    scatter(words, n, panel + k / columns_per_word * group_bytes + r * lane_bytes);
  }
  uint8_t* panel_scales = panel + count * panel_block_bytes(WeightFormat::mxfp4) + r;
  for (int64_t b = 0; b < count; ++b) {
    panel_scales[b * panel_rows] = scales[b];
  }
}

void pack_bf16_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const bf16* w = from.weight + row * from.cols;
  for (int64_t k = 0; k < from.cols; k += stretch) {
    uint32_t pairs[stretch / 2 + 1];
    const int64_t n = std::min(stretch, from.cols - k);
    pairs[n / 2] = 0;  // an odd last column's partner
    std::memcpy(pairs, w + k, static_cast<size_t>(n) * sizeof(bf16));
    scatter(pairs, (n + 1) / 2, panel + k / 2 * group_bytes + r * lane_bytes);
  }
}

// The smallest bf16 that is not below `value`, which is finite and not negative.
bf16 round_up_to_bf16(float value) {
  return bf16{static_cast<uint16_t>((float_to_bits(value) + 0xffffu) >> 16)};
}

// To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no fraction bits.
float round_to_integer(float x) {
  constexpr float no_fraction = 12582912.0f;
  return (x + no_fraction) - no_fraction;
}

// Four bytes k0 … k3, of int8, in the order of a panel.
uint32_t order_int8(uint32_t bytes) {
  return (bytes & 0xff0000ffu) | (bytes & 0x0000ff00u) << 8 | (bytes & 0x00ff0000u) >> 8;
}

void pack_q8_0_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const int64_t count = from.cols / panel_block;
  const uint8_t* block = from.q8_0 + row * count * ggml_q8_0_bytes;
  uint8_t* panel_scales = panel + count * panel_block_bytes(WeightFormat::q8_0);
  for (int64_t b = 0; b < count; ++b, block += ggml_q8_0_bytes) {
    uint32_t words[panel_block / 4];
    std::memcpy(words, block + 2, sizeof words);
    for (uint32_t& word : words) {
      word = order_int8(word);
    }
    scatter(words, panel_block / 4,
            panel + b * panel_block_bytes(WeightFormat::q8_0) + r * lane_bytes);
    std::memcpy(panel_scales + (b * panel_rows + r) * 2, block, 2);
  }
}

void pack_q8_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const bf16* w = from.weight + row * from.cols;
  const int64_t count = panel_blocks(from.cols);
  uint8_t* panel_scales = panel + count * panel_block_bytes(WeightFormat::q8);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t n = std::min<int64_t>(panel_block, from.cols - b * panel_block);
    float value[panel_block] = {};
    for (int64_t i = 0; i < n; ++i) {
      value[i] = to_float(w[b * panel_block + i]);
    }
    uint32_t largest = 0;  // magnitudes of floats are ordered as their bits are
    for (const float v : value) {
      largest = std::max(largest, float_to_bits(v) & 0x7fffffffu);
    }
    // What is not finite stays visible: the whole block becomes NaN.
    const bool finite = largest < 0x7f800000u;
    const bf16 scale = finite ? round_up_to_bf16(bits_to_float(largest) / 127.0f) : bf16{0x7fc0};
    const float step = finite && largest > 0 ? to_float(scale) : INFINITY;
    uint32_t words[panel_block / 4] = {};
    for (int i = 0; i < panel_block; ++i) {
      const float q = finite ? round_to_integer(value[i] / step) : 0.0f;
      const auto byte = static_cast<uint32_t>(static_cast<int32_t>(q)) & 0xffu;
      constexpr int place[4] = {0, 2, 1, 3};
      words[i / 4] |= byte << (8 * place[i % 4]);
    }
    scatter(words, panel_block / 4,
            panel + b * panel_block_bytes(WeightFormat::q8) + r * lane_bytes);
    std::memcpy(panel_scales + (b * panel_rows + r) * 2, &scale, sizeof scale);
  }
}

}  // namespace

void pack_panels(const PackSource& from, WeightFormat format, uint8_t* to, int64_t begin,
                 int64_t end) {
  const int64_t bytes = panel_bytes(format, from.cols);
  for (int64_t p = begin; p < end; ++p) {
    uint8_t* panel = to + p * bytes;
    std::memset(panel, 0, static_cast<size_t>(bytes));
    for (int r = 0; r < panel_rows && p * panel_rows + r < from.rows; ++r) {
      const int64_t row = p * panel_rows + r;
      switch (format) {
        case WeightFormat::bf16:
          pack_bf16_row(from, row, r, panel);
          break;
        case WeightFormat::mxfp4:
          pack_mxfp4_row(from, row, r, panel);
          break;
        case WeightFormat::q8:
          pack_q8_row(from, row, r, panel);
          break;
        case WeightFormat::q8_0:
          pack_q8_0_row(from, row, r, panel);
          break;
      }
    }
  }
}

void pack_matrix(const PackSource& from, WeightFormat format, uint8_t* to, ThreadPool& threads) {
  const bool fits = format == WeightFormat::mxfp4  ? from.blocks != nullptr
                    : format == WeightFormat::q8_0 ? from.q8_0 != nullptr
                                                   : from.weight != nullptr;
  GPTOSS_CHECK(fits,
               "pack: MXFP4 weights become mxfp4 panels, Q8_0 ones q8_0, bf16 ones bf16 or q8 ({} "
               "asked for)",
               static_cast<int>(format));
  parallel_for(threads, panel_count(from.rows), panel_rows * from.cols,
               [&](int64_t p, int) { pack_panels(from, format, to, p, p + 1); });
}

void pack_matrix(const PackSource& from, WeightFormat format, uint8_t* to, int threads) {
  ThreadPool pool(threads);
  pack_matrix(from, format, to, pool);
}

}  // namespace gptoss::cpu
