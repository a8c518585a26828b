"""The child process of a rank: it owns the GPU, runs cases on it and judges nothing."""
