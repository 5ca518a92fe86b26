#include "cpu/margin.h"

namespace ssl_fast {

#define SSL_FAST_DECLARE_MARGIN(name)              \
  namespace name {                                 \
  extern const MarginTiles<float> margin_float32;  \
  extern const MarginTiles<double> margin_float64; \
  }

SSL_FAST_DECLARE_MARGIN(generic)
#ifdef SSL_FAST_HAS_avx2
SSL_FAST_DECLARE_MARGIN(avx2)
#endif
#ifdef SSL_FAST_HAS_avx512
SSL_FAST_DECLARE_MARGIN(avx512)
#endif

#ifdef SSL_FAST_HAS_avx512
#define SSL_FAST_MARGIN_AVX512(member) \
  if (chosen_isa() == Isa::avx512) return avx512::member;
#else
#define SSL_FAST_MARGIN_AVX512(member)
#endif
#ifdef SSL_FAST_HAS_avx2
#define SSL_FAST_MARGIN_AVX2(member) \
  if (chosen_isa() == Isa::avx2) return avx2::member;
#else
#define SSL_FAST_MARGIN_AVX2(member)
#endif

#define SSL_FAST_CHOOSE_MARGIN(type, member)      \
  template <>                                     \
  const MarginTiles<type>& margin_tiles<type>() { \
    SSL_FAST_MARGIN_AVX512(member)                \
    SSL_FAST_MARGIN_AVX2(member)                  \
    return generic::member;                       \
  }

SSL_FAST_CHOOSE_MARGIN(float, margin_float32)
SSL_FAST_CHOOSE_MARGIN(double, margin_float64)

}  // namespace ssl_fast
