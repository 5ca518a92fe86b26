// Rows in: any element type, normalised, padded; and their transposed panels.
#pragma once

#include "cpu/isa/products.h"
#include "cpu/isa/vec.h"
#include "cpu/tiles.h"

namespace ssl_fast::SSL_FAST_ISA {

inline float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

struct BFloat16 {
  uint16_t bits;
  operator float() const { return as_float(static_cast<uint32_t>(bits) << 16); }
};

struct Float16 {
  uint16_t bits;
  // Exponent and mantissa shifted into place and rescaled by 2^112, which is exact for subnormals too.
  operator float() const {
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const bool special = magnitude >= 0x0f800000u;  // infinity or NaN
    const float scaled = as_float(magnitude) * 0x1p112f;
    uint32_t result;
    __builtin_memcpy(&result, &scaled, sizeof(result));
    if (special) result = magnitude | 0x7f800000u;
    return as_float(result | sign);
  }
};

template <typename T, typename From>
void copy_row(const From* from, int64_t D, T* to, int64_t ld) {
  for (int64_t d = 0; d < D; ++d) to[d] = static_cast<T>(from[d]);
  for (int64_t d = D; d < ld; ++d) to[d] = 0;
}

// In double whatever T: the squares of a float row may not fit a float.
template <typename T>
T norm(const T* row, int64_t ld) {
  double total[8] = {};
  for (int64_t d = 0; d < ld; d += 8) {
    for (int lane = 0; lane < 8; ++lane) total[lane] += static_cast<double>(row[d + lane]) * row[d + lane];
  }
  const double low = (total[0] + total[4]) + (total[1] + total[5]);
  const double high = (total[2] + total[6]) + (total[3] + total[7]);
  return static_cast<T>(__builtin_sqrt(low + high));
}

template <typename T>
void load_row(const void* x, DType dtype, int64_t r, int64_t D, T* row, int64_t ld) {
  switch (dtype) {
    case DType::float32:
      return copy_row(static_cast<const float*>(x) + r * D, D, row, ld);
    case DType::float64:
      return copy_row(static_cast<const double*>(x) + r * D, D, row, ld);
    case DType::bfloat16:
      return copy_row(static_cast<const BFloat16*>(x) + r * D, D, row, ld);
    case DType::float16:
      return copy_row(static_cast<const Float16*>(x) + r * D, D, row, ld);
  }
}

template <typename T>
void load_rows(const void* x, DType dtype, int64_t num_rows, int64_t D, bool normalize, T* rows, int64_t ld, T* norms) {
  for (int64_t r = 0; r < num_rows; ++r, rows += ld) {
    load_row(x, dtype, r, D, rows, ld);
    if (norms == nullptr) continue;
    norms[r] = norm(rows, ld);
    if (!normalize) continue;
    const T least = static_cast<T>(1e-12);
    const T divisor = norms[r] < least ? least : norms[r];
    for (int64_t d = 0; d < D; ++d) rows[d] /= divisor;
  }
}

template <typename T>
void pack_panels(const T* rows, int64_t ld, int64_t num_rows, int64_t D, T* panels) {
  for (int64_t begin = 0; begin < num_rows; begin += kPanel<T>, panels += D * kPanel<T>) {
    const int64_t count = num_rows - begin < kPanel<T> ? num_rows - begin : kPanel<T>;
    for (int64_t r = 0; r < kPanel<T>; ++r) {
      const T* row = rows + (begin + r) * ld;
      for (int64_t d = 0; d < D; ++d) panels[d * kPanel<T> + r] = r < count ? row[d] : T(0);
    }
  }
}

template <typename T>
T dot(const T* a, const T* b, int64_t width) {
  Vec<T> total = {};
  for (int64_t d = 0; d < width; d += kLanes<T>) total += load(a + d) * load(b + d);
  return sum<T>(total);
}

template <typename T>
void axpy(T alpha, const T* x, T* y, int64_t width) {
  for (int64_t d = 0; d < width; d += kLanes<T>) store(y + d, load(y + d) + alpha * load(x + d));
}

template <typename T>
void scale(T alpha, T* y, int64_t width) {
  for (int64_t d = 0; d < width; d += kLanes<T>) store(y + d, load(y + d) * alpha);
}

}  // namespace ssl_fast::SSL_FAST_ISA
