// What an instruction set must provide: operations on rows and on one tile of scores. csrc/cpu/isa/tiles.cpp implements
// them once, in vectors whose width is that of the instruction set; the algorithms call them through this table.
//
// rows    [R, ld]: row-major, 64-byte aligned, columns from D to ld are zero
// panels  [ceil(R / panel), D, panel]: the same rows transposed in groups of `panel`, missing rows zero
// tile    [kTile, kTile]: scores of up to kTile rows against up to kTile columns
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops.h"

namespace ssl_fast {

constexpr int64_t kTile = 192;  // a multiple of every panel and register block; a float tile (147 kB) stays in L2

template <typename T>
struct Tiles {
  int64_t panel;       // rows per panel
  int64_t row_block;   // rows of a tile are computed in multiples of this
  int64_t width_step;  // ld is a multiple of it, plus one vector (so that a column never falls on few cache sets)

  // rows[r] = x[r] / max(|x[r]|, 1e-12) (or x[r] when not normalising), norms[r] = |x[r]|
  void (*load_rows)(const void* x, DType dtype, int64_t num_rows, int64_t D, bool normalize, T* rows, int64_t ld,
                    T* norms);
  void (*pack_panels)(const T* rows, int64_t ld, int64_t num_rows, int64_t D, T* panels);
  // tile[i][j] = <a_i, b_j>; whole row blocks and panels are computed, whatever m and n
  void (*scores)(const T* a, int64_t lda, int64_t m, const T* b_panels, int64_t n, int64_t D, T* tile);
  // The same, added to the tile.
  void (*add_scores)(const T* a, int64_t lda, int64_t m, const T* b_panels, int64_t n, int64_t D, T* tile);
  // c[i] += sum_{j < k} tile[i][j] b[j]
  void (*add_product)(const T* tile, int64_t m, int64_t k, const T* b, int64_t ld, int64_t width, T* c);
  // c[j] += sum_{i < k} tile[i][j] b[i]
  void (*add_transposed_product)(const T* tile, int64_t m, int64_t k, const T* b, int64_t ld, int64_t width, T* c);
  // row_sums[i] += sum_j e_ij, column_sums[j] += sum_i e_ij (unless null), e_ij = 2^(scale tile[i][j] + bias)
  void (*add_exp_sums)(const T* tile, int64_t m, int64_t n, T scale, T bias, T* row_sums, T* column_sums);
  // Online softmax down the columns: tile[i][j] becomes e_ij = 2^(scale tile[i][j] - offset[j]); sums[j] += sum_i e_ij.
  // Where a score exceeds offset[j] by too much, offset[j] is raised and sums[j] rescaled; then true is returned and
  // factors[j] is what everything summed so far for column j must be multiplied by.
  bool (*online_exp)(T* tile, int64_t m, int64_t n, T scale, T* offset, T* sums, T* factors);
  // tile[i][j] = row_weights[i] p_ij + column_weights[j] p_ji, p_ij = 2^(scale tile[i][j] - row_logs[i]),
  // p_ji = 2^(scale tile[i][j] - column_logs[j]); row_sums[i] += sum_j p_ij, column_sums[j] += sum_i p_ji (unless null)
  void (*pair_weights)(T* tile, int64_t m, int64_t n, T scale, const T* row_logs, const T* row_weights,
                       const T* column_logs, const T* column_weights, T* row_sums, T* column_sums);
  // The same with one exponential: p_ij = p_ji = 2^(scale tile[i][j] + bias); the weights carry the normalisers.
  void (*pair_weights_fixed)(T* tile, int64_t m, int64_t n, T scale, T bias, const T* row_weights,
                             const T* column_weights, T* row_sums, T* column_sums);
  // tile[i][j] -= row_shares[i] + column_shares[j] where row_classes[i] = column_classes[j]
  void (*subtract_shares)(T* tile, int64_t m, int64_t n, const T* row_classes, const T* row_shares,
                          const T* column_classes, const T* column_shares);
  T (*dot)(const T* a, const T* b, int64_t width);         // width: a multiple of width_step
  void (*axpy)(T alpha, const T* x, T* y, int64_t width);  // y += alpha x
  void (*scale)(T alpha, T* y, int64_t width);             // y *= alpha
};

// The table of the chosen instruction set.
template <typename T>
const Tiles<T>& tiles();

}  // namespace ssl_fast
