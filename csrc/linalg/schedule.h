// How threads share a batch of matrices.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/parallel.h"

namespace fastlip::linalg {

// Whether the threads share each matrix, and how many matrices make a job.
struct Schedule {
  bool inside;
  bool parallel;
  int64_t job;

  Schedule(int64_t batch, int64_t rows, int64_t n) {
    const int64_t cost = rows * n * n + 1, least = 64 * 1024;
    inside = batch < 4 && n >= 96;
    parallel = !inside && batch * cost > 2 * least;
    job = cost < least ? least / cost : 1;
  }

  template <class Body>
  void run(int64_t batch, const Body& body) const {
    parallel_jobs((batch + job - 1) / job, parallel, [&](int64_t index) {
      for (int64_t i = index * job; i < std::min(batch, (index + 1) * job); ++i) body(i);
    });
  }
};

}  // namespace fastlip::linalg
