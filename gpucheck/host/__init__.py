"""What this machine says of itself; imports nothing else of gpucheck."""
