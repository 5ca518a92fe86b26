// What losses over given logits ask of an instruction set: passes over one aligned row of `width` numbers, a multiple
// of every vector. Sums run in double from block to block. Implemented in csrc/cpu/isa/logits.cpp.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace ssl_fast {

// Where a row goes on to whole vectors: 2^(it - any logit) is 0, and differences are defined.
constexpr double kNever = -1e30;

template <typename T>
struct Logits {
  T (*highest)(const T* x, int64_t width);
  // x = x factor + bias, and the highest of them
  T (*scores)(T* x, T factor, const T* bias, int64_t width);
  // e = 2^(x - highest), and their sum
  double (*exponentials)(const T* x, T highest, int64_t width, T* e);
  // sums[d] += 2^(x[d] - offset[d]); where x[d] exceeds offset[d] by too much, that is raised and sums[d] rescaled
  void (*add_exponentials)(const T* x, int64_t width, T* offset, T* sums);
  // sum weights (log_sum - x)
  double (*cross)(const T* weights, T log_sum, const T* x, int64_t width);
  // e = (e factor - weights) coef
  void (*gradient)(const T* weights, T factor, T coef, int64_t width, T* e);
};

// The table of the chosen instruction set.
template <typename T>
const Logits<T>& logits();

}  // namespace ssl_fast
