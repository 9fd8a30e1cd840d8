// r_i = Σ_j A_ij e^{ψ_j - ψ_i} with A_ij = Σ_δ |v[i,j,δ]|, v[i,j,δ] = Σ_{o,τ} W[o,i,τ] W[o,j,τ+δ], on the CPU.
//
// v[j,i,-δ] = v[i,j,δ], so A is symmetric and the tiles (I, J) with I <= J of 32 x 32 channels suffice, and on the
// diagonal half the offsets. Each tile of v exists only while its thread reduces it. The forward leaves the signs of v
// as bits; the backward is the product W̄[o,i,τ] = Σ_{j,σ} W[o,j,σ] S[i,j,σ-τ] (E_ij + E_ji), E_ij = r̄_i e^{ψ_j - ψ_i}.
// Results do not depend on the number of threads: each job owns what it writes, and sums over jobs have a fixed order.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "common/scratch.h"
#include "gram_rowsum/geometry.h"
#include "gram_rowsum/pack.h"
#include "gram_rowsum/tile.h"

namespace fastlip::gram_rowsum {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Output channels per panel: panels of all taps stay within a budget of the cache, in whole blocks of rows.
int64_t panel_rows(const Geometry& geometry, int64_t elements) {
  const int64_t rows = elements / (geometry.taps * kTile) / kPanelRows * kPanelRows;
  return std::clamp<int64_t>(rows, kPanelRows, round_up(geometry.outputs, kPanelRows));
}

// Tiles per side of the squares that share panels: the offsets of one square stay in cache, and there are jobs enough.
int64_t square_side(const Geometry& geometry, int64_t elements) {
  int64_t side = 1;
  while (side < 4 && 8 * side <= geometry.tiles && 4 * side * side * geometry.offsets * kTileSize <= elements) side *= 2;
  return side;
}

template <class T>
class Forward {
 public:
  Forward(const T* weight, const T* psi, T* r, uint32_t* signs, const Geometry& geometry, const Strides& stride)
      : weight_(weight), psi_(psi), r_(r), signs_(signs), geometry_(geometry), stride_(stride),
        side_(square_side(geometry, kSquareElements)), rows_(panel_rows(geometry, kPanelElements)),
        overlaps_(Overlaps::by_offset(geometry, rows_)),
        partial_(geometry.tiles > 1 ? geometry.groups * geometry.tiles * geometry.channels : 0) {}

  void run() {
    const int64_t squares = (geometry_.tiles + side_ - 1) / side_, per_group = squares * (squares + 1) / 2;
    parallel_jobs(geometry_.groups * per_group, geometry_.is_large(), [&](int64_t job) {
      // The costly squares, those off the diagonal, come first.
      int64_t index = job % per_group, i = 0;
      const int64_t others = per_group - squares;
      if (index >= others) {
        square(job / per_group, index - others, index - others);
      } else {
        for (; index >= squares - 1 - i; ++i) index -= squares - 1 - i;
        square(job / per_group, i, i + 1 + index);
      }
    });
    if (geometry_.tiles > 1) add_partial_sums();
  }

 private:
  static constexpr int64_t kPanelElements = 27 * 256;
  static constexpr int64_t kSquareElements = 128 * 1024;

  // Calls visit(tile i, tile j, position in the square) for the tiles i <= j of a square.
  template <class Visit>
  void for_each_tile(int64_t square_i, int64_t square_j, const Visit& visit) const {
    for (int64_t i = 0; i < side_; ++i) {
      for (int64_t j = 0; j < side_; ++j) {
        const int64_t tile_i = square_i * side_ + i, tile_j = square_j * side_ + j;
        if (tile_i <= tile_j && tile_j < geometry_.tiles) visit(tile_i, tile_j, i * side_ + j);
      }
    }
  }

