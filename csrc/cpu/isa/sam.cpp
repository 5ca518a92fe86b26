// Element loops of SAM, compiled once for each instruction set and vectorised by the compiler.
#include "cpu/isa/sam.h"

#include "cpu/isa/elements.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename T, bool kAdaptive>
void ascend_loop(void* p_data, const void* g_data, void* saved_data, std::int64_t n, double factor) {
  T* __restrict p = static_cast<T*>(p_data);
  const T* __restrict g = static_cast<const T*>(g_data);
  T* __restrict saved = static_cast<T*>(saved_data);
  const Wide<T> f = Wide<T>(factor);
  for (std::int64_t i = 0; i < n; ++i) {
    const T before = p[i];
    saved[i] = before;
    narrow(Wide<T>(ascended<Wide<T>>(widen(before), widen(g[i]), f, kAdaptive)), p[i]);
  }
}

template <typename T, bool kMomentum>
void sgd_loop(void* p_data, const void* saved_data, const void* g_data, void* v_data, std::int64_t n,
              const SgdNumbers<double>& d) {
  using A = Wide<T>;
  T* __restrict p = static_cast<T*>(p_data);
  const T* __restrict saved = static_cast<const T*>(saved_data);
  const T* __restrict g = static_cast<const T*>(g_data);
  T* __restrict v = static_cast<T*>(v_data);
  const SgdNumbers<A> numbers{A(d.lr), A(d.momentum), A(d.weight_decay), d.nesterov};
  for (std::int64_t i = 0; i < n; ++i) {
    A momentum = kMomentum ? widen(v[i]) : A(0);
    narrow(sgd_element<A>(widen(saved[i]), widen(g[i]), momentum, numbers), p[i]);
    if (kMomentum) narrow(momentum, v[i]);
  }
}

template <typename T>
void adamw_loop(void* p_data, const void* saved_data, const void* g_data, void* m_data, void* v_data, std::int64_t n,
                const AdamWNumbers<double>& d) {
  using A = Wide<T>;
  T* __restrict p = static_cast<T*>(p_data);
  const T* __restrict saved = static_cast<const T*>(saved_data);
  const T* __restrict g = static_cast<const T*>(g_data);
  T* __restrict m = static_cast<T*>(m_data);
  T* __restrict v = static_cast<T*>(v_data);
  const AdamWNumbers<A> numbers{A(d.lr),  A(d.rest1),        A(d.beta2),       A(d.rest2),
                                A(d.eps), A(d.weight_decay), A(d.correction1), A(d.correction2_root)};
  for (std::int64_t i = 0; i < n; ++i) {
    A first = widen(m[i]), second = widen(v[i]);
    narrow(adamw_element<A>(widen(saved[i]), widen(g[i]), first, second, numbers), p[i]);
    narrow(first, m[i]);
    narrow(second, v[i]);
  }
}

void ascend(void* p, const void* g, void* saved, DType dtype, std::int64_t n, double factor, bool adaptive) {
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    adaptive ? ascend_loop<T, true>(p, g, saved, n, factor) : ascend_loop<T, false>(p, g, saved, n, factor);
  });
}

void sgd(void* p, const void* saved, const void* g, void* v, DType dtype, std::int64_t n,
         const SgdNumbers<double>& numbers) {
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    v == nullptr ? sgd_loop<T, false>(p, saved, g, v, n, numbers) : sgd_loop<T, true>(p, saved, g, v, n, numbers);
  });
}

void adamw(void* p, const void* saved, const void* g, void* m, void* v, DType dtype, std::int64_t n,
           const AdamWNumbers<double>& numbers) {
  visit(dtype, [&](auto type) { adamw_loop<decltype(type)>(p, saved, g, m, v, n, numbers); });
}

}  // namespace

const SamKernels sam{ascend, sgd, adamw};

}  // namespace ssl_fast::SSL_FAST_ISA
