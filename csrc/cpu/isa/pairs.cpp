// Passes over a tile of scores between two towers (see pairs.h).
#include "cpu/isa/pairs.h"

#include "cpu/isa/vec.h"
#include "cpu/tiles.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// How far (in powers of two) a score may exceed its offset before the sum is rescaled: 2^40 times any number of terms
// is still far from overflow.
constexpr int kSlack = 40;

template <typename T>
T highest_of(Vec<T> v) {
  T highest = v[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) highest = v[lane] > highest ? v[lane] : highest;
  return highest;
}

template <typename T>
void raise_rows(const T* tile, int64_t m, int64_t n, T scale, OnlineSums<T> rows) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    Vec<T> highest = broadcast<T>(-__builtin_inff());
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> s = load(tile + j);
      highest = s > highest ? s : highest;
    }
    const T top = highest_of<T>(highest) * scale;
    if (!(top > rows.offsets[i] + kSlack)) continue;
    rows.sums[i] *= exp2<T>(broadcast<T>(rows.offsets[i] - top))[0];
    rows.offsets[i] = top;
  }
}

template <typename T>
void raise_columns(const T* tile, int64_t m, int64_t n, T scale, OnlineSums<T> columns) {
  for (int64_t j = 0; j < n; j += kLanes<T>) {
    Vec<T> highest = broadcast<T>(-__builtin_inff());
    for (int64_t i = 0; i < m; ++i) {
      const Vec<T> s = load(tile + i * kTile + j);
      highest = s > highest ? s : highest;
    }
    highest *= scale;
    const Vec<T> old = load(columns.offsets + j);
    const Vec<T> chosen = highest > old + static_cast<T>(kSlack) ? highest : old;
    store(columns.sums + j, load(columns.sums + j) * exp2<T>(old - chosen));
    store(columns.offsets + j, chosen);
  }
}

template <typename T>
void online_sums(const T* tile, int64_t m, int64_t n, T scale, OnlineSums<T> rows, OnlineSums<T> columns) {
  if (rows.sums != nullptr) raise_rows(tile, m, n, scale, rows);
  if (columns.sums != nullptr) raise_columns(tile, m, n, scale, columns);
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    if (rows.sums != nullptr) {
      Vec<T> total = {};
      for (int64_t j = 0; j < n; j += kLanes<T>) total += exp2<T>(load(tile + j) * scale - rows.offsets[i]);
      rows.sums[i] += sum<T>(total);
    }
    if (columns.sums != nullptr) {
      for (int64_t j = 0; j < n; j += kLanes<T>) {
        const Vec<T> e = exp2<T>(load(tile + j) * scale - load(columns.offsets + j));
        store(columns.sums + j, load(columns.sums + j) + e);
      }
    }
  }
}

template <typename T>
void softmax_weights(T* tile, int64_t m, int64_t n, T scale, Direction<T> rows, Direction<T> columns, T* row_sums,
                     T* column_sums) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    Vec<T> total = {};
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> s = load(tile + j);
      Vec<T> weight = {};
      if (rows.weights != nullptr) {
        const Vec<T> p = exp2<T>((s * scale - rows.log_high[i]) - rows.log_low[i]);
        total += p;
        weight = rows.weights[i] * p;
      }
      if (columns.weights != nullptr) {
        const Vec<T> p = exp2<T>((s * scale - load(columns.log_high + j)) - load(columns.log_low + j));
        if (column_sums != nullptr) store(column_sums + j, load(column_sums + j) + p);
        weight += load(columns.weights + j) * p;
      }
      store(tile + j, weight);
    }
    if (row_sums != nullptr) row_sums[i] += sum<T>(total);
  }
}

// log(1 + u) for u in [0, 1], relatively exact where it is tiny: 2 atanh(u / (2 + u)), whose square is at most 1/9.
template <typename T>
Vec<T> log1p_of_fraction(Vec<T> u) {
  constexpr int terms = sizeof(T) == 4 ? 7 : 16;
  const Vec<T> t = u / (u + T(2));
  const Vec<T> square = t * t;
  Vec<T> series = broadcast<T>(T(1) / (2 * terms - 1));
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) series = series * square + T(1) / static_cast<T>(2 * k + 1);
  return t * series * T(2);
}

template <typename T>
void sigmoid_weights(T* tile, int64_t m, int64_t n, T scale, T bias, const T* coef, T* losses, T* slopes) {
  const Vec<T> zero = {}, one = broadcast<T>(T(1));
  constexpr T log2e = static_cast<T>(1.4426950408889634);
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    Vec<T> loss = {}, slope = {};
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> x = load(tile + j) * scale + bias;
      const Vec<T> u = exp2<T>((x > zero ? -x : x) * log2e);
      if (losses != nullptr) loss += (x > zero ? x : zero) + log1p_of_fraction<T>(u);
      if (coef == nullptr) continue;
      const Vec<T> sigmoid = (x > zero ? one : u) / (u + T(1));
      slope += sigmoid;
      store(tile + j, coef[i] * sigmoid);
    }
    if (losses != nullptr) losses[i] += sum<T>(loss);
    if (slopes != nullptr) slopes[i] += sum<T>(slope);
  }
}

}  // namespace

const PairTiles<float> pairs_float32{online_sums<float>, softmax_weights<float>, sigmoid_weights<float>};
const PairTiles<double> pairs_float64{online_sums<double>, softmax_weights<double>, sigmoid_weights<double>};

}  // namespace ssl_fast::SSL_FAST_ISA
