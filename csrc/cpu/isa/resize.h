// Crop and antialiased resize of 8-bit pixels with fp32 weights (core/resample.h), a vector of rows at a time. Included
// once by cpu/isa/augment.cpp; everything is local to that file and its instruction set.
//
// Columns: a block of rows is transposed, so that a vector holds one pixel of as many rows; then an output pixel is a
// sum of whole vectors, whatever the number of channels, and nothing is gathered. Rows: vectors run along the row.
#pragma once

#include <cstdint>

#include "cpu/isa/augment.h"
#include "cpu/isa/vec.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int L = kLanes<float>;
constexpr int kBytes = 4 * L;  // of a row that are transposed at a time
using Floats = Vec<float>;
using Words = VecOf<float>::bits;
typedef int32_t Ints __attribute__((vector_size(kVecBytes)));

// Exchanges the off-diagonal blocks of distance D.
template <int D>
inline void exchange(Words& a, Words& b) {
  Words low, high;
#pragma GCC unroll 16
  for (int lane = 0; lane < L; ++lane) {
    low[lane] = lane & D ? L + lane - D : lane;
    high[lane] = lane & D ? L + lane : lane + D;
  }
  const Words first = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = first;
}

template <int D>
inline void exchange_all(Words* m) {
  if constexpr (D < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (!(i & D)) exchange<D>(m[i], m[i + D]);
    }
    exchange_all<2 * D>(m);
  }
}

// m[i][j] <-> m[j][i]
inline void transpose(Words (&m)[L]) { exchange_all<1>(m); }

// Byte b of every word.
inline Floats unpack(Words packed, int b) {
  return __builtin_convertvector((Ints)(b == 3 ? packed >> 24 : packed >> (8 * b) & 255u), Floats);
}

// source[e][r] <- byte e of row r, e < n
inline void transpose_rows(const uint8_t* const (&rows)[L], int n, float* source) {
  for (int e = 0; e < n; e += kBytes) {
    const int begin = e + kBytes <= n ? e : n >= kBytes ? n - kBytes : 0;  // the last ones again, not what lies behind
    Words m[L] = {};
    if (n >= kBytes) {
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) __builtin_memcpy(&m[r], rows[r] + begin, kBytes);
    } else {
      for (int r = 0; r < L; ++r) __builtin_memcpy(&m[r], rows[r], n);
    }
    transpose(m);
#pragma GCC unroll 16
    for (int w = 0; w < L; ++w) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        store(source + (begin + 4 * w + b) * L, unpack(m[w], b));
      }
    }
  }
}

// Bytes from one channel of a resized row to the next.
inline int level_pitch(const AugmentView& view) { return (view.size + kBytes - 1) / kBytes * kBytes; }

// A sum, which began with 1/2, as a whole level. Only weights of both signs lead beyond the levels.
template <bool clamp>
inline Ints level(Floats sum) {
  if constexpr (clamp) {
    const Floats none = {}, most = broadcast(255.0f);
    sum = sum > none ? sum : none;
    sum = sum < most ? sum : most;
  }
  return __builtin_convertvector(sum, Ints);
}

// The first of the four pixels, L apart, that word q of a resized row holds: a vector of words unpacks into whole
// vectors of neighbours.
inline int first_pixel(int q) { return q / L * kBytes + q % L; }

// words[c][q] <- four resized pixels of L rows, for G channels from `c` on. T: the number of taps, or 0 for any.
template <int G, int T, bool clamp>
void resize_block(const AugmentView& view, const float* source, int c, int pitch, uint32_t* words) {
  const int taps = T ? T : view.columns.taps, step = view.channels * L, last = view.size - 1;
  for (int q = 0; q < pitch / 4; ++q) {
    Words packed[G] = {};
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const int x = first_pixel(q) + b * L < last ? first_pixel(q) + b * L : last;
      const float* weight = view.columns.weights + int64_t(x) * taps;
      const float* pixel = source + int64_t(view.columns.first[x]) * step + c * L;
      Floats sum[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sum[g] = broadcast(0.5f);
#pragma GCC unroll 8
      for (int k = 0; k < taps; ++k, pixel += step) {
        const Floats w = broadcast(weight[k]);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[g] += w * load(pixel + g * L);
      }
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) packed[g] |= (Words)level<clamp>(sum[g]) << (8 * b);
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) *reinterpret_cast<Words*>(words + ((c + g) * pitch / 4 + q) * L) = packed[g];
  }
}

