// Where things lie in memory: index arithmetic alone, the same on host and device, tested on the
// host.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace gptoss::cuda {

// --- Shared memory ---

// A tile whose rows are `pieces` (a power of two) of 16 bytes. Where piece p of row r lies: the
// eight rows that ldmatrix reads at once lie in different banks, because a row's pieces change
// places with its number. With pieces == 8 it is what TMA calls the 128-byte swizzle. Eight rows on
// lies the same piece eight rows further on, swizzled_rows(8, pieces).
GPTOSS_INLINE int swizzled(int row, int piece, int pieces) {
  const int rows_a_line = pieces >= 8 ? 1 : 8 / pieces;  // of 128 bytes, which hold all banks
  const int mask = (pieces >= 8 ? 8 : pieces) - 1;
  return (row * pieces + (piece ^ (row / rows_a_line & mask))) * 16;
}

GPTOSS_INLINE int swizzled_rows(int rows, int pieces) { return rows * pieces * 16; }

// --- Keys and values ---

// A page holds K and then V of page_size tokens, (kv_heads, page_size, head_dim) each. Element of
// the pool where a token's row begins.
GPTOSS_INLINE int64_t kv_element(int64_t page, int64_t page_stride, int kv_heads, int head_dim,
                                 int tokens_a_page, bool value, int head, int slot) {
  const int64_t row = (static_cast<int64_t>(value ? kv_heads + head : head)) * tokens_a_page + slot;
  return page * page_stride + row * head_dim;
}

// --- Experts, packed for mma.m16n8k16 and wgmma ---
//
// A tile is 16 rows, a chunk 64 columns of it. Lane l of a warp owns 16 bytes of a chunk: a word
// for each 16 columns with the eight values that are its part of operand A, so that a word turns
// into the four registers of A (unpack_fragment). Chunks of a tile, tiles of an expert, and experts
// follow each other. Beside them a chunk has 32 bytes of scales: for each g = l / 4 those of rows g
// and g + 8, of the first and the second 32 columns.
constexpr int tile_rows = 16;
constexpr int chunk_columns = 64;
constexpr int chunk_bytes = tile_rows * chunk_columns / 2;
constexpr int chunk_scales = tile_rows * 2;

GPTOSS_INLINE int chunks_of(int columns) { return (columns + chunk_columns - 1) / chunk_columns; }

// Number of the chunk among all of a layer's.
GPTOSS_INLINE int64_t chunk_index(int expert, int tile, int chunk, int rows, int columns) {
  return (static_cast<int64_t>(expert) * (rows / tile_rows) + tile) * chunks_of(columns) + chunk;
}

// Row r of a tile is this row of the published matrix. Paired: gate and up alternate there; here a
// tile's rows g and g + 8 are gate and up of one unit, which one lane's sums then hold.
GPTOSS_INLINE int source_row(int tile, int r, bool paired) {
  return tile * tile_rows + (paired ? r % 8 * 2 + r / 8 : r);
}

// The eight values of lane l's word `step` of a chunk: row of the tile and column of the chunk of
// value i; 2 · j and 2 · j + 1 make register j of A.
struct Place {
  int row, column;
};
GPTOSS_INLINE Place place_of(int lane, int step, int i) {
  const int j = i / 2;
  return {lane / 4 + j % 2 * 8, step * 16 + j / 2 * 8 + lane % 4 * 2 + i % 2};
}

// Byte of a chunk's scales for a row of the tile and half of the columns.
GPTOSS_INLINE int scale_place(int row, int half) { return row % 8 * 4 + row / 8 * 2 + half; }

// A word: each half holds four codes, the first of each pair in the lower half. A code's three bits
// of magnitude lie together, its sign by itself, so that one or two shifts and masks bring a pair
// to bf16's sign (bit 15) and to the lowest two bits of its exponent and the highest of its
// mantissa (8 … 6).
struct CodePlace {
  int sign, magnitude;
};
GPTOSS_INLINE CodePlace code_place(int pair) {
  constexpr int sign[4] = {15, 12, 13, 14}, magnitude[4] = {6, 3, 0, 9};
  return {sign[pair], magnitude[pair]};
}

GPTOSS_INLINE uint32_t pack_codes(const uint8_t (&codes)[8]) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const CodePlace place = code_place(i / 2);
    const int half = i % 2 * 16;
    word |= static_cast<uint32_t>(codes[i] & 7u) << (place.magnitude + half);
    word |= static_cast<uint32_t>(codes[i] >> 3) << (place.sign + half);
  }
  return word;
}

// The word as four pairs of bf16, each 2^-126 of its value: e2m1's exponent and mantissa, zero and
// the subnormal included, read as bf16's.
GPTOSS_INLINE void spread_codes(uint32_t word, uint32_t (&pairs)[4]) {
  constexpr uint32_t signs = 0x80008000u, magnitudes = 0x01c001c0u;
  pairs[0] = word & (signs | magnitudes);
  pairs[1] = word << 3 & (signs | magnitudes);
  pairs[2] = (word << 6 & magnitudes) | (word << 2 & signs);
  pairs[3] = (word >> 3 & magnitudes) | (word << 1 & signs);
}

// A scale byte twice as bf16 in a word: 2^(byte − 127), exact (byte 0: a subnormal).
GPTOSS_INLINE uint32_t scale_pair(uint32_t byte) {
  const uint32_t bits = byte == 0 ? 0x0040u : byte << 7;
  return bits | bits << 16;
}

}  // namespace gptoss::cuda
