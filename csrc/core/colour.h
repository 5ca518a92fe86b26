// Colour operations on one pixel, channels in [0, 1]: torchvision's arithmetic for float images
// (ssl_fast/data/colour.py has it in torch). Shared by CPU and CUDA; written without branches, so that loops over
// pixels become vector code.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace ssl_fast {

enum class Colour : int { brightness = 0, contrast = 1, saturation = 2, hue = 3 };

// T: float, or a vector of floats.
template <typename T>
SSL_FAST_HD T luma(T red, T green, T blue) {
  return red * 0.2989f + green * 0.587f + blue * 0.114f;
}

SSL_FAST_HD float clamp01(float x) {
  x = x > 0.0f ? x : 0.0f;
  return x < 1.0f ? x : 1.0f;
}

// Between x and a shade: brightness blends with black, contrast with the mean grey, saturation with the pixel's grey.
// shade: that value times (1 - factor).
SSL_FAST_HD float blend(float x, float factor, float shade) { return clamp01(x * factor + shade); }

// The turn of a hue in sixths, in [1, 7): added to any hue in [-1, 5] it gives one in [0, 12].
SSL_FAST_HD float hue_sixths(float turns) {
  const float sixths = 6.0f * turns;
  return sixths < 1.0f ? sixths + 6.0f : sixths;
}

// Turns the hue in HSV space. With hue h in sixths, value v, chroma c the channels are v - c + c w, where w is
// |h - 3| - 1 for red, 2 - |h - 2| for green and 2 - |h - 4| for blue, clamped to [0, 1].
SSL_FAST_HD void turn_hue(float& red, float& green, float& blue, float sixths) {
  const float most = green > blue ? green : blue, least = green < blue ? green : blue;
  const float value = red > most ? red : most, low = red < least ? red : least;
  const float chroma = value - low,
              inverse = 1.0f / (chroma > 1e-20f ? chroma : 1e-20f);  // grey: all differences are 0
  const float others = value == green ? blue - red : red - green;
  const float difference = value == red ? green - blue : others;
  const float corner = value == red ? 0.0f : value == green ? 2.0f : 4.0f;
  float hue = difference * inverse + (corner + sixths);
  hue = hue >= 6.0f ? hue - 6.0f : hue;
  red = low + chroma * clamp01(fabsf(hue - 3.0f) - 1.0f);
  green = low + chroma * clamp01(2.0f - fabsf(hue - 2.0f));
  blue = low + chroma * clamp01(2.0f - fabsf(hue - 4.0f));
}

template <typename T>
SSL_FAST_HD T solarized(T x, T threshold) {
  return x >= threshold ? 1.0f - x : x;
}

}  // namespace ssl_fast
