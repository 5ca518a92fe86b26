// NT-Xent, backward of sum_i coef_i loss_i with respect to x. With p_ij = exp(s_ij) / l_i (l_i the total, its positive
// included) and q_i = sum of p_ij over the negatives = 1 - p_i,positive:
//   dz_i = 1/T [ sum_{j negative} (coef_i p_ij + coef_j p_ji) z_j - coef_i q_i z_positive(i) - sum_{j: positive(j) = i}
//   coef_j q_j z_j ]
// q is summed again here rather than taken as 1 - p: nothing cancels when the views are aligned.
// DCL: l_i is the sum over the negatives, and 1 stands in the place of q. Classes of three rows or more (SupCon): the
// sum over j runs over all other rows, and every positive pulls with share_i = coef_i / |P(i)|. That is taken from the
// weight of the pair before any sum: when a class draws together, p_ij and 1 / |P(i)| nearly cancel.
#include "cpu/contrast.h"
#include "cpu/nt_xent.h"
#include "ops.h"

namespace ssl_fast {
namespace {

template <typename T>
struct Backward {
  Backward(const Contrast<T>& c, const T* coef, const T* log_l, bool decoupled, int threads)
      : c(c),
        decoupled(decoupled),
        threads(threads),
        fixed(c.fixed_offset()),
        bias(c.fixed_bias()),
        coef(coef),
        log_l(log_l),
        logs(round_up(c.N, kTile)),
        inverse_l(round_up(c.N, kTile)),
        weights(round_up(c.N, kTile)),
        q(round_up(c.wanted.size(), kTile), T(0)),
        dz(round_up(c.wanted.size(), kTile) * c.ld),
        classes(c.classes == nullptr ? 0 : round_up(c.N, kTile), T(0)),
        shares(c.classes == nullptr ? 0 : round_up(c.N, kTile), T(0)) {
    for (int64_t i = 0; c.classes != nullptr && i < c.N; ++i) {
      classes[i] = static_cast<T>(c.classes[i]);
      if (c.num_positives(i) > 1) shares[i] = coef[i] / static_cast<T>(c.num_positives(i));
    }
    for (int64_t i = 0; i < c.N; ++i) {
      logs[i] = static_cast<T>(log_l[i] * kLog2E);
      // With the offset as it was rounded, which is what the exponentials of the tiles carry.
      inverse_l[i] = fixed ? static_cast<T>(std::exp2(-double(bias) - log_l[i] * kLog2E)) : T(1);
      weights[i] = coef[i] * inverse_l[i];
    }
    std::fill(logs.get() + c.N, logs.get() + round_up(c.N, kTile), T(0));
    std::fill(weights.get() + c.N, weights.get() + round_up(c.N, kTile), T(0));
  }

  // The tile's scores become the weights of its pairs; q of rows and of columns (unless null) is summed.
  void pair_weights(Range rows, Range columns, T* tile, T* row_q, T* column_q) const {
    c.scores(rows, columns, tile);
    const OneSided<T> one_sided = exclude(c, rows, columns, tile);
    const T* row_weights = weights.get() + rows.begin;
    const T* column_weights = weights.get() + columns.begin;
    if (fixed) {
      c.t.pair_weights_fixed(tile, rows.size(), columns.size(), c.scale, bias, row_weights, column_weights, row_q,
                             column_q);
    } else {
      c.t.pair_weights(tile, rows.size(), columns.size(), c.scale, logs.get() + rows.begin, row_weights,
                       logs.get() + columns.begin, column_weights, row_q, column_q);
    }
    for (const auto& cell : one_sided) {
      const int64_t side = cell.of_column ? columns.begin + cell.b : rows.begin + cell.a;
      const T p = std::exp2(c.scale * cell.score + (fixed ? bias : -logs[side]));
      tile[cell.a * kTile + cell.b] += weights[side] * p;
      if (cell.of_column && column_q != nullptr) column_q[cell.b] += p;
      if (!cell.of_column && row_q != nullptr) row_q[cell.a] += p;
    }
    if (c.classes != nullptr) subtract_shares(rows, columns, tile);
  }

