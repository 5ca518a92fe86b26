// Augmented views of decoded images: from the table of parameters to one task per view of an image.
#include "cpu/isa/augment.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <memory>

#include "cpu/buffer.h"
#include "cpu/chunks.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace ssl_fast {
namespace {

// Columns of the table: ssl_fast/data/views.py.
enum Column { kTop, kLeft, kHeight, kWidth, kFlip, kJitter, kFactors, kOrder = 10, kGrayscale = 14, kBlur, kSolarize };
constexpr int kColumns = 17;

// What all tasks of a call have in common, and the largest of each size.
struct Call {
  const Address* images;
  const std::int64_t* extents;
  const float* table;
  const Addresses& outs;
  const Sizes& sizes;
  const std::vector<bool>& bicubic;
  const Sizes& operations;
  const Sizes& blur_radii;
  const std::vector<double>& thresholds;
  std::vector<float> scale, shift;
  int channels;
  DType dtype;
  bool channels_last;
  int height = 1, width = 1, size = 1, taps = 1, radius = 0;

  const float* row(std::int64_t n, std::int64_t v) const { return table + (n * sizes.size() + v) * kColumns; }
};

// The weights of an axis, outputs in reverse order when flipped.
void fill_weights(const Axis& axis, bool flip, double* exact, const AxisWeights& to) {
  double largest = 0;
  for (int i = 0; i < axis.size; ++i) {
    const Window window = window_of(axis, i);
    const int x = flip ? axis.size - 1 - i : i, first = std::min(window.first, axis.length - axis.taps);
    double* row = exact + std::int64_t(x) * axis.taps;
    std::fill(row, row + axis.taps, 0.0);
    double total = 0;
    for (int k = 0; k < window.count; ++k) {
      total += row[window.first - first + k] = window_weight(axis, window, k);
    }
    for (int k = 0; k < axis.taps; ++k) largest = std::max(largest, row[k] /= total);
    to.first[x] = first;
  }
  const int precision = weight_precision(largest);
  const std::int64_t count = std::int64_t(axis.size) * axis.taps;
  for (std::int64_t i = 0; i < count; ++i) to.weights[i] = round_weight(exact[i], precision);
}

// Everything that one thread needs to make one view at a time.
class Workspace {
 public:
  explicit Workspace(const Call& call)
      : call_(call),
        firsts_(2 * call.size),
        weights_(2 * std::int64_t(call.size) * call.taps),
        exact_(std::int64_t(call.size) * call.taps),
        source_(16 * std::max<std::int64_t>(64, std::int64_t(call.width) * call.channels)),
        words_(16 * call.channels * level_pitch_of(call.size) / 4, 0),
        levels_(call.height * call.channels * level_pitch_of(call.size) + 64),
        image_((call.size + tile_rows(call.size)) * call.channels * pitch_of(call.size), 0),
        blurred_((2 * call.radius + 1) * call.channels * pitch_of(call.size), 0),
        border_(2 * call.radius + pitch_of(call.size), 0),
        row_(call.channels * pitch_of(call.size), 0),
        woven_(call.channels * pitch_of(call.size)) {}

  void make(const AugmentKernels& kernels, std::int64_t n, std::int64_t v) {
    const float* row = call_.row(n, v);
    AugmentView view = common(n, v);
    place_crop(row, n, &view);
    resize(row, call_.bicubic[v] ? Filter::bicubic : Filter::bilinear, &view);
    order_steps(row, call_.operations[v], &view);
    if (row[kBlur] > 0) spread(row[kBlur], int(call_.blur_radii[v]), &view);
    kernels.make(view, {source_.get(), words_.get(), levels_.get(), image_.get(), blurred_.get(), border_.get(),
                        row_.get(), woven_.get()});
  }

 private:
  AugmentView common(std::int64_t n, std::int64_t v) const {
    const float* row = call_.row(n, v);
    const std::int64_t size = call_.sizes[v], element = call_.dtype == DType::float32 ? 4 : 2;
    AugmentView view{};
    view.channels = call_.channels;
    view.size = int(size);
    view.grayscale = row[kGrayscale] != 0 && call_.channels == 3;
    view.solarize = row[kSolarize] != 0;
    view.threshold = float(call_.thresholds[v]);
    view.channels_last = call_.channels_last;
    view.scale = call_.scale.data() + v * call_.channels;
    view.shift = call_.shift.data() + v * call_.channels;
    view.out = reinterpret_cast<char*>(call_.outs[v]) + n * call_.channels * size * size * element;
    view.dtype = call_.dtype;
    return view;
  }

  void place_crop(const float* row, std::int64_t n, AugmentView* view) const {
    view->height = int(row[kHeight]);
    view->width = int(row[kWidth]);
    view->row_bytes = call_.extents[2 * n + 1] * call_.channels;
    view->crop = reinterpret_cast<const std::uint8_t*>(call_.images[n]) + std::int64_t(row[kTop]) * view->row_bytes +
                 std::int64_t(row[kLeft]) * call_.channels;
  }

