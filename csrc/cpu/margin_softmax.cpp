// Softmax over many classes whose target logit is made elsewhere (a margin, ssl_fast/ops/margins.py). With the cosines
// c_ij of row i and class j, f(c) the negative's value (csrc/cpu/margin.h) and phi_i the target's:
//   lse_i  = log sum_{j != y_i} exp(scale f(c_ij))
//   coef_i = row_weight_i sigmoid(lse_i - scale phi_i)
//   dc_ij  = scale coef_i exp(scale f(c_ij) - lse_i) f'(c_ij), and on the target -scale coef_i slope_i.
// Rows are taken in chunks whose tiles of cosines fit a fixed panel: they are computed once, kept, and weighed when the
// chunk's lse are known. Where not even one tile of rows fits (many classes), the cosines are computed a second time.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/margin.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "ops.h"

namespace ssl_fast {
namespace {

constexpr int64_t kPanelBytes = int64_t{32} << 20;
constexpr int64_t kPartialBytes = int64_t{16} << 20;

int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// What one call computes.
struct Task {
  const char* x;
  DType x_dtype;
  const char* weight;  // [C, S, D]
  DType weight_dtype;
  const int64_t* target;  // [N]
  int64_t N, C, S, D;
  double scale, hardness;
  bool normalize, with_grad, lse_given;
};

// In and out, per row; and the gradients.
template <typename T>
struct Rows {
  const T* threshold;   // [N] or null
  const T* phi;         // [N]; not read when lse is given
  const T* slope;       // [N]; when lse is given: coef slope
  const T* row_weight;  // [N]; when lse is given: coef
  T* lse;               // [N]
  T* dx;                // [N, D]
  T* dweight;           // [C, S, D]
  T* mean;              // [N] coef_i sum_j p_ij f(c_ij)
};

template <typename T>
struct Engine {
  Engine(const Task& task, const Rows<T>& rows, int threads)
      : k(task),
        io(rows),
        threads(threads),
        t(tiles<T>()),
        passes(margin_tiles<T>()),
        width(round_up(k.D, t.width_step)),
        ld(row_stride(t, k.D)),
        classes_per_tile(std::max<int64_t>(kTile / k.S, 1)),
        class_tiles((k.C + classes_per_tile - 1) / classes_per_tile),
        per_chunk(rows_per_chunk()),
        padded(round_up(per_chunk, kTile)),
        splits(num_splits()),
        x(padded * ld),
        x_norms(per_chunk),
        panels(round_up(per_chunk, t.panel) * k.D),
        threshold(padded),
        offsets(splits * padded),
        sums(splits * padded),
        logs(padded),
        weights(padded),
        pulls(padded),
        means(k.with_grad ? splits * padded : 0),
        partial_dx(k.with_grad ? splits * padded * ld : 0),
        winner(k.N, int64_t{-1}),
        stored(stores() ? class_tiles * (padded / kTile) * kTile * kTile : 0),
        scratch(threads * scratch_size()) {}

  bool fits(int64_t row_tiles) const {
    return class_tiles * row_tiles * kTile * kTile * static_cast<int64_t>(sizeof(T)) <= kPanelBytes;
  }
  bool stores() const { return k.with_grad && !k.lse_given && fits(1); }
  int64_t rows_per_chunk() const {
    if (!stores()) return k.N;
    int64_t row_tiles = num_tiles(k.N);
    while (!fits(row_tiles)) --row_tiles;
    // Chunks of equal size: a last one of a few rows would read all the classes for them.
    const int64_t chunks = (num_tiles(k.N) + row_tiles - 1) / row_tiles;
    return std::min(k.N, (num_tiles(k.N) + chunks - 1) / chunks * kTile);
  }
  // Pieces of the classes summed on their own: a function of the sizes alone, so that the bits are too.
  int64_t num_splits() const {
    const int64_t by_memory = kPartialBytes / (padded * ld * static_cast<int64_t>(sizeof(T)));
    const int64_t most = std::clamp<int64_t>(class_tiles, 1, 64);
    return std::clamp<int64_t>(by_memory, std::min<int64_t>(most, 4), most);
  }
  // Rows of weight, their gradient, a tile, norms.
  int64_t scratch_size() const { return 2 * kTile * ld + kTile * kTile + kTile; }

