#include "core/cpu/ggml.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "core/cpu/threads.h"

namespace gptoss::cpu {

namespace {

static_assert(std::endian::native == std::endian::little, "files are");

// The low nibbles of 8 bytes, packed: byte i of the result holds those of bytes 2i and 2i + 1.
uint32_t gather_nibbles(uint64_t bytes) {
  uint64_t x = bytes & 0x0f0f0f0f0f0f0f0full;
  x = (x | x >> 4) & 0x00ff00ff00ff00ffull;
  x = (x | x >> 8) & 0x0000ffff0000ffffull;
  return static_cast<uint32_t>(x | x >> 16);
}

// 16 bytes that hold values i and i + 16 → 16 bytes that hold 2i and 2i + 1.
void publish(const uint8_t* from, uint8_t* to) {
  uint64_t word[2];
  std::memcpy(word, from, sizeof word);
  const uint32_t published[4] = {gather_nibbles(word[0]), gather_nibbles(word[1]),
                                 gather_nibbles(word[0] >> 4), gather_nibbles(word[1] >> 4)};
  std::memcpy(to, published, sizeof published);
}

void unpack_row(const uint8_t* from, bool halves, int64_t count, uint8_t* blocks, uint8_t* scales) {
  for (int64_t b = 0; b < count; ++b, from += ggml_mxfp4_bytes, blocks += mx_block_bytes) {
    scales[b] = from[0];
    if (halves) {
      publish(from + 1, blocks);
    } else {
      std::memcpy(blocks, from + 1, mx_block_bytes);
    }
  }
}

}  // namespace

void unpack_mxfp4(const uint8_t* from, bool halves, int64_t rows, int64_t count, const MxRows& to,
                  int threads) {
  ThreadPool pool(threads);
  parallel_for(pool, rows, count * mx_block, [&](int64_t row, int) {
    unpack_row(from + row * count * ggml_mxfp4_bytes, halves, count,
               to.blocks + row * to.block_stride, to.scales + row * to.scale_stride);
  });
}

bool dequantize_q8_0(const uint8_t* from, int64_t count, bf16* out, int threads) {
  ThreadPool pool(threads);
  constexpr int64_t stretch = 1024;  // blocks of a task
  std::atomic<bool> finite = true;
  parallel_for(pool, (count + stretch - 1) / stretch, stretch * mx_block, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * stretch);
    for (int64_t b = task * stretch; b < end; ++b) {
      const uint8_t* block = from + b * ggml_q8_0_bytes;
      uint16_t half;
      std::memcpy(&half, block, sizeof half);
      if ((half & 0x7c00u) == 0x7c00u) {
        finite = false;
      }
      const float scale = half_to_float(half);
      for (int i = 0; i < mx_block; ++i) {
        const auto q = static_cast<int8_t>(block[2 + i]);
        out[b * mx_block + i] = to_bf16(static_cast<float>(q) * scale);
      }
    }
  });
  return finite;
}

}  // namespace gptoss::cpu
