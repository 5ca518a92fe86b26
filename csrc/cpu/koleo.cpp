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

// The highest score down each column, and the row it stands in; the first of equals.
template <typename T>
void take_highest(const T* tile, int64_t m, int64_t n, int64_t first_row, T* highest, int64_t* row) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    bool any = false;
    for (int64_t j = 0; j < n; ++j) any |= tile[j] > highest[j];
    if (!any) continue;  // soon the usual case, and a comparison alone is cheap
    for (int64_t j = 0; j < n; ++j) {
      if (!(tile[j] > highest[j])) continue;
      highest[j] = tile[j];
      row[j] = first_row + i;
    }
  }
}

template <typename T>
void neighbours(const void* z, DType dtype, int64_t M, int64_t D, Range wanted, int64_t* found, int threads) {
  const Tiles<T>& t = tiles<T>();
  const int64_t ld = row_stride(t, D), tile_size = kTile * kTile;
  const int64_t bytes = dtype == DType::float64 ? 8 : 4;
  Buffer<T> rows(round_up(M, kTile) * ld);
  parallel_for(threads, num_tiles(M), [&](int64_t tile, int) {
    const int64_t begin = tile * kTile, count = std::min(kTile, M - begin);
    t.load_rows(static_cast<const char*>(z) + begin * D * bytes, dtype, count, D, false, rows.get() + begin * ld, ld,
                nullptr);
  });
  Buffer<T> scratch(threads * (tile_size + kTile * (D + 1)));
  parallel_for(threads, num_tiles(wanted.size()), [&](int64_t task, int slot) {
    T* tile = scratch.get() + slot * (tile_size + kTile * (D + 1));
    T *panels = tile + tile_size, *highest = panels + kTile * D;
    const int64_t begin = wanted.begin + task * kTile, n = std::min(kTile, wanted.end - begin);
    t.pack_panels(rows.get() + begin * ld, ld, n, D, panels);
    std::fill_n(highest, kTile, -std::numeric_limits<T>::infinity());
    // A row of NaN is nearest to nobody: it is its own neighbour's first candidate.
    for (int64_t j = 0; j < n; ++j) found[begin - wanted.begin + j] = begin + j == 0 ? 1 : 0;
    for (int64_t first = 0; first < M; first += kTile) {
      const int64_t m = std::min(kTile, M - first);
      t.scores(rows.get() + first * ld, ld, m, panels, n, D, tile);
      for (int64_t j = 0; j < n; ++j) {
        const int64_t itself = begin + j - first;
        if (itself >= 0 && itself < m) tile[itself * kTile + j] = -std::numeric_limits<T>::infinity();
      }
      take_highest(tile, m, n, first, highest, found + begin - wanted.begin);
    }
  });
}

}  // namespace

void koleo_neighbours(Address z, int dtype, int64_t M, int64_t D, int64_t begin, int64_t end, Address found,
                      int threads) {
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? neighbours<double> : neighbours<float>;
  run(reinterpret_cast<const void*>(z), type, M, D, {begin, end}, reinterpret_cast<int64_t*>(found), threads);
}

}  // namespace ssl_fast
