// Element loops over gradients, compiled once for each instruction set and vectorised by the compiler.
#include "cpu/isa/gradients.h"

#include "cpu/isa/elements.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// Sum of term(i) over n elements: kLanes partial sums of A, then doubles, in a fixed order.
template <typename A, typename Term>
double lane_sum(std::int64_t n, const Term& term) {
  A lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lanes[k] += term(i + k);
  }
  for (int k = 0; i < n; ++i, ++k) lanes[k] += term(i);
  return total(lanes);
}

template <typename T>
double square_sum_loop(const void* x_data, const void* w_data, std::int64_t n) {
  using A = Wide<T>;
  const T* __restrict x = static_cast<const T*>(x_data);
  const T* __restrict w = static_cast<const T*>(w_data);
  if (w == nullptr) return lane_sum<A>(n, [=](std::int64_t i) { return widen(x[i]) * widen(x[i]); });
  return lane_sum<A>(n, [=](std::int64_t i) {
    const A weighted = widen(w[i]) * widen(x[i]);
    return weighted * weighted;
  });
}

template <typename T>
void scale_loop(void* x_data, std::int64_t n, double factor) {
  T* __restrict x = static_cast<T*>(x_data);
  const Wide<T> f = Wide<T>(factor);
  for (std::int64_t i = 0; i < n; ++i) narrow(Wide<T>(f * widen(x[i])), x[i]);
}

template <typename T>
void centralize_loop(void* x_data, std::int64_t n) {
  T* __restrict x = static_cast<T*>(x_data);
  const Wide<T> mean = Wide<T>(lane_sum<Wide<T>>(n, [=](std::int64_t i) { return widen(x[i]); }) / double(n));
  for (std::int64_t i = 0; i < n; ++i) narrow(Wide<T>(widen(x[i]) - mean), x[i]);
}

double square_sum(const void* x, const void* w, DType dtype, std::int64_t n) {
  return visit(dtype, [&](auto type) { return square_sum_loop<decltype(type)>(x, w, n); });
}

void scale(void* x, DType dtype, std::int64_t n, double factor) {
  visit(dtype, [&](auto type) { scale_loop<decltype(type)>(x, n, factor); });
}

void centralize(void* x, DType dtype, std::int64_t n) {
  visit(dtype, [&](auto type) { centralize_loop<decltype(type)>(x, n); });
}

}  // namespace

const GradientKernels gradients{square_sum, scale, centralize};

}  // namespace ssl_fast::SSL_FAST_ISA
