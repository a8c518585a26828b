"""The causes that findings name: what each means, how it shows, how to confirm it and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass

WRONG_DEVICE = "wrong device context"
UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Cause:
    """What ``gpucheck explain`` prints."""

    means: str
    shows: str
    confirm: str
    mend: str


CAUSES: dict[str, Cause] = {
    WRONG_DEVICE: Cause(
        means="A kernel was launched while another GPU than the one that holds its tensors was the current device. "
        "Triton launches on the current device and never looks at where the tensors live; a rank that allocates on "
        "cuda:RANK without making it current launches on cuda:0. Rank 0 is right by construction.",
        shows="In three ways, by what the process did before. Nothing ever touched device 0: right by luck, since the "
        "driver's context still is the one of the tensors (latent). Device 0 has a context: Triton refuses with "
        "'Pointer argument cannot be accessed from Triton (cpu tensor?)', though no tensor is on the CPU. Peer "
        "access is on, as after any copy between the two GPUs: the kernel runs on GPU 0, on a stream that does not "
        "wait for the tensors' stream, and silently computes from whatever lies in memory at that moment.",
        confirm="gpucheck run device-context: the launch records name launch device, argument devices and source line; "
        "the same cases under --placement pinned and visible are right.",
        mend="In the library: with torch.cuda.device(x.device): around the launch. In the caller: "
        "torch.cuda.set_device(local_rank) before the first CUDA call of each process and thread. Prove it with the "
        "same command and --patch FILE.",
    ),
    UNDETERMINED: Cause(
        means="The evidence of the run fits more than one cause.",
        shows="The finding says which observations contradict each other or what was not tried.",
        confirm="Run the experiment that the finding names.",
        mend="Nothing yet: what is mended without a cause comes back.",
    ),
}


def described(name: str) -> Cause | None:
    """The cause called ``name``, in any case of letters."""
    return CAUSES.get(name.strip().lower())
