// From the losses of rows to one number: which rows count, by how much, and what that makes of each row's gradient.
#pragma once

#include <cstdint>

#include "cpu/buffer.h"

namespace ssl_fast {

// M rows, row i of sample i mod N. weight: [N] of the samples, or null: all 1. average: divide by the sum of weights.
template <typename T>
struct Weighted {
  // counts(i): whether row i is in the sum at all.
  template <typename Counts>
  Weighted(int64_t M, int64_t N, const T* weight, bool average, const Counts& counts)
      : M(M), N(N), counted(M), of_rows(M), coef(M) {
    double sum = 0;
    for (int64_t i = 0; i < M; ++i) {
      counted[i] = counts(i) ? T(1) : T(0);
      of_rows[i] = weight == nullptr ? counted[i] : counted[i] * weight[i % N];
      sum += of_rows[i];
    }
    scale = average && sum != 0 ? 1 / sum : 1;
    for (int64_t i = 0; i < M; ++i) coef[i] = static_cast<T>(of_rows[i] * scale);
  }
  Weighted(int64_t M, int64_t N, const T* weight, bool average)
      : Weighted(M, N, weight, average, [](int64_t) { return true; }) {}

  double value(const T* loss) const { return dot(of_rows.get(), loss) * scale; }
  double dot(const T* a, const T* b) const {
    double sum = 0;
    for (int64_t i = 0; i < M; ++i) sum += static_cast<double>(a[i]) * b[i];
    return sum;
  }

  // Of the value by the samples' weights, [N]; mean: the value where it is a mean, else 0.
  void gradient(const T* loss, double mean, T* dweight) const {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t i = n; i < M; i += N) sum += counted[i] * (loss[i] - mean);
      dweight[n] = static_cast<T>(sum * scale);
    }
  }

  const int64_t M, N;
  Buffer<T> counted, of_rows, coef;  // [M] each; coef: what each row's loss is multiplied by
  double scale;
};

template <typename T>
double total(const T* values, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += values[i];
  return sum;
}

}  // namespace ssl_fast
