// Channels-last images with a frame around them: passes over rows that also fill the frame for circular convolutions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/transpose.h"

namespace fastlip {

// Dense (batch, height, width, channels) images, and the frame that a circular convolution reads around them.
struct Frames {
  int64_t batch, height, width, channels;
  int64_t left, right, top, bottom;

  int64_t row() const { return width * channels; }
  int64_t image() const { return height * row(); }
  int64_t framed_row() const { return (left + width + right) * channels; }
  int64_t framed_image() const { return (top + height + bottom) * framed_row(); }
  int64_t framed_start(int64_t y) const { return (top + y) * framed_row() + left * channels; }
  bool empty() const { return batch * image() == 0; }
};

inline int64_t wrap(int64_t index, int64_t size) { return (index % size + size) % size; }

// Fills the frame of one image from its interior.
template <class T>
void fill_frame(T* framed, const Frames& f) {
  const auto copy_column = [&](T* row, int64_t column) {
    std::copy_n(row + (f.left + wrap(column, f.width)) * f.channels, f.channels, row + (f.left + column) * f.channels);
  };
  for (int64_t y = 0; y < f.height; ++y) {
    T* row = framed + (f.top + y) * f.framed_row();
    for (int64_t column = -f.left; column < 0; ++column) copy_column(row, column);
    for (int64_t column = f.width; column < f.width + f.right; ++column) copy_column(row, column);
  }
  const auto copy_row = [&](int64_t y) {
    std::copy_n(framed + (f.top + wrap(y, f.height)) * f.framed_row(), f.framed_row(),
                framed + (f.top + y) * f.framed_row());
  };
  for (int64_t y = -f.top; y < 0; ++y) copy_row(y);
  for (int64_t y = f.height; y < f.height + f.bottom; ++y) copy_row(y);
}

// Calls compute(offset of a row in the batch, its number, where to write it) for each row of the batch; the row goes
// to plain (dense) or to the interior of framed, or to both; then frames are filled. Null: not wanted.
template <class T, class Compute>
void pass_over_rows(const Frames& f, T* plain, T* framed, const Compute& compute) {
  if (f.empty()) return;
  parallel_for(f.batch, grain_of(f.image()), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t y = 0; y < f.height; ++y) {
        const int64_t offset = n * f.image() + y * f.row();
        T* inner = framed == nullptr ? nullptr : framed + n * f.framed_image() + f.framed_start(y);
        T* target = plain == nullptr ? inner : plain + offset;
        compute(offset, n * f.height + y, target);
        if (plain != nullptr && framed != nullptr) std::copy_n(target, f.row(), inner);
      }
      if (framed != nullptr) fill_frame(framed + n * f.framed_image(), f);
    }
  });
}

// Sums over all rows and columns per channel, the same for every number of threads: a row is summed in T, rows in
// double, image by image.
class ChannelSums {
 public:
  explicit ChannelSums(const Frames& f) : frames_(f), sums_(f.batch * f.channels) {}

  template <class T>
  void add(int64_t row_number, const T* row) {
    double* sums = sums_.data() + row_number / frames_.height * frames_.channels;
    constexpr int64_t lanes = kLaneCount<T>;
    for (int64_t c = 0; c < frames_.channels; c += lanes) {
      const int64_t used = std::min(lanes, frames_.channels - c);
      T total[lanes];
      store_lanes<T>(total, used == lanes ? total_of<true>(row + c, used) : total_of<false>(row + c, used));
      for (int64_t lane = 0; lane < used; ++lane) sums[c + lane] += total[lane];
    }
  }

  template <class T>
  void store(T* target) const {
    for (int64_t c = 0; c < frames_.channels; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < frames_.batch; ++n) sum += sums_[n * frames_.channels + c];
      target[c] = static_cast<T>(sum);
    }
  }

 private:
  // Of some channels, over the pixels of a row.
  template <bool full, class T>
  Lanes<T> total_of(const T* row, int64_t used) const {
    Lanes<T> total = {};
    for (int64_t x = 0; x < frames_.width; ++x, row += frames_.channels) {
      total += full ? load_lanes(row) : load_first(row, used);
    }
    return total;
  }

  Frames frames_;
  std::vector<double> sums_;
};

}  // namespace fastlip
