// Memory that a thread keeps between calls, so that kernels do not pay for fresh pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastlip {

// An array of at least `size` elements, aligned to a cache line, with unspecified contents. It belongs to the calling
// thread and stays valid until that thread asks again with the same tag.
template <class T, class Tag>
T* scratch(int64_t size) {
  constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t capacity = 0;
  if (size > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(::operator new(static_cast<size_t>(size) * sizeof(T), kAlignment));
    capacity = size;
  }
  return static_cast<T*>(memory.get());
}

}  // namespace fastlip
