// Antialiased resizing and Gaussian blur: which pixels an output pixel is made of, and with what weights. Shared by CPU
// and CUDA.
//
// Resizing is that of torch's uint8 images: weights are rounded to a grid of 2^-precision that puts the largest into 16
// bits, columns are resized first, their result is rounded to whole levels, then rows. A product of a level and a
// weight is exact in fp32, and so are their sums unless very many pixels make one: all implementations give the same
// bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace ssl_fast {

enum class Filter : int { bilinear = 0, bicubic = 1 };

constexpr int kMaxPrecision = 22;  // bits behind the point of a rounded weight

// One axis of a resized crop: `length` pixels to `size`.
struct Axis {
  Filter filter;
  int length, size;
  double scale, support, inverse;  // pixels an output pixel is apart, and sees on either side; of distances
  int taps;                        // pixels that an output pixel can see, at most `length`
};

// The pixels [first, first + count) that output pixel i sees, at most `taps`, and its centre.
struct Window {
  int first, count;
  double centre;
};

SSL_FAST_HD Axis make_axis(Filter filter, int length, int size) {
  const double scale = double(length) / size, widening = scale > 1 ? scale : 1;
  const double support = (filter == Filter::bilinear ? 1 : 2) * widening;
  const int taps = int(ceil(2 * support));
  return {filter, length, size, scale, support, 1 / widening, taps < length ? taps : length};
}

SSL_FAST_HD Window window_of(const Axis& axis, int i) {
  const double centre = axis.scale * (i + 0.5);
  const double begin = centre - axis.support + 0.5, end = centre + axis.support + 0.5;
  const int first = begin > 0 ? int(begin) : 0;
  int count = (end < axis.length ? int(end) : axis.length) - first;
  count = count < axis.taps ? count : axis.taps;
  return {first, count, centre};
}

// The triangle, or Keys' cubic with a = -1/2, at the distance of pixel first + k from the centre; not yet normalised.
SSL_FAST_HD double window_weight(const Axis& axis, const Window& window, int k) {
  const double x = fabs((k + window.first - window.centre + 0.5) * axis.inverse);
  if (axis.filter == Filter::bilinear) return x < 1 ? 1 - x : 0;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// Bits behind the point of the weights of an axis whose largest is `largest`.
SSL_FAST_HD int weight_precision(double largest) {
  int precision = 0;
  while (precision < kMaxPrecision && int(0.5 + largest * (1 << (precision + 1))) < (1 << 15)) ++precision;
  return precision;
}

SSL_FAST_HD float round_weight(double weight, int precision) {
  return float(int(weight * (1 << precision) + (weight < 0 ? -0.5 : 0.5))) / float(1 << precision);
}

// Taps beside the centre of a Gaussian: `limit`, or fewer where what is left out weighs less than 2e-4.
SSL_FAST_HD int blur_radius(float sigma, int limit) {
  const float seen = ceilf(3.5f * sigma);
  return seen < float(limit) ? int(seen) : limit;
}

// Weight of a tap k pixels from the centre; not yet normalised.
SSL_FAST_HD float blur_weight(float sigma, int k) {
  const float x = float(k) / sigma;
  return expf(-0.5f * x * x);
}

// The pixel in [0, size) that stands for pixel i when the border is reflected (without repeating it); |i| < size.
SSL_FAST_HD int reflected(int i, int size) {
  i = i < 0 ? -i : i;
  return i < size ? i : 2 * (size - 1) - i;
}

}  // namespace ssl_fast
