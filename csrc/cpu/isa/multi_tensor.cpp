// Element loops of the whole-model updates, compiled once for each instruction set and vectorised by the compiler.
#include "cpu/isa/multi_tensor.h"

#include <cstring>
#include <stdexcept>

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kLanes = 32;  // independent partial sums: a fixed order whatever the instruction set

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  std::memcpy(&y, &x, sizeof(To));
  return y;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bit_cast<float>(std::uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  const float scaled = bit_cast<float>(rest << 13) * 0x1p112f;  // moves the exponent's bias, subnormals too
  const std::uint32_t special = rest >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<std::uint32_t>(scaled) | special | sign);
}

// Rounded to nearest, ties to even.
inline void narrow(float x, float& y) { y = x; }
inline void narrow(double x, double& y) { y = x; }
inline void narrow(float x, BFloat16& y) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  y.bits = std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void narrow(float x, Float16& y) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  const std::uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  const std::uint32_t small = bit_cast<std::uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3f000000u;  // 0.5 has its grid
  const std::uint32_t large = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  y.bits = std::uint16_t(sign | (rest >= 0x477ff000u ? large : rest < 0x38800000u ? small : normal));
}

template <typename T>
using Wide = decltype(widen(T()));

template <typename T, typename S>
void ema_loop(void* t_data, const void* s_data, std::int64_t n, double weight) {
  using A = decltype(Wide<T>() + Wide<S>());
  T* __restrict t = static_cast<T*>(t_data);
  const S* __restrict s = static_cast<const S*>(s_data);
  const A w = A(weight);
  for (std::int64_t i = 0; i < n; ++i) narrow(Wide<T>(lerp<A>(widen(t[i]), widen(s[i]), w)), t[i]);
}

// Sum of the lanes, as doubles, in a fixed order.
template <typename A>
double total(const A* lanes) {
  double sum = 0;
  for (int k = 0; k < kLanes; ++k) sum += double(lanes[k]);
  return sum;
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

// Calls f with a value of the type that dtype names.
template <typename F>
auto visit(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(float());
    case DType::float64:
      return f(double());
    case DType::bfloat16:
      return f(BFloat16());
    case DType::float16:
      return f(Float16());
  }
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16");
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

}  // namespace

const MultiTensorKernels multi_tensor{ema, squares, lars};

}  // namespace ssl_fast::SSL_FAST_ISA
