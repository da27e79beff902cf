// exactile/cuda/ptx80.hpp - the instructions of Ampere that the sm80 kernels are built from:
// mma.sync, ldmatrix, cp.async.
//
// Addresses in shared memory are 32-bit, from shared_address(). Letters of a fragment: lane l is
// group g = l / 4 and member t = l % 4.
#pragma once

#include <exactile/cuda/ptx.hpp>

namespace exactile::cuda::ptx {

// ---- mma.sync m16n8k16, fp32 accumulators
//   a[0] (g, 2t..2t+1)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)  rows of A
//   b0 (2t..2t+1, g)    b1 (2t + 8.., g)                                                 k, column
//   c[0], c[1] (g, 2t..2t+1)                c[2], c[3] (g + 8, 2t..2t+1)

/// c += a * b.
template <class Element>
EXACTILE_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (SameAs<Element, Bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(SameAs<Element, Fp16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// ---- ldmatrix: four 8x8 matrices of 16-bit elements. Lanes 8i .. 8i + 7 give the addresses of the
// 8 rows of matrix i, 16 bytes each; word i of a lane is (g, 2t..2t+1) of matrix i.

EXACTILE_DEVICE void load_matrices(uint32_t (&words)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

/// Word i of a lane is (2t..2t+1, g) of matrix i.
EXACTILE_DEVICE void load_matrices_transposed(uint32_t (&words)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// ---- cp.async: 16 bytes from global to shared memory, both aligned to 16.

/// Zeros, and no access to global memory, where the source does not exist.
EXACTILE_DEVICE void copy_async(uint32_t to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0)
               : "memory");
}

/// Ends a group of this thread's copies.
EXACTILE_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most kPending of this thread's latest groups are under way. Other threads' copies
/// need a barrier as well.
template <int kPending>
EXACTILE_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- shared memory

EXACTILE_DEVICE void store_shared(uint32_t to, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}

EXACTILE_DEVICE void load_shared(uint32_t (&words)[4], uint32_t from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
}

}  // namespace exactile::cuda::ptx
