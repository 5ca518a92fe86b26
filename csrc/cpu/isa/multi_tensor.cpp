// Element loops of the whole-model updates, compiled once for each instruction set and vectorised by the compiler.
#include "cpu/isa/multi_tensor.h"

#include "cpu/isa/elements.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename T, typename S>
void ema_loop(void* t_data, const void* s_data, std::int64_t n, double weight) {
  using A = decltype(Wide<T>() + Wide<S>());
  T* __restrict t = static_cast<T*>(t_data);
  const S* __restrict s = static_cast<const S*>(s_data);
  const A w = A(weight);
  for (std::int64_t i = 0; i < n; ++i) narrow(Wide<T>(lerp<A>(widen(t[i]), widen(s[i]), w)), t[i]);
}

template <typename T>
Squares squares_loop(const void* p_data, const void* g_data, std::int64_t n) {
  using A = Wide<T>;
  const T* __restrict p = static_cast<const T*>(p_data);
  const T* __restrict g = static_cast<const T*>(g_data);
  A p_sum[kLanes] = {}, g_sum[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) p_sum[k] += widen(p[i + k]) * widen(p[i + k]);
    for (int k = 0; k < kLanes; ++k) g_sum[k] += widen(g[i + k]) * widen(g[i + k]);
  }
  for (int k = 0; i < n; ++i, ++k) {
    p_sum[k] += widen(p[i]) * widen(p[i]);
    g_sum[k] += widen(g[i]) * widen(g[i]);
  }
  return {total(p_sum), total(g_sum)};
}

template <typename T>
void lars_loop(void* p_data, const void* g_data, void* v_data, std::int64_t n, double ratio, double decay,
               const LarsNumbers<double>& d) {
  using A = Wide<T>;
  T* __restrict p = static_cast<T*>(p_data);
  const T* __restrict g = static_cast<const T*>(g_data);
  A* __restrict v = static_cast<A*>(v_data);
  const LarsNumbers<A> numbers{A(d.lr),    A(d.momentum), A(d.weight_decay), A(d.trust_coefficient), A(d.eps),
                               d.nesterov, d.clip};
  for (std::int64_t i = 0; i < n; ++i) {
    A x = widen(p[i]);
    lars_element(x, widen(g[i]), v[i], A(ratio), A(decay), numbers);
    narrow(x, p[i]);
  }
}

template <typename T>
void lookahead_loop(void* fast_data, void* slow_data, std::int64_t n, double alpha) {
  T* __restrict fast = static_cast<T*>(fast_data);
  T* __restrict slow = static_cast<T*>(slow_data);
  const Wide<T> w = Wide<T>(alpha);
  for (std::int64_t i = 0; i < n; ++i) {
    narrow(lerp<Wide<T>>(widen(slow[i]), widen(fast[i]), w), slow[i]);
    fast[i] = slow[i];
  }
}

void ema(void* t, DType t_dtype, const void* s, DType s_dtype, std::int64_t n, double weight) {
  visit(t_dtype, [&](auto t_type) {
    visit(s_dtype, [&](auto s_type) { ema_loop<decltype(t_type), decltype(s_type)>(t, s, n, weight); });
  });
}

Squares squares(const void* p, const void* g, DType dtype, std::int64_t n) {
  return visit(dtype, [&](auto type) { return squares_loop<decltype(type)>(p, g, n); });
}

void lars(void* p, const void* g, void* v, DType dtype, std::int64_t n, double ratio, double decay,
          const LarsNumbers<double>& numbers) {
  visit(dtype, [&](auto type) { lars_loop<decltype(type)>(p, g, v, n, ratio, decay, numbers); });
}

void lookahead(void* fast, void* slow, DType dtype, std::int64_t n, double alpha) {
  visit(dtype, [&](auto type) { lookahead_loop<decltype(type)>(fast, slow, n, alpha); });
}

}  // namespace

const MultiTensorKernels multi_tensor{ema, squares, lars, lookahead};

}  // namespace ssl_fast::SSL_FAST_ISA
