"""``gpucheck serve``: evaluations of pairs over HTTP.

The server's process holds the queue, the devices and the wire formats; it imports neither torch nor a candidate. Each
evaluation is a run of ``gpucheck run --problem --candidate`` in processes of its own.
"""
