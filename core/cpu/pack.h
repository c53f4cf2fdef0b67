// Published weights → panels (core/cpu/panels.h).
#pragma once

#include <cstdint>

#include "core/cpu/panels.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

// Rows of a matrix as published: bf16 (weight), or MXFP4 (blocks, scales); or as GGUF has them.
struct PackSource {
  const bf16* weight = nullptr;     // (rows, cols), or null
  const uint8_t* blocks = nullptr;  // (rows, cols / 32, 16), where weight is null
  const uint8_t* scales = nullptr;  // (rows, cols / 32)
  const uint8_t* q8_0 = nullptr;    // (rows, cols / 32, 34), a float16 scale first, or null
  int64_t rows = 0, cols = 0;
};

// Fills panels [begin, end) of `to`: (panel_count(rows), panel_bytes(format, cols)). From bf16 to
// bf16 or q8, from MXFP4 to mxfp4, from Q8_0 to q8_0, unchanged. q8: per row and block, scale =
// bf16(max |w| / 127) rounded up, q = round(w / scale), so that |w − q · scale| ≤ scale / 2.
void pack_panels(const PackSource& from, WeightFormat format, uint8_t* to, int64_t begin,
                 int64_t end);

// The same for all panels, spread over threads.
void pack_matrix(const PackSource& from, WeightFormat format, uint8_t* to, ThreadPool& threads);
// Over threads of its own.
void pack_matrix(const PackSource& from, WeightFormat format, uint8_t* to, int threads);

}  // namespace gptoss::cpu
