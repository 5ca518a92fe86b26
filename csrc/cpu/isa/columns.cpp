// Passes over the columns of a few rows; the compiler vectorises the inner loops.
#include "cpu/columns.h"

#include "cpu/isa/vec.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename T>
void sum(const T* __restrict rows, int64_t N, int64_t ld, int64_t width, double* __restrict sums) {
  for (int64_t c = 0; c < width; ++c) sums[c] = 0;
  for (int64_t n = 0; n < N; ++n, rows += ld) {
    for (int64_t c = 0; c < width; ++c) sums[c] += static_cast<double>(rows[c]);
  }
}

template <typename T>
void sum_products(const T* a, const T* b, int64_t N, int64_t ld, int64_t width, double* __restrict sums) {
  for (int64_t c = 0; c < width; ++c) sums[c] = 0;
  for (int64_t n = 0; n < N; ++n, a += ld, b += ld) {
    for (int64_t c = 0; c < width; ++c) sums[c] += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  }
}

template <typename T>
void shift(T* __restrict rows, int64_t N, int64_t ld, int64_t width, const T* __restrict shifts,
           const T* __restrict factors) {
  for (int64_t n = 0; n < N; ++n, rows += ld) {
    for (int64_t c = 0; c < width; ++c) rows[c] = (rows[c] - shifts[c]) * factors[c];
  }
}

template <typename T>
void add_weighed(const T* __restrict rows, const T* __restrict factors, int64_t N, int64_t ld, int64_t width,
                 T* __restrict out) {
  for (int64_t n = 0; n < N; ++n, rows += ld, out += ld) {
    for (int64_t c = 0; c < width; ++c) out[c] += rows[c] * factors[c];
  }
}

template <typename T>
void project(const T* __restrict rows, const T* __restrict along, const T* __restrict factors, int64_t N, int64_t ld,
             int64_t width, T* __restrict out) {
  for (int64_t n = 0; n < N; ++n, rows += ld, out += ld) {
    for (int64_t c = 0; c < width; ++c) out[c] = (out[c] - along[c] * rows[c]) * factors[c];
  }
}

template <typename T>
constexpr Columns<T> table() {
  return {sum<T>, sum_products<T>, shift<T>, add_weighed<T>, project<T>};
}

}  // namespace

extern const Columns<float> columns_float32;
extern const Columns<double> columns_float64;
const Columns<float> columns_float32 = table<float>();
const Columns<double> columns_float64 = table<double>();

}  // namespace ssl_fast::SSL_FAST_ISA
