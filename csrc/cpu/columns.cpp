#include "cpu/columns.h"

#include "cpu/chunks.h"

namespace ssl_fast {

#define SSL_FAST_DECLARE_COLUMNS(name)          \
  namespace name {                              \
  extern const Columns<float> columns_float32;  \
  extern const Columns<double> columns_float64; \
  }

SSL_FAST_DECLARE_COLUMNS(generic)
#ifdef SSL_FAST_HAS_avx2
SSL_FAST_DECLARE_COLUMNS(avx2)
#endif
#ifdef SSL_FAST_HAS_avx512
SSL_FAST_DECLARE_COLUMNS(avx512)
#endif

template <>
const Columns<float>& columns<float>() {
  return SSL_FAST_PICK(columns_float32);
}
template <>
const Columns<double>& columns<double>() {
  return SSL_FAST_PICK(columns_float64);
}

}  // namespace ssl_fast
