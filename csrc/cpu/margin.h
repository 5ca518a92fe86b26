// What margin softmax asks of an instruction set beyond csrc/cpu/tiles.h: passes over a tile of cosines, classes down
// (row i is one centre of a class), samples across (column j is one row of x). Implemented in csrc/cpu/isa/margin.cpp.
#pragma once

#include <cstdint>

#include "cpu/tiles.h"

namespace ssl_fast {

// Stands in a cell that takes no part. Finite: 0 times it is 0, and differences of two are defined.
constexpr double kNever = -1e30;

// How a negative cosine c becomes a logit: scale f(c), with f(c) = c (hardness + c) where c > threshold[j], else c.
template <typename T>
struct Negatives {
  T scale;             // log2(e) times the loss's scale
  T hardness;          // t of CurricularFace
  const T* threshold;  // [n] per column
};

template <typename T>
struct MarginTiles {
  // Of every S rows from the top, the largest cell of each column stays (the first of equals), the others become
  // kNever.
  void (*keep_best)(T* tile, int64_t m, int64_t n, int64_t S);
  // sums[j] += sum_i 2^(scale f - offset[j]). Where a logit exceeds offset[j] by too much, offset[j] is raised and
  // sums[j] rescaled.
  void (*add_sums)(const T* tile, int64_t m, int64_t n, const Negatives<T>& negatives, T* offset, T* sums);
  // tile[i][j] = p_ij f'(tile[i][j]) and means[j] += sum_i p_ij f(tile[i][j]), p_ij = weights[j] 2^(scale f - logs[j])
  void (*weigh)(T* tile, int64_t m, int64_t n, const Negatives<T>& negatives, const T* logs, const T* weights,
                T* means);
};

// The table of the chosen instruction set.
template <typename T>
const MarginTiles<T>& margin_tiles();

}  // namespace ssl_fast
