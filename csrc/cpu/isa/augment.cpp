// One view of one image. Rows are made a tile at a time and go through all that follows while they are in the cache;
// only contrast, which needs the mean of the whole view, makes them wait.
#include "cpu/isa/augment.h"

#include "cpu/isa/pixels.h"
#include "cpu/isa/resize.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

class Maker {
 public:
  Maker(const AugmentView& view, const AugmentScratch& scratch)
      : view_(view),
        scratch_(scratch),
        pitch_(pitch_of(view.size)),
        num_rows_(tile_rows(view.size)),
        plane_(num_rows_ * pitch_) {}

  void make() {
    resize_columns(view_, scratch_);
    const int contrast = step_of_contrast();
    double total = 0;
    for (int y = 0; y < view_.size; y += num_rows_) {
      float* tile = scratch_.image + (contrast < view_.num_steps ? y * view_.channels * pitch_ : 0);
      resize(y, tile);
      apply(0, contrast, 0, tile);
      if (contrast < view_.num_steps) {
        total += grey_sum(view_, tile, plane_, pitch_, rows_at(y));
      } else {
        finish(y, tile);
      }
    }
    if (contrast == view_.num_steps) return;
    const int planes = view_.channels == 3 ? 1 : view_.channels;
    const float mean = float(total / (double(view_.size) * view_.size * planes));
    for (int y = 0; y < view_.size; y += num_rows_) {
      float* tile = scratch_.image + y * view_.channels * pitch_;
      apply(contrast, view_.num_steps, mean, tile);
      finish(y, tile);
    }
  }

 private:
  int rows_at(int y) const { return view_.size - y < num_rows_ ? view_.size - y : num_rows_; }

  int step_of_contrast() const {
    int step = 0;
    while (step < view_.num_steps && view_.steps[step] != Colour::contrast) ++step;
    return step;
  }

  void resize(int y, float* tile) const {
    for (int c = 0; c < view_.channels; ++c) {
      for (int r = 0; r < rows_at(y); ++r) {
        float* row = tile + c * plane_ + r * pitch_;
        if (view_.rows.filter == Filter::bilinear) {
          resize_row<false>(view_, scratch_.levels, y + r, c, row);
        } else {
          resize_row<true>(view_, scratch_.levels, y + r, c, row);
        }
      }
    }
  }

  void apply(int begin, int end, float mean, float* tile) const {
    for (int step = begin; step < end; ++step) jitter(view_, step, mean, tile, plane_);
  }

  // Rows y, y + 1, ... of a tile: what follows the jitter. Of a grey view there is one plane, stored for every channel.
  // Blurred rows come out once all they are made of are there.
  void finish(int y, float* tile) {
    if (view_.grayscale) to_grey(tile, plane_);
    for (int r = 0; r < rows_at(y); ++r) {
      if (view_.radius == 0) {
        store_row(view_, scratch_, tile + r * pitch_, view_.grayscale ? 0 : plane_, y + r);
      } else {
        blur(y + r, tile + r * pitch_);
      }
    }
  }

  void blur(int y, const float* row) {
    const int ring = 2 * view_.radius + 1, planes = view_.grayscale ? 1 : view_.channels;
    float* to = scratch_.blurred + y % ring * planes * pitch_;
    for (int c = 0; c < planes; ++c) blur_columns(view_, row + c * plane_, scratch_.border, to + c * pitch_);
    const int first = y < view_.radius ? 0 : y - view_.radius, last = y + 1 == view_.size ? y : y - view_.radius;
    for (int i = first; i <= last; ++i) {
      blur_rows(view_, scratch_.blurred, planes * pitch_, i, scratch_.row);
      store_row(view_, scratch_, scratch_.row, view_.grayscale ? 0 : pitch_, i);
    }
  }

  const AugmentView& view_;
  const AugmentScratch& scratch_;
  const std::int64_t pitch_;
  const int num_rows_;
  const std::int64_t plane_;
};

void make(const AugmentView& view, const AugmentScratch& scratch) { Maker(view, scratch).make(); }

}  // namespace

const AugmentKernels augment{make};

}  // namespace ssl_fast::SSL_FAST_ISA
