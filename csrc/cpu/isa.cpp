#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace ssl_fast {
namespace {

bool supported(Isa isa) {
#ifdef SSL_FAST_HAS_avx512
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  }
#endif
#ifdef SSL_FAST_HAS_avx2
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::generic;
}

Isa parse(const std::string& name) {
  const Isa isa = name == "avx512" ? Isa::avx512 : name == "avx2" ? Isa::avx2 : Isa::generic;
  if (isa == Isa::generic && name != "generic") {
    throw std::invalid_argument("SSL_FAST_ISA must be avx512, avx2 or generic, not '" + name + "'");
  }
  if (!supported(isa)) {
    throw std::invalid_argument("SSL_FAST_ISA=" + name + ": this processor or this build has no " + name);
  }
  return isa;
}

Isa initial() {
  const char* forced = std::getenv("SSL_FAST_ISA");
  if (forced != nullptr && *forced != '\0') return parse(forced);
  return supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::generic;
}

std::atomic<int> current{-1};

}  // namespace

Isa chosen_isa() {
  int value = current.load(std::memory_order_relaxed);
  if (value < 0) {
    value = static_cast<int>(initial());
    current.store(value, std::memory_order_relaxed);
  }
  return static_cast<Isa>(value);
}

std::string isa() {
  const Isa chosen = chosen_isa();
  return chosen == Isa::avx512 ? "avx512" : chosen == Isa::avx2 ? "avx2" : "generic";
}

void set_isa(const std::string& name) { current.store(static_cast<int>(parse(name)), std::memory_order_relaxed); }

}  // namespace ssl_fast
