// exactile/cuda/ptx.hpp - PTX instructions that have no C++ form. The CUDA kernels' inline assembly
// is here, in ptx80.hpp and in wgmma.hpp.
//
// Addresses in shared memory are 32-bit, from shared_address(). The PTX ISA manual is the
// reference; comments note what it leaves out.
#pragma once

#include <exactile/cuda/params.hpp>

#define EXACTILE_DEVICE __device__ __forceinline__

namespace exactile::cuda::ptx {

using uint32_t = unsigned;

EXACTILE_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- mbarrier. A wait names the parity of the phase that it waits for; on a fresh barrier parity
// 1 passes at once. Scope is the work-group: cluster scope would invalidate L1 at every wait.

EXACTILE_DEVICE void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/// Makes the inits of this thread visible to the TMA unit; other threads need a barrier as well.
EXACTILE_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

EXACTILE_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Predicated, not branched: it stands in loops where a branch costs 20 to 40 cycles.
EXACTILE_DEVICE void mbarrier_arrive_if(bool condition, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %1, 0;\n"
      "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}" ::"r"(barrier),
      "r"(static_cast<int>(condition))
      : "memory");
}

EXACTILE_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

EXACTILE_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- TMA

EXACTILE_DEVICE void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Loads one box. Its full size in bytes is counted at the barrier, also where it lies outside.
EXACTILE_DEVICE void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier, int32_t x,
                              int32_t y, int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

EXACTILE_DEVICE void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier, int32_t x,
                              int32_t y, int32_t z, int32_t w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

/// Orders this thread's plain accesses to shared memory before later ones by TMA and wgmma.
EXACTILE_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- threads

template <int kRegisters>
EXACTILE_DEVICE void set_max_registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
EXACTILE_DEVICE void set_max_registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

EXACTILE_DEVICE void named_barrier_sync(int32_t barrier, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// A value that is equal in all lanes, in a form that the compiler knows to be so.
EXACTILE_DEVICE int32_t warp_uniform(int32_t value) {
  int32_t uniform;
  asm volatile("redux.sync.or.b32 %0, %1, 0xffffffff;" : "=r"(uniform) : "r"(value));
  return uniform;
}

/// threadIdx.x, in a form that nothing is computed from in advance: it would take registers.
EXACTILE_DEVICE int32_t thread_now() {
  int32_t index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

/// Nanoseconds, the same for all multiprocessors; ticks in steps that depend on the device.
EXACTILE_DEVICE int64_t global_timer_ns() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

/// Index of the multiprocessor that this work-group runs on.
EXACTILE_DEVICE int32_t multiprocessor() {
  int32_t index;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(index));
  return index;
}

// ---- grids and clusters: from sm_90 on. Before, they are empty: launches are ordered by the
// stream, and there are no clusters.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define EXACTILE_SM90_ASM(...) asm volatile(__VA_ARGS__)
#else
#define EXACTILE_SM90_ASM(...)
#endif

/// Waits until the grids that this one was launched behind have written their memory (programmatic
/// dependent launch); returns at once in any other launch.
EXACTILE_DEVICE void wait_for_previous_grids() {
  EXACTILE_SM90_ASM("griddepcontrol.wait;" :: : "memory");
}

/// Lets the next grid start to launch once all work-groups of this one have come here.
EXACTILE_DEVICE void grid_dependency_launch() {
  EXACTILE_SM90_ASM("griddepcontrol.launch_dependents;" :: : "memory");
}

EXACTILE_DEVICE void cluster_arrive() {
  EXACTILE_SM90_ASM("barrier.cluster.arrive.release.aligned;" :: : "memory");
}

/// After as many cluster_arrive(): all threads of the cluster have come, and what they wrote to
/// shared memory before is visible.
EXACTILE_DEVICE void cluster_wait() {
  EXACTILE_SM90_ASM("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

/// The word at `address` in the shared memory of a work-group of the cluster.
EXACTILE_DEVICE int32_t load_cluster_shared(uint32_t address, int32_t work_group) {
  int32_t word = 0;
  EXACTILE_SM90_ASM(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.s32 %0, [there];\n"
      "}" : "=r"(word) : "r"(address),
      "r"(work_group) : "memory");
  return word;
}

/// Keeps what `value` is computed from above this point: a branch that is never taken (value >= 0
/// or NaN). Without it ptxas moves the exponentials below the wait for a wgmma group, and nothing
/// is left to overlap with it.
EXACTILE_DEVICE void compute_before_here(float value) {
  if (value < -1.0f) asm volatile("nanosleep.u32 1;" ::: "memory");
}

// ---- arithmetic and memory

EXACTILE_DEVICE float exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

EXACTILE_DEVICE float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Relative error 1e-6.
EXACTILE_DEVICE float tanh(float x) {
  constexpr float kTwoLog2E = 2.88539008177792682f;
  // Near 0, where 1 - 2 / (e^2x + 1) would cancel, a polynomial in x^2.
  const float z = x * x;
  const float p = fmaf(fmaf(z, -17.0f / 315, 2.0f / 15), z, -1.0f / 3);
  const float near = fmaf(x * z, p, x);
  const float far = fmaf(-2.0f, reciprocal(1.0f + exp2(x * kTwoLog2E)), 1.0f);
  return fabsf(x) < 0.25f ? near : far;
}

EXACTILE_DEVICE float log2(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// What variants of the scores compute with (exactile/scores.hpp).
struct Math {
  EXACTILE_DEVICE static float tanh(float x) { return ptx::tanh(x); }
  EXACTILE_DEVICE static float exp2(float x) { return ptx::exp2(x); }
  /// Natural logarithm of sum * 2^(reference * scale_log2).
  EXACTILE_DEVICE static float lse(float reference, float scale_log2, float sum) {
    constexpr float kLn2 = 0.693147180559945309f;
    return (reference * scale_log2 + ptx::log2(sum)) * kLn2;
  }
};

/// The lowest `count` bits set, count >= 0; all of them from 32 on.
EXACTILE_DEVICE uint32_t low_bits(int32_t count) {
  uint32_t bits;
  asm("bmsk.clamp.b32 %0, 0, %1;" : "=r"(bits) : "r"(count));
  return bits;
}

EXACTILE_DEVICE float to_float(float x) { return x; }
EXACTILE_DEVICE float to_float(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
EXACTILE_DEVICE float to_float(Fp16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

/// Two floats, rounded, in one word; `low` in the lower half.
template <class Element>
EXACTILE_DEVICE uint32_t pack(float low, float high) {
  uint32_t result;
  if constexpr (SameAs<Element, Bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    static_assert(SameAs<Element, Fp16>);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

/// 16 bytes to global memory.
EXACTILE_DEVICE void store_global(void* to, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

/// 16 zero bytes to shared memory.
EXACTILE_DEVICE void store_shared_zero(uint32_t to) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
}

}  // namespace exactile::cuda::ptx
