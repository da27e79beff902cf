// exactile/cuda/wgmma.hpp - Hopper's warpgroup matrix multiply: D (64, N) += A (64, 16) B (16, N).
//
// D lies in registers: of every 8 columns a lane holds columns 2 (lane % 4) + {0, 1} of row
// lane / 4 (d[4 i], d[4 i + 1]) and of row lane / 4 + 8 (d[4 i + 2], d[4 i + 3]) of its warp's 16
// rows. Two such groups of columns, packed in pairs, are the A fragment of the next product.
#pragma once

#include <exactile/cuda/ptx.hpp>

namespace exactile::cuda {

/// Orders register and shared-memory accesses before the wgmmas that follow. ptxas needs one
/// before each group that follows a branch, or it serialises them all (warning C7520).
EXACTILE_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

EXACTILE_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most kPending groups are under way.
template <int kPending>
EXACTILE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Tells the compiler that these registers change here: a wgmma in flight reads and writes them.
template <int kCount>
EXACTILE_DEVICE void touch(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

/// Tells it that they get their first value here: none is kept for them from before.
template <int kCount>
EXACTILE_DEVICE void make_fresh(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "=f"(registers[i])::"memory");
}

/// Matrix descriptors for 16-bit operands that TMA has laid out in chunks of kChunk columns with
/// the swizzle of that width: (column chunk, row, kChunk). The upper word is a constant; the lower
/// one is the address in units of 16 bytes, which steps through the matrix by addition.
template <int kChunk>
struct Swizzled {
  static_assert(kChunk == 64 || kChunk == 32);
  static constexpr int kRowBytes = 2 * kChunk;
  static constexpr ptx::uint32_t kLayout = kChunk == 64 ? 1 : 2;  // 128-byte or 64-byte swizzle
  /// Bits 32.. of the descriptor: bytes from 8 rows to the next 8, and the layout.
  static constexpr ptx::uint32_t kUpper = kLayout << 30 | (8 * kRowBytes) >> 4;

  /// Descriptor steps for `rows` rows, for `columns` columns within a chunk.
  EXACTILE_DEVICE static constexpr int rows(int rows) { return rows * kRowBytes >> 4; }
  EXACTILE_DEVICE static constexpr int columns(int columns) { return columns * 2 >> 4; }