  void run() {
    for (begin = 0; begin < k.N; begin += per_chunk) {
      count = std::min(per_chunk, k.N - begin);
      load_chunk();
      if (!k.lse_given) {
        parallel_for(threads, splits, [&](int64_t split, int slot) { sum_split(split, slot); });
        for (int64_t i = 0; i < count; ++i) finish_sum(i);
      } else {
        for (int64_t i = 0; i < count; ++i) take_given(i);
      }
      if (!k.with_grad) continue;
      parallel_for(threads, splits, [&](int64_t split, int slot) { gradient_split(split, slot); });
      parallel_for(threads, num_tiles(count), [&](int64_t tile, int) {
        for (int64_t i = tile * kTile; i < std::min(count, (tile + 1) * kTile); ++i) finish_row(i);
      });
    }
  }

  void load_chunk() {
    parallel_for(threads, padded / kTile, [&](int64_t tile, int) {
      const int64_t first = tile * kTile, n = std::clamp<int64_t>(count - first, 0, kTile);
      T* rows = x.get() + first * ld;
      const char* from = k.x + (begin + first) * k.D * bytes_of(k.x_dtype);
      t.load_rows(from, k.x_dtype, n, k.D, k.normalize, rows, ld, n > 0 ? x_norms.get() + first : nullptr);
      std::fill(rows + n * ld, rows + kTile * ld, T(0));
      if (n > 0) t.pack_panels(rows, ld, n, k.D, panels.get() + first * k.D);
    });
    for (int64_t i = 0; i < padded; ++i) {
      threshold[i] = io.threshold != nullptr && i < count ? io.threshold[begin + i] : static_cast<T>(-kNever);
      logs[i] = weights[i] = pulls[i] = 0;
    }
    std::fill_n(offsets.get(), splits * padded, static_cast<T>(kNever));
    std::fill_n(sums.get(), splits * padded, T(0));
  }

  T* scratch_of(int slot) const { return const_cast<T*>(scratch.get()) + slot * scratch_size(); }
  Range tiles_of(int64_t split) const { return {class_tiles * split / splits, class_tiles * (split + 1) / splits}; }
  Range classes_of(int64_t tile) const {
    return {tile * classes_per_tile, std::min(k.C, (tile + 1) * classes_per_tile)};
  }
  Negatives<T> negatives(int64_t i) const {
    return {static_cast<T>(k.scale * kLog2E), static_cast<T>(k.hardness), threshold.get() + i};
  }
  void load_classes(Range classes, T* rows, T* norms) const {
    const char* from = k.weight + classes.begin * k.S * k.D * bytes_of(k.weight_dtype);
    t.load_rows(from, k.weight_dtype, classes.size() * k.S, k.D, k.normalize, rows, ld, norms);
  }

  // Cosines of the classes with rows [i, i + n) of the chunk. Losing sub-centres and targets become kNever; the centre
  // that stood for row i's target goes to winner[i].
  void cosines(Range classes, const T* rows, int64_t i, int64_t n, T* tile) {
    const int64_t m = classes.size() * k.S;
    t.scores(rows, ld, m, panels.get() + i * k.D, n, k.D, tile);
    if (k.S > 1) passes.keep_best(tile, m, n, k.S);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t y = k.target[begin + i + j];
      if (!classes.contains(y)) continue;
      for (int64_t s = 0; s < k.S; ++s) {
        T& cell = tile[((y - classes.begin) * k.S + s) * kTile + j];
        if (k.S == 1 || cell > static_cast<T>(kNever)) winner[begin + i + j] = y * k.S + s;
        cell = static_cast<T>(kNever);
      }
    }
  }

  T* stored_tile(int64_t class_tile, int64_t i) {
    return stored.get() + (class_tile * (padded / kTile) + i / kTile) * kTile * kTile;
  }

