// What csrc/cpu/isa/sam.cpp provides for each instruction set.
#pragma once

#include <cstdint>

#include "core/sam.h"
#include "ops.h"

namespace ssl_fast {

// Each function handles n elements of flat memory.
struct SamKernels {
  // saved <- p; p <- p + factor g, or factor p^2 g
  void (*ascend)(void* p, const void* g, void* saved, DType dtype, std::int64_t n, double factor, bool adaptive);
  // p <- one step from saved; v (null: no momentum) is replaced
  void (*sgd)(void* p, const void* saved, const void* g, void* v, DType dtype, std::int64_t n,
              const SgdNumbers<double>& numbers);
  // p <- one step from saved; the moments m and v are replaced
  void (*adamw)(void* p, const void* saved, const void* g, void* m, void* v, DType dtype, std::int64_t n,
                const AdamWNumbers<double>& numbers);
};

namespace generic {
extern const SamKernels sam;
}
namespace avx2 {
extern const SamKernels sam;
}
namespace avx512 {
extern const SamKernels sam;
}

}  // namespace ssl_fast
