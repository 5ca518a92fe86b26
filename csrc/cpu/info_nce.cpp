// InfoNCE against a queue: attention with keys = values = queue. In one pass over the queue
//   l_i = sum_k exp(s_ik) (the negatives), O_i = sum_k exp(s_ik) queue_k, s_ik = <q_i, queue_k> / T,
// and then, with w_i = 1 - p_i,positive = l_i / (l_i + exp(s_i,positive)):
//   loss_i = softplus(log l_i - s_i,positive), dq_i = w_i/T (O_i / l_i - k_i), dk_i = -w_i/T q_i.
#include <algorithm>
#include <cmath>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "cpu/weighted.h"
#include "ops.h"

namespace ssl_fast {
namespace {

int64_t element_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// Pieces of the queue summed on their own: a function of the sizes alone, so that the bits are too. Enough of them for
// many threads, few enough that their partial sums stay below 16 MiB.
int64_t num_splits(int64_t B, int64_t K, int64_t ld, int64_t size) {
  const int64_t by_memory = (int64_t{16} << 20) / std::max<int64_t>(round_up(B, kTile) * ld * size, 1);
  return std::clamp<int64_t>(by_memory, 4, std::clamp<int64_t>((K + 4 * kTile - 1) / (4 * kTile), 4, 64));
}

template <typename T>
struct InfoNCE {
  InfoNCE(int64_t B, int64_t K, int64_t D, double inv_temperature, int threads, bool with_grad)
      : t(tiles<T>()),
        B(B),
        K(K),
        D(D),
        width(round_up(D, t.width_step)),
        ld(row_stride(t, D)),
        padded(round_up(B, kTile)),
        splits(num_splits(B, K, ld, sizeof(T))),
        threads(threads),
        inv_temperature(inv_temperature),
        q(B * ld),
        k(B * ld),
        q_norms(B),
        k_norms(B),
        panels(round_up(B, t.panel) * D),
        offsets(splits * padded, T(-1e30)),
        sums(splits * padded, T(0)),
        outputs(with_grad ? splits * padded * ld : 0),
        with_grad(with_grad) {}

  // Negatives [begin, end) of the queue, against all q.
  void sum_split(const char* queue, DType dtype, int64_t split, T* scratch) {
    const int64_t begin = K * split / splits, end = K * (split + 1) / splits;
    T* rows = scratch;  // [kTile, ld]
    T* tile = rows + kTile * ld;
    T* factors = tile + kTile * kTile;
    const T scale = static_cast<T>(inv_temperature * kLog2E);
    if (with_grad) std::fill_n(outputs.get() + split * padded * ld, padded * ld, T(0));
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t count = std::min(kTile, end - first);
      t.load_rows(queue + first * D * element_size(dtype), dtype, count, D, false, rows, ld, nullptr);
      for (int64_t i = 0; i < B; i += kTile) {
        const int64_t n = std::min(kTile, B - i);
        const int64_t at = split * padded + i;
        t.scores(rows, ld, count, panels.get() + i * D, n, D, tile);
        const bool raised = t.online_exp(tile, count, n, scale, offsets.get() + at, sums.get() + at, factors);
        if (!with_grad) continue;
        T* out = outputs.get() + at * ld;
        for (int64_t r = 0; raised && r < n; ++r) t.scale(factors[r], out + r * ld, width);
        t.add_transposed_product(tile, n, count, rows, ld, width, out);
      }
    }
  }

  // The splits' sums of row i, in order: *l and *offset with l = sum exp(s) 2^-offset, and O in `out` on the same
  // scale.
  void merge(int64_t i, T* out, double* l, double* offset) const {
    T highest = offsets[i];
    for (int64_t split = 1; split < splits; ++split) highest = std::max(highest, offsets[split * padded + i]);
    *l = 0;
    *offset = highest;
    std::fill_n(out, ld, T(0));
    for (int64_t split = 0; split < splits; ++split) {
      const int64_t at = split * padded + i;
      const T factor = std::exp2(offsets[at] - highest);
      *l += static_cast<double>(factor) * sums[at];
      if (with_grad) t.axpy(factor, outputs.get() + at * ld, out, width);
    }
  }

  // d/dx of a function of z = x / max(|x|, 1e-12), dz given, in place.
  void normalize_backward(const T* z, T norm, T* dz) const {
    const T least = static_cast<T>(1e-12);
    if (!(norm < least)) t.axpy(-t.dot(z, dz, width), z, dz, width);
    t.scale(T(1) / std::max(norm, least), dz, width);
  }

  void finish_row(int64_t i, bool normalize, T* scratch, T* loss, T* dq, T* dk, T* dinv) const {
    T *dz = scratch, *dk_row = scratch + ld;
    double l, offset;
    merge(i, dz, &l, &offset);
    const T *zq = q.get() + i * ld, *zk = k.get() + i * ld;
    const T cosine = t.dot(zq, zk, width);
    const double above = std::log(l) + offset / kLog2E - inv_temperature * cosine;
    const double softplus = above > 0 ? above + std::log1p(std::exp(-above)) : std::log1p(std::exp(above));
    loss[i] = static_cast<T>(softplus);
    if (!with_grad) return;
    const T w = static_cast<T>(-std::expm1(-softplus));
    t.scale(l == 0 ? T(0) : static_cast<T>(-std::expm1(-softplus) / l), dz, width);  // sum_k p_ik queue_k
    dinv[i] = t.dot(zq, dz, width) - w * cosine;
    t.axpy(-w, zk, dz, width);
    t.scale(static_cast<T>(inv_temperature), dz, width);
    std::fill_n(dk_row, ld, T(0));
    t.axpy(static_cast<T>(-inv_temperature) * w, zq, dk_row, width);
    if (normalize) {
      normalize_backward(zq, q_norms[i], dz);
      normalize_backward(zk, k_norms[i], dk_row);
    }
    std::copy_n(dz, D, dq + i * D);
    std::copy_n(dk_row, D, dk + i * D);
  }

