// What the element loops of the whole-model updates share: half-precision numbers, dtypes, sums. Included once by each
// csrc/cpu/isa/*.cpp that needs it; everything is local to that file and its instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "ops.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kLanes = 32;  // independent partial sums: a fixed order whatever the instruction set

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  std::memcpy(&y, &x, sizeof(To));
  return y;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bit_cast<float>(std::uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  const float scaled = bit_cast<float>(rest << 13) * 0x1p112f;  // moves the exponent's bias, subnormals too
  const std::uint32_t special = rest >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<std::uint32_t>(scaled) | special | sign);
}

// Rounded to nearest, ties to even.
inline void narrow(float x, float& y) { y = x; }
inline void narrow(double x, double& y) { y = x; }
inline void narrow(float x, BFloat16& y) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  y.bits = std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void narrow(float x, Float16& y) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  const std::uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  const std::uint32_t small = bit_cast<std::uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3f000000u;  // 0.5 has its grid
  const std::uint32_t large = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  y.bits = std::uint16_t(sign | (rest >= 0x477ff000u ? large : rest < 0x38800000u ? small : normal));
}

template <typename T>
using Wide = decltype(widen(T()));

// Sum of the lanes, as doubles, in a fixed order.
template <typename A>
double total(const A* lanes) {
  double sum = 0;
  for (int k = 0; k < kLanes; ++k) sum += double(lanes[k]);
  return sum;
}

// Calls f with a value of the type that dtype names.
template <typename F>
auto visit(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(float());
    case DType::float64:
      return f(double());
    case DType::bfloat16:
      return f(BFloat16());
    case DType::float16:
      return f(Float16());
  }
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16");
}

}  // namespace
}  // namespace ssl_fast::SSL_FAST_ISA
