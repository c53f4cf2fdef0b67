// Index arithmetic of the CUDA backend's layouts, and the choosers of kernels and tiles.
#include <array>
#include <set>

#include "cuda/choose.h"
#include "cuda/layout.h"
#include "tests/core/test.h"

using namespace gptoss;
using namespace gptoss::cuda;

TEST(swizzled_tiles_hold_every_piece_once) {
  for (const int pieces : {2, 4, 8, 16}) {
    std::set<int> places;
    for (int row = 0; row < 64; ++row) {
      for (int piece = 0; piece < pieces; ++piece) {
        const int place = swizzled(row, piece, pieces);
        CHECK(place % 16 == 0 && place < 64 * pieces * 16);
        CHECK(place / (pieces * 16) == row || pieces < 8);
        CHECK(places.insert(place).second);
        if (row >= 8) {
          CHECK(place == swizzled(row - 8, piece, pieces) + swizzled_rows(8, pieces));
        }
      }
    }
  }
}

// ldmatrix reads 16 bytes of eight rows at once; shared memory has 32 banks of four bytes.
TEST(eight_rows_of_a_piece_lie_in_different_banks) {
  for (const int pieces : {4, 8, 16}) {
    for (int first = 0; first < 32; first += 8) {
      for (int piece = 0; piece < pieces; ++piece) {
        std::set<int> banks;
        for (int row = first; row < first + 8; ++row) {
          CHECK(banks.insert(swizzled(row, piece, pieces) / 16 % 8).second);
        }
      }
    }
  }
}

// What TMA writes and wgmma reads: bits 4 … 6 of an address, exclusive or bits 7 … 9.
TEST(eight_pieces_are_the_128_byte_swizzle) {
  for (int row = 0; row < 64; ++row) {
    for (int piece = 0; piece < 8; ++piece) {
      const int plain = row * 128 + piece * 16;
      CHECK(swizzled(row, piece, 8) == (plain ^ (plain >> 7 & 7) << 4));
    }
  }
}

TEST(keys_and_values_of_a_page_do_not_overlap) {
  constexpr int heads = 3, dim = 8, tokens = 16;
  constexpr int64_t stride = 5 * 2 * heads * tokens * dim;  // five layers' worth
  std::set<int64_t> rows;
  for (int64_t page = 0; page < 3; ++page) {
    for (const bool value : {false, true}) {
      for (int head = 0; head < heads; ++head) {
        for (int slot = 0; slot < tokens; ++slot) {
          const int64_t row = kv_element(page, stride, heads, dim, tokens, value, head, slot);
          CHECK(row % dim == 0 && row >= page * stride);
          CHECK(row < page * stride + 2 * heads * tokens * dim);
          CHECK(rows.insert(row).second);
        }
      }
    }
  }
}

TEST(words_of_codes_turn_into_the_numbers) {
  for (int code = 0; code < 16; ++code) {
    for (int at = 0; at < 8; ++at) {
      for (const uint8_t other : {uint8_t{0}, uint8_t{15}}) {
        std::array<uint8_t, 8> filled{};
        filled.fill(other);
        filled[static_cast<size_t>(at)] = static_cast<uint8_t>(code);
        uint8_t codes[8];
        std::copy(filled.begin(), filled.end(), codes);
        uint32_t pairs[4];
        spread_codes(pack_codes(codes), pairs);
        for (int i = 0; i < 8; ++i) {
          const auto bits = static_cast<uint16_t>(pairs[i / 2] >> (i % 2 * 16));
          const float wanted = e2m1_values[codes[i]];
          const float found = to_float(bf16{bits}) * 0x1p126f;
          CHECK(float_to_bits(found) == float_to_bits(wanted));  // the sign of zero, too
        }
      }
    }
  }
}

TEST(scales_are_powers_of_two) {
  for (uint32_t byte = 0; byte < 255; ++byte) {
    const uint32_t pair = scale_pair(byte);
    CHECK(pair >> 16 == (pair & 0xffffu));
    CHECK(to_float(bf16{static_cast<uint16_t>(pair)}) == e8m0_to_float(static_cast<uint8_t>(byte)));
  }
}

