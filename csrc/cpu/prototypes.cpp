// Cross-entropy between a teacher's and a student's assignments to prototypes, without the matrix of logits.
//   p_tk = softmax_k(<y_t, w'_k> / T' + b_tk), q_sk = softmax_k(<z_s, w_k> / T)
//   loss_n = sum over pairs (t, s) of  log l_s - sum_k p_tk <z_s, w_k> / T
//   g_sk = coef_n sum_t (q_sk - p_tk), dz_s = 1/T sum_k g_sk w_k, dw_k = 1/T sum_s g_sk z_s
// A few samples at a time, all their views: the exponentials against all prototypes stay in a panel of kTile columns,
// so nothing is multiplied twice; some panels go together, for the prototypes travel from memory once for all of them.
// Rows of a tile are prototypes; its columns are the teacher's views, then from
// `first_student` on the student's, each view a segment of `samples`.
#include <algorithm>
#include <cmath>
#include <deque>
#include <stdexcept>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "ops.h"

namespace ssl_fast {
namespace {

int64_t element_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

constexpr int64_t kGroupBytes = int64_t{160} << 20;  // of panels that go through the prototypes together
constexpr int64_t kAlign = 32;                       // a multiple of every panel: where the student's columns may begin

// Samples of one panel: all views of all of them fit into the columns of a tile.
int64_t samples_of_panel(int64_t S, int64_t T) {
  int64_t samples = kTile / (S + T);
  while (samples > 0 && round_up(T * samples, kAlign) + round_up(S * samples, kAlign) > kTile) --samples;
  if (samples == 0) throw std::invalid_argument("too many views");
  return samples;
}

template <typename T>
struct Matrix {
  const char* data;
  DType dtype;
  Matrix(Address address, int dtype) : data(reinterpret_cast<const char*>(address)), dtype(static_cast<DType>(dtype)) {}
  const void* row(int64_t i, int64_t D) const { return data + i * D * element_size(dtype); }
};

// `count` prototypes from `first` on, and in the columns after D what is added to their logits.
template <typename T>
void load_prototypes(const Tiles<T>& t, const Matrix<T>& w, int64_t first, int64_t count, int64_t D, const T* bias,
                     int64_t num_biases, int64_t K, T* rows, int64_t ld) {
  t.load_rows(w.row(first, D), w.dtype, count, D, false, rows, ld, nullptr);
  for (int64_t b = 0; bias != nullptr && b < num_biases; ++b) {
    for (int64_t i = 0; i < count; ++i) rows[i * ld + D + b] = bias[b * K + first + i];
  }
}

// A few samples, all their views, against all prototypes: what stays between the passes.
template <typename T>
struct Panel {
  Panel(int64_t num_k, int64_t splits, int64_t depth, int64_t ld)
      : rows(kTile * ld, T(0)),
        panels(kTile * depth + kTile * kAlign),
        tile_memory(num_k * kTile * kTile + kTile),
        tile_offsets(num_k * kTile),
        offsets(splits * kTile),
        sums(splits * kTile),
        cross(splits * kTile),
        dz(splits * kTile * ld),
        highest(kTile),
        totals(kTile) {}

  int64_t n = 0, m = 0;     // first sample, number of samples
  Buffer<T> rows;           // [kTile, ld] the student's views
  Buffer<T> panels;         // of both sides' views, times log2(e) / temperature
  Buffer<T> tile_memory;    // [num_k, kTile, kTile]
  Buffer<T> tile_offsets;   // [num_k, kTile] what the exponentials of a tile are relative to
  Buffer<T> offsets, sums;  // [splits, kTile]
  Buffer<T> cross;          // [splits, kTile]
  Buffer<T> dz;             // [splits, kTile, ld]
  Buffer<T> highest;        // [kTile] each column's normaliser is totals 2^highest
  Buffer<double> totals;    // [kTile]
};

template <typename T>
struct Prototypes {
  Prototypes(int64_t S, int64_t V, int64_t N, int64_t K, int64_t D, const T* bias, bool skip_same, int threads)
      : t(tiles<T>()),
        S(S),
        V(V),
        N(N),
        K(K),
        D(D),
        depth(bias == nullptr ? D : D + V),
        bias(bias),
        skip_same(skip_same),
        width(round_up(D, t.width_step)),
        ld(row_stride(t, depth)),
        samples(samples_of_panel(S, V)),
        first_student(round_up(V * samples, kAlign)),
        num_k(num_tiles(K)),
        splits(std::min<int64_t>(num_k, 16)),
        threads(threads),
        scratch(std::min<int64_t>(threads, splits) * per_thread()) {}

