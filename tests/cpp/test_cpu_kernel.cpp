// tests/cpp/test_cpu_kernel.cpp - the CPU kernel as a header, without Python, against float64.
//
// Compiled for whatever processor the compiler targets: this is how other architectures are tested.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exactile/cpu/kernel.hpp>
#include <exactile/scheduler/individual.hpp>
#include <random>
#include <vector>

#include "check.hpp"

namespace exactile::cpu {
namespace {

constexpr int kHeadsQ = 4, kHeadsKv = 2, kHeadDim = 64;

template <class Element>
void from_float(float value, Element& x) {
  Element lanes[kLanes];
  from_floats(lanes, splat(value));
  x = lanes[0];
}

/// Random values that Element holds exactly.
template <class Element>
std::vector<Element> draw(std::mt19937& engine, int size) {
  std::vector<Element> values(size);
  std::uniform_int_distribution<int> step(-16, 16);
  for (int i = 0; i < size; i += kLanes) {
    Floats x;
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = static_cast<float>(step(engine)) / 8;
    from_floats(values.data() + i, x);
  }
  return values;
}

template <class Element>
struct Batch {
  std::vector<int32_t> cu_q, cu_k;
  std::vector<Element> q, k, v, out;
  std::vector<float> lse;
  Mask mask;
  double softcap = 0;              // 0: none
  std::vector<float> slopes = {};  // (sequences or 1, kHeadsQ), or empty
  std::vector<float> sinks = {};   // (kHeadsQ,), or empty
};

/// Largest error of a row's output and LSE against float64.
template <class Element>
double error_of_row(const Batch<Element>& batch, int sequence, int token, int head) {
  const int k_begin = batch.cu_k[sequence], len_k = batch.cu_k[sequence + 1] - k_begin;
  const KeyRange keys = batch.mask.visible(batch.cu_q[sequence + 1] - token, len_k);
  const auto row_of = [](int row, int heads, int h) { return (row * heads + h) * kHeadDim; };
  const int position = len_k - (batch.cu_q[sequence + 1] - token);
  const bool same_slopes = batch.slopes.size() == kHeadsQ;
  const bool has_sink = !batch.sinks.empty();
  double sum = has_sink ? std::exp(double{batch.sinks[head]}) : 0, values[kHeadDim] = {};
  for (int n = keys.begin; n < keys.end; ++n) {
    const int at = row_of(k_begin + n, kHeadsKv, head / (kHeadsQ / kHeadsKv));
    double score = 0;
    for (int d = 0; d < kHeadDim; ++d) {
      score +=
          double{to_float(batch.q[row_of(token, kHeadsQ, head) + d])} * to_float(batch.k[at + d]);
    }
    score /= std::sqrt(double{kHeadDim});
    if (batch.softcap > 0) score = batch.softcap * std::tanh(score / batch.softcap);
    if (!batch.slopes.empty()) {
      const double slope = batch.slopes[(same_slopes ? 0 : sequence * kHeadsQ) + head];
      score -= slope * std::abs(n - position);
    }
    const double p = std::exp(score);
    sum += p;
    for (int d = 0; d < kHeadDim; ++d) values[d] += p * to_float(batch.v[at + d]);
  }
  const float lse = batch.lse[head * batch.cu_q.back() + token];
  double error = sum == 0 ? (std::isinf(lse) && lse < 0 ? 0 : 1) : std::abs(lse - std::log(sum));
  for (int d = 0; d < kHeadDim; ++d) {
    const double want = sum == 0 ? 0 : values[d] / sum;
    const double got = to_float(batch.out[row_of(token, kHeadsQ, head) + d]);
    error = std::isnan(got) ? INFINITY : std::max(error, std::abs(got - want));
  }
  return error;
}

/// K and V of a batch in pages, which lie in any order. All that no key has is NaN.
template <class Element>
struct Pages {
  int32_t size;
  int32_t pages_per_row = 0;
  std::vector<int32_t> table, used;  // entries without a page are -1
  std::vector<Element> k, v;

