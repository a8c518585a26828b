from __future__ import annotations

import pytest
from pairs import run_behaviour


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_content_c_on_triton_3_6(capability: str) -> None:
    run_behaviour("C", "t3.6.0", capability)
