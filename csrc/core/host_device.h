// How a function of csrc/core is declared: inlined into whoever includes it. Static on the host, because each
// instruction set compiles its own copy and the linker must not merge them.
#pragma once

#ifdef __CUDACC__
#define SSL_FAST_HD __host__ __device__ __forceinline__
#else
#define SSL_FAST_HD static inline
#endif