  Pages(const Batch<Element>& batch, int32_t page_size) : size(page_size) {
    const int sequences = static_cast<int>(batch.cu_k.size()) - 1;
    int32_t count = 0;
    for (int b = 0; b < sequences; ++b) {
      used.push_back(batch.cu_k[b + 1] - batch.cu_k[b]);
      count += ceil_div(used[b], size);
      pages_per_row = max(pages_per_row, ceil_div(used[b], size) + 1);
    }
    table.assign(sequences * pages_per_row, -1);
    const int page_elements = size * kHeadsKv * kHeadDim;
    k.resize((count + 2) * page_elements);
    for (Element& x : k) from_float(NAN, x);
    v = k;
    int32_t next = count;  // from the last page on
    for (int b = 0; b < sequences; ++b) {
      for (int n = 0; n < used[b]; ++n) {
        int32_t& page = table[b * pages_per_row + n / size];
        if (n % size == 0) page = next--;
        const int to = page * page_elements + n % size * kHeadsKv * kHeadDim;
        const int from = (batch.cu_k[b] + n) * kHeadsKv * kHeadDim;
        for (int i = 0; i < kHeadsKv * kHeadDim; ++i) {
          k[to + i] = batch.k[from + i];
          v[to + i] = batch.v[from + i];
        }
      }
    }
  }
};

template <class Element>
void run(Batch<Element>& batch, bool pack_gqa, const Pages<Element>* pages = nullptr) {
  using KernelTraits = Traits<Element>;
  const auto packed = [](auto* data, int heads) {
    return Tensor<decltype(data)>{data, int64_t{heads} * kHeadDim, kHeadDim};
  };
  const auto input = [&](const std::vector<Element>& x, int heads) {
    return packed(static_cast<const void*>(x.data()), heads);
  };
  const int sequences = static_cast<int>(batch.cu_q.size()) - 1;
  int32_t max_len_q = 0, max_len_k = 0;
  for (int b = 0; b < sequences; ++b) {
    max_len_q = max(max_len_q, batch.cu_q[b + 1] - batch.cu_q[b]);
    max_len_k = max(max_len_k, batch.cu_k[b + 1] - batch.cu_k[b]);
  }
  const int group = kHeadsQ / kHeadsKv, tile_heads = pack_gqa ? group : 1;
  PrefillParams params{};
  static_cast<CommonParams&>(params) = {
      .q = input(batch.q, kHeadsQ),
      .k = {input(batch.k, kHeadsKv)},
      .v = {input(batch.v, kHeadsKv)},
      .out = packed(static_cast<void*>(batch.out.data()), kHeadsQ),
      .lse = batch.lse.data(),
      .lse_head_stride = batch.cu_q.back(),
      .group = group,
      .tile_heads = tile_heads,
      .tile_heads_inverse = ceil_div(1 << 16, tile_heads),
      .tile_tokens = kBlockM / tile_heads,
      .scale_log2 = 1.44269504f / 8,
      .mask = batch.mask,
      .scores = {.softcap = static_cast<float>(8 * batch.softcap),
                 .softcap_inverse = static_cast<float>(1 / (8 * batch.softcap)),
                 .scale_inverse = 8,
                 .batch = static_cast<int32_t>(batch.slopes.size()) / kHeadsQ,
                 .alibi_slopes = batch.slopes.empty() ? nullptr : batch.slopes.data(),
                 .alibi_batch_stride = kHeadsQ,
                 .cu_seqlens_q = batch.cu_q.data(),
                 .sinks = batch.sinks.empty() ? nullptr : batch.sinks.data()},
  };
  if (pages) {
    params.k = {input(pages->k, kHeadsKv), int64_t{pages->size} * kHeadsKv * kHeadDim};
    params.v = {input(pages->v, kHeadsKv), int64_t{pages->size} * kHeadsKv * kHeadDim};
    params.pages = {
        .pages = pages->table.data(), .row_stride = pages->pages_per_row, .page_size = pages->size};
  }
  params.head_dim = params.head_dim_v = kHeadDim;
  params.max_len_k = max_len_k;
  const PaddedGrid grid{.cu_seqlens_q = batch.cu_q.data(),
                        .cu_seqlens_k = pages ? nullptr : batch.cu_k.data(),
                        .batch = sequences,
                        .num_heads = kHeadsQ / tile_heads,
                        .max_m_blocks = num_m_blocks(max_len_q, params.tile_tokens),
                        .tile_tokens = params.tile_tokens,
                        .seqused_k = pages ? pages->used.data() : nullptr};
  const std::size_t bytes = (Scratch<KernelTraits>::bytes(params) + 63) / 64 * 64;
  void* const buffer = std::aligned_alloc(64, bytes);
  *static_cast<Staged*>(buffer) = {};
  for (int32_t i = 0; i < Individual::num_work_groups(grid, 1); ++i) {
    prefill_kernel<KernelTraits, Individual>(params, grid, i, buffer);
  }
  std::free(buffer);
}

template <class Element>
Batch<Element> make_batch(Mask mask, const std::vector<int32_t>& cu_q,
                          const std::vector<int32_t>& cu_k) {
  std::mt19937 engine(7);
  const int row_size_q = kHeadsQ * kHeadDim, row_size_kv = kHeadsKv * kHeadDim;
  return {.cu_q = cu_q,
          .cu_k = cu_k,
          .q = draw<Element>(engine, cu_q.back() * row_size_q),
          .k = draw<Element>(engine, cu_k.back() * row_size_kv),
          .v = draw<Element>(engine, cu_k.back() * row_size_kv),
          .out = draw<Element>(engine, cu_q.back() * row_size_q),
          .lse = std::vector<float>(cu_q.back() * kHeadsQ),
          .mask = mask};
}

template <class Element>
Batch<Element> make_batch(Mask mask) {
  return make_batch<Element>(mask, {0, 5, 5, 140, 141, 205}, {0, 9, 13, 100, 101, 165});
}

template <class Element>
void check_against_float64(Batch<Element> batch, bool pack_gqa, double tolerance) {
  run(batch, pack_gqa);
  double error = 0;
  for (int b = 0; b + 1 < static_cast<int>(batch.cu_q.size()); ++b) {
    for (int token = batch.cu_q[b]; token < batch.cu_q[b + 1]; ++token) {
      for (int h = 0; h < kHeadsQ; ++h) {
        error = std::max(error, error_of_row(batch, b, token, h));
      }
    }
  }
  EXACTILE_CHECK(error <= tolerance,
                 "error " << error << ", element of " << sizeof(Element) << " bytes, window ("
                          << batch.mask.left << ", " << batch.mask.right << "), packed " << pack_gqa
                          << ", softcap " << batch.softcap << ", slopes " << batch.slopes.size()
                          << ", sinks " << batch.sinks.size());
}

/// Every combination of what a variant of the scores does, none of it too.
template <class Element>
void check_scores(Mask mask, bool pack_gqa, double tolerance) {
  const std::vector<float> slopes{0.5f, 0.25f, 0.0f, 0.0625f};
  std::vector<float> slopes_of_sequences;
  for (int b = 0; b < 5; ++b) {
    for (const float slope : slopes) slopes_of_sequences.push_back(slope * static_cast<float>(b));
  }
  // The third is all that counts, at -inf there is none.
  const std::vector<float> sinks{0.5f, -2.0f, 200.0f, -INFINITY};
  for (const double softcap : {0.0, 0.7, 30.0, 1e6}) {
    for (const auto& slope : {std::vector<float>{}, slopes, slopes_of_sequences}) {
      for (const auto& sink : {std::vector<float>{}, sinks}) {
        Batch<Element> batch = make_batch<Element>(mask);
        batch.softcap = softcap;
        batch.slopes = slope;
        batch.sinks = sink;
        check_against_float64(batch, pack_gqa, tolerance);
      }
    }
  }
}

/// Keys in pages give the bits that keys one after the other give.
template <class Element>
void check_pages(const Batch<Element>& batch, bool pack_gqa) {
  Batch<Element> whole = batch, paged = batch;
  run(whole, pack_gqa);
  for (const int32_t page_size : {1, 3, 16, 64, 100, 256}) {
    const Pages<Element> pages(batch, page_size);
    run(paged, pack_gqa, &pages);
    const bool same =
        std::memcmp(whole.out.data(), paged.out.data(), whole.out.size() * sizeof(Element)) == 0 &&
        whole.lse == paged.lse;
    EXACTILE_CHECK(same, "pages of " << page_size << ", element of " << sizeof(Element)
                                     << " bytes, packed " << pack_gqa);
  }
}

/// Inf and NaN in V at a sequence's last key change no bit of the rows that do not see it.
template <class Element>
void check_hidden_poison(bool pack_gqa) {
  Batch<Element> clean = make_batch<Element>({.left = -1, .right = 0}), dirty = clean;
  for (int b = 0; b < 5; ++b) {
    const int last = (clean.cu_k[b + 1] - 1) * kHeadsKv * kHeadDim;
    for (int i = 0; i < kHeadsKv * kHeadDim; ++i) {
      from_float(i % 2 == 0 ? NAN : INFINITY, dirty.v[last + i]);
    }
  }
  run(clean, pack_gqa);
  run(dirty, pack_gqa);
  const int row_size = kHeadsQ * kHeadDim;
  for (int b = 0; b < 5; ++b) {
    for (int i = clean.cu_q[b] * row_size; i < clean.cu_q[b + 1] * row_size; ++i) {
      const bool sees = i >= (clean.cu_q[b + 1] - 1) * row_size;
      const bool same = std::memcmp(&clean.out[i], &dirty.out[i], sizeof(Element)) == 0;
      EXACTILE_CHECK(sees ? !is_finite(dirty.out[i]) : same,
                     "sequence " << b << ", element " << i << " of " << sizeof(Element)
                                 << " bytes, packed " << pack_gqa);
    }
  }
}

}  // namespace
}  // namespace exactile::cpu

