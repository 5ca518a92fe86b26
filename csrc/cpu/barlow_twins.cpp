// Barlow Twins of fewer rows than columns, in one call. a, b: the views' columns at mean 0 and variance 1, and
// c_d = sum_n a_nd b_nd / N. With ||a^T b||^2 = <a a^T, b b^T>,
//   loss = sum_d (1 - c_d)^2 + lambda (<a a^T, b b^T> / N^2 - sum_d c_d^2)
//   da = 2 lambda / N^2 b b^T a + (2 (c - 1) - 2 lambda c) / N b, which the normalisation takes its part along a from.
#include "cpu/two_views.h"
#include "ops.h"

namespace ssl_fast {
namespace {

template <typename T>
void objective(TwoViews<T>& v, double lambda, double eps, T* value, T* dz1, T* dz2) {
  const double N = static_cast<double>(v.N);
  v.sum_grams([&](double square) { return 1 / std::sqrt(square / N + eps); });
  double total = lambda * v.inner(0, 1) / (N * N);
  if (dz1 != nullptr) v.scale_grams(static_cast<T>(2 * lambda / (N * N)));
  Buffer<double> parts(v.num_chunks);
  parallel_for(v.threads, v.num_chunks, [&](int64_t chunk, int slot) {
    const Range c = v.columns_of(chunk);
    T *rows[2] = {v.scratch_of(slot, 0), v.scratch_of(slot, 1)}, *out = v.scratch_of(slot, 2);
    T* numbers = v.scratch_of(slot, 3);  // per column: weight, share along
    for (int view = 0; view < 2; ++view) {
      v.load(view, c, rows[view]);
      v.shift(view, c, rows[view]);
    }
    double* sums = v.sums_of(slot);
    v.passes.sum_products(rows[0], rows[1], v.N, v.ld, c.size(), sums);
    double part = 0;
    T *weight = numbers, *along = numbers + v.ld;
    for (int64_t d = 0; d < c.size(); ++d) {
      const double correlation = sums[d] / N;
      part += (1 - correlation) * (1 - correlation) - lambda * correlation * correlation;
      weight[d] = static_cast<T>((2 * (correlation - 1) - 2 * lambda * correlation) / N);
    }
    parts[chunk] = part;
    if (dz1 == nullptr) return;
    for (int view = 0; view < 2; ++view) {
      const T *own = rows[view], *other = rows[1 - view];
      std::fill(out, out + v.padded * v.ld, T(0));
      v.passes.add_weighed(other, weight, v.N, v.ld, c.size(), out);
      v.add_gram_product(1 - view, own, c.size(), out);
      v.passes.sum_products(own, out, v.N, v.ld, c.size(), sums);
      for (int64_t d = 0; d < c.size(); ++d) {
        along[d] = static_cast<T>(sums[d] / N);
      }
      v.passes.project(own, along, v.factors.get() + view * v.D + c.begin, v.N, v.ld, c.size(), out);
      v.store(out, c, view == 0 ? dz1 : dz2);
    }
  });
  for (int64_t chunk = 0; chunk < v.num_chunks; ++chunk) total += parts[chunk];
  *value = static_cast<T>(total);
}

}  // namespace

void barlow_twins(Address z1, Address z2, int dtype, int64_t N, int64_t D, double lambda, double eps, Address value,
                  Address dz1, Address dz2, int threads) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    TwoViews<T> views(z1, z2, dtype, N, D, threads);
    objective(views, lambda, eps, reinterpret_cast<T*>(value), reinterpret_cast<T*>(dz1), reinterpret_cast<T*>(dz2));
  };
  static_cast<DType>(dtype) == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
