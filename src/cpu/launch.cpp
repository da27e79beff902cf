// src/cpu/launch.cpp - a checked plan and its arrays -> Params, threads, the instruction set's
// kernel.
#include "cpu/launch.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/launch_params.hpp"
#include "base/used_pages.hpp"
#include "cpu/kernels.hpp"
#include "cpu/thread_pool.hpp"

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
/// What -march=x86-64-v3 may use. clang 15 does not know the level by its name.
bool has_x86_64_v3() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  if (!(c >> 22 & 1) || !(c >> 29 & 1)) return false;                           // MOVBE, F16C
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c >> 5 & 1)) return false;  // LZCNT
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool has_x86_64_v4() {
  return has_x86_64_v3() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

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
  if (isa == "avx512_bf16") return has_x86_64_v4() && __builtin_cpu_supports("avx512bf16");
  if (isa == "avx512") return has_x86_64_v4();
  if (isa == "avx2") return has_x86_64_v3();
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

/// The best table, or the one that EXACTILE_CPU_ISA names.
const KernelTable& choose_kernel_table() {
  const auto tables = tables_that_run_here();
  const char* const wanted = std::getenv("EXACTILE_CPU_ISA");
  if (!wanted || !*wanted) return *tables.front();
  std::string list;
  for (const KernelTable* table : tables) {
    if (std::string_view(table->isa) == wanted) return *table;
    list += (list.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::invalid_argument("EXACTILE_CPU_ISA: expected one of " + list + ", got '" + wanted +
                              "'");
}

}  // namespace

/// Chosen once. Not a static of the function: a process that forks meanwhile would leave the guard
/// of that locked in its child.
const KernelTable& kernel_table() {
  static constinit std::atomic<const KernelTable*> chosen{nullptr};
  if (!chosen) chosen = &choose_kernel_table();
  return *chosen;
}

namespace {

/// Working memory of one thread, kept from launch to launch.
class ThreadBuffer {
 public:
  /// `launch`: another number for each launch; what the memory holds from another one is emptied.
  void* get(int64_t bytes, int64_t launch) {
    if (size_ < bytes) {
      constexpr int64_t kPage = 4096;
      const int64_t rounded = (bytes + kPage - 1) / kPage * kPage;
      clear();
      memory_.reset(std::aligned_alloc(kPage, rounded));
      if (!memory_) throw std::bad_alloc();
      size_ = rounded;
    }
    if (launch_ != launch) *static_cast<Staged*>(memory_.get()) = {};
    launch_ = launch;
    return memory_.get();
  }

  /// Frees what is too large to be kept: copies of K and V for sequences beyond 100,000 keys.
  void clear_if_large() {
    constexpr int64_t kKeptBytes = 64 << 20;
    if (size_ > kKeptBytes) clear();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  void clear() {
    memory_.reset();
    size_ = launch_ = 0;
  }

  std::unique_ptr<void, Free> memory_;
  int64_t size_ = 0, launch_ = 0;
};
thread_local ThreadBuffer thread_buffer;

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

/// The pages that the plan's sequences use, each of them there: (batch, row_stride). A copy, since
/// another thread may write the caller's table.
struct UsedPages {
  std::vector<int32_t> pages;
  int64_t row_stride = 0;

  UsedPages(const Plan& plan, const PrefillArgs& args) {
    if (!plan.is_paged()) return;
    const ArrayRef& table = *args.options.block_table;
    row_stride = ceil_div(plan.max_len_k, plan.page_size);
    pages.resize(plan.batch() * row_stride);
    for (int32_t b = 0; b < plan.batch(); ++b) {
      const int32_t used = ceil_div(plan.seqused_k[b], plan.page_size);
      const auto* const from = static_cast<const int32_t*>(table.data) + b * table.strides[0];
      int32_t* const to = pages.data() + b * row_stride;
      std::copy_n(from, used, to);
      check_page_numbers({to, static_cast<std::size_t>(used)}, b, args.k.shape[0]);
    }
  }
};

PrefillParams make_params(const Plan& plan, const PrefillArgs& args, const UsedPages& used) {
  PrefillParams params{};
  static_cast<CommonParams&>(params) = common_params(plan, args, plan.cu_seqlens_q.data());
  params.pages.pages = used.pages.data();
  params.pages.row_stride = used.row_stride;
  params.head_dim = plan.head_dim;
  params.head_dim_v = plan.head_dim_v;
  params.max_len_k = plan.max_len_k;
  params.stream_out = streams(plan, args.out);
  return params;
}

/// The tiles of one launch, which threads take from a shared counter.
class Launch {
 public:
  Launch(const Plan& plan, const PrefillArgs& args)
      : plan_(plan),
        used_pages_(plan, args),
        params_(make_params(plan, args, used_pages_)),
        walk_(args.extras.walk),
        work_group_(kernels_of(plan).work_group[static_cast<int>(kernel_of(plan))]),
        scratch_bytes_(kernels_of(plan).scratch_bytes(params_)),
        grid_(schedule_params<PaddedGrid>(plan, host_lists(plan))),
        list_(schedule_params<CompactList>(plan, host_lists(plan))) {}

  /// Run::compute.
  bool compute(const Turn& turn) {
    void* const buffer = thread_buffer.get(scratch_bytes_, id_);
    const bool more = plan_.user_scheduler           ? take_walks(turn, buffer)
                      : has_counter(plan_.scheduler) ? walk_list(turn, buffer)
                                                     : take_work_groups(turn, buffer);
    if (!more) thread_buffer.clear_if_large();
    return more;
  }

 private:
  /// The counter runs past the end by one for each turn that finds it there.
  bool walk_list(const Turn& turn, void* buffer) {
    const auto more = [&] { return std::atomic_ref(counter_) < list_.num_tiles(); };
    if (!more()) return false;
    const ResumableList schedule{
        .counted = CountedList(list_, &counter_, kNeverReset),
        .is_over = [](const void* t) { return static_cast<const Turn*>(t)->is_over(); },
        .turn = &turn};
    work_group_(params_, &schedule, 0, buffer);
    return more();
  }

  static const ElementKernels& kernels_of(const Plan& plan) {
    return kernel_table().of[static_cast<int>(plan.dtype)];
  }

  /// What a user's own policy has walked is computed tile by tile, each by a work-group of the
  /// shipped policy of the same order.
  static SchedulerKind kernel_of(const Plan& plan) {
    if (!plan.user_scheduler) return plan.scheduler;
    return has_list(plan.scheduler) ? SchedulerKind::kValidOnlyIndividual
                                    : SchedulerKind::kIndividual;
  }

  const void* schedule_of_one_tile() const {
    if (has_list(plan_.scheduler)) return &list_;
    return &grid_;
  }

  /// The tiles of a work-group stay with the thread that has begun it. The caller alone leaves one
  /// half done, since it comes back.
  bool take_walks(const Turn& turn, void* buffer) {
    Walk walk = turn.is_callers() ? std::exchange(callers_, {}) : Walk{};
    while (true) {
      for (; walk.next < walk.end; ++walk.next) {
        if (turn.has_failed()) return false;
        if (turn.is_callers() && turn.is_over()) {
          callers_ = walk;
          return true;
        }
        work_group_(params_, schedule_of_one_tile(), walk_.tiles[walk.next], buffer);
      }
      if (turn.is_over()) return true;
      const int64_t index = next_work_group_++;
      if (index >= plan_.launched) return false;
      walk = {.next = walk_.begins[index], .end = walk_.begins[index + 1]};
    }
  }

  bool take_work_groups(const Turn& turn, void* buffer) {
    const void* const schedule = schedule_of_one_tile();
    while (!turn.is_over()) {
      const int64_t index = next_work_group_++;
      if (index >= plan_.launched) return false;
      work_group_(params_, schedule, static_cast<int32_t>(index), buffer);
    }
    return true;
  }

  static inline constinit std::atomic<int64_t> launches{0};
  /// Walks begin anew with every turn, so no work-group can tell that it is the last and reset the
  /// counter; and the counter is not used again.
  static constexpr int32_t kNeverReset = std::numeric_limits<int32_t>::max();

  /// Of WalkedTiles::tiles, those of a work-group that are not computed.
  struct Walk {
    int32_t next = 0, end = 0;
  };

  const Plan& plan_;
  const UsedPages used_pages_;
  const PrefillParams params_;
  const WalkedTiles walk_;
  const WorkGroupFn work_group_;
  const int64_t scratch_bytes_;
  const PaddedGrid grid_;
  const CompactList list_;
  const int64_t id_ = ++launches;
  Walk callers_;
  alignas(64) int32_t counter_ = 0;
  alignas(64) std::atomic<int64_t> next_work_group_{0};
};

}  // namespace

void launch(const Plan& plan, const PrefillArgs& args) {
  Launch launch(plan, args);
  run_on_threads({.threads = static_cast<int>(std::min<int64_t>(plan.workers, plan.launched)),
                  .compute = [&](const Turn& turn) { return launch.compute(turn); },
                  .check = args.extras.check});
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
  return std::clamp<int>(std::thread::hardware_concurrency(), 1, kMaxThreads);
}

}  // namespace exactile::cpu
