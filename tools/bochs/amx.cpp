// matmul_bf16 with tile instructions and with emulated tiles: the same bits? Runs without an
// operating system and says what it found on port 0xe9.
#include "core/cpu/kernels/table.h"

namespace gptoss::cpu {
extern const Kernels kernels_amx;
extern const Kernels kernels_amx_emulated;
}  // namespace gptoss::cpu

// What the kernels call of the C library.
extern "C" {
void* memset(void* to, int byte, size_t n) {
  auto* at = static_cast<volatile unsigned char*>(to);
  while (n-- > 0) {
    *at++ = static_cast<unsigned char>(byte);
  }
  return to;
}
void* memcpy(void* to, const void* from, size_t n) {
  auto* at = static_cast<volatile unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  while (n-- > 0) {
    *at++ = *source++;
  }
  return to;
}
float fmaf(float a, float b, float c) {
  asm("vfmadd231ss %1, %2, %0" : "+x"(c) : "x"(a), "x"(b));
  return c;
}
float sqrtf(float x) {
  asm("vsqrtss %0, %0, %0" : "+x"(x));
  return x;
}
}

namespace gptoss::cpu {
namespace {

void put(char c) { asm volatile("outb %0, $0xe9" : : "a"(c)); }

void say(const char* text) {
  while (*text != '\0') {
    put(*text++);
  }
}

void say(int64_t number) {
  if (number >= 10) {
    say(number / 10);
  }
  put(static_cast<char>('0' + number % 10));
}

uint32_t random_bits() {
  static uint64_t state = 88172645463325252u;  // xorshift64
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<uint32_t>(state >> 16);
}

// Either sign, exponent low … high.
bf16 random_bf16(int low, int high) {
  const uint32_t exponent = low + random_bits() % (high - low + 1);
  return {static_cast<uint16_t>((random_bits() & 0x807f) | exponent << 7)};
}

uint8_t* next_free;

template <class T>
T* allocate(int64_t n, uint8_t byte) {
  auto* begin = next_free;
  const auto bytes = static_cast<size_t>(n) * sizeof(T);
  next_free += (bytes + 127) / 64 * 64;
  memset(begin, byte, bytes);
  return reinterpret_cast<T*>(begin);
}

// Weights whose scales (bf16: themselves) have exponents low … high.
const uint8_t* random_panels(WeightFormat format, int64_t rows, int64_t cols, int low, int high) {
  const int64_t bytes = panel_bytes(format, cols);
  const int64_t body = panel_blocks(cols) * panel_block_bytes(format);
  auto* data = allocate<uint8_t>(panel_count(rows) * bytes, 0);
  for (int64_t i = 0; i < panel_count(rows) * bytes; ++i) {
    const bool scale = i % bytes >= body;
    if (format == WeightFormat::mxfp4 || !(scale || format == WeightFormat::bf16)) {
      data[i] =
          static_cast<uint8_t>(scale ? low + random_bits() % (high - low + 1) : random_bits());
    } else if (i % 2 == 0) {
      const bf16 value = random_bf16(low, high);
      memcpy(data + i, &value, sizeof value);
    }
  }
  return data;
}

bool same(WeightFormat format, int64_t rows, int64_t n, int64_t k, bool with_bias, int low,
          int high) {
  next_free = reinterpret_cast<uint8_t*>(0x1000000);
  const int64_t blocks = panel_blocks(k);
  auto* x = allocate<bf16>((rows + 15) / 16 * blocks * 512, 0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < k; ++c) {
      x[((r / 16 * blocks + c / 32) * 16 + r % 16) * 32 + c % 32] = random_bf16(120, 129);
    }
  }
  auto* bias = allocate<bf16>(n, 0);
  for (int64_t i = 0; i < n; ++i) {
    bias[i] = random_bf16(120, 129);
  }
  constexpr int64_t past = 16;  // what lies past the result must stay
  auto* y = allocate<uint32_t>(rows * n + past, 0xff);
  auto* expected = allocate<uint32_t>(rows * n + past, 0xff);
  MatmulArgs a;
  a.x.product = Product::bf16;
  a.x.tiles = x;
  a.rows = rows;
  a.w.format = format;
  a.w.rows = n;
  a.w.cols = k;
  a.w.data = random_panels(format, n, k, low, high);
  a.w.bias = with_bias ? bias : nullptr;
  a.y_stride = n;
  a.end = panel_count(n);
  a.scratch = allocate<uint8_t>(matmul_scratch, 0xff);
  a.y = reinterpret_cast<float*>(y);
  kernels_amx.matmul_of(Product::bf16)(a);
  memset(a.scratch, 0xff, matmul_scratch);
  a.y = reinterpret_cast<float*>(expected);
  kernels_amx_emulated.matmul_of(Product::bf16)(a);

  int64_t different = 0;
  for (int64_t i = 0; i < rows * n + past; ++i) {
    const auto is_nan = [](uint32_t bits) { return (bits & 0x7fffffff) > 0x7f800000; };
    different += y[i] != expected[i] && !(is_nan(y[i]) && is_nan(expected[i])) ? 1 : 0;
    different += i < rows * n && y[i] == 0xffffffff ? 1 : 0;
  }
  constexpr const char* names[] = {"bf16", "mxfp4", "q8"};
  say(names[static_cast<int>(format)]);
  say(" [");
  say(rows);
  say(", ");
  say(k);
  say("] x [");
  say(n);
  say(", ");
  say(k);
  say("], exponents ");
  say(low);
  say(" to ");
  say(high);
  say(different == 0 ? ": same\n" : ": DIFFERENT\n");
  return different == 0;
}

bool all_same() {
  bool ok = true;
  for (const auto format : {WeightFormat::bf16, WeightFormat::mxfp4, WeightFormat::q8}) {
    for (const int64_t rows : {1, 15, 16, 17, 31, 33, 64, 100}) {
      ok &= same(format, rows, 48, 96, rows % 2 == 0, 119, 128);
      const int64_t odd = format == WeightFormat::mxfp4 ? 352 : 341;
      ok &= same(format, rows, 17 + rows % 3 * 16, odd, true, 119, 128);
    }
    ok &= same(format, 33, 66, 1440, true, 119, 128);
    ok &= same(format, 530, 40, 800, true, 119, 128);  // more operands than the cache holds
  }
  ok &= same(WeightFormat::mxfp4, 20, 40, 352, true, 0, 254);
  ok &= same(WeightFormat::mxfp4, 20, 40, 352, true, 0, 6);
  ok &= same(WeightFormat::mxfp4, 20, 40, 352, false, 248, 254);
  return ok;
}

}  // namespace
}  // namespace gptoss::cpu

extern "C" void amx_main() {
  gptoss::cpu::say(gptoss::cpu::all_same() ? "ALL PASS\n" : "FAILED\n");
}
