"""The SYCL runtime for exactile: `_sycl`, loaded by exactile's own `_sycl` when it is first needed."""