using BlockResizer = void (*)(const AugmentView&, const float*, int, int, uint32_t*);

template <int G>
BlockResizer block_resizer(const AxisWeights& columns) {
  if (columns.filter == Filter::bicubic) return columns.taps == 4 ? resize_block<G, 4, true> : resize_block<G, 0, true>;
  constexpr BlockResizer by_taps[] = {resize_block<G, 0, false>, resize_block<G, 1, false>, resize_block<G, 2, false>,
                                      resize_block<G, 3, false>, resize_block<G, 4, false>, resize_block<G, 5, false>,
                                      resize_block<G, 6, false>};
  return by_taps[columns.taps <= 6 ? columns.taps : 0];
}

// levels [height, C, pitch] <- the crop with its columns resized
inline void resize_columns(const AugmentView& view, const AugmentScratch& scratch) {
  const int C = view.channels, pitch = level_pitch(view);
  const BlockResizer three = block_resizer<3>(view.columns), one = block_resizer<1>(view.columns);
  for (int y = 0; y < view.height; y += L) {
    const uint8_t* rows[L];
    for (int r = 0; r < L; ++r) rows[r] = view.crop + (y + r < view.height ? y + r : view.height - 1) * view.row_bytes;
    transpose_rows(rows, view.width * C, scratch.source);
    int c = 0;
    for (; c + 3 <= C; c += 3) three(view, scratch.source, c, pitch, scratch.words);
    for (; c < C; ++c) one(view, scratch.source, c, pitch, scratch.words);
    const int num_rows = view.height - y < L ? view.height - y : L;
    for (int w = 0; w < C * pitch / 4; w += L) {
      Words m[L];
      for (int i = 0; i < L; ++i) m[i] = *reinterpret_cast<const Words*>(scratch.words + (w + i) * L);
      transpose(m);
      for (int r = 0; r < num_rows; ++r) {
        *reinterpret_cast<Words*>(scratch.levels + int64_t(y + r) * C * pitch + 4 * w) = m[r];
      }
    }
  }
}

// out [size padded to vectors] <- row y of channel c of the view, in [0, 1]. A byte is masked where it stands in its
// word and so counts 256^b times; undoing it at the end is exact.
template <bool clamp>
inline void resize_row(const AugmentView& view, const uint8_t* levels, int y, int c, float* out) {
  const int taps = view.rows.taps, pitch = level_pitch(view);
  const float* weight = view.rows.weights + int64_t(y) * taps;
  const int64_t step = int64_t(view.channels) * pitch;
  const uint8_t* first = levels + view.rows.first[y] * step + int64_t(c) * pitch;
  constexpr float kOne[4] = {1, 0x1p8f, 0x1p16f, 1};
  for (int x = 0; x < view.size; x += kBytes) {
    Floats sum[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) sum[b] = broadcast(0.5f * kOne[b]);
    const uint8_t* from = first + x;
    for (int k = 0; k < taps; ++k, from += step) {
      const Words packed = *reinterpret_cast<const Words*>(from);
      const Floats w = broadcast(weight[k]);
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const Words byte = b == 3 ? packed >> 24 : packed & (255u << (8 * b));
        sum[b] += w * __builtin_convertvector((Ints)byte, Floats);
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      if (x + b * L >= view.size) break;
      store(out + x + b * L, __builtin_convertvector(level<clamp>(sum[b] * (1 / kOne[b])), Floats) * (1.0f / 255.0f));
    }
  }
}

}  // namespace
}  // namespace ssl_fast::SSL_FAST_ISA
