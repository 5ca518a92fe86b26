// BYOL's distance |u - v|^2 of unit rows u = p / |p|, v = z / |z|, and its gradient by p,
//   2 / |p| ((u - v) - <u, u - v> u).
// u - v keeps its digits where the rows align, and 1 - cos does not.
#include "cpu/contrast.h"
#include "cpu/weighted.h"
#include "ops.h"

namespace ssl_fast {
namespace {

constexpr int64_t kRowsEach = 16;  // of a task

struct Rows {
  Address p;
  DType p_dtype;
  Address z;
  DType z_dtype;
  int64_t N, D;
  bool normalize;
};

int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// loss [N]; dp [N, D] or null: the gradient of sum_n coef_n loss_n, all coef 1 where there are none.
template <typename T>
void distances(const Rows& rows, const T* coef, T* loss, T* dp, int threads) {
  const Tiles<T>& t = tiles<T>();
  const int64_t D = rows.D, ld = row_stride(t, D), num_tasks = (rows.N + kRowsEach - 1) / kRowsEach;
  Buffer<T> scratch(std::min<int64_t>(threads, num_tasks) * 2 * ld);
  parallel_for(threads, num_tasks, [&](int64_t task, int slot) {
    T *u = scratch.get() + slot * 2 * ld, *apart = u + ld, norms[2];
    for (int64_t n = task * kRowsEach; n < std::min(rows.N, (task + 1) * kRowsEach); ++n) {
      const auto* p = reinterpret_cast<const void*>(rows.p + n * D * bytes_of(rows.p_dtype));
      const auto* z = reinterpret_cast<const void*>(rows.z + n * D * bytes_of(rows.z_dtype));
      t.load_rows(p, rows.p_dtype, 1, D, rows.normalize, u, ld, norms);
      t.load_rows(z, rows.z_dtype, 1, D, rows.normalize, apart, ld, norms + 1);
      for (int64_t d = 0; d < ld; ++d) apart[d] = u[d] - apart[d];
      loss[n] = t.dot(apart, apart, ld);
      if (dp == nullptr) continue;
      T factor = coef == nullptr ? T(2) : 2 * coef[n];
      if (rows.normalize) {
        const T least = static_cast<T>(1e-12);
        // Below the clamp the norm is a constant.
        if (norms[0] > least) t.axpy(-t.dot(u, apart, ld), u, apart, ld);
        factor /= std::max(norms[0], least);
      }
      for (int64_t d = 0; d < D; ++d) dp[n * D + d] = apart[d] * factor;
    }
  });
}

template <typename T>
void objective(const Rows& rows, double factor, double offset, const T* weight, bool average, T* value, T* dp,
               T* dweight, int threads) {
  const Weighted<T> weighted(rows.N, rows.N, weight, average);
  Buffer<T> loss(rows.N), coef(rows.N);
  for (int64_t n = 0; n < rows.N; ++n) coef[n] = static_cast<T>(factor) * weighted.coef[n];
  distances(rows, coef.get(), loss.get(), dp, threads);
  for (int64_t n = 0; n < rows.N; ++n) loss[n] = static_cast<T>(factor * loss[n] + offset);
  const double found = weighted.value(loss.get());
  *value = static_cast<T>(found);
  if (dweight != nullptr) weighted.gradient(loss.get(), average ? found : 0, dweight);
}

}  // namespace

void byol_forward(Address p, int p_dtype, Address z, int z_dtype, int64_t N, int64_t D, bool normalize, Address loss,
                  Address dp, int threads) {
  const Rows rows{p, static_cast<DType>(p_dtype), z, static_cast<DType>(z_dtype), N, D, normalize};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    distances<T>(rows, nullptr, reinterpret_cast<T*>(loss), reinterpret_cast<T*>(dp), threads);
  };
  rows.p_dtype == DType::float64 ? run(0.0) : run(0.0f);
}

void byol(Address p, int p_dtype, Address z, int z_dtype, int64_t N, int64_t D, bool normalize, double factor,
          double offset, Address weight, bool average, Address value, Address dp, Address dweight, int threads) {
  const Rows rows{p, static_cast<DType>(p_dtype), z, static_cast<DType>(z_dtype), N, D, normalize};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    objective<T>(rows, factor, offset, reinterpret_cast<const T*>(weight), average, reinterpret_cast<T*>(value),
                 reinterpret_cast<T*>(dp), reinterpret_cast<T*>(dweight), threads);
  };
  rows.p_dtype == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