  void subtract_shares(Range rows, Range columns, T* tile) const {
    c.t.subtract_shares(tile, rows.size(), columns.size(), classes.get() + rows.begin, shares.get() + rows.begin,
                        classes.get() + columns.begin, shares.get() + columns.begin);
    for (int64_t a = rows.begin; a < rows.end; ++a) {
      if (columns.contains(a)) tile[(a - rows.begin) * kTile + a - columns.begin] = 0;
    }
  }

  // All rows: a tile of pairs gives the gradients of its rows and of its columns.
  void symmetric() {
    Tournament tournament(num_tiles(c.N));
    Buffer<T> scratch(threads * kTile * kTile);
    parallel_for(threads, tournament.num_tasks(), [&](int64_t task, int slot) {
      T* tile = scratch.get() + slot * kTile * kTile;
      tournament.play(task, [&](int64_t i, int64_t j) {
        const Range rows = c.tile_of_all(i), columns = c.tile_of_all(j);
        pair_weights(rows, columns, tile, q.get() + rows.begin, i == j ? nullptr : q.get() + columns.begin);
        T* row_dz = dz.get() + rows.begin * c.ld;
        T* column_dz = dz.get() + columns.begin * c.ld;
        c.t.add_product(tile, rows.size(), columns.size(), c.row(columns.begin), c.ld, c.width, row_dz);
        if (i == j) return;
        c.t.add_transposed_product(tile, columns.size(), rows.size(), c.row(rows.begin), c.ld, c.width, column_dz);
      });
    });
  }

  // Some rows: each tile of them against all.
  void owned() {
    Buffer<T> scratch(threads * kTile * kTile);
    parallel_for(threads, num_tiles(c.wanted.size()), [&](int64_t task, int slot) {
      T* tile = scratch.get() + slot * kTile * kTile;
      const Range columns = c.tile_of_wanted(task);
      T* column_dz = dz.get() + task * kTile * c.ld;
      for (int64_t other = 0; other < num_tiles(c.N); ++other) {
        const Range rows = c.tile_of_all(other);
        pair_weights(rows, columns, tile, nullptr, q.get() + task * kTile);
        c.t.add_transposed_product(tile, columns.size(), rows.size(), c.row(rows.begin), c.ld, c.width, column_dz);
      }
    });
  }

  // coef_i q_i: what row i's loss pulls it towards its only positive with.
  T pull(int64_t i) const {
    if (decoupled) return std::isinf(log_l[i]) ? T(0) : coef[i];
    if (c.wanted.contains(i)) return coef[i] * q[i - c.wanted.begin] * inverse_l[i];
    return coef[i] * static_cast<T>(-std::expm1(static_cast<double>(c.logit(i, c.positive[i])) - log_l[i]));
  }

  void sum_pairs() {
    const int64_t num_rows = round_up(c.wanted.size(), c.t.row_block);
    parallel_for(threads, num_tiles(c.wanted.size()), [&](int64_t tile, int) {
      std::fill(dz.get() + tile * kTile * c.ld, dz.get() + std::min(num_rows, (tile + 1) * kTile) * c.ld, T(0));
    });
    c.all_rows() ? symmetric() : owned();
  }

