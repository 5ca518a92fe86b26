// Body of the GPU's second kernel for augmented views: the resized crop. core/view_weigh.h says what a Block is.
#pragma once

#include "core/jitter.h"
#include "core/view_weigh.h"

namespace ssl_fast {

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
