// src/cpu/launch.cpp - a checked plan and its arrays -> Params, threads, the instruction set's
// kernel.
#include "launch.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../launch_params.hpp"
#include "kernels.hpp"
#include "thread_pool.hpp"

namespace exactile::cpu {

// One table per instruction set that CMake built kernels.cpp for, best first.
#define EXACTILE_ISA(name)               \
  namespace name {                       \
  extern const KernelTable kKernelTable; \
  }
EXACTILE_CPU_ISAS
#undef EXACTILE_ISA

namespace {

#if defined(__x86_64__)
/// The processor has AMX for bf16, and the kernel of the system lets this process use its state.
bool has_amx_bf16() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;         // AMX-BF16, AMX-TILE
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool runs_here(std::string_view isa) {
#if defined(__x86_64__)
  if (isa == "amx_bf16") return runs_here("avx512_bf16") && has_amx_bf16();
  if (isa == "avx512_bf16") {
    return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16");
  }
  if (isa == "avx512") return __builtin_cpu_supports("x86-64-v4");
  if (isa == "avx2") return __builtin_cpu_supports("x86-64-v3");
#endif
  return isa == "baseline";
}

std::vector<const KernelTable*> tables_that_run_here() {
  std::vector<const KernelTable*> tables;
#define EXACTILE_ISA(name) \
  if (runs_here(#name)) tables.push_back(&name::kKernelTable);
  EXACTILE_CPU_ISAS
#undef EXACTILE_ISA
  return tables;
}

/// The best table, or the one that EXACTILE_CPU_ISA names. Chosen once.
const KernelTable& kernel_table() {
  static const KernelTable& chosen = *[] {
    const auto tables = tables_that_run_here();
    const char* const wanted = std::getenv("EXACTILE_CPU_ISA");
    if (!wanted || !*wanted) return tables.front();
    std::string list;
    for (const KernelTable* table : tables) {
      if (std::string_view(table->isa) == wanted) return table;
      list += (list.empty() ? "" : ", ") + std::string(table->isa);
    }
    throw std::invalid_argument("EXACTILE_CPU_ISA: expected one of " + list + ", got '" + wanted +
                                "'");
  }();
  return chosen;
}

/// Working memory of the calling thread, grown on need, freed with the thread. `launch`: another
/// number for each launch; the first call with it empties what the memory holds.
void* thread_buffer(int64_t bytes, int64_t launch) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local int64_t size = 0, last_launch = 0;
  if (size < bytes) {
    constexpr int64_t kPage = 4096;
    const int64_t rounded = (bytes + kPage - 1) / kPage * kPage;
    buffer.reset(std::aligned_alloc(kPage, rounded));
    size = buffer ? rounded : 0;
    if (!buffer) throw std::bad_alloc();
  }
  if (last_launch != launch) *static_cast<Staged*>(buffer.get()) = {};
  last_launch = launch;
  return buffer.get();
}

/// Output that is far larger than a core's cache is written past it, where every row is made of
/// whole cache lines: 1.1-1.3x on 512 sequences of 34.
bool streams(const Plan& plan, const ArrayRef& out) {
  constexpr int64_t kFarLarger = 8 << 20;
  const int64_t bytes = dtype_bytes(plan.dtype);
  const auto whole_lines = [&](int64_t size) { return size * bytes % 64 == 0; };
  return int64_t{plan.total_q()} * plan.num_heads_q * plan.head_dim_v * bytes >= kFarLarger &&
         reinterpret_cast<uintptr_t>(out.data) % 64 == 0 && whole_lines(plan.head_dim_v) &&
         whole_lines(out.strides[0]) && whole_lines(out.strides[1]);
}

PrefillParams make_params(const Plan& plan, const PrefillArgs& args) {
  auto params = common_params<PrefillParams>(plan, args);
  params.head_dim = plan.head_dim;
  params.head_dim_v = plan.head_dim_v;
  params.max_len_k = plan.max_len_k;
  params.stream_out = streams(plan, args.out);
  return params;
}

}  // namespace

void launch(const Plan& plan, const PrefillArgs& args) {
  const KernelTable& kernels = kernel_table();
  const int dtype = static_cast<int>(plan.dtype);
  const PrefillParams params = make_params(plan, args);
  const PaddedGrid grid = padded_grid(plan, plan.cu_seqlens_q.data(), plan.cu_seqlens_k.data());
  const CompactList list = compact_list(plan, plan.records.get());
  alignas(64) int32_t counter = 0;
  const CountedList persistent = counted_list(plan, list, &counter);
  // A work-group of a user's own policy is a row of those that compute one tile of the same order.
  const WalkedTiles& walk = args.walk;
  SchedulerKind scheduler = plan.scheduler;
  if (plan.user_scheduler && scheduler == SchedulerKind::kValidOnlyPersistent) {
    scheduler = SchedulerKind::kValidOnlyIndividual;
  }
  const void* const schedule = scheduler == SchedulerKind::kIndividual ? &grid
                               : scheduler == SchedulerKind::kValidOnlyIndividual
                                   ? static_cast<const void*>(&list)
                                   : &persistent;
  const WorkGroupFn work_group = kernels.work_group[dtype][static_cast<int>(scheduler)];
  const int64_t bytes = kernels.scratch_bytes[dtype](params);
  static std::atomic<int64_t> launches{0};
  const int64_t launch = ++launches;
  for_each_work_group(plan.workers, plan.launched, [&](int64_t index) {
    void* const buffer = thread_buffer(bytes, launch);
    if (!plan.user_scheduler) {
      return work_group(params, schedule, static_cast<int32_t>(index), buffer);
    }
    for (int32_t i = walk.begins[index]; i < walk.begins[index + 1]; ++i) {
      work_group(params, schedule, walk.tiles[i], buffer);
    }
  });
}

std::string isa() { return kernel_table().isa; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables_that_run_here()) names.emplace_back(table->isa);
  return names;
}

int hardware_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace exactile::cpu
