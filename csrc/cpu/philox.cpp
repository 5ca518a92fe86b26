#include "core/philox.h"

#include "ops.h"

namespace ssl_fast {

void uniforms(Address index, std::int64_t N, std::int64_t count, std::uint32_t epoch, std::uint32_t purpose,
              std::uint64_t seed, Address numbers) {
  const auto* sample = reinterpret_cast<const std::uint64_t*>(index);
  auto* out = reinterpret_cast<double*>(numbers);
  const std::uint32_t k0 = std::uint32_t(seed), k1 = std::uint32_t(seed >> 32);
  for (std::int64_t n = 0; n < N; ++n, out += count) {
    const std::uint32_t low = std::uint32_t(sample[n]), high = std::uint32_t(sample[n] >> 32);
    for (std::int64_t i = 0; i < count; i += 4) {
      const PhiloxWords words = philox4x32({{low, high, epoch, purpose << 8 | std::uint32_t(i / 4)}}, k0, k1);
      for (std::int64_t j = 0; j < 4 && i + j < count; ++j) out[i + j] = words.w[j] * 0x1p-32;
    }
  }
}

}  // namespace ssl_fast