  /// The 16 columns that a product sums over lie along a row (Q, K).
  EXACTILE_DEVICE static ptx::uint32_t along_row(ptx::uint32_t address) {
    return (address & 0x3ffff) >> 4 | 1 << 16;
  }
  /// The 16 rows that a product sums over lie across (V): bits 16.. say how far chunks are apart.
  EXACTILE_DEVICE static ptx::uint32_t across_rows(ptx::uint32_t address, int matrix_rows) {
    return (address & 0x3ffff) >> 4 | rows(matrix_rows) << 16;
  }
};

/// One product with N = kN columns; `upper` words are Swizzled<>::kUpper.
///   from_shared:     A and B in shared memory, along rows; D is overwritten or added to.
///   from_registers:  A in registers, B in shared memory across rows; D is added to.
template <class Element, int kN>
struct Wgmma;

// Register lists. EXACTILE_REGS_n: "%0, ..., %n-1"; EXACTILE_OUTS_n: their operands, d[0, n).

#define EXACTILE_OUTS(i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define EXACTILE_REGS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define EXACTILE_REGS_16 EXACTILE_REGS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define EXACTILE_REGS_24 EXACTILE_REGS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define EXACTILE_REGS_32 EXACTILE_REGS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define EXACTILE_REGS_40 EXACTILE_REGS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define EXACTILE_REGS_48 EXACTILE_REGS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define EXACTILE_REGS_56 EXACTILE_REGS_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define EXACTILE_REGS_64 EXACTILE_REGS_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define EXACTILE_REGS_72 EXACTILE_REGS_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define EXACTILE_REGS_80 EXACTILE_REGS_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define EXACTILE_REGS_88 EXACTILE_REGS_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define EXACTILE_REGS_96 EXACTILE_REGS_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define EXACTILE_REGS_104 EXACTILE_REGS_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define EXACTILE_REGS_112 EXACTILE_REGS_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define EXACTILE_REGS_120 EXACTILE_REGS_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define EXACTILE_REGS_128 EXACTILE_REGS_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define EXACTILE_OUTS_8 EXACTILE_OUTS(0)
#define EXACTILE_OUTS_16 EXACTILE_OUTS_8, EXACTILE_OUTS(8)
#define EXACTILE_OUTS_24 EXACTILE_OUTS_16, EXACTILE_OUTS(16)
#define EXACTILE_OUTS_32 EXACTILE_OUTS_24, EXACTILE_OUTS(24)
#define EXACTILE_OUTS_40 EXACTILE_OUTS_32, EXACTILE_OUTS(32)
#define EXACTILE_OUTS_48 EXACTILE_OUTS_40, EXACTILE_OUTS(40)
#define EXACTILE_OUTS_56 EXACTILE_OUTS_48, EXACTILE_OUTS(48)
#define EXACTILE_OUTS_64 EXACTILE_OUTS_56, EXACTILE_OUTS(56)
#define EXACTILE_OUTS_72 EXACTILE_OUTS_64, EXACTILE_OUTS(64)
#define EXACTILE_OUTS_80 EXACTILE_OUTS_72, EXACTILE_OUTS(72)
#define EXACTILE_OUTS_88 EXACTILE_OUTS_80, EXACTILE_OUTS(80)
#define EXACTILE_OUTS_96 EXACTILE_OUTS_88, EXACTILE_OUTS(88)
#define EXACTILE_OUTS_104 EXACTILE_OUTS_96, EXACTILE_OUTS(96)
#define EXACTILE_OUTS_112 EXACTILE_OUTS_104, EXACTILE_OUTS(104)
#define EXACTILE_OUTS_120 EXACTILE_OUTS_112, EXACTILE_OUTS(112)
#define EXACTILE_OUTS_128 EXACTILE_OUTS_120, EXACTILE_OUTS(120)

// clang-format off
// n columns, n / 2 registers of D, the numbers of the operands that follow them.
#define EXACTILE_WGMMA_OF(Element, type, n, regs, i0, i1, i2, i3, i4, i5)                          \
  template <>                                                                                      \
  struct Wgmma<Element, n> {                                                                       \
    template <ptx::uint32_t kUpper>                                                                \
    EXACTILE_DEVICE static void from_shared(float (&d)[regs], ptx::uint32_t a, ptx::uint32_t b,    \
                                            bool accumulate) {                                     \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                     \
          "mov.b64 da, {%" #i0 ", %" #i3 "};\nmov.b64 db, {%" #i1 ", %" #i3 "};\n"                 \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                          \
          " {" EXACTILE_REGS_##regs "}, da, db, p, 1, 1, 0, 0;\n}"                                 \
          : EXACTILE_OUTS_##regs                                                                   \
          : "r"(a), "r"(b), "r"(static_cast<int>(accumulate)), "n"(kUpper));                       \
    }                                                                                              \
    template <ptx::uint32_t kUpper>                                                                \
    EXACTILE_DEVICE static void from_registers(float (&d)[regs], const ptx::uint32_t* a,           \
                                               ptx::uint32_t b) {                                  \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\n.reg .b64 db;\nsetp.ne.b32 p, 1, 0;\n"                                \
          "mov.b64 db, {%" #i4 ", %" #i5 "};\n"                                                    \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                          \
          " {" EXACTILE_REGS_##regs "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3                      \
          "}, db, p, 1, 1, 1;\n}"                                                                  \
          : EXACTILE_OUTS_##regs                                                                   \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kUpper));                      \
    }                                                                                              \
  };

#define EXACTILE_WGMMA(...)                       \
  EXACTILE_WGMMA_OF(Fp16, "f16", __VA_ARGS__)     \
  EXACTILE_WGMMA_OF(Bf16, "bf16", __VA_ARGS__)

EXACTILE_WGMMA(48, 24, 24, 25, 26, 27, 28, 29)
EXACTILE_WGMMA(64, 32, 32, 33, 34, 35, 36, 37)
EXACTILE_WGMMA(80, 40, 40, 41, 42, 43, 44, 45)
EXACTILE_WGMMA(96, 48, 48, 49, 50, 51, 52, 53)
EXACTILE_WGMMA(112, 56, 56, 57, 58, 59, 60, 61)
EXACTILE_WGMMA(128, 64, 64, 65, 66, 67, 68, 69)
EXACTILE_WGMMA(256, 128, 128, 129, 130, 131, 132, 133)
// clang-format on

#undef EXACTILE_WGMMA
#undef EXACTILE_WGMMA_OF

}  // namespace exactile::cuda