  int64_t per_thread() const { return 2 * kTile * ld + kTile * 4; }
  T* tile(const Panel<T>& p, int64_t k) const { return const_cast<T*>(p.tile_memory.get()) + k * kTile * kTile; }
  int64_t count(int64_t k) const { return std::min(kTile, K - k * kTile); }
  int64_t num_columns(const Panel<T>& p, bool of_student) const { return (of_student ? S : V) * p.m; }
  int64_t first_column(bool of_student) const { return of_student ? first_student : 0; }

  // The views of a panel's samples: the student's rows, and the panels of either side times log2(e) / temperature.
  void load_views(Panel<T>& p, const Matrix<T>& x, bool of_student, double inv_temperature) {
    const int64_t begin = first_column(of_student), columns = num_columns(p, of_student);
    T* scaled = scratch.get();  // [kTile, ld]
    for (int64_t v = 0; v < (of_student ? S : V); ++v) {
      t.load_rows(x.row(v * N + p.n, D), x.dtype, p.m, D, false, scaled + v * p.m * ld, ld, nullptr);
    }
    if (of_student) std::copy_n(scaled, columns * ld, p.rows.get());
    for (int64_t j = 0; j < columns; ++j) t.scale(static_cast<T>(inv_temperature * kLog2E), scaled + j * ld, width);
    if (!of_student && bias != nullptr) {
      for (int64_t j = 0; j < columns; ++j) scaled[j * ld + D + j / p.m] = static_cast<T>(kLog2E);
    }
    t.pack_panels(scaled, ld, columns, of_student ? D : depth, p.panels.get() + begin * depth);
  }

  template <typename Body>  // body(k, scratch): every tile of prototypes, split by split, in order within a split
  void for_tiles(Body&& body) {
    parallel_for(threads, splits, [&](int64_t split, int slot) {
      T* memory = scratch.get() + slot * per_thread();
      for (int64_t k = num_k * split / splits; k < num_k * (split + 1) / splits; ++k) body(k, split, memory);
    });
  }

  // Scores of one side's views become exponentials relative to tile_offsets; the splits' sums are merged. The
  // prototypes are read once for all panels. before(panel, tile, split) sees the scores.
  template <typename Before>
  void exponentials(const Matrix<T>& w, bool of_student, Before&& before) {
    for (Panel<T>& p : group) clear_sums(p, of_student);
    const int64_t begin = first_column(of_student), of_side = of_student ? D : depth;
    for_tiles([&](int64_t k, int64_t split, T* memory) {
      load_prototypes(t, w, k * kTile, count(k), D, of_student ? nullptr : bias, V, K, memory, ld);
      for (Panel<T>& p : group) {
        const int64_t columns = num_columns(p, of_student);
        t.scores(memory, ld, count(k), p.panels.get() + begin * depth, columns, of_side, tile(p, k) + begin);
        before(p, k, split);
        T* offset = p.offsets.get() + split * kTile + begin;
        t.online_exp(tile(p, k) + begin, count(k), columns, T(1), offset, p.sums.get() + split * kTile + begin,
                     memory + kTile * ld);
        std::copy_n(offset, columns, p.tile_offsets.get() + k * kTile + begin);
      }
    });
    for (Panel<T>& p : group) merge_sums(p, of_student);
  }

  void clear_sums(Panel<T>& p, bool of_student) const {
    const int64_t begin = first_column(of_student), columns = num_columns(p, of_student);
    for (int64_t split = 0; split < splits; ++split) {
      std::fill_n(p.offsets.get() + split * kTile + begin, round_up(columns, kAlign), T(-1e30));
      std::fill_n(p.sums.get() + split * kTile + begin, round_up(columns, kAlign), T(0));
    }
  }

  void merge_sums(Panel<T>& p, bool of_student) const {
    const int64_t begin = first_column(of_student);
    for (int64_t j = begin; j < begin + num_columns(p, of_student); ++j) {
      p.highest[j] = p.offsets[j];
      for (int64_t split = 1; split < splits; ++split) {
        p.highest[j] = std::max(p.highest[j], p.offsets[split * kTile + j]);
      }
      p.totals[j] = 0;
      for (int64_t split = 0; split < splits; ++split) {
        const int64_t at = split * kTile + j;
        p.totals[j] += std::exp2(static_cast<double>(p.offsets[at] - p.highest[j])) * p.sums[at];
      }
    }
  }

