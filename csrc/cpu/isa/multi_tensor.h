// What csrc/cpu/isa/multi_tensor.cpp provides for each instruction set.
#pragma once

#include <cstdint>

#include "core/multi_tensor.h"
#include "ops.h"

namespace ssl_fast {

struct Squares {
  double p, g;
};

// Each function handles n elements of flat memory.
struct MultiTensorKernels {
  // t <- lerp(t, s, weight)
  void (*ema)(void* t, DType t_dtype, const void* s, DType s_dtype, std::int64_t n, double weight);
  // Sums of squares of p and g.
  Squares (*squares)(const void* p, const void* g, DType dtype, std::int64_t n);
  // p, v <- one LARS step; v is double where p is, else float.
  void (*lars)(void* p, const void* g, void* v, DType dtype, std::int64_t n, double ratio, double decay,
               const LarsNumbers<double>& numbers);
  // slow and fast <- lerp(slow, fast, alpha)
  void (*lookahead)(void* fast, void* slow, DType dtype, std::int64_t n, double alpha);
};

namespace generic {
extern const MultiTensorKernels multi_tensor;
}
namespace avx2 {
extern const MultiTensorKernels multi_tensor;
}
namespace avx512 {
extern const MultiTensorKernels multi_tensor;
}

}  // namespace ssl_fast
