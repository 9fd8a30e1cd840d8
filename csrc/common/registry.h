// Kernels register themselves under a name; module.cpp binds every registered kernel to Python.
// A kernel is a function of pointers, int64_t and double only: no torch and no Python header is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastlip {

union Argument {
  void* pointer;
  int64_t integer;
  double real;
};

struct Kernel {
  const char* name;
  const char* kinds;  // one letter per argument: p(ointer), i(nteger), d(ouble)
  void (*call)(const Argument*);
};

std::vector<Kernel>& registry();

namespace detail {

template <class T>
constexpr char kind() {
  if constexpr (std::is_pointer_v<T>) {
    return 'p';
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return 'i';
  } else {
    static_assert(std::is_same_v<T, double>, "kernels take pointers, int64_t and double");
    return 'd';
  }
}

template <class T>
T get(const Argument& argument) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(argument.pointer);
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return argument.integer;
  } else {
    return argument.real;
  }
}

template <auto function>
struct Thunk;

template <class... Ts, void (*function)(Ts...)>
struct Thunk<function> {
  static constexpr char kinds[] = {kind<Ts>()..., '\0'};

  static void call(const Argument* arguments) { expand(arguments, std::index_sequence_for<Ts...>{}); }

  template <std::size_t... index>
  static void expand(const Argument* arguments, std::index_sequence<index...>) {
    function(get<Ts>(arguments[index])...);
  }
};

}  // namespace detail

struct Registration {
  Registration(const char* name, const char* kinds, void (*call)(const Argument*)) {
    registry().push_back({name, kinds, call});
  }
};

}  // namespace fastlip

// FASTLIP_KERNEL(maxmin_forward_f32, maxmin_forward<float>) makes the function callable from Python as
// maxmin_forward_f32. The second argument may contain commas.
#define FASTLIP_KERNEL(name, ...)                                                       \
  static const ::fastlip::Registration fastlip_register_##name {                        \
    #name, ::fastlip::detail::Thunk<&__VA_ARGS__>::kinds, ::fastlip::detail::Thunk<&__VA_ARGS__>::call \
  }