TEST(a_chunk_holds_every_value_and_scale_once) {
  std::set<int> values, scales;
  for (int lane = 0; lane < 32; ++lane) {
    for (int step = 0; step < 4; ++step) {
      for (int i = 0; i < 8; ++i) {
        const Place place = place_of(lane, step, i);
        CHECK(place.row >= 0 && place.row < tile_rows);
        CHECK(place.column / 16 == step && place.column < chunk_columns);
        CHECK(values.insert(place.row * chunk_columns + place.column).second);
      }
    }
  }
  for (int row = 0; row < tile_rows; ++row) {
    for (int half = 0; half < 2; ++half) {
      CHECK(scale_place(row, half) < chunk_scales);
      CHECK(scales.insert(scale_place(row, half)).second);
    }
  }
}

TEST(paired_rows_are_gate_and_up_of_one_unit) {
  std::set<int> rows;
  for (int tile = 0; tile < 4; ++tile) {
    for (int r = 0; r < tile_rows; ++r) {
      CHECK(source_row(tile, r, false) == tile * tile_rows + r);
      CHECK(rows.insert(source_row(tile, r, true)).second);
    }
    for (int g = 0; g < 8; ++g) {
      CHECK(source_row(tile, g, true) % 2 == 0);
      CHECK(source_row(tile, g + 8, true) == source_row(tile, g, true) + 1);
    }
  }
  CHECK(*rows.rbegin() == 4 * tile_rows - 1);
}

TEST(every_tile_is_walked_over_once) {
  for (const int m : {1, 128, 129, 1000, 5000}) {
    for (const int n : {1, 192, 2880, 5120}) {
      const TileGrid grid(m, n, 128, 192);
      std::set<std::pair<int, int>> tiles;
      for (int i = 0; i < grid.count(); ++i) {
        const TileGrid::Tile tile = grid.tile(i);
        CHECK(tile.m >= 0 && tile.m * 128 < m && tile.n >= 0 && tile.n * 192 < n);
        CHECK(tiles.insert({tile.m, tile.n}).second);
      }
      CHECK(static_cast<int>(tiles.size()) == (m + 127) / 128 * ((n + 191) / 192));
    }
  }
}

TEST(tiles_suit_the_matrix) {
  constexpr int gpu = 132;  // H200
  CHECK(hopper_tile(8192, 8192, 128, gpu) == 256);
  // 15 tiles of 192 are 2,880, without a rest.
  CHECK(hopper_tile(2048, 2880, 128, gpu) == 192);
  // Few tiles: narrow ones, for more multiprocessors.
  CHECK(hopper_tile(128, 5120, 128, gpu) == 128);
  CHECK(hopper_tile(1, 1, 128, 1) == 128);
}

TEST(few_rows_go_where_they_fit) {
  constexpr int hopper = 227 << 10, consumer = 99 << 10;
  CHECK(product_for(1, 2880, 9, hopper) == Product::few_rows);
  CHECK(product_for(16, 4096, 9, hopper) == Product::few_rows);
  CHECK(product_for(16, 4096, 12, consumer) == Product::tiles);
  CHECK(product_for(17, 2880, 9, hopper) == Product::tiles);
  CHECK(product_for(65, 2880, 9, hopper) == Product::hopper);
  CHECK(product_for(8192, 2880, 12, consumer) == Product::tiles);

  CHECK(expert_product_for(4, 32, 2880, 9) == ExpertProduct::few_rows);
  CHECK(expert_product_for(256, 32, 2880, 9) == ExpertProduct::few_rows);  // 64 tokens
  CHECK(expert_product_for(4, 32, 8192, 9) == ExpertProduct::tiles);
  CHECK(expert_product_for(1000, 32, 2880, 9) == ExpertProduct::tiles);
  CHECK(expert_product_for(32768, 32, 2880, 9) == ExpertProduct::hopper);
  CHECK(expert_product_for(32768, 32, 2880, 8) == ExpertProduct::tiles);
}

TEST(keys_are_split_where_blocks_are_few) {
  constexpr int gpu = 132;
  CHECK(decode_splits(1, 8, 1, gpu) == 1);
  CHECK(decode_splits(1, 8, 10, gpu) == 1);  // a window
  CHECK(decode_splits(1, 8, 2048, gpu) == 64);
  CHECK(decode_splits(8, 8, 2048, gpu) == 8);
  CHECK(decode_splits(64, 8, 2048, gpu) == 1);
}
