// NT-Xent, SupCon and DCL in one call: who is whose positive, loss, coefficients, gradients. The rows are loaded once.
#include "cpu/nt_xent.h"
#include "cpu/weighted.h"
#include "ops.h"

namespace ssl_fast {
namespace {

// The positives of M rows: pairs (row i and i + M / 2), or classes as ssl_fast/ops/classes.py has them.
struct Positives {
  Positives(int64_t M, int64_t num_views, const int64_t* labels, int64_t ignored)
      : pairs(labels == nullptr && num_views == 2), positive(M), classes(pairs ? 0 : M) {
    const int64_t N = M / num_views;
    for (int64_t i = 0; pairs && i < M; ++i) positive[i] = i < N ? i + N : i - N;
    if (pairs) return;
    Buffer<int64_t> order(M), own(labels == nullptr ? M : 0);
    for (int64_t i = 0; labels == nullptr && i < M; ++i) own[i] = i % N;
    const int64_t* label = labels == nullptr ? own.get() : labels;
    for (int64_t i = 0; i < M; ++i) order[i] = i;
    std::stable_sort(order.get(), order.get() + M, [label](int64_t a, int64_t b) { return label[a] < label[b]; });
    for (int64_t begin = 0, end; begin < M; begin = end) {
      end = begin + 1;
      while (end < M && label[order[end]] == label[order[begin]]) ++end;
      const bool left_out = labels != nullptr && label[order[begin]] == ignored;
      const bool pair = end - begin == 2 && !left_out;
      for (int64_t k = begin; k < end; ++k) {
        classes[order[k]] = left_out ? -1 : begin;
        positive[order[k]] = pair ? order[2 * begin + 1 - k] : order[k];
      }
    }
  }
  const int64_t* ids() const { return pairs ? nullptr : classes.get(); }

  const bool pairs;
  Buffer<int64_t> positive, classes;  // [M] each; classes is empty for pairs
};

template <typename T>
void objective(const Parts& x, DType dtype, int64_t M, int64_t D, int64_t num_views, const int64_t* labels,
               int64_t ignored, const T* weight, double inv_temperature, bool normalize, bool decoupled, bool average,
               T* value, const Parts& dx, T* dweight, T* dtemperature, int threads) {
  const Positives positives(M, num_views, labels, ignored);
  const Contrast<T> c(x, dtype, positives.positive.get(), positives.ids(), M, D, {0, M}, inv_temperature, normalize,
                      threads);
  // Rows without a positive count where there are no labels.
  const Weighted<T> weighted(M, M / num_views, weight, average,
                             [&](int64_t i) { return labels == nullptr || c.num_positives(i) > 0; });
  Buffer<T> loss(M), log_l(M), zdz(M);
  contrast_losses(c, decoupled, loss.get(), log_l.get(), threads);
  const double found = weighted.value(loss.get());
  *value = static_cast<T>(found);
  if (dx.first == 0) return;
  contrast_gradients(c, weighted.coef.get(), log_l.get(), decoupled, normalize, dx, zdz.get(), threads);
  if (dweight != nullptr) weighted.gradient(loss.get(), average ? found : 0, dweight);
  // Both rows count a pair: d/d(1/temperature) = sum_i <z_i, dz_i> temperature / 2.
  if (dtemperature != nullptr) *dtemperature = static_cast<T>(total(zdz.get(), M) * inv_temperature * -0.5);
}

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void self_contrast(Address first, Address second, int dtype, int64_t M, int64_t D, int64_t num_views, Address labels,
                   int64_t ignored, Address weight, double inv_temperature, bool normalize, bool decoupled,
                   bool average, Address value, Address dfirst, Address dsecond, Address dweight, Address dtemperature,
                   int threads) {
  const auto type = static_cast<DType>(dtype);
  const int64_t split = second == 0 ? M : M / 2;
  const Parts x{first, second, split}, dx{dfirst, dsecond, split};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    objective<T>(x, type, M, D, num_views, pointer<int64_t>(labels), ignored, pointer<T>(weight), inv_temperature,
                 normalize, decoupled, average, pointer<T>(value), dx, pointer<T>(dweight), pointer<T>(dtemperature),
                 threads);
  };
  type == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
