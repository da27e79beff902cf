// exactile/cpu/micro_kernel_amx.hpp - the two matrix products on Intel's tile registers (AMX).
//
// One instruction multiplies A (16 x 32 bf16) with B (16 pairs x 16 columns) into C (16 x 16 fp32).
// With lanes as query rows all three lie in memory as the vector kernels have them, except V:
//   scores: A = K[key][d], B = Q[d pair][P],  C = S[key][P]
//   values: A = V[d][key], B = S[key pair][P], C = O[d][P]
// C is 2 x 2 tiles (registers 0-3), A is 4 and 5, B is 6 and 7: one load for each multiplication.
#pragma once

#include <exactile/cpu/micro_kernel.hpp>

#if defined(__AMX_BF16__)
namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

template <class Traits>
struct MicroKernel<Traits, Product::kBf16Tile> {
  using Operand = OperandOf<Product::kBf16Tile>;
  using Scalar = unsigned;
  using Vector = Words;
  using Broadcast = BroadcastOf<Scalar>;
  static constexpr int kPanel = Traits::kVectors * kLanes;
  static constexpr int kKeyStep = 32;
  static_assert(Traits::kVectors == 2);

  /// Tile shapes are state of the thread, and other libraries set it too: once per work-group.
  struct Session {
    EXACTILE_INLINE Session() {
      struct alignas(64) {
        unsigned char palette = 1, start_row = 0, reserved[14] = {};
        unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } shapes;
      _tile_loadconfig(&shapes);
    }
    EXACTILE_INLINE ~Session() { _tile_release(); }
  };

  template <int kVecs, class Between>
  EXACTILE_INLINE static void scores(const Broadcast& k, const Scalar* q, int k_steps, int num_keys,
                                     float* s, Between between) {
    for (int key = 0; key < num_keys; key += 32) {
      between();
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      multiply<kVecs>(k.data + key * k.row_stride, k.row_stride, q, k_steps);
      store_tiles<kVecs>(s + key * kPanel);
    }
  }

  template <int kVecs, class Between>
  EXACTILE_INLINE static void values(const Broadcast& v, const Scalar* p, int k_steps,
                                     int head_dim_v, const Floats (&alpha)[kVecs], bool fresh,
                                     float* o, Between between) {
    if (!fresh) rescale<kVecs>(head_dim_v, alpha, o);
    for (int d = 0; d < head_dim_v; d += 32) {
      between();
      if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      } else {
        load_tiles<kVecs>(o + d * kPanel);
      }
      multiply<kVecs>(v.data + d * v.row_stride, v.row_stride, p, k_steps);
      store_tiles<kVecs>(o + d * kPanel);
    }
  }

 private:
  static constexpr int kPitch = kPanel * 4;  // bytes

  /// C += A[0, 32) * B over k_steps pairs; `a_stride` in Scalars.
  template <int kVecs>
  EXACTILE_INLINE static void multiply(const Scalar* a, int64_t a_stride, const Scalar* b,
                                       int k_steps) {
    for (int k = 0; k < k_steps; k += 16) {
      _tile_loadd(6, b + k * kPanel, kPitch);
      _tile_loadd(4, a + k, a_stride * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a + 16 * a_stride + k, a_stride * 4);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kVecs == 2) {
        _tile_loadd(7, b + k * kPanel + kLanes, kPitch);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }

  template <int kVecs>
  EXACTILE_INLINE static void load_tiles(const float* c) {
    _tile_loadd(0, c, kPitch);
    _tile_loadd(2, c + 16 * kPanel, kPitch);
    if constexpr (kVecs == 2) {
      _tile_loadd(1, c + kLanes, kPitch);
      _tile_loadd(3, c + 16 * kPanel + kLanes, kPitch);
    }
  }

  template <int kVecs>
  EXACTILE_INLINE static void store_tiles(float* c) {
    _tile_stored(0, c, kPitch);
    _tile_stored(2, c + 16 * kPanel, kPitch);
    if constexpr (kVecs == 2) {
      _tile_stored(1, c + kLanes, kPitch);
      _tile_stored(3, c + 16 * kPanel + kLanes, kPitch);
    }
  }

  /// o *= alpha, left out where no row's maximum moved (a factor of exactly 1 changes no bit).
  template <int kVecs>
  EXACTILE_INLINE static void rescale(int head_dim_v, const Floats (&alpha)[kVecs], float* o) {
    bool moved = false;
    for (int v = 0; v < kVecs; ++v) {
      moved |= _mm512_cmpneq_ps_mask((__m512)alpha[v], _mm512_set1_ps(1.0f)) != 0;
    }
    if (!moved) return;
    for (int d = 0; d < head_dim_v; ++d) {
      for (int v = 0; v < kVecs; ++v) {
        float* const at = o + d * kPanel + v * kLanes;
        store(at, alpha[v] * load<Floats>(at));
      }
    }
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
#endif
