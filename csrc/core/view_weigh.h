// Body of the GPU's first kernel for augmented views: the weights of every view; and what all bodies share.
//
// Block is what a block of threads can do (csrc/cuda/augment.cu; in the tests four threads of a CPU):
//   each(n, f)     f(i) for all i < n, spread over the threads; what they wrote is seen by all threads afterwards
//   sum(n, f), largest(n, f)   of f(i), the same bits in every run, known to all threads
//   leader()       true in one thread
// Within one call no f(i) reads what another f(j) writes.
#pragma once

#include "core/colour.h"
#include "core/view_batch.h"

#ifdef __CUDACC__
#define SSL_FAST_BODY __device__ __forceinline__
#else
#define SSL_FAST_BODY inline
#endif

namespace ssl_fast {

// One view of one image; n counts from the batch's first image.
struct ViewTask {
  std::int64_t n;
  int v;
  const float* row;  // of the table
  ViewSpace space;
};

SSL_FAST_BODY ViewTask task_of(const ViewBatch& batch, std::int64_t n, int v) {
  const float* row = batch.table + ((batch.first + n) * batch.num_views + v) * kColumns;
  return {n, v, row, space_of(batch, batch.views[v], n)};
}

SSL_FAST_BODY Axis axis_of(const ViewPlan& view, const float* row, bool rows) {
  return make_axis(view.filter, int(row[rows ? kHeight : kWidth]), view.size);
}

SSL_FAST_BODY double total_weight(const Axis& axis, const Window& window) {
  double total = 0;
  for (int k = 0; k < window.count; ++k) total += window_weight(axis, window, k);
  return total;
}

// firsts [S], weights [taps, S] of one axis; outputs in reverse order when flipped.
template <class Block>
SSL_FAST_BODY void fill_axis(Block& block, const Axis& axis, bool flip, int* firsts, float* weights) {
  const double largest = block.largest(axis.size, [&](int i) {
    const Window window = window_of(axis, i);
    double most = 0;
    for (int k = 0; k < window.count; ++k) most = larger(most, window_weight(axis, window, k));
    return most / total_weight(axis, window);
  });
  const int precision = weight_precision(largest);
  block.each(axis.size, [&](int i) {
    const Window window = window_of(axis, i);
    const double total = total_weight(axis, window);
    const int x = flip ? axis.size - 1 - i : i, last = axis.length - axis.taps;
    const int first = window.first < last ? window.first : last, before = window.first - first;
    firsts[x] = first;
    for (int k = 0; k < axis.taps; ++k) {
      const bool seen = k >= before && k < before + window.count;
      const double weight = seen ? window_weight(axis, window, k - before) / total : 0;
      weights[std::int64_t(k) * axis.size + x] = round_weight(weight, precision);
    }
  });
}

template <class Block>
SSL_FAST_BODY void fill_blur(Block& block, float sigma, int radius, float* weights) {
  float total = 0;
  for (int k = 0; k <= radius; ++k) total += (k == 0 ? 1 : 2) * blur_weight(sigma, k);
  block.each(radius + 1, [&](int k) { weights[k] = blur_weight(sigma, k) / total; });
}

// Kernel 1, num_views * count blocks: the weights of one view of one image.
template <class Block>
SSL_FAST_BODY void weigh(Block& block, const ViewBatch& batch, std::int64_t index) {
  const ViewTask task = task_of(batch, index / batch.num_views, int(index % batch.num_views));
  const ViewPlan& view = batch.views[task.v];
  const ViewSpace& space = task.space;
  fill_axis(block, axis_of(view, task.row, false), task.row[kFlip] != 0, space.firsts, space.weights);
  fill_axis(block, axis_of(view, task.row, true), false, space.firsts + view.size,
            space.weights + std::int64_t(view.taps) * view.size);
  if (task.row[kBlur] > 0) fill_blur(block, task.row[kBlur], blur_radius(task.row[kBlur], view.radius), space.blur);
}

}  // namespace ssl_fast
