// Row sums and signs, one square of tiles of the Gram operator after another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gram_rowsum/geometry.h"
#include "gram_rowsum/pack.h"
#include "gram_rowsum/tile.h"

namespace fastlip::gram_rowsum {

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
        square(job / per_group, index - others, index - others, side_);
      } else {
        for (; index >= squares - 1 - i; ++i) index -= squares - 1 - i;
        square(job / per_group, i, i + 1 + index, side_);
      }
    });
    add_partial_sums();
  }

  // Every tile of a square of side x side tiles, from panels that are packed once.
  void square(int64_t group, int64_t square_i, int64_t square_j, int64_t side) {
    const int64_t tile_size = geometry_.offsets * kTileSize, panel_size = geometry_.taps * rows_ * kTile;
    T* v = scratch<T, struct ForwardTiles>(side * side * tile_size);
    T* left = scratch<T, struct ForwardPanels>(2 * side * panel_size);
    T* right = square_i == square_j ? left : left + side * panel_size;
    for (int64_t first = 0; first < geometry_.outputs; first += rows_) {
      const int64_t count = std::min(rows_, geometry_.outputs - first);
      pack_tiles(group, square_i, side, first, count, left);
      if (square_i != square_j) pack_tiles(group, square_j, side, first, count, right);
      for_each_tile(square_i, square_j, side, [&](int64_t i, int64_t j, int64_t position) {
        const T *a = left + position / side * panel_size, *b = right + position % side * panel_size;
        for (int64_t offset = geometry_.first_offset(i == j); offset < geometry_.offsets; ++offset) {
          multiply<T, 1, kTile>(v + position * tile_size + offset * kTileSize, a, b, overlaps_, offset, count,
                                geometry_.width(i), geometry_.width(j), first > 0);
        }
      });
    }
    for_each_tile(square_i, square_j, side, [&](int64_t i, int64_t j, int64_t position) {
      reduce(group, i, j, v + position * tile_size);
    });
  }

  // The part of the row sums that a tile gives, from Σ_δ |v_δ|; on the diagonal from |v_0| and Σ_{δ>0} |v_δ|.
  void add_tile(int64_t group, int64_t i, int64_t j, const T* sums, T* center) {
    const int64_t rows = geometry_.width(i), columns = geometry_.width(j);
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

  void add_partial_sums() {
    for (int64_t group = 0; group < geometry_.groups && geometry_.tiles > 1; ++group) {
      T* r = r_ + group * geometry_.channels;
      std::copy_n(sum_of(group, 0, 0), geometry_.channels, r);
      for (int64_t other = 1; other < geometry_.tiles; ++other) {
        const T* sum = sum_of(group, other, 0);
        for (int64_t i = 0; i < geometry_.channels; ++i) r[i] += sum[i];
      }
    }
  }

 private:
  static constexpr int64_t kPanelElements = 27 * 256;
  static constexpr int64_t kSquareElements = 128 * 1024;

  // Calls visit(tile i, tile j, position in the square) for the tiles i <= j of a square.
  template <class Visit>
  void for_each_tile(int64_t square_i, int64_t square_j, int64_t side, const Visit& visit) const {
    for (int64_t i = 0; i < side; ++i) {
      for (int64_t j = 0; j < side; ++j) {
        const int64_t tile_i = square_i * side + i, tile_j = square_j * side + j;
        if (tile_i <= tile_j && tile_j < geometry_.tiles) visit(tile_i, tile_j, i * side + j);
      }
    }
  }

  void pack_tiles(int64_t group, int64_t square, int64_t side, int64_t first, int64_t count, T* panel) const {
    const T* source = weight_ + (group * geometry_.outputs + first) * stride_.output;
    const int64_t end = std::min(geometry_.tiles, (square + 1) * side);
    for (int64_t i = square * side; i < end; ++i, panel += geometry_.taps * rows_ * kTile) {
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
    add_tile(group, i, j, sums, center);
  }

  // Where the sums over the channels of tile `other` go, for the channels of a tile.
  T* sum_of(int64_t group, int64_t other, int64_t tile) {
    T* target = geometry_.tiles > 1 ? partial_.data() : r_;
    return target + (group * geometry_.tiles + other) * geometry_.channels + tile * kTile;
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

}  // namespace fastlip::gram_rowsum
