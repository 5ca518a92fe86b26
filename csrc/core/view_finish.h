// Body of the GPU's third kernel for augmented views: from the resized crop to the normalised output. See
// core/view_weigh.h for what a Block is; beyond that, store(to, x) rounds a float to the type of the output.
#pragma once

#include "core/view_resize.h"

namespace ssl_fast {

// One tile of one view while it is finished.
struct Finish {
  const ViewBatch& batch;
  const ViewPlan& view;
  Tile tile;
  const std::uint8_t* levels;  // [C, S, S]
  Jitter jitter;
  bool grayscale, solarize;
};

// Mean grey of the whole view: the sums of its tiles, always in the same order.
SSL_FAST_BODY float mean_grey(const ViewBatch& batch, const ViewPlan& view, const double* partials) {
  double total = 0;
  for (int i = 0; i < view.down * view.across; ++i) total += partials[i];
  const int planes = batch.channels == 3 ? 1 : batch.channels;
  return float(total / (double(view.size) * view.size * planes));
}

SSL_FAST_BODY Finish finish_of(const ViewBatch& batch, const ViewTask& task, const Tile& tile) {
  const ViewPlan& view = batch.views[tile.v];
  Jitter jitter = jitter_of(task.row, view.operations);
  if (jitter.before_contrast < jitter.num) {
    jitter.shade = mean_grey(batch, view, task.space.partials) * (1 - jitter.contrast);
  }
  const bool grayscale = task.row[kGrayscale] != 0 && batch.channels == 3;
  return {batch, view, tile, task.space.levels, jitter, grayscale, task.row[kSolarize] != 0};
}

// pixel <- P values of pixel (y, x), the first of channel c, with all that changes colours.
template <int P>
SSL_FAST_BODY void recoloured(const Finish& finish, int y, int x, int c, float (&pixel)[P]) {
  coloured(finish.levels, finish.view.size, finish.jitter, finish.jitter.num, y, x, c, pixel);
  if constexpr (P == 3) {
    if (finish.grayscale) pixel[0] = pixel[1] = pixel[2] = luma(pixel[0], pixel[1], pixel[2]);
  }
}

// The output's channels c ... c + P - 1 of a pixel: solarised, normalised.
template <int P, class T, class Block>
SSL_FAST_BODY void put(Block& block, const Finish& finish, int y, int x, int c, const float (&pixel)[P]) {
  const std::int64_t size = finish.view.size, channels = finish.batch.channels;
  const std::int64_t image = (finish.batch.first + finish.tile.n) * channels * size * size, place = y * size + x;
  const float* scale = finish.batch.normalisation + 2 * finish.tile.v * channels + c;
  T* out = static_cast<T*>(finish.view.out) + image;
  for (int p = 0; p < P; ++p) {
    const float value = finish.solarize ? solarized(pixel[p], finish.view.threshold) : pixel[p];
    const std::int64_t to = finish.batch.channels_last ? place * channels + c + p : (c + p) * size * size + place;
    block.store(out + to, value * scale[p] + scale[p + channels]);
  }
}

// A pixel that a blur sees beyond the border; one too far beyond it, which no stored pixel sees, is any that exists.
SSL_FAST_BODY int mirrored(int i, int size) {
  const int inside = reflected(i, size);
  return inside < 0 ? 0 : inside;
}

// Blurs a tile in shared memory: `taps` [padded_taps] weights, `lines` [P, tile_rows, width] the tile blurred across
// the rows, with the columns beside it that the blur along the row sees.
template <int P, class T>
struct Blur {
  const Finish& finish;
  int radius, width;  // width: blurred_columns
  float* taps;
  float* lines;

  // taps <- the weights on both sides, kRows - 1 zeros before and behind
  template <class Block>
  SSL_FAST_BODY void spread(Block& block, const float* weights) const {
    block.each(padded_taps(radius), [&](int i) {
      const int k = i - (radius + kRows - 1), distance = k < 0 ? -k : k;
      taps[i] = distance <= radius ? weights[distance] : 0.0f;
    });
  }

  // Like resize_rows: a thread walks down its column and keeps kRows sums.
  template <class Block>
  SSL_FAST_BODY void across_rows(Block& block, int c) const {
    const int size = finish.view.size, groups = finish.view.tile_rows / kRows;
    block.each(groups * width, [&](int i) {
      const int column = i % width, line = i / width * kRows, y = finish.tile.y + line;
      const int x = mirrored(finish.tile.x - radius + column, size);
      float sums[kRows][P] = {};
      for (int k = -radius; k < radius + kRows; ++k) {
        float pixel[P];
        recoloured(finish, mirrored(y + k, size), x, c, pixel);
        const float* tap = taps + k + radius;  // of output row kRows - 1; that of row j lies kRows - 1 - j behind it
        for (int j = 0; j < kRows; ++j) {
          for (int p = 0; p < P; ++p) sums[j][p] += tap[kRows - 1 - j] * pixel[p];
        }
      }
      for (int j = 0; j < kRows; ++j) {
        for (int p = 0; p < P; ++p) lines[(p * finish.view.tile_rows + line + j) * width + column] = sums[j][p];
      }
    });
  }

  template <class Block>
  SSL_FAST_BODY void along_rows(Block& block, int c) const {
    const int size = finish.view.size, columns = finish.view.tile_columns, rows = finish.view.tile_rows;
    block.each(rows * columns, [&](int i) {
      const int line = i / columns, column = i % columns, y = finish.tile.y + line, x = finish.tile.x + column;
      if (y >= size || x >= size) return;
      float sums[P] = {};
      const float* from = lines + line * width + column;
      const float* tap = taps + kRows - 1;
      for (int k = 0; k <= 2 * radius; ++k) {
        for (int p = 0; p < P; ++p) sums[p] += tap[k] * from[p * rows * width + k];
      }
      put<P, T>(block, finish, y, x, c, sums);
    });
  }
};

// Kernel 3, num_tiles * count blocks: one tile of the output. shared: shared_floats(view, P) floats.
template <int P, class T, class Block>
SSL_FAST_BODY void finish_tile(Block& block, const ViewBatch& batch, std::int64_t index, float* shared) {
  const Tile tile = tile_of(batch, index);
  const ViewTask task = task_of(batch, tile.n, tile.v);
  const Finish finish = finish_of(batch, task, tile);
  const ViewPlan& view = finish.view;
  const int radius = task.row[kBlur] > 0 ? blur_radius(task.row[kBlur], view.radius) : 0;
  const Blur<P, T> blur{finish, radius, blurred_columns(view, radius), shared, shared + padded_taps(radius)};
  if (radius > 0) blur.spread(block, task.space.blur);
  for (int c = 0; c < batch.channels; c += P) {
    if (radius > 0) {
      blur.across_rows(block, c);
      blur.along_rows(block, c);
      continue;
    }
    block.each(view.tile_rows * view.tile_columns, [&](int i) {
      const int y = tile.y + i / view.tile_columns, x = tile.x + i % view.tile_columns;
      if (y >= view.size || x >= view.size) return;
      float pixel[P];
      recoloured(finish, y, x, c, pixel);
      put<P, T>(block, finish, y, x, c, pixel);
    });
  }
}

}  // namespace ssl_fast
