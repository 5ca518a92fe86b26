// CLIP's loss. In each direction (image to text, text to image), with l_i the sum of exp(s_ij) over the negatives:
//   loss_i = softplus(log l_i - s_ii), and with p_ij = exp(s_ij - log of the whole normaliser), q_i = sum_{j != i}
//   p_ij: du_i = scale [ sum_{j != i} (coef_i p_ij + coef'_j p'_ji) v_j - (coef_i q_i + coef'_i q'_i) v_i ]
// where ' is the other direction, and dv_j alike. q is summed rather than taken as 1 - p_ii: nothing cancels when the
// towers are aligned.
#include "cpu/towers.h"
#include "cpu/weighted.h"
#include "ops.h"

namespace ssl_fast {
namespace {

// Takes the positives, which lie on the diagonal, out of the tile.
template <typename T>
void exclude(Range rows, Range columns, T* tile) {
  if (rows.begin != columns.begin) return;
  for (int64_t a = 0; a < rows.size(); ++a) tile[a * kTile + a] = -std::numeric_limits<T>::infinity();
}

// loss, log_l: [sides, R]
template <typename T>
void losses(const Towers<T>& towers, int sides, T* loss, double* log_l) {
  const Range mine = towers.mine;
  const PairTiles<T>& p = pair_tiles<T>();
  const int64_t size = towers.own.size();
  Buffer<T> offsets(2 * size, T(-1e30)), sums(2 * size, T(0));
  towers.visit(true, sides == 2, [&](Range rows, Range columns, bool of_rows, bool of_columns, T* tile) {
    exclude(rows, columns, tile);
    const int64_t r = rows.begin - towers.own.begin, c = size + columns.begin - towers.own.begin;
    const OnlineSums<T> none{nullptr, nullptr};
    p.online_sums(tile, rows.size(), columns.size(), towers.log2_scale,
                  of_rows ? OnlineSums<T>{offsets.get() + r, sums.get() + r} : none,
                  of_columns ? OnlineSums<T>{offsets.get() + c, sums.get() + c} : none);
  });
  for (int64_t k = 0; k < sides * mine.size(); ++k) {
    const int64_t side = k / mine.size(), i = mine.begin + k % mine.size();
    const int64_t at = side * size + i - towers.own.begin;
    // With the scale as it was rounded, which is what the exponentials of the tiles carry.
    const double s = towers.log2_scale / kLog2E * towers.cosine(i);
    const double above = std::log(static_cast<double>(sums[at])) + offsets[at] / kLog2E - s;
    const double softplus = above > 0 ? above + std::log1p(std::exp(-above)) : std::log1p(std::exp(above));
    loss[k] = static_cast<T>(softplus);
    log_l[k] = softplus + s;
  }
}

// A direction's normalisers, split in two, and its weights, whole vectors of them.
template <typename T>
struct Normalisers {
  Normalisers(const T* coef, const double* log_l, int64_t M)
      : high(round_up(M, kTile), T(0)), low(round_up(M, kTile), T(0)), weights(round_up(M, kTile), T(0)) {
    for (int64_t i = 0; i < M; ++i) {
      const double log2_l = log_l[i] * kLog2E;
      high[i] = static_cast<T>(log2_l);
      low[i] = static_cast<T>(log2_l - static_cast<double>(high[i]));
      weights[i] = coef[i];
    }
  }
  Direction<T> from(int64_t i) const { return {high.get() + i, low.get() + i, weights.get() + i}; }
  Buffer<T> high, low, weights;  // [M]
};

// c, logs: [sides, M]; dimage, dtext: [R, D]; dscale: [R]
template <typename T>
void gradients(const Towers<T>& towers, const T* c, const double* logs, bool normalize, int sides, T* dimage, T* dtext,
               T* dscale) {
  const PairTiles<T>& p = pair_tiles<T>();
  const int64_t M = towers.M, D = towers.D;
  const Range mine = towers.mine;
  const Normalisers<T> to_text(c, logs, M), to_image(c + (sides - 1) * M, logs + (sides - 1) * M, M);
  const int64_t size = towers.own.size(), first = towers.own.begin;
  Buffer<T> du(size * towers.ld, T(0)), dv(size * towers.ld, T(0)), q(2 * size, T(0));
  towers.visit(true, true, [&](Range rows, Range columns, bool of_rows, bool of_columns, T* tile) {
    exclude(rows, columns, tile);
    p.softmax_weights(tile, rows.size(), columns.size(), towers.log2_scale, to_text.from(rows.begin),
                      sides == 2 ? to_image.from(columns.begin) : Direction<T>{nullptr, nullptr, nullptr},
                      of_rows ? q.get() + rows.begin - first : nullptr,
                      of_columns ? q.get() + size + columns.begin - first : nullptr);
    towers.add_products(rows, columns, of_rows, of_columns, tile, du.get(), dv.get());
  });
  parallel_for(towers.threads, num_tiles(mine.size()), [&](int64_t task, int) {
    for (int64_t k = task * kTile; k < std::min(mine.size(), (task + 1) * kTile); ++k) {
      const int64_t i = mine.begin + k;
      T *u_row = du.get() + (i - first) * towers.ld, *v_row = dv.get() + (i - first) * towers.ld;
      const T pull = c[i] * q[i - first] + (sides == 2 ? c[M + i] * q[size + i - first] : T(0));
      towers.t.axpy(-pull, towers.text(i), u_row, towers.width);
      towers.t.axpy(-pull, towers.image(i), v_row, towers.width);
      dscale[k] = towers.t.dot(towers.image(i), u_row, towers.width);
      towers.t.scale(static_cast<T>(towers.scale), u_row, towers.width);
      towers.t.scale(static_cast<T>(towers.scale), v_row, towers.width);
      towers.finish(towers.image(i), towers.u_norms[i], normalize, u_row, dimage + k * D);
      towers.finish(towers.text(i), towers.v_norms[i], normalize, v_row, dtext + k * D);
    }
  });
}

template <typename T>
void objective(const Towers<T>& towers, bool normalize, int sides, const T* weight, bool average, T* value, T* dimage,
               T* dtext, T* dweight, T* dscale) {
  const int64_t M = towers.M;
  const Weighted<T> weighted(sides * M, M, weight, average);
  Buffer<T> loss(sides * M), shares(M);
  Buffer<double> log_l(sides * M);
  losses(towers, sides, loss.get(), log_l.get());
  const double found = weighted.value(loss.get());
  *value = static_cast<T>(found);
  if (dimage == nullptr) return;
  gradients(towers, weighted.coef.get(), log_l.get(), normalize, sides, dimage, dtext, shares.get());
  if (dweight != nullptr) weighted.gradient(loss.get(), average ? found : 0, dweight);
  if (dscale != nullptr) *dscale = static_cast<T>(total(shares.get(), M));
}

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// run(towers), in the numbers that the dtype is computed in.
template <typename Run>
void with_towers(Address image, Address text, int dtype, int64_t M, int64_t D, Range mine, double scale, bool normalize,
                 int threads, const Run& run) {
  const auto type = static_cast<DType>(dtype);
  if (type == DType::float64) {
    run(Towers<double>(image, text, type, M, D, mine, scale, normalize, threads), 0.0);
  } else {
    run(Towers<float>(image, text, type, M, D, mine, scale, normalize, threads), 0.0f);
  }
}

}  // namespace

void clip_loss_forward(Address image, Address text, int dtype, int64_t M, int64_t D, int64_t begin, int64_t end,
                       double scale, bool normalize, int sides, Address loss, Address log_l, int threads) {
  if (begin >= end) return;
  with_towers(image, text, dtype, M, D, {begin, end}, scale, normalize, threads, [&](const auto& towers, auto zero) {
    losses(towers, sides, pointer<decltype(zero)>(loss), pointer<double>(log_l));
  });
}

void clip_loss_backward(Address image, Address text, int dtype, Address coef, Address log_l, int64_t M, int64_t D,
                        int64_t begin, int64_t end, double scale, bool normalize, int sides, Address dimage,
                        Address dtext, Address dscale, int threads) {
  if (begin >= end) return;
  with_towers(image, text, dtype, M, D, {begin, end}, scale, normalize, threads, [&](const auto& towers, auto zero) {
    using T = decltype(zero);
    gradients<T>(towers, pointer<T>(coef), pointer<double>(log_l), normalize, sides, pointer<T>(dimage),
                 pointer<T>(dtext), pointer<T>(dscale));
  });
}

void clip_loss(Address image, Address text, int dtype, int64_t M, int64_t D, double scale, bool normalize, int sides,
               Address weight, bool average, Address value, Address dimage, Address dtext, Address dweight,
               Address dscale, int threads) {
  with_towers(image, text, dtype, M, D, {0, M}, scale, normalize, threads, [&](const auto& towers, auto zero) {
    using T = decltype(zero);
    objective<T>(towers, normalize, sides, pointer<T>(weight), average, pointer<T>(value), pointer<T>(dimage),
                 pointer<T>(dtext), pointer<T>(dweight), pointer<T>(dscale));
  });
}

}  // namespace ssl_fast
