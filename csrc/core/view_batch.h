// What the GPU's kernels for augmented views are given, and where things lie in their workspace. Plain numbers, so that
// the same code runs on a CPU in the tests.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/resample.h"
#include "core/view_table.h"

namespace ssl_fast {

constexpr int kMaxViews = 64;      // of one call: they travel in the kernels' parameters
constexpr int kRows = 8;           // output rows of a column that one thread makes
constexpr int kMaxColumns = 256;   // of a tile
constexpr int kTilePixels = 2048;  // of a tile, at most (a tile has at least kRows rows)

// One view of every image. It is made in tiles of whole groups of kRows rows.
struct ViewPlan {
  void* out;            // [N, C, size, size], or [N, size, size, C]
  std::int64_t offset;  // of the view in an image's workspace, bytes
  Filter filter;
  int size, operations, radius, taps;  // radius: the largest of the blur; taps: the most of a resize in this call
  float threshold;                     // of solarisation
  int tile_rows, tile_columns, down, across;  // tiles of the view: down * across
  int first_tile;                             // number of its first tile among those of all views of an image
};

// `count` images, from image `first` of the call on.
struct ViewBatch {
  const std::uint8_t* const* images;  // [N] addresses of [H, W, C]
  const std::int64_t* extents;        // [N, 2] H, W
  const float* table;                 // [N, V, kColumns]
  const float* normalisation;         // [V, 2, C] the output is x * first + second
  char* workspace;                    // [count, image_bytes]
  std::int64_t image_bytes, first, count;
  int channels, num_views, num_tiles;  // tiles of all views of an image
  bool channels_last;
  ViewPlan views[kMaxViews];
};

// A view's part of an image's workspace.
struct ViewSpace {
  double* partials;      // [tiles] sums of the grey that contrast needs the mean of
  int* firsts;           // [2, S] of columns and rows: the first pixel that an output pixel is made of
  float* weights;        // [2, taps, S] of columns and rows
  float* blur;           // [radius + 1] weights from the centre outwards
  std::uint8_t* levels;  // [C, S, S] the resized crop: whole levels, as torch's uint8 resize gives them
};

SSL_FAST_HD std::int64_t view_bytes(const ViewPlan& view, int channels) {
  const std::int64_t size = view.size, words = 2 * size * (1 + view.taps) + view.radius + 1;
  const std::int64_t bytes = 8 * std::int64_t(view.down) * view.across + 4 * words + channels * size * size;
  return (bytes + 15) / 16 * 16;
}

SSL_FAST_HD ViewSpace space_of(const ViewBatch& batch, const ViewPlan& view, std::int64_t n) {
  char* begin = batch.workspace + n * batch.image_bytes + view.offset;
  double* partials = reinterpret_cast<double*>(begin);
  int* firsts = reinterpret_cast<int*>(partials + view.down * view.across);
  float* weights = reinterpret_cast<float*>(firsts + 2 * view.size);
  float* blur = weights + 2 * std::int64_t(view.taps) * view.size;
  return {partials, firsts, weights, blur, reinterpret_cast<std::uint8_t*>(blur + view.radius + 1)};
}

// Floats of shared memory that a tile needs where it is blurred: rows blurred across the rows, with what lies beside
// them, of `planes` channels at a time; and the weights on both sides, with zeros around.
SSL_FAST_HD int blurred_columns(const ViewPlan& view, int radius) { return view.tile_columns + 2 * radius; }
SSL_FAST_HD int padded_taps(int radius) { return 2 * (radius + kRows) - 1; }
SSL_FAST_HD int shared_floats(const ViewPlan& view, int planes) {
  return padded_taps(view.radius) + planes * view.tile_rows * blurred_columns(view, view.radius);
}

}  // namespace ssl_fast
