// The losses with a margin in one call: the targets' cosines and what the margin makes of them
// (ssl_fast/ops/margins.py), the normalisers and gradients of margin_softmax.cpp, and the mean or sum.
#include <algorithm>
#include <cmath>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "ops.h"

namespace ssl_fast {
namespace {

constexpr double kLeastAngle = 1e-3;
constexpr int64_t kRowsEach = 16;  // of a task

int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

struct Rule {
  double m1, m2, m3;
  bool monotone, exact;
};

struct Target {
  double phi, slope;
};

// `near_one`: beyond it the derivative of the angle stays what it is there.
Target margined(double cosine, const Rule& rule, double near_one) {
  const double c = std::clamp(cosine, -1.0, 1.0), near = std::clamp(cosine, -near_one, near_one);
  const double sine = std::sqrt(1 - c * c), near_sine = std::sqrt(1 - near * near);
  const double along = std::cos(rule.m2), across = std::sin(rule.m2);
  Target found{c * along - sine * across - rule.m3, along + near / near_sine * across};
  if (rule.m1 != 1) {
    const double angle = rule.m1 * std::acos(c) + rule.m2;
    found = {std::cos(angle) - rule.m3, rule.m1 * std::sin(angle) / near_sine};
  } else if (rule.monotone && c < -along) {
    found = {c - rule.m2 * across, 1};
  }
  if (!rule.exact) found.slope = 1;
  return found;
}

// m2 and m3 of one row, the angle held in [least, pi - least].
Target margined_row(double cosine, double m2, double m3, bool exact, double near_one) {
  const double c = std::clamp(cosine, -1.0, 1.0);
  Target found = margined(cosine, {1, m2, 0, false, exact}, near_one);
  const bool below = m2 < kLeastAngle && c > std::cos(kLeastAngle - m2);
  const bool above = m2 > -kLeastAngle && c < -std::cos(kLeastAngle + m2);
  if (below || above) found = {below ? std::cos(kLeastAngle) : -std::cos(kLeastAngle), exact ? 0.0 : 1.0};
  found.phi -= m3;
  return found;
}

struct Classes {
  Address x;
  DType x_dtype;
  Address weight;
  DType weight_dtype;
  const int64_t* target;
  int64_t N, S, D;
  bool normalize;
};

// The cosine of each row with the nearest centre of its class, [N]; 0 where it has none.
template <typename T>
void target_cosines(const Classes& k, T* cosine, int threads) {
  const Tiles<T>& t = tiles<T>();
  const int64_t ld = row_stride(t, k.D), num_tasks = (k.N + kRowsEach - 1) / kRowsEach;
  Buffer<T> scratch(std::min<int64_t>(threads, num_tasks) * 2 * ld);
  parallel_for(threads, num_tasks, [&](int64_t task, int slot) {
    T *row = scratch.get() + slot * 2 * ld, *centre = row + ld, norm;
    for (int64_t i = task * kRowsEach; i < std::min(k.N, (task + 1) * kRowsEach); ++i) {
      cosine[i] = 0;
      if (k.target[i] < 0) continue;
      const auto* from = reinterpret_cast<const void*>(k.x + i * k.D * bytes_of(k.x_dtype));
      t.load_rows(from, k.x_dtype, 1, k.D, k.normalize, row, ld, &norm);
      for (int64_t s = 0; s < k.S; ++s) {
        const int64_t at = (k.target[i] * k.S + s) * k.D * bytes_of(k.weight_dtype);
        t.load_rows(reinterpret_cast<const void*>(k.weight + at), k.weight_dtype, 1, k.D, k.normalize, centre, ld,
                    &norm);
        const T found = t.dot(row, centre, ld);
        if (s == 0 || found > cosine[i] || found != found) cosine[i] = found;  // a NaN is not hidden
      }
    }
  });
}

template <typename T>
void objective(const Classes& k, int64_t C, double scale, double hardness, bool hard, const Rule& rule,
               const T* row_margins, bool average, T* value, Address dx, Address dweight, T* dscale, int threads) {
  const int64_t N = k.N;
  const double near_one = 1 - (sizeof(T) == 8 ? 1e-12 : 1e-6);
  Buffer<T> cosine(N), phi(N), slope(N), threshold(N), kept(N), lse(N), mean(N);
  target_cosines(k, cosine.get(), threads);
  double sum = 0;
  for (int64_t i = 0; i < N; ++i) {
    const Target target = row_margins == nullptr
                              ? margined(cosine[i], rule, near_one)
                              : margined_row(cosine[i], row_margins[i], row_margins[N + i], rule.exact, near_one);
    phi[i] = static_cast<T>(target.phi);
    slope[i] = static_cast<T>(target.slope);
    if (hard)
      threshold[i] = static_cast<T>(margined(cosine[i], {rule.m1, rule.m2, rule.m3, false, true}, near_one).phi);
    kept[i] = k.target[i] < 0 ? T(0) : T(1);
    sum += kept[i];
  }
  const double share = average ? 1 / std::max(sum, 1.0) : 1;
  for (int64_t i = 0; i < N; ++i) kept[i] = static_cast<T>(kept[i] * share);
  const auto at = [](const T* rows) { return reinterpret_cast<Address>(rows); };
  margin_softmax(k.x, static_cast<int>(k.x_dtype), k.weight, static_cast<int>(k.weight_dtype),
                 reinterpret_cast<Address>(k.target), N, C, k.S, k.D, scale, hardness, k.normalize, false,
                 hard ? at(threshold.get()) : 0, at(phi.get()), at(slope.get()), at(kept.get()), at(lse.get()), dx,
                 dweight, dx == 0 ? 0 : at(mean.get()), threads);
  double total = 0, of_scale = 0;
  for (int64_t i = 0; i < N; ++i) {
    const double above = lse[i] - scale * phi[i];
    const double softplus = above > 0 ? above + std::log1p(std::exp(-above)) : std::log1p(std::exp(above));
    total += kept[i] == 0 ? 0 : kept[i] * softplus;
    if (dscale != nullptr) of_scale += mean[i] - kept[i] / (1 + std::exp(-above)) * phi[i];
  }
  *value = static_cast<T>(total);
  if (dscale != nullptr) *dscale = static_cast<T>(of_scale);
}

// A length between these counts in AdaFace's quality, and its deviation is not below kLeastDeviation.
constexpr double kShortest = 1e-3, kLongest = 100, kLeastDeviation = 1e-3;

template <typename T>
void row_margins_of(Address x, DType dtype, int64_t N, int64_t D, double mean, double deviation, double margin,
                    double concentration, T* row_margins, int threads) {
  const Tiles<T>& t = tiles<T>();
  const int64_t ld = row_stride(t, D), num_tasks = (N + kRowsEach - 1) / kRowsEach;
  Buffer<T> scratch(std::min<int64_t>(threads, num_tasks) * ld);
  parallel_for(threads, num_tasks, [&](int64_t task, int slot) {
    for (int64_t i = task * kRowsEach; i < std::min(N, (task + 1) * kRowsEach); ++i) {
      T length;
      t.load_rows(reinterpret_cast<const void*>(x + i * D * bytes_of(dtype)), dtype, 1, D, false,
                  scratch.get() + slot * ld, ld, &length);
      // As torch clamps: a NaN stays one.
      const double held = length < kShortest ? kShortest : length > kLongest ? kLongest : length;
      const double standing = (held - mean) / (deviation + kLeastDeviation) * concentration;
      const double quality = standing < -1 ? -1 : standing > 1 ? 1 : standing;
      row_margins[i] = static_cast<T>(-margin * quality);
      row_margins[N + i] = static_cast<T>(margin * quality + margin);
    }
  });
}

}  // namespace

void adaface_margins(Address x, int dtype, int64_t N, int64_t D, double norm_mean, double norm_std, double margin,
                     double concentration, Address row_margins, int threads) {
  const auto run = [&](auto zero) {
    row_margins_of(x, static_cast<DType>(dtype), N, D, norm_mean, norm_std, margin, concentration,
                   reinterpret_cast<decltype(zero)*>(row_margins), threads);
  };
  static_cast<DType>(dtype) == DType::float64 ? run(0.0) : run(0.0f);
}

int64_t margin_targets(Address labels, int64_t N, int64_t C, int64_t ignored, int64_t left_out, Address target) {
  const auto* label = reinterpret_cast<const int64_t*>(labels);
  auto* found = reinterpret_cast<int64_t*>(target);
  for (int64_t i = 0; i < N; ++i) {
    if ((label[i] < 0 || label[i] >= C) && label[i] != ignored) return i;
    found[i] = label[i] == ignored ? left_out : label[i];
  }
  return -1;
}

void margin_loss(Address x, int x_dtype, Address weight, int weight_dtype, Address target, int64_t N, int64_t C,
                 int64_t S, int64_t D, double scale, bool normalize, double m1, double m2, double m3, bool monotone,
                 bool exact, Address row_margins, bool hard, double hardness, bool average, Address value, Address dx,
                 Address dweight, Address dscale, int threads) {
  const Classes classes{x,
                        static_cast<DType>(x_dtype),
                        weight,
                        static_cast<DType>(weight_dtype),
                        reinterpret_cast<const int64_t*>(target),
                        N,
                        S,
                        D,
                        normalize};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    objective<T>(classes, C, scale, hardness, hard, {m1, m2, m3, monotone, exact},
                 reinterpret_cast<const T*>(row_margins), average, reinterpret_cast<T*>(value), dx, dweight,
                 reinterpret_cast<T*>(dscale), threads);
  };
  classes.x_dtype == DType::float64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl_fast
