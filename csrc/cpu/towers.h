// Pairs of two towers: their rows, loaded, and which tiles of image x text each pass visits, in an order that makes the
// bits independent of the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/isa/pairs.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace ssl_fast {

// The passes over a tile, of the chosen instruction set.
template <typename T>
const PairTiles<T>& pair_tiles();

// All pairs (i, j) of n row blocks and n column blocks as n rounds: in round r row block i meets column block i + r. In
// one round no block occurs twice; a task starts when both of its blocks have finished their earlier rounds.
class Rounds {
 public:
  explicit Rounds(int64_t n) : n_(n), games_(new std::atomic<int64_t>[2 * n]) {
    for (int64_t block = 0; block < 2 * n; ++block) games_[block].store(0, std::memory_order_relaxed);
  }
  int64_t num_tasks() const { return n_ * n_; }
  template <typename Body>
  void play(int64_t task, Body&& body) {
    const int64_t round = task / n_, i = task % n_, j = (i + round) % n_;
    wait(games_[i], round);
    wait(games_[n_ + j], round);
    body(i, j);
    games_[i].fetch_add(1, std::memory_order_release);
    games_[n_ + j].fetch_add(1, std::memory_order_release);
  }

 private:
  static void wait(const std::atomic<int64_t>& games, int64_t round) {
    while (games.load(std::memory_order_acquire) < round) std::this_thread::yield();
  }

  int64_t n_;
  std::unique_ptr<std::atomic<int64_t>[]>
      games_;  // [2 n] rounds that each row block and each column block has finished
};

// u, v: unit rows of all M images and texts. The pairs wanted are `mine`; passes run over whole tiles, so what belongs
// to them is kept for `own`, the rows of all tiles that touch them.
template <typename T>
struct Towers {
  Towers(Address image, Address text, DType dtype, int64_t M, int64_t D, Range mine, double scale, bool normalize,
         int threads)
      : t(tiles<T>()),
        M(M),
        D(D),
        width(round_up(D, t.width_step)),
        ld(row_stride(t, D)),
        mine(mine),
        own{mine.begin / kTile * kTile, num_tiles(mine.end) * kTile},
        threads(threads),
        scale(scale),
        log2_scale(static_cast<T>(scale * kLog2E)),
        u(round_up(M, t.row_block) * ld),
        v(M * ld),
        panels(round_up(M, t.panel) * D),
        u_norms(M),
        v_norms(M),
        scratch(threads * kTile * kTile) {
    const int64_t bytes = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
    parallel_for(threads, num_tiles(M), [&](int64_t tile, int) {
      const Range rows = tile_of(tile);
      const int64_t skipped = rows.begin * D * bytes;
      T* v_rows = v.get() + rows.begin * ld;
      t.load_rows(reinterpret_cast<const char*>(image) + skipped, dtype, rows.size(), D, normalize,
                  u.get() + rows.begin * ld, ld, u_norms.get() + rows.begin);
      t.load_rows(reinterpret_cast<const char*>(text) + skipped, dtype, rows.size(), D, normalize, v_rows, ld,
                  v_norms.get() + rows.begin);
      t.pack_panels(v_rows, ld, rows.size(), D, panels.get() + rows.begin * D);
    });
    std::fill(u.get() + M * ld, u.get() + round_up(M, t.row_block) * ld, T(0));
  }

  Range tile_of(int64_t tile) const { return {tile * kTile, std::min(M, (tile + 1) * kTile)}; }
  const T* image(int64_t i) const { return u.get() + i * ld; }
  const T* text(int64_t j) const { return v.get() + j * ld; }
  // Of pair i, in double: the loss of an aligned pair has no digit that this one has not.
  double cosine(int64_t i) const {
    double total = 0;
    for (int64_t d = 0; d < D; ++d) total += static_cast<double>(image(i)[d]) * text(i)[d];
    return total;
  }

  // body(rows, columns, of_rows, of_columns, tile) for all tiles that hold pairs of own images with any text (of_rows:
  // for what belongs to its rows) and of any image with own texts (of_columns), scores computed.
  template <typename Body>
  void visit(bool want_rows, bool want_columns, Body&& body) const {
    const auto run = [&](int64_t i, int64_t j, bool of_rows, bool of_columns, int slot) {
      T* tile = scratch.get() + slot * kTile * kTile;
      const Range rows = tile_of(i), columns = tile_of(j);
      scores(rows, columns, tile);
      body(rows, columns, of_rows, of_columns, tile);
    };
    if (own.size() >= M && want_rows && want_columns) {
      Rounds rounds(num_tiles(M));
      parallel_for(threads, rounds.num_tasks(), [&](int64_t task, int slot) {
        rounds.play(task, [&](int64_t i, int64_t j) { run(i, j, true, true, slot); });
      });
      return;
    }
    const int64_t first = own.begin / kTile, count = own.size() / kTile, all = num_tiles(M);
    parallel_for(threads, want_rows ? count : 0, [&](int64_t task, int slot) {
      for (int64_t j = 0; j < all; ++j) run(first + task, j, true, false, slot);
    });
    parallel_for(threads, want_columns ? count : 0, [&](int64_t task, int slot) {
      for (int64_t i = 0; i < all; ++i) run(i, first + task, false, true, slot);
    });
  }

  // The tile's weights times the other tower, added to the own rows of du (of_rows) and of dv (of_columns).
  void add_products(Range rows, Range columns, bool of_rows, bool of_columns, const T* tile, T* du, T* dv) const {
    if (of_rows) {
      T* to = du + (rows.begin - own.begin) * ld;
      t.add_product(tile, rows.size(), columns.size(), text(columns.begin), ld, width, to);
    }
    if (of_columns) {
      T* to = dv + (columns.begin - own.begin) * ld;
      t.add_transposed_product(tile, columns.size(), rows.size(), image(rows.begin), ld, width, to);
    }
  }

  // d/dx of a function of z = x / max(|x|, 1e-12) from dz, which is overwritten, to `out` [D].
  void finish(const T* z, T norm, bool normalize, T* dz, T* out) const {
    const T least = static_cast<T>(1e-12);
    if (normalize) {
      if (!(norm < least)) t.axpy(-t.dot(z, dz, width), z, dz, width);
      t.scale(T(1) / std::max(norm, least), dz, width);
    }
    std::copy_n(dz, D, out);
  }

  const Tiles<T>& t;
  const int64_t M, D, width, ld;
  const Range mine, own;
  const int threads;
  const double scale;
  const T log2_scale;
  Buffer<T> u, v;              // [M, ld] (u and zero rows up to a whole row block)
  Buffer<T> panels;            // of v
  Buffer<T> u_norms, v_norms;  // [M]

 private:
  // tile[a][b] = <u_a, v_b>; -infinity in the columns beyond the last.
  void scores(Range rows, Range columns, T* tile) const {
    t.scores(image(rows.begin), ld, rows.size(), panels.get() + columns.begin * D, columns.size(), D, tile);
    constexpr T never = -std::numeric_limits<T>::infinity();
    for (int64_t a = 0; a < rows.size(); ++a) {
      std::fill(tile + a * kTile + columns.size(), tile + a * kTile + round_up(columns.size(), t.panel), never);
    }
  }

  mutable Buffer<T> scratch;  // [threads, kTile, kTile]
};

}  // namespace ssl_fast