  // What makes the exponentials of a tile's column probabilities.
  T factor(const Panel<T>& p, int64_t k, int64_t column) const {
    const T below = p.tile_offsets[k * kTile + column] - p.highest[column];
    return static_cast<T>(std::exp2(static_cast<double>(below)) / p.totals[column]);
  }

  // The teacher's columns of a tile become probabilities.
  void normalize_teacher(Panel<T>& p, int64_t k) {
    const int64_t columns = num_columns(p, false);
    T factors[kTile];
    for (int64_t j = 0; j < columns; ++j) factors[j] = factor(p, k, j);
    for (int64_t i = 0; i < count(k); ++i) {
      T* row = tile(p, k) + i * kTile;
      for (int64_t j = 0; j < columns; ++j) row[j] *= factors[j];
    }
  }

  // sum over the teacher's views that the student's view s is paired with, of one row of a tile, in `target` [m].
  void sum_targets(const Panel<T>& p, const T* row, int64_t s, T* target) const {
    std::fill_n(target, p.m, T(0));
    for (int64_t v = 0; v < V; ++v) {
      if (skip_same && s == v) continue;
      for (int64_t j = 0; j < p.m; ++j) target[j] += row[v * p.m + j];
    }
  }

  T num_targets(int64_t s) const { return static_cast<T>(V - (skip_same && s < V ? 1 : 0)); }

  // cross_s += sum_k (sum_t p_tk) score_sk over one tile
  void add_cross(Panel<T>& p, int64_t k, int64_t split) {
    normalize_teacher(p, k);
    T target[kTile], partial[kTile] = {};
    for (int64_t i = 0; i < count(k); ++i) {
      const T* row = tile(p, k) + i * kTile;
      for (int64_t s = 0; s < S; ++s) {
        sum_targets(p, row, s, target);
        const T* score = row + first_student + s * p.m;
        for (int64_t j = 0; j < p.m; ++j) partial[s * p.m + j] += target[j] * score[j];
      }
    }
    for (int64_t j = 0; j < S * p.m; ++j) p.cross[split * kTile + j] += partial[j];
  }

  void losses(const Panel<T>& p, T* loss) const {
    for (int64_t j = 0; j < p.m; ++j) {
      double total = 0;
      for (int64_t s = 0; s < S; ++s) {
        double crossed = 0;
        for (int64_t split = 0; split < splits; ++split) crossed += p.cross[split * kTile + s * p.m + j];
        const int64_t column = first_student + s * p.m + j;
        total += static_cast<double>(num_targets(s)) * (p.highest[column] + std::log2(p.totals[column])) - crossed;
      }
      loss[p.n + j] = static_cast<T>(total / kLog2E);
    }
  }

  // The student's columns of a tile become g / T.
  void gradient_of_scores(Panel<T>& p, int64_t k, const T* coef, double inv_temperature) {
    T target[kTile], factors[kTile], scaled_coef[kTile];
    for (int64_t j = 0; j < p.m; ++j) scaled_coef[j] = static_cast<T>(coef[p.n + j] * inv_temperature);
    for (int64_t j = 0; j < S * p.m; ++j) factors[j] = num_targets(j / p.m) * factor(p, k, first_student + j);
    for (int64_t i = 0; i < count(k); ++i) {
      T* row = tile(p, k) + i * kTile;
      for (int64_t s = 0; s < S; ++s) {
        sum_targets(p, row, s, target);
        T* e = row + first_student + s * p.m;
        for (int64_t j = 0; j < p.m; ++j) e[j] = scaled_coef[j] * (e[j] * factors[s * p.m + j] - target[j]);
      }
    }
  }

