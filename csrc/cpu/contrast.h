// What the forward and backward of NT-Xent, SupCon and DCL share: the rows of one call, loaded, and the cells of a tile
// that are no negatives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace ssl_fast {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kMaxFixedRange = 80;  // of the logits, in nats: beyond it exp() of a fixed offset leaves the floats

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool contains(int64_t i) const { return i >= begin && i < end; }
};

// A matrix whose rows lie in one or two places: row i < split at `first`, the others at `second`.
struct Parts {
  Address first, second;
  int64_t split;
  static Parts whole(Address x) { return {x, 0, std::numeric_limits<int64_t>::max()}; }
  void* row(int64_t i, int64_t bytes) const {
    return reinterpret_cast<void*>(i < split ? first + i * bytes : second + (i - split) * bytes);
  }
};

inline int64_t num_tiles(int64_t rows) { return (rows + kTile - 1) / kTile; }

// Row length in memory: whole vectors for every width, and an odd number of cache lines, so that a column of a tile
// does not fall on a few cache sets.
template <typename T>
int64_t row_stride(const Tiles<T>& t, int64_t D) {
  const int64_t ld = round_up(round_up(D, t.width_step), 16);
  return ld / 16 % 2 == 0 ? ld + 16 : ld;
}

// z of all rows, row-major; and, of the rows wanted, the transposed panels.
template <typename T>
struct Contrast {
  Contrast(const Parts& x, DType dtype, const int64_t* positive, const int64_t* classes, int64_t N, int64_t D,
           Range wanted, double inv_temperature, bool normalize, int threads)
      : t(tiles<T>()),
        N(N),
        D(D),
        width(round_up(D, t.width_step)),
        ld(row_stride(t, D)),
        wanted(wanted),
        positive(positive),
        classes(classes),
        inv_temperature(inv_temperature),
        scale(static_cast<T>(inv_temperature * kLog2E)),
        z(round_up(N, t.row_block) * ld),
        panels(round_up(wanted.size(), t.panel) * D),
        norms(N),
        class_sizes(classes == nullptr ? 0 : N, 0) {
    check_positives();
    count_classes();
    load(x, dtype, normalize, threads);
    const T longest = normalize ? T(1) : *std::max_element(norms.get(), norms.get() + N);
    bound = inv_temperature * static_cast<double>(longest) * static_cast<double>(longest);
  }

  bool all_rows() const { return wanted.size() == N; }
  // Every logit lies in [-bound, bound]: a fixed offset then keeps all exponentials inside the floats.
  bool fixed_offset() const { return 2 * bound <= kMaxFixedRange; }
  T fixed_bias() const { return static_cast<T>(-bound * kLog2E); }

  Range tile_of_all(int64_t tile) const { return {tile * kTile, std::min(N, (tile + 1) * kTile)}; }
  Range tile_of_wanted(int64_t tile) const {
    return {wanted.begin + tile * kTile, std::min(wanted.end, wanted.begin + (tile + 1) * kTile)};
  }
  const T* row(int64_t i) const { return z.get() + i * ld; }
  int64_t num_positives(int64_t i) const {
    if (classes == nullptr) return 1;
    return classes[i] < 0 ? 0 : class_sizes[classes[i]] - 1;
  }
  bool left_out(int64_t i) const { return some_left_out && classes[i] < 0; }
  T logit(int64_t i, int64_t j) const { return static_cast<T>(inv_temperature) * t.dot(row(i), row(j), width); }

  // tile[a][b] = <z_a, z_b>, b among the wanted rows and beginning on one of their tiles.
  void scores(Range rows, Range columns, T* tile) const {
    const T* of_columns = panels.get() + (columns.begin - wanted.begin) * D;
    t.scores(row(rows.begin), ld, rows.size(), of_columns, columns.size(), D, tile);
    constexpr T never = -std::numeric_limits<T>::infinity();
    for (int64_t a = 0; a < rows.size(); ++a) {
      std::fill(tile + a * kTile + columns.size(), tile + a * kTile + round_up(columns.size(), t.panel), never);
    }
  }

  const Tiles<T>& t;
  const int64_t N, D, width, ld;
  const Range wanted;
  const int64_t* const positive;  // [N]
  const int64_t* const classes;   // [N] or null
  bool some_left_out = false;
  const double inv_temperature;
  const T scale;                // inv_temperature log2(e): 2^(scale <z_i, z_j>) = exp(s_ij)
  Buffer<T> z;                  // [N, ld] (and zero rows up to a whole row block)
  Buffer<T> panels;             // of the wanted rows
  Buffer<T> norms;              // [N]
  Buffer<int64_t> class_sizes;  // [N], by the number of the class
  double bound = 0;

