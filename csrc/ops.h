// Every host function of the kernels: the C++ API. Knows no torch: addresses, sizes, streams.
// Python validates, allocates and passes data_ptr()s; the kernels check only what they alone can know.
#pragma once

#include <cstdint>
#include <string>

namespace ssl_fast {

using Address = std::uintptr_t;  // of a tensor's first element

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// --- CPU: instruction sets (csrc/cpu/isa.cpp) ---

// Instruction set the kernels use: "avx512", "avx2" or "generic"; SSL_FAST_ISA forces one.
std::string isa();
// Forces one for this process; std::invalid_argument where the processor or the build has it not.
void set_isa(const std::string& name);

}  // namespace ssl_fast
