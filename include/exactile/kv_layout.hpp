// exactile/kv_layout.hpp - where the keys and values of a sequence lie. Every backend's kernels.
//
// A kernel's Traits name a layout, and its loads ask that layout alone:
//
//   Layout::Rows<Element> rows(tensor, pages, k_begin, kv_head);   // of K or V, of one sequence
//   rows[n]              // address of the row of key n, which exists
//   rows.stride()        // from a row to the next of a run, in elements
//   rows.is_run(n, end)  // whether keys [n, end) lie so; Layout::kOneRun: always
//
// Loads by TMA ask for coordinates instead of an address: cuda/sm90/pipeline.hpp of packed keys,
// cuda/sm90/page_loader.hpp of pages.
#pragma once

#include <exactile/platform.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

/// Which pages the keys of a sequence lie in; of PagedKv.
struct PageTable {
  const int32_t* pages = nullptr;  ///< (batch, row_stride): numbers of pages
  int64_t row_stride = 0;
  int32_t page_size = 0;  ///< keys in a page
  int32_t num_pages = 0;  ///< that there are; 0: every number in a table is one

  /// Entry `index` of a sequence's row, or another page where there is none of this number: memory
  /// is read that is there.
  EXACTILE_HOST_DEVICE constexpr int32_t page(const int32_t* row, int32_t index) const {
    return static_cast<int32_t>(min(static_cast<unsigned>(row[index]), num_pages - 1u));
  }

  /// A key's page is entry `index` of its sequence's row; `slot`: its place there.
  struct Place {
    int32_t index, slot;
  };
  EXACTILE_HOST_DEVICE constexpr Place place_of(int32_t key) const {
    const int32_t index = key / page_size;
    return {index, key - index * page_size};
  }
};

/// The keys of a sequence follow one another in a packed (total_k, num_heads_kv, head_dim) tensor;
/// TileRecord::k_begin is the first of them.
struct ContiguousKv {
  static constexpr bool kOneRun = true;

  template <class Element>
  class Rows {
   public:
    EXACTILE_HOST_DEVICE Rows(const KvTensor& tensor, const PageTable&, int32_t k_begin,
                              int32_t kv_head)
        : first_(static_cast<const Element*>(tensor.data) + int64_t{k_begin} * tensor.token_stride +
                 kv_head * tensor.head_stride),
          stride_(tensor.token_stride) {}

    EXACTILE_HOST_DEVICE const Element* operator[](int32_t n) const { return first_ + n * stride_; }
    EXACTILE_HOST_DEVICE int64_t stride() const { return stride_; }
    EXACTILE_HOST_DEVICE static constexpr bool is_run(int32_t, int32_t) { return true; }

   private:
    const Element* first_;
    int64_t stride_;
  };
};

/// The keys of a sequence lie in pages of a (pages, page_size, num_heads_kv, head_dim) tensor;
/// TileRecord::k_begin is the sequence's number. Entries of the table past its last key are not
/// read.
struct PagedKv {
  static constexpr bool kOneRun = false;

  template <class Element>
  class Rows {
   public:
    EXACTILE_HOST_DEVICE Rows(const KvTensor& tensor, const PageTable& table, int32_t k_begin,
                              int32_t kv_head)
        : tensor_(tensor),
          table_(table),
          pages_(table.pages + k_begin * table.row_stride),
          of_head_(static_cast<const Element*>(tensor.data) + kv_head * tensor.head_stride) {}

    EXACTILE_HOST_DEVICE const Element* operator[](int32_t n) const {
      const PageTable::Place at = table_.place_of(n);
      return of_head_ + table_.page(pages_, at.index) * tensor_.page_stride +
             at.slot * tensor_.token_stride;
    }
    EXACTILE_HOST_DEVICE int64_t stride() const { return tensor_.token_stride; }
    EXACTILE_HOST_DEVICE bool is_run(int32_t n, int32_t end) const {
      return end - n <= table_.page_size - table_.place_of(n).slot;
    }

   private:
    const KvTensor& tensor_;
    const PageTable& table_;
    const int32_t* pages_;
    const Element* of_head_;
  };
};

/// PagedKv where there is a page size, else ContiguousKv: for kernels to which a question for each
/// block of keys is nothing.
struct AnyKv {
  static constexpr bool kOneRun = false;

  template <class Element>
  class Rows {
   public:
    EXACTILE_HOST_DEVICE Rows(const KvTensor& tensor, const PageTable& table, int32_t k_begin,
                              int32_t kv_head)
        : is_paged_(table.page_size > 0),
          packed_(tensor, table, is_paged_ ? 0 : k_begin, kv_head),
          paged_(tensor, table, is_paged_ ? k_begin : 0, kv_head) {}

    EXACTILE_HOST_DEVICE const Element* operator[](int32_t n) const {
      return is_paged_ ? paged_[n] : packed_[n];
    }
    EXACTILE_HOST_DEVICE int64_t stride() const { return packed_.stride(); }
    EXACTILE_HOST_DEVICE bool is_run(int32_t n, int32_t end) const {
      return !is_paged_ || paged_.is_run(n, end);
    }

   private:
    bool is_paged_;
    ContiguousKv::Rows<Element> packed_;
    PagedKv::Rows<Element> paged_;
  };
};

}  // namespace exactile
