// Element-wise passes of margin softmax over a tile of cosines.
#include "cpu/margin.h"

#include "cpu/isa/vec.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// As in the online softmax of tiles.cpp: how far (in powers of two) a logit may exceed its column's offset.
constexpr int kMarginSlack = 40;

template <typename T>
void keep_best(T* tile, int64_t m, int64_t n, int64_t S) {
  const Vec<T> never = broadcast<T>(static_cast<T>(kNever));
  for (int64_t i = 0; i < m; i += S) {
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      T* cell = tile + i * kTile + j;
      Vec<T> best = load(cell);
      for (int64_t s = 1; s < S; ++s) {
        const Vec<T> other = load(cell + s * kTile);
        // Cells above s that lose to it are cleared, so at most one stays.
        for (int64_t above = 0; above < s; ++above) {
          const Vec<T> seen = load(cell + above * kTile);
          store(cell + above * kTile, other > best || other != other ? never : seen);
        }
        store(cell + s * kTile, other > best || other != other ? other : never);
        best = other > best || other != other ? other : best;  // a NaN is not hidden
      }
    }
  }
}

template <typename T>
inline Vec<T> logit(Vec<T> c, const Negatives<T>& negatives, Vec<T> threshold) {
  return c > threshold ? c * (negatives.hardness + c) : c;
}

template <typename T>
void add_sums(const T* tile, int64_t m, int64_t n, const Negatives<T>& negatives, T* offset, T* sums) {
  for (int64_t j = 0; j < n; j += kLanes<T>) {
    const Vec<T> threshold = load(negatives.threshold + j), old = load(offset + j);
    const Vec<T> least = broadcast<T>(static_cast<T>(kNever / 2));  // no negative: it may fill a tile, and is no offset
    Vec<T> highest = broadcast<T>(-__builtin_inff());
    for (int64_t i = 0; i < m; ++i) {
      const Vec<T> f = logit<T>(load(tile + i * kTile + j), negatives, threshold);
      highest = f > highest ? f : highest;
    }
    highest = highest <= least ? highest : highest * negatives.scale;
    const Vec<T> chosen = highest > old + static_cast<T>(kMarginSlack) ? highest : old;
    Vec<T> total = load(sums + j) * exp2<T>(old - chosen);
    for (int64_t i = 0; i < m; ++i) {
      const Vec<T> f = logit<T>(load(tile + i * kTile + j), negatives, threshold);
      total += f <= least ? broadcast<T>(T(0)) : exp2<T>(f * negatives.scale - chosen);
    }
    store(offset + j, chosen);
    store(sums + j, total);
  }
}

template <typename T>
void weigh(T* tile, int64_t m, int64_t n, const Negatives<T>& negatives, const T* logs, const T* weights, T* means) {
  for (int64_t i = 0; i < m; ++i, tile += kTile) {
    for (int64_t j = 0; j < n; j += kLanes<T>) {
      const Vec<T> c = load(tile + j), threshold = load(negatives.threshold + j);
      const Vec<T> f = logit<T>(c, negatives, threshold);
      const Vec<T> p = load(weights + j) * exp2<T>(f * negatives.scale - load(logs + j));
      store(means + j, load(means + j) + p * f);
      store(tile + j, c > threshold ? p * (negatives.hardness + c + c) : p);
    }
  }
}

template <typename T>
constexpr MarginTiles<T> table() {
  return {keep_best<T>, add_sums<T>, weigh<T>};
}

}  // namespace

extern const MarginTiles<float> margin_float32;
extern const MarginTiles<double> margin_float64;
const MarginTiles<float> margin_float32 = table<float>();
const MarginTiles<double> margin_float64 = table<double>();

}  // namespace ssl_fast::SSL_FAST_ISA
