// A parallel loop on the caller's thread pool (torch's own), so that no second pool spins beside it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastlip {

using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);

// The loop to use; null means run serially.
void set_parallel_for(ParallelFor loop);
ParallelFor get_parallel_for();

// Calls body(begin, end) on disjoint ranges that cover [0, size); no range is shorter than grain unless it is
// the last. The split depends on the number of threads: a body must not depend on it for its results.
template <class Body>
void parallel_for(int64_t size, int64_t grain, const Body& body) {
  if (size <= 0) return;
  const ParallelFor loop = get_parallel_for();
  if (loop == nullptr || size <= grain) {
    body(int64_t{0}, size);
    return;
  }
  loop(
      0, size, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The grain of a loop whose items each move so many numbers through memory.
inline int64_t grain_of(int64_t elements) {
  constexpr int64_t kElements = 1 << 15;
  return std::max<int64_t>(1, kElements / std::max<int64_t>(1, elements));
}

// Calls visit(i, j) for all i < outer and j < inner, each of which moves so many numbers.
template <class Visit>
void parallel_pairs(int64_t outer, int64_t inner, int64_t elements, const Visit& visit) {
  parallel_for(outer * inner, grain_of(elements), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) visit(pair / inner, pair % inner);
  });
}

// Calls body(job) once for each job in [0, count), whichever thread is free taking the next: for jobs of unequal cost.
template <class Body>
void parallel_jobs(int64_t count, bool parallel, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(count, parallel ? 1 : count, [&](int64_t, int64_t) {
    for (int64_t job = next.fetch_add(1); job < count; job = next.fetch_add(1)) body(job);
  });
}

}  // namespace fastlip
