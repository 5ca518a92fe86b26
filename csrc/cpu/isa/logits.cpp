// Passes over one row of logits.
#include "cpu/logits.h"

#include "cpu/isa/vec.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // numbers added up in T

template <typename T>
T highest_of(Vec<T> lanes) {
  T found = lanes[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) found = lanes[lane] > found ? lanes[lane] : found;
  return found;
}

template <typename T>
T highest(const T* x, int64_t width) {
  Vec<T> most = load(x);
  for (int64_t d = kLanes<T>; d < width; d += kLanes<T>) {
    const Vec<T> next = load(x + d);
    most = next > most ? next : most;
  }
  return highest_of<T>(most);
}

template <typename T>
T scores(T* x, T factor, const T* bias, int64_t width) {
  Vec<T> most = broadcast<T>(-__builtin_inff());
  for (int64_t d = 0; d < width; d += kLanes<T>) {
    const Vec<T> next = load(x + d) * factor + load(bias + d);
    store(x + d, next);
    most = next > most ? next : most;
  }
  return highest_of<T>(most);
}

template <typename T>
double exponentials(const T* x, T highest, int64_t width, T* e) {
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    Vec<T> sums = {};
    for (int64_t d = begin; d < width && d < begin + kBlock; d += kLanes<T>) {
      const Vec<T> power = exp2<T>(load(x + d) - highest);
      store(e + d, power);
      sums += power;
    }
    total += sum<T>(sums);
  }
  return total;
}

// How far (in powers of two) a number may exceed its column's offset: sums of 2^40 are far from overflow.
constexpr int kSlack = 40;

template <typename T>
void add_exponentials(const T* x, int64_t width, T* offset, T* sums) {
  for (int64_t d = 0; d < width; d += kLanes<T>) {
    const Vec<T> next = load(x + d), old = load(offset + d);
    const Vec<T> chosen = next > old + static_cast<T>(kSlack) ? next : old;
    store(sums + d, load(sums + d) * exp2<T>(old - chosen) + exp2<T>(next - chosen));
    store(offset + d, chosen);
  }
}

template <typename T>
double cross(const T* weights, T log_sum, const T* x, int64_t width) {
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    Vec<T> sums = {};
    for (int64_t d = begin; d < width && d < begin + kBlock; d += kLanes<T>) {
      sums += load(weights + d) * (log_sum - load(x + d));
    }
    total += sum<T>(sums);
  }
  return total;
}

template <typename T>
void gradient(const T* weights, T factor, T coef, int64_t width, T* e) {
  for (int64_t d = 0; d < width; d += kLanes<T>) store(e + d, (load(e + d) * factor - load(weights + d)) * coef);
}

template <typename T>
constexpr Logits<T> table() {
  return {highest<T>, scores<T>, exponentials<T>, add_exponentials<T>, cross<T>, gradient<T>};
}

}  // namespace

extern const Logits<float> logits_float32;
extern const Logits<double> logits_float64;
const Logits<float> logits_float32 = table<float>();
const Logits<double> logits_float64 = table<double>();

}  // namespace ssl_fast::SSL_FAST_ISA
