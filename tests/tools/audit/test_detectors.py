"""Each detector on the pattern it is for, and on its harmless twin."""

from __future__ import annotations

import pytest

from tests.tools.audit.conftest import Find

HAZARDS = {
    "a literal device": (
        "import torch\ndef f():\n    return [torch.cuda.get_device_properties(0)]\n",
        "fixed-device",
        3,
    ),
    "a named device": (
        "from torch import cuda\ndef f(x):\n    y = cuda.get_device_capability(device='cuda:0')\n    return x @ y\n",
        "fixed-device",
        3,
    ),
    "a device object": (
        "import torch as t\nP = t.cuda.get_device_properties(t.device('cuda', 0))\n",
        "fixed-device",
        2,
    ),
    "no device": ("import torch\nC = torch.cuda.get_device_capability()\n", "current-device", 2),
    "the current device by name": (
        "import torch\nC = torch.cuda.get_device_properties(torch.cuda.current_device())\n",
        "current-device",
        2,
    ),
    "Triton's target": (
        "import triton\ndef f(x):\n    return x, triton.runtime.driver.active.get_current_target().arch\n",
        "current-device",
        3,
    ),
    "Triton's own helper": (
        "import triton.language as tl\ndef f(x):\n    return x if tl.target_info.cuda_capability_geq(9) else None\n",
        "current-device",
        3,
    ),
    "a memoised capability": (
        "import functools, torch\n@functools.lru_cache\ndef f():\n    return torch.cuda.get_device_capability()\n",
        "capability-cache",
        3,
    ),
    "a capability kept in a global": (
        "import torch\nSMS = None\ndef f():\n    global SMS\n    if SMS is None:\n"
        "        SMS = torch.cuda.get_device_properties().multi_processor_count\n    return SMS\n",
        "capability-cache",
        2,
    ),
    "kernels by name alone": (
        "import triton\nmade = {}\ndef get(fn):\n    if fn.name not in made:\n"
        "        made[fn.name] = triton.jit(fn)\n    return made[fn.name]\n",
        "kernel-cache",
        2,
    ),
    "kernels in an object": (
        "import triton\nclass Makes:\n    def __init__(self):\n        self.made = {}\n    def get(self, fn):\n"
        "        return self.made.setdefault(fn.name, triton.jit(fn))\n",
        "kernel-cache",
        4,
    ),
    "a made module": ("import sys\ndef f(name, made):\n    sys.modules[name] = made\n", "module-registration", 3),
    "an option set by a function": ("level = 0\ndef f(new):\n    global level\n    level = new\n", "process-option", 1),
    "options updated": ("options = dict()\ndef f(new):\n    options.update(new)\n", "process-option", 1),
    "a context variable": ("from contextvars import ContextVar\nlevel = ContextVar('level')\n", "process-option", 2),
    "an allocator": ("import triton\ndef f(a):\n    triton.set_allocator(a)\n", "allocator", 3),
    "buffers for good": (
        "import torch\nkept = {}\ndef f(device, n):\n    kept[device] = torch.empty(n, device=device)\n",
        "scratch-cache",
        2,
    ),
    "buffers by shape alone": (
        "import torch\nkept = {}\ndef f(n, device):\n    kept[n, 4] = torch.empty(n, 4, device=device)\n",
        "buffer-cache",
        2,
    ),
    "memory on cuda": ("import torch\ndef f(x):\n    return torch.empty(3, device='cuda')\n", "allocation", 3),
    "a singleton": (
        "import torch.distributed as dist\nclass Pool:\n    def start(self):\n        self.n = dist.get_world_size()\n"
        "pool = Pool()\n",
        "distributed-singleton",
        5,
    ),
    "a seed": ("import torch\ndef f():\n    torch.manual_seed(0)\n", "global-rng", 3),
    "a visible device": ("import os\ndef f(e):\n    e['X'] = os.environ['CUDA_VISIBLE_DEVICES']\n", "environment", 3),
    "a rank": ("from os import getenv\nRANK = int(getenv('LOCAL_RANK', 0))\n", "environment", 2),
    "a launch": (
        "import triton\n@triton.jit\ndef kernel(x): ...\ndef f(x):\n    kernel[(1,)](x)\n",
        "no-device-guard",
        5,
    ),
    "a launch by run": ("def f(kernel, x):\n    kernel.run(x, grid=(1,), warmup=False)\n", "no-device-guard", 2),
    "a launch of a chosen kernel": (
        "def f(ks, x, grid):\n    (ks.a if x.big else ks.b)[grid](x)\n",
        "no-device-guard",
        2,
    ),
    "waiting metadata": (
        "import triton\ndef meta(grid, kernel, args):\n    total = args['h'].sum()\n    return {'flops': int(total)}\n"
        "@triton.jit(launch_metadata=meta)\ndef kernel(h): ...\n",
        "metadata-sync",
        4,
    ),
}


