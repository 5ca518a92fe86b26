// Without this GCC keeps the additions of fp16's rounding in branches, and the loop in scalars: more than twice as
// slow.
#pragma GCC optimize("no-trapping-math")

#include "cpu/isa/narrow.h"

#include "cpu/isa/elements.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename T>
void narrow_all(const float* __restrict from, T* __restrict to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) narrow(from[i], to[i]);
}

}  // namespace

void narrow_row(const float* from, void* to, std::int64_t n, DType dtype) {
  if (dtype == DType::bfloat16) {
    narrow_all(from, static_cast<BFloat16*>(to), n);
  } else if (dtype == DType::float16) {
    narrow_all(from, static_cast<Float16*>(to), n);
  } else {
    std::memcpy(to, from, n * sizeof(float));
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