  void gradients(const Matrix<T>& w, const T* coef, double inv_temperature, T* dweight) {
    for (Panel<T>& p : group) std::fill_n(p.dz.get(), splits * kTile * ld, T(0));
    for_tiles([&](int64_t k, int64_t split, T* memory) {
      load_prototypes<T>(t, w, k * kTile, count(k), D, nullptr, 0, K, memory, ld);
      T *to = dweight + k * kTile * D, *total = memory + kTile * ld;
      for (int64_t i = 0; dweight != nullptr && i < count(k); ++i) std::copy_n(to + i * D, D, total + i * ld);
      for (Panel<T>& p : group) {
        const int64_t columns = num_columns(p, true);
        gradient_of_scores(p, k, coef, inv_temperature);
        const T* g = tile(p, k) + first_student;
        t.add_transposed_product(g, columns, count(k), memory, ld, width, p.dz.get() + split * kTile * ld);
        if (dweight != nullptr) t.add_product(g, count(k), columns, p.rows.get(), ld, width, total);
      }
      for (int64_t i = 0; dweight != nullptr && i < count(k); ++i) std::copy_n(total + i * ld, D, to + i * D);
    });
  }

  void store_dstudent(Panel<T>& p, T* dstudent) {
    for (int64_t j = 0; j < num_columns(p, true); ++j) {
      T* total = p.dz.get() + j * ld;
      for (int64_t split = 1; split < splits; ++split) t.axpy(T(1), total + split * kTile * ld, total, width);
      std::copy_n(total, D, dstudent + (j / p.m * N + p.n + j % p.m) * D);
    }
  }

  // The samples [begin, end) become panels, in the memory of those before.
  void take(int64_t begin, int64_t end) {
    const auto num_panels = static_cast<std::size_t>((end - begin + samples - 1) / samples);
    while (group.size() > num_panels) group.pop_back();
    while (group.size() < num_panels) group.emplace_back(num_k, splits, depth, ld);
    for (Panel<T>& p : group) {
      p.n = begin;
      p.m = std::min(samples, end - begin);
      std::fill_n(p.cross.get(), splits * kTile, T(0));
      begin += samples;
    }
  }

  // Samples whose panels together take kGroupBytes at most, or one panel's: all passes over the samples of one size.
  int64_t samples_at_once() const {
    const int64_t num_panels = (N + samples - 1) / samples;
    const int64_t most = std::max<int64_t>(kGroupBytes / (num_k * kTile * kTile * int64_t{sizeof(T)} + 1), 1);
    const int64_t passes = (num_panels + most - 1) / most;
    return (num_panels + passes - 1) / std::max<int64_t>(passes, 1) * samples;
  }

