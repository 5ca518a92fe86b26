// The sums of the rows of each class: all that the positives contribute to SupCon's loss, in O(N D).
#pragma once

#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/contrast.h"

namespace ssl_fast {

// Of classes of three rows and more: a pair needs no sum, it is treated as NT-Xent's pairs are.
template <typename T>
class ClassSums {
 public:
  explicit ClassSums(const Contrast<T>& c) : c_(c), slots_(c.N, -1) {
    int64_t num_sums = 0;
    for (int64_t i = 0; i < c.N; ++i) {
      if (c.num_positives(i) > 1 && slots_[c.classes[i]] < 0) slots_[c.classes[i]] = num_sums++;
    }
    sums_ = Buffer<T>(num_sums * c.ld, T(0));
    for (int64_t i = 0; i < c.N; ++i) {
      if (c.num_positives(i) > 1) c.t.axpy(T(1), c.row(i), sum_of_class(i), c.width);
    }
  }

  // Mean of s_ip over the positives p of row i, which has two or more.
  double mean_logit(int64_t i) const {
    const T* z = c_.row(i);
    const double others = static_cast<double>(c_.t.dot(z, sum_of_class(i), c_.width)) - c_.t.dot(z, z, c_.width);
    return c_.inv_temperature * others / c_.num_positives(i);
  }

 private:
  T* sum_of_class(int64_t i) { return sums_.get() + slots_[c_.classes[i]] * c_.ld; }
  const T* sum_of_class(int64_t i) const { return sums_.get() + slots_[c_.classes[i]] * c_.ld; }

  const Contrast<T>& c_;
  Buffer<int64_t> slots_;  // [N] of a class: its place among the sums
  Buffer<T> sums_{0};      // [number of sums, ld]
};

}  // namespace ssl_fast
