// matmul_f32 in portable vectors (see kernels_impl.h, which includes this file): a block of a panel
// is widened once, then multiplied with every row of a row block.
#pragma once

namespace gptoss::cpu {
namespace {

// 32 columns of a panel as float32: (panel_block, panel_rows).
GPTOSS_INLINE void widen_block(const Panels& w, const uint8_t* panel, int64_t b, float* out) {
  const uint8_t* bytes = panel + b * panel_block_bytes(w.format);
  const uint8_t* scales =
      panel + panel_blocks(w.cols) * panel_block_bytes(w.format) + b * panel_scale_bytes(w.format);
  for (int k = 0; k < panel_block; ++k) {
    for (int r = 0; r < panel_rows; ++r) {
      float value;
      if (w.format == WeightFormat::bf16) {
        bf16 bits;
        memcpy(&bits, bytes + ((k / 2) * panel_rows * 2 + r * 2 + k % 2) * 2, sizeof bits);
        value = to_float(bits);
      } else if (w.format == WeightFormat::mxfp4) {
        // The byte and the nibble of column k % 8: panel.h's table.
        const int place = (k & 1) * 2 + (k >> 2 & 1);
        const int code = bytes[(k / 8) * panel_rows * 4 + r * 4 + place] >> (k & 2 ? 4 : 0) & 15;
        value = e2m1_values[code] * e8m0_to_float(scales[r]);
      } else {
        const int place = (k & 1) * 2 + (k >> 1 & 1);
        bf16 scale;
        memcpy(&scale, scales + r * 2, sizeof scale);
        value = static_cast<float>(
                    static_cast<int8_t>(bytes[(k / 4) * panel_rows * 4 + r * 4 + place])) *
                to_float(scale);
      }
      out[k * panel_rows + r] = value;
    }
  }
}

void matmul_f32(const MatmulF32Args& a) {
  constexpr int64_t rows_at_once = 4;
  const int64_t bytes = panel_bytes(a.w.format, a.w.cols);
  const int64_t blocks = panel_blocks(a.w.cols);
  for (int64_t p = a.begin; p < a.end; ++p) {
    const uint8_t* panel = a.w.data + p * bytes;
    const int64_t n = p * panel_rows;
    const int64_t count = a.w.rows - n < panel_rows ? a.w.rows - n : panel_rows;
    for (int64_t first = 0; first < a.rows; first += rows_at_once) {
      const int64_t rows = a.rows - first < rows_at_once ? a.rows - first : rows_at_once;
      Wide sum[rows_at_once];
      for (Wide& s : sum) {
        s = wide_zero();
      }
      for (int64_t b = 0; b < blocks; ++b) {
        float block[panel_block * panel_rows];
        widen_block(a.w, panel, b, block);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = a.row_ids != nullptr ? a.row_ids[first + r] : first + r;
          const float* x = a.x + row * a.x_stride + b * panel_block;
          Wide part = wide_zero();
          for (int k = 0; k < panel_block; ++k) {
            Wide value = wide_load(block + k * panel_rows);
            wide_scale(value, x[k]);
            for (int i = 0; i < parts; ++i) {
              part.part[i] += value.part[i];
            }
          }
          for (int i = 0; i < parts; ++i) {
            sum[r].part[i] += part.part[i];
          }
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        float lanes_of_row[panel_rows];
        wide_store(lanes_of_row, sum[r]);
        for (int64_t i = 0; i < count; ++i) {
          const float bias = a.w.bias != nullptr ? to_float(a.w.bias[n + i]) : 0.0f;
          a.y[(first + r) * a.y_stride + n + i] = lanes_of_row[i] + bias;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu
