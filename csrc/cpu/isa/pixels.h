// Loops over the pixels of a tile [C, plane] or of rows: colours, blur, storing. Included once by cpu/isa/augment.cpp,
// after resize.h; everything is local to that file and its instruction set.
#pragma once

#include <cstdint>

#include "cpu/isa/augment.h"
#include "cpu/isa/narrow.h"
#include "cpu/isa/resize.h"
#include "cpu/isa/vec.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// f(red, green, blue) of every pixel, in place, a vector at a time.
template <typename F>
inline void for_each_pixel(float* tile, int64_t plane, F f) {
  for (int64_t i = 0; i < plane; i += L) {
    Floats red = load(tile + i), green = load(tile + plane + i), blue = load(tile + 2 * plane + i);
    f(red, green, blue);
    store(tile + i, red);
    store(tile + plane + i, green);
    store(tile + 2 * plane + i, blue);
  }
}

inline void blend_all(float* x, int64_t n, float factor, float shade) {
  const Floats shades = broadcast(shade);
  for (int64_t i = 0; i < n; i += L) store(x + i, blend(load(x + i), factor, shades));
}

// One step of the colour jitter; `mean` is the mean grey of the whole view, which contrast alone asks for.
inline void jitter(const AugmentView& view, int step, float mean, float* tile, int64_t plane) {
  const float factor = view.factors[step];
  switch (view.steps[step]) {
    case Colour::brightness:
      return blend_all(tile, view.channels * plane, factor, 0.0f);
    case Colour::contrast:
      return blend_all(tile, view.channels * plane, factor, mean * (1 - factor));
    case Colour::saturation:
      return for_each_pixel(tile, plane, [=](Floats& r, Floats& g, Floats& b) { saturate(r, g, b, factor); });
    case Colour::hue:
      return for_each_pixel(tile, plane, [=](Floats& r, Floats& g, Floats& b) { turn_hue(r, g, b, factor); });
  }
}

// The first plane of a tile becomes the grey image.
inline void to_grey(float* tile, int64_t plane) {
  for (int64_t i = 0; i < plane; i += L) {
    store(tile + i, luma(load(tile + i), load(tile + plane + i), load(tile + 2 * plane + i)));
  }
}

// Sum of the grey values (of all values where C is not 3) of `num` rows of a tile.
inline double grey_sum(const AugmentView& view, const float* tile, int64_t plane, int64_t pitch, int num) {
  const int planes = view.channels == 3 ? 1 : view.channels, whole = view.size / L * L;
  double total = 0;
  for (int c = 0; c < planes; ++c) {
    for (int y = 0; y < num; ++y) {
      const float* x = tile + c * plane + y * pitch;
      const auto value = [&](auto get) {
        return view.channels == 3 ? luma(get(x), get(x + plane), get(x + 2 * plane)) : get(x);
      };
      Floats lanes = {};
      int i = 0;
      for (; i < whole; i += L) lanes += value([i](const float* from) { return load(from + i); });
      float rest = 0;
      for (; i < view.size; ++i) rest += value([i](const float* from) { return from[i]; });
      total += sum<float>(lanes) + rest;
    }
  }
  return total;
}

// out [n] <- w[0] x + sum_k w[k] (before[k] + after[k]), k from 1 to the radius: R, or any where R is 0.
template <int R, typename Rows>
inline void weigh(const AugmentView& view, Rows rows, int64_t n, float* out) {
  const int radius = R ? R : view.radius;
  const auto some = [&](auto* sum, int count, int64_t i) {
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) sum[g] = view.blur[0] * load_unaligned(rows(0) + i + g * L);
#pragma GCC unroll 8
    for (int k = 1; k <= radius; ++k) {
      const Floats w = broadcast(view.blur[k]);
      const float *before = rows(-k) + i, *after = rows(k) + i;
#pragma GCC unroll 4
      for (int g = 0; g < count; ++g) sum[g] += w * (load_unaligned(before + g * L) + load_unaligned(after + g * L));
    }
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) store(out + i + g * L, sum[g]);
  };
  int64_t i = 0;
  Floats sum[4];
  for (; i + 4 * L <= n; i += 4 * L) some(sum, 4, i);
  for (; i < n; i += L) some(sum, 1, i);
}

// The radius made a constant where it is common.
template <typename Rows>
inline void weigh(const AugmentView& view, Rows rows, int64_t n, float* out) {
  switch (view.radius) {
    case 1:
      return weigh<1>(view, rows, n, out);
    case 2:
      return weigh<2>(view, rows, n, out);
    case 3:
      return weigh<3>(view, rows, n, out);
    case 4:
      return weigh<4>(view, rows, n, out);
    case 5:
      return weigh<5>(view, rows, n, out);
    case 6:
      return weigh<6>(view, rows, n, out);
    case 7:
      return weigh<7>(view, rows, n, out);
    default:
      return weigh<0>(view, rows, n, out);
  }
}

// out [size] <- x blurred along the row; `border` holds the row with its reflected border.
inline void blur_columns(const AugmentView& view, const float* x, float* border, float* out) {
  const int radius = view.radius, size = view.size;
  float* centre = border + radius;
  __builtin_memcpy(centre, x, size * sizeof(float));
  for (int k = 1; k <= radius; ++k) {
    centre[-k] = x[reflected(-k, size)];
    centre[size - 1 + k] = x[reflected(size - 1 + k, size)];
  }
  weigh(view, [centre](int k) { return centre + k; }, size, out);
}

// out [n] <- row y, n floats of all its channels, blurred across the rows; row i is at rows + (i mod (2 radius + 1)) *
// n.
inline void blur_rows(const AugmentView& view, const float* rows, int64_t n, int y, float* out) {
  const int radius = view.radius, ring = 2 * radius + 1;
  const float* around[2 * kMaxBlurRadius + 1];
  for (int k = -radius; k <= radius; ++k) around[radius + k] = rows + reflected(y + k, view.size) % ring * n;
  weigh(view, [&around, radius](int k) { return around[radius + k]; }, n, out);
}

// What is stored of a value of channel c.
inline Floats normalised(const AugmentView& view, int c, Floats x) {
  if (view.solarize) x = solarized(x, broadcast(view.threshold));
  return x * view.scale[c] + view.shift[c];
}

// RGBRGB... <- the normalised rows x + c * plane of three channels; within each 128 bits a shuffle a channel, and
// blends.
inline void weave3(const AugmentView& view, const float* x, int64_t plane, float* out) {
  Words red_lanes, green_lanes, blue_lanes, red_or_green[3], or_blue[3];
#pragma GCC unroll 16
  for (int lane = 0; lane < L; ++lane) {
    const int block = lane & ~3, in = lane & 3;
    red_lanes[lane] = block + (4 - in) % 4;
    green_lanes[lane] = block + (in ^ 1);
    blue_lanes[lane] = block + (in == 3 ? 3 : 2 - in);
#pragma GCC unroll 3
    for (int o = 0; o < 3; ++o) {  // output o of a block has channel (4 o + lane) mod 3 in its lanes
      const int channel = (4 * o + in) % 3;
      red_or_green[o][lane] = channel == 1 ? L + lane : lane;
      or_blue[o][lane] = channel == 2 ? L + lane : lane;
    }
  }
  for (int i = 0; i < view.size; i += L) {
    const Floats red = __builtin_shuffle(normalised(view, 0, load(x + i)), red_lanes);
    const Floats green = __builtin_shuffle(normalised(view, 1, load(x + plane + i)), green_lanes);
    const Floats blue = __builtin_shuffle(normalised(view, 2, load(x + 2 * plane + i)), blue_lanes);
    float woven[3 * L];
    float* to = i + L <= view.size ? out + 3 * i : woven;
#pragma GCC unroll 3
    for (int o = 0; o < 3; ++o) {
      const Floats mixed = __builtin_shuffle(__builtin_shuffle(red, green, red_or_green[o]), blue, or_blue[o]);
#pragma GCC unroll 4
      for (int block = 0; block < L / 4; ++block) {
        __builtin_memcpy(to + 12 * block + 4 * o, reinterpret_cast<const float*>(&mixed) + 4 * block, 16);
      }
    }
    if (to == woven) __builtin_memcpy(out + 3 * i, woven, 3 * (view.size - i) * sizeof(float));
  }
}

// out [size, C] <- the normalised rows x + c * plane
inline void weave(const AugmentView& view, const float* x, int64_t plane, float* row, float* out) {
  if (view.channels == 3) return weave3(view, x, plane, out);
  for (int c = 0; c < view.channels; ++c) {
    for (int i = 0; i < view.size; i += L) store(row + i, normalised(view, c, load(x + c * plane + i)));
    for (int i = 0; i < view.size; ++i) out[i * view.channels + c] = row[i];
  }
}

// Row y of the output <- the rows x + c * plane: solarised, normalised, in the output's type and order.
inline void store_row(const AugmentView& view, const AugmentScratch& scratch, const float* x, int64_t plane, int y) {
  const int64_t size = view.size, channels = view.channels, element = view.dtype == DType::float32 ? 4 : 2;
  char* out = static_cast<char*>(view.out);
  if (view.channels_last) {
    out += y * size * channels * element;
    float* woven = view.dtype == DType::float32 ? reinterpret_cast<float*>(out) : scratch.woven;
    weave(view, x, plane, scratch.border, woven);
    if (view.dtype != DType::float32) narrow_row(woven, out, size * channels, view.dtype);
    return;
  }
  for (int c = 0; c < channels; ++c) {
    for (int i = 0; i < size; i += L) store(scratch.border + i, normalised(view, c, load(x + c * plane + i)));
    narrow_row(scratch.border, out + (c * size + y) * size * element, size, view.dtype);
  }
}

}  // namespace
}  // namespace ssl_fast::SSL_FAST_ISA
