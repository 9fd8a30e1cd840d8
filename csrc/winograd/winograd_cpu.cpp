// Convolutions of channels-last images with 3 × 3 kernels at stride 1 by Winograd's filtering along both axes: 36 products
// for each 4 × 4 tile of results in place of 144, or 16 for a 2 × 2 tile in place of 36. The gradient of a kernel takes the
// same transformed patches.

#include <algorithm>
#include <cstdint>

#include "common/gemm.h"
#include "common/pages.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "common/scratch.h"
#include "winograd/kernel.h"
#include "winograd/tiles.h"

namespace fastlip::winograd {
namespace {

// M = V U for each product, over all rows of the block.
template <class F, class T>
void multiply(const Block<F, T>& v, const Matrices<F, T>& u, const Block<F, T>& m, int64_t tiles) {
  constexpr int64_t wide = kWide<T>, kMost = 64;
  PanelPair pairs[kMost];
  const int64_t whole = v.channels / wide, rest = v.channels % wide;
  for (int64_t product = 0; product < F::kProducts; ++product) {
    for (int64_t group = 0; group < m.groups(); ++group) {
      const T* matrix = u.at(product, group, 0);
      for (int64_t tile = 0; tile < tiles; tile += kPanelRows) {
        T* target = m.at(product, group, tile);
        const auto panels = [&](const T* a, const T* b, int64_t count, int64_t length, bool add) {
          if (m.vectors(group) == 1) {
            multiply_panels<T, 1, wide, 1, wide>(target, a, b, pairs, count, length, add);
          } else {
            multiply_panels<T, kPanelVectors, wide, 1, wide>(target, a, b, pairs, count, length, add);
          }
        };
        for (int64_t first = 0; first < whole; first += kMost) {
          const int64_t count = std::min(kMost, whole - first);
          for (int64_t i = 0; i < count; ++i) pairs[i] = {i * v.tiles * wide, i * wide * wide};
          panels(v.at(product, first, tile), matrix + first * wide * wide, count, wide, first > 0);
        }
        pairs[0] = {0, 0};
        if (rest > 0) panels(v.at(product, whole, tile), matrix + whole * wide * wide, 1, rest, whole > 0);
      }
    }
  }
}

// sums (+)= Vᵀ X for each product, over `tiles` rows.
template <class F, class T>
void add_products(const Block<F, T>& v, const Block<F, T>& x, int64_t tiles, bool add, const Matrices<F, T>& sums) {
  constexpr int64_t wide = kWide<T>;
  const PanelPair pair{0, 0};
  for (int64_t product = 0; product < F::kProducts; ++product) {
    for (int64_t channel = 0; channel < v.channels; channel += kPanelRows) {
      const T* a = v.at(product, channel / wide, 0) + channel % wide;
      for (int64_t group = 0; group < x.groups(); ++group) {
        T* target = sums.at(product, group, channel);
        if (x.vectors(group) == 1) {
          multiply_panels<T, 1, 1, wide, wide>(target, a, x.at(product, group, 0), &pair, 1, tiles, add);
        } else {
          multiply_panels<T, kPanelVectors, 1, wide, wide>(target, a, x.at(product, group, 0), &pair, 1, tiles, add);
        }
      }
    }
  }
}

// Tiles in a block, so that its transforms stay in a core's cache.
template <class F, class T>
int64_t tiles_in_block(int64_t channels, bool with_sums) {
  constexpr int64_t kBytes = 384 * 1024, kMost = 64;
  if (with_sums) return kMost;
  const int64_t tiles = kBytes / (F::kProducts * channels * static_cast<int64_t>(sizeof(T)));
  return std::clamp<int64_t>(tiles / kPanelRows * kPanelRows, 2 * kPanelRows, kMost);
}

// Copies of the sums, each of which takes a share of the blocks: their number depends on sizes only.
inline int64_t copies_of(int64_t bytes, int64_t blocks) {
  constexpr int64_t kBytes = 16 << 20, kLeast = 4, kMost = 8;
  return std::clamp<int64_t>(blocks, 1, std::clamp(kBytes / bytes, kLeast, kMost));
}

// y = activation(gain (W * image + bias) + factor added) where y is not null, with the bits of MaxMin; and where `others` is not null, kernel_sums = Σ over pixels p of
// image[p + τ] others[p] for each pair of channels and each tap τ.
template <class F, class T>
void convolve(const T* images, const T* kernel, const T* bias, const T* added, T* y, const T* others, T* kernel_sums,
              uint8_t* bits, double factor, double gain, int64_t activation, int64_t batch, int64_t height, int64_t width, int64_t image_height, int64_t image_width,
              int64_t top, int64_t left, int64_t wrap, int64_t channels, int64_t outputs, int64_t other_channels, int64_t adjoint,
              int64_t sums_adjoint) {
  const Epilogue<T> epilogue{bias, added, static_cast<T>(factor), static_cast<T>(gain), static_cast<Activation>(activation), bits};
  const Tiling<F> tiling{batch, height, width, image_height, image_width, top, left, wrap != 0};
  if (y == nullptr) outputs = 0;
  if (others == nullptr) other_channels = 0;
  Matrices<F, T> u(scratch<T, struct WinogradKernel>(Matrices<F, T>::size(channels, outputs)), channels, outputs);
  if (y != nullptr) prefer_large_pages(y, batch * height * width * outputs);
  if (y != nullptr) transform_kernel<F>(kernel, Taps{channels, outputs, adjoint != 0}, u);
  const int64_t step = tiles_in_block<F, T>(channels + outputs, others != nullptr);
  const int64_t blocks = parts(tiling.count(), step), size = Matrices<F, T>::size(channels, other_channels);
  const int64_t copies = others == nullptr ? blocks : copies_of(size * sizeof(T), std::max<int64_t>(1, blocks));
  T* sums = others == nullptr ? nullptr : scratch<T, struct WinogradSums>(copies * size);
  if (others != nullptr && blocks == 0) std::fill_n(sums, size, T{0});
  parallel_jobs(copies, true, [&](int64_t copy) {
    Block<F, T> v{scratch<T, struct WinogradPatches>(Block<F, T>::size(channels, step)), channels, step};
    Block<F, T> m{scratch<T, struct WinogradResults>(Block<F, T>::size(outputs, step)), outputs, step};
    Block<F, T> x{scratch<T, struct WinogradOthers>(Block<F, T>::size(other_channels, step)), other_channels, step};
    const Matrices<F, T> own(sums + copy * (others == nullptr ? 0 : size), channels, other_channels);
    const int64_t first = copy * blocks / copies, last = (copy + 1) * blocks / copies;
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * step, count = std::min(step, tiling.count() - begin);
      const auto for_tiles = [&](const auto& visit) {
        Position<F> position(tiling, begin);
        for (int64_t i = 0; i < count; ++i, position.advance()) visit(i, position);
      };
      for_tiles([&](int64_t i, const Position<F>& p) { transform_patch(images, p, v, i); });
      if (others != nullptr) {
        for_tiles([&](int64_t i, const Position<F>& p) { transform_tile(others, p, x, i); });
        add_products(v, x, count, block > first, own);
      }
      if (y == nullptr) continue;
      multiply(v, u, m, count);
      for_tiles([&](int64_t i, const Position<F>& p) { finish_tile(m, i, epilogue, p, y); });
    }
  });
  if (others == nullptr) return;
  to_kernel(Matrices<F, T>(sums, channels, other_channels), copies, size,
            Taps{channels, other_channels, sums_adjoint != 0}, kernel_sums);
}

}  // namespace

FASTLIP_KERNEL(winograd4_float32, convolve<Filter<4>, float>);
FASTLIP_KERNEL(winograd2_float32, convolve<Filter<2>, float>);

}  // namespace fastlip::winograd
