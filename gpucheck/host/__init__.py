"""What this machine says: GPUs, driver, kernel log, processes, software; imports nothing else of gpucheck."""
