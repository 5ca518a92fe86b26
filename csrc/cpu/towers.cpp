#include "cpu/towers.h"

namespace ssl_fast {

#ifdef SSL_FAST_HAS_avx512
#define SSL_FAST_AVX512_PAIRS(member) \
  case Isa::avx512:                   \
    return avx512::member;
#else
#define SSL_FAST_AVX512_PAIRS(member)
#endif
#ifdef SSL_FAST_HAS_avx2
#define SSL_FAST_AVX2_PAIRS(member) \
  case Isa::avx2:                   \
    return avx2::member;
#else
#define SSL_FAST_AVX2_PAIRS(member)
#endif

#define SSL_FAST_CHOOSE_PAIRS(type, member)   \
  template <>                                 \
  const PairTiles<type>& pair_tiles<type>() { \
    switch (chosen_isa()) {                   \
      SSL_FAST_AVX512_PAIRS(member)           \
      SSL_FAST_AVX2_PAIRS(member)             \
      default:                                \
        return generic::member;               \
    }                                         \
  }

SSL_FAST_CHOOSE_PAIRS(float, pairs_float32)
SSL_FAST_CHOOSE_PAIRS(double, pairs_float64)

}  // namespace ssl_fast
