// One factor P + (I - P) z of block_conv and its adjoint: products of panels, with the sums of taps in the same pass.
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_conv/layout.h"
#include "common/parallel.h"

namespace fastlip::block_conv {

constexpr int64_t kBlockRows = 32;   // of a product, for each pass over a strip of its right factor
constexpr int64_t kMaxLength = 128;  // of the sums of one pass: that part of a strip stays in the nearest cache

struct Taps {
  int64_t height;
  int64_t width;

  int64_t count() const { return height * width; }
  Taps longer(int64_t axis) const { return {height + 1 - axis, width + axis}; }
  // The taps along an axis as lines of neighbours: how many lines, how many taps in each.
  int64_t lines(int64_t axis) const { return axis ? height : width; }
  int64_t along(int64_t axis) const { return axis ? width : height; }
  int64_t tap(int64_t axis, int64_t line, int64_t t) const { return axis ? line * width + t : t * width + line; }
};

template <class T>
using Block = T[kBlockRows * kStrip<T>];

template <class T>
Part<T> block_part(T* block) {
  return {block, kStrip<T>, kStrip<T>};
}

// C[r, :] = Σ_l A[r, l] B[l, :], A from panels whose strips are `strip` apart, B one strip; whole tiles of rows.
template <class T, int vectors>
void multiply_vectors(T* c, const T* a, int64_t strip, const T* b, int64_t rows, int64_t length) {
  constexpr int64_t width = kStrip<T>, most = kMaxLength / width;
  PanelPair pairs[most];
  for (int64_t p = 0; p < most; ++p) pairs[p] = {p * strip, p * width * width};
  for (int64_t l = 0; l < length; l += kMaxLength) {
    const int64_t terms = std::min(kMaxLength, length - l), whole = terms / width, rest = terms % width;
    for (int64_t r = 0; r < rows; r += kPanelRows) {
      const T* left = a + l / width * strip + r * width;
      T* target = c + r * width;
      if (whole > 0) {
        multiply_panels<T, vectors, width, 1, width>(target, left, b + l * width, pairs, whole, width, l > 0);
      }
      if (rest > 0) {
        multiply_panels<T, vectors, width, 1, width>(target, left + whole * strip, b + (l + whole * width) * width,
                                                     pairs, 1, rest, l + whole > 0);
      }
    }
  }
}

template <class T>
void multiply(const Part<T>& c, const View<T>& a, int64_t tap, int64_t row, int64_t rows, const T* b, int64_t length,
              int64_t vectors) {
  const auto function = vectors == 2 ? multiply_vectors<T, 2> : multiply_vectors<T, 1>;
  function(c.data, a.at(tap, row, 0), a.strip, b, rows, length);
}

// How many of a block's rows there are: torch's layout has none to fill up tiles.
template <class T>
int64_t rows_of(const View<T>& view, int64_t begin, int64_t rows) {
  return std::min(rows, view.rows - begin);
}

// longer = [K P, 0] + [0, K - K P] along the axis, for K and P in panels.
template <class T>
void lengthen(const View<T>& K, const Taps& taps, int64_t axis, const View<T>& P, int64_t columns,
              const View<T>& longer) {
  const int64_t blocks = divide_up(K.rows, kBlockRows), lines = taps.lines(axis), n = taps.along(axis);
  const Taps more = taps.longer(axis);
  const bool parallel = taps.count() * K.rows * columns * columns >= kWorthThreads;
  const int64_t strips = divide_up(columns, kStrip<T>);
  parallel_jobs(lines * blocks * strips, parallel, [&](int64_t job) {
    const int64_t s = job % strips, begin = job / strips % blocks * kBlockRows, line = job / (strips * blocks);
    const int64_t vectors = vectors_of<T>(columns, s), rows = std::min(kBlockRows, K.rows - begin);
    Block<T> products[2];
    for (int64_t t = 0; t <= n; ++t) {
      const Part<T> product = block_part(products[t % 2]), before = block_part(products[1 - t % 2]);
      if (t < n) multiply(product, K, taps.tap(axis, line, t), begin, rows, P.at(0, 0, s), columns, vectors);
      const Part<T> to = longer.part(more.tap(axis, line, t), begin, s);
      const Part<T> from = K.part(taps.tap(axis, line, std::max<int64_t>(t - 1, 0)), begin, s);
      const int64_t written = rows_of(longer, begin, rows);
      if (t == 0) {
        for_vectors(written, vectors, [=](int64_t r, int64_t v) { to.store(r, v, product.load(r, v)); });
      } else if (t < n) {
        for_vectors(written, vectors, [=](int64_t r, int64_t v) {
          to.store(r, v, product.load(r, v) + (from.load(r, v) - before.load(r, v)));
        });
      } else {
        for_vectors(written, vectors,
                    [=](int64_t r, int64_t v) { to.store(r, v, from.load(r, v) - before.load(r, v)); });
      }
    }
  });
}

// The adjoint with D = G[t] - G[t + 1]: G' = G[t + 1] + D Pᵀ, and the gradient Σ Kᵀ D of P.
template <class T>
struct Shortening {
  View<T> G;         // of the longer kernel
  View<T> K;         // panels
  View<T> P;         // its transpose, in panels
  View<T> D;         // panels, room for the differences
  View<T> shorter;   // G'
  View<T> gradient;  // of P
  Taps taps;         // of K
  int64_t axis;
  int64_t columns;

