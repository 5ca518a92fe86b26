// The classes of SupCon and the sums of their rows: all that the positives contribute, in O(N D).
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/parallel.h"

namespace ssl_fast {

// Without classes every row has one positive. A pair (a class of two) needs no sums: it is treated as NT-Xent's pairs.
template <typename T>
class ClassSums {
 public:
  // coef: weights of the rows' losses, for the backward; null: none.
  ClassSums(const Contrast<T>& c, int threads, const T* coef = nullptr)
      : c_(c), begins_(has_classes() ? c.N + 2 : 0, 0), members_(has_classes() ? c.N : 0), slots_(0) {
    if (!has_classes()) return;
    sort_members();
    int64_t num_sums = 0;
    slots_ = Buffer<int64_t>(c.N, -1);
    for (int64_t id = 0; id < c.N; ++id) {
      if (size(id) > 2) slots_[id] = num_sums++;
    }
    sums_ = Buffer<T>(num_sums * c.ld);
    if (coef != nullptr) shared_ = Buffer<T>(num_sums * c.ld);
    parallel_for(threads, c.N, [&](int64_t id, int) {
      if (slots_[id] < 0) return;
      add_members(id, nullptr, sum(id));
      if (coef != nullptr) add_members(id, coef, shared_.get() + slots_[id] * c_.ld);
    });
  }

  int64_t num_positives(int64_t i) const {
    if (!has_classes()) return 1;
    return c_.classes[i] < 0 ? 0 : size(c_.classes[i]) - 1;
  }

  // Mean of s_ip over the positives p of row i, which has two or more.
  double mean_logit(int64_t i) const {
    const T* z = c_.row(i);
    const double others = static_cast<double>(c_.t.dot(z, sum(c_.classes[i]), c_.width)) - c_.t.dot(z, z, c_.width);
    return c_.inv_temperature * others / num_positives(i);
  }

  // dz_i -= sum_p (share_i + share_p) z_p with share_i = coef_i / |P(i)|, over the positives of a row with two or more.
  void pull(int64_t i, T share, T* dz) const {
    const int64_t id = c_.classes[i];
    c_.t.axpy(-share, sum(id), dz, c_.width);
    c_.t.axpy(T(-1), shared_.get() + slots_[id] * c_.ld, dz, c_.width);
    c_.t.axpy(2 * share, c_.row(i), dz, c_.width);  // itself, which is in both sums
  }

 private:
  bool has_classes() const { return c_.classes != nullptr; }
  int64_t size(int64_t id) const { return begins_[id + 1] - begins_[id]; }
  T* sum(int64_t id) { return sums_.get() + slots_[id] * c_.ld; }
  const T* sum(int64_t id) const { return sums_.get() + slots_[id] * c_.ld; }

  // Rows of class id: members_[begins_[id]] .. members_[begins_[id + 1] - 1], in rising order.
  void sort_members() {
    for (int64_t i = 0; i < c_.N; ++i) {
      if (c_.classes[i] >= 0) ++begins_[c_.classes[i] + 2];
    }
    for (int64_t id = 2; id < c_.N + 2; ++id) begins_[id] += begins_[id - 1];
    for (int64_t i = 0; i < c_.N; ++i) {
      if (c_.classes[i] >= 0) members_[begins_[c_.classes[i] + 1]++] = i;
    }
  }

  void add_members(int64_t id, const T* coef, T* total) {
    std::fill(total, total + c_.ld, T(0));
    for (int64_t k = begins_[id]; k < begins_[id + 1]; ++k) {
      const int64_t i = members_[k];
      c_.t.axpy(coef == nullptr ? T(1) : coef[i] / static_cast<T>(size(id) - 1), c_.row(i), total, c_.width);
    }
  }

  const Contrast<T>& c_;
  Buffer<int64_t> begins_, members_;
  Buffer<int64_t> slots_;          // [N] of a class: its place among the sums, -1 where it has none
  Buffer<T> sums_{0}, shared_{0};  // [number of sums, ld] sum of z, sum of coef / |P| z
};

}  // namespace ssl_fast
