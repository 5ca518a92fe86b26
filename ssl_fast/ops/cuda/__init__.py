"""CUDA kernels, one module per op, imported on first use: they pass addresses to `ssl_fast._cuda`."""
