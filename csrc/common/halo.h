// Channels-last images with a halo: passes over rows that also fill the halo for circular convolutions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/transpose.h"

namespace fastlip {

// Dense (batch, height, width, channels) images, and the halo that a circular convolution reads around them.
struct HaloGeometry {
  int64_t batch, height, width, channels;
  int64_t left, right, top, bottom;

  int64_t row() const { return width * channels; }
  int64_t image() const { return height * row(); }
  int64_t extended_row() const { return (left + width + right) * channels; }
  int64_t extended_image() const { return (top + height + bottom) * extended_row(); }
  int64_t extended_start(int64_t y) const { return (top + y) * extended_row() + left * channels; }
  bool empty() const { return batch * image() == 0; }
};

inline int64_t wrap(int64_t index, int64_t size) { return (index % size + size) % size; }

// Fills the halo of one image from its interior.
template <class T>
void fill_halo(T* extended, const HaloGeometry& g) {
  const auto copy_column = [&](T* row, int64_t column) {
    std::copy_n(row + (g.left + wrap(column, g.width)) * g.channels, g.channels, row + (g.left + column) * g.channels);
  };
  for (int64_t y = 0; y < g.height; ++y) {
    T* row = extended + (g.top + y) * g.extended_row();
    for (int64_t column = -g.left; column < 0; ++column) copy_column(row, column);
    for (int64_t column = g.width; column < g.width + g.right; ++column) copy_column(row, column);
  }
  const auto copy_row = [&](int64_t y) {
    std::copy_n(extended + (g.top + wrap(y, g.height)) * g.extended_row(), g.extended_row(),
                extended + (g.top + y) * g.extended_row());
  };
  for (int64_t y = -g.top; y < 0; ++y) copy_row(y);
  for (int64_t y = g.height; y < g.height + g.bottom; ++y) copy_row(y);
}

// Calls compute(offset of a row in the batch, its number, where to write it) for each row of the batch; the row goes
// to dense or to the interior of extended, or to both; then halos are filled. Null: not wanted.
template <class T, class Compute>
void pass_over_rows(const HaloGeometry& g, T* dense, T* extended, const Compute& compute) {
  if (g.empty()) return;
  parallel_for(g.batch, grain_of(g.image()), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t y = 0; y < g.height; ++y) {
        const int64_t offset = n * g.image() + y * g.row();
        T* inner = extended == nullptr ? nullptr : extended + n * g.extended_image() + g.extended_start(y);
        T* target = dense == nullptr ? inner : dense + offset;
        compute(offset, n * g.height + y, target);
        if (dense != nullptr && extended != nullptr) std::copy_n(target, g.row(), inner);
      }
      if (extended != nullptr) fill_halo(extended + n * g.extended_image(), g);
    }
  });
}

// Sums over all rows and columns per channel, the same for every number of threads: a row is summed in T, rows in
// double, image by image.
class ChannelSums {
 public:
  explicit ChannelSums(const HaloGeometry& g) : geometry_(g), sums_(g.batch * g.channels) {}

  template <class T>
  void add(int64_t row_number, const T* row) {
    double* sums = sums_.data() + row_number / geometry_.height * geometry_.channels;
    constexpr int64_t lanes = kLaneCount<T>;
    for (int64_t c = 0; c < geometry_.channels; c += lanes) {
      const int64_t used = std::min(lanes, geometry_.channels - c);
      T total[lanes];
      store_lanes<T>(total, used == lanes ? total_of<true>(row + c, used) : total_of<false>(row + c, used));
      for (int64_t lane = 0; lane < used; ++lane) sums[c + lane] += total[lane];
    }
  }

  template <class T>
  void store(T* target) const {
    for (int64_t c = 0; c < geometry_.channels; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < geometry_.batch; ++n) sum += sums_[n * geometry_.channels + c];
      target[c] = static_cast<T>(sum);
    }
  }

 private:
  // Of some channels, over the pixels of a row.
  template <bool full, class T>
  Lanes<T> total_of(const T* row, int64_t used) const {
    Lanes<T> total = {};
    for (int64_t x = 0; x < geometry_.width; ++x, row += geometry_.channels) {
      total += full ? load_lanes(row) : load_first(row, used);
    }
    return total;
  }

  HaloGeometry geometry_;
  std::vector<double> sums_;
};

}  // namespace fastlip
