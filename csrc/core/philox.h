// Philox-4x32-10, a counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
// shared by CPU and CUDA. ssl_fast/data/philox.py says what the counter holds.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ssl_fast {

struct PhiloxWords {
  std::uint32_t w[4];
};

SSL_FAST_HD PhiloxWords philox4x32(PhiloxWords c, std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c.w[0], p1 = std::uint64_t(0xCD9E8D57u) * c.w[2];
    c = {{std::uint32_t(p1 >> 32) ^ c.w[1] ^ k0, std::uint32_t(p1), std::uint32_t(p0 >> 32) ^ c.w[3] ^ k1,
          std::uint32_t(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace ssl_fast
