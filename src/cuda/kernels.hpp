// src/cuda/kernels.hpp - which kernels there are: support.def's rows, their shapes, their sources.
#pragma once

#include <exactile/cuda/params.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/types.hpp"
#include "jit/nvrtc.hpp"

namespace exactile::cuda {

/// Kernels for one family of GPUs.
enum class Room : unsigned char { kSm80, kSm90 };
inline constexpr const char* kRoomNames[] = {"sm80", "sm90"};
inline constexpr int kNumRooms = std::size(kRoomNames);

/// What the host needs to know of a kernel's Traits.
struct Shape {
  int32_t block_m;
  int32_t block_n;
  int32_t threads;
  int32_t shared_bytes;
  int32_t chunk;  ///< columns of a TMA box and of its swizzle; 0 in rooms without TMA
  int32_t box_n;  ///< keys in a TMA box
};

/// exactile/cuda/probe.hpp, by the names of the types there.
enum class Probe : unsigned char { kNoProbe, kTimeline };
inline constexpr const char* kProbeNames[] = {"NoProbe", "Timeline"};
inline constexpr int kNumProbes = std::size(kProbeNames);

struct KernelSpec {
  Room room;
  Dtype dtype;
  int32_t head_dim;
  int32_t head_dim_v;
  MaskKind mask;
  SchedulerKind scheduler;
  const UserScheduler* user = nullptr;  ///< instead of `scheduler`, if given
  Probe probe = Probe::kNoProbe;        ///< any other is compiled when it is first asked for
};

/// What a kernel has to be told of a mask.
MaskKind mask_kind(const Mask& mask, bool packs_sequences);

/// Throws std::invalid_argument for what support.def does not list.
Shape shape_of(const KernelSpec& spec);

jit::Program make_program(const KernelSpec& spec, const std::string& architecture);

/// The kernel that plans on the device.
jit::Program planner_program(const std::string& architecture);
Shape planner_shape();

/// EXACTILE_CUDA_ROOM, for tests and comparisons: "sm80" or "sm90".
std::optional<Room> room_from_environment();

/// What the wheel ships, for sm_90a and for sm_80, which 8.6 and 8.9 run too: support.def's rows
/// under both kinds of mask and every scheduler, and the planner.
std::vector<jit::Program> shipped_programs();

}  // namespace exactile::cuda