 private:
  void check_positives() const {
    for (int64_t i = 0; i < N; ++i) {
      if (positive[i] < 0 || positive[i] >= N || (positive[i] == i && classes == nullptr)) {
        throw std::invalid_argument("positive[" + std::to_string(i) + "] must be another row in [0, " +
                                    std::to_string(N) + "), got " + std::to_string(positive[i]));
      }
    }
  }

  void count_classes() {
    for (int64_t i = 0; classes != nullptr && i < N; ++i) {
      if (classes[i] < -1 || classes[i] >= N) {
        throw std::invalid_argument("classes[" + std::to_string(i) + "] must be in [-1, " + std::to_string(N) +
                                    "), got " + std::to_string(classes[i]));
      }
      some_left_out |= classes[i] < 0;
      if (classes[i] >= 0) ++class_sizes[classes[i]];
    }
  }

  void load(const Parts& x, DType dtype, bool normalize, int threads) {
    const int64_t bytes = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
    parallel_for(threads, num_tiles(N), [&](int64_t tile, int) {
      const Range rows = tile_of_all(tile);
      const int64_t middle = std::clamp(x.split, rows.begin, rows.end);
      for (const Range part : {Range{rows.begin, middle}, Range{middle, rows.end}}) {
        if (part.size() == 0) continue;
        t.load_rows(x.row(part.begin, D * bytes), dtype, part.size(), D, normalize, z.get() + part.begin * ld, ld,
                    norms.get() + part.begin);
      }
    });
    std::fill(z.get() + N * ld, z.get() + round_up(N, t.row_block) * ld, T(0));
    parallel_for(threads, num_tiles(wanted.size()), [&](int64_t tile, int) {
      const Range rows = tile_of_wanted(tile);
      t.pack_panels(row(rows.begin), ld, rows.size(), D, panels.get() + (rows.begin - wanted.begin) * D);
    });
  }
};

// Cells of a tile whose pair (a, b) is a positive seen from one side only (more than two views): out of the tile, and
// added to the other side alone.
template <typename T>
struct OneSided {
  struct Cell {
    int64_t a, b;    // within the tile
    T score;         // what stood there
    bool of_column;  // true: still a negative of column b; false: of row a
  };
  Cell cells[2 * kTile];
  int count = 0;
  const Cell* begin() const { return cells; }
  const Cell* end() const { return cells + count; }
};

// Takes the rows of no class out of the tile, whichever side they are on.
template <typename T>
void exclude_left_out(const Contrast<T>& c, Range rows, Range columns, T* tile) {
  if (!c.some_left_out) return;
  constexpr T never = -std::numeric_limits<T>::infinity();
  for (int64_t a = rows.begin; a < rows.end; ++a) {
    T* row = tile + (a - rows.begin) * kTile;
    for (int64_t b = columns.begin; b < columns.end; ++b) {
      if (c.left_out(a) || c.left_out(b)) row[b - columns.begin] = never;
    }
  }
}

// Takes self pairs and positives out of the tile (score -infinity).
template <typename T>
OneSided<T> exclude(const Contrast<T>& c, Range rows, Range columns, T* tile) {
  OneSided<T> found;
  for (int64_t a = rows.begin; a < rows.end; ++a) {
    const int64_t b = c.positive[a];
    if (!columns.contains(b) || c.positive[b] == a) continue;
    const int64_t cell = (a - rows.begin) * kTile + b - columns.begin;
    found.cells[found.count++] = {a - rows.begin, b - columns.begin, tile[cell], true};
  }
  for (int64_t b = columns.begin; b < columns.end; ++b) {
    const int64_t a = c.positive[b];
    if (!rows.contains(a) || c.positive[a] == b) continue;
    const int64_t cell = (a - rows.begin) * kTile + b - columns.begin;
    found.cells[found.count++] = {a - rows.begin, b - columns.begin, tile[cell], false};
  }
  constexpr T never = -std::numeric_limits<T>::infinity();
  for (int64_t a = rows.begin; a < rows.end; ++a) {
    T* row = tile + (a - rows.begin) * kTile;
    if (columns.contains(a)) row[a - columns.begin] = never;
    if (columns.contains(c.positive[a])) row[c.positive[a] - columns.begin] = never;
  }
  for (const auto& cell : found) tile[cell.a * kTile + cell.b] = never;
  exclude_left_out(c, rows, columns, tile);
  return found;
}

}  // namespace ssl_fast
