// What csrc/cpu/isa/pairs.cpp provides for each instruction set: passes over a tile of scores between two towers, in
// which a row and a column each have a normaliser of their own (or none). Tiles: csrc/cpu/tiles.h.
#pragma once

#include <cstdint>

#include "ops.h"

namespace ssl_fast {

// Online sums of exponentials: sum = sum_j 2^(s_j - offset), in powers of two. Null: not asked for.
template <typename T>
struct OnlineSums {
  T* offsets;
  T* sums;
};

// One direction's normalisers and weights. A normaliser's log is the sum of two numbers: a rounded one would cost a
// hundred roundings where logits reach a hundred. Null: not asked for.
template <typename T>
struct Direction {
  const T* log_high;
  const T* log_low;
  const T* weights;
};

template <typename T>
struct PairTiles {
  // Adds 2^(scale tile[i][j]) to the sums of row i and of column j. Where a score exceeds an offset by too much, the
  // offset is raised and its sum rescaled.
  void (*online_sums)(const T* tile, int64_t m, int64_t n, T scale, OnlineSums<T> rows, OnlineSums<T> columns);
  // tile[i][j] = w_i p_ij + w_j p_ji, p_ij = 2^(scale tile[i][j] - log_i), p_ji = 2^(scale tile[i][j] - log_j);
  // row_sums[i] += sum_j p_ij, column_sums[j] += sum_i p_ji (unless null)
  void (*softmax_weights)(T* tile, int64_t m, int64_t n, T scale, Direction<T> rows, Direction<T> columns, T* row_sums,
                          T* column_sums);
  // With x_ij = scale tile[i][j] + bias: losses[i] += sum_j log(1 + exp(x_ij)) (unless null), and given coef:
  // tile[i][j] = coef[i] sigmoid(x_ij), slopes[i] += sum_j sigmoid(x_ij) (unless null)
  void (*sigmoid_weights)(T* tile, int64_t m, int64_t n, T scale, T bias, const T* coef, T* losses, T* slopes);
};

#define SSL_FAST_DECLARE_PAIRS(name)            \
  namespace name {                              \
  extern const PairTiles<float> pairs_float32;  \
  extern const PairTiles<double> pairs_float64; \
  }
SSL_FAST_DECLARE_PAIRS(generic)
SSL_FAST_DECLARE_PAIRS(avx2)
SSL_FAST_DECLARE_PAIRS(avx512)
#undef SSL_FAST_DECLARE_PAIRS

}  // namespace ssl_fast
