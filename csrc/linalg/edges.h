// The smallest and the largest eigenvalue of a symmetric matrix, estimated by Lanczos' iteration.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/scratch.h"
#include "linalg/planar.h"
#include "linalg/probe.h"

namespace fastlip::linalg {

struct Edges {
  double lowest, highest;
};

constexpr int kLanczosSteps = 14;
constexpr double kMargin = 0.01;

// The number of eigenvalues below x of a tridiagonal matrix (Sturm): of negative pivots.
inline int count_below(const double* diagonal, const double* beside, int n, double x) {
  constexpr double kLeast = 1e-300;
  int count = 0;
  double pivot = 1;
  for (int i = 0; i < n; ++i) {
    pivot = diagonal[i] - x - (i > 0 ? beside[i - 1] * beside[i - 1] / pivot : 0);
    if (std::abs(pivot) < kLeast) pivot = -kLeast;
    count += pivot < 0;
  }
  return count;
}

// Its extreme eigenvalues, by bisection between Gershgorin's bounds.
inline Edges tridiagonal_edges(const double* diagonal, const double* beside, int n) {
  double low = diagonal[0], high = diagonal[0];
  for (int i = 0; i < n; ++i) {
    const double radius = (i > 0 ? std::abs(beside[i - 1]) : 0) + (i + 1 < n ? std::abs(beside[i]) : 0);
    low = std::min(low, diagonal[i] - radius);
    high = std::max(high, diagonal[i] + radius);
  }
  const auto bisect = [&](int below) {
    double from = low, to = high;
    for (int step = 0; step < 50; ++step) {
      const double middle = 0.5 * (from + to);
      (count_below(diagonal, beside, n, middle) < below ? from : to) = middle;
    }
    return 0.5 * (from + to);
  };
  return {bisect(1), bisect(n)};
}

// The extreme Ritz values, each moved outwards by what is still missing where they converge as 1 / steps², the slowest
// way of an edge of many eigenvalues: by the last change times the number of steps, and by a hundredth of the range.
// Eigenvalues that stand alone are found to rounding. The start has entries of both signs and no two of one size, so that
// no simple vector is missed. product(x, y) adds the matrix times x to y, vectors of `size` numbers of which n count.
template <class T, class Product>
Edges edges_of(const Product& product, int64_t n, int64_t size) {
  T *before = scratch<T, Edges>(3 * size), *now = before + size, *next = now + size;
  std::fill_n(before, 3 * size, T{0});
  fill_signs(now, n);
  double square = 0;
  for (int64_t i = 0; i < n; ++i) {
    now[i] *= static_cast<T>(0.5 + std::fmod(i * 0.6180339887498949, 1.0));
    square += static_cast<double>(now[i]) * now[i];
  }
  for (int64_t i = 0; i < n; ++i) now[i] /= static_cast<T>(std::sqrt(square));
  double diagonal[kLanczosSteps], beside[kLanczosSteps] = {};
  const int most = static_cast<int>(std::min<int64_t>(kLanczosSteps, n));
  int steps = 0;
  while (true) {
    std::fill_n(next, size, T{0});
    product(static_cast<const T*>(now), next);
    double along = 0;
    for (int64_t i = 0; i < n; ++i) along += static_cast<double>(now[i]) * next[i];
    diagonal[steps] = along;
    const double last = steps > 0 ? beside[steps - 1] : 0;
    double rest = 0;
    for (int64_t i = 0; i < n; ++i) {
      next[i] -= static_cast<T>(along) * now[i] + static_cast<T>(last) * before[i];
      rest += static_cast<double>(next[i]) * next[i];
    }
    beside[steps++] = std::sqrt(rest);
    // What remains is rounding: the vectors so far span all that the start has a part in.
    if (steps == most || !(beside[steps - 1] > 1e-5 * std::abs(along))) break;
    for (int64_t i = 0; i < n; ++i) next[i] /= static_cast<T>(beside[steps - 1]);
    std::swap(before, now);
    std::swap(now, next);
  }
  const Edges found = tridiagonal_edges(diagonal, beside, steps);
  if (steps < 2) return found;
  const Edges fewer = tridiagonal_edges(diagonal, beside, steps - 1);
  const double range = kMargin * (found.highest - found.lowest);
  return {found.lowest - steps * (fewer.lowest - found.lowest) - range,
          found.highest + steps * (found.highest - fewer.highest) + range};
}

template <class T>
Edges edges(const Planar<T, false>& matrix, int64_t n) {
  return edges_of<T>([&](const T* x, T* y) { add_product(matrix, n, T{1}, x, y); }, n, vector_size(matrix));
}

}  // namespace fastlip::linalg
