// What losses over the columns of a batch ask of an instruction set: passes over N rows of `width` columns, `ld` apart.
// Sums run in double whatever T: a mean much larger than the spread would take its digits. csrc/cpu/isa/columns.cpp.
#pragma once

#include <cstdint>

#include "cpu/tiles.h"

namespace ssl_fast {

template <typename T>
struct Columns {
  // sums[c] = sum_n rows[n][c]
  void (*sum)(const T* rows, int64_t N, int64_t ld, int64_t width, double* sums);
  // sums[c] = sum_n a[n][c] b[n][c]
  void (*sum_products)(const T* a, const T* b, int64_t N, int64_t ld, int64_t width, double* sums);
  // rows[n][c] = (rows[n][c] - shifts[c]) factors[c]
  void (*shift)(T* rows, int64_t N, int64_t ld, int64_t width, const T* shifts, const T* factors);
  // out[n][c] += rows[n][c] factors[c]
  void (*add_weighed)(const T* rows, const T* factors, int64_t N, int64_t ld, int64_t width, T* out);
  // out[n][c] = (out[n][c] - along[c] rows[n][c]) factors[c]
  void (*project)(const T* rows, const T* along, const T* factors, int64_t N, int64_t ld, int64_t width, T* out);
};

// The table of the chosen instruction set.
template <typename T>
const Columns<T>& columns();

}  // namespace ssl_fast