  // Every tile of a square of side_ x side_ tiles, from panels that are packed once.
  void square(int64_t group, int64_t square_i, int64_t square_j) {
    const int64_t tile_size = geometry_.offsets * kTileSize, panel_size = geometry_.taps * rows_ * kTile;
    T* v = scratch<T, struct ForwardTiles>(side_ * side_ * tile_size);
    T* left = scratch<T, struct ForwardPanels>(2 * side_ * panel_size);
    T* right = square_i == square_j ? left : left + side_ * panel_size;
    for (int64_t first = 0; first < geometry_.outputs; first += rows_) {
      const int64_t count = std::min(rows_, geometry_.outputs - first);
      pack_tiles(group, square_i, first, count, left);
      if (square_i != square_j) pack_tiles(group, square_j, first, count, right);
      for_each_tile(square_i, square_j, [&](int64_t i, int64_t j, int64_t position) {
        const T *a = left + position / side_ * panel_size, *b = right + position % side_ * panel_size;
        for (int64_t offset = geometry_.first_offset(i == j); offset < geometry_.offsets; ++offset) {
          multiply<T, 1, kTile>(v + position * tile_size + offset * kTileSize, a, b, overlaps_, offset, count,
                                geometry_.width(i), geometry_.width(j), first > 0);
        }
      });
    }
    for_each_tile(square_i, square_j, [&](int64_t i, int64_t j, int64_t position) {
      reduce(group, i, j, v + position * tile_size);
    });
  }

  void pack_tiles(int64_t group, int64_t square, int64_t first, int64_t count, T* panel) const {
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output;
    const int64_t end = std::min(geometry_.tiles, (square + 1) * side_);
    for (int64_t i = square * side_; i < end; ++i, panel += geometry_.taps * rows_ * kTile) {
      pack(source + i * kTile * stride_.channel, stride_, geometry_.width(i), count, rows_, panel);
    }
  }

  // Signs and sums of one tile of v, [offset][i][j].
  void reduce(int64_t group, int64_t i, int64_t j, const T* v) {
    const int64_t first = geometry_.first_offset(i == j), rows = geometry_.width(i), columns = geometry_.width(j);
    T sums[kTileSize] = {}, center[kTileSize] = {};
    uint32_t* words = signs_ + geometry_.sign_begin(group, i, j);
    for (int64_t offset = first; offset < geometry_.offsets; ++offset, words += 2 * rows) {
      reduce_offset(v + offset * kTileSize, rows, columns, i == j && offset == first ? center : sums, words);
    }
    if (i == j) {
      for (int64_t a = 0; a < rows; ++a) {
        for (int64_t b = 0; b < rows; ++b) center[a * kTile + b] += sums[a * kTile + b] + sums[b * kTile + a];
      }
    }
    const T* base = psi_ == nullptr ? nullptr : psi_ + group * geometry_.channels;
    const TileVector<T> psi_i(base == nullptr ? base : base + i * kTile, rows);
    const TileVector<T> psi_j(base == nullptr ? base : base + j * kTile, columns);
    weigh(i == j ? center : sums, base == nullptr ? nullptr : &psi_i, &psi_j, rows, columns, sum_of(group, j, i),
          i == j ? nullptr : sum_of(group, i, j));
  }

  // Where the sums over the channels of tile `other` go, for the channels of a tile.
  T* sum_of(int64_t group, int64_t other, int64_t tile) {
    T* target = geometry_.tiles > 1 ? partial_.data() : r_;
    return target + (group * geometry_.tiles + other) * geometry_.channels + tile * kTile;
  }

  void add_partial_sums() {
    for (int64_t group = 0; group < geometry_.groups; ++group) {
      T* r = r_ + group * geometry_.channels;
      std::copy_n(sum_of(group, 0, 0), geometry_.channels, r);
      for (int64_t other = 1; other < geometry_.tiles; ++other) {
        const T* sum = sum_of(group, other, 0);
        for (int64_t i = 0; i < geometry_.channels; ++i) r[i] += sum[i];
      }
    }
  }

  const T* weight_;
  const T* psi_;
  T* r_;
  uint32_t* signs_;
  const Geometry& geometry_;
  const Strides& stride_;
  int64_t side_;
  int64_t rows_;
  Overlaps overlaps_;
  std::vector<T> partial_;
};

template <class T>
class Backward {
 public:
  Backward(const T* gradient, const T* weight, const T* psi, const uint32_t* signs, T* weight_gradient,
           const Geometry& geometry, const Strides& stride, const Strides& gradient_stride)
      : gradient_(gradient), weight_(weight), psi_(psi), signs_(signs), weight_gradient_(weight_gradient),
        geometry_(geometry), stride_(stride), gradient_stride_(gradient_stride),
        side_(square_side(geometry, kSquareElements)), rows_(panel_rows(geometry, kPanelElements)),
        overlaps_(Overlaps::by_tap(geometry, rows_)) {
    blocks_ = (geometry.outputs + rows_ - 1) / rows_;
    if (psi != nullptr) dots_.resize(blocks_ * geometry.groups * geometry.channels);
  }