  void resize(const float* row, Filter filter, AugmentView* view) {
    const Axis columns = make_axis(filter, view->width, view->size), rows = make_axis(filter, view->height, view->size);
    view->columns = {filter, columns.taps, firsts_.get(), weights_.get()};
    view->rows = {filter, rows.taps, firsts_.get() + call_.size,
                  weights_.get() + std::int64_t(call_.size) * call_.taps};
    fill_weights(columns, row[kFlip] != 0, exact_.get(), view->columns);
    fill_weights(rows, false, exact_.get(), view->rows);
  }

  // The operations that the view has, in the drawn order.
  void order_steps(const float* row, std::int64_t operations, AugmentView* view) const {
    if (row[kJitter] == 0) return;
    for (int i = 0; i < 4; ++i) {
      const int operation = int(row[kOrder + i]);
      if (!(operations >> operation & 1)) continue;
      const float factor = row[kFactors + operation];
      view->steps[view->num_steps] = Colour(operation);
      view->factors[view->num_steps++] = Colour(operation) == Colour::hue ? hue_sixths(factor) : factor;
    }
  }

  void spread(float sigma, int limit, AugmentView* view) {
    view->radius = blur_radius(sigma, std::min(limit, view->size - 1));
    view->blur = blur_.data();
    float total = 0;
    for (int k = 0; k <= view->radius; ++k) total += (k == 0 ? 1 : 2) * (blur_[k] = blur_weight(sigma, k));
    for (int k = 0; k <= view->radius; ++k) blur_[k] /= total;
  }

  const Call& call_;
  Buffer<int> firsts_;
  Buffer<float> weights_;
  Buffer<double> exact_;
  Buffer<float> source_;
  Buffer<std::uint32_t> words_;
  Buffer<std::uint8_t> levels_;
  Buffer<float> image_, blurred_, border_, row_, woven_;
  std::array<float, kMaxBlurRadius + 1> blur_;
};

void measure(std::int64_t N, Call* call) {
  const std::int64_t V = std::int64_t(call->sizes.size());
  for (std::int64_t v = 0; v < V; ++v) {
    const int size = int(call->sizes[v]);
    const Filter filter = call->bicubic[v] ? Filter::bicubic : Filter::bilinear;
    call->size = std::max(call->size, size);
    call->radius = std::max(call->radius, int(call->blur_radii[v]));
    for (std::int64_t n = 0; n < N; ++n) {
      const int height = int(call->row(n, v)[kHeight]), width = int(call->row(n, v)[kWidth]);
      call->height = std::max(call->height, height);
      call->width = std::max(call->width, width);
      call->taps = std::max(call->taps, make_axis(filter, std::max(height, width), size).taps);
    }
  }
}

// A batch of views is fresh memory by the megabyte: taken from the kernel in pages of 4 KB it costs more than the
// views.
void expect_large(Address begin, std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr Address kPage = 4096;
  const Address first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  if (bytes >= 4 << 20) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

void augment(Address images, Address extents, Address table, const Addresses& outs, const Sizes& sizes,
             const std::vector<bool>& bicubic, const Sizes& operations, const Sizes& blur_radii,
             const std::vector<double>& thresholds, const std::vector<double>& mean, const std::vector<double>& std,
             std::int64_t N, std::int64_t C, int dtype, bool channels_last, int threads) {
  Call call{reinterpret_cast<const Address*>(images),
            reinterpret_cast<const std::int64_t*>(extents),
            reinterpret_cast<const float*>(table),
            outs,
            sizes,
            bicubic,
            operations,
            blur_radii,
            thresholds,
            {},
            {},
            int(C),
            DType(dtype),
            channels_last};
  for (std::size_t i = 0; i < mean.size(); ++i) {
    call.scale.push_back(float(1 / std[i]));
    call.shift.push_back(float(-mean[i] / std[i]));
  }
  measure(N, &call);
  const std::int64_t V = std::int64_t(sizes.size()), element = call.dtype == DType::float32 ? 4 : 2;
  for (std::int64_t v = 0; v < V; ++v) expect_large(outs[v], N * C * sizes[v] * sizes[v] * element);
  threads = int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, N * V)));
  std::vector<std::unique_ptr<Workspace>> workspaces;
  for (int slot = 0; slot < threads; ++slot) workspaces.push_back(std::make_unique<Workspace>(call));
  const AugmentKernels& kernels = SSL_FAST_PICK(augment);
  parallel_for(threads, N * V,
               [&](std::int64_t task, int slot) { workspaces[slot]->make(kernels, task / V, task % V); });
}

}  // namespace ssl_fast
