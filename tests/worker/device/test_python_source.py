from __future__ import annotations

import ast

from gpucheck.worker.device.python_source import WIDTH, alias, call, text


def test_what_fits_is_one_line() -> None:
    assert text(call("f", [("", "x"), ("key=", ("[", [("", "1"), ("", "2")], "]"))]), 4) == "f(x, key=[1, 2])"


def test_what_is_wide_is_broken_at_its_members_and_means_the_same() -> None:
    inner = call("made", [(f"field_{n}=", f"value_{n}") for n in range(12)])
    node = call("f", [("", "x"), ("config=", inner)])
    written = text(node, 4)
    assert written.splitlines()[:3] == ["f(", "        x,", "        config=made("]
    assert all(len(line) <= WIDTH for line in written.splitlines())
    flat = "f(x, config=made(" + ", ".join(f"field_{n}=value_{n}" for n in range(12)) + "))"
    assert ast.dump(ast.parse(written)) == ast.dump(ast.parse(flat))


def test_modules_get_their_last_part_where_it_is_free() -> None:
    assert alias("triton_kernels.matmul_ogs", ()) == "matmul_ogs"
    assert alias("a.tensor", ["tensor", "tensor_2"]) == "tensor_3"
    assert alias("a._inner", ()) == "inner" and alias("a.torch", ()) == "torch_2" and alias("a.class", ()) == "class_"
