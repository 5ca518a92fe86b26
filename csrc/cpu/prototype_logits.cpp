// Cross-entropy between a teacher's and a student's assignments whose logits are given, a sample at a time:
//   p_t = softmax(y_t / T' + b_t), q_s = softmax(z_s / T), loss_n = sum over pairs (t, s) of - sum_k p_tk log q_sk
//   dz_s = coef_n / T sum_t (q_s - p_t)
// And what makes one number of the samples' losses, for given logits and for prototypes.cpp.
#include <algorithm>
#include <cmath>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/logits.h"
#include "ops.h"

namespace ssl_fast {
namespace {

int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

struct Side {
  Address data;  // [views, N, K]
  DType dtype;
  int64_t views;
  double inv_temperature;
};

template <typename T>
struct Assignments {
  const Side student, teacher;
  const int64_t N, K;
  const T* const bias;  // [T, K] or null
  const bool skip_same;
  const Tiles<T>& t = tiles<T>();
  const Logits<T>& passes = logits<T>();
  const int64_t ld = round_up(K, 16);

  // Logits of one view over its temperature, in powers of two.
  void load(const Side& side, int64_t view, int64_t n, const T* of_view, T* row) const {
    const int64_t at = (view * N + n) * K * bytes_of(side.dtype);
    t.load_rows(reinterpret_cast<const void*>(side.data + at), side.dtype, 1, K, false, row, ld, nullptr);
    t.scale(static_cast<T>(side.inv_temperature * kLog2E), row, ld);
    for (int64_t k = 0; of_view != nullptr && k < K; ++k) row[k] += of_view[k] * static_cast<T>(kLog2E);
    std::fill(row + K, row + ld, static_cast<T>(kNever));
  }

  // scratch: [T + 3, ld]
  T loss_of(int64_t n, T coef, T* dstudent, T* scratch) const {
    T *row = scratch + teacher.views * ld, *e = row + ld, *target = e + ld;
    for (int64_t v = 0; v < teacher.views; ++v) {
      T* p = scratch + v * ld;
      load(teacher, v, n, bias == nullptr ? nullptr : bias + v * K, row);
      t.scale(static_cast<T>(1 / passes.exponentials(row, passes.highest(row, ld), ld, p)), p, ld);
    }
    double loss = 0;
    for (int64_t s = 0; s < student.views; ++s) {
      int64_t num_targets = 0;
      std::fill_n(target, ld, T(0));
      for (int64_t v = 0; v < teacher.views; ++v) {
        if (skip_same && v == s) continue;
        t.axpy(T(1), scratch + v * ld, target, ld);
        ++num_targets;
      }
      load(student, s, n, nullptr, row);
      const T highest = passes.highest(row, ld);
      const double sum = passes.exponentials(row, highest, ld, e);
      std::fill(row + K, row + ld, T(0));
      loss += passes.cross(target, static_cast<T>(highest + std::log2(sum)), row, ld);
      if (dstudent == nullptr) continue;
      passes.gradient(target, static_cast<T>(num_targets / sum), static_cast<T>(coef * student.inv_temperature), ld, e);
      std::copy_n(e, K, dstudent + (s * N + n) * K);
    }
    return static_cast<T>(loss / kLog2E);
  }
};

template <typename T>
void forward(const Side& student, const Side& teacher, int64_t N, int64_t K, Address bias, const T* coef,
             bool skip_same, T* loss, T* dstudent, int threads) {
  const Assignments<T> op{student, teacher, N, K, reinterpret_cast<const T*>(bias), skip_same};
  const int64_t size = (teacher.views + 3) * op.ld;
  Buffer<T> scratch(std::min<int64_t>(threads, N) * size);
  parallel_for(threads, N, [&](int64_t n, int slot) {
    loss[n] = op.loss_of(n, coef == nullptr ? T(0) : coef[n], dstudent, scratch.get() + slot * size);
  });
}

// What each sample's loss is multiplied by, then the losses by compute(coef, loss), then their sum.
template <typename T, typename Compute>
void reduce(int64_t N, Address weight, bool average, double total, double count, Address value,
            const Compute& compute) {
  const auto* weights = reinterpret_cast<const T*>(weight);
  Buffer<T> coef(N), loss(N);
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) sum += weights == nullptr ? 1 : weights[n];
  if (total >= 0) sum = total;
  const double divisor = count * (average && sum != 0 ? sum : 1);
  for (int64_t n = 0; n < N; ++n) coef[n] = static_cast<T>((weights == nullptr ? 1 : weights[n]) / divisor);
  compute(coef.get(), loss.get());
  double found = 0;
  for (int64_t n = 0; n < N; ++n) found += static_cast<double>(coef[n]) * loss[n];
  *reinterpret_cast<T*>(value) = static_cast<T>(found);
}

}  // namespace

