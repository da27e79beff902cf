// exactile/platform.hpp - what every header needs: integer types, function attributes, two atomics.
//
// Everything under include/exactile/ compiles under g++, clang, nvcc, NVRTC and the SYCL runtime
// compiler, so nothing here includes a vendor header or a header of the C++ standard library.
#pragma once

#if !defined(__cplusplus) || __cplusplus < 202002L
#error "exactile: expected C++20 (-std=c++20; g++ 11, clang 15, nvcc 12.4 or newer)"
#endif

// Functions are always inlined: the CPU backend compiles these headers once per instruction set,
// and an out-of-line copy made with AVX-512 could be linked into code for older processors.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define EXACTILE_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define EXACTILE_HOST_DEVICE inline __attribute__((always_inline))
#else
#define EXACTILE_HOST_DEVICE inline
#endif

namespace exactile {

using int32_t = int;
#if defined(__INT64_TYPE__)
using int64_t = __INT64_TYPE__;  // the same type as std::int64_t
#else
using int64_t = long long;
#endif
static_assert(sizeof(int32_t) == 4 && sizeof(int64_t) == 8);

namespace detail {
template <class A, class B>
inline constexpr bool kIsSame = false;
template <class A>
inline constexpr bool kIsSame<A, A> = true;
}  // namespace detail

/// `requires { { expr } -> SameAs<T>; }` without <concepts>.
template <class A, class B>
concept SameAs = detail::kIsSame<A, B>;

template <class T>
EXACTILE_HOST_DEVICE constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
EXACTILE_HOST_DEVICE constexpr T max(T a, T b) {
  return a < b ? b : a;
}

/// ceil(a / b) for a >= 0, b > 0, without overflow.
template <class T>
EXACTILE_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0);
}

/// Adds to a counter that all workers share; returns the value before.
EXACTILE_HOST_DEVICE constexpr int32_t fetch_add(int32_t* counter, int32_t value) {
  if (__builtin_is_constant_evaluated()) {
    const int32_t before = *counter;
    *counter += value;
    return before;
  }
#if defined(__CUDA_ARCH__)
  return atomicAdd(counter, value);
#else
  return __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
#endif
}

/// Sets a counter that workers share.
EXACTILE_HOST_DEVICE constexpr void store(int32_t* counter, int32_t value) {
  if (__builtin_is_constant_evaluated()) {
    *counter = value;
    return;
  }
#if defined(__CUDA_ARCH__)
  *static_cast<volatile int32_t*>(counter) = value;  // PTX: as st.relaxed, and a store for SASS
#else
  __atomic_store_n(counter, value, __ATOMIC_RELAXED);
#endif
}

}  // namespace exactile