  void run() {
    const int64_t bands = (geometry_.tiles + side_ - 1) / side_, per_group = bands * blocks_;
    parallel_jobs(geometry_.groups * per_group, geometry_.is_large(), [&](int64_t job) {
      band(job / per_group, job % per_group / blocks_, job % blocks_);
    });
  }

  // ψ̄_k = Σ_i A_ik E_ik - r̄_k r_k, and Σ_{o,τ} W̄ ∘ W = Σ_j A_kj (E_kj + E_jk), where Σ_j A_kj E_kj = r̄_k r_k. The
  // terms cancel, so they are summed in double. A channel that is alone in its group does not depend on ψ.
  void psi_gradient(const T* r, T* target) const {
    const int64_t channels = geometry_.groups * geometry_.channels;
    for (int64_t k = 0; k < channels; ++k) {
      double sum = -2.0 * gradient_[k] * r[k];
      for (int64_t b = 0; b < blocks_; ++b) sum += dots_[b * channels + k];
      target[k] = geometry_.channels == 1 ? T{0} : static_cast<T>(sum);
    }
  }

 private:
  static constexpr int64_t kPanelElements = 20 * 1024;
  static constexpr int64_t kSquareElements = 16 * 1024;

  // The gradient of side_ tiles of input channels and one block of output channels.
  void band(int64_t group, int64_t band, int64_t block) {
    const int64_t first = block * rows_, count = std::min(rows_, geometry_.outputs - first);
    const int64_t size = geometry_.taps * rows_ * kTile;
    const int64_t begin = band * side_, end = std::min(geometry_.tiles, begin + side_);
    T* panel = scratch<T, struct BackwardPanels>((side_ + 1) * size);
    T* factors = scratch<T, struct BackwardFactors>(geometry_.offsets * kTileSize);
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output;
    for (int64_t j = 0; j < geometry_.tiles; ++j) {
      pack(source + j * kTile * stride_.channel, stride_, geometry_.width(j), count, rows_, panel);
      for (int64_t i = begin; i < end; ++i) {
        signed_factors(group, i, j, factors);
        for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
          multiply<T, kTile, 1>(panel + (1 + i - begin) * size + tap * rows_ * kTile, panel, factors, overlaps_, tap,
                                geometry_.width(j), count, geometry_.width(i), j > 0);
        }
      }
    }
    T* target = weight_gradient_ + (group * geometry_.outputs + first) * gradient_stride_.output;
    for (int64_t i = begin; i < end; ++i) {
      const T* result = panel + (1 + i - begin) * size;
      unpack(result, gradient_stride_, geometry_.width(i), count, rows_, target + i * kTile * gradient_stride_.channel);
      if (psi_ == nullptr) continue;
      pack(source + i * kTile * stride_.channel, stride_, geometry_.width(i), count, rows_, panel);
      double* dot = dots_.data() + (block * geometry_.groups + group) * geometry_.channels + i * kTile;
      add_products(panel, result, count, geometry_.width(i), dot);
    }
  }

