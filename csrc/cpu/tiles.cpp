#include "cpu/tiles.h"

namespace ssl_fast {

#define SSL_FAST_DECLARE(name)        \
  namespace name {                    \
  extern const Tiles<float> float32;  \
  extern const Tiles<double> float64; \
  }

SSL_FAST_DECLARE(generic)
#ifdef SSL_FAST_HAS_avx2
SSL_FAST_DECLARE(avx2)
#endif
#ifdef SSL_FAST_HAS_avx512
SSL_FAST_DECLARE(avx512)
#endif

#define SSL_FAST_CHOOSE(type, member) \
  template <>                         \
  const Tiles<type>& tiles<type>() {  \
    switch (chosen_isa()) {           \
      SSL_FAST_AVX512_CASE(member)    \
      SSL_FAST_AVX2_CASE(member)      \
      default:                        \
        return generic::member;       \
    }                                 \
  }

#ifdef SSL_FAST_HAS_avx512
#define SSL_FAST_AVX512_CASE(member) \
  case Isa::avx512:                  \
    return avx512::member;
#else
#define SSL_FAST_AVX512_CASE(member)
#endif
#ifdef SSL_FAST_HAS_avx2
#define SSL_FAST_AVX2_CASE(member) \
  case Isa::avx2:                  \
    return avx2::member;
#else
#define SSL_FAST_AVX2_CASE(member)
#endif

SSL_FAST_CHOOSE(float, float32)
SSL_FAST_CHOOSE(double, float64)

}  // namespace ssl_fast
