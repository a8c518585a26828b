"""``/metrics``: the state of a service in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gpucheck.report.formats.prometheus import Family
from gpucheck.tools.serve.device_pool import DeviceState
from gpucheck.tools.serve.dispatcher import Dispatcher


def families(dispatcher: Dispatcher) -> Iterator[Family]:
    """All that the answer holds."""
    counts = dispatcher.store.counts()
    yield "serve_tasks", "Tasks on disk, by state.", [({"state": state}, float(n)) for state, n in counts.items()]
    done = [({"verdict": verdict or "none"}, float(n)) for verdict, n in sorted(dispatcher.evaluated.items())]
    yield "serve_evaluations_total", "Evaluations that ended since the start, by verdict.", done
    words = "Time of the evaluations that ended since the start, all together."
    yield "serve_evaluation_seconds_total", words, [({}, dispatcher.total_seconds)]
    yield "serve_uptime_seconds", "Time since the start.", [({}, time.monotonic() - dispatcher.began)]
    labels = [
        ({"device": device.number, "name": device.name, "uuid": device.uuid}, device) for device in dispatcher.devices
    ]
    ready = [(label, float(device.state is DeviceState.READY)) for label, device in labels]
    yield "serve_device_ready", "1 where a device takes work.", ready
    yield "serve_device_running", "Evaluations on a device.", [(label, float(len(d.running))) for label, d in labels]
    words = "Crashes, hangs and exceeded limits on a device since its last reset."
    yield "serve_device_faults", words, [(label, float(device.faults)) for label, device in labels]