  // Adds Σ_{o,τ} of the products of two panels to each channel.
  void add_products(const T* a, const T* b, int64_t count, int64_t width, double* dot) const {
    for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
      for (int64_t at = tap * rows_ * kTile; at < (tap * rows_ + count) * kTile; at += kTile) {
        for (int64_t k = 0; k < width; ++k) dot[k] += static_cast<double>(a[at + k]) * b[at + k];
      }
    }
  }

  // factors[δ][j][i] = sign(v[i,j,δ]) (E_ij + E_ji).
  void signed_factors(int64_t group, int64_t i, int64_t j, T* factors) const {
    const int64_t rows = geometry_.width(j), columns = geometry_.width(i), base = group * geometry_.channels;
    T factor[kTileSize];
    const TileVector<T> gradient_i(gradient_ + base + i * kTile, columns), gradient_j(gradient_ + base + j * kTile, rows);
    const TileVector<T> psi_i(psi_ == nullptr ? psi_ : psi_ + base + i * kTile, columns);
    const TileVector<T> psi_j(psi_ == nullptr ? psi_ : psi_ + base + j * kTile, rows);
    gradient_factor(gradient_i.value, gradient_j.value, psi_ == nullptr ? nullptr : &psi_i, &psi_j, rows, columns,
                    factor);
    const uint32_t* words = signs_ + geometry_.sign_begin(group, std::min(i, j), std::max(i, j));
    const int64_t planes = geometry_.width(std::min(i, j)), first = geometry_.first_offset(i == j);
    for (int64_t offset = 0; offset < geometry_.offsets; ++offset) {
      const int64_t opposite = geometry_.offsets - 1 - offset;
      const bool transposed = i < j || (i == j && offset >= first);  // whether v[i,j,δ] was kept, or v[j,i,-δ]
      const uint32_t* plane = words + ((transposed ? offset : opposite) - first) * 2 * planes;
      T* target = factors + offset * kTileSize;
      if (transposed) {
        apply_signs<T, true>(factor, plane, planes, rows, columns, target);
      } else {
        apply_signs<T, false>(factor, plane, planes, rows, columns, target);
      }
    }
  }

  const T* gradient_;
  const T* weight_;
  const T* psi_;
  const uint32_t* signs_;
  T* weight_gradient_;
  const Geometry& geometry_;
  const Strides& stride_;
  const Strides& gradient_stride_;
  int64_t side_;
  int64_t rows_;
  int64_t blocks_ = 0;
  Overlaps overlaps_;
  std::vector<double> dots_;
};

// weight is (groups * outputs, channels, depth, height, width); n and s are its sizes and strides, g the strides of
// its gradient.
template <class T>
void forward(const T* weight, const T* psi, T* r, uint32_t* signs, int64_t groups, int64_t n0, int64_t n1, int64_t n2,
             int64_t n3, int64_t n4, int64_t s0, int64_t s1, int64_t s2, int64_t s3, int64_t s4) {
  const Geometry geometry{groups, n0 / groups, n1, {n2, n3, n4}};
  const Strides stride(s0, s1, geometry.kernel, {s2, s3, s4});
  if (n0 == 0) {
    std::fill_n(r, groups * n1, T{0});
  } else if (n1 > 0) {
    Forward<T>(weight, psi, r, signs, geometry, stride).run();
  }
}

template <class T>
void backward(const T* gradient, const T* weight, const T* psi, const T* r, const uint32_t* signs, T* weight_gradient,
              T* psi_gradient, int64_t groups, int64_t n0, int64_t n1, int64_t n2, int64_t n3, int64_t n4, int64_t s0,
              int64_t s1, int64_t s2, int64_t s3, int64_t s4, int64_t g0, int64_t g1, int64_t g2, int64_t g3,
              int64_t g4) {
  const Geometry geometry{groups, n0 / groups, n1, {n2, n3, n4}};
  const Strides stride(s0, s1, geometry.kernel, {s2, s3, s4}), gradient_stride(g0, g1, geometry.kernel, {g2, g3, g4});
  if (n0 == 0 || n1 == 0) {
    if (psi != nullptr) std::fill_n(psi_gradient, groups * n1, T{0});
    return;
  }
  Backward<T> job(gradient, weight, psi, signs, weight_gradient, geometry, stride, gradient_stride);
  job.run();
  if (psi != nullptr) job.psi_gradient(r, psi_gradient);
}

}  // namespace
}  // namespace fastlip::gram_rowsum

namespace fastlip {

FASTLIP_KERNEL(gram_rowsum_forward_float32, gram_rowsum::forward<float>);
FASTLIP_KERNEL(gram_rowsum_forward_float64, gram_rowsum::forward<double>);
FASTLIP_KERNEL(gram_rowsum_backward_float32, gram_rowsum::backward<float>);
FASTLIP_KERNEL(gram_rowsum_backward_float64, gram_rowsum::backward<double>);

}  // namespace fastlip
