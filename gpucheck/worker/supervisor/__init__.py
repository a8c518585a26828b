"""The process of a rank that never touches CUDA: it starts the child, judges its outputs and writes the records."""
