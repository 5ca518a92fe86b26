// Bodies of the GPU's first two kernels for augmented views: the weights of every view, then its resized crop.
//
// Block is what a block of threads can do (csrc/cuda/augment.cu; in the tests one thread on a CPU):
//   each(n, f)     f(i) for all i < n, spread over the threads; what they wrote is seen by all threads afterwards
//   sum(n, f), largest(n, f)   of f(i), the same bits in every run, known to all threads
//   leader()       true in one thread
// Within one call no f(i) reads what another f(j) writes.
#pragma once

#include "core/jitter.h"
#include "core/view_batch.h"

#ifdef __CUDACC__
#define SSL_FAST_BODY __device__ __forceinline__
#else
#define SSL_FAST_BODY inline
#endif

namespace ssl_fast {

// One view of one image; n counts from the batch's first image.
struct ViewTask {
  std::int64_t n;
  int v;
  const float* row;  // of the table
  ViewSpace space;
};

SSL_FAST_BODY ViewTask task_of(const ViewBatch& batch, std::int64_t n, int v) {
  const float* row = batch.table + ((batch.first + n) * batch.num_views + v) * kColumns;
  return {n, v, row, space_of(batch, batch.views[v], n)};
}

SSL_FAST_BODY Axis axis_of(const ViewPlan& view, const float* row, bool rows) {
  return make_axis(view.filter, int(row[rows ? kHeight : kWidth]), view.size);
}

SSL_FAST_BODY double total_weight(const Axis& axis, const Window& window) {
  double total = 0;
  for (int k = 0; k < window.count; ++k) total += window_weight(axis, window, k);
  return total;
}

// firsts [S], weights [taps, S] of one axis; outputs in reverse order when flipped.
template <class Block>
SSL_FAST_BODY void fill_axis(Block& block, const Axis& axis, bool flip, int* firsts, float* weights) {
  const double largest = block.largest(axis.size, [&](int i) {
    const Window window = window_of(axis, i);
    double most = 0;
    for (int k = 0; k < window.count; ++k) most = larger(most, window_weight(axis, window, k));
    return most / total_weight(axis, window);
  });
  const int precision = weight_precision(largest);
  block.each(axis.size, [&](int i) {
    const Window window = window_of(axis, i);
    const double total = total_weight(axis, window);
    const int x = flip ? axis.size - 1 - i : i, last = axis.length - axis.taps;
    const int first = window.first < last ? window.first : last, before = window.first - first;
    firsts[x] = first;
    for (int k = 0; k < axis.taps; ++k) {
      const bool seen = k >= before && k < before + window.count;
      const double weight = seen ? window_weight(axis, window, k - before) / total : 0;
      weights[std::int64_t(k) * axis.size + x] = round_weight(weight, precision);
    }
  });
}

template <class Block>
SSL_FAST_BODY void fill_blur(Block& block, float sigma, int radius, float* weights) {
  float total = 0;
  for (int k = 0; k <= radius; ++k) total += (k == 0 ? 1 : 2) * blur_weight(sigma, k);
  block.each(radius + 1, [&](int k) { weights[k] = blur_weight(sigma, k) / total; });
}

// Kernel 1, num_views * count blocks: the weights of one view of one image.
template <class Block>
SSL_FAST_BODY void weigh(Block& block, const ViewBatch& batch, std::int64_t index) {
  const ViewTask task = task_of(batch, index / batch.num_views, int(index % batch.num_views));
  const ViewPlan& view = batch.views[task.v];
  const ViewSpace& space = task.space;
  fill_axis(block, axis_of(view, task.row, false), task.row[kFlip] != 0, space.firsts, space.weights);
  fill_axis(block, axis_of(view, task.row, true), false, space.firsts + view.size,
            space.weights + std::int64_t(view.taps) * view.size);
  if (task.row[kBlur] > 0) fill_blur(block, task.row[kBlur], blur_radius(task.row[kBlur], view.radius), space.blur);
}

// A tile of one view: its first row and column.
struct Tile {
  std::int64_t n;
  int v, number, y, x;
};

SSL_FAST_BODY Tile tile_of(const ViewBatch& batch, std::int64_t index) {
  const int t = int(index % batch.num_tiles);
  int v = 0;
  while (v + 1 < batch.num_views && batch.views[v + 1].first_tile <= t) ++v;
  const ViewPlan& view = batch.views[v];
  const int number = t - view.first_tile;
  const int y = number / view.across * view.tile_rows, x = number % view.across * view.tile_columns;
  return {index / batch.num_tiles, v, number, y, x};
}

// A sum, which began with 1/2, as a whole level.
SSL_FAST_BODY float whole_level(float sum) { return float(int(smaller(larger(sum, 0.0f), 255.0f))); }

// The crop of one view of one image, and how to resize it.
struct Crop {
  const std::uint8_t* begin;
  std::int64_t row_bytes;
  int channels, size, column_taps, row_taps;
  const int *columns, *rows;                  // [S] first pixels
  const float *column_weights, *row_weights;  // [taps, S]
};

SSL_FAST_BODY Crop crop_of(const ViewBatch& batch, const ViewTask& task) {
  const ViewPlan& view = batch.views[task.v];
  const std::int64_t image = batch.first + task.n, row_bytes = batch.extents[2 * image + 1] * batch.channels;
  const std::uint8_t* begin =
      batch.images[image] + std::int64_t(task.row[kTop]) * row_bytes + std::int64_t(task.row[kLeft]) * batch.channels;
  const ViewSpace& space = task.space;
  return {begin,
          row_bytes,
          batch.channels,
          view.size,
          axis_of(view, task.row, false).taps,
          axis_of(view, task.row, true).taps,
          space.firsts,
          space.firsts + view.size,
          space.weights,
          space.weights + std::int64_t(view.taps) * view.size};
}

// levels <- pixel x of a row of the crop with its columns resized; `row` begins with the first of P channels.
template <int P>
SSL_FAST_BODY void resize_pixel(const Crop& crop, const std::uint8_t* row, int x, float (&levels)[P]) {
  const std::uint8_t* pixel = row + std::int64_t(crop.columns[x]) * crop.channels;
  const float* weight = crop.column_weights + x;
  for (int c = 0; c < P; ++c) levels[c] = 0.5f;
  for (int k = 0; k < crop.column_taps; ++k, pixel += crop.channels, weight += crop.size) {
    for (int c = 0; c < P; ++c) levels[c] += *weight * float(pixel[c]);
  }
  for (int c = 0; c < P; ++c) levels[c] = whole_level(levels[c]);
}

// `rows` rows from y on of column x, channels c ... c + P - 1. The thread walks down the crop's rows: it resizes
// each in its own column and adds it to the output rows that see it, so nothing is kept but kRows * P sums, however
// many pixels an output is made of, and a crop's row is resized again only where two groups of output rows see it.
template <int P>
SSL_FAST_BODY void resize_rows(const Crop& crop, int y, int rows, int x, int c, float (&sums)[kRows][P]) {
  const int end = crop.rows[y + rows - 1] + crop.row_taps;
  int first[kRows];
  for (int j = 0; j < kRows; ++j) {
    first[j] = j < rows ? crop.rows[y + j] : end;  // a row that is not there sees nothing
    for (int p = 0; p < P; ++p) sums[j][p] = 0.5f;
  }
  for (int s = first[0]; s < end; ++s) {
    float levels[P];
    resize_pixel(crop, crop.begin + s * crop.row_bytes + c, x, levels);
    for (int j = 0; j < kRows; ++j) {
      const int k = s - first[j];
      if (k < 0 || k >= crop.row_taps) continue;
      const float weight = crop.row_weights[k * crop.size + y + j];
      for (int p = 0; p < P; ++p) sums[j][p] += weight * levels[p];
    }
  }
  for (int j = 0; j < kRows; ++j) {
    for (int p = 0; p < P; ++p) sums[j][p] = whole_level(sums[j][p]);
  }
}

// pixel <- P values of pixel (y, x), the first of channel c, after the first `num` operations; levels: [C, S, S].
template <int P>
SSL_FAST_BODY void coloured(const std::uint8_t* levels, std::int64_t size, const Jitter& jitter, int num, int y, int x,
                            int c, float (&pixel)[P]) {
  const std::uint8_t* from = levels + (c * size + y) * size + x;
  for (int p = 0; p < P; ++p) pixel[p] = float(from[p * size * size]) * (1.0f / 255.0f);
  apply(jitter, num, pixel);
}

// Kernel 2, num_tiles * count blocks: the levels of one tile and, where contrast needs it, their sum of grey. P is 3
// for three channels, else 1.
template <int P, class Block>
SSL_FAST_BODY void resize_tile(Block& block, const ViewBatch& batch, std::int64_t index) {
  const Tile tile = tile_of(batch, index);
  const ViewPlan& view = batch.views[tile.v];
  const ViewTask task = task_of(batch, tile.n, tile.v);
  const Crop crop = crop_of(batch, task);
  const int size = view.size, groups = view.tile_rows / kRows, columns = view.tile_columns, parts = batch.channels / P;
  std::uint8_t* levels = task.space.levels;
  block.each(parts * groups * columns, [&](int i) {
    const int x = tile.x + i % columns, y = tile.y + i / columns % groups * kRows, c = i / (columns * groups) * P;
    if (x >= size || y >= size) return;
    const int rows = size - y < kRows ? size - y : kRows;
    float sums[kRows][P];
    resize_rows(crop, y, rows, x, c, sums);
    std::uint8_t* to = levels + (std::int64_t(c) * size + y) * size + x;
    for (int p = 0; p < P; ++p, to += std::int64_t(size) * size) {
      for (int j = 0; j < kRows; ++j) {
        if (j < rows) to[j * size] = std::uint8_t(sums[j][p]);
      }
    }
  });
  const Jitter jitter = jitter_of(task.row, view.operations);
  if (jitter.before_contrast == jitter.num) return;
  const double grey = block.sum(parts * view.tile_rows * columns, [&](int i) {
    const int x = tile.x + i % columns, y = tile.y + i / columns % view.tile_rows,
              c = i / (columns * view.tile_rows) * P;
    if (x >= size || y >= size) return 0.0f;
    float pixel[P];
    coloured(levels, size, jitter, jitter.before_contrast, y, x, c, pixel);
    if constexpr (P == 3) return luma(pixel[0], pixel[1], pixel[2]);
    return pixel[0];
  });
  if (block.leader()) task.space.partials[tile.number] = grey;
}

}  // namespace ssl_fast
