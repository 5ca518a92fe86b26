#include "cpu/logits.h"

#include "cpu/chunks.h"

namespace ssl_fast {

#define SSL_FAST_DECLARE_LOGITS(name)         \
  namespace name {                            \
  extern const Logits<float> logits_float32;  \
  extern const Logits<double> logits_float64; \
  }

SSL_FAST_DECLARE_LOGITS(generic)
#ifdef SSL_FAST_HAS_avx2
SSL_FAST_DECLARE_LOGITS(avx2)
#endif
#ifdef SSL_FAST_HAS_avx512
SSL_FAST_DECLARE_LOGITS(avx512)
#endif

template <>
const Logits<float>& logits<float>() {
  return SSL_FAST_PICK(logits_float32);
}
template <>
const Logits<double>& logits<double>() {
  return SSL_FAST_PICK(logits_float64);
}

}  // namespace ssl_fast
