// src/base/run_args.hpp - what a plan is run with: arrays, and options of the run. Data alone.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/dlpack.hpp"

namespace exactile {

/// Where an array lies, in the numbering of DLPack.
struct Device {
  int type;
  int id;
  bool operator==(const Device&) const = default;
};

/// "CPU", "CUDA", ...: DLPack's type of a device, for messages.
std::string device_name(int type);
/// "CPU", "CUDA 0".
std::string to_string(const Device& device);

inline constexpr int kMaxRank = 4;

/// An array as the caller gave it. Strides in elements. Behind its rank the shape is 1.
struct ArrayRef {
  void* data;
  int rank;
  std::array<int64_t, kMaxRank> shape;
  std::array<int64_t, kMaxRank> strides;
  Dtype dtype;
  Device device;

  bool has_elements() const {
    return std::ranges::all_of(shape, [](int64_t size) { return size > 0; });
  }
  int64_t head_dim() const { return shape[rank - 1]; }
};

/// Tiles of a user's own policy, walked beforehand, by work-group. The CPU launches them.
struct WalkedTiles {
  std::span<const int32_t> begins;  ///< (launched + 1,): where a work-group's tiles begin
  std::span<const int32_t> tiles;   ///< (valid,): indices of the plan's TileOrder
};

/// Options of a run; src/python/run_options.cpp reads it.
struct RunOptions {
  double softmax_scale = 1;
  double softcap = 0;                         ///< of the scaled scores; 0: none
  std::optional<ArrayRef> sinks = {};         ///< float32 (num_heads_q,)
  std::optional<ArrayRef> alibi_slopes = {};  ///< float32 (num_heads_q,) or (batch, num_heads_q)
  std::optional<ArrayRef> block_table = {};   ///< int32 (batch, max_pages); with Plan::page_size
  float* lse = nullptr;  ///< (num_heads_q, rows of q), contiguous, on the arrays' device; or null

  /// CUDA: handle of the stream; 0: the default stream. SYCL: address of the sycl::queue.
  uint64_t stream = 0;
};

/// Not options of the caller's: for tests, and for the bindings.
struct RunExtras {
  void* timeline = nullptr;        ///< CUDA, for tests: PrefillParams::timeline, or null
  int64_t timeline_bytes = 0;      ///< of the memory there
  int32_t* work_groups = nullptr;  ///< SYCL, for tests: PrefillParams::work_groups
  /// CPU: called on the caller's thread between tiles, twenty times a second; may throw, which ends
  /// the run. Or null.
  void (*check)() = nullptr;
  WalkedTiles walk = {};  ///< CPU: where the plan has a user's own policy
  /// Where a backend keeps arrays until its kernels are done: lets them go, on any thread.
  std::shared_ptr<void> arrays = nullptr;
};

struct PrefillArgs {
  ArrayRef q;    ///< (total_q or more, num_heads_q, head_dim)
  ArrayRef k;    ///< (total_k or more, num_heads_kv, head_dim), or with Plan::page_size
                 ///< (num_pages, page_size, num_heads_kv, head_dim)
  ArrayRef v;    ///< likewise, of head_dim_v
  ArrayRef out;  ///< (rows of q, num_heads_q, head_dim_v)
  RunOptions options;
  RunExtras extras = {};
};

}  // namespace exactile
