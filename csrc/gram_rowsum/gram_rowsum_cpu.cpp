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
#include "gram_rowsum/tile.h"

namespace fastlip::gram_rowsum {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Output channels per panel: panels of all taps stay within a budget of the cache, in whole blocks of rows.
int64_t panel_rows(const Geometry& geometry, int64_t elements) {
  const int64_t rows = elements / (geometry.taps * kTile) / kPanelRows * kPanelRows;
  return std::clamp<int64_t>(rows, kPanelRows, round_up(geometry.outputs, kPanelRows));
}

template <class T>
class Forward {
 public:
  Forward(const T* weight, const T* psi, T* r, uint32_t* signs, const Geometry& geometry, const Strides& stride)
      : weight_(weight), psi_(psi), r_(r), signs_(signs), geometry_(geometry), stride_(stride),
        rows_(panel_rows(geometry, kPanelElements)), overlaps_(Overlaps::by_offset(geometry, rows_)),
        partial_(geometry.tiles > 1 ? geometry.groups * geometry.tiles * geometry.channels : 0) {}

  void run() {
    const int64_t per_group = geometry_.tiles * (geometry_.tiles + 1) / 2;
    parallel_jobs(geometry_.groups * per_group, geometry_.is_large(), [&](int64_t job) {
      // The costly tiles, those off the diagonal, come first.
      int64_t index = job % per_group, i = 0;
      const int64_t others = per_group - geometry_.tiles;
      if (index >= others) {
        tile(job / per_group, index - others, index - others);
      } else {
        for (; index >= geometry_.tiles - 1 - i; ++i) index -= geometry_.tiles - 1 - i;
        tile(job / per_group, i, i + 1 + index);
      }
    });
    if (geometry_.tiles > 1) add_partial_sums();
  }

 private:
  static constexpr int64_t kPanelElements = 32 * 1024 / sizeof(float) / 2;

  void tile(int64_t group, int64_t i, int64_t j) {
    const int64_t first = geometry_.first_offset(i == j), rows = geometry_.width(i), columns = geometry_.width(j);
    T* v = scratch<T, struct ForwardTile>((geometry_.offsets - first) * kTileSize);
    gram(group, i, j, v);
    T sums[kTileSize] = {}, center[kTileSize] = {};
    uint32_t* words = signs_ + geometry_.sign_begin(group, i, j);
    for (int64_t offset = first; offset < geometry_.offsets; ++offset, v += kTileSize, words += 2 * rows) {
      reduce_offset(v, rows, columns, i == j && offset == first ? center : sums, words);
    }
    if (i == j) {
      for (int64_t a = 0; a < rows; ++a) {
        for (int64_t b = 0; b < rows; ++b) center[a * kTile + b] += sums[a * kTile + b] + sums[b * kTile + a];
      }
    }
    const T* base = psi_ == nullptr ? nullptr : psi_ + group * geometry_.channels;
    const TilePsi<T> psi_i(base == nullptr ? base : base + i * kTile, rows);
    const TilePsi<T> psi_j(base == nullptr ? base : base + j * kTile, columns);
    weigh(i == j ? center : sums, base == nullptr ? nullptr : &psi_i, &psi_j, rows, columns, sum_of(group, j, i),
          i == j ? nullptr : sum_of(group, i, j));
  }

