// What csrc/cpu/isa/candidates.cpp provides for each instruction set.
#pragma once

#include <cstdint>

namespace ssl_fast {

template <typename T>
struct Candidates {
  // Lists in found [kTile] the columns j of a row of kTile scores where scores[j] - shift <= least[j] does not hold
  // (NaN never holds), in increasing order, and returns how many. scores and least: aligned.
  int64_t (*find)(const T* scores, const T* least, T shift, int32_t* found);
};

#define SSL_FAST_DECLARE(name)                  \
  namespace name {                              \
  extern const Candidates<float> candidates32;  \
  extern const Candidates<double> candidates64; \
  }
SSL_FAST_DECLARE(generic)
SSL_FAST_DECLARE(avx2)
SSL_FAST_DECLARE(avx512)
#undef SSL_FAST_DECLARE

}  // namespace ssl_fast
