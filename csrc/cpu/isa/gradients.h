// What csrc/cpu/isa/gradients.cpp provides for each instruction set.
#pragma once

#include <cstdint>

#include "ops.h"

namespace ssl_fast {

// Each function handles n elements of flat memory.
struct GradientKernels {
  // Sum of the squares of x, or of w x where w is given.
  double (*square_sum)(const void* x, const void* w, DType dtype, std::int64_t n);
  // x <- factor x
  void (*scale)(void* x, DType dtype, std::int64_t n, double factor);
  // x <- x less its mean
  void (*centralize)(void* x, DType dtype, std::int64_t n);
};

namespace generic {
extern const GradientKernels gradients;
}
namespace avx2 {
extern const GradientKernels gradients;
}
namespace avx512 {
extern const GradientKernels gradients;
}

}  // namespace ssl_fast
