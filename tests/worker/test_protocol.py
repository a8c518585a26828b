from __future__ import annotations

from multiprocessing import Pipe

from gpucheck.model.vocabulary import ViolationKind
from gpucheck.worker.protocol import Reply, receive


def test_a_reply_brings_the_violations_that_a_child_saw() -> None:
    blamed = [(ViolationKind.INPUTS, "x changed"), (ViolationKind("of a check of one's own"), "odd")]
    here, there = Pipe()
    there.send([Reply("ran", blamed=blamed)])
    (reply,) = receive(here)
    assert reply.blamed == blamed and reply.blamed[0][0] is ViolationKind.INPUTS