int main() {
  using namespace exactile;
  for (const Mask mask : {Mask{}, Mask{.left = -1, .right = 0}, Mask{.left = 40, .right = 3}}) {
    for (const bool pack_gqa : {false, true}) {
      cpu::check_against_float64(cpu::make_batch<float>(mask), pack_gqa, 1e-5);
      cpu::check_against_float64(cpu::make_batch<Fp16>(mask), pack_gqa, 2e-3);
      cpu::check_against_float64(cpu::make_batch<Bf16>(mask), pack_gqa, 1.6e-2);
      cpu::check_pages(cpu::make_batch<float>(mask), pack_gqa);
      cpu::check_pages(cpu::make_batch<Fp16>(mask), pack_gqa);
      cpu::check_pages(cpu::make_batch<Bf16>(mask), pack_gqa);
      cpu::check_scores<float>(mask, pack_gqa, 2e-5);
      cpu::check_scores<Fp16>(mask, pack_gqa, 2e-3);
      cpu::check_scores<Bf16>(mask, pack_gqa, 1.6e-2);
    }
  }
  // Several groups of key blocks.
  const std::vector<int32_t> rows{0, 70, 72}, keys{0, 2500, 7000};
  for (const Mask mask : {Mask{.left = -1, .right = 0}, Mask{.left = 2100, .right = 0}}) {
    cpu::check_against_float64(cpu::make_batch<float>(mask, rows, keys), false, 1e-5);
    cpu::check_against_float64(cpu::make_batch<Fp16>(mask, rows, keys), false, 2e-3);
    cpu::check_against_float64(cpu::make_batch<Bf16>(mask, rows, keys), false, 1.6e-2);
  }
  for (const bool pack_gqa : {false, true}) {
    cpu::check_hidden_poison<float>(pack_gqa);
    cpu::check_hidden_poison<Fp16>(pack_gqa);
    cpu::check_hidden_poison<Bf16>(pack_gqa);
  }
  return test::report();
}