ELSEWHERE = (
    "torch.zeros_like(x, device='cuda')",
    "torch.arange(3, device=torch.device('cuda'))",
    "torch.arange(3, device=torch.device(type='cuda'))",
    "torch.full((3,), 1, device='cuda:0')",
    "torch.tensor([1], device=torch.device('cuda', 0))",
    "torch.empty(3, device='cuda' if x.big else 'cpu')",
    "torch.empty(3, device=device or 'cuda')",
    "torch.empty(3, device=DEVICE)",
    "torch.empty(3, device=place)",
    "torch.empty(3, device=torch.cuda.current_device())",
    "torch.empty(3, device=f'cuda:{torch.cuda.current_device()}')",
    "torch.empty(3, device=torch.device('cuda', torch.cuda.current_device()))",
    "torch.empty(3).cuda()",
    "torch.empty(3).cuda(0)",
    "torch.empty(3).cuda(non_blocking=True)",
    "torch.empty(3).to('cuda')",
    "torch.empty(3).to(device='cuda', dtype=x.dtype)",
    "torch.empty(3).to(torch.device('cuda'))",
    "x.new_empty(3, device='cuda')",
    "torch.load(x.name, map_location='cuda')",
    "torch.set_default_device('cuda')",
    "torch.set_default_device(torch.device('cuda'))",
    "torch.set_default_tensor_type(torch.cuda.FloatTensor)",
    "torch.set_default_tensor_type('torch.cuda.FloatTensor')",
    "torch.cuda.FloatTensor(3)",
    "scratch(3, device='cuda')",
    "made(3)",
)
WITH_THE_TENSORS = (
    "torch.empty(3, device=x.device)",
    "torch.empty(3)",
    "torch.empty(3, device='cpu')",
    "torch.empty(3, device=device)",
    "torch.empty(3, device=out.device)",
    "torch.empty_like(x)",
    "x.new_empty(3)",
    "torch.empty(3, device=torch.device('cuda', x.index))",
    "torch.empty(3, device=f'cuda:{x.index}')",
    "torch.empty(3).cuda(x.device)",
    "torch.empty(3).to(x.device)",
    "torch.empty(3).to(torch.float32)",
    "torch.empty(3).to('cpu')",
    "torch.device('cuda') == x.device",
    "torch.autocast('cuda')",
    "torch.cuda.synchronize(device='cuda')",
    "x.device.type == 'cuda'",
)


@pytest.mark.parametrize("code", [*ELSEWHERE, *WITH_THE_TENSORS])
def test_memory_that_is_not_asked_for_where_the_tensors_are(find: Find, code: str) -> None:
    text = (
        "import torch\nDEVICE = 'cuda'\ndef made(n, *, device='cuda'):\n    return [n]\n"
        "def f(x, device=None, place='cuda'):\n    out = {0: x}[0]\n    return CODE\n"
    )
    if code == "made(3)":
        text = text.replace("[n]", "torch.empty(n, device=device)")
    found = [hazard.kind.value for hazard in find(module=text.replace("CODE", code))]
    assert ("allocation" in found) is (code in ELSEWHERE), found


def test_a_default_device_and_a_guard_for_the_tensors_are_told_apart(find: Find) -> None:
    for scope, kinds in (("torch.device('cuda')", ["allocation"]), ("torch.cuda.device(x.device)", [])):
        text = f"import torch\ndef f(x):\n    with {scope}:\n        return torch.empty(3, device=x.device)\n"
        assert [hazard.kind.value for hazard in find(module=text)] == kinds
    assert not find(
        module="import torch\ndef f(x):\n    with torch.cuda.device(x.device):\n"
        "        return torch.empty(3, device='cuda')\n"
    )


