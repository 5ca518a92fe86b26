// Element-wise passes over a tile of scores, and the table of everything this instruction set offers.
#include "cpu/tiles.h"

#include "cpu/isa/products.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/vec.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename T>
void add_exp_sums(const T* tile, int64_t m, int64_t n, T scale, T bias, T* row_sums, T* column_sums) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    Vec<T> row = {};
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> e = exp2<T>(load(tile + j) * scale + bias);
      row += e;
      if (column_sums != nullptr) store(column_sums + j, load(column_sums + j) + e);
    }
    row_sums[i] += sum<T>(row);
  }
}

// How far (in powers of two) a score may exceed its column's offset before everything is rescaled: rescaling is rare,
// and 2^40 times any number of terms is still far from overflow.
constexpr int kSlack = 40;

template <typename T>
bool raise_offsets(const T* tile, int64_t m, int64_t n, T scale, T* offset, T* sums, T* factors) {
  bool raised = false;
  for (int64_t j = 0; j < n; j += kLanes<T>) {
    Vec<T> highest = broadcast<T>(-__builtin_inff());
    for (int64_t i = 0; i < m; ++i) {
      const Vec<T> s = load(tile + i * kTile + j);
      highest = s > highest ? s : highest;
    }
    highest *= scale;
    const Vec<T> old = load(offset + j);
    const Vec<T> chosen = highest > old + static_cast<T>(kSlack) ? highest : old;
    const Vec<T> factor = exp2<T>(old - chosen);
    store(factors + j, factor);
    store(offset + j, chosen);
    store(sums + j, load(sums + j) * factor);
    for (int lane = 0; lane < kLanes<T>; ++lane) raised |= chosen[lane] != old[lane];
  }
  return raised;
}

template <typename T>
bool online_exp(T* tile, int64_t m, int64_t n, T scale, T* offset, T* sums, T* factors) {
  const bool raised = raise_offsets(tile, m, n, scale, offset, sums, factors);
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> e = exp2<T>(load(tile + j) * scale - load(offset + j));
      store(tile + j, e);
      store(sums + j, load(sums + j) + e);
    }
  }
  return raised;
}

template <typename T>
void pair_weights(T* tile, int64_t m, int64_t n, T scale, const T* row_logs, const T* row_weights, const T* column_logs,
                  const T* column_weights, T* row_sums, T* column_sums) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    Vec<T> row = {};
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> s = load(tile + j) * scale;
      const Vec<T> of_row = exp2<T>(s - row_logs[i]), of_column = exp2<T>(s - load_unaligned(column_logs + j));
      row += of_row;
      if (column_sums != nullptr) store(column_sums + j, load(column_sums + j) + of_column);
      store(tile + j, row_weights[i] * of_row + load_unaligned(column_weights + j) * of_column);
    }
    if (row_sums != nullptr) row_sums[i] += sum<T>(row);
  }
}

template <typename T>
void pair_weights_fixed(T* tile, int64_t m, int64_t n, T scale, T bias, const T* row_weights, const T* column_weights,
                        T* row_sums, T* column_sums) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    Vec<T> row = {};
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> e = exp2<T>(load(tile + j) * scale + bias);
      row += e;
      if (column_sums != nullptr) store(column_sums + j, load(column_sums + j) + e);
      store(tile + j, e * (row_weights[i] + load_unaligned(column_weights + j)));
    }
    if (row_sums != nullptr) row_sums[i] += sum<T>(row);
  }
}

template <typename T>
void subtract_shares(T* tile, int64_t m, int64_t n, const T* row_classes, const T* row_shares, const T* column_classes,
                     const T* column_shares) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> share = load_unaligned(column_shares + j) + row_shares[i];
      store(tile + j, load(tile + j) - (load_unaligned(column_classes + j) == row_classes[i] ? share : Vec<T>{}));
    }
  }
}

template <typename T>
constexpr Tiles<T> table() {
  return {kPanel<T>,
          kRows,
          kPanel<T>,
          load_rows<T>,
          pack_panels<T>,
          scores<T, false>,
          scores<T, true>,
          add_product<T>,
          add_transposed_product<T>,
          add_exp_sums<T>,
          online_exp<T>,
          pair_weights<T>,
          pair_weights_fixed<T>,
          subtract_shares<T>,
          dot<T>,
          axpy<T>,
          scale<T>};
}

}  // namespace

extern const Tiles<float> float32;
extern const Tiles<double> float64;
const Tiles<float> float32 = table<float>();
const Tiles<double> float64 = table<double>();

}  // namespace ssl_fast::SSL_FAST_ISA
