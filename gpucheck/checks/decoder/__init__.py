"""A small transformer in the shape of gpt-oss: its weights, its way through a device, and its reference on the CPU."""