GLOBAL = (
    "rank = int(os.environ['RANK'])\n    torch.cuda.set_device(rank)",
    "rank = int(os.getenv('RANK', '0'))\n    return torch.device(f'cuda:{rank}')",
    "rank = int(os.environ.get('RANK', 0))\n    return torch.device('cuda', rank)",
    "rank = dist.get_rank()\n    return torch.empty(3, device=rank)",
    "return torch.device('cuda:' + str(dist.get_rank()))",
    "return 'cuda:%d' % int(os.environ['RANK'])",
    "return x.to(f'cuda:{helper()}')",
    "return torch.device('cuda', MINE)",
)
LOCAL = (
    "rank = int(os.environ['LOCAL_RANK'])\n    torch.cuda.set_device(rank)",
    "torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())",
    "rank = int(os.environ['RANK']) % 8\n    torch.cuda.set_device(rank)",
    "rank = int(os.environ['RANK'])\n    print(rank)",
    "return x[dist.get_rank()].to(x.device)",
    "torch.cuda.set_device(dist.get_rank(group=x.local))",
)


@pytest.mark.parametrize("body", [*GLOBAL, *LOCAL])
def test_a_global_rank_is_no_device_number(find: Find, body: str) -> None:
    text = (
        "import os, torch\nimport torch.distributed as dist\nMINE = int(os.environ['RANK'])\n"
        "def helper():\n    rank = os.environ['RANK']\n    return int(rank)\n"
    )
    kinds = [hazard.kind.value for hazard in find(module=f"{text}def f(x):\n    {body}\n")]
    assert ("global-rank" in kinds) is (body in GLOBAL), kinds


@pytest.mark.parametrize("name", HAZARDS)
def test_the_pattern_is_found_where_it_is_and_alone(find: Find, name: str) -> None:
    text, kind, line = HAZARDS[name]
    found = [(hazard.kind.value, hazard.line) for hazard in find(module=text)]
    assert (kind, line) in found
    others = {entry for entry, _ in found} - {kind}
    assert others <= ({"current-device"} if kind == "capability-cache" else set())


def test_a_helper_is_followed_over_modules_and_other_names(find: Find) -> None:
    found = find(
        info="import torch\ndef sms():\n    return torch.cuda.get_device_properties(0).multi_processor_count\n",
        __init__="from .info import sms as count\n",
        deep__user="from ..info import sms\nfrom lib import count\ndef f(x):\n    return x, sms()\ndef g(x):\n"
        "    return x, count()\n",
    )
    assert [(h.kind.value, h.file, h.line) for h in found] == [
        ("fixed-device", "info.py", 3),
        ("fixed-device-user", "deep/user.py", 4),
        ("fixed-device-user", "deep/user.py", 6),
    ]


def test_instances_of_a_class_that_caches_kernels_are_found(find: Find) -> None:
    found = find(makes=HAZARDS["kernels in an object"][0], user="from .makes import Makes\nall_kernels = Makes()\n")
    assert [(h.file, h.line, h.filled_by) for h in found] == [
        ("makes.py", 4, "Makes.get"),
        ("user.py", 2, "all_kernels.get"),
    ]


def test_a_switch_that_metadata_reads_has_its_own_kind(find: Find) -> None:
    found = find(
        switch="import os\nwait = None\ndef allowed():\n    global wait\n    if wait is None:\n"
        "        wait = os.getenv('WAIT') == '1'\n    return wait\n",
        kernels="import triton\ndef meta(grid, kernel, args):\n    from .switch import allowed\n"
        "    return {'flops': allowed()}\n@triton.jit(launch_metadata=meta)\ndef kernel(x): ...\n",
    )
    assert [(h.kind.value, h.file, h.line, h.also) for h in found] == [("metadata-switch", "switch.py", 2, (6,))]


GUARDED = {
    "with": "    with torch.cuda.device(x.device):\n        kernel[(1,)](x)\n",
    "set before": "    torch.cuda.set_device(x.device)\n    if x.big:\n        kernel[(1,)](x)\n",
    "device_of": "    with torch.cuda.device_of(x):\n        for _ in range(2):\n            kernel[(1,)](x)\n",
}
UNGUARDED = {
    "another with": "    with open(x.name):\n        kernel[(1,)](x)\n",
    "set after": "    kernel[(1,)](x)\n    torch.cuda.set_device(x.device)\n",
    "set in a branch": "    if x.big:\n        torch.cuda.set_device(x.device)\n    kernel[(1,)](x)\n",
    "after the with": "    with torch.cuda.device(x.device):\n        pass\n    kernel[(1,)](x)\n",
}
KERNEL = "import torch, triton\n@triton.jit\ndef kernel(x): ...\n"


