// What csrc/cpu/isa/augment.cpp provides for each instruction set: one view of one image, from its decoded pixels to
// the normalised output.
#pragma once

#include <cstdint>

#include "core/colour.h"
#include "core/resample.h"
#include "ops.h"

namespace ssl_fast {

constexpr int kMaxBlurRadius = 256;  // taps beside the centre

// Weights of one axis: output i is made of pixels first[i] ... first[i] + taps - 1; where it sees fewer, weights are 0.
struct AxisWeights {
  Filter filter;
  int taps;
  int* first;      // [size]
  float* weights;  // [size, taps]
};

// One view of one image.
struct AugmentView {
  const std::uint8_t* crop;  // its first byte
  std::int64_t row_bytes;    // from one row of the image to the next
  int channels, height, width, size;
  AxisWeights columns, rows;
  int num_steps;  // of colour jitter
  Colour steps[4];
  float factors[4];  // of each step; for hue its sixths
  bool grayscale, solarize, channels_last;
  float threshold;     // of solarisation
  int radius;          // of the blur, 0 for none
  const float* blur;   // [radius + 1] weights from the centre outwards
  const float* scale;  // [C] the output is x * scale + shift
  const float* shift;  // [C]
  void* out;           // [C, size, size], or [size, size, C]
  DType dtype;         // float32, float16 or bfloat16
};

// Room that a row of `size` pixels takes: whole vectors of floats, or of bytes in fours.
inline std::int64_t pitch_of(std::int64_t size) { return (size + 15) / 16 * 16; }
inline std::int64_t level_pitch_of(std::int64_t size) { return (size + 63) / 64 * 64; }

// Rows that are worked on at a time: pixels enough to be worth the calls.
inline int tile_rows(int size) {
  const int rows = int(512 / pitch_of(size));
  return rows < 1 ? 1 : rows < size ? rows : size;
}

// Memory to make views in, each pointer aligned to 64 bytes. S: pitch_of(size), B: level_pitch_of(size); pads hold
// anything finite.
struct AugmentScratch {
  float* source;         // [max(width * C, 64), 16] a block of crop rows, transposed
  std::uint32_t* words;  // [C * B / 4, 16] the same with its columns resized, four levels a word
  std::uint8_t* levels;  // [height, C, B] the crop with its columns resized
  float* image;          // [tiles, C, tile_rows, S]
  float* blurred;        // [2 radius + 1, C, S] rows blurred along the row
  float* border;         // [2 radius + S] a row of one channel: with its reflected border, or to be stored
  float* row;            // [C, S] a row blurred both ways
  float* woven;          // [S, C] the same, channels last
};

struct AugmentKernels {
  void (*make)(const AugmentView& view, const AugmentScratch& scratch);
};

namespace generic {
extern const AugmentKernels augment;
}
namespace avx2 {
extern const AugmentKernels augment;
}
namespace avx512 {
extern const AugmentKernels augment;
}

}  // namespace ssl_fast
