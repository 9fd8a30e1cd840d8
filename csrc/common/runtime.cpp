#include "common/parallel.h"
#include "common/registry.h"

namespace fastlip {

namespace {
ParallelFor parallel_for_function = nullptr;
}

void set_parallel_for(ParallelFor loop) { parallel_for_function = loop; }
ParallelFor get_parallel_for() { return parallel_for_function; }

std::vector<Kernel>& registry() {
  static std::vector<Kernel> kernels;
  return kernels;
}

}  // namespace fastlip
