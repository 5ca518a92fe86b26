// Host: from the arguments of cuda::augment to the batches that its kernels are launched for.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/view_batch.h"
#include "ops.h"

namespace ssl_fast {

// Resized crops are written by one kernel and read by the next: as long as they are no more than this they stay in the
// second-level cache (40 MB of an A100, 50 MB of an H100), and memory does not grow with the batch.
constexpr std::int64_t kWorkspaceBytes = 32 << 20;

inline void place_tiles(ViewPlan* view) {
  view->across = (view->size + kMaxColumns - 1) / kMaxColumns;
  view->tile_columns = (view->size + view->across - 1) / view->across;
  const int groups = std::max(1, kTilePixels / (kRows * view->tile_columns));
  view->tile_rows = kRows * std::min(groups, (view->size + kRows - 1) / kRows);
  view->down = (view->size + view->tile_rows - 1) / view->tile_rows;
}

// The plan of all N images, less the addresses. table: on the host.
inline ViewBatch plan_views(const float* table, const Sizes& sizes, const std::vector<bool>& bicubic,
                            const Sizes& blur_radii, std::int64_t N, std::int64_t C) {
  const std::int64_t V = std::int64_t(sizes.size());
  if (V > kMaxViews) throw std::invalid_argument("views: expected at most 64 on a GPU, got " + std::to_string(V));
  ViewBatch batch{};
  batch.channels = int(C);
  batch.num_views = int(V);
  for (std::int64_t v = 0; v < V; ++v) {
    ViewPlan& view = batch.views[v];
    view.size = int(sizes[v]);
    view.filter = bicubic[v] ? Filter::bicubic : Filter::bilinear;
    view.radius = std::min(int(blur_radii[v]), view.size - 1);
    for (std::int64_t n = 0; n < N; ++n) {
      const float* row = table + (n * V + v) * kColumns;
      const int length = int(std::max(row[kHeight], row[kWidth]));
      view.taps = std::max(view.taps, make_axis(view.filter, length, view.size).taps);
    }
    place_tiles(&view);
    view.offset = batch.image_bytes;
    view.first_tile = batch.num_tiles;
    batch.image_bytes += view_bytes(view, batch.channels);
    batch.num_tiles += view.down * view.across;
  }
  batch.count = std::max<std::int64_t>(1, std::min(N, kWorkspaceBytes / std::max<std::int64_t>(1, batch.image_bytes)));
  return batch;
}

// The most floats of shared memory that a tile needs; none where no view of the call is blurred.
inline int most_shared_floats(const ViewBatch& batch, int planes) {
  int floats = 0;
  for (int v = 0; v < batch.num_views; ++v) {
    if (batch.views[v].radius > 0) floats = std::max(floats, shared_floats(batch.views[v], planes));
  }
  return floats;
}

// Calls f(batch) for every `count` of N images.
template <typename F>
void for_each_batch(ViewBatch batch, std::int64_t N, F f) {
  const std::int64_t most = batch.count;
  for (; batch.first < N; batch.first += most) {
    batch.count = std::min(most, N - batch.first);
    f(batch);
  }
}

}  // namespace ssl_fast