  const Contrast<T>& c;
  const bool decoupled;
  const int threads;
  const bool fixed;
  const T bias;
  const T* const coef;   // [N]
  const T* const log_l;  // [N]
  Buffer<T> logs;        // [N] log2 of the total normaliser
  Buffer<T> inverse_l;   // [N] its inverse, with the fixed offset (1 without)
  Buffer<T> weights;     // [N] coef times that
  Buffer<T> q;           // [R] sum of p over the negatives, to be multiplied by inverse_l
  Buffer<T> dz;          // [R, ld]
  Buffer<T> classes;     // [N] or empty; whole numbers below 2^24 are exact in float
  Buffer<T> shares;      // [N] coef / |P| of the rows with two or more positives, else 0; or empty
};

// For each row, the rows whose positive it is: those of row i are rows[begins[i]] .. rows[begins[i + 1] - 1].
struct Pullers {
  explicit Pullers(const int64_t* positive, int64_t N) : begins(N + 2, 0), rows(N) {
    for (int64_t i = 0; i < N; ++i) ++begins[positive[i] + 2];
    for (int64_t i = 2; i < N + 2; ++i) begins[i] += begins[i - 1];
    for (int64_t i = 0; i < N; ++i) rows[begins[positive[i] + 1]++] = i;
  }
  Buffer<int64_t> begins, rows;
};

// Positives, 1/T, <z, dz> and the backward of the normalisation, in place in dz and then out.
template <typename T>
void finish(Backward<T>& b, const Pullers& pullers, int64_t r, bool normalize, T* dx, T* zdz) {
  const Contrast<T>& c = b.c;
  const int64_t i = c.wanted.begin + r;
  T* dz = b.dz.get() + r * c.ld;
  if (c.num_positives(i) == 1) {
    c.t.axpy(-b.pull(i), c.row(c.positive[i]), dz, c.width);
    for (int64_t k = pullers.begins[i]; k < pullers.begins[i + 1]; ++k) {
      c.t.axpy(-b.pull(pullers.rows[k]), c.row(pullers.rows[k]), dz, c.width);
    }
  }
  c.t.scale(static_cast<T>(c.inv_temperature), dz, c.width);
  *zdz = c.t.dot(c.row(i), dz, c.width);
  if (normalize) {
    const T least = static_cast<T>(1e-12);
    if (!(c.norms[i] < least)) c.t.axpy(-*zdz, c.row(i), dz, c.width);
    c.t.scale(T(1) / std::max(c.norms[i], least), dz, c.width);
  }
  std::copy(dz, dz + c.D, dx);
}

}  // namespace

template <typename T>
void contrast_gradients(const Contrast<T>& c, const T* coef, const T* log_l, bool decoupled, bool normalize,
                        const Parts& dx, T* zdz, int threads) {
  Backward<T> b(c, coef, log_l, decoupled, threads);
  const Pullers pullers(c.positive, c.N);
  b.sum_pairs();
  parallel_for(threads, num_tiles(c.wanted.size()), [&](int64_t tile, int) {
    for (int64_t r = tile * kTile; r < std::min(c.wanted.size(), (tile + 1) * kTile); ++r) {
      finish(b, pullers, r, normalize, static_cast<T*>(dx.row(r, c.D * sizeof(T))), zdz + r);
    }
  });
}

template void contrast_gradients(const Contrast<float>&, const float*, const float*, bool, bool, const Parts&, float*,
                                 int);
template void contrast_gradients(const Contrast<double>&, const double*, const double*, bool, bool, const Parts&,
                                 double*, int);

namespace {

template <typename T>
void backward(Address x, DType dtype, const int64_t* positive, const int64_t* classes, Address coef, Address log_l,
              int64_t N, int64_t D, Range wanted, double inv_temperature, bool normalize, bool decoupled, Address dx,
              Address zdz, int threads) {
  const Contrast<T> c(Parts::whole(x), dtype, positive, classes, N, D, wanted, inv_temperature, normalize, threads);
  contrast_gradients(c, reinterpret_cast<const T*>(coef), reinterpret_cast<const T*>(log_l), decoupled, normalize,
                     Parts::whole(dx), reinterpret_cast<T*>(zdz), threads);
}

}  // namespace

void nt_xent_backward(Address x, int dtype, Address positive, Address classes, Address coef, Address log_l, int64_t N,
                      int64_t D, int64_t begin, int64_t end, double inv_temperature, bool normalize, bool decoupled,
                      Address dx, Address zdz, int threads) {
  if (begin >= end) return;
  const auto* pairs = reinterpret_cast<const int64_t*>(positive);
  const auto* ids = reinterpret_cast<const int64_t*>(classes);
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? backward<double> : backward<float>;
  run(x, type, pairs, ids, coef, log_l, N, D, {begin, end}, inv_temperature, normalize, decoupled, dx, zdz, threads);
}

}  // namespace ssl_fast