  const Tiles<T>& t;
  const int64_t S, V, N, K, D;  // student's and teacher's views, samples, prototypes, embedding
  const int64_t depth;          // of the products: D, and one column for the bias of each of the teacher's views
  const T* const bias;          // [V, K] or null
  const bool skip_same;
  const int64_t width, ld, samples, first_student, num_k, splits;
  const int threads;
  std::deque<Panel<T>> group;
  Buffer<T> scratch;
};

template <typename T>
void run(Matrix<T> student, Matrix<T> w, Matrix<T> teacher, Matrix<T> w_teacher, int64_t S, int64_t V, int64_t N,
         int64_t K, int64_t D, Address bias, Address coef, double inv_student, double inv_teacher, bool skip_same,
         Address loss, Address dstudent, Address dweight, int threads) {
  Prototypes<T> op(S, V, N, K, D, reinterpret_cast<const T*>(bias), skip_same, threads);
  auto* dw = reinterpret_cast<T*>(dweight);
  if (dw != nullptr) std::fill_n(dw, K * D, T(0));
  const int64_t at_once = op.samples_at_once();
  for (int64_t n = 0; n < N; n += at_once) {
    op.take(n, std::min(N, n + at_once));
    for (Panel<T>& p : op.group) {
      op.load_views(p, teacher, false, inv_teacher);
      op.load_views(p, student, true, inv_student);
    }
    op.exponentials(w_teacher, false, [](Panel<T>&, int64_t, int64_t) {});
    op.exponentials(w, true, [&](Panel<T>& p, int64_t k, int64_t split) { op.add_cross(p, k, split); });
    for (Panel<T>& p : op.group) op.losses(p, reinterpret_cast<T*>(loss));
    if (dstudent == 0) continue;
    op.gradients(w, reinterpret_cast<const T*>(coef), inv_student, dw);
    for (Panel<T>& p : op.group) op.store_dstudent(p, reinterpret_cast<T*>(dstudent));
  }
}

// log sum_m exp(<terms_m, columns_r> / T + bias_m) for each column r, with an online maximum.
template <typename T>
void sum_terms(Matrix<T> terms, Matrix<T> columns, const T* bias, int64_t M, int64_t R, int64_t D,
               double inv_temperature, T* logs, int threads) {
  const Tiles<T>& t = tiles<T>();
  const int64_t depth = bias == nullptr ? D : D + 1, ld = row_stride(t, depth);
  const int64_t num_r = num_tiles(R), num_m = num_tiles(M);
  const int64_t splits = std::clamp<int64_t>(64 / std::max<int64_t>(num_r, 1), 1, std::max<int64_t>(num_m, 1));
  Buffer<T> panels(num_r * kTile * depth);
  Buffer<T> offsets(splits * num_r * kTile, T(-1e30)), sums(splits * num_r * kTile, T(0));
  const int64_t per_thread = kTile * (ld + kTile + 1);
  Buffer<T> scratch(threads * per_thread);
  parallel_for(threads, num_r, [&](int64_t r, int slot) {
    T* rows = scratch.get() + slot * per_thread;
    const int64_t n = std::min(kTile, R - r * kTile);
    t.load_rows(columns.row(r * kTile, D), columns.dtype, n, D, false, rows, ld, nullptr);
    for (int64_t j = 0; j < n; ++j) {
      t.scale(static_cast<T>(inv_temperature * kLog2E), rows + j * ld, round_up(D, t.width_step));
      if (bias != nullptr) rows[j * ld + D] = static_cast<T>(kLog2E);
    }
    t.pack_panels(rows, ld, n, depth, panels.get() + r * kTile * depth);
  });
  parallel_for(threads, num_r * splits, [&](int64_t task, int slot) {
    T *rows = scratch.get() + slot * per_thread, *tile = rows + kTile * ld;
    const int64_t r = task / splits, split = task % splits, at = (split * num_r + r) * kTile;
    const int64_t n = std::min(kTile, R - r * kTile);
    for (int64_t a = num_m * split / splits; a < num_m * (split + 1) / splits; ++a) {
      const int64_t count = std::min(kTile, M - a * kTile);
      load_prototypes(t, terms, a * kTile, count, D, bias, 1, M, rows, ld);
      t.scores(rows, ld, count, panels.get() + r * kTile * depth, n, depth, tile);
      t.online_exp(tile, count, n, T(1), offsets.get() + at, sums.get() + at, tile + kTile * kTile);
    }
  });
  for (int64_t r = 0; r < R; ++r) {
    T highest = offsets[r];
    for (int64_t split = 1; split < splits; ++split) highest = std::max(highest, offsets[split * num_r * kTile + r]);
    double total = 0;
    for (int64_t split = 0; split < splits; ++split) {
      const int64_t at = split * num_r * kTile + r;
      total += std::exp2(static_cast<double>(offsets[at] - highest)) * sums[at];
    }
    logs[r] = static_cast<T>((std::log2(total) + highest) / kLog2E);
  }
}

}  // namespace

void prototypes_forward(Address student, int student_dtype, Address weight, int weight_dtype, Address teacher,
                        int teacher_dtype, Address weight_teacher, int weight_teacher_dtype, int64_t S, int64_t T,
                        int64_t N, int64_t K, int64_t D, Address bias, Address coef, double inv_student,
                        double inv_teacher, bool skip_same, Address loss, Address dstudent, Address dweight,
                        bool in_float64, int threads) {
  const auto call = [&](auto zero) {
    using Real = decltype(zero);
    run<Real>({student, student_dtype}, {weight, weight_dtype}, {teacher, teacher_dtype},
              {weight_teacher, weight_teacher_dtype}, S, T, N, K, D, bias, coef, inv_student, inv_teacher, skip_same,
              loss, dstudent, dweight, threads);
  };
  in_float64 ? call(double{}) : call(float{});
}

void prototypes_log_sums(Address terms, int terms_dtype, Address columns, int columns_dtype, Address bias, int64_t M,
                         int64_t R, int64_t D, double inv_temperature, Address logs, bool in_float64, int threads) {
  const auto call = [&](auto zero) {
    using Real = decltype(zero);
    sum_terms<Real>({terms, terms_dtype}, {columns, columns_dtype}, reinterpret_cast<const Real*>(bias), M, R, D,
                    inv_temperature, reinterpret_cast<Real*>(logs), threads);
  };
  in_float64 ? call(double{}) : call(float{});
}

}  // namespace ssl_fast
