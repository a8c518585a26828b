"""Faults of the processes of a rank: which GPU is current, what lies in the kernel cache, and whether they live."""

from __future__ import annotations

from gpucheck.model.errors import ExitCode
from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import attention, dense
from gpucheck.tools.selftest.fault import CacheDamage, Expected, Fault, Hook, Session, Startup, Target, UnderConditions

WRONG_DEVICE = "wrong device context"


def _off_device(name: str, summary: str, placement: str, expected: Expected, **conditions: object) -> Fault:
    """A kernel without a device guard, where another device than that of its tensors is current."""
    case = attention(64, placement=placement, **conditions)
    return Fault(name, summary, UnderConditions(), case, expected, (Target.OTHERS,), machines=("cuda",), fewest_ranks=2)


def _lost(name: str, summary: str, reason: str) -> Fault:
    expected = Expected(Outcome.LOST, "lost", (reason,), ExitCode.INCONCLUSIVE)
    return Fault(name, summary, Startup(name.replace("-", "_")), attention(24), expected, session=Session.LOST)


FAULTS = (
    _off_device(
        "peer-access",
        "device 0 is current and may reach the rank's GPU; the input comes late",
        "peer",
        Expected(Outcome.MISMATCH, f"{WRONG_DEVICE}: corrupted", (r"launched on cuda:0, its tensors on cuda:",)),
        late=True,
        repeat=10,
    ),
    _off_device(
        "context-on-0",
        "device 0 is current and in use",
        "context0",
        Expected(Outcome.ERROR, f"{WRONG_DEVICE}: launch refused", (r"launched on cuda:0, its tensors on cuda:",)),
    ),
    _off_device(
        "right-by-luck",
        "device 0 is current, but nothing ever touched it",
        "unpinned",
        Expected(Outcome.VIOLATION, f"{WRONG_DEVICE}: latent, right by luck", (r"outputs are right",)),
    ),
    _off_device(
        "thread-without-device",
        "a new thread does not make its GPU current",
        "threads-unpinned",
        Expected(Outcome.ERROR, f"{WRONG_DEVICE}: launch refused", (r"launched on cuda:0, its tensors on cuda:",)),
    ),
    Fault(
        "damaged-cache-entry",
        "the description of a compiled kernel breaks off in the middle",
        CacheDamage("truncate"),
        attention(64, head_dim=128),
        Expected(
            Outcome.ERROR,
            "stale or mixed kernel cache: damaged cache entry",
            (r"damaged cache entry: .*_flash_attention_forward\.json",),
        ),
        (Target.ALL,),
        Session.CACHE,
        machines=("cuda",),
    ),
    Fault(
        "mixed-cache",
        "a compiled kernel lies where another specialisation of it belongs",
        CacheDamage("swap"),
        attention(64),
        Expected(Outcome.MISMATCH, "stale or mixed kernel cache: .*", (r"quer",)),
        (Target.ALL,),
        Session.CACHE,
        machines=("cuda",),
        beside=(attention(64, mask="full"),),  # the one whose binary it gets
    ),
    Fault(
        "compile-race",
        "the other ranks write a kernel into the cache they share, slowly and in place, while this one reads it",
        Hook("race_to_compile", "{rank}"),
        dense(87, cache="cold"),
        Expected(Outcome.ERROR, "compile race: error", (r"JSONDecodeError",)),
        session=Session.RACE,
        machines=("cuda",),
        fewest_ranks=2,
        spread=True,
    ),
    _lost("never-starts", "the first process of a rank dies as soon as it is forked", "the rank never started"),
    _lost("loses-its-folder", "a rank can write no more than a few lines of its records", "the rank ended"),
)
