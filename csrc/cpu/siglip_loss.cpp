// SigLIP's loss and gradients in one pass over the pairs. With x_ij = scale <u_i, v_j> + bias, and off the diagonal
//   loss_i = softplus(-x_ii) + sum_{j != i} softplus(x_ij), g_ij = coef_i sigmoid(x_ij), g_ii = -coef_i sigmoid(-x_ii):
//   du_i = scale sum_j g_ij v_j, dv_j = scale sum_i g_ij u_i, dscale_i = sum_j g_ij <u_i, v_j>, dbias_i = sum_j g_ij
#include "cpu/towers.h"
#include "cpu/weighted.h"
#include "ops.h"

namespace ssl_fast {
namespace {

template <typename T>
struct SigLIP {
  SigLIP(const Towers<T>& towers, double bias, const T* coef)
      : towers(towers),
        p(pair_tiles<T>()),
        first(towers.own.begin),
        bias(bias),
        coef(coef),
        losses(towers.own.size(), T(0)),
        slopes(towers.own.size(), T(0)),
        du(coef == nullptr ? 0 : towers.own.size() * towers.ld, T(0)),
        dv(coef == nullptr ? 0 : towers.own.size() * towers.ld, T(0)) {}

  double own_logit(int64_t i) const { return towers.scale * towers.cosine(i) + bias; }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  void sum_pairs() {
    towers.visit(true, coef != nullptr, [&](Range rows, Range columns, bool of_rows, bool of_columns, T* tile) {
      const bool diagonal = rows.begin == columns.begin;
      for (int64_t a = 0; diagonal && a < rows.size(); ++a) {
        tile[a * kTile + a] = -std::numeric_limits<T>::infinity();  // softplus and sigmoid 0
      }
      p.sigmoid_weights(tile, rows.size(), columns.size(), static_cast<T>(towers.scale), static_cast<T>(bias),
                        coef == nullptr ? nullptr : coef + rows.begin,
                        of_rows ? losses.get() + rows.begin - first : nullptr,
                        of_rows && coef != nullptr ? slopes.get() + rows.begin - first : nullptr);
      if (coef == nullptr) return;
      for (int64_t a = 0; diagonal && a < rows.size(); ++a) {
        const int64_t i = rows.begin + a;
        tile[a * kTile + a] = static_cast<T>(-coef[i] * sigmoid(-own_logit(i)));
      }
      towers.add_products(rows, columns, of_rows, of_columns, tile, du.get(), dv.get());
    });
  }

  // Pair i, the k-th of the wanted ones.
  void finish(int64_t i, int64_t k, bool normalize, T* loss, T* dimage, T* dtext, T* dscale, T* dbias) {
    const double x = -own_logit(i);
    const double softplus = x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    loss[k] = static_cast<T>(losses[i - first] + softplus);
    if (coef == nullptr) return;
    T *u_row = du.get() + (i - first) * towers.ld, *v_row = dv.get() + (i - first) * towers.ld;
    dbias[k] = static_cast<T>(coef[i] * (slopes[i - first] - sigmoid(x)));
    dscale[k] = towers.t.dot(towers.image(i), u_row, towers.width);
    towers.t.scale(static_cast<T>(towers.scale), u_row, towers.width);
    towers.t.scale(static_cast<T>(towers.scale), v_row, towers.width);
    towers.finish(towers.image(i), towers.u_norms[i], normalize, u_row, dimage + k * towers.D);
    towers.finish(towers.text(i), towers.v_norms[i], normalize, v_row, dtext + k * towers.D);
  }

  const Towers<T>& towers;
  const PairTiles<T>& p;
  const int64_t first;
  const double bias;
  const T* const coef;       // [M] or null
  Buffer<T> losses, slopes;  // of the own rows, diagonal left out
  Buffer<T> du, dv;          // [own, ld]
};

template <typename T>
void forward(Address image, Address text, DType dtype, Address coef, int64_t M, int64_t D, Range mine, double scale,
             double bias, bool normalize, Address loss, Address dimage, Address dtext, Address dscale, Address dbias,
             int threads) {
  const Towers<T> towers(image, text, dtype, M, D, mine, scale, normalize, threads);
  SigLIP<T> op(towers, bias, reinterpret_cast<const T*>(coef));
  op.sum_pairs();
  parallel_for(threads, num_tiles(mine.size()), [&](int64_t task, int) {
    for (int64_t k = task * kTile; k < std::min(mine.size(), (task + 1) * kTile); ++k) {
      op.finish(mine.begin + k, k, normalize, reinterpret_cast<T*>(loss), reinterpret_cast<T*>(dimage),
                reinterpret_cast<T*>(dtext), reinterpret_cast<T*>(dscale), reinterpret_cast<T*>(dbias));
    }
  });
}

template <typename T>
void objective(Address image, Address text, DType dtype, int64_t M, int64_t D, double scale, double bias,
               bool normalize, const T* weight, bool average, T* value, T* dimage, T* dtext, T* dweight, T* dscale,
               T* dbias, int threads) {
  const Weighted<T> weighted(M, M, weight, average);
  Buffer<T> loss(M), scale_shares(M), bias_shares(M);
  const auto at = [](const T* address) { return reinterpret_cast<Address>(address); };
  forward<T>(image, text, dtype, dimage == nullptr ? 0 : at(weighted.coef.get()), M, D, {0, M}, scale, bias, normalize,
             at(loss.get()), at(dimage), at(dtext), at(scale_shares.get()), at(bias_shares.get()), threads);
  const double found = weighted.value(loss.get());
  *value = static_cast<T>(found);
  if (dweight != nullptr) weighted.gradient(loss.get(), average ? found : 0, dweight);
  if (dscale != nullptr) *dscale = static_cast<T>(total(scale_shares.get(), M));
  if (dbias != nullptr) *dbias = static_cast<T>(total(bias_shares.get(), M));
}

}  // namespace

void siglip_loss_forward(Address image, Address text, int dtype, Address coef, int64_t M, int64_t D, int64_t begin,
                         int64_t end, double scale, double bias, bool normalize, Address loss, Address dimage,
                         Address dtext, Address dscale, Address dbias, int threads) {
  if (begin >= end) return;
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? forward<double> : forward<float>;
  run(image, text, type, coef, M, D, {begin, end}, scale, bias, normalize, loss, dimage, dtext, dscale, dbias, threads);
}

void siglip_loss(Address image, Address text, int dtype, int64_t M, int64_t D, double scale, double bias,
                 bool normalize, Address weight, bool average, Address value, Address dimage, Address dtext,
                 Address dweight, Address dscale, Address dbias, int threads) {
  const auto type = static_cast<DType>(dtype);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto at = [](Address address) { return reinterpret_cast<T*>(address); };
    objective<T>(image, text, type, M, D, scale, bias, normalize, at(weight), average, at(value), at(dimage), at(dtext),
                 at(dweight), at(dscale), at(dbias), threads);
  };
  type == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
