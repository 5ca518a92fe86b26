// Rows of fp32 to the type of the output: csrc/cpu/isa/narrow.cpp.
#pragma once

#include <cstdint>

#include "ops.h"

namespace ssl_fast::SSL_FAST_ISA {

// to [n] of dtype (float32, float16, bfloat16) <- from [n], rounded to nearest, ties to even.
void narrow_row(const float* from, void* to, std::int64_t n, DType dtype);

}  // namespace ssl_fast::SSL_FAST_ISA