  void sum_split(int64_t split, int slot) {
    T *rows = scratch_of(slot), *own_tile = rows + 2 * kTile * ld, *norms = own_tile + kTile * kTile;
    for (int64_t c = tiles_of(split).begin; c < tiles_of(split).end; ++c) {
      load_classes(classes_of(c), rows, norms);
      for (int64_t i = 0; i < count; i += kTile) {
        const int64_t n = std::min(kTile, count - i), at = split * padded + i;
        T* tile = stores() ? stored_tile(c, i) : own_tile;
        cosines(classes_of(c), rows, i, n, tile);
        passes.add_sums(tile, classes_of(c).size() * k.S, n, negatives(i), offsets.get() + at, sums.get() + at);
      }
    }
  }

  // The splits' sums of row i, in order, and what the weighing needs.
  void finish_sum(int64_t i) {
    T highest = offsets[i];
    for (int64_t split = 1; split < splits; ++split) highest = std::max(highest, offsets[split * padded + i]);
    double l = 0;
    for (int64_t split = 0; split < splits; ++split) {
      l += std::exp2(static_cast<double>(offsets[split * padded + i]) - highest) * sums[split * padded + i];
    }
    const double lse = std::log(l) + highest / kLog2E;
    io.lse[begin + i] = static_cast<T>(lse);
    if (!k.with_grad) return;
    const double above = lse - k.scale * io.phi[begin + i];
    const double coef = io.row_weight[begin + i] / (1 + std::exp(-above));
    set_row(i, lse, coef, coef * io.slope[begin + i]);
  }
  void take_given(int64_t i) { set_row(i, io.lse[begin + i], io.row_weight[begin + i], io.slope[begin + i]); }
  void set_row(int64_t i, double lse, double coef, double pull) {
    const bool alone = lse == -std::numeric_limits<double>::infinity();  // no negatives at all
    logs[i] = alone ? T(0) : static_cast<T>(lse * kLog2E);
    weights[i] = alone ? T(0) : static_cast<T>(coef);
    pulls[i] = static_cast<T>(-pull);
  }

  void gradient_split(int64_t split, int slot) {
    T *rows = scratch_of(slot), *dw = rows + kTile * ld, *own_tile = dw + kTile * ld, *norms = own_tile + kTile * kTile;
    T *dx = partial_dx.get() + split * padded * ld, *mean = means.get() + split * padded;
    std::fill_n(dx, round_up(count, t.row_block) * ld, T(0));
    std::fill_n(mean, padded, T(0));
    for (int64_t c = tiles_of(split).begin; c < tiles_of(split).end; ++c) {
      const Range classes = classes_of(c);
      const int64_t m = classes.size() * k.S;
      load_classes(classes, rows, norms);
      std::fill_n(dw, round_up(m, t.row_block) * ld, T(0));
      for (int64_t i = 0; i < count; i += kTile) {
        const int64_t n = std::min(kTile, count - i);
        T* tile = stores() ? stored_tile(c, i) : own_tile;
        if (!stores()) cosines(classes, rows, i, n, tile);
        passes.weigh(tile, m, n, negatives(i), logs.get() + i, weights.get() + i, mean + i);
        for (int64_t j = 0; j < n; ++j) {
          const int64_t centre = winner[begin + i + j] - classes.begin * k.S;
          if (centre >= 0 && centre < m) tile[centre * kTile + j] = pulls[i + j];
        }
        t.add_product(tile, m, n, x.get() + i * ld, ld, width, dw);
        t.add_transposed_product(tile, n, m, rows, ld, width, dx + i * ld);
      }
      for (int64_t r = 0; r < m; ++r) {
        finish_gradient(rows + r * ld, norms[r], dw + r * ld);
        T* to = io.dweight + (classes.begin * k.S + r) * k.D;
        if (begin == 0) {
          std::copy_n(dw + r * ld, k.D, to);
        } else {
          for (int64_t d = 0; d < k.D; ++d) to[d] += dw[r * ld + d];
        }
      }
    }
  }