@pytest.mark.parametrize("name", [*GUARDED, *UNGUARDED])
def test_guards(find: Find, name: str) -> None:
    body = GUARDED.get(name) or UNGUARDED[name]
    assert bool(find(module=f"{KERNEL}def f(x):\n{body}")) is (name in UNGUARDED)


@pytest.mark.parametrize(("function", "hazards"), [("_launch", 0), ("launch", 1)])
def test_a_private_launcher_is_guarded_by_all_its_callers(find: Find, function: str, hazards: int) -> None:
    callers = f"def f(x):\n    with torch.cuda.device(x.device):\n        {function}(x)\n"
    assert len(find(module=f"{KERNEL}def {function}(x):\n    kernel[(1,)](x)\n{callers}")) == hazards
    unguarded = f"def g(x):\n    {function}(x)\n"
    assert len(find(module=f"{KERNEL}def {function}(x):\n    kernel[(1,)](x)\n{callers}{unguarded}")) == 1


CLEAN = {
    "__init__": "from .matmul import matmul\n",
    "info": """
        import functools
        import torch
        import triton
        from triton.language.target_info import cuda_capability_geq, is_cuda

        _by_device = {}

        def sms(device):
            return torch.cuda.get_device_properties(device).multi_processor_count

        def capability(device):
            if device not in _by_device:
                _by_device[device] = torch.cuda.get_device_capability(device)
            return _by_device[device]

        def backend():
            return triton.runtime.driver.active.get_current_target().backend

        @triton.constexpr_function
        def has_wide_tiles():
            return cuda_capability_geq(10, 0)

        @functools.lru_cache
        def next_power(n: int) -> int:
            return 1 << (n - 1).bit_length()

        @functools.lru_cache
        def tiles(device: torch.device, n: int) -> int:
            return sms(device) // n
        """,
    "kernels": """
        import triton
        import triton.language as tl
        from .info import has_wide_tiles

        def meta(grid, kernel, args):
            return {"name": kernel.name, "flops": 2 * int(args["M"]) * args["x"].numel()}

        @triton.jit(launch_metadata=meta)
        def kernel(x, M, BLOCK: tl.constexpr):
            wide: tl.constexpr = has_wide_tiles()
            tl.store(x, tl.load(x) + (1 if wide else 0))

        _made = {}

        def special(fn, device):
            key = (fn.name, device)
            if key not in _made:
                _made[key] = triton.jit(fn)
            return _made[key]
        """,
    "matmul": """
        import contextvars
        import os
        import random
        import sys
        import torch
        from .info import backend, is_cuda, sms
        from .kernels import kernel, special

        HANDLERS = {"a": print}
        LIMITS = [1, 2]
        names: dict[int, str] = {}

        class Tiles:
            def __init__(self, size):
                self.size = size
                self.seen = {}

            def note(self, key):
                self.seen[key] = self.size

        DEFAULT = Tiles(64)

        def name(n):
            if n not in names:
                names[n] = str(n)
            return names[n]

        def matmul(x, seed, options=None):
            options = options or {}
            options.update(block=32)
            generator = torch.Generator(x.device).manual_seed(seed)
            noise = torch.rand(x.shape, generator=generator, device=x.device)
            draw = random.Random(seed).random()
            if "torch" in sys.modules and backend() == "cuda" and is_cuda():
                grid = (min(sms(x.device), x.numel()),)
                with torch.cuda.device(x.device):
                    kernel[grid](x, 4, BLOCK=options["block"])
                    special(HANDLERS["a"], x.device)[grid](x)
            HANDLERS["a"](noise, draw, os.environ.get("HOME"))
            return x
        """,
}


def test_nothing_is_found_in_a_clean_package(find: Find) -> None:
    assert find(**CLEAN) == []


@pytest.mark.parametrize("text", ["def f(:\n", "x = '\0'\n"])
def test_a_file_that_is_no_python_is_an_error_for_people(find: Find, text: str) -> None:
    from gpucheck.model.errors import InfrastructureError

    with pytest.raises(InfrastructureError, match="cannot parse .*odd.py"):
        find(odd=text)
