from __future__ import annotations

import pytest
from pairs import run_behaviour


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
@pytest.mark.parametrize(("content", "triton"), [("D", "t3.7.1"), ("D", "t3.6.0"), ("E", "t3.9.0")])
def test_content_on_triton(content: str, triton: str, capability: str) -> None:
    run_behaviour(content, triton, capability)
