"""The interface of the kernels in plain torch: what runs where neither Triton nor the C++ module is usable."""
