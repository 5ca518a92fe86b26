// CLIP's loss. In each direction (image to text, text to image), with l_i the sum of exp(s_ij) over the negatives:
//   loss_i = softplus(log l_i - s_ii), and with p_ij = exp(s_ij - log of the whole normaliser), q_i = sum_{j != i}
//   p_ij: du_i = scale [ sum_{j != i} (coef_i p_ij + coef'_j p'_ji) v_j - (coef_i q_i + coef'_i q'_i) v_i ]
// where ' is the other direction, and dv_j alike. q is summed rather than taken as 1 - p_ii: nothing cancels when the
// towers are aligned.
#include "cpu/towers.h"
#include "ops.h"

namespace ssl_fast {
namespace {

// Takes the positives, which lie on the diagonal, out of the tile.
template <typename T>
void exclude(Range rows, Range columns, T* tile) {
  if (rows.begin != columns.begin) return;
  for (int64_t a = 0; a < rows.size(); ++a) tile[a * kTile + a] = -std::numeric_limits<T>::infinity();
}

template <typename T>
void forward(Address image, Address text, DType dtype, int64_t M, int64_t D, Range mine, double scale, bool normalize,
             int sides, Address loss, Address log_l, int threads) {
  const Towers<T> towers(image, text, dtype, M, D, mine, scale, normalize, threads);
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
    reinterpret_cast<T*>(loss)[k] = static_cast<T>(softplus);
    reinterpret_cast<double*>(log_l)[k] = softplus + s;
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

template <typename T>
void backward(Address image, Address text, DType dtype, Address coef, Address log_l, int64_t M, int64_t D, Range mine,
              double scale, bool normalize, int sides, Address dimage, Address dtext, Address dscale, int threads) {
  const Towers<T> towers(image, text, dtype, M, D, mine, scale, normalize, threads);
  const PairTiles<T>& p = pair_tiles<T>();
  const auto* c = reinterpret_cast<const T*>(coef);
  const auto* logs = reinterpret_cast<const double*>(log_l);
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
  parallel_for(threads, num_tiles(mine.size()), [&](int64_t task, int) {
    for (int64_t k = task * kTile; k < std::min(mine.size(), (task + 1) * kTile); ++k) {
      const int64_t i = mine.begin + k;
      T *u_row = du.get() + (i - first) * towers.ld, *v_row = dv.get() + (i - first) * towers.ld;
      const T pull = c[i] * q[i - first] + (sides == 2 ? c[M + i] * q[size + i - first] : T(0));
      towers.t.axpy(-pull, towers.text(i), u_row, towers.width);
      towers.t.axpy(-pull, towers.image(i), v_row, towers.width);
      reinterpret_cast<T*>(dscale)[k] = towers.t.dot(towers.image(i), u_row, towers.width);
      towers.t.scale(static_cast<T>(scale), u_row, towers.width);
      towers.t.scale(static_cast<T>(scale), v_row, towers.width);
      towers.finish(towers.image(i), towers.u_norms[i], normalize, u_row, reinterpret_cast<T*>(dimage) + k * D);
      towers.finish(towers.text(i), towers.v_norms[i], normalize, v_row, reinterpret_cast<T*>(dtext) + k * D);
    }
  });
}

}  // namespace

void clip_loss_forward(Address image, Address text, int dtype, int64_t M, int64_t D, int64_t begin, int64_t end,
                       double scale, bool normalize, int sides, Address loss, Address log_l, int threads) {
  if (begin >= end) return;
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? forward<double> : forward<float>;
  run(image, text, type, M, D, {begin, end}, scale, normalize, sides, loss, log_l, threads);
}

void clip_loss_backward(Address image, Address text, int dtype, Address coef, Address log_l, int64_t M, int64_t D,
                        int64_t begin, int64_t end, double scale, bool normalize, int sides, Address dimage,
                        Address dtext, Address dscale, int threads) {
  if (begin >= end) return;
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? backward<double> : backward<float>;
  run(image, text, type, coef, log_l, M, D, {begin, end}, scale, normalize, sides, dimage, dtext, dscale, threads);
}

}  // namespace ssl_fast
