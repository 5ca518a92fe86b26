// Register-blocked products of row-major and panel matrices: the inner loops of every contrastive loss.
#pragma once

#include "cpu/isa/vec.h"
#include "cpu/tiles.h"

namespace ssl_fast::SSL_FAST_ISA {

// Registers: kRows x kVectors accumulators, kVectors operands and one broadcast, in 32 (AVX-512) or 16 registers.
#if defined(__AVX512F__)
constexpr int kRows = 12, kVectors = 2;
#elif defined(__AVX2__)
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 6, kVectors = 2;
#endif

template <typename T>
constexpr int64_t kPanel = kVectors * kLanes<T>;
static_assert(kTile % kRows == 0 && kTile % kPanel<float> == 0, "tiles are made of whole register blocks");

// c[r][0:panel] (+)= sum_k a(r, k) b[k][0:panel], with a(r, k) = a[r * row_step + k * depth_step]
template <typename T, bool accumulate>
inline void block_product(const T* a, int64_t row_step, int64_t depth_step, const T* b, int64_t ldb, int64_t depth,
                          T* c, int64_t ldc) {
  Vec<T> total[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[r][v] = Vec<T>{};
  }
  for (int64_t k = 0; k < depth; ++k, a += depth_step, b += ldb) {
    Vec<T> right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> left = broadcast(a[r * row_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) total[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + r * ldc + v * kLanes<T>;
      store(to, accumulate ? load(to) + total[r][v] : total[r][v]);
    }
  }
}

template <typename T, bool accumulate>
void scores(const T* a, int64_t lda, int64_t m, const T* b_panels, int64_t n, int64_t D, T* tile) {
  for (int64_t j = 0; j < n; j += kPanel<T>, b_panels += D * kPanel<T>) {
    for (int64_t i = 0; i < m; i += kRows) {
      block_product<T, accumulate>(a + i * lda, lda, 1, b_panels, kPanel<T>, D, tile + i * kTile + j, kTile);
    }
  }
}

template <typename T>
void add_product(const T* tile, int64_t m, int64_t k, const T* b, int64_t ld, int64_t width, T* c) {
  for (int64_t d = 0; d < width; d += kPanel<T>) {
    for (int64_t i = 0; i < m; i += kRows) {
      block_product<T, true>(tile + i * kTile, kTile, 1, b + d, ld, k, c + i * ld + d, ld);
    }
  }
}

template <typename T>
void add_transposed_product(const T* tile, int64_t m, int64_t k, const T* b, int64_t ld, int64_t width, T* c) {
  for (int64_t d = 0; d < width; d += kPanel<T>) {
    for (int64_t j = 0; j < m; j += kRows) {
      block_product<T, true>(tile + j, 1, kTile, b + d, ld, k, c + j * ld + d, ld);
    }
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