  // The scale, and the backward of the normalisation z = x / max(|x|, 1e-12), in place.
  void finish_gradient(const T* z, T norm, T* dz) const {
    T factor = static_cast<T>(k.scale);
    if (k.normalize) {
      const T least = static_cast<T>(1e-12);
      if (!(norm < least)) t.axpy(-t.dot(z, dz, width), z, dz, width);
      factor /= std::max(norm, least);
    }
    t.scale(factor, dz, width);
  }

  void finish_row(int64_t i) {
    T* dz = partial_dx.get() + i * ld;
    T mean = means[i];
    for (int64_t split = 1; split < splits; ++split) {
      t.axpy(T(1), partial_dx.get() + (split * padded + i) * ld, dz, width);
      mean += means[split * padded + i];
    }
    finish_gradient(x.get() + i * ld, x_norms[i], dz);
    std::copy_n(dz, k.D, io.dx + (begin + i) * k.D);
    io.mean[begin + i] = mean;
  }

  const Task k;
  const Rows<T> io;
  const int threads;
  const Tiles<T>& t;
  const MarginTiles<T>& passes;
  const int64_t width, ld, classes_per_tile, class_tiles;
  const int64_t per_chunk, padded, splits;  // padded: rows of a chunk, whole tiles
  int64_t begin = 0, count = 0;             // the chunk at hand
  Buffer<T> x;                              // [padded, ld] unit rows of the chunk
  Buffer<T> x_norms;                        // [per_chunk]
  Buffer<T> panels;                         // of x
  Buffer<T> threshold;                      // [padded]
  Buffer<T> offsets, sums;                  // [splits, padded]
  Buffer<T> logs, weights, pulls;           // [padded] log2 of the normaliser, coef, gradient of the target's cosine
  Buffer<T> means;                          // [splits, padded]
  Buffer<T> partial_dx;                     // [splits, padded, ld]
  Buffer<int64_t> winner;                   // [N] centre that is row i's target, -1: not among these classes
  Buffer<T> stored;                         // [class_tiles, padded / kTile, kTile, kTile] cosines
  Buffer<T> scratch;
};

template <typename T>
void run(const Task& task, Address threshold, Address phi, Address slope, Address row_weight, Address lse, Address dx,
         Address dweight, Address mean, int threads) {
  const auto in = [](Address address) { return reinterpret_cast<const T*>(address); };
  const auto out = [](Address address) { return reinterpret_cast<T*>(address); };
  const Rows<T> rows{in(threshold), in(phi), in(slope), in(row_weight), out(lse), out(dx), out(dweight), out(mean)};
  if (task.N > 0) {
    Engine<T>(task, rows, threads).run();
  } else if (task.with_grad) {
    std::fill_n(rows.dweight, task.C * task.S * task.D, T(0));
  }
}

}  // namespace

void margin_softmax(Address x, int x_dtype, Address weight, int weight_dtype, Address target, int64_t N, int64_t C,
                    int64_t S, int64_t D, double scale, double hardness, bool normalize, bool lse_given,
                    Address threshold, Address phi, Address slope, Address row_weight, Address lse, Address dx,
                    Address dweight, Address mean, int threads) {
  if (S < 1 || S > kTile) throw std::invalid_argument("a class has 1 to 192 sub-centres, got " + std::to_string(S));
  const auto type = static_cast<DType>(x_dtype);
  const Task task{reinterpret_cast<const char*>(x),
                  type,
                  reinterpret_cast<const char*>(weight),
                  static_cast<DType>(weight_dtype),
                  reinterpret_cast<const int64_t*>(target),
                  N,
                  C,
                  S,
                  D,
                  scale,
                  hardness,
                  normalize,
                  dx != 0 || dweight != 0 || mean != 0,
                  lse_given};
  const auto compute = type == DType::float64 ? run<double> : run<float>;
  compute(task, threshold, phi, slope, row_weight, lse, dx, dweight, mean, threads);
}

}  // namespace ssl_fast
