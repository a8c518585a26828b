"""Everything that reaches into Triton: its interpreter, its kernel cache, its compiled kernels."""
