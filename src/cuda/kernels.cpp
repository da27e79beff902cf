// src/cuda/kernels.cpp - a row of support.def without Traits in both rooms does not compile.
#include "cuda/kernels.hpp"

#include <algorithm>
#include <cstdlib>
#include <exactile/cuda/planner_params.hpp>
#include <exactile/cuda/sm80/traits.hpp>
#include <exactile/cuda/sm90/traits.hpp>
#include <exactile/support.def>
#include <stdexcept>

#include "base/policies.hpp"

namespace exactile::cuda {
namespace {

/// A row of support.def for this backend, with the shapes of its kernels.
struct Row {
  Dtype dtype;
  int32_t head_dim;
  int32_t head_dim_v;
  Shape shapes[kNumRooms][kNumMaskKinds];  // by Room, MaskKind
};

template <class Traits>
constexpr Shape shape_of_traits() {
  int32_t chunk = 0, box_n = 0;
  if constexpr (requires { Traits::kChunk; }) {
    chunk = Traits::kChunk;
    box_n = Traits::kBoxN;
  }
  return {.block_m = Traits::kBlockM,
          .block_n = Traits::kBlockN,
          .threads = Traits::kThreads,
          .shared_bytes = static_cast<int32_t>(Traits::kSharedBytes),
          .chunk = chunk,
          .box_n = box_n};
}

template <Dtype kDtype>
struct ElementOf;
template <>
struct ElementOf<Dtype::kFloat16> {
  using Type = Fp16;
};
template <>
struct ElementOf<Dtype::kBfloat16> {
  using Type = Bf16;
};

template <Backend kBackend, Dtype kDtype, int kHeadDim, int kHeadDimV>
void add_row(std::vector<Row>& rows) {
  if constexpr (kBackend == Backend::kCuda) {
    using Element = typename ElementOf<kDtype>::Type;
    constexpr auto kFull = MaskKind::kFull, kBorder = MaskKind::kBorder,
                   kPacked = MaskKind::kPacked;
    rows.push_back(
        {.dtype = kDtype,
         .head_dim = kHeadDim,
         .head_dim_v = kHeadDimV,
         .shapes = {{shape_of_traits<sm80::Traits<Element, kHeadDim, kHeadDimV, kFull>>(),
                     shape_of_traits<sm80::Traits<Element, kHeadDim, kHeadDimV, kBorder>>(),
                     shape_of_traits<sm80::Traits<Element, kHeadDim, kHeadDimV, kPacked>>()},
                    {shape_of_traits<sm90::Traits<Element, kHeadDim, kHeadDimV, kFull>>(),
                     shape_of_traits<sm90::Traits<Element, kHeadDim, kHeadDimV, kBorder>>(),
                     shape_of_traits<sm90::Traits<Element, kHeadDim, kHeadDimV, kPacked>>()}}});
  }
}

const std::vector<Row>& rows() {
  static const std::vector<Row> all = [] {
    std::vector<Row> rows;
#define EXACTILE_ROW(backend, dtype, head_dim, head_dim_v) \
  add_row<Backend::backend, Dtype::dtype, head_dim, head_dim_v>(rows);
    EXACTILE_SUPPORT(EXACTILE_ROW)
#undef EXACTILE_ROW
    return rows;
  }();
  return all;
}

constexpr const char* kMaskKindNames[kNumMaskKinds] = {"kFull", "kBorder", "kPacked"};

std::string traits_name(const KernelSpec& spec, const std::string& room) {
  return room + "Traits<exactile::cuda::" + (spec.dtype == Dtype::kFloat16 ? "Fp16" : "Bf16") +
         ", " + std::to_string(spec.head_dim) + ", " + std::to_string(spec.head_dim_v) +
         ", exactile::cuda::MaskKind::" + kMaskKindNames[static_cast<int>(spec.mask)] + ">";
}

}  // namespace

MaskKind mask_kind(const Mask& mask, bool packs_sequences) {
  if (packs_sequences) return MaskKind::kPacked;
  return mask.left < 0 && mask.right < 0 ? MaskKind::kFull : MaskKind::kBorder;
}

Shape shape_of(const KernelSpec& spec) {
  for (const Row& row : rows()) {
    if (row.dtype == spec.dtype && row.head_dim == spec.head_dim &&
        row.head_dim_v == spec.head_dim_v) {
      return row.shapes[static_cast<int>(spec.room)][static_cast<int>(spec.mask)];
    }
  }
  throw std::invalid_argument("exactile: cuda: no kernel for this dtype and head_dim");
}

jit::Program make_program(const KernelSpec& spec, const std::string& architecture) {
  const std::string room_name = kRoomNames[static_cast<int>(spec.room)];
  const std::string room = "exactile::cuda::" + room_name + "::";
  std::string source = "#include <exactile/cuda/" + room_name +
                       "/kernel.hpp>\n"
                       "#include <exactile/scheduler.hpp>\n";
  const PolicySource policy = policy_of(spec.scheduler, spec.user);
  source += policy.source;
  return {.source = std::move(source),
          .name_expression = room + "prefill_kernel<" + traits_name(spec, room) + ", " +
                             policy.name + ", exactile::cuda::" + name_of(spec.probe, kProbeNames) +
                             ">",
          .architecture = architecture};
}

std::optional<Room> room_from_environment() {
  const char* const wanted = std::getenv("EXACTILE_CUDA_ROOM");
  if (!wanted || !*wanted) return std::nullopt;
  return from_name<Room>(wanted, kRoomNames, "EXACTILE_CUDA_ROOM");
}

jit::Program planner_program(const std::string& architecture) {
  return {.source = "#include <exactile/cuda/planner.hpp>\n",
          .name_expression = "exactile::cuda::plan_tiles",
          .architecture = architecture};
}

Shape planner_shape() {
  return {.block_m = 0,
          .block_n = 0,
          .threads = kPlannerThreads,
          .shared_bytes = 0,  // its is static
          .chunk = 0,
          .box_n = 0};
}

std::vector<jit::Program> shipped_programs() {
  std::vector<KernelSpec> specs;
  for (const Row& row : rows()) {
    for (const Room room : {Room::kSm80, Room::kSm90}) {
      for (const MaskKind mask : {MaskKind::kFull, MaskKind::kBorder, MaskKind::kPacked}) {
        for (int scheduler = 0; scheduler < kNumSchedulers; ++scheduler) {
          // The planner packs unasked for some policies; others are compiled when they are asked
          // for.
          if (mask == MaskKind::kPacked && !packs(static_cast<SchedulerKind>(scheduler))) continue;
          specs.push_back({.room = room,
                           .dtype = row.dtype,
                           .head_dim = row.head_dim,
                           .head_dim_v = row.head_dim_v,
                           .mask = mask,
                           .scheduler = static_cast<SchedulerKind>(scheduler)});
        }
      }
    }
  }
  // What takes longest to compile first: workers that share them out end together.
  std::ranges::stable_sort(specs, std::ranges::greater{},
                           [](const KernelSpec& spec) { return spec.head_dim + spec.head_dim_v; });
  constexpr const char* kArchitectures[kNumRooms] = {"sm_80", "sm_90a"};
  std::vector<jit::Program> programs;
  for (const KernelSpec& spec : specs) {
    programs.push_back(make_program(spec, kArchitectures[static_cast<int>(spec.room)]));
  }
  for (const char* architecture : kArchitectures) programs.push_back(planner_program(architecture));
  return programs;
}

}  // namespace exactile::cuda
