// src/base/used_pages.cpp - see used_pages.hpp.
#include "base/used_pages.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace exactile {

void check_page_numbers(std::span<const int32_t> used, int32_t sequence, int64_t num_pages) {
  const auto wrong =
      std::ranges::find_if(used, [&](int32_t page) { return page < 0 || page >= num_pages; });
  if (wrong == used.end()) return;
  throw std::invalid_argument(
      "varlen_prefill: expected block_table of pages from 0 to " + std::to_string(num_pages - 1) +
      ", of which k and v have " + std::to_string(num_pages) + ", got " + std::to_string(*wrong) +
      " at index (" + std::to_string(sequence) + ", " + std::to_string(wrong - used.begin()) + ")");
}

void check_used_pages(const Plan& plan, const PrefillArgs& args, std::span<const int32_t> seqused_k,
                      const ReadMemory& read) {
  const ArrayRef& table = *args.options.block_table;
  const int64_t columns = ceil_div(plan.max_len_k, plan.page_size);
  if (plan.batch() == 0 || columns == 0) return;
  // One copy of all rows and the gaps between them: a copy for each row takes far longer.
  const int64_t to_last = (plan.batch() - 1) * table.strides[0];
  const int64_t lowest = std::min<int64_t>(to_last, 0);
  std::vector<int32_t> copy(std::abs(to_last) + columns);
  read(copy.data(), static_cast<const int32_t*>(table.data) + lowest, copy.size() * sizeof copy[0]);
  for (int32_t b = 0; b < plan.batch(); ++b) {
    const int32_t keys = std::clamp(seqused_k[b], 0, plan.max_len_k);
    const int32_t* const row = copy.data() - lowest + b * table.strides[0];
    check_page_numbers({row, static_cast<std::size_t>(ceil_div(keys, plan.page_size))}, b,
                       args.k.shape[0]);
  }
}

}  // namespace exactile
