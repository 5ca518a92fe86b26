// NT-Xent, forward: l_i = sum over the negatives j of exp(s_ij), loss_i = softplus(log l_i - s_i,positive).
// The positive stays out of the sum, so that nothing cancels when the views are aligned.
// DCL: loss_i = log l_i - s_i,positive. Classes of three rows or more (SupCon): l_i is the sum over all other rows and
// loss_i = log l_i - mean of s over the positives.
#include "cpu/class_sums.h"
#include "cpu/contrast.h"
#include "cpu/nt_xent.h"
#include "ops.h"

namespace ssl_fast {
namespace {

// All rows: every pair of tiles once, its exponentials added along rows and along columns.
template <typename T>
void symmetric_sums(const Contrast<T>& c, T* sums, int threads) {
  Tournament tournament(num_tiles(c.N));
  Buffer<T> scratch(threads * kTile * kTile);
  const T bias = c.fixed_bias();
  std::fill(sums, sums + round_up(c.N, kTile), T(0));
  parallel_for(threads, tournament.num_tasks(), [&](int64_t task, int slot) {
    T* tile = scratch.get() + slot * kTile * kTile;
    tournament.play(task, [&](int64_t i, int64_t j) {
      const Range rows = c.tile_of_all(i), columns = c.tile_of_all(j);
      T* row_sums = sums + rows.begin;
      T* column_sums = i == j ? nullptr : sums + columns.begin;
      c.scores(rows, columns, tile);
      const OneSided<T> one_sided = exclude(c, rows, columns, tile);
      c.t.add_exp_sums(tile, rows.size(), columns.size(), c.scale, bias, row_sums, column_sums);
      for (const auto& cell : one_sided) {
        const T e = std::exp2(c.scale * cell.score + bias);
        if (!cell.of_column) row_sums[cell.a] += e;
        if (cell.of_column && column_sums != nullptr) column_sums[cell.b] += e;
      }
    });
  });
}

// Some rows, or logits too far apart for a fixed offset: every wanted row against all, with an online maximum.
template <typename T>
void online_sums(const Contrast<T>& c, T* sums, T* offsets, int threads) {
  Buffer<T> scratch(threads * kTile * (kTile + 1));
  constexpr T never = -std::numeric_limits<T>::infinity();
  parallel_for(threads, num_tiles(c.wanted.size()), [&](int64_t task, int slot) {
    T* tile = scratch.get() + slot * kTile * (kTile + 1);
    T* factors = tile + kTile * kTile;
    const Range columns = c.tile_of_wanted(task);
    T* l = sums + task * kTile;
    T* offset = offsets + task * kTile;
    std::fill(l, l + kTile, T(0));
    std::fill(offset, offset + kTile, T(-1e30));
    for (int64_t other = 0; other < num_tiles(c.N); ++other) {
      const Range rows = c.tile_of_all(other);
      c.scores(rows, columns, tile);
      for (int64_t b = columns.begin; b < columns.end; ++b) {
        T* column = tile + b - columns.begin;
        if (rows.contains(b)) column[(b - rows.begin) * kTile] = never;
        if (rows.contains(c.positive[b])) column[(c.positive[b] - rows.begin) * kTile] = never;
      }
      exclude_left_out(c, rows, columns, tile);
      c.t.online_exp(tile, rows.size(), columns.size(), c.scale, offset, l, factors);
    }
  });
}

struct RowLoss {
  double loss, log_l;
};
constexpr RowLoss kNoLoss = {0, std::numeric_limits<double>::infinity()};

RowLoss pair_loss(double log_negatives, double s) {
  const double above = log_negatives - s;
  const double softplus = above > 0 ? above + std::log1p(std::exp(-above)) : std::log1p(std::exp(above));
  return {softplus, softplus + s};
}

RowLoss decoupled_loss(double log_negatives, double s) {
  const bool alone = log_negatives == -std::numeric_limits<double>::infinity();
  return alone ? kNoLoss : RowLoss{log_negatives - s, log_negatives};
}

}  // namespace

template <typename T>
void contrast_losses(const Contrast<T>& c, bool decoupled, T* loss, T* log_l, int threads) {
  const int64_t R = c.wanted.size();
  Buffer<T> sums(round_up(R, kTile)), offsets(round_up(R, kTile), -c.fixed_bias());
  if (c.all_rows() && c.fixed_offset()) {
    symmetric_sums(c, sums.get(), threads);
  } else {
    online_sums(c, sums.get(), offsets.get(), threads);
  }
  const ClassSums<T> of_classes(c);
  parallel_for(threads, num_tiles(R), [&](int64_t tile, int) {
    for (int64_t r = tile * kTile; r < std::min(R, (tile + 1) * kTile); ++r) {
      const int64_t i = c.wanted.begin + r, num_positives = c.num_positives(i);
      const double log_sum = std::log(static_cast<double>(sums[r])) + offsets[r] / kLog2E;
      RowLoss row = kNoLoss;
      if (num_positives > 1) {
        row = {log_sum - of_classes.mean_logit(i), log_sum};
      } else if (num_positives == 1) {
        row = (decoupled ? decoupled_loss : pair_loss)(log_sum, c.logit(i, c.positive[i]));
      }
      loss[r] = static_cast<T>(row.loss);
      log_l[r] = static_cast<T>(row.log_l);
    }
  });
}

template void contrast_losses(const Contrast<float>&, bool, float*, float*, int);
template void contrast_losses(const Contrast<double>&, bool, double*, double*, int);

namespace {

template <typename T>
void forward(Address x, DType dtype, const int64_t* positive, const int64_t* classes, int64_t N, int64_t D,
             Range wanted, double inv_temperature, bool normalize, bool decoupled, Address loss, Address log_l,
             int threads) {
  const Contrast<T> c(Parts::whole(x), dtype, positive, classes, N, D, wanted, inv_temperature, normalize, threads);
  contrast_losses(c, decoupled, reinterpret_cast<T*>(loss), reinterpret_cast<T*>(log_l), threads);
}

}  // namespace

void nt_xent_forward(Address x, int dtype, Address positive, Address classes, int64_t N, int64_t D, int64_t begin,
                     int64_t end, double inv_temperature, bool normalize, bool decoupled, Address loss, Address log_l,
                     int threads) {
  if (begin >= end) return;
  const auto* pairs = reinterpret_cast<const int64_t*>(positive);
  const auto* ids = reinterpret_cast<const int64_t*>(classes);
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? forward<double> : forward<float>;
  run(x, type, pairs, ids, N, D, {begin, end}, inv_temperature, normalize, decoupled, loss, log_l, threads);
}

}  // namespace ssl_fast
