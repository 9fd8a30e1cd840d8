// The steps by which singular values approach 1: dynamically weighted Halley iteration.
//
// x -> x (a + b x²) / (1 + c x²) with the weights of Nakatsukasa, Bai, Gygi, "Optimizing Halley's iteration for computing
// the matrix polar decomposition", SIAM J. Matrix Anal. Appl. 2010: the least value of [l, 1] becomes as large as
// possible. Each step converges cubically from every x > 0, so that no estimate of the singular values needs to be a
// bound: a wrong one costs steps.
#pragma once

#include <algorithm>
#include <cmath>

namespace fastlip::polar {

struct Weights {
  double a, b, c;
};

class Halley {
 public:
  // `spread` is the standard deviation of the squares of the singular values, whose mean is 1.
  explicit Halley(double spread) {
    if (spread < kNarrow) return;
    // The edges of the law of Marchenko and Pastur, which random matrices have: (1 ± spread)².
    largest_square_ = (1 + spread) * (1 + spread);
    lowest_ = std::max(1 - spread, 0.0) / (1 + spread);
  }

  // What to divide the squares by.
  double largest_square() const { return largest_square_; }

  Weights next() {
    const double l = std::clamp(lowest_, kLeast, 1.0), square = l * l;
    const double d = std::cbrt(4 * (1 - square) / (square * square)), root = std::sqrt(1 + d);
    const double a = root + 0.5 * std::sqrt(std::max(0.0, 8 - 4 * d + 8 * (2 - square) / (square * root)));
    const double b = (a - 1) * (a - 1) / 4, c = a + b - 1;
    lowest_ = l * (a + b * square) / (1 + c * square);
    ++steps_;
    return {a, b, c};
  }

  // With D = I - XᴴX of the step's result, ‖D‖² / tr D is near its largest eigenvalue, where few stand out.
  void look_at(double square_norm, double trace) {
    if (!(trace > 0)) return;
    const double largest = std::min({square_norm / trace, std::sqrt(square_norm), 1.0});
    lowest_ = std::min(lowest_, std::sqrt(1 - largest));
  }

  bool is_exhausted() const { return steps_ == kMostSteps; }

 private:
  static constexpr int kMostSteps = 9;
  static constexpr double kNarrow = 0.1;  // from the mean, one step suffices then
  static constexpr double kLeast = 0.1;  // smaller ones lose digits in I + cXᴴX
  double largest_square_ = 1;
  double lowest_ = 1;  // of singular values relative to the largest
  int steps_ = 0;
};

}  // namespace fastlip::polar
