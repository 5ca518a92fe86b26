// Compiled without contraction (CMakeLists.txt): the boxes are those that numpy's arithmetic gives, to the bit.
#include <cmath>

#include "ops.h"

namespace ssl_fast {

void crop_boxes(Address numbers, Address ratios, Address sizes, std::int64_t N, std::int64_t stride,
                std::int64_t attempts, double low, double high, Address boxes) {
  const auto* number = reinterpret_cast<const double*>(numbers);
  const auto* ratio = reinterpret_cast<const double*>(ratios);
  const auto* size = reinterpret_cast<const double*>(sizes);
  auto* box = reinterpret_cast<double*>(boxes);
  for (std::int64_t n = 0; n < N; ++n, number += stride, ratio += attempts, size += 2, box += 4) {
    box[2] = box[3] = 0;
    for (std::int64_t a = 0; a < attempts; ++a) {
      const double area = (low + (high - low) * number[2 * a]) * (size[0] * size[1]);
      const double width = std::rint(std::sqrt(area * ratio[a])), height = std::rint(std::sqrt(area / ratio[a]));
      if (!(width > 0 && width <= size[1] && height > 0 && height <= size[0])) continue;
      box[2] = height;
      box[3] = width;
      break;
    }
    const double* position = number + 2 * attempts;
    for (int side = 0; side < 2; ++side) box[side] = std::floor(position[side] * (size[side] - box[2 + side] + 1.0));
  }
}

}  // namespace ssl_fast
