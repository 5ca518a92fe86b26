// KoLeo: the nearest neighbour of each row, without the matrix of similarities.
#include <algorithm>
#include <limits>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "ops.h"

namespace ssl_fast {
namespace {

// The nearest so far is the row of highest score, the first of equals; no comparison is true of NaN.
template <typename T>
void offer(T score, int64_t of, T* highest, int64_t* found) {
  if (!(score > *highest || (score == *highest && of < *found))) return;
  *highest = score;
  *found = of;
}

// Each column of the tile is offered the rows from `first` on.
template <typename T>
void offer_down(const T* tile, int64_t m, int64_t n, int64_t first, T* highest, int64_t* found) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    bool any = false;
    for (int64_t j = 0; j < n; ++j) any |= tile[j] >= highest[j];
    if (!any) continue;  // soon the usual case, and a comparison alone is cheap
    for (int64_t j = 0; j < n; ++j) offer(tile[j], first + i, highest + j, found + j);
  }
}

// Each row of the tile is offered the columns from `first` on.
template <typename T>
void offer_along(const T* tile, int64_t m, int64_t n, int64_t first, T* highest, int64_t* found) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    bool any = false;
    for (int64_t j = 0; j < n; ++j) any |= tile[j] >= highest[i];
    if (!any) continue;
    for (int64_t j = 0; j < n; ++j) offer(tile[j], first + j, highest + i, found + i);
  }
}

template <typename T>
struct Search {
  Search(const void* z, DType dtype, int64_t M, int64_t D, Range wanted, int64_t* found, int threads)
      : t(tiles<T>()),
        M(M),
        D(D),
        ld(row_stride(t, D)),
        wanted(wanted),
        rows(round_up(M, kTile) * ld),
        panels(round_up(wanted.size(), kTile) * D),
        highest(wanted.size(), -std::numeric_limits<T>::infinity()),
        found(found),
        scratch(threads * kTile * kTile),
        threads(threads) {
    const int64_t bytes = dtype == DType::float64 ? 8 : 4;
    parallel_for(threads, num_tiles(M), [&](int64_t tile, int) {
      const int64_t begin = tile * kTile, count = std::min(kTile, M - begin);
      t.load_rows(static_cast<const char*>(z) + begin * D * bytes, dtype, count, D, false, rows.get() + begin * ld, ld,
                  nullptr);
    });
    parallel_for(threads, num_tiles(wanted.size()), [&](int64_t tile, int) {
      const Range columns = tile_of_wanted(tile);
      t.pack_panels(rows.get() + columns.begin * ld, ld, columns.size(), D, panels.get() + tile * kTile * D);
    });
    // A row of NaN is nearest to nobody: this is what stays of it.
    for (int64_t i = 0; i < wanted.size(); ++i) found[i] = wanted.begin + i == 0 ? 1 : 0;
  }

  Range tile_of_all(int64_t tile) const { return {tile * kTile, std::min(M, (tile + 1) * kTile)}; }
  Range tile_of_wanted(int64_t tile) const {
    return {wanted.begin + tile * kTile, std::min(wanted.end, wanted.begin + (tile + 1) * kTile)};
  }

  // The scores of `rows` against a tile of wanted rows; a row is no candidate for itself.
  T* scores(Range range, int64_t tile_of_columns, int slot) {
    const Range columns = tile_of_wanted(tile_of_columns);
    T* tile = scratch.get() + slot * kTile * kTile;
    t.scores(rows.get() + range.begin * ld, ld, range.size(), panels.get() + tile_of_columns * kTile * D,
             columns.size(), D, tile);
    for (int64_t b = columns.begin; b < columns.end; ++b) {
      if (!range.contains(b)) continue;
      tile[(b - range.begin) * kTile + b - columns.begin] = std::numeric_limits<T>::quiet_NaN();
    }
    return tile;
  }

  void offer_rows(const T* tile, Range range, int64_t tile_of_columns) {
    const int64_t at = tile_of_columns * kTile;
    offer_down(tile, range.size(), tile_of_wanted(tile_of_columns).size(), range.begin, highest.get() + at, found + at);
  }

  // All rows are wanted: every pair of tiles once, for both sides.
  void all() {
    Tournament tournament(num_tiles(M));
    parallel_for(threads, tournament.num_tasks(), [&](int64_t task, int slot) {
      tournament.play(task, [&](int64_t i, int64_t j) {
        const Range range = tile_of_all(i), columns = tile_of_all(j);
        const T* tile = scores(range, j, slot);
        offer_rows(tile, range, j);
        if (i == j) return;
        const int64_t at = range.begin;
        offer_along(tile, range.size(), columns.size(), columns.begin, highest.get() + at, found + at);
      });
    });
  }

  void some() {
    parallel_for(threads, num_tiles(wanted.size()), [&](int64_t task, int slot) {
      for (int64_t other = 0; other < num_tiles(M); ++other) {
        offer_rows(scores(tile_of_all(other), task, slot), tile_of_all(other), task);
      }
    });
  }

  const Tiles<T>& t;
  const int64_t M, D, ld;
  const Range wanted;
  Buffer<T> rows;     // [M, ld]
  Buffer<T> panels;   // of the wanted rows
  Buffer<T> highest;  // [wanted]
  int64_t* const found;
  Buffer<T> scratch;
  const int threads;
};

template <typename T>
void neighbours(const void* z, DType dtype, int64_t M, int64_t D, Range wanted, int64_t* found, int threads) {
  Search<T> search(z, dtype, M, D, wanted, found, threads);
  if (wanted.size() == M) {
    search.all();
  } else {
    search.some();
  }
}

}  // namespace

void koleo_neighbours(Address z, int dtype, int64_t M, int64_t D, int64_t begin, int64_t end, Address found,
                      int threads) {
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? neighbours<double> : neighbours<float>;
  run(reinterpret_cast<const void*>(z), type, M, D, {begin, end}, reinterpret_cast<int64_t*>(found), threads);
}

}  // namespace ssl_fast
