// The derivative of the loss with respect to the tiles of v, from the signs that the forward kept.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gram_rowsum/geometry.h"
#include "gram_rowsum/tile.h"

namespace fastlip::gram_rowsum {

// factors[δ][j][i] = sign(v[i,j,δ]) (E_ij + E_ji).
template <class T>
void signed_factors(const T* gradient, const T* psi, const uint32_t* signs, const Geometry& geometry, int64_t group,
                    int64_t i, int64_t j, T* factors) {
  const int64_t rows = geometry.width(j), columns = geometry.width(i), base = group * geometry.channels;
  T factor[kTileSize];
  const TileVector<T> gradient_i(gradient + base + i * kTile, columns), gradient_j(gradient + base + j * kTile, rows);
  const TileVector<T> psi_i(psi == nullptr ? psi : psi + base + i * kTile, columns);
  const TileVector<T> psi_j(psi == nullptr ? psi : psi + base + j * kTile, rows);
  gradient_factor(gradient_i.value, gradient_j.value, psi == nullptr ? nullptr : &psi_i, &psi_j, rows, columns, factor);
  const uint32_t* words = signs + geometry.sign_begin(group, std::min(i, j), std::max(i, j));
  const int64_t planes = geometry.width(std::min(i, j)), first = geometry.first_offset(i == j);
  for (int64_t offset = 0; offset < geometry.offsets; ++offset) {
    const int64_t opposite = geometry.offsets - 1 - offset;
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

}  // namespace fastlip::gram_rowsum
