"""A small gpt-oss transformer for the check `generation`: weights, forward pass on the device, CPU reference."""
