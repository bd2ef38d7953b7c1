"""The Triton kernels beside the best libraries."""