  void run() const {
    const int64_t lines = taps.lines(axis), n = taps.along(axis), strips = divide_up(columns, kStrip<T>);
    const bool parallel = taps.count() * K.rows * columns * columns >= kWorthThreads;
    parallel_jobs(lines * n * strips, parallel,
                  [&](int64_t job) { subtract(job / n % lines, job % n, job / (lines * n)); });
    const int64_t sides = divide_up(strips, kSide), squares = sides * sides, blocks = divide_up(K.rows, kBlockRows);
    parallel_jobs(squares + lines * n * blocks * strips, parallel, [&](int64_t job) {
      if (job < squares) return accumulate(job % sides * kSide, job / sides * kSide);
      const int64_t block = (job - squares) / strips, tap = block / blocks;
      shorten(tap / n, tap % n, block % blocks * kBlockRows, (job - squares) % strips);
    });
  }

 private:
  static constexpr int64_t kSide = 2;

  // Of the taps of G, that which meets K P; the next meets K - K P.
  int64_t first(int64_t line, int64_t t) const { return taps.longer(axis).tap(axis, line, t); }

  void subtract(int64_t line, int64_t t, int64_t s) const {
    const Part<T> one = G.part(first(line, t), 0, s), next = G.part(first(line, t + 1), 0, s);
    const int64_t tap = taps.tap(axis, line, t), vectors = vectors_of<T>(columns, s);
    const Part<T> to = D.part(tap, 0, s), rest = D.part(tap, rows_of(G, 0, D.rows), s);
    for_vectors(rows_of(G, 0, D.rows), vectors,
                [=](int64_t r, int64_t v) { to.store(r, v, one.load(r, v) - next.load(r, v)); });
    for_vectors(D.rows - rows_of(G, 0, D.rows), vectors, [=](int64_t r, int64_t v) { rest.store(r, v, Lanes<T>{}); });
  }

  void shorten(int64_t line, int64_t t, int64_t begin, int64_t s) const {
    const int64_t vectors = vectors_of<T>(columns, s), rows = std::min(kBlockRows, D.rows - begin);
    const int64_t tap = taps.tap(axis, line, t);
    Block<T> memory;
    const Part<T> product = block_part(memory), to = shorter.part(tap, begin, s);
    const Part<T> next = G.part(first(line, t + 1), begin, s);
    multiply(product, D, tap, begin, rows, P.at(0, 0, s), columns, vectors);
    const int64_t written = rows_of(shorter, begin, rows), added = std::min(written, rows_of(G, begin, rows));
    for_vectors(added, vectors, [=](int64_t r, int64_t v) { to.store(r, v, next.load(r, v) + product.load(r, v)); });
    const Part<T> rest = shorter.part(tap, begin + added, s);
    for_vectors(written - added, vectors, [=](int64_t r, int64_t v) { rest.store(r, v, Lanes<T>{}); });
  }

  // A square of the gradient of P: the rows that belong to two strips of K, the columns of two strips of D. Each stays
  // in a near cache for the other's strips.
  void accumulate(int64_t first_strip, int64_t first_s) const {
    constexpr int64_t width = kStrip<T>;
    const int64_t length = taps.count() * K.rows, strips = divide_up(columns, width);
    const int64_t last_strip = std::min(first_strip + kSide, strips), last_s = std::min(first_s + kSide, strips);
    T sums[kSide][kSide][width * width] = {};
    for (int64_t l = 0; l < length; l += kMaxLength) {
      for (int64_t s = first_s; s < last_s; ++s) {
        for (int64_t strip = first_strip; strip < last_strip; ++strip) {
          const auto function = vectors_of<T>(columns, s) == 2 ? accumulate_panels<2> : accumulate_panels<1>;
          function(sums[strip - first_strip][s - first_s], K.at(0, l, strip), D.at(0, l, s),
                   std::min(width, columns - strip * width), std::min(kMaxLength, length - l));
        }
      }
    }
    for (int64_t s = first_s; s < last_s; ++s) {
      for (int64_t strip = first_strip; strip < last_strip; ++strip) {
        const Part<T> from = block_part(sums[strip - first_strip][s - first_s]);
        const Part<T> to = gradient.part(0, strip * width, s);
        for_vectors(std::min(width, columns - strip * width), vectors_of<T>(columns, s),
                    [=](int64_t r, int64_t v) { to.store(r, v, from.load(r, v)); });
      }
    }
  }

  template <int vectors>
  static void accumulate_panels(T* sum, const T* a, const T* b, int64_t rows, int64_t length) {
    const PanelPair pair = {0, 0};
    for (int64_t r = 0; r < rows; r += kPanelRows) {
      multiply_panels<T, vectors, 1, kStrip<T>, kStrip<T>>(sum + r * kStrip<T>, a + r, b, &pair, 1, length, true);
    }
  }
};

}  // namespace fastlip::block_conv
