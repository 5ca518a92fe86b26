// VICReg of fewer rows than columns, in one call. x: the centred rows of a view, s_d the squares of column d summed,
// n = N - 1. With ||x^T x|| = ||x x^T||,
//   covariance term = (||x x^T||^2 - sum_d s_d^2) / (D n^2), its gradient 4 (x x^T x - x s) / (D n^2).
#include "cpu/two_views.h"
#include "ops.h"

namespace ssl_fast {
namespace {

struct Terms {
  double invariance, variance, covariance, gamma, eps;
};

template <typename T>
void objective(TwoViews<T>& v, const Terms& terms, T* value, T* dz1, T* dz2) {
  const double free = static_cast<double>(std::max<int64_t>(v.N - 1, 1)), D = static_cast<double>(v.D);
  const double per_element = terms.invariance / (static_cast<double>(v.N) * D);
  const double quartic = terms.covariance / (D * free * free);
  v.sum_grams([](double) { return 1.0; });
  double total = quartic * (v.inner(0, 0) + v.inner(1, 1));
  if (dz1 != nullptr) v.scale_grams(static_cast<T>(4 * quartic));
  Buffer<double> parts(v.num_chunks);
  parallel_for(v.threads, v.num_chunks, [&](int64_t chunk, int slot) {
    const Range c = v.columns_of(chunk);
    T* rows[2] = {v.scratch_of(slot, 0), v.scratch_of(slot, 1)};
    T *out = v.scratch_of(slot, 2), *apart = v.scratch_of(slot, 3);
    double* sums = v.sums_of(slot);
    for (int view = 0; view < 2; ++view) v.load(view, c, rows[view]);
    // Of the views themselves: where they agree, the centred rows would have lost the difference's digits.
    for (int64_t k = 0; k < v.N * v.ld; ++k) apart[k] = rows[0][k] - rows[1][k];
    v.passes.sum_products(apart, apart, v.N, v.ld, c.size(), sums);
    double part = 0;
    for (int64_t d = 0; d < c.size(); ++d) part += per_element * sums[d];
    for (int view = 0; view < 2; ++view) {
      v.shift(view, c, rows[view]);
      T* weight = reinterpret_cast<T*>(sums);
      for (int64_t d = 0; d < c.size(); ++d) {
        const double square = v.squares[view * v.D + c.begin + d], std = std::sqrt(square / free + terms.eps);
        const double missing = terms.gamma - std;
        part += (missing > 0 ? missing * terms.variance / D : 0) - quartic * square * square;
        const double slope = missing > 0 ? -terms.variance / (D * free) / std : 0;
        weight[d] = static_cast<T>(slope - square * 4 * quartic);
      }
      if (dz1 == nullptr) continue;
      std::fill(out, out + v.padded * v.ld, T(0));
      const T sign = static_cast<T>((view == 0 ? 2 : -2) * per_element);
      for (int64_t k = 0; k < v.N * v.ld; ++k) out[k] = sign * apart[k];
      v.passes.add_weighed(rows[view], weight, v.N, v.ld, c.size(), out);
      v.add_gram_product(view, rows[view], c.size(), out);
      v.store(out, c, view == 0 ? dz1 : dz2);
    }
    parts[chunk] = part;
  });
  for (int64_t chunk = 0; chunk < v.num_chunks; ++chunk) total += parts[chunk];
  *value = static_cast<T>(total);
}

}  // namespace

void vicreg(Address z1, Address z2, int dtype, int64_t N, int64_t D, double invariance, double variance,
            double covariance, double gamma, double eps, Address value, Address dz1, Address dz2, int threads) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    TwoViews<T> views(z1, z2, dtype, N, D, threads);
    objective(views, {invariance, variance, covariance, gamma, eps}, reinterpret_cast<T*>(value),
              reinterpret_cast<T*>(dz1), reinterpret_cast<T*>(dz2));
  };
  static_cast<DType>(dtype) == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
