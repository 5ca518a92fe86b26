// What VICReg and Barlow Twins share: two views of fewer rows than columns, N < D, walked a chunk of columns at a time.
// A chunk [N, kept in L2] is loaded, shifted and scaled, and multiplied, and nothing of the size [N, D] is kept: the
// second walk makes the chunk anew from the input, which costs less than fresh memory would.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/buffer.h"
#include "cpu/columns.h"
#include "cpu/contrast.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace ssl_fast {

template <typename T>
struct TwoViews {
  static constexpr int64_t kChunkElements = 32768;
  static constexpr int64_t kSplits = 8;  // pieces of the columns whose Gram matrices are summed on their own

  TwoViews(Address z1, Address z2, int dtype, int64_t N, int64_t D, int threads)
      : t(tiles<T>()),
        passes(columns<T>()),
        z{z1, z2},
        dtype(static_cast<DType>(dtype)),
        N(N),
        D(D),
        threads(threads),
        columns_each(std::min(round_up(D, 64), std::clamp<int64_t>(kChunkElements / N / 64 * 64, 64, 512))),
        num_chunks((D + columns_each - 1) / columns_each),
        splits(std::min(kSplits, num_chunks)),
        ld(row_stride(t, columns_each)),
        padded(round_up(N, t.panel) + t.row_block),
        num_blocks(num_tiles(N) * (num_tiles(N) + 1) / 2),
        means(2 * D),
        factors(2 * D),
        squares(2 * D),
        grams(2 * splits * num_blocks * kTile * kTile),
        scratch(std::min<int64_t>(threads, std::max(num_chunks, 2 * splits)) * scratch_size()) {}

  // Four matrices [padded, ld] and numbers per column.
  int64_t scratch_size() const { return 4 * padded * ld + round_up(2 * columns_each * sizeof(double), 64) / sizeof(T); }
  T* scratch_of(int slot, int matrix) { return scratch.get() + slot * scratch_size() + matrix * padded * ld; }
  double* sums_of(int slot) { return reinterpret_cast<double*>(scratch_of(slot, 4)); }
  Range columns_of(int64_t chunk) const { return {chunk * columns_each, std::min(D, (chunk + 1) * columns_each)}; }
  // The tile of rows i and columns j >= i of a view's Gram matrix.
  T* gram(int view, int64_t split, int64_t i, int64_t j) {
    const int64_t block = i * num_tiles(N) - i * (i - 1) / 2 + j - i;
    return grams.get() + ((view * splits + split) * num_blocks + block) * kTile * kTile;
  }
  int64_t rows_of(int64_t tile) const { return std::min(kTile, N - tile * kTile); }

  // A view's columns as they are, [N, ld].
  void load(int view, Range c, T* rows) const {
    const int64_t bytes = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
    for (int64_t n = 0; n < N; ++n) {
      const void* from = reinterpret_cast<const void*>(z[view] + (n * D + c.begin) * bytes);
      t.load_rows(from, dtype, 1, c.size(), false, rows + n * ld, ld, nullptr);
    }
    std::fill(rows + N * ld, rows + padded * ld, T(0));
  }
  // The same less their means, times their factors.
  void shift(int view, Range c, T* rows) const {
    passes.shift(rows, N, ld, c.size(), means.get() + view * D + c.begin, factors.get() + view * D + c.begin);
  }

  // Means, sums of the centred squares, and x x^T of both views. factor(square): of a column.
  template <typename Factor>
  void sum_grams(const Factor& factor) {
    parallel_for(threads, 2 * splits, [&](int64_t task, int slot) {
      const int view = static_cast<int>(task % 2);
      const int64_t split = task / 2;
      for (int64_t i = 0; i < num_tiles(N); ++i) {
        for (int64_t j = i; j < num_tiles(N); ++j) clear(gram(view, split, i, j), rows_of(i), rows_of(j));
      }
      for (int64_t k = num_chunks * split / splits; k < num_chunks * (split + 1) / splits; ++k) {
        T *rows = scratch_of(slot, 0), *panels = scratch_of(slot, 1);
        const Range c = columns_of(k);
        load(view, c, rows);
        normalise(view, c, rows, sums_of(slot), factor);
        t.pack_panels(rows, ld, N, c.size(), panels);
        for (int64_t i = 0; i < num_tiles(N); ++i) {
          add_triangle(rows + i * kTile * ld, panels + i * kTile * c.size(), rows_of(i), c.size(),
                       gram(view, split, i, i));
          for (int64_t j = i + 1; j < num_tiles(N); ++j) {
            t.add_scores(rows + i * kTile * ld, ld, rows_of(i), panels + j * kTile * c.size(), rows_of(j), c.size(),
                         gram(view, split, i, j));
          }
        }
      }
    });
    for_gram_rows([&](int view, int64_t i, int64_t j, int64_t at, int64_t width) {
      T* total = gram(view, 0, i, j) + at;
      for (int64_t split = 1; split < splits; ++split) t.axpy(T(1), gram(view, split, i, j) + at, total, width);
    });
    for (int64_t i = 0; i < num_tiles(N); ++i) {
      for (int view = 0; view < 2; ++view) mirror(gram(view, 0, i, i), rows_of(i));
    }
  }

