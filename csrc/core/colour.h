// Colour operations on pixels, channels in [0, 1]: torchvision's arithmetic for float images (ssl_fast/data/colour.py
// has it in torch). Shared by CPU and CUDA: T is float, or a vector of floats; there are no branches, only selections.
#pragma once

#include "core/host_device.h"

namespace ssl_fast {

enum class Colour : int { brightness = 0, contrast = 1, saturation = 2, hue = 3 };

template <typename T>
SSL_FAST_HD T all(float x) {
  return x - T{};
}
template <typename T>
SSL_FAST_HD T larger(T x, T y) {
  return x > y ? x : y;
}
template <typename T>
SSL_FAST_HD T smaller(T x, T y) {
  return x < y ? x : y;
}
template <typename T>
SSL_FAST_HD T clamp01(T x) {
  return smaller(larger(x, T{}), all<T>(1.0f));
}
template <typename T>
SSL_FAST_HD T absolute(T x) {
  return larger(x, -x);
}

template <typename T>
SSL_FAST_HD T luma(T red, T green, T blue) {
  return red * 0.2989f + green * 0.587f + blue * 0.114f;
}

// Between x and another value: brightness blends with black, contrast with the mean grey, saturation with the pixel's
// grey. shade: the other value times (1 - factor).
template <typename T>
SSL_FAST_HD T blend(T x, float factor, T shade) {
  return clamp01(x * factor + shade);
}

template <typename T>
SSL_FAST_HD void saturate(T& red, T& green, T& blue, float factor) {
  const T shade = luma(red, green, blue) * (1.0f - factor);
  red = blend(red, factor, shade);
  green = blend(green, factor, shade);
  blue = blend(blue, factor, shade);
}

// The turn of a hue in sixths, in [1, 7): added to any hue in [-1, 5] it gives one in [0, 12].
SSL_FAST_HD float hue_sixths(float turns) {
  const float sixths = 6.0f * turns;
  return sixths < 1.0f ? sixths + 6.0f : sixths;
}

// Turns the hue in HSV space. With hue h in sixths, least channel m and chroma c the channels are m + c w, where w is
// |h - 3| - 1 for red, 2 - |h - 2| for green and 2 - |h - 4| for blue, clamped to [0, 1].
template <typename T>
SSL_FAST_HD void turn_hue(T& red, T& green, T& blue, float sixths) {
  const T value = larger(red, larger(green, blue)), least = smaller(red, smaller(green, blue));
  const T chroma = value - least, inverse = 1.0f / larger(chroma, all<T>(1e-20f));  // grey: all differences are 0
  const T from_others = value == green ? blue - red : red - green;
  const T difference = value == red ? green - blue : from_others;
  const T corner_others = value == green ? all<T>(2.0f + sixths) : all<T>(4.0f + sixths);
  const T corner = value == red ? all<T>(sixths) : corner_others;
  T hue = difference * inverse + corner;
  hue = hue - (hue >= 6.0f ? all<T>(6.0f) : T{});
  red = least + chroma * clamp01(absolute(hue - 3.0f) - 1.0f);
  green = least + chroma * clamp01(2.0f - absolute(hue - 2.0f));
  blue = least + chroma * clamp01(2.0f - absolute(hue - 4.0f));
}

template <typename T>
SSL_FAST_HD T solarized(T x, T threshold) {
  return x >= threshold ? 1.0f - x : x;
}

}  // namespace ssl_fast
