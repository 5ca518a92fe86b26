// Colour jitter of one pixel on a GPU. The operations are named members, not an array: what is indexed at run time
// would not stay in registers.
#pragma once

#include "core/colour.h"
#include "core/host_device.h"
#include "core/view_table.h"

namespace ssl_fast {

struct Jitter {
  int num, before_contrast;  // operations that the view has; how many come before contrast (num where there is none)
  int order;                 // operation i in bits 2 i and 2 i + 1
  float brightness, contrast, saturation, hue;  // factors; of hue its sixths
  float shade;                                  // of contrast: the mean grey times (1 - factor), filled in later
};

// The operations of a row of the table that are among `operations` (bit i: operation i), in the drawn order.
SSL_FAST_HD Jitter jitter_of(const float* row, int operations) {
  Jitter jitter{0, 0, 0, row[kFactors], row[kFactors + 1], row[kFactors + 2], hue_sixths(row[kFactors + 3]), 0.0f};
  if (row[kJitter] == 0) return jitter;
  bool contrast = false;
  for (int i = 0; i < 4; ++i) {
    const int operation = int(row[kOrder + i]) & 3;
    if (!(operations >> operation & 1)) continue;
    contrast = contrast || Colour(operation) == Colour::contrast;
    jitter.before_contrast += contrast ? 0 : 1;
    jitter.order |= operation << 2 * jitter.num++;
  }
  return jitter;
}

// The first `num` operations on a pixel of three channels (P = 3), or on one value of another number of them (P = 1).
template <int P>
SSL_FAST_HD void apply(const Jitter& jitter, int num, float (&x)[P]) {
  for (int i = 0; i < num; ++i) {
    const Colour operation = Colour(jitter.order >> 2 * i & 3);
    if (operation == Colour::brightness) {
      for (int c = 0; c < P; ++c) x[c] = blend(x[c], jitter.brightness, 0.0f);
    } else if (operation == Colour::contrast) {
      for (int c = 0; c < P; ++c) x[c] = blend(x[c], jitter.contrast, jitter.shade);
    } else if constexpr (P == 3) {
      if (operation == Colour::saturation) saturate(x[0], x[1], x[2], jitter.saturation);
      if (operation == Colour::hue) turn_hue(x[0], x[1], x[2], jitter.hue);
    }
  }
}

}  // namespace ssl_fast