  // Sum of the products of two Gram matrices' cells; a tile off the diagonal stands for two.
  double inner(int first, int second) {
    double total = 0;
    for (int64_t i = 0; i < num_tiles(N); ++i) {
      for (int64_t j = i; j < num_tiles(N); ++j) {
        const T *a = gram(first, 0, i, j), *b = gram(second, 0, i, j);
        double sum = 0;
        for (int64_t row = 0; row < rows_of(i); ++row) {
          double of_row = 0;
          for (int64_t k = row * kTile; k < row * kTile + rows_of(j); ++k) of_row += static_cast<double>(a[k]) * b[k];
          sum += of_row;
        }
        total += i == j ? sum : 2 * sum;
      }
    }
    return total;
  }

  // The Gram matrices times a number.
  void scale_grams(T factor) {
    for_gram_rows([&](int view, int64_t i, int64_t j, int64_t at, int64_t width) {
      t.scale(factor, gram(view, 0, i, j) + at, width);
    });
  }

  // out += gram(view) rows, [N, width of the chunk].
  void add_gram_product(int view, const T* rows, int64_t width, T* out) {
    const int64_t whole = round_up(width, t.width_step);
    for (int64_t i = 0; i < num_tiles(N); ++i) {
      for (int64_t j = i; j < num_tiles(N); ++j) {
        const T* tile = gram(view, 0, i, j);
        t.add_product(tile, rows_of(i), rows_of(j), rows + j * kTile * ld, ld, whole, out + i * kTile * ld);
        if (i == j) continue;
        t.add_transposed_product(tile, rows_of(j), rows_of(i), rows + i * kTile * ld, ld, whole, out + j * kTile * ld);
      }
    }
  }

  void store(const T* rows, Range c, T* to) const {
    for (int64_t n = 0; n < N; ++n) std::copy_n(rows + n * ld, c.size(), to + n * D + c.begin);
  }

  const Tiles<T>& t;
  const Columns<T>& passes;
  const Address z[2];
  const DType dtype;
  const int64_t N, D;
  const int threads;
  const int64_t columns_each, num_chunks, splits, ld, padded, num_blocks;
  Buffer<T> means, factors;  // [2, D] what is taken from each column, and what it is then multiplied by
  Buffer<double> squares;    // [2, D] of the centred columns
  Buffer<T> grams;           // [2, splits, num_blocks, kTile, kTile]
  Buffer<T> scratch;

 private:
  // body(view, i, j, at, width) for every row of the tiles (i, j) of both Gram matrices, whole panels from cell `at`
  // on.
  template <typename Body>
  void for_gram_rows(const Body& body) {
    parallel_for(threads, 2 * num_tiles(N), [&](int64_t task, int) {
      const int64_t i = task / 2;
      for (int64_t j = i; j < num_tiles(N); ++j) {
        for (int64_t row = 0; row < rows_of(i); ++row) {
          body(static_cast<int>(task % 2), i, j, row * kTile, round_up(rows_of(j), t.panel));
        }
      }
    });
  }

  // Whole row blocks and panels.
  void clear(T* tile, int64_t m, int64_t n) const {
    for (int64_t i = 0; i < round_up(m, t.row_block); ++i) std::fill_n(tile + i * kTile, round_up(n, t.panel), T(0));
  }

  // Of a tile on the diagonal the panels of columns j down to their last row; `mirror` makes the rest.
  void add_triangle(const T* rows, const T* panels, int64_t count, int64_t depth, T* tile) const {
    for (int64_t j = 0; j < count; j += t.panel) {
      t.add_scores(rows, ld, std::min(count, j + t.panel), panels + j * depth, t.panel, depth, tile + j);
    }
  }
  static void mirror(T* tile, int64_t count) {
    for (int64_t i = 1; i < count; ++i) {
      for (int64_t j = 0; j < i; ++j) tile[i * kTile + j] = tile[j * kTile + i];
    }
  }

  template <typename Factor>
  void normalise(int view, Range c, T* rows, double* sums, const Factor& factor) {
    T *mean = means.get() + view * D + c.begin, *of_column = factors.get() + view * D + c.begin;
    double* square = squares.get() + view * D + c.begin;
    passes.sum(rows, N, ld, c.size(), sums);
    for (int64_t d = 0; d < c.size(); ++d) {
      mean[d] = static_cast<T>(sums[d] / N);
      of_column[d] = 1;
    }
    passes.shift(rows, N, ld, c.size(), mean, of_column);
    passes.sum_products(rows, rows, N, ld, c.size(), square);
    bool scaled = false;
    for (int64_t d = 0; d < c.size(); ++d) {
      of_column[d] = static_cast<T>(factor(square[d]));
      scaled |= of_column[d] != T(1);
    }
    if (!scaled) return;
    for (int64_t d = 0; d < c.size(); ++d) mean[d] = 0;
    passes.shift(rows, N, ld, c.size(), mean, of_column);
    for (int64_t d = 0; d < c.size(); ++d) mean[d] = static_cast<T>(sums[d] / N);
  }
};

}  // namespace ssl_fast
