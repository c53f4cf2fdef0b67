#include "cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "cpu/threads.h"

namespace gptoss::cpu {

namespace {

uint32_t load_u32(const uint8_t* from) {
  return static_cast<uint32_t>(from[0]) | static_cast<uint32_t>(from[1]) << 8 |
         static_cast<uint32_t>(from[2]) << 16 | static_cast<uint32_t>(from[3]) << 24;
}

void store_u32(uint8_t* to, uint32_t value) {
  for (int i = 0; i < 4; ++i) {
    to[i] = static_cast<uint8_t>(value >> (8 * i));
  }
}

// Four bytes of published nibbles, k = 0 … 7 from the lowest bits up, in the order of a panel:
// even columns in the lower half, odd ones in the upper, at equal bits.
uint32_t pair_nibbles(uint32_t published) {
  const auto every_other = [](uint32_t nibbles) {
    const uint32_t pairs = (nibbles | nibbles >> 4) & 0x00ff00ffu;
    return (pairs | pairs >> 8) & 0xffffu;
  };
  return every_other(published & 0x0f0f0f0fu) | every_other(published >> 4 & 0x0f0f0f0fu) << 16;
}

void pack_mxfp4_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const int64_t count = from.cols / mx_block;
  const uint8_t* blocks = from.blocks + row * count * mx_block_bytes;
  const uint8_t* scales = from.scales + row * count;
  constexpr int group_bytes = panel_rows * 4;
  uint8_t* panel_scales = panel + count * panel_block_bytes(WeightFormat::mxfp4);
  for (int64_t b = 0; b < count; ++b) {
    for (int g = 0; g < mx_block_bytes / 4; ++g) {
      store_u32(panel + (b * (mx_block_bytes / 4) + g) * group_bytes + r * 4,
                pair_nibbles(load_u32(blocks + b * mx_block_bytes + g * 4)));
    }
    panel_scales[b * panel_rows + r] = scales[b];
  }
}

void pack_bf16_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const bf16* w = from.weight + row * from.cols;
  for (int64_t k = 0; k < from.cols; ++k) {
    std::memcpy(panel + ((k / 2) * panel_rows * 2 + r * 2 + k % 2) * 2, &w[k], sizeof(bf16));
  }
}

// The smallest bf16 that is not below `value`, which is finite and not negative.
bf16 round_up_to_bf16(float value) {
  return bf16{static_cast<uint16_t>((float_to_bits(value) + 0xffffu) >> 16)};
}

void pack_q8_row(const PackSource& from, int64_t row, int r, uint8_t* panel) {
  const bf16* w = from.weight + row * from.cols;
  const int64_t count = panel_blocks(from.cols);
  uint8_t* panel_scales = panel + count * panel_block_bytes(WeightFormat::q8);
  constexpr int place[4] = {0, 2, 1, 3};
  for (int64_t b = 0; b < count; ++b) {
    const int64_t first = b * panel_block;
    const int64_t n = std::min<int64_t>(panel_block, from.cols - first);
    float largest = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) {
      const float magnitude = std::fabs(to_float(w[first + i]));
      finite = finite && std::isfinite(magnitude);
      largest = std::max(largest, magnitude);
    }
    // Not a number stays visible: the whole block becomes NaN.
    const bf16 scale = finite ? round_up_to_bf16(largest / 127.0f) : bf16{0x7fc0};
    const float step = to_float(scale);
    for (int64_t i = 0; i < n; ++i) {
      const float q = finite && step > 0.0f ? std::nearbyint(to_float(w[first + i]) / step) : 0.0f;
      panel[(first + i) / 4 * panel_rows * 4 + r * 4 + place[i % 4]] =
          static_cast<uint8_t>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
    }
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
      }
    }
  }
}

void pack_matrix(const PackSource& from, WeightFormat format, uint8_t* to, int threads) {
  GPTOSS_CHECK((format == WeightFormat::mxfp4) == (from.weight == nullptr),
               "pack: MXFP4 weights become mxfp4 panels, bf16 ones bf16 or q8 ({} asked for)",
               static_cast<int>(format));
  parallel_for(threads, panel_count(from.rows), panel_rows * from.cols,
               [&](int64_t p, int) { pack_panels(from, format, to, p, p + 1); });
}

}  // namespace gptoss::cpu
