// What csrc/cpu/isa/lamb.cpp provides for each instruction set.
#pragma once

#include <cstdint>

#include "core/lamb.h"
#include "ops.h"

namespace ssl_fast {

struct LambSquares {
  double p, u;
};

// Each function handles n elements of flat memory.
struct LambKernels {
  // m and v <- new moments (double where p is, else float); the sums of squares of p and of its direction
  LambSquares (*moments)(const void* p, const void* g, void* m, void* v, DType dtype, std::int64_t n, double decay,
                         const LambNumbers<double>& numbers);
  // p <- p - lr ratio u
  void (*update)(void* p, const void* m, const void* v, DType dtype, std::int64_t n, double ratio, double decay,
                 const LambNumbers<double>& numbers);
};

namespace generic {
extern const LambKernels lamb;
}
namespace avx2 {
extern const LambKernels lamb;
}
namespace avx512 {
extern const LambKernels lamb;
}

}  // namespace ssl_fast