  const Tiles<T>& t;
  const int64_t B, K, D, width, ld, padded, splits;
  const int threads;
  const double inv_temperature;
  Buffer<T> q, k;              // [B, ld]
  Buffer<T> q_norms, k_norms;  // [B]
  Buffer<T> panels;            // of q
  Buffer<T> offsets, sums;     // [splits, padded]
  Buffer<T> outputs;           // [splits, padded, ld]
  const bool with_grad;
};

template <typename T>
void forward(Address q, Address k, DType dtype, Address queue, DType queue_dtype, int64_t B, int64_t K, int64_t D,
             double inv_temperature, bool normalize, Address loss, Address dq, Address dk, Address dinv, int threads) {
  InfoNCE<T> op(B, K, D, inv_temperature, threads, dinv != 0);
  op.t.load_rows(reinterpret_cast<const void*>(q), dtype, B, D, normalize, op.q.get(), op.ld, op.q_norms.get());
  op.t.load_rows(reinterpret_cast<const void*>(k), dtype, B, D, normalize, op.k.get(), op.ld, op.k_norms.get());
  op.t.pack_panels(op.q.get(), op.ld, B, D, op.panels.get());

  const int64_t per_thread = kTile * (op.ld + kTile + 1) + 2 * op.ld;
  Buffer<T> scratch(threads * per_thread);
  const auto* rows = reinterpret_cast<const char*>(queue);
  parallel_for(threads, op.splits, [&](int64_t split, int slot) {
    op.sum_split(rows, queue_dtype, split, scratch.get() + slot * per_thread);
  });
  constexpr int64_t chunk = 16;
  parallel_for(threads, (B + chunk - 1) / chunk, [&](int64_t task, int slot) {
    for (int64_t i = task * chunk; i < std::min(B, (task + 1) * chunk); ++i) {
      op.finish_row(i, normalize, scratch.get() + slot * per_thread, reinterpret_cast<T*>(loss),
                    reinterpret_cast<T*>(dq), reinterpret_cast<T*>(dk), reinterpret_cast<T*>(dinv));
    }
  });
}

// The rows' gradients times their coefficients, and the sums.
template <typename T>
void objective(Address q, Address k, DType dtype, Address queue, DType queue_dtype, int64_t B, int64_t K, int64_t D,
               double inv_temperature, bool normalize, const T* weight, bool average, T* value, T* dq, T* dk,
               T* dweight, T* dtemperature, int threads) {
  const Weighted<T> weighted(B, B, weight, average);
  Buffer<T> loss(B), dinv(B);
  const auto at = [](T* address) { return reinterpret_cast<Address>(address); };
  // Rows of no numbers have gradients without an address.
  const bool with_grad = dq != nullptr || dweight != nullptr || dtemperature != nullptr;
  forward<T>(q, k, dtype, queue, queue_dtype, B, K, D, inv_temperature, normalize, at(loss.get()), at(dq), at(dk),
             with_grad ? at(dinv.get()) : 0, threads);
  const double found = weighted.value(loss.get());
  *value = static_cast<T>(found);
  if (!with_grad) return;
  for (int64_t i = 0; i < B * D; ++i) {
    dq[i] *= weighted.coef[i / D];
    dk[i] *= weighted.coef[i / D];
  }
  if (dweight != nullptr) weighted.gradient(loss.get(), average ? found : 0, dweight);
  const double dinverse = weighted.dot(weighted.coef.get(), dinv.get());
  if (dtemperature != nullptr) *dtemperature = static_cast<T>(-dinverse * inv_temperature * inv_temperature);
}

}  // namespace

void info_nce_forward(Address q, Address k, int dtype, Address queue, int queue_dtype, int64_t B, int64_t K, int64_t D,
                      double inv_temperature, bool normalize, Address loss, Address dq, Address dk, Address dinv,
                      int threads) {
  if (B == 0) return;
  const auto type = static_cast<DType>(dtype);
  const auto run = type == DType::float64 ? forward<double> : forward<float>;
  run(q, k, type, queue, static_cast<DType>(queue_dtype), B, K, D, inv_temperature, normalize, loss, dq, dk, dinv,
      threads);
}

void info_nce(Address q, Address k, int dtype, Address queue, int queue_dtype, int64_t B, int64_t K, int64_t D,
              double inv_temperature, bool normalize, Address weight, bool average, Address value, Address dq,
              Address dk, Address dweight, Address dtemperature, int threads) {
  const auto type = static_cast<DType>(dtype);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto at = [](Address address) { return reinterpret_cast<T*>(address); };
    objective<T>(q, k, type, queue, static_cast<DType>(queue_dtype), B, K, D, inv_temperature, normalize, at(weight),
                 average, at(value), at(dq), at(dk), at(dweight), at(dtemperature), threads);
  };
  type == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
