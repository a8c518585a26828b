"""Stands in for the module pynvml; what it says follows the file that the variable NVML_SAYS names."""

import json
import os
import time

nvmlEventTypeXidCriticalError = 8


class NVMLError(Exception):
    pass


class NVMLError_Timeout(NVMLError):
    pass


class Pci:
    def __init__(self, busId):
        self.busId = busId


class Event:
    def __init__(self, device, number):
        self.device, self.eventData = device, number


def _says():
    with open(os.environ["NVML_SAYS"]) as file:
        return json.load(file)


_told = []
_asked = 0


def nvmlInit():
    if _says().get("init"):
        raise NVMLError(_says()["init"])
    if _says().get("hangs"):
        time.sleep(600)


def nvmlDeviceGetCount():
    return len(_says()["gpus"])


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetIndex(handle):
    return handle


def nvmlDeviceGetUUID(handle):
    return f"GPU-{handle}"


def nvmlDeviceGetPciInfo(handle):
    return Pci(_says()["gpus"][handle]["bus"].encode())


def nvmlEventSetCreate():
    return "set"


def nvmlDeviceRegisterEvents(handle, kinds, events):
    assert (kinds, events) == (8, "set")


def nvmlEventSetWait_v2(events, milliseconds):
    pending = [(n, xid) for n, gpu in enumerate(_says()["gpus"]) for xid in gpu.get("xids", [])]
    if len(_told) < len(pending):
        _told.append(pending[len(_told)])
        return Event(*_told[-1])
    time.sleep(0.01)
    raise NVMLError_Timeout


def nvmlDeviceGetCurrentClocksThrottleReasons(handle):
    return _says()["gpus"][handle].get("reasons", 0)


def nvmlDeviceGetTotalEccErrors(handle, kind, counter):
    """The later state is that of the second call of a kind: the first is made at the start."""
    return _state(handle, "ecc")[kind]


def nvmlDeviceGetRemappedRows(handle):
    return _state(handle, "rows")


def nvmlDeviceGetNvLinkState(handle, link):
    if link > 1:
        raise NVMLError("no such link")
    return 1


def nvmlDeviceGetNvLinkErrorCounter(handle, link, counter):
    return _state(handle, "links")[link][counter]


def _state(handle, name):
    if name not in _says()["gpus"][handle]:
        raise NVMLError("not supported")
    before, after = _says()["gpus"][handle][name]
    return after if os.path.exists(os.environ["NVML_SAYS"] + ".later") else before
