// Element loops of LAMB, compiled once for each instruction set and vectorised by the compiler.
#include "cpu/isa/lamb.h"

#include "cpu/isa/elements.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename A>
LambNumbers<A> as(const LambNumbers<double>& d) {
  return {A(d.lr),  A(d.rest1),        A(d.beta2),       A(d.rest2),
          A(d.eps), A(d.weight_decay), A(d.correction1), A(d.correction2_root),
          d.clip};
}

template <typename T>
LambSquares moments_loop(const void* p_data, const void* g_data, void* m_data, void* v_data, std::int64_t n,
                         double decay, const LambNumbers<double>& d) {
  using A = Wide<T>;
  const T* __restrict p = static_cast<const T*>(p_data);
  const T* __restrict g = static_cast<const T*>(g_data);
  A* __restrict m = static_cast<A*>(m_data);
  A* __restrict v = static_cast<A*>(v_data);
  const LambNumbers<A> numbers = as<A>(d);
  A p_sum[kLanes] = {}, u_sum[kLanes] = {};
  const auto element = [&](std::int64_t i, int lane) {
    const A x = widen(p[i]);
    A first = m[i], second = v[i];
    lamb_moments<A>(widen(g[i]), first, second, numbers);
    m[i] = first;
    v[i] = second;
    const A u = lamb_direction<A>(x, first, second, A(decay), numbers);
    p_sum[lane] += x * x;
    u_sum[lane] += u * u;
  };
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) element(i + k, k);
  }
  for (int k = 0; i < n; ++i, ++k) element(i, k);
  return {total(p_sum), total(u_sum)};
}

template <typename T>
void update_loop(void* p_data, const void* m_data, const void* v_data, std::int64_t n, double ratio, double decay,
                 const LambNumbers<double>& d) {
  using A = Wide<T>;
  T* __restrict p = static_cast<T*>(p_data);
  const A* __restrict m = static_cast<const A*>(m_data);
  const A* __restrict v = static_cast<const A*>(v_data);
  const LambNumbers<A> numbers = as<A>(d);
  const A rate = A(d.lr) * A(ratio);
  for (std::int64_t i = 0; i < n; ++i) {
    const A x = widen(p[i]);
    narrow(A(x - rate * lamb_direction<A>(x, m[i], v[i], A(decay), numbers)), p[i]);
  }
}

LambSquares moments(const void* p, const void* g, void* m, void* v, DType dtype, std::int64_t n, double decay,
                    const LambNumbers<double>& numbers) {
  return visit(dtype, [&](auto type) { return moments_loop<decltype(type)>(p, g, m, v, n, decay, numbers); });
}

void update(void* p, const void* m, const void* v, DType dtype, std::int64_t n, double ratio, double decay,
            const LambNumbers<double>& numbers) {
  visit(dtype, [&](auto type) { update_loop<decltype(type)>(p, m, v, n, ratio, decay, numbers); });
}

}  // namespace

const LambKernels lamb{moments, update};

}  // namespace ssl_fast::SSL_FAST_ISA