void prototype_logits_forward(Address student, int student_dtype, Address teacher, int teacher_dtype, int64_t S,
                              int64_t T, int64_t N, int64_t K, Address bias, Address coef, double inv_student,
                              double inv_teacher, bool skip_same, Address loss, Address dstudent, bool in_float64,
                              int threads) {
  const auto run = [&](auto zero) {
    using Real = decltype(zero);
    forward<Real>({student, static_cast<DType>(student_dtype), S, inv_student},
                  {teacher, static_cast<DType>(teacher_dtype), T, inv_teacher}, N, K, bias,
                  reinterpret_cast<const Real*>(coef), skip_same, reinterpret_cast<Real*>(loss),
                  reinterpret_cast<Real*>(dstudent), threads);
  };
  in_float64 ? run(0.0) : run(0.0f);
}

void prototype_logits(Address student, int student_dtype, Address teacher, int teacher_dtype, int64_t S, int64_t T,
                      int64_t N, int64_t K, Address bias, Address weight, bool average, double total, double count,
                      double inv_student, double inv_teacher, bool skip_same, Address value, Address dstudent,
                      bool in_float64, int threads) {
  const auto run = [&](auto zero) {
    using Real = decltype(zero);
    reduce<Real>(N, weight, average, total, count, value, [&](Real* coef, Real* loss) {
      prototype_logits_forward(student, student_dtype, teacher, teacher_dtype, S, T, N, K, bias,
                               reinterpret_cast<Address>(coef), inv_student, inv_teacher, skip_same,
                               reinterpret_cast<Address>(loss), dstudent, in_float64, threads);
    });
  };
  in_float64 ? run(0.0) : run(0.0f);
}

int64_t token_weights(Address masks, int64_t B, int64_t P, int64_t M, Address weights, bool in_float64) {
  const auto* mask = reinterpret_cast<const bool*>(masks);
  const int64_t found = std::count(mask, mask + B * P, true);
  if (found != M) return found;
  for (int64_t b = 0, m = 0; b < B; ++b, mask += P) {
    const int64_t num_masked = std::count(mask, mask + P, true);
    if (in_float64) {
      std::fill_n(reinterpret_cast<double*>(weights) + m, num_masked, 1.0 / num_masked);
    } else {
      std::fill_n(reinterpret_cast<float*>(weights) + m, num_masked, 1.0f / num_masked);
    }
    m += num_masked;
  }
  return found;
}

void prototypes(Address student, int student_dtype, Address weight, int weight_dtype, Address teacher,
                int teacher_dtype, Address weight_teacher, int weight_teacher_dtype, int64_t S, int64_t T, int64_t N,
                int64_t K, int64_t D, Address bias, Address sample_weight, bool average, double total, double count,
                double inv_student, double inv_teacher, bool skip_same, Address value, Address dstudent,
                Address dweight, bool in_float64, int threads) {
  const auto run = [&](auto zero) {
    using Real = decltype(zero);
    reduce<Real>(N, sample_weight, average, total, count, value, [&](Real* coef, Real* loss) {
      prototypes_forward(student, student_dtype, weight, weight_dtype, teacher, teacher_dtype, weight_teacher,
                         weight_teacher_dtype, S, T, N, K, D, bias, reinterpret_cast<Address>(coef), inv_student,
                         inv_teacher, skip_same, reinterpret_cast<Address>(loss), dstudent, dweight, in_float64,
                         threads);
    });
  };
  in_float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