  // The tile of v, one offset after another; panels of output channels are packed as needed.
  void gram(int64_t group, int64_t i, int64_t j, T* v) const {
    const int64_t first_offset = geometry_.first_offset(i == j), size = geometry_.taps * rows_ * kTile;
    T* left = scratch<T, struct ForwardPanels>(2 * size);
    T* right = i == j ? left : left + size;
    for (int64_t first = 0; first < geometry_.outputs; first += rows_) {
      const int64_t count = std::min(rows_, geometry_.outputs - first);
      const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output;
      pack(source + i * kTile * stride_.channel, stride_, geometry_.width(i), count, rows_, left);
      if (i != j) pack(source + j * kTile * stride_.channel, stride_, geometry_.width(j), count, rows_, right);
      for (int64_t offset = first_offset; offset < geometry_.offsets; ++offset) {
        multiply<T, 1, kTile>(v + (offset - first_offset) * kTileSize, left, right, overlaps_, offset, count,
                              geometry_.width(i), geometry_.width(j), first > 0);
      }
    }
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
        rows_(panel_rows(geometry, kPanelElements)), overlaps_(Overlaps::by_tap(geometry, rows_)) {
    blocks_ = (geometry.outputs + rows_ - 1) / rows_;
    if (psi != nullptr) dots_.resize(blocks_ * geometry.groups * geometry.channels);
  }

  void run() {
    const int64_t per_group = geometry_.tiles * blocks_;
    parallel_jobs(geometry_.groups * per_group, geometry_.is_large(), [&](int64_t job) {
      block(job / per_group, job % per_group / blocks_, job % blocks_);
    });
  }

  // ψ̄_k = Σ_i A_ik E_ik - r̄_k r_k, and Σ_{o,τ} W̄ ∘ W = Σ_j A_kj (E_kj + E_jk), where Σ_j A_kj E_kj = r̄_k r_k.
  void psi_gradient(const T* r, T* target) const {
    const int64_t channels = geometry_.groups * geometry_.channels;
    for (int64_t k = 0; k < channels; ++k) {
      T sum = 0;
      for (int64_t b = 0; b < blocks_; ++b) sum += dots_[b * channels + k];
      target[k] = sum - 2 * gradient_[k] * r[k];
    }
  }

 private:
  static constexpr int64_t kPanelElements = 20 * 1024;

  // The gradient of one tile i of input channels and one block of output channels.
  void block(int64_t group, int64_t i, int64_t block) {
    const int64_t first = block * rows_, count = std::min(rows_, geometry_.outputs - first);
    const int64_t size = geometry_.taps * rows_ * kTile, columns = geometry_.width(i);
    T* panel = scratch<T, struct BackwardPanels>(2 * size);
    T* result = panel + size;
    T* factors = scratch<T, struct BackwardFactors>(geometry_.offsets * kTileSize);
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output;
    for (int64_t j = 0; j < geometry_.tiles; ++j) {
      pack(source + j * kTile * stride_.channel, stride_, geometry_.width(j), count, rows_, panel);
      signed_factors(group, i, j, factors);
      for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
        multiply<T, kTile, 1>(result + tap * rows_ * kTile, panel, factors, overlaps_, tap, geometry_.width(j), count,
                              columns, j > 0);
      }
    }
    T* target = weight_gradient_ + (group * geometry_.outputs + first) * gradient_stride_.output +
                i * kTile * gradient_stride_.channel;
    unpack(result, gradient_stride_, columns, count, rows_, target);
    if (psi_ == nullptr) return;
    pack(source + i * kTile * stride_.channel, stride_, columns, count, rows_, panel);
    T* dot = dots_.data() + (block * geometry_.groups + group) * geometry_.channels + i * kTile;
    for (int64_t tap = 0; tap < geometry_.taps; ++tap) {
      for (int64_t o = 0; o < count; ++o) {
        const int64_t at = (tap * rows_ + o) * kTile;
        for (int64_t k = 0; k < columns; ++k) dot[k] += panel[at + k] * result[at + k];
      }
    }
  }

  // factors[δ][j][i] = sign(v[i,j,δ]) (E_ij + E_ji).
  void signed_factors(int64_t group, int64_t i, int64_t j, T* factors) const {
    const int64_t rows = geometry_.width(j), columns = geometry_.width(i), base = group * geometry_.channels;
    T factor[kTileSize];
    const TilePsi<T> gradient_i(gradient_ + base + i * kTile, columns), gradient_j(gradient_ + base + j * kTile, rows);
    const TilePsi<T> psi_i(psi_ == nullptr ? psi_ : psi_ + base + i * kTile, columns);
    const TilePsi<T> psi_j(psi_ == nullptr ? psi_ : psi_ + base + j * kTile, rows);
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
  int64_t rows_;
  int64_t blocks_ = 0;
  Overlaps overlaps_;
  std::vector<T> dots_;
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
