// Sinkhorn-Knopp's passes over logits x [N, K] (ssl_fast/ops/sinkhorn.py), a row at a time and in powers of two:
//   log sum_n u_n E_nk = log sum_n softmax_k(x_n / T + log v) - log v_k     with log v
//   log sum_n E_nk, each column relative to an offset of its own            without
// The rows are cut into parts, which are the tasks of the threads and the terms of the sums: the bits do not depend on
// the number of threads.
#include <algorithm>
#include <cmath>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/logits.h"
#include "ops.h"

namespace ssl_fast {
namespace {

constexpr int64_t kParts = 16;          // of the rows
constexpr int64_t kColumnsEach = 1024;  // of a task that adds the parts up

template <typename T>
struct Rows {
  Rows(Address logits, DType dtype, int64_t N, int64_t K, double inv_temperature, const T* log_v)
      : logits(logits),
        dtype(dtype),
        N(N),
        K(K),
        ld(round_up(K, 16)),
        factor(static_cast<T>(inv_temperature * kLog2E)),
        bias(ld, T(0)) {
    for (int64_t k = 0; log_v != nullptr && k < K; ++k) bias[k] = static_cast<T>(log_v[k] * kLog2E);
    std::fill(bias.get() + K, bias.get() + ld, static_cast<T>(kNever));
  }

  // x_n / T + log v, and the highest of them.
  T load(int64_t n, T* row) const {
    const int64_t bytes = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
    t.load_rows(reinterpret_cast<const void*>(logits + n * K * bytes), dtype, 1, K, false, row, ld, nullptr);
    return passes.scores(row, factor, bias.get(), ld);
  }

  const Address logits;
  const DType dtype;
  const int64_t N, K, ld;
  const T factor;
  Buffer<T> bias;  // [ld]
  const Tiles<T>& t = tiles<T>();
  const Logits<T>& passes = ssl_fast::logits<T>();
};

template <typename T>
void column_logs(const Rows<T>& rows, const T* log_v, T* logs, int threads) {
  const int64_t ld = rows.ld, parts = std::clamp<int64_t>(rows.N, 1, kParts);
  Buffer<T> sums(parts * ld, T(0)), offsets(log_v == nullptr ? parts * ld : 0, static_cast<T>(kNever));
  Buffer<T> scratch(std::min<int64_t>(threads, parts) * ld);
  parallel_for(threads, parts, [&](int64_t part, int slot) {
    T *row = scratch.get() + slot * ld, *sum = sums.get() + part * ld;
    for (int64_t n = part * rows.N / parts; n < (part + 1) * rows.N / parts; ++n) {
      const T highest = rows.load(n, row);
      if (log_v == nullptr) {
        rows.passes.add_exponentials(row, ld, offsets.get() + part * ld, sum);
      } else {
        const double total = rows.passes.exponentials(row, highest, ld, row);
        rows.t.axpy(static_cast<T>(1 / total), row, sum, ld);
      }
    }
  });
  parallel_for(threads, (rows.K + kColumnsEach - 1) / kColumnsEach, [&](int64_t task, int) {
    for (int64_t k = task * kColumnsEach; k < std::min(rows.K, (task + 1) * kColumnsEach); ++k) {
      double highest = log_v == nullptr ? kNever : 0, total = 0;
      for (int64_t p = 0; log_v == nullptr && p < parts; ++p) highest = std::max<double>(highest, offsets[p * ld + k]);
      for (int64_t p = 0; p < parts; ++p) {
        total += sums[p * ld + k] * (log_v == nullptr ? std::exp2(offsets[p * ld + k] - highest) : 1);
      }
      logs[k] = static_cast<T>(std::log(total) + highest / kLog2E - (log_v == nullptr ? 0 : log_v[k]));
    }
  });
}

// All iterations: each log v is minus the logarithms of the last; a prototype that no sample has begins at 0.
template <typename T>
void balance(Address logits, DType dtype, int64_t N, int64_t K, double inv_temperature, int iterations, T* log_v,
             int threads) {
  Buffer<T> logs(K);
  for (int step = 0; step < iterations; ++step) {
    const T* last = step == 0 ? nullptr : log_v;
    const Rows<T> rows(logits, dtype, N, K, inv_temperature, last);
    column_logs(rows, last, logs.get(), threads);
    for (int64_t k = 0; k < K; ++k) log_v[k] = step == 0 && logs[k] == -INFINITY ? T(0) : -logs[k];
  }
}

template <typename T>
void assignments(const Rows<T>& rows, T* q, int threads) {
  Buffer<T> scratch(std::min<int64_t>(threads, rows.N) * rows.ld);
  parallel_for(threads, rows.N, [&](int64_t n, int slot) {
    T* row = scratch.get() + slot * rows.ld;
    const T highest = rows.load(n, row);
    rows.t.scale(static_cast<T>(1 / rows.passes.exponentials(row, highest, rows.ld, row)), row, rows.ld);
    std::copy_n(row, rows.K, q + n * rows.K);
  });
}

}  // namespace

void sinkhorn_column_logs(Address logits, int dtype, int64_t N, int64_t K, double inv_temperature, Address log_v,
                          Address logs, int threads) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto* v = reinterpret_cast<const T*>(log_v);
    const Rows<T> rows(logits, static_cast<DType>(dtype), N, K, inv_temperature, v);
    column_logs(rows, v, reinterpret_cast<T*>(logs), threads);
  };
  static_cast<DType>(dtype) == DType::float64 ? run(0.0) : run(0.0f);
}

void sinkhorn_balance(Address logits, int dtype, int64_t N, int64_t K, double inv_temperature, int iterations,
                      Address log_v, int threads) {
  const auto run = [&](auto zero) {
    balance(logits, static_cast<DType>(dtype), N, K, inv_temperature, iterations,
            reinterpret_cast<decltype(zero)*>(log_v), threads);
  };
  static_cast<DType>(dtype) == DType::float64 ? run(0.0) : run(0.0f);
}

void sinkhorn_assignments(Address logits, int dtype, int64_t N, int64_t K, double inv_temperature, Address log_v,
                          Address q, int threads) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Rows<T> rows(logits, static_cast<DType>(dtype), N, K, inv_temperature, reinterpret_cast<const T*>(log_v));
    assignments(rows, reinterpret_cast<T*>(q), threads);
  };
  static_cast<DType>(dtype) == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
